package bench_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"phoenix.internal/deploy/bench"
	"phoenix.internal/deploy/sandbox"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// exec runs `true` in a container.
func (m *measuring) exec(t *testing.T, h *host) {
	times := 10
	if m.small {
		times = 2
	}
	ctid := h.ctids[0]
	inside := func(argv ...string) func() []time.Duration {
		return func() []time.Duration { return h.inside(t, order{Argv: argv, Times: times}).Took }
	}
	repeated := func(once func() time.Duration) func() []time.Duration {
		return func() (took []time.Duration) {
			for range times {
				took = append(took, once())
			}
			return took
		}
	}
	attach := []string{"lxc-attach", "-n", fmt.Sprint(ctid), "--clear-env", "--", "true"}
	agent := agentv1.NewExecServiceClient(h.dial(t, h.node.AgentAddress(), h.node.Name))
	controller := controllerv1.NewContainerServiceClient(h.dial(t, h.Controller, sandbox.ControllerName))
	contestants := []*contestant{
		{name: "lxc-attach", run: inside(attach...)},
		{name: "call, agent", run: repeated(func() time.Duration { return execAtAgent(t, agent, ctid) })},
		{name: "call, controller", run: repeated(func() time.Duration { return execAtController(t, controller, ctid) })},
		{name: withController, run: repeated(func() time.Duration {
			_, took := h.must(t, "exec", fmt.Sprint(ctid), "true")
			return took
		})},
		{name: withAgent, run: repeated(func() time.Duration {
			_, took := h.must(t, append(h.local(), "exec", fmt.Sprint(ctid), "true")...)
			return took
		})},
	}
	if ssh := h.startSSH(t); !m.small && ssh != nil {
		contestants = append(contestants, &contestant{name: "ssh, connection kept", run: inside(append(ssh, attach...)...)})
	}
	defer h.profile(t, "exec")()
	m.measure(t, "exec of true", m.rounds, contestants,
		goal{"call, agent", "lxc-attach", 1.25}, goal{"call, controller", "lxc-attach", 1.25})
}

// dial connects as the controller does to its agents.
func (h *host) dial(t *testing.T, address, server string) *grpc.ClientConn {
	t.Helper()
	config, err := h.ClientTLS(server)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithNoProxy(),
		grpc.WithStaticStreamWindowSize(128<<10), grpc.WithStaticConnWindowSize(4<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func start(ctid int32) *typev1.ExecInput {
	return &typev1.ExecInput{Input: &typev1.ExecInput_Start{Start: &typev1.ExecStart{Ctid: ctid, Argv: []string{"true"}}}}
}

func execAtAgent(t *testing.T, client agentv1.ExecServiceClient, ctid int32) time.Duration {
	t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client.Exec(ctx)
	if err == nil {
		err = stream.Send(&agentv1.ExecRequest{Input: start(ctid)})
	}
	for err == nil {
		var r *agentv1.ExecResponse
		if r, err = stream.Recv(); r.GetOutput().GetExit() != nil && r.GetOutput().GetExit().GetCode() == 0 {
			return time.Since(begin)
		}
	}
	t.Fatalf("exec at the agent: %v", err)
	return 0
}

func execAtController(t *testing.T, client controllerv1.ContainerServiceClient, ctid int32) time.Duration {
	t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client.Exec(ctx)
	if err == nil {
		err = stream.Send(&controllerv1.ExecRequest{Input: start(ctid)})
	}
	for err == nil {
		var r *controllerv1.ExecResponse
		if r, err = stream.Recv(); r.GetOutput().GetExit() != nil && r.GetOutput().GetExit().GetCode() == 0 {
			return time.Since(begin)
		}
	}
	t.Fatalf("exec at the controller: %v", err)
	return 0
}

// streamed is how fast output must get from a container to phoenix-cli's stdout, in MiB/s.
const streamed = 150

// stream measures how fast output comes from a container, to a reader that discards it.
func (m *measuring) stream(t *testing.T, h *host) {
	sizeMiB, rounds := 1024, min(m.rounds, 3)
	if m.small {
		sizeMiB = 8
	}
	ctid := fmt.Sprint(h.ctids[0])
	dd := []string{"dd", "if=/dev/zero", "bs=64k", fmt.Sprintf("count=%d", sizeMiB*16)}
	all := func(n int64, took time.Duration) []time.Duration {
		t.Helper()
		if n != int64(sizeMiB)<<20 {
			t.Fatalf("%d bytes came of %d MiB", n, sizeMiB)
		}
		return []time.Duration{took}
	}
	contestants := []*contestant{
		{name: "lxc-attach", run: func() []time.Duration {
			a := h.inside(t, order{Argv: append([]string{"lxc-attach", "-n", ctid, "--clear-env", "--"}, dd...), Pipe: true})
			return all(a.Bytes, a.Took[0])
		}},
		{name: withController, run: func() []time.Duration {
			return all(h.piped(t, append([]string{"exec", ctid, "--"}, dd...)...))
		}},
		{name: withAgent, run: func() []time.Duration {
			return all(h.piped(t, append(append(h.local(), "exec", ctid, "--"), dd...)...))
		}},
	}
	defer h.profile(t, "stream")()
	first := len(m.table.Rows)
	m.measure(t, fmt.Sprintf("stream of %d MiB", sizeMiB), rounds, contestants)
	for i, c := range contestants {
		rate := float64(sizeMiB) / c.series.Percentile(50).Seconds()
		row := &m.table.Rows[first+i]
		if i > 0 {
			row.Targets = []bench.Target{{Wanted: fmt.Sprintf("≥ %d MiB/s", streamed), Got: bench.Number(rate) + " MiB/s", Met: rate >= streamed}}
		}
	}
}
