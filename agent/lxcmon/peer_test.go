package lxcmon_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/lxctest"
)

// The cgroups of inits and others as /proc shows them.
func TestInPayload(t *testing.T) {
	for _, test := range []struct {
		name, cgroups string
		want          bool
	}{
		{"Proxmox", "0::/lxc/101/ns/init.scope\n", true},
		{"Proxmox, another", "0::/lxc/1011/ns\n", true},
		{"LXC's default", "0::/lxc.payload.101\n", true},
		{"beside a leftover", "0::/lxc.payload.101-2/.lxc\n", true},
		{"its monitor", "0::/lxc.monitor/101\n", false},
		{"its monitor by LXC's default", "0::/lxc.monitor.101\n", false},
		{"Proxmox's unit", "0::/system.slice/system-pve\\x2dcontainer.slice/pve-container@101.service\n", false},
		{"sandbox", "0::/phxb7bd24/lxc/101\n", true},
		{"seen from another cgroup namespace", "0::/../lxc/101/ns\n", true},
		{"container in a container", "0::/lxc/7/ns/lxc.payload.101\n", true},
		{"monitor in a container", "0::/lxc/101/ns/lxc.monitor.7\n", false},
		{"hybrid host", "9:name=systemd:/lxc/101\n1:cpu:/\n0::/\n", true},
		{"name that is like it", "0::/user.slice/lxc-101.scope\n", false},
		{"host", "0::/system.slice/ssh.service\n", false},
		{"empty", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := lxcmon.InPayload([]byte(test.cgroups)); got != test.want {
				t.Errorf("%q: %v, want %v", test.cgroups, got, test.want)
			}
		})
	}
}

// Root of a privileged container with the host's network can take the command socket of a stopped container.
func TestListenerInAContainer(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	fd, err := unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, 77)
	if errors.Is(err, unix.ENOPROTOOPT) {
		t.Skip("the kernel has no SO_PEERPIDFD, by which such a listener is told")
	}
	unix.Close(fd)
	ct := lxctest.Start(t, lxctest.Config{})
	path := filepath.Join("/phoenix-test", strconv.Itoa(os.Getpid()), t.Name())
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = []string{listenEnv + "=@" + path + "/101/command"}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "listening\n" {
		t.Fatalf("the other process says %q: %v", line, err)
	}
	cgroup := fmt.Sprintf("/lxc.payload.%d", ct.CTID)
	if err := os.WriteFile("/sys/fs/cgroup"+cgroup+"/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	_, err = lxcmon.Client{Path: path}.State(101)
	want := lxcmon.PeerError{CTID: 101, UID: 0, PID: int32(cmd.Process.Pid), Cgroup: cgroup}
	if e, ok := errors.AsType[*lxcmon.PeerError](err); !ok || *e != want {
		t.Errorf("error %v, want %v", err, &want)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the other process got a request, or %v", err)
	}
}

// The container may make any group below its own.
func TestContainerOf(t *testing.T) {
	for cgroup, want := range map[string]int32{
		"0::/lxc/901/ns/init.scope\n":                     901,
		"0::/lxc/901\n":                                   901,
		"0::/lxc.payload.104/system.slice\n":              104,
		"0::/lxc.payload.104-1/system.slice\n":            104,
		"0::/lxc.monitor.104\n":                           0,
		"0::/lxc/901/ns/lxc/105/init.scope\n":             901,
		"12:devices:/lxc/905/ns\n0::/\n":                  905,
		"0::/system.slice/phoenix-agent.service\n":        0,
		"0::/lxc/99/ns\n":                                 0,
		"0::/lxc/name/ns\n":                               0,
		"0::/user.slice/lxc.payload.x/lxc/2147483648/a\n": 0,
		"": 0,
	} {
		if got := lxcmon.ContainerOf([]byte(cgroup)); got != want {
			t.Errorf("ContainerOf(%q) = %d, want %d", cgroup, got, want)
		}
	}
}
