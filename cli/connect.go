package cli

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"phoenix.internal/controller"
	"phoenix.internal/controller/client"
	"phoenix.internal/controller/pki"
)

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

// connect returns a connection to the controller that c names, or starts a controller in this process. The network is
// not touched before the first call.
func connect(ctx context.Context, c Config) (*Conn, error) {
	if c.Local() {
		return connectLocal(ctx, c)
	}
	address, err := withPort(c.Controller, controllerPort)
	if err != nil {
		return nil, fmt.Errorf("controller: %w", err)
	}
	credentials, err := c.TLS.Load(pki.Call)
	if err != nil {
		return nil, err
	}
	conn, err := client.Dial(address, credentials.Client(client.ServerName))
	if err != nil {
		return nil, err
	}
	return NewConn(conn, conn.Close), nil
}

// connectLocal starts a controller in this process, on the agents that c names. Without agents it can still check a
// fleet file.
func connectLocal(ctx context.Context, c Config) (*Conn, error) {
	agents, err := c.agents()
	if err != nil {
		return nil, err
	}
	nodes := make([]controller.Node, len(agents))
	for i, a := range agents {
		nodes[i] = controller.Node{Name: a.Name, Address: a.Address}
	}
	conn, closeAll, err := controller.Local(ctx, controller.LocalConfig{
		Agents: nodes, TLS: c.TLS, FleetFile: c.FleetFile, FeaturesDir: c.FeaturesDir, StateDir: c.StateDir,
	})
	if err != nil {
		return nil, fmt.Errorf("work without a controller: %w", err)
	}
	return NewConn(conn, closeAll), nil
}
