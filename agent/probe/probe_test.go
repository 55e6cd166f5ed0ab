package probe_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
	"phoenix.internal/agent/probe"
)

func TestMain(m *testing.M) { lxctest.Main(m) }

// newProber returns a prober with a helper program of its own.
func newProber(t *testing.T) *probe.Prober {
	t.Helper()
	program := filepath.Join(t.TempDir(), "helper")
	build := exec.Command("go", "build", "-o", program, "./testdata/helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	return &probe.Prober{Program: program}
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

func TestProbeNotRunning(t *testing.T) {
	c := lxctest.New(t, lxctest.Config{})
	got, err := newProber(t).Probe(t.Context(), c.CTID, []probe.Device{{Path: "/dev/null", Major: 1, Minor: 3}})
	if !errors.Is(err, attach.ErrAttach) {
		t.Errorf("probe of a stopped container: %v, %v, want an ErrAttach", got, err)
	}
}
