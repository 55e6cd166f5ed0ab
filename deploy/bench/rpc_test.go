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

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/server"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
)

// rpc compares a read of the real agent, on a fake node, with a bare grpc-go server that has the same TLS and the same
// answer ready.
func (m *measuring) rpc(t *testing.T) {
	calls := 1000
	if m.small {
		calls = 10
	}
	n := agenttest.New(t, agenttest.Options{GPUs: 2})
	agent := agentv1.NewNodeServiceClient(n.Dial(t))
	answer, err := agent.GetNode(t.Context(), &agentv1.GetNodeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	bare := agentv1.NewNodeServiceClient(agenttest.Dial(t, serveBare(t, n, answer), n.CA.ClientTLS(t, "bare-tester", n.Name)))
	oneByOne := func(client agentv1.NodeServiceClient) func() []time.Duration {
		return func() (took []time.Duration) {
			for range calls {
				begin := time.Now()
				if _, err := client.GetNode(t.Context(), &agentv1.GetNodeRequest{}); err != nil {
					t.Fatal(err)
				}
				took = append(took, time.Since(begin))
			}
			return took
		}
	}
	const atOnce = 32
	together := func(client agentv1.NodeServiceClient) func() []time.Duration {
		return func() []time.Duration {
			begin := time.Now()
			group, ctx := errgroup.WithContext(t.Context())
			for range atOnce {
				group.Go(func() error {
					for range calls / atOnce {
						if _, err := client.GetNode(ctx, &agentv1.GetNodeRequest{}); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
			return []time.Duration{time.Since(begin) / time.Duration(max(1, calls/atOnce*atOnce))}
		}
	}
	target := goal{"agent", "bare grpc-go", 1.2}
	m.measure(t, "GetNode, one by one", m.rounds, []*contestant{
		{name: "bare grpc-go", run: oneByOne(bare)}, {name: "agent", run: oneByOne(agent)},
	}, target)
	m.measure(t, "GetNode, 32 at once, each", m.rounds, []*contestant{
		{name: "bare grpc-go", run: together(bare)}, {name: "agent", run: together(agent)},
	}, target)
}

type bareServer struct {
	agentv1.UnimplementedNodeServiceServer
	answer *agentv1.GetNodeResponse
}

func (s *bareServer) GetNode(context.Context, *agentv1.GetNodeRequest) (*agentv1.GetNodeResponse, error) {
	return s.answer, nil
}

// serveBare serves the answer with the agent's TLS and nothing else, until the test ends, and returns the address.
func serveBare(t *testing.T, n *agenttest.Node, answer *agentv1.GetNodeResponse) string {
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
	agentv1.RegisterNodeServiceServer(s, &bareServer{answer: answer})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}
