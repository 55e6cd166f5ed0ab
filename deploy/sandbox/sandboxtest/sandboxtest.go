// Package sandboxtest gives tests pretend Proxmox hosts with real LXC containers. Where root, LXC or
// busybox is missing it skips the test and says so.
//
// A sandbox takes about a second to come up, most of which builds programs, so tests of a package share
// one where they can: subtests of one test.
package sandboxtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"phoenix.internal/deploy/sandbox"
)

// Options say what to lay out. The zero value is one node with two GPUs and no container.
type Options struct {
	Nodes         int      // default 1
	GPUs          int      // per node; default 2, -1: none
	Shapes        []string // of the nodes: names of nvidia.Shape, instead of GPUs
	ReverseMinors bool     // on even nodes the minors run against the PCI order
	Fleet         string   // path of a fleet file; a running container is made for each entry
	FeaturesDir   string   // of the controller; default: the sandbox's samples
}

// A Sandbox is up until its test ends.
type Sandbox struct {
	*sandbox.Sandbox
	t          testing.TB
	programs   string
	controller *exec.Cmd
}

// Up lays out a sandbox in a folder of its own, which does not meet others. When the test ends it is
// taken down; if anything is left then, the test fails. No agent and no controller is started.
func Up(t testing.TB, o Options) *Sandbox {
	t.Helper()
	if reason := sandbox.Missing(); reason != "" {
		t.Skip(reason)
	}
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	switch o.GPUs {
	case 0:
		o.GPUs = 2
	case -1:
		o.GPUs = 0
	}
	s := &Sandbox{t: t, programs: programs(t)}
	build(t, "phoenix-sandbox", "pct")
	dir := filepath.Join(t.TempDir(), "sandbox")
	args := []string{
		"up", "--dir", dir, "--nodes", fmt.Sprint(o.Nodes), "--gpus", fmt.Sprint(o.GPUs),
		"--controller", FreeAddress(t), "--while", fmt.Sprint(os.Getpid()),
	}
	if len(o.Shapes) > 0 {
		args = append(args, "--shape", strings.Join(o.Shapes, ","))
	}
	if o.ReverseMinors {
		args = append(args, "--reverse-minors")
	}
	if o.Fleet != "" {
		args = append(args, "--fleet", o.Fleet)
	}
	if o.FeaturesDir != "" {
		args = append(args, "--features", o.FeaturesDir)
	}
	t.Cleanup(func() { s.down(dir) })
	if out, err := s.command(args...).CombinedOutput(); err != nil {
		t.Fatalf("phoenix-sandbox up: %v\n%s", err, out)
	}
	var err error
	if s.Sandbox, err = sandbox.Load(dir); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Sandbox) down(dir string) {
	if s.t.Failed() && s.Sandbox != nil {
		s.logs()
	}
	if out, err := s.command("down", "--dir", dir).CombinedOutput(); err != nil {
		s.t.Errorf("phoenix-sandbox down: %v\n%s", err, out)
	}
}

// logs puts what agents and controller printed into the test's output.
func (s *Sandbox) logs() {
	paths := []string{s.ControllerLog()}
	for _, n := range s.Nodes {
		paths = append(paths, s.AgentLog(n.Name))
	}
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
			s.t.Logf("%s:\n%s", filepath.Base(path), b)
		}
	}
}

// command is a run of phoenix-sandbox.
func (s *Sandbox) command(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(s.programs, "phoenix-sandbox"), args...)
}

// Program builds one of Phoenix's programs, phoenix-agent, phoenix-controller, phoenix-cli, phoenix-sandbox
// or pct, if no test has yet, and returns its path.
func (s *Sandbox) Program(name string) string {
	s.t.Helper()
	build(s.t, name)
	return filepath.Join(s.programs, name)
}

// Node returns the node "pve<number>"; numbers begin at 1.
func (s *Sandbox) Node(number int) *Node {
	s.t.Helper()
	n, err := s.Sandbox.Node(fmt.Sprintf("pve%d", number))
	if err != nil {
		s.t.Fatal(err)
	}
	return &Node{Node: n, s: s, t: s.t}
}

// StartController starts a controller and waits until it serves.
func (s *Sandbox) StartController() {
	s.t.Helper()
	var err error
	if s.controller, err = s.Sandbox.StartController(s.Program("phoenix-controller")); err != nil {
		s.t.Fatal(err)
	}
	if err := s.AwaitServing(s.t.Context(), s.Controller, sandbox.ControllerName); err != nil {
		s.t.Fatal(err)
	}
}

// SignalController sends a signal, SIGTERM or SIGKILL, to the controller and waits for its end.
func (s *Sandbox) SignalController(signal syscall.Signal) {
	s.t.Helper()
	end(s.t, s.controller, signal)
	s.controller = nil
}

// CLI runs phoenix-cli against the sandbox's controller, or with --agent flags against its agents, and
// returns what it printed and its exit status.
func (s *Sandbox) CLI(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Program("phoenix-cli"), append([]string{"--config", s.CLIConfigPath()}, args...)...)
	return run(s.t, cmd)
}

// run runs a command to its end.
func run(t testing.TB, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return out.String(), errOut.String(), exit.ExitCode()
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), errOut.String())
	}
	return out.String(), errOut.String(), 0
}

func end(t testing.TB, cmd *exec.Cmd, signal syscall.Signal) {
	t.Helper()
	if cmd == nil {
		t.Fatal("it does not run")
	}
	if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
	}
}

// FreeAddress is an address of this machine where nothing listens at the moment.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Main runs the tests of a package, for its TestMain. The programs are then built once for all of them;
// without it, anew for each test that begins when no sandbox is up.
func Main(m *testing.M) int {
	built.Lock()
	built.users++
	built.Unlock()
	defer release()
	return m.Run()
}

// sources are the packages of the programs.
var sources = map[string]string{
	"pct":                "phoenix.internal/deploy/sandbox/cmd/pct",
	"phoenix-sandbox":    "phoenix.internal/deploy/sandbox/cmd/phoenix-sandbox",
	"phoenix-agent":      "phoenix.internal/agent/cmd/phoenix-agent",
	"phoenix-controller": "phoenix.internal/controller/cmd/phoenix-controller",
	"phoenix-cli":        "phoenix.internal/cli/cmd/phoenix-cli",
}

// built are the programs that the tests of this process have built: in a folder that goes when the last
// test that uses it ends.
var built struct {
	sync.Mutex
	dir   string
	names map[string]bool
	users int
}

// programs makes the folder of the programs, until the test ends.
func programs(t testing.TB) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "phoenix-programs-")
		if err != nil {
			t.Fatal(err)
		}
		built.dir, built.names = dir, map[string]bool{}
	}
	built.users++
	t.Cleanup(release)
	return built.dir
}

// release removes the programs when the last user of them has gone.
func release() {
	built.Lock()
	defer built.Unlock()
	if built.users--; built.users == 0 {
		os.RemoveAll(built.dir)
		built.dir = ""
	}
}

// build builds programs that have not been built yet, without cgo as for releases: the agent's probe
// must be static.
func build(t testing.TB, names ...string) {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	args := []string{"build", "-o", built.dir + "/"}
	var missing []string
	for _, name := range names {
		if !built.names[name] {
			missing = append(missing, name)
			args = append(args, sources[name])
		}
	}
	if len(missing) == 0 {
		return
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %v: %v\n%s", missing, err, out)
	}
	for _, name := range missing {
		built.names[name] = true
	}
}
