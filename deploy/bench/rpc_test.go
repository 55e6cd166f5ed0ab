package bench_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/server"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
)

// rpc compares reads of the real agent, on a fake node, with a bare grpc-go server that has the same TLS: one that asks for
// nothing, so that all else the agent does with a call is seen, and one for which the node must be looked at.
func (m *measuring) rpc(t *testing.T) {
	n := agenttest.New(t, agenttest.Options{GPUs: 2})
	agent := n.Dial(t)
	answer, err := agentv1.NewNodeServiceClient(agent).GetNode(t.Context(), &agentv1.GetNodeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ready := serveBare(t, n, &bareServer{answer: answer})
	looks := serveBare(t, n, &bareServer{answer: answer, node: n})

	check := func(conn *grpc.ClientConn) func(context.Context) error {
		client := healthv1.NewHealthClient(conn)
		return func(ctx context.Context) error {
			_, err := client.Check(ctx, &healthv1.HealthCheckRequest{})
			return err
		}
	}
	getNode := func(conn *grpc.ClientConn) func(context.Context) error {
		client := agentv1.NewNodeServiceClient(conn)
		return func(ctx context.Context) error {
			_, err := client.GetNode(ctx, &agentv1.GetNodeRequest{})
			return err
		}
	}
	const bare, looking = "bare grpc-go", "bare grpc-go, same look"
	for _, way := range []struct {
		name string
		run  func(*testing.T, func(context.Context) error) func() []time.Duration
	}{{"one by one", m.oneByOne}, {"32 at once", m.together}} {
		m.measure(t, "health check, "+way.name, m.rounds, []*contestant{
			{name: bare, run: way.run(t, check(ready))},
			{name: "agent", run: way.run(t, check(agent))},
		}, goal{"agent", bare, 1.2})
		m.measure(t, "GetNode, "+way.name, m.rounds, []*contestant{
			{name: bare, run: way.run(t, getNode(ready))},
			{name: looking, run: way.run(t, getNode(looks))},
			{name: "agent", run: way.run(t, getNode(agent))},
		}, goal{"agent", looking, 1.2})
	}
}

func (m *measuring) calls() int {
	if m.small {
		return 64
	}
	return 1024
}

func (m *measuring) oneByOne(t *testing.T, call func(context.Context) error) func() []time.Duration {
	return func() (took []time.Duration) {
		for range m.calls() {
			begin := time.Now()
			if err := call(t.Context()); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(begin))
		}
		return took
	}
}

// together makes calls side by side and tells the time that each adds.
func (m *measuring) together(t *testing.T, call func(context.Context) error) func() []time.Duration {
	const atOnce = 32
	return func() []time.Duration {
		begin := time.Now()
		group, ctx := errgroup.WithContext(t.Context())
		for range atOnce {
			group.Go(func() error {
				for range m.calls() / atOnce {
					if err := call(ctx); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		return []time.Duration{time.Since(begin) / time.Duration(m.calls())}
	}
}

// A bareServer answers GetNode with what the agent has answered.
type bareServer struct {
	agentv1.UnimplementedNodeServiceServer
	answer *agentv1.GetNodeResponse
	node   *agenttest.Node // whose GPUs and file system to look at, as the agent does; nil: none
}

func (s *bareServer) GetNode(ctx context.Context, _ *agentv1.GetNodeRequest) (*agentv1.GetNodeResponse, error) {
	if s.node != nil {
		if _, err := s.node.Manager.GPUs.Scan(ctx); err != nil {
			return nil, err
		}
		if err := s.node.Manager.Confs.Check(); err != nil {
			return nil, err
		}
	}
	return s.answer, nil
}

// serveBare serves with the agent's TLS and nothing else, until the test ends, and returns a connection to it.
func serveBare(t *testing.T, n *agenttest.Node, bare *bareServer) *grpc.ClientConn {
	t.Helper()
	config, err := server.TLS(server.TLSFiles(n.CA.Issue(t, n.Name, agenttest.Server)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	agentv1.RegisterNodeServiceServer(s, bare)
	healthv1.RegisterHealthServer(s, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return agenttest.Dial(t, l.Addr().String(), n.CA.ClientTLS(t, "tester", n.Name))
}
