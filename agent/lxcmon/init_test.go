package lxcmon_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/lxctest"
)

func TestInit(t *testing.T) {
	for _, unprivileged := range []bool{false, true} {
		t.Run(fmt.Sprintf("unprivileged %v", unprivileged), func(t *testing.T) {
			ct := lxctest.Start(t, lxctest.Config{Unprivileged: unprivileged})
			c := lxcmon.Client{}
			first, err := c.Init(ct.CTID)
			if err != nil || first.CTID != ct.CTID || first.PID != ct.InitPID(t) || first.Start <= 0 || len(first.Boot) != 36 {
				t.Fatalf("init %+v, %v, want process %d", first, err, ct.InitPID(t))
			}
			if want := fmt.Sprintf("%s:%d:%d", first.Boot, first.PID, first.Start); first.Instance() != want {
				t.Errorf("instance %s, want %s", first.Instance(), want)
			}
			if err := c.Same(first); err != nil {
				t.Errorf("the same: %v", err)
			}

			// The same PID of an earlier start, as after a reuse, is another init.
			earlier := first
			earlier.Start--
			wantChanged(t, c.Same(earlier), lxcmon.ChangedError{CTID: ct.CTID, Was: earlier, Now: first},
				fmt.Sprintf("CTID %d was started again meanwhile: its init was process %d (start %d) and is process %[2]d (start %[4]d)", ct.CTID, first.PID, earlier.Start, first.Start))

			ct.Stop(t)
			wantChanged(t, c.Same(first), lxcmon.ChangedError{CTID: ct.CTID, Was: first},
				fmt.Sprintf("CTID %d has stopped meanwhile (its init was process %d)", ct.CTID, first.PID))
			if _, err := c.Init(ct.CTID); !errors.Is(err, lxcmon.ErrNotRunning) {
				t.Errorf("init of a stopped container: %v", err)
			}

			ct.Start(t)
			second, err := c.Init(ct.CTID)
			if err != nil || second == first {
				t.Errorf("after a restart %+v, %v, before it %+v", second, err, first)
			}
			if e, ok := errors.AsType[*lxcmon.ChangedError](c.Same(first)); !ok || e.Now != second {
				t.Errorf("after a restart %+v, want now %+v", e, second)
			}
		})
	}
}

func wantChanged(t *testing.T, err error, want lxcmon.ChangedError, text string) {
	t.Helper()
	if e, ok := errors.AsType[*lxcmon.ChangedError](err); !ok || *e != want || e.Error() != text {
		t.Errorf("%v, want %s", err, text)
	}
}

// A monitor that names a process which is not the container's is none.
func TestInitThatIsAStranger(t *testing.T) {
	needRoot(t)
	ct := lxctest.Start(t, lxctest.Config{})
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	own := strings.TrimSuffix(string(b[strings.LastIndex(string(b), ":")+1:]), "\n")
	for _, test := range []struct {
		name   string
		pid    int
		cgroup string
	}{
		{"process of the host", os.Getpid(), own},
		{"init of another container", ct.InitPID(t), fmt.Sprintf("/lxc.payload.%d", ct.CTID)},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := serve(t, value(uint64(test.pid))).client.Init(101)
			want := lxcmon.StrangerError{CTID: 101, PID: test.pid, Cgroup: test.cgroup}
			if e, ok := errors.AsType[*lxcmon.StrangerError](err); !ok || *e != want {
				t.Errorf("error %v, want %v", err, &want)
			}
		})
	}
	t.Run("process that is gone", func(t *testing.T) {
		gone := exec.Command("true")
		if err := gone.Run(); err != nil {
			t.Fatal(err)
		}
		_, err := serve(t, value(uint64(gone.Process.Pid))).client.Init(101)
		if !errors.Is(err, lxcmon.ErrNotRunning) {
			t.Errorf("error %v, want ErrNotRunning", err)
		}
	})
}

// The cgroups of inits and others as /proc shows them.
func TestInPayload(t *testing.T) {
	for _, test := range []struct {
		name, cgroups string
		ours, any     bool
	}{
		{"Proxmox", "0::/lxc/101/ns/init.scope\n", true, true},
		{"Proxmox, another", "0::/lxc/1011/ns\n", false, true},
		{"LXC's default", "0::/lxc.payload.101\n", true, true},
		{"beside a leftover", "0::/lxc.payload.101-2/.lxc\n", true, true},
		{"its monitor", "0::/lxc.monitor/101\n", false, false},
		{"its monitor by LXC's default", "0::/lxc.monitor.101\n", false, false},
		{"Proxmox's unit", "0::/system.slice/system-pve\\x2dcontainer.slice/pve-container@101.service\n", false, false},
		{"sandbox", "0::/phxb7bd24/lxc/101\n", true, true},
		{"seen from another cgroup namespace", "0::/../lxc/101/ns\n", true, true},
		{"container in a container", "0::/lxc/7/ns/lxc.payload.101\n", true, true},
		{"monitor in a container", "0::/lxc/101/ns/lxc.monitor.7\n", false, false},
		{"hybrid host", "9:name=systemd:/lxc/101\n1:cpu:/\n0::/\n", true, true},
		{"name that is like it", "0::/user.slice/lxc-101.scope\n", false, false},
		{"host", "0::/system.slice/ssh.service\n", false, false},
		{"empty", "", false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := lxcmon.InPayload([]byte(test.cgroups), "101"); got != test.ours {
				t.Errorf("%q: of CTID 101 %v, want %v", test.cgroups, got, test.ours)
			}
			if got := lxcmon.InPayload([]byte(test.cgroups), ""); got != test.any {
				t.Errorf("%q: of any container %v, want %v", test.cgroups, got, test.any)
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
