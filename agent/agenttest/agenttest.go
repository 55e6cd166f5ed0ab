// Package agenttest is a fake node for tests: a Proxmox host in a temporary directory, with the real agent on it. Only
// what would need LXC or a GPU is made up: containers that run are values in memory, and the made-up device nodes have no
// driver behind them. Making those takes root.
package agenttest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/driver"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/health"
	"phoenix.internal/agent/server"
	"phoenix.internal/agent/transfer"
)

// Options make a node; the zero value has the name pve1 and no GPU.
type Options struct {
	Name     string
	GPUs     int
	UVMMajor int    // default 511
	CA       *CA    // default: one of its own
	Dir      string // where its trees go, which may hold confs already; default: a temporary directory
}

// A Node is a running fake node.
type Node struct {
	Name    string
	Dir     string // with the trees etc/pve, proc, sys and dev
	Address string // of its agent
	CA      *CA
	Runtime *Runtime
	Manager *container.Manager
	Health  *health.Monitor // of the agent that runs

	options Options
	t       testing.TB
	stop    func()
	said    atomic.Int64 // messages of the kernel
}

const driverVersion = "580.105.08"

// New makes a node and starts the agent on it. Both are gone when the test ends.
func New(t testing.TB, options Options) *Node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a fake node needs device nodes, and making those takes root")
	}
	if options.Name == "" {
		options.Name = "pve1"
	}
	if options.UVMMajor == 0 {
		options.UVMMajor = 511
	}
	if options.CA == nil {
		options.CA = NewCA(t)
	}
	if options.Dir == "" {
		options.Dir = t.TempDir()
	}
	n := &Node{Name: options.Name, Dir: options.Dir, CA: options.CA, options: options, t: t}
	n.layOut()
	confs := &confstore.Store{
		PVE:         n.path("etc/pve"),
		LockDir:     n.path("run/lock/lxc"),
		RevisionDir: n.path("var/lib/phoenix/revisions"),
		LockWait:    time.Second,
	}
	scanner := &gpu.Scanner{Sys: n.path("sys"), Proc: n.path("proc"), Dev: n.path("dev"), SMI: n.path("no-nvidia-smi")}
	n.Runtime = &Runtime{confs: confs, gpus: scanner, running: make(map[int32]*running)}
	n.Manager = &container.Manager{
		Confs: confs, GPUs: scanner, Runtime: n.Runtime, StateDir: n.path("var/lib/phoenix"),
		Log: slog.New(slog.DiscardHandler),
	}
	t.Cleanup(n.Stop)
	n.Start()
	return n
}

func (n *Node) path(rel string) string { return filepath.Join(n.Dir, rel) }

// Start starts the agent: [New] has done so, but it may be stopped and started again, at the same address.
func (n *Node) Start() {
	n.t.Helper()
	tlsConfig, err := server.TLS(server.TLSFiles(n.CA.Issue(n.t, n.Name, Server)))
	if err != nil {
		n.t.Fatal(err)
	}
	attacher := attach.Attacher{Path: n.path("usr/bin/lxc-attach")}
	n.Health = &health.Monitor{
		KernelLog: n.path("dev/kmsg"), Proc: n.path("proc"), File: n.path("var/lib/phoenix/health.json"), Present: n.Manager.GPUs.Served, Log: n.Manager.Log,
	}
	installers := &driver.Cache{Dir: n.path("var/lib/phoenix/driver")}
	srv := server.New(&server.Node{
		Name: n.Name, Version: "test", Started: time.Now(), Containers: n.Manager,
		Prober: n.Runtime, Attacher: attacher, Files: &transfer.Mover{Attacher: static{attacher}},
		Drivers: &driver.Installer{Cache: installers, Attacher: static{attacher}}, Log: n.Manager.Log,
		Health: n.Health,
		Facts:  server.Facts{ReleaseFile: n.path("etc/pve-release"), LXCVersion: "6.0.5"},
	}, tlsConfig)
	lis, err := net.Listen("tcp", cmp.Or(n.Address, loopback()+":0"))
	if err != nil {
		n.t.Fatal(err)
	}
	n.Address = lis.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, lis) }()
	n.stop = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("agent of %s: %v", n.Name, err)
		}
	}
}

var nodes atomic.Uint32

// loopback returns an address of this machine for one node alone, where a port stays free for an agent that is started
// again.
func loopback() string {
	pid, n := os.Getpid(), nodes.Add(1)
	return net.IPv4(127, byte(1+pid%250), byte(pid/250), byte(n)).String()
}

// Stop ends the agent, as if the node were unreachable.
func (n *Node) Stop() {
	if n.stop != nil {
		n.stop()
		n.stop = nil
	}
}

// PutConf writes the conf of a container, as Proxmox would.
func (n *Node) PutConf(ctid int32, conf string) {
	n.t.Helper()
	n.write(fmt.Sprintf("etc/pve/nodes/%s/lxc/%d.conf", n.Name, ctid), conf)
}

// Conf is the conf of a container.
func (n *Node) Conf(ctid int32) string {
	n.t.Helper()
	b, err := os.ReadFile(n.path(fmt.Sprintf("etc/pve/nodes/%s/lxc/%d.conf", n.Name, ctid)))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// layOut makes the node's directories and files as they are on a host with the given GPUs.
func (n *Node) layOut() {
	n.t.Helper()
	for _, dir := range []string{"lxc", "qemu-server"} {
		n.mkdir("etc/pve/nodes/" + n.Name + "/" + dir)
	}
	n.link("nodes/"+n.Name, "etc/pve/local")
	n.link("nodes/"+n.Name+"/lxc", "etc/pve/lxc")
	n.write("etc/pve-release", "9.1-sandbox\n")
	n.write("usr/bin/lxc-attach", attachScript)
	if err := os.Chmod(n.path("usr/bin/lxc-attach"), 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.write("proc/devices", fmt.Sprintf("Character devices:\n  1 mem\n195 nvidia\n%d nvidia-uvm\n\nBlock devices:\n  7 loop\n", n.options.UVMMajor))
	n.write("proc/sys/kernel/random/boot_id", "6d1a6e9c-0f0e-4d53-9f0c-3d1c7a3a5b0e\n")
	n.mkdir("sys/bus/pci/devices")
	n.write("dev/kmsg", "")
	if n.options.GPUs == 0 {
		return
	}
	n.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  "+driverVersion+"  Wed Oct 29 23:15:11 UTC 2025\n")
	n.write("proc/driver/nvidia/params", "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n")
	n.mkdir("sys/bus/pci/drivers/nvidia")
	for i := range n.options.GPUs {
		address := fmt.Sprintf("0000:%02x:00.0", i+1)
		pci := "sys/bus/pci/devices/" + address + "/"
		n.write(pci+"vendor", "0x10de\n")
		n.write(pci+"device", "0x2d04\n")
		n.write(pci+"class", "0x030000\n")
		n.write(pci+"numa_node", "-1\n")
		n.link("../../drivers/nvidia", strings.TrimSuffix(pci, "/")+"/driver")
		sum := sha256.Sum256([]byte(n.Name + address))
		n.write("proc/driver/nvidia/gpus/"+address+"/information", fmt.Sprintf(
			"Model: \t\t NVIDIA GeForce RTX 5060 Ti\nIRQ:   \t\t 95\nGPU UUID: \t GPU-%x-%x-%x-%x-%x\nBus Location: \t %s\nDevice Minor: \t %d\n",
			sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16], address, i))
		n.MakeNode(fmt.Sprintf("nvidia%d", i), 195, i)
	}
	n.MakeNode("nvidiactl", 195, 255)
	n.MakeNode("nvidia-modeset", 195, 254)
	n.MakeNode("nvidia-uvm", n.options.UVMMajor, 0)
	n.MakeNode("nvidia-uvm-tools", n.options.UVMMajor, 1)
}

// attachScript stands in for lxc-attach: it runs the command on this machine, as a child and with another interpreter than
// the sh of most commands, by which package attach tells the two apart. The commands of tests must be harmless. A
// container that has a directory from [Node.MakeVarLib] sees that as /var/lib.
const attachScript = `#!/bin/bash
node=${0%/usr/bin/lxc-attach}
while [ $# -gt 0 ] && [ "$1" != -- ]; do
	case $1 in
	-n) ctid=$2 ;;
	--set-var) export "$2" ;;
	esac
	shift
done
shift
varlib=$node/containers/$ctid/var/lib
if [ -d "$varlib" ]; then
	exec unshare --mount /bin/bash -c 'mount --bind "$0" /var/lib && "$@"; exit $?' "$varlib" "$@"
fi
"$@"
exit $?
`

// MakeVarLib gives a container a /var/lib of its own, where the commands that are run in it may write, and returns where
// that is on this machine.
func (n *Node) MakeVarLib(ctid int32) string {
	n.t.Helper()
	dir := fmt.Sprintf("containers/%d/var/lib", ctid)
	n.mkdir(dir)
	return n.path(dir)
}

// MakeNode makes a device node in the node's /dev.
func (n *Node) MakeNode(name string, major, minor int) {
	n.t.Helper()
	path := n.path("dev/" + name)
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(uint32(major), uint32(minor)))); err != nil {
		n.t.Fatalf("mknod %s: %v", path, err)
	}
	if err := os.Chmod(path, 0o666); err != nil { // the umask has cut it
		n.t.Fatal(err)
	}
}

// KernelSays adds a message of the kernel to the log that the agent follows.
func (n *Node) KernelSays(message string) {
	n.t.Helper()
	f, err := os.OpenFile(n.path("dev/kmsg"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	_, err = fmt.Fprintf(f, "4,%d,1000000,-;%s\n", n.said.Add(1), message)
	if err := errors.Join(err, f.Close()); err != nil {
		n.t.Fatal(err)
	}
}

// RemoveNode removes a device node from the node's /dev.
func (n *Node) RemoveNode(name string) {
	n.t.Helper()
	if err := os.Remove(n.path("dev/" + name)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *Node) write(rel, content string) {
	n.t.Helper()
	n.mkdir(filepath.Dir(rel))
	if err := os.WriteFile(n.path(rel), []byte(content), 0o640); err != nil {
		n.t.Fatal(err)
	}
}

func (n *Node) mkdir(rel string) {
	n.t.Helper()
	if err := os.MkdirAll(n.path(rel), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

func (n *Node) link(target, rel string) {
	n.t.Helper()
	if err := os.Symlink(target, n.path(rel)); err != nil {
		n.t.Fatal(err)
	}
}
