package cli_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/health"
	"phoenix.internal/agent/xid"
	"phoenix.internal/cli"
	"phoenix.internal/controller"
	"phoenix.internal/controller/client"
	"phoenix.internal/controller/pki"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"phoenix-cli": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop)
		os.Exit(new(cli.Program).Run(ctx, os.Args[1:]))
	}})
}

// TestScripts runs phoenix-cli against a real controller and real agents, on nodes that are directories. Each file in
// testdata/script is a story of one thing that phoenix-cli does; scriptCommands are what the scripts can say besides
// the commands of testscript.
func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the scripts need device nodes, and making those takes root")
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		Setup:               setUpScript,
		Cmds:                scriptCommands,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
	})
}

// A fleet is what a script has started: the nodes, and the controller over them.
type fleet struct {
	t     testing.TB
	dir   string // the script's $WORK
	ca    *agenttest.CA
	nodes []*fleetNode
	stop  func() // the controller; nil while none runs
}

type fleetNode struct {
	*agenttest.Node
	calls int // of its runtime that a script has seen
}

type fleetKey struct{}

func fleetOf(ts *testscript.TestScript) *fleet { return ts.Value(fleetKey{}).(*fleet) }

// setUpScript gives a script an identity that agents and controller take, in $WORK/tls, and a settings file that
// names it.
func setUpScript(env *testscript.Env) error {
	t := env.T().(testing.TB)
	f := &fleet{t: t, dir: env.WorkDir, ca: agenttest.NewCA(t)}
	env.Values[fleetKey{}] = f
	env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
	env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
	env.Setenv("SETTINGS", f.settingsFile())
	env.Setenv("GORACE", "atexit_sleep_ms=0") // else each phoenix-cli waits for a second before it ends
	if err := os.Mkdir(filepath.Join(env.WorkDir, "tls"), 0o755); err != nil {
		return err
	}
	admin := f.ca.Issue(t, "admin", agenttest.Client)
	for name, path := range map[string]string{"admin.pem": admin.CertFile, "admin.key": admin.KeyFile, "ca.pem": admin.CAFile} {
		if err := os.Rename(path, filepath.Join(env.WorkDir, "tls", name)); err != nil {
			return err
		}
	}
	f.ca.Dir = filepath.Join(env.WorkDir, "tls") // for the certificates to come
	return f.writeSettings("")
}

func (f *fleet) settingsFile() string { return filepath.Join(f.dir, "config/phoenix/cli.yaml") }

func (f *fleet) writeSettings(more string) error {
	if err := os.MkdirAll(filepath.Dir(f.settingsFile()), 0o755); err != nil {
		return err
	}
	tls := filepath.Join(f.dir, "tls")
	text := fmt.Sprintf("tls:\n  cert_file: %s/admin.pem\n  key_file: %s/admin.key\n  ca_file: %s/ca.pem\n", tls, tls, tls)
	return os.WriteFile(f.settingsFile(), []byte(text+more), 0o644)
}

// node returns the started node of this name.
func (f *fleet) node(ts *testscript.TestScript, name string) *fleetNode {
	i := slices.IndexFunc(f.nodes, func(n *fleetNode) bool { return n.Name == name })
	if i < 0 {
		ts.Fatalf("no node %s was started", name)
	}
	return f.nodes[i]
}

// scriptCommands are the commands of the scripts.
var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"node":            startNode,
	"stop-agent":      stopAgent,
	"start-agent":     startAgent,
	"lose":            loseDevice,
	"kernel":          kernelSays,
	"start":           startContainers,
	"refuse":          refuseStarts,
	"deaf":            ignoreShutdown,
	"calls":           printCalls,
	"controller":      startController,
	"stop-controller": stopController,
	"exits":           exits,
	"eventually":      eventually,
	"steady":          steady,
	"certificate":     certificate,
}

// arguments ends the script unless there are from least to most of them; usage shows the command without its name.
func arguments(ts *testscript.TestScript, neg bool, args []string, least, most int, usage string) {
	if neg || len(args) < least || most >= 0 && len(args) > most {
		ts.Fatalf("usage: %s", usage)
	}
}

// startNode makes a node in the script's directory of that name and starts its agent. Files of the script below
// NAME/etc/pve/nodes/NAME are its confs. The environment variable NAME becomes the address of the agent.
func startNode(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, 2, "node NAME GPUS")
	gpus, err := strconv.Atoi(args[1])
	ts.Check(err)
	f := fleetOf(ts)
	n := &fleetNode{Node: agenttest.New(f.t, agenttest.Options{Name: args[0], GPUs: gpus, CA: f.ca, Dir: ts.MkAbs(args[0])})}
	ts.Defer(n.Stop)
	for ctid := range n.ctids(ts) {
		n.MakeVarLib(ctid)
	}
	f.nodes = append(f.nodes, n)
	ts.Setenv(n.Name, n.Address)
}

// ctids are the containers that have a conf on the node.
func (n *fleetNode) ctids(ts *testscript.TestScript) map[int32]bool {
	entries, err := os.ReadDir(filepath.Join(n.Dir, "etc/pve/lxc"))
	ts.Check(err)
	ctids := map[int32]bool{}
	for _, e := range entries {
		ctid, err := strconv.ParseInt(strings.TrimSuffix(e.Name(), ".conf"), 10, 32)
		ts.Check(err)
		ctids[int32(ctid)] = true
	}
	return ctids
}

// stopAgent stops the agent of a node, as if the node were down.
func stopAgent(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, 1, "stop-agent NODE")
	fleetOf(ts).node(ts, args[0]).Stop()
}

// startAgent brings the node back, at the same address.
func startAgent(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, 1, "start-agent NODE")
	fleetOf(ts).node(ts, args[0]).Start()
}

// loseDevice removes device nodes from the node's /dev.
func loseDevice(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, -1, "lose NODE DEVICE...")
	n := fleetOf(ts).node(ts, args[0])
	for _, name := range args[1:] {
		n.RemoveNode(name)
	}
}

// kernelSays adds an error of a GPU to the kernel's log of a node, and waits until the agent has seen it.
func kernelSays(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, 2, "kernel NODE MESSAGE")
	e, ok := xid.Parse(args[1])
	if !ok {
		ts.Fatalf("%q is no error of a GPU", args[1])
	}
	n := fleetOf(ts).node(ts, args[0])
	n.KernelSays(args[1])
	for deadline := time.Now().Add(20 * time.Second); ; {
		if slices.ContainsFunc(n.Health.Errors(e.PCIAddress), func(seen health.Error) bool { return seen.Code == e.Code }) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the agent has not seen it")
		}
		time.Sleep(time.Millisecond)
	}
}

// startContainers starts containers, as somebody who uses Proxmox would.
func startContainers(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, -1, "start CTID...")
	for _, arg := range args {
		ctid, err := strconv.ParseInt(arg, 10, 32)
		ts.Check(err)
		started := false
		for _, n := range fleetOf(ts).nodes {
			if n.ctids(ts)[int32(ctid)] {
				ts.Check(n.Runtime.Start(context.Background(), int32(ctid)))
				n.calls, started = len(n.Runtime.Calls()), true
			}
		}
		if !started {
			ts.Fatalf("no node has CTID %d", ctid)
		}
	}
}

// refuseStarts makes pct start on a node fail with MESSAGE as long as the conf holds TEXT.
func refuseStarts(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 3, 3, "refuse NODE TEXT MESSAGE")
	fleetOf(ts).node(ts, args[0]).Runtime.RefuseStart(func(_ int32, conf string) error {
		if strings.Contains(conf, args[1]) {
			return errors.New(args[2])
		}
		return nil
	})
}

// ignoreShutdown makes the containers of a node ignore a graceful shutdown.
func ignoreShutdown(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, 1, "deaf NODE")
	fleetOf(ts).node(ts, args[0]).Runtime.IgnoreShutdown(true)
}

// printCalls prints what the agent of a node has asked pct for since the last time, one call a line.
func printCalls(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, 1, "calls NODE")
	n := fleetOf(ts).node(ts, args[0])
	calls := n.Runtime.Calls()
	out := ts.Stdout() // also without a call, so that the last command's output is gone
	for _, call := range calls[n.calls:] {
		fmt.Fprintln(out, call)
	}
	n.calls = len(calls)
}

// startController starts a controller over all nodes, and names it in the settings file. A second one, after
// stop-controller, has the records of the first.
func startController(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 0, 2, "controller [FLEET_FILE [FEATURES_DIR]]")
	f := fleetOf(ts)
	files := f.ca.Issue(f.t, client.ServerName, agenttest.Both)
	cfg := controller.Config{TLS: pki.Files(files), StateDir: filepath.Join(f.dir, "controller")}
	ts.Check(os.MkdirAll(cfg.StateDir, 0o700))
	if len(args) > 0 {
		cfg.FleetFile = ts.MkAbs(args[0])
	}
	if len(args) > 1 {
		cfg.FeaturesDir = ts.MkAbs(args[1])
	}
	for _, n := range f.nodes {
		cfg.Nodes = append(cfg.Nodes, controller.Node{Name: n.Name, Address: n.Address})
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	log, err := os.OpenFile(filepath.Join(f.dir, "controller.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- controller.Serve(ctx, cfg, lis, slog.New(slog.NewTextHandler(log, nil))) }()
	f.stop = func() {
		cancel()
		ts.Check(errors.Join(<-done, log.Close()))
		f.stop = nil
	}
	ts.Defer(func() {
		if f.stop != nil {
			f.stop()
		}
	})
	ts.Setenv("CONTROLLER", lis.Addr().String())
	ts.Check(f.writeSettings("controller: " + lis.Addr().String() + "\n"))
}

// stopController stops the controller; what it knows is kept.
func stopController(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 0, 0, "stop-controller")
	fleetOf(ts).stop()
}

// exits is exec with the exit status that the command must have.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, -1, "exits STATUS COMMAND [ARG...]")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// eventually is exec that is repeated until the command succeeds: a controller tries an agent that was down again after
// a moment.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, -1, "eventually COMMAND [ARG...]")
	for deadline := time.Now().Add(20 * time.Second); ; {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("still not: %v", err)
		}
	}
}

// What is different each time, and what stands for it.
var fickle = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ`), "TIME"},
	{regexp.MustCompile(`\b\d{8}-\d{6}\.\d{3}-[0-9a-f]{4}\b`), "RUN"},
	{regexp.MustCompile(`\b\d+\.\d+s\b`), "0.0s"},
	{regexp.MustCompile(`127(\.\d+){3}:\d+`), "127.0.0.1:PORT"},
}

// steady replaces in the last command's output what is different each time: times, durations, runs, ports and $WORK.
func steady(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 0, 0, "steady")
	outputs := []string{ts.ReadFile("stdout"), ts.ReadFile("stderr")}
	for i, text := range outputs {
		text = strings.ReplaceAll(text, ts.Getenv("WORK"), "$WORK")
		for _, f := range fickle {
			text = f.pattern.ReplaceAllString(text, f.instead)
		}
		outputs[i] = text
	}
	fmt.Fprint(ts.Stdout(), outputs[0])
	fmt.Fprint(ts.Stderr(), outputs[1])
}

// certificate writes tls/NAME.pem and tls/NAME.key: for a client, a server or both; of an authority of its own, in
// tls/OTHER_CA, if one is named.
func certificate(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, 3, "certificate NAME client|server|both [OTHER_CA]")
	f := fleetOf(ts)
	ca := f.ca
	if len(args) == 3 {
		ca = agenttest.NewCA(f.t)
		dir := ts.MkAbs(filepath.Join("tls", args[2]))
		ts.Check(os.Mkdir(dir, 0o755))
		ts.Check(os.Rename(filepath.Join(ca.Dir, "ca.pem"), filepath.Join(dir, "ca.pem")))
		ca.Dir = dir
	}
	purposes := map[string]agenttest.Purpose{"client": agenttest.Client, "server": agenttest.Server, "both": agenttest.Both}
	purpose, ok := purposes[args[1]]
	if !ok {
		ts.Fatalf("%q is not client, server or both", args[1])
	}
	ca.Issue(f.t, args[0], purpose)
}
