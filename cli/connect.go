package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// controllerName is the name in the certificate of every controller.
const controllerName = "phoenix-controller"

// A Conn is a connection to the controller's API, wherever that is.
type Conn struct {
	grpc.ClientConnInterface
	close func() error
}

// NewConn returns a connection that close ends.
func NewConn(c grpc.ClientConnInterface, close func() error) *Conn {
	return &Conn{ClientConnInterface: c, close: close}
}

// Close ends the connection, and with --agent the engine in this process.
func (c *Conn) Close() error { return c.close() }

// connect reaches the controller that c names, or starts the engine in this process.
func connect(ctx context.Context, c Config) (*Conn, error) {
	if c.Local() {
		return local(ctx, c)
	}
	address, err := withPort(c.Controller, controllerPort)
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load the certificate %s with the key %s: %w", c.TLS.CertFile, c.TLS.KeyFile, err)
	}
	pem, err := os.ReadFile(c.TLS.CAFile)
	if err != nil {
		return nil, fmt.Errorf("load the certificate authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("load the certificate authority %s: no certificate in it", c.TLS.CAFile)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion:   tls.VersionTLS13,
		ServerName:   controllerName,
		Certificates: []tls.Certificate{cert},
		RootCAs:      roots,
	})))
	if err != nil {
		return nil, fmt.Errorf("connect to controller %s: %w", address, err)
	}
	return NewConn(conn, conn.Close), nil
}

// local starts the controller's services in this process, on the agents that c names; without agents they can still
// check a fleet file.
func local(context.Context, Config) (*Conn, error) {
	return nil, errors.New("working without a controller is not built yet")
}
