package sandboxtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"phoenix.internal/deploy/sandbox"
)

// A Node is one pretend Proxmox host of a test.
type Node struct {
	*sandbox.Node
	s     *Sandbox
	t     testing.TB
	agent *exec.Cmd
}

// For is the same node for a subtest: its failures are the subtest's.
func (n *Node) For(t testing.TB) *Node {
	return &Node{Node: n.Node, s: n.s, t: t, agent: n.agent}
}

// Command prepares a command that will run in the node's namespaces. The returned function is to be
// called once it has started.
func (n *Node) Command(ctx context.Context, argv ...string) (cmd *exec.Cmd, started func()) {
	n.t.Helper()
	cmd, closer, err := n.s.Command(ctx, n.Name, argv...)
	if err != nil {
		n.t.Fatal(err)
	}
	return cmd, func() { closer.Close() }
}

// Run runs a command in the node's namespaces to its end.
func (n *Node) Run(argv ...string) (stdout, stderr string, code int) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	cmd, started := n.Command(ctx, argv...)
	defer started()
	return run(n.t, cmd)
}

// Must is Run for a command that has to succeed; it returns what it printed on stdout.
func (n *Node) Must(argv ...string) string {
	n.t.Helper()
	stdout, stderr, code := n.Run(argv...)
	if code != 0 {
		n.t.Fatalf("%s: %s: exit status %d\n%s%s", n.Name, strings.Join(argv, " "), code, stdout, stderr)
	}
	return stdout
}

// Add makes a stopped container with this conf.
func (n *Node) Add(ctid int32, conf string) {
	n.t.Helper()
	if err := n.s.AddContainer(n.Name, ctid, []byte(conf)); err != nil {
		n.t.Fatal(err)
	}
}

// ConfPath is the path of a conf on this machine.
func (n *Node) ConfPath(ctid int32) string { return n.s.ConfPath(n.Name, ctid) }

// Conf reads a conf.
func (n *Node) Conf(ctid int32) string {
	n.t.Helper()
	b, err := os.ReadFile(n.ConfPath(ctid))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// SetConf replaces a conf, as an editor would: without any lock.
func (n *Node) SetConf(ctid int32, conf string) {
	n.t.Helper()
	if err := os.WriteFile(n.ConfPath(ctid), []byte(conf), 0o640); err != nil {
		n.t.Fatal(err)
	}
}

// Dir is where a file of the node lies on this machine: "run/lock/lxc" is the node's /run/lock/lxc,
// "pve" its /etc/pve, "var-lib-lxc" its /var/lib/lxc, "var-lib-phoenix" its /var/lib/phoenix,
// "etc-phoenix" its /etc/phoenix.
func (n *Node) Dir() string { return n.s.NodeDir(n.Name) }

// Attach runs a shell command in a container, in the way that leaves no trace in PctCalls.
func (n *Node) Attach(ctid int32, script string) (stdout, stderr string, code int) {
	n.t.Helper()
	return n.Run("lxc-attach", "-n", fmt.Sprint(ctid), "--clear-env", "--", "/bin/sh", "-c", script)
}

// Open opens a device in a container as its root and returns what came of it: "opened", "ENXIO" (allowed,
// but no driver), "EPERM" (the device cgroup denies it), "EACCES", "ENOENT", or the shell's words. An empty
// regular file is "regular file".
func (n *Node) Open(ctid int32, path string) string {
	n.t.Helper()
	stdout, stderr, code := n.Attach(ctid, fmt.Sprintf(
		`[ ! -f %[1]s ] || { echo regular file; exit; }; [ -e %[1]s ] || { echo ENOENT; exit; }; exec 3<%[1]s && echo opened`, path))
	if code == 0 {
		return strings.TrimSpace(stdout)
	}
	for text, errno := range map[string]string{
		"No such device or address": "ENXIO", "Operation not permitted": "EPERM", "Permission denied": "EACCES",
	} {
		if strings.Contains(stderr, text) {
			return errno
		}
	}
	return strings.TrimSpace(stderr)
}

// Running says whether a container runs.
func (n *Node) Running(ctid int32) bool {
	n.t.Helper()
	stdout, _, _ := n.Run("lxc-info", "-n", fmt.Sprint(ctid), "-s", "-H")
	return strings.TrimSpace(stdout) == "RUNNING"
}

// StartAgent starts the node's agent and waits until it serves.
func (n *Node) StartAgent() {
	n.t.Helper()
	var err error
	if n.agent, err = n.s.Sandbox.StartAgent(n.Name, n.s.Program("phoenix-agent")); err != nil {
		n.t.Fatal(err)
	}
	if err := n.s.AwaitServing(n.t.Context(), n.AgentAddress(), n.Name); err != nil {
		n.t.Fatal(err)
	}
}

// SignalAgent sends a signal, SIGTERM or SIGKILL, to the agent that this Node started, and waits for its
// end.
func (n *Node) SignalAgent(signal syscall.Signal) {
	n.t.Helper()
	end(n.t, n.agent, signal)
	n.agent = nil
}

// PctCalls are the calls of pct in the node since Up or ResetPctCalls, the words after its name. Those of
// the first words only, if there are any: PctCalls("start", "shutdown").
func (n *Node) PctCalls(commands ...string) []string {
	n.t.Helper()
	calls, err := n.s.PctCalls(n.Name)
	if err != nil {
		n.t.Fatal(err)
	}
	if len(commands) == 0 {
		return calls
	}
	return slices.DeleteFunc(calls, func(call string) bool {
		command, _, _ := strings.Cut(call, " ")
		return !slices.Contains(commands, command)
	})
}

// ResetPctCalls forgets the calls of pct so far.
func (n *Node) ResetPctCalls() {
	n.t.Helper()
	if err := n.s.ResetPctCalls(n.Name); err != nil {
		n.t.Fatal(err)
	}
}

// Eventually waits until fn is true, at most 30 seconds, for what happens in processes that a test
// cannot wait for.
func Eventually(t testing.TB, what string, fn func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !fn() {
		select {
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		case <-tick.C:
		}
	}
}
