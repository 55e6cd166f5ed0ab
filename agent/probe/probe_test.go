package probe_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
	"phoenix.internal/agent/probe"
)

func TestMain(m *testing.M) { lxctest.Main(m) }

// newProber returns a prober with a helper program of its own, built with further flags.
func newProber(t *testing.T, flags ...string) *probe.Prober {
	t.Helper()
	program := filepath.Join(t.TempDir(), "helper")
	build := exec.Command("go", append(append([]string{"build", "-o", program}, flags...), "./testdata/helper")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	return &probe.Prober{Attacher: attach.Attacher{Helper: &attach.Helper{Path: program}}}
}

func TestProbe(t *testing.T) {
	lxctest.Require(t)
	p := newProber(t)
	for _, unprivileged := range []bool{false, true} {
		t.Run(fmt.Sprintf("unprivileged %v", unprivileged), func(t *testing.T) {
			// Proxmox's cgroup of an unprivileged container denies nothing.
			denied := probe.Result{Path: "/dev/nvidia3", Outcome: probe.Denied, Errno: "EPERM", Major: 195, Minor: 3}
			private := probe.Result{Path: "/dev/nvidia7", Outcome: probe.NoDriver, Errno: "ENXIO", Major: 195, Minor: 7}
			if unprivileged {
				denied.Outcome, denied.Errno = probe.NoDriver, "ENXIO"
				private.Outcome, private.Errno = probe.NoPermission, "EACCES"
			}
			c := lxctest.Start(t, lxctest.Config{Unprivileged: unprivileged, Devices: []lxctest.Device{
				{Path: "/dev/nvidia0", Major: 195, Minor: 0},
				{Path: "/dev/nvidia1", Major: 195, Minor: 1},
				{Path: "/dev/nvidia2", Major: 195, Minor: 2, NoSource: true},
				{Path: "/dev/nvidia3", Major: 195, Minor: 3, Denied: true},
				{Path: "/dev/nvidia7", Major: 195, Minor: 7, Mode: 0o600},
			}})
			c.Run(t, "ln -s nvidia0 /dev/nvidia4; mkdir /dev/nvidia5")
			got, err := p.Probe(t.Context(), c.CTID, []probe.Device{
				{Path: "/dev/null", Major: 1, Minor: 3},
				{Path: "/dev/nvidia0", Major: 195, Minor: 0},
				{Path: "/dev/nvidia1", Major: 195, Minor: 9},
				{Path: "/dev/nvidia2", Major: 195, Minor: 2},
				{Path: "/dev/nvidia3", Major: 195, Minor: 3},
				{Path: "/dev/nvidia4", Major: 195, Minor: 0},
				{Path: "/dev/nvidia5", Major: 195, Minor: 5},
				{Path: "/dev/nvidia6", Major: 195, Minor: 6},
				{Path: "/dev/nvidia7", Major: 195, Minor: 7},
				{Path: "/dev/nvidia0/caps", Major: -1, Minor: -1},
			})
			want := []probe.Result{
				{Path: "/dev/null", Outcome: probe.Opened, Major: 1, Minor: 3},
				{Path: "/dev/nvidia0", Outcome: probe.NoDriver, Errno: "ENXIO", Major: 195, Minor: 0},
				{Path: "/dev/nvidia1", Outcome: probe.WrongNumber, Major: 195, Minor: 1},
				{Path: "/dev/nvidia2", Outcome: probe.NotADevice, Major: -1, Minor: -1},
				denied,
				{Path: "/dev/nvidia4", Outcome: probe.NotADevice, Major: -1, Minor: -1},
				{Path: "/dev/nvidia5", Outcome: probe.NotADevice, Major: -1, Minor: -1},
				{Path: "/dev/nvidia6", Outcome: probe.Absent, Errno: "ENOENT", Major: -1, Minor: -1},
				private,
				{Path: "/dev/nvidia0/caps", Outcome: probe.Absent, Errno: "ENOTDIR", Major: -1, Minor: -1},
			}
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("probe: %v, results (-want +got):\n%s", err, diff)
			}
		})
	}
}

// Failure 15: a bind of a missing source leaves an empty regular file, and test -e says yes.
func TestFailure15EmptyRegularFile(t *testing.T) {
	lxctest.Require(t)
	p := newProber(t)
	for _, unprivileged := range []bool{false, true} {
		t.Run(fmt.Sprintf("unprivileged %v", unprivileged), func(t *testing.T) {
			c := lxctest.Start(t, lxctest.Config{Unprivileged: unprivileged, Devices: []lxctest.Device{
				{Path: "/dev/nvidia0", Major: 195, Minor: 0, NoSource: true},
			}})
			if got, want := c.Run(t, "test -e /dev/nvidia0 && test ! -s /dev/nvidia0 && echo yes"), "yes\n"; got != want {
				t.Fatalf("test -e said %q, want %q", got, want)
			}
			got, err := p.Probe(t.Context(), c.CTID, []probe.Device{{Path: "/dev/nvidia0", Major: 195, Minor: 0}})
			want := []probe.Result{{Path: "/dev/nvidia0", Outcome: probe.NotADevice, Major: -1, Minor: -1}}
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("probe: %v, results (-want +got):\n%s", err, diff)
			}
		})
	}
}

// The container may have hardly anything that a program needs, and gets nothing from us to keep.
func TestProbeInBareContainer(t *testing.T) {
	lxctest.Require(t)
	p := newProber(t)
	c := lxctest.Start(t, lxctest.Config{Lines: []string{"lxc.rootfs.options = ro", "lxc.environment = GODEBUG=x"}})
	// The shell that does this goes on; what starts after it finds no program and no writable place.
	c.Run(t, "cd /tmp && mount -t tmpfs -o ro,noexec none /bin")
	devices := []probe.Device{{Path: "/dev/null", Major: 1, Minor: 3}}
	want := []probe.Result{{Path: "/dev/null", Outcome: probe.Opened, Major: 1, Minor: 3}}
	for range 3 {
		got, err := p.Probe(t.Context(), c.CTID, devices)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("probe: %v, results (-want +got):\n%s", err, diff)
		}
	}
}

// An open that never returns keeps the helper from ending, whatever it is sent.
func TestProbeOfAStuckDevice(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	p := newProber(t, "-ldflags", "-X main.stuck=yes")
	begin := time.Now()
	got, err := p.Probe(t.Context(), c.CTID, []probe.Device{{Path: "/dev/null", Major: 1, Minor: 3}})
	want := []probe.Result{{Path: "/dev/null", Outcome: probe.Opened, Major: 1, Minor: 3}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("probe: %v, results (-want +got):\n%s", err, diff)
	}
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("took %v, want the answer about a second after it was given", took)
	}
}

// A helper that needs the container's loader would run the container's code, or not run at all.
func TestProbeWantsAStaticProgram(t *testing.T) {
	p := &probe.Prober{Attacher: attach.Attacher{Helper: &attach.Helper{Path: "/usr/bin/env"}}}
	_, err := p.Probe(t.Context(), 901, []probe.Device{{Path: "/dev/null", Major: 1, Minor: 3}})
	want := "probe CTID 901: helper program /usr/bin/env: not linked statically (build with CGO_ENABLED=0)"
	if err == nil || err.Error() != want {
		t.Errorf("probe with a dynamic program: %v, want %s", err, want)
	}
}

func TestAnswer(t *testing.T) {
	devices := []probe.Device{{Path: "/dev/a", Major: 1, Minor: 3}, {Path: "/dev/b", Major: 1, Minor: 5}}
	for _, test := range []struct{ name, answer, want string }{
		{"right", `[{"path":"/dev/a","outcome":"opened","major":1,"minor":3},{"path":"/dev/b","outcome":"denied","errno":"EPERM","major":1,"minor":5}]`, ""},
		{"empty", "", "no valid answer from inside the container: unexpected end of JSON input"},
		{"no JSON", "Killed", "no valid answer from inside the container: invalid character 'K' looking for beginning of value"},
		{"null", "null", "no valid answer from inside the container: 0 results for 2 devices"},
		{"one missing", `[{"path":"/dev/a","outcome":"opened"}]`, "no valid answer from inside the container: 1 results for 2 devices"},
		{"other order", `[{"path":"/dev/b","outcome":"opened"},{"path":"/dev/a","outcome":"opened"}]`, `no valid answer from inside the container: the result for "/dev/a" is not valid`},
		{"unknown outcome", `[{"path":"/dev/a","outcome":"fine"},{"path":"/dev/b","outcome":"opened"}]`, `no valid answer from inside the container: the result for "/dev/a" is not valid`},
		{"errno that is no name", `[{"path":"/dev/a","outcome":"opened","major":1,"minor":3},{"path":"/dev/b","outcome":"failed","errno":"\u001b[2J"}]`, `no valid answer from inside the container: the result for "/dev/b" is not valid`},
		{"opened with other numbers", `[{"path":"/dev/a","outcome":"opened","major":1,"minor":4},{"path":"/dev/b","outcome":"opened","major":1,"minor":5}]`, `no valid answer from inside the container: the result for "/dev/a" is not valid`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := probe.ParseAnswer([]byte(test.answer), devices)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("answer %s: error %q, want %q", test.answer, got, test.want)
			}
		})
	}
}

func TestProbeNotRunning(t *testing.T) {
	c := lxctest.New(t, lxctest.Config{})
	got, err := newProber(t).Probe(t.Context(), c.CTID, []probe.Device{{Path: "/dev/null", Major: 1, Minor: 3}})
	if !errors.Is(err, attach.ErrAttach) {
		t.Errorf("probe of a stopped container: %v, %v, want an ErrAttach", got, err)
	}
}
