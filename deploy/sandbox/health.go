package sandbox

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// AgentAddress is where the node's agent listens, for this machine only.
func (n *Node) AgentAddress() string { return net.JoinHostPort(n.Address, strconv.Itoa(agentPort)) }

// ControllerName is the name that the controller's certificate is for; an agent's is for its node's name.
const ControllerName = "phoenix-controller"

// AwaitServing waits until the overall health of an agent or a controller is SERVING, at most 20 seconds.
func (s *Sandbox) AwaitServing(ctx context.Context, address, server string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := s.connect(address, server)
	if err != nil {
		return err
	}
	defer conn.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		response, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		if response.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("health is %v", response.GetStatus())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not SERVING at %s: %w", server, address, err)
		case <-tick.C:
			conn.ResetConnectBackoff()
		}
	}
}

// connect makes a connection with the CLI's identity to a server of this name.
func (s *Sandbox) connect(address, server string) (*grpc.ClientConn, error) {
	config, err := s.ClientTLS(server)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
}

// ClientTLS is the TLS configuration with which the CLI's identity connects to a server of this name.
func (s *Sandbox) ClientTLS(server string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(s.PKI("cli.pem"), s.PKI("cli-key.pem"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(s.PKI("ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: server, MinVersion: tls.VersionTLS13,
	}, nil
}
