package bench_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// prepared is a folder of the node with the confs for each GPU, 0/901.conf and 1/901.conf, and the contestants' scripts.
const prepared = "/run/bench"

// A host is a pretended Proxmox host with an agent, a controller over it, and a worker inside.
type host struct {
	*sandboxtest.Sandbox
	t     *testing.T
	node  *sandboxtest.Node
	fleet string // path of the fleet file
	ctids []int32
	gpu   int  // that the containers have
	ssh   bool // sshd runs

	orders  *json.Encoder
	answers *json.Decoder
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{Sandbox: sandboxtest.Up(t, sandboxtest.Options{}), t: t}
	h.node = h.Node(1)
	h.fleet = filepath.Join(h.Dir, "fleet.json")
	h.write(h.fleet, `{"lxc_configs": {}}`)
	f, err := os.OpenFile(h.ControllerConfigPath(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "fleet_file: %q\n", h.fleet); err != nil {
		t.Fatal(err)
	}
	if *profiles != "" {
		h.profiled()
	}
	h.node.StartAgent()
	h.StartController()
	h.startWorker()
	return h
}

// startWorker starts this program in the node, until the test ends.
func (h *host) startWorker() {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd, started := h.node.Command(context.Background(), self)
	cmd.Env = append(os.Environ(), workerEnv+"=1", "TMPDIR=/run")
	cmd.Stderr = os.Stderr
	orders, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	started()
	h.t.Cleanup(func() {
		if err := orders.Close(); err != nil {
			h.t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			h.t.Errorf("worker: %v", err)
		}
	})
	h.orders, h.answers = json.NewEncoder(orders), json.NewDecoder(answers)
}

// inside has the worker carry out an order.
func (h *host) inside(t *testing.T, o order) answer {
	t.Helper()
	var a answer
	if err := h.orders.Encode(o); err != nil {
		t.Fatal(err)
	}
	if err := h.answers.Decode(&a); err != nil {
		t.Fatalf("answer of the worker: %v", err)
	}
	if a.Err != "" {
		t.Fatal(a.Err)
	}
	return a
}

// setContainers sees that the fleet and the node have n containers.
func (h *host) setContainers(n int) {
	h.t.Helper()
	for len(h.ctids) < n {
		ctid := int32(901 + len(h.ctids))
		h.ctids = append(h.ctids, ctid)
		h.node.Add(ctid, conf(ctid)+killedAtOnce)
		h.node.Must("pct", "start", fmt.Sprint(ctid))
	}
	h.prepare()
}

// prepare makes ready the confs for each GPU: as Phoenix makes them, so that everybody ends up with the same.
func (h *host) prepare() {
	h.t.Helper()
	for _, gpu := range []int{1, 0} {
		h.assign(gpu)
		h.must(h.t, "apply")
		for _, ctid := range h.ctids {
			h.write(filepath.Join(h.node.Dir(), prepared, fmt.Sprint(gpu), fmt.Sprintf("%d.conf", ctid)), h.node.Conf(ctid))
		}
	}
}

// patiently has the containers shut down in their own way and time while fn runs.
func (h *host) patiently(fn func()) {
	h.t.Helper()
	swap := func(from, to string) {
		for _, ctid := range h.ctids {
			id := fmt.Sprint(ctid)
			h.node.Must("pct", "stop", id)
			h.node.SetConf(ctid, strings.Replace(h.node.Conf(ctid), from, to, 1))
			h.node.Must("pct", "start", id)
		}
		h.prepare()
	}
	swap(killedAtOnce, "")
	fn()
	swap("\nlxc.", "\n"+killedAtOnce+"lxc.")
}

// conf is that of an unprivileged container without GPU.
func conf(ctid int32) string {
	return fmt.Sprintf("arch: amd64\ncores: 1\nhostname: ct%[1]d\nmemory: 64\nostype: debian\n"+
		"rootfs: local:%[1]d/vm-%[1]d-disk-0.raw,size=8G\nswap: 0\nunprivileged: 1\n", ctid)
}

// killedAtOnce has a container end by a kill when it is asked to shut down. For kill is what the other contestants do: how
// long a guest takes to shut down is its own affair.
const killedAtOnce = "lxc.signal.halt: SIGKILL\n"

// assign writes the fleet file: every container gets this GPU.
func (h *host) assign(gpu int) {
	h.t.Helper()
	h.gpu = gpu
	h.write(h.fleet, fleetOf(h.ctids, gpu))
}

func fleetOf(ctids []int32, gpu int) string {
	entries := map[string]any{}
	for _, ctid := range ctids {
		entries[fmt.Sprint(ctid)] = map[string]any{"gpu_assignment": fmt.Sprint(gpu)}
	}
	b, err := json.Marshal(map[string]any{"lxc_configs": entries})
	if err != nil {
		panic(err) // strings only
	}
	return string(b)
}

func (h *host) write(path, content string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// local are the flags for a phoenix-cli that is its own controller.
func (h *host) local() []string {
	return []string{
		"--agent", h.node.Name + "=" + h.node.AgentAddress(), "--fleet", h.fleet, "--state-dir", filepath.Join(h.Dir, "cli-state"),
	}
}

// must runs phoenix-cli, which has to succeed, and returns what it wrote and how long it took.
func (h *host) must(t *testing.T, args ...string) (string, time.Duration) {
	t.Helper()
	return cli(t, h.Program("phoenix-cli"), append([]string{"--config", h.CLIConfigPath()}, args...)...)
}

func cli(t *testing.T, program string, args ...string) (string, time.Duration) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.WaitDelay = time.Second
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(begin)
	if err != nil {
		t.Fatalf("phoenix-cli %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), took
}

// piped runs phoenix-cli and counts what it writes.
func (h *host) piped(t *testing.T, args ...string) (n int64, took time.Duration) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), h.Program("phoenix-cli"), append([]string{"--config", h.CLIConfigPath()}, args...)...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n, err = io.CopyBuffer(io.Discard, struct{ io.Reader }{stdout}, make([]byte, 64<<10))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("phoenix-cli %s: %v", strings.Join(args, " "), err)
	}
	return n, time.Since(begin)
}

// check sees that every container reaches the GPU that it is to have, and no other. A made-up GPU has no driver: one that
// can be reached answers ENXIO.
func (h *host) check(t *testing.T) {
	t.Helper()
	const open = `for i in 0 1; do
		p=/dev/nvidia$i
		if [ ! -c $p ]; then echo $i absent
		elif (exec 3<$p) 2>&1 | grep -q "No such device or address"; then echo $i open
		else echo $i closed
		fi
	done`
	got := h.inside(t, order{Argv: []string{
		"sh", "-ec", `open=$1; shift; for c in "$@"; do lxc-attach -n $c --clear-env -- /bin/sh -c "$open"; done`, "check", open,
	}}.with(h.ctids)).Output
	want := strings.Repeat([]string{"0 open\n1 absent\n", "0 absent\n1 open\n"}[h.gpu], len(h.ctids))
	if got != want {
		t.Fatalf("the containers %v have these GPUs:\n%swant:\n%s", h.ctids, got, want)
	}
}

// with appends CTIDs to the command.
func (o order) with(ctids []int32) order {
	o.Argv = slices.Clone(o.Argv)
	for _, ctid := range ctids {
		o.Argv = append(o.Argv, fmt.Sprint(ctid))
	}
	return o
}
