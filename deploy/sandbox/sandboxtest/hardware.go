package sandboxtest

import (
	"os"
	"path/filepath"

	"phoenix.internal/deploy/sandbox"
	"phoenix.internal/deploy/sandbox/nvidia"
)

// Tree is where the GPUs of the node can be looked at and changed without any test's words: see nvidia.Tree.
func (n *Node) Tree() nvidia.Tree {
	n.t.Helper()
	tree, err := n.s.Tree(n.Name)
	if err != nil {
		n.t.Fatal(err)
	}
	return tree
}

// Change lets fn change the GPUs and the driver of the running node. Majors, GPUs and the rest of n are then as
// it left them.
func (n *Node) Change(fn func(*nvidia.Host)) {
	n.t.Helper()
	n.done(n.Tree().Change(func(h *nvidia.Host) error { fn(h); return nil }))
}

// Lose lets a GPU, by its position on the bus, fall off it.
func (n *Node) Lose(gpu int) {
	n.t.Helper()
	n.done(n.Tree().Lose(gpu))
}

// Bind gives a GPU to another driver: "vfio-pci", "nouveau", "nvidia", "" for none.
func (n *Node) Bind(gpu int, driver string) {
	n.t.Helper()
	n.done(n.Tree().Bind(gpu, driver))
}

// Upgrade installs another version of the driver; its module is loaded now or at the next boot.
func (n *Node) Upgrade(version string, reload bool) {
	n.t.Helper()
	n.done(n.Tree().Upgrade(version, reload))
}

// RemoveDeviceNode removes a file in the node's /dev, as "/dev/nvidia-uvm".
func (n *Node) RemoveDeviceNode(path string) {
	n.t.Helper()
	n.done(os.Remove(filepath.Join(n.Tree().Root, path)))
}

// KernelLog writes a line into the node's kernel log.
func (n *Node) KernelLog(text string) {
	n.t.Helper()
	n.done(n.Tree().Log(text))
}

// done ends the test if a change did not work, and takes it over into n.
func (n *Node) done(err error) {
	n.t.Helper()
	if err == nil {
		n.Host, err = n.Tree().Host()
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// Reboot cuts the node's power and boots it; see sandbox.Sandbox.Reboot. If the agent ran it runs again, and serves,
// when this returns. The agent of o is not used: it is the one under test.
func (n *Node) Reboot(o sandbox.RebootOptions) {
	n.t.Helper()
	args := []string{"reboot", "--dir", n.s.Dir, "--no-agent", n.Name}
	if o.Driver != "" {
		args = append(args, "--driver", o.Driver)
	}
	if o.LoseUVM {
		args = append(args, "--lose-uvm")
	}
	agent := n.agent
	if agent != nil {
		args = append(args, "--agent", n.s.Program("phoenix-agent"))
	}
	out, err := n.s.command(args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("phoenix-sandbox reboot: %v\n%s", err, out)
	}
	n.Host, err = n.Tree().Host()
	if err != nil {
		n.t.Fatal(err)
	}
	if agent == nil || o.NoAgent {
		return
	}
	_ = agent.Wait() // it was killed
	n.agent = nil
	n.StartAgent()
}
