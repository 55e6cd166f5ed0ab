// Package client calls a controller's API.
package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"

	"phoenix.internal/controller/pki"
)

// ServerName is the name that a controller's certificate is made for.
const ServerName = "phoenix-controller"

// A Client is the services of one controller.
type Client struct {
	Fleet      controllerv1.FleetServiceClient
	Runs       controllerv1.RunServiceClient
	Nodes      controllerv1.NodeServiceClient
	Containers controllerv1.ContainerServiceClient
}

// New returns the services behind a connection.
func New(conn grpc.ClientConnInterface) Client {
	return Client{
		Fleet:      controllerv1.NewFleetServiceClient(conn),
		Runs:       controllerv1.NewRunServiceClient(conn),
		Nodes:      controllerv1.NewNodeServiceClient(conn),
		Containers: controllerv1.NewContainerServiceClient(conn),
	}
}

// Dial returns a connection to the controller at address, host:port; it connects at the first call. The controller
// must show a certificate for the ServerName of settings, or for [ServerName] if that is empty.
func Dial(address string, settings *tls.Config) (*grpc.ClientConn, error) {
	settings = settings.Clone()
	if settings.ServerName == "" {
		settings.ServerName = ServerName
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(settings)),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithStaticStreamWindowSize(128<<10),
		grpc.WithStaticConnWindowSize(4<<20),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(9<<20)), // a fleet file may have 8 MiB
	)
	if err != nil {
		return nil, fmt.Errorf("controller %q: %w", address, err)
	}
	return conn, nil
}

// Explain takes the text of a status about a connection to the controller that could not be made, or broke. It returns
// the cause without what grpc puts around it and, if it is about certificates, which file is wrong and what to do.
func Explain(text string) (cause, certificate string) {
	cause = pki.Cause(text)
	return cause, pki.Explain(cause, "the controller", ServerName)
}

// Reason returns why a call failed, with the values that belong to it; unspecified if err does not tell.
func Reason(err error) (errorv1.Reason, map[string]string) {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return errorv1.Reason_REASON_UNSPECIFIED, nil
	}
	for _, d := range s.GRPCStatus().Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == "phoenix.internal" {
			return errorv1.Reason(errorv1.Reason_value["REASON_"+strings.ToUpper(info.GetReason())]), info.GetMetadata()
		}
	}
	return errorv1.Reason_REASON_UNSPECIFIED, nil
}
