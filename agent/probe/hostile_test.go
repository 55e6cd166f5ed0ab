package probe_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
	"phoenix.internal/agent/probe"
)

// TestHostile is what a probe says of containers that are hostile or broken.
func TestHostile(t *testing.T) {
	p := newProber(t)
	const idle = "trap 'exit 0' PWR\nwhile :; do sleep 86400 & wait $!; done\n"
	gpu := probe.Device{Path: "/dev/nvidia0", Major: 195, Minor: 0}
	result := func(outcome probe.Outcome, errno string, major, minor int) probe.Result {
		return probe.Result{Path: gpu.Path, Outcome: outcome, Errno: errno, Major: major, Minor: minor}
	}
	for _, test := range []struct {
		name    string
		config  lxctest.Config
		setup   string // run in the container before
		freeze  bool
		timeout time.Duration
		device  probe.Device // zero: gpu
		want    probe.Result
		meaning string // beginning
		err     string // CTID for the number
		is      error
	}{
		// Instead of a device.
		{name: "FIFO", setup: "mkfifo /dev/nvidia0", want: result(probe.NotADevice, "", -1, -1), meaning: "is an ordinary file, a directory or a link"},
		{name: "symbolic link to a device", setup: "ln -s /dev/null /dev/nvidia0", want: result(probe.NotADevice, "", -1, -1)},
		{name: "symbolic link to itself", setup: "ln -s nvidia0 /dev/nvidia0", want: result(probe.NotADevice, "", -1, -1)},
		{name: "file of 1 TiB", setup: "truncate -s 1T /dev/nvidia0 || dd if=/dev/null of=/dev/nvidia0 bs=1 seek=1099511627776", want: result(probe.NotADevice, "", -1, -1)},
		{name: "directory", setup: "mkdir /dev/nvidia0", want: result(probe.NotADevice, "", -1, -1)},
		{name: "block device", setup: "mknod /dev/nvidia0 b 195 0 || mkfifo /dev/nvidia0", want: result(probe.NotADevice, "", -1, -1)},
		{name: "another device", setup: "mknod /dev/nvidia0 c 1 3", want: result(probe.WrongNumber, "", 1, 3), meaning: "is a device with other numbers"},
		{name: "a device over it", config: lxctest.Config{Devices: []lxctest.Device{{Path: "/dev/nvidia0", Major: 195, Minor: 0}}},
			setup: "mount -o bind /dev/zero /dev/nvidia0", want: result(probe.WrongNumber, "", 1, 5)},
		{name: "made by hand", setup: "mknod /dev/nvidia0 c 195 0", want: result(probe.Denied, "EPERM", 195, 0), meaning: "is in the container, but its device cgroup refuses it"},
		{name: "path through links in a circle", setup: "ln -s a /dev/b; ln -s b /dev/a", device: probe.Device{Path: "/dev/a/nvidia0", Major: 195, Minor: 0},
			want: probe.Result{Path: "/dev/a/nvidia0", Outcome: probe.Failed, Errno: "ELOOP", Major: -1, Minor: -1}, meaning: "could not be opened: ELOOP, its path leads through links in a circle"},
		{name: "path too long", device: probe.Device{Path: "/dev/" + strings.Repeat("x", 300), Major: -1, Minor: -1},
			want: probe.Result{Path: "/dev/" + strings.Repeat("x", 300), Outcome: probe.Failed, Errno: "ENAMETOOLONG", Major: -1, Minor: -1}, meaning: "could not be opened: ENAMETOOLONG"},
		{name: "/dev that cannot be written or made", setup: "mount -t tmpfs -o ro none /dev", want: result(probe.Absent, "ENOENT", -1, -1), meaning: "is not in the container"},
		{name: "nodev", config: lxctest.Config{Devices: []lxctest.Device{{Path: "/dev/nvidia0", Major: 195, Minor: 0}}},
			setup: "mount -o remount,bind,nodev /dev/nvidia0", want: result(probe.NoPermission, "EACCES", 195, 0), meaning: "is in the container, but its mode or owner refuses"},

		// Nothing to probe with.
		{name: "no shell, no tool, no library", config: lxctest.Config{Devices: []lxctest.Device{{Path: "/dev/nvidia0", Major: 195, Minor: 0}}},
			setup: "rm -rf /bin /sbin /usr /etc 2>/dev/null || true", want: result(probe.NoDriver, "ENXIO", 195, 0)},
		{name: "full disk everywhere", config: lxctest.Config{Devices: []lxctest.Device{{Path: "/dev/nvidia0", Major: 195, Minor: 0}}, Lines: []string{"lxc.rootfs.options = ro"}},
			setup: "mount -t tmpfs -o size=4k none /tmp; cp /bin/busybox /tmp/x 2>/dev/null || true", want: result(probe.NoDriver, "ENXIO", 195, 0)},
		{name: "no /proc", setup: "umount -l /proc", is: probe.ErrProbe,
			err: "probe CTID CTID: no valid answer from inside the container: the helper cannot be executed there; is /proc mounted in the container?"},
		{name: "a /proc of its own", setup: "mount -t tmpfs none /proc; mkdir -p /proc/self/fd; printf '#!/bin/sh\\necho []' >/proc/self/fd/3; chmod 755 /proc/self/fd/3",
			is: probe.ErrProbe, err: "probe CTID CTID: no valid answer from inside the container: 0 results for 1 devices"},
		{name: "a helper of its own that never ends to answer", setup: "mount -t tmpfs none /proc; mkdir -p /proc/self/fd; printf '#!/bin/sh\\nyes | tr -d \"\\n\"' >/proc/self/fd/3; chmod 755 /proc/self/fd/3",
			is: probe.ErrProbe, err: "probe CTID CTID: command in CTID CTID: write the output: no valid answer from inside the container: output too long"},
		{name: "memory limit too low", config: lxctest.Config{Lines: []string{"lxc.prlimit.as = 8000000"}},
			is: probe.ErrProbe, err: `probe CTID CTID: no valid answer from inside the container: the helper ended with status 2: "fatal error: failed to reserve page summary memory"`},
		{name: "frozen", freeze: true, timeout: 500 * time.Millisecond, is: context.DeadlineExceeded,
			err: "probe CTID CTID: command in CTID CTID: context deadline exceeded"},
		{name: "init that ignores every signal", config: lxctest.Config{Init: "trap '' HUP INT QUIT TERM PWR\nwhile :; do sleep 86400; done\n"}, setup: "mkfifo /dev/nvidia0",
			want: result(probe.NotADevice, "", -1, -1)},
		{name: "init fills its console", config: lxctest.Config{Init: "yes &\n" + idle}, setup: "mkfifo /dev/nvidia0", want: result(probe.NotADevice, "", -1, -1)},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := lxctest.Start(t, test.config)
			if test.setup != "" {
				c.Run(t, test.setup)
			}
			if test.freeze {
				path := fmt.Sprintf("/sys/fs/cgroup/lxc.payload.%d/cgroup.freeze", c.CTID)
				if err := os.WriteFile(path, []byte("1"), 0); err != nil {
					t.Fatal(err)
				}
				defer os.WriteFile(path, []byte("0"), 0)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.timeout > 0 {
				ctx, cancel = context.WithTimeout(ctx, test.timeout)
				defer cancel()
			}
			if test.device == (probe.Device{}) {
				test.device = gpu
			}
			begin := time.Now()
			got, err := p.Probe(ctx, c.CTID, []probe.Device{test.device})
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("took %v", took)
			}
			text := ""
			if err != nil {
				text = strings.ReplaceAll(err.Error(), fmt.Sprint(c.CTID), "CTID")
			}
			if text != test.err || !errors.Is(err, test.is) {
				t.Fatalf("error %q, want %q", text, test.err)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff([]probe.Result{test.want}, got); diff != "" {
				t.Fatalf("results (-want +got):\n%s", diff)
			}
			if m := got[0].Explain(true).Meaning; !strings.HasPrefix(m, test.meaning) {
				t.Errorf("means %q, want %q...", m, test.meaning)
			}
		})
	}
}

// A container whose init kills each new process. Its first probes may be done before it begins to.
func TestInitThatKillsAll(t *testing.T) {
	lxctest.Require(t)
	p := newProber(t)
	c := lxctest.Start(t, lxctest.Config{Init: "until [ -e /go ]; do sleep 0.02; done; while :; do kill -9 -1; done\n"})
	c.Run(t, "touch /go")
	for range 1000 {
		_, err := p.Probe(t.Context(), c.CTID, []probe.Device{{Path: "/dev/nvidia0", Major: 195, Minor: 0}})
		if err == nil {
			continue
		}
		if !errors.Is(err, probe.ErrProbe) && !errors.Is(err, attach.ErrAttach) {
			t.Errorf("probe: %v, want an ErrProbe or an ErrAttach", err)
		}
		return
	}
	t.Error("a thousand probes came through")
}

// A device that is exchanged all the time is never taken for opened.
func TestDeviceSwappedDuringAProbe(t *testing.T) {
	p := newProber(t)
	c := lxctest.Start(t, lxctest.Config{Devices: []lxctest.Device{{Path: "/dev/nvidia0", Major: 195, Minor: 0, Denied: true}}})
	c.Run(t, "cp -a /dev/null /dev/a && mknod /dev/b c 195 1 && (while :; do ln -f /dev/a /dev/x && mv /dev/x /dev/nvidia1; ln -f /dev/b /dev/x && mv /dev/x /dev/nvidia1; done) >/dev/null 2>&1 </dev/null &")
	d := probe.Device{Path: "/dev/nvidia1", Major: 195, Minor: 1}
	devices := make([]probe.Device, 200)
	for i := range devices {
		devices[i] = d
	}
	seen := make(map[probe.Outcome]int)
	for range 5 {
		results, err := p.Probe(t.Context(), c.CTID, devices)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			seen[r.Outcome]++
			switch r.Outcome {
			case probe.Denied, probe.WrongNumber, probe.Absent: // the one, the other, neither
			default:
				t.Errorf("%+v, want denied, another number, or nothing there", r)
			}
		}
	}
	if seen[probe.Denied] == 0 || seen[probe.WrongNumber] == 0 {
		t.Errorf("outcomes %v: the device was not exchanged", seen)
	}
}
