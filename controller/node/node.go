// Package node reaches the agents: it connects to them, observes all nodes, finds the node of a CTID, and asks for
// changes. Here alone the controller's domain meets the agents' API.
package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
)

// A Config names one agent.
type Config struct {
	Name       string // of the node
	Address    string // host:port
	ServerName string // in the agent's certificate; empty: Name
}

// A Fleet is the agents of all configured nodes. Its methods may be called concurrently.
type Fleet struct {
	nodes map[string]*Node
	names []string // sorted
	log   *slog.Logger

	mu    sync.Mutex
	found map[int32]string // node that last had the CTID
}

// A Node is the agent of one node.
type Node struct {
	name, address string
	serverName    string // in the agent's certificate
	conn          *grpc.ClientConn
}

// maxMessage bounds one message of an agent: PatchConf's answer holds a conf twice, and a conf has at most 1 MiB;
// a node has at most some thousands of containers of a KiB each.
const maxMessage = 16 << 20

// Dial returns the agents of cfg. It opens no connection: each is made at its first call, and made anew when it is
// lost. The caller closes the fleet. conf is copied; each agent must have a certificate for its ServerName.
func Dial(cfg []Config, conf *tls.Config, log *slog.Logger) (*Fleet, error) {
	f := &Fleet{nodes: map[string]*Node{}, log: log, found: map[int32]string{}}
	for _, c := range cfg {
		if _, ok := f.nodes[c.Name]; ok {
			return nil, errors.Join(fmt.Errorf("node %s is configured twice", c.Name), f.Close())
		}
		n, err := dial(c, conf)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		f.nodes[c.Name] = n
	}
	f.names = slices.Sorted(maps.Keys(f.nodes))
	return f, nil
}

func dial(c Config, conf *tls.Config) (*Node, error) {
	conf = conf.Clone()
	conf.ServerName = c.ServerName
	if conf.ServerName == "" {
		conf.ServerName = c.Name
	}
	n := &Node{name: c.Name, address: c.Address, serverName: conf.ServerName}
	// passthrough: the dialer resolves the name at each attempt, so a changed DNS entry needs no restart.
	conn, err := grpc.NewClient("passthrough:///"+c.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		// Static windows: with dynamic ones a stream that nobody reads holds megabytes. With what waits to be passed on, some
		// 130 KiB, and the goroutines this makes less than 256 KiB for a command whose output nobody reads.
		grpc.WithStaticStreamWindowSize(64<<10),
		grpc.WithStaticConnWindowSize(4<<20),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// An agent that comes back is reached again within some seconds.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithChainUnaryInterceptor(n.unary),
		grpc.WithChainStreamInterceptor(n.stream),
	)
	if err != nil {
		return nil, fmt.Errorf("node %s: address %q: %w", c.Name, c.Address, err)
	}
	n.conn = conn
	return n, nil
}

// comeback is how long a call waits for a connection that has failed before: an agent that has come back takes some
// milliseconds to answer.
const comeback = 150 * time.Millisecond

// tryAgain connects again at once where an earlier failure would have calls fail until the next attempt is due.
func (n *Node) tryAgain(ctx context.Context) {
	if n.conn.GetState() != connectivity.TransientFailure {
		return
	}
	n.conn.ResetConnectBackoff()
	ctx, cancel := context.WithTimeout(ctx, comeback)
	defer cancel()
	for state := connectivity.TransientFailure; state != connectivity.Ready; state = n.conn.GetState() {
		if !n.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// Close ends all connections.
func (f *Fleet) Close() error {
	var errs []error
	for _, n := range f.nodes {
		errs = append(errs, n.conn.Close())
	}
	return errors.Join(errs...)
}

// Nodes returns all nodes, by name.
func (f *Fleet) Nodes() []*Node {
	nodes := make([]*Node, len(f.names))
	for i, name := range f.names {
		nodes[i] = f.nodes[name]
	}
	return nodes
}

// Node returns the node with this name, or an [*UnknownError].
func (f *Fleet) Node(name string) (*Node, error) {
	n, ok := f.nodes[name]
	if !ok {
		return nil, &UnknownError{Name: name, Known: slices.Clone(f.names)}
	}
	return n, nil
}

// An UnknownError tells that no node of this name is configured.
type UnknownError struct {
	Name  string
	Known []string // by name
}

func (e *UnknownError) Error() string {
	if len(e.Known) == 0 {
		return fmt.Sprintf("no node %q: none is configured", e.Name)
	}
	return fmt.Sprintf("no node %q; configured are %s", e.Name, strings.Join(e.Known, ", "))
}

// Name returns the node's name.
func (n *Node) Name() string { return n.name }

// Address returns the agent's host and port.
func (n *Node) Address() string { return n.address }

// Info returns the agent's NodeService. As with the other services, its calls fail with an [*Error], and the caller
// gives each a deadline.
func (n *Node) Info() agentv1.NodeServiceClient { return agentv1.NewNodeServiceClient(n.conn) }

// Devices returns the agent's DeviceService.
func (n *Node) Devices() agentv1.DeviceServiceClient { return agentv1.NewDeviceServiceClient(n.conn) }

// Containers returns the agent's ContainerService.
func (n *Node) Containers() agentv1.ContainerServiceClient {
	return agentv1.NewContainerServiceClient(n.conn)
}

// Exec returns the agent's ExecService.
func (n *Node) Exec() agentv1.ExecServiceClient { return agentv1.NewExecServiceClient(n.conn) }

// Files returns the agent's FileService.
func (n *Node) Files() agentv1.FileServiceClient { return agentv1.NewFileServiceClient(n.conn) }

// Drivers returns the agent's DriverService.
func (n *Node) Drivers() agentv1.DriverServiceClient { return agentv1.NewDriverServiceClient(n.conn) }

// each calls fn for every node, all at once, and waits for them. fn gets the node's position by name.
func (f *Fleet) each(ctx context.Context, timeout time.Duration, fn func(ctx context.Context, i int, n *Node)) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, n := range f.Nodes() {
		wg.Go(func() { fn(ctx, i, n) })
	}
	wg.Wait()
}
