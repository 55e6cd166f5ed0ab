package lxcmon_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/lxctest"
)

// A slowHook is a post-stop hook that says when it has begun, and ends when it is told to.
type slowHook struct {
	t   *testing.T
	dir string
}

func newSlowHook(t *testing.T, status int) (h slowHook, line string) {
	h = slowHook{t, t.TempDir()}
	for _, fifo := range []string{"begun", "end"} {
		if err := unix.Mkfifo(filepath.Join(h.dir, fifo), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\ncd " + h.dir + "\necho > begun\nread line < end\n: > ended\nexit " + strconv.Itoa(status) + "\n"
	path := filepath.Join(h.dir, "hook")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return h, "lxc.hook.post-stop = " + path
}

func (h slowHook) begun() {
	h.t.Helper()
	if _, err := os.ReadFile(filepath.Join(h.dir, "begun")); err != nil {
		h.t.Fatal(err)
	}
}

func (h slowHook) end() {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, "end"), []byte("\n"), 0); err != nil {
		h.t.Fatal(err)
	}
}

// However the container comes to its end, and however its monitor was started.
func TestNotSettledUntilTheEndOfThePostStopHook(t *testing.T) {
	for _, test := range []struct {
		name       string
		foreground bool
		signal     unix.Signal // to its init
		status     int         // of the hook
	}{
		{"killed", true, unix.SIGKILL, 0},
		{"killed in the background", false, unix.SIGKILL, 0},
		{"shut down", true, unix.SIGPWR, 0},
		// Proxmox's hook fails on purpose, which makes the reboot a stop. LXC keeps its socket open meanwhile.
		{"reboots", true, unix.SIGINT, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			lxctest.Require(t)
			hook, line := newSlowHook(t, test.status)
			init := "trap 'exit 0' PWR; trap 'reboot -f' INT\nwhile :; do sleep 86400 & wait $!; done\n"
			ct := lxctest.New(t, lxctest.Config{Lines: []string{line}, Init: init})
			if test.foreground {
				monitor := exec.Command("lxc-start", "-F", "-n", strconv.Itoa(int(ct.CTID)))
				if err := monitor.Start(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = monitor.Wait() }) // a killed container is a failure to it
			} else {
				ct.Start(t)
			}
			awaitSignal(t, ct.CTID)
			c := lxcmon.Client{Timeout: 20 * time.Millisecond}
			wantSettled(t, c, ct.CTID, true)
			if err := unix.Kill(ct.InitPID(t), test.signal); err != nil {
				t.Fatal(err)
			}
			hook.begun()
			wantSettled(t, c, ct.CTID, false)
			hook.end()
			for {
				settled, _ := c.Settled(ct.CTID) // a monitor in the hook of a reboot does not answer
				if settled {
					break
				}
				if t.Context().Err() != nil {
					t.Fatal("it does not settle")
				}
			}
			if _, err := os.Stat(filepath.Join(hook.dir, "ended")); err != nil {
				t.Errorf("settled before the end of the hook: %v", err)
			}
		})
	}
}

func wantSettled(t *testing.T, c lxcmon.Client, ctid int32, want bool) {
	t.Helper()
	settled, err := c.Settled(ctid)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() && !want {
		err = nil
	}
	if settled != want || err != nil {
		t.Errorf("settled %t, error %v, want %t", settled, err, want)
	}
}

// awaitSignal waits until the container's init handles SIGPWR: before that it would ignore it.
func awaitSignal(t *testing.T, ctid int32) {
	t.Helper()
	c := lxcmon.Client{}
	deadline := time.After(10 * time.Second)
	for {
		if pid, err := c.InitPID(ctid); err == nil {
			status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
			if err == nil && catches(string(status), unix.SIGPWR) {
				return
			}
		}
		select {
		case <-deadline:
			t.Fatalf("CTID %d does not get up", ctid)
		case <-time.After(time.Millisecond):
		}
	}
}

// catches reads the mask of caught signals in /proc/PID/status.
func catches(status string, signal unix.Signal) bool {
	_, caught, _ := strings.Cut(status, "\nSigCgt:\t")
	caught, _, _ = strings.Cut(caught, "\n")
	mask, err := strconv.ParseUint(caught, 16, 64)
	return err == nil && mask&(1<<(signal-1)) != 0
}

func TestSteadyContainersAreSettled(t *testing.T) {
	c := lxcmon.Client{}
	wantSettled(t, c, 999_999_999, true)
	ct := lxctest.New(t, lxctest.Config{})
	wantSettled(t, c, ct.CTID, true)
	ct.Start(t)
	wantSettled(t, c, ct.CTID, true)
	if out, err := exec.Command("lxc-freeze", "-n", strconv.Itoa(int(ct.CTID))).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wantSettled(t, c, ct.CTID, true)
}

// A container that fails to start comes to its hook through Aborting, any other through Stopping; Stopped is what one says
// that reboots.
func TestSettledByState(t *testing.T) {
	needRoot(t)
	for state, want := range map[lxcmon.State]bool{
		lxcmon.Stopped: false, lxcmon.Starting: true, lxcmon.Running: true, lxcmon.Stopping: false,
		lxcmon.Aborting: false, lxcmon.Freezing: true, lxcmon.Frozen: true, lxcmon.Thawed: true, lxcmon.Thawed + 1: false,
	} {
		t.Run(state.String(), func(t *testing.T) {
			answer := make([]byte, 16)
			binary.NativeEndian.PutUint64(answer[8:], uint64(state))
			wantSettled(t, serve(t, answer).client, 101, want)
		})
	}
}

// Whoever takes the socket of a stopped container, or calls himself its monitor in a container or without being root, holds
// up nothing.
func TestOnlyMonitorsAreBelieved(t *testing.T) {
	proc := t.TempDir()
	status := func(pid string, real, effective int) {
		text := fmt.Sprintf("Name:\tlxc-start\nUid:\t%d\t%d\t%[2]d\t%[2]d\nGid:\t0\t0\t0\t0\n", real, effective)
		if err := os.WriteFile(filepath.Join(proc, pid, "status"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	process := func(pid, cmdline, namespaces string) {
		dir := filepath.Join(proc, pid)
		if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cmdline"), []byte(cmdline), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"net", "pid"} {
			if err := os.WriteFile(filepath.Join(proc, namespaces+kind), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(filepath.Join(proc, namespaces+kind), filepath.Join(dir, "ns", kind)); err != nil {
				t.Fatal(err)
			}
		}
		status(pid, os.Geteuid(), os.Geteuid())
	}
	process("self", "phoenix-agent\x00", "host")
	process("10", "lxc-start\x00-F\x00-n\x00901\x00", "container")
	process("11", "/usr/bin/lxc-start\x00-F\x00-n\x009010\x00", "host")
	process("12", "[lxc monitor] /elsewhere 901\x00", "host")
	process("13", "", "host") // a zombie
	process("14", "vi\x00901\x00", "host")
	others := os.Geteuid() + 1
	for pid, uids := range map[string][2]int{"15": {others, others}, "16": {others, os.Geteuid()}} { // the second as su is
		process(pid, "lxc-start\x00-F\x00-n\x00901\x00", "host")
		status(pid, uids[0], uids[1])
	}
	c := lxcmon.Client{Proc: proc, Path: filepath.Join(proc, "lxc")}
	wantSettled(t, c, 901, true)
	for pid, cmdline := range map[string]string{
		"20": "/usr/bin/lxc-start\x00-F\x00-n\x00901\x00",
		"21": "lxc-start\x00-n901\x00",
		"22": "lxc-start\x00--name=901\x00",
		"23": "[lxc monitor] " + c.Path + " 901\x00\x00\x00",
	} {
		process(pid, cmdline, "host")
		t.Logf("%q", cmdline)
		wantSettled(t, c, 901, false)
		if err := os.RemoveAll(filepath.Join(proc, pid)); err != nil {
			t.Fatal(err)
		}
	}
}
