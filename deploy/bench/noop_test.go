package bench_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/deploy/bench"
	"phoenix.internal/deploy/sandbox/sandboxtest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
)

// noopTime is within what an apply that changes nothing must be done.
const noopTime = 500 * time.Millisecond

// noop applies to 1,000 containers on 10 nodes that are all as they should be already. The nodes are directories and
// their containers values in memory; the agents on them, in this process, are the real ones.
func (m *measuring) noop(t *testing.T, h *host) {
	nodes, perNode := 10, 100
	if m.small {
		nodes, perNode = 2, 3
	}
	f := newFleet(t, h, nodes, perNode)
	for _, flags := range [][]string{f.config, f.local} {
		cli(t, f.program, append(slices.Clone(flags), "apply")...) // proves the devices, once
	}
	contestants := []*contestant{
		{name: "the calls alone", run: func() []time.Duration { return []time.Duration{f.list(t)} }},
		{name: withController, run: func() []time.Duration { return []time.Duration{f.apply(t, f.config...)} }},
		{name: withAgent, run: func() []time.Duration { return []time.Duration{f.apply(t, f.local...)} }},
	}
	first := len(m.table.Rows)
	m.measure(t, fmt.Sprintf("no-op, %d containers on %d nodes", nodes*perNode, nodes), m.rounds, contestants)
	for i, c := range contestants[1:] {
		p50 := c.series.Percentile(50)
		row := &m.table.Rows[first+1+i]
		row.Targets = []bench.Target{{Wanted: "< " + bench.Milliseconds(noopTime), Got: bench.Milliseconds(p50), Met: p50 < noopTime}}
	}
	f.calls.reset()
	f.apply(t, f.config...)
	const perNodeCalls = 2
	most := 0
	for _, n := range f.nodes {
		most = max(most, f.calls.of(n.Name))
	}
	m.addCount("calls of a no-op", "to a node", most, perNodeCalls)
}

// A fleet is fake nodes with the real agent, and a controller over them.
type fleet struct {
	nodes   []*agenttest.Node
	calls   *calls
	program string             // phoenix-cli
	config  []string           // its flags to work with the controller
	local   []string           // its flags to work without
	want    string             // what it says
	conns   []*grpc.ClientConn // to the nodes
}

func newFleet(t *testing.T, h *host, nodes, perNode int) *fleet {
	t.Helper()
	f := &fleet{
		calls: &calls{n: map[string]int{}}, program: h.Program("phoenix-cli"),
		want: fmt.Sprintf("succeeded: %d unchanged", nodes*perNode),
	}
	ca := agenttest.NewCA(t)
	var ctids []int32
	for i := range nodes {
		n := agenttest.New(t, agenttest.Options{Name: fmt.Sprintf("pve%d", i+1), GPUs: 2, CA: ca})
		n.Stop()
		n.Manager.Log = slog.New(f.calls.handler(n.Name))
		n.Start()
		for j := range perNode {
			ctid := int32(1000*(i+1) + j)
			n.PutConf(ctid, conf(ctid)+passthrough)
			if err := n.Runtime.Start(t.Context(), ctid); err != nil {
				t.Fatal(err)
			}
			ctids = append(ctids, ctid)
		}
		f.conns = append(f.conns, n.Dial(t))
		f.nodes = append(f.nodes, n)
	}
	dir := t.TempDir()
	fleetFile := filepath.Join(dir, "fleet.json")
	h.write(fleetFile, fleetOf(ctids, 0))
	f.startController(t, h, ca, dir, fleetFile)
	return f
}

// passthrough are the lines with which a container of a fake node has GPU 0.
const passthrough = `lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file
lxc.cgroup2.devices.allow: c 195:0 rwm
lxc.cgroup2.devices.allow: c 195:255 rwm
lxc.cgroup2.devices.allow: c 511:0 rwm
lxc.cgroup2.devices.allow: c 511:1 rwm
`

func (f *fleet) startController(t *testing.T, h *host, ca *agenttest.CA, dir, fleetFile string) {
	t.Helper()
	tls := func(files agenttest.Files) string {
		return fmt.Sprintf("tls:\n  cert_file: %q\n  key_file: %q\n  ca_file: %q\n", files.CertFile, files.KeyFile, files.CAFile)
	}
	address, client := sandboxtest.FreeAddress(t), tls(ca.Issue(t, "phoenix-cli", agenttest.Client))
	controller := fmt.Sprintf("listen: %q\nfleet_file: %q\nstate_dir: %q\n%snodes:\n",
		address, fleetFile, filepath.Join(dir, "state"), tls(ca.Issue(t, "phoenix-controller", agenttest.Both)))
	h.write(filepath.Join(dir, "direct.yaml"), client)
	f.local = []string{"--config", filepath.Join(dir, "direct.yaml"), "--fleet", fleetFile, "--state-dir", filepath.Join(dir, "cli-state")}
	for _, n := range f.nodes {
		controller += fmt.Sprintf("  - {name: %s, address: %q}\n", n.Name, n.Address)
		f.local = append(f.local, "--agent", n.Name+"="+n.Address)
	}
	h.write(filepath.Join(dir, "controller.yaml"), controller)
	h.write(filepath.Join(dir, "cli.yaml"), fmt.Sprintf("controller: %q\n%s", address, client))
	f.config = []string{"--config", filepath.Join(dir, "cli.yaml")}

	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(h.Program("phoenix-controller"), "--config", filepath.Join(dir, "controller.yaml"))
	log, err := os.Create(filepath.Join(dir, "controller.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("controller: %v", err)
		}
	})
	sandboxtest.Eventually(t, "the controller serves", func() bool {
		return exec.Command(f.program, append(f.config, "nodes")...).Run() == nil
	})
}

// apply applies the whole fleet, of which nothing may change.
func (f *fleet) apply(t *testing.T, flags ...string) time.Duration {
	t.Helper()
	out, took := cli(t, f.program, append(slices.Clone(flags), "apply")...)
	if !strings.Contains(out, f.want) {
		t.Fatalf("apply, want %s:\n%s", f.want, out)
	}
	return took
}

// list makes the calls that a no-op needs, to all nodes at once: the limit.
func (f *fleet) list(t *testing.T) time.Duration {
	t.Helper()
	begin := time.Now()
	group, ctx := errgroup.WithContext(t.Context())
	for _, conn := range f.conns {
		group.Go(func() error {
			if _, err := agentv1.NewDeviceServiceClient(conn).ListDevices(ctx, &agentv1.ListDevicesRequest{}); err != nil {
				return err
			}
			_, err := agentv1.NewContainerServiceClient(conn).ListContainers(ctx, &agentv1.ListContainersRequest{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return time.Since(begin)
}

// calls counts the calls to agents by their logs, which have a line for each.
type calls struct {
	mu sync.Mutex
	n  map[string]int // by node
}

func (c *calls) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.n)
}

func (c *calls) of(node string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[node]
}

func (c *calls) handler(node string) slog.Handler { return &callHandler{calls: c, node: node} }

type callHandler struct {
	calls *calls
	node  string
}

func (h *callHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *callHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "rpc" {
		h.calls.mu.Lock()
		defer h.calls.mu.Unlock()
		h.calls.n[h.node]++
	}
	return nil
}

func (h *callHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h *callHandler) WithGroup(string) slog.Handler      { return h }
