package lxcmon_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/lxctest"
)

func TestRealContainer(t *testing.T) {
	ct := lxctest.Start(t, lxctest.Config{
		Unprivileged: true,
		Devices:      []lxctest.Device{{Path: "/dev/nvidia1", Major: 195, Minor: 1}},
	})
	c := lxcmon.Client{}
	wantState(t, c, ct.CTID, lxcmon.Running)

	if pid, err := c.InitPID(ct.CTID); err != nil || pid != ct.InitPID(t) {
		t.Errorf("init PID %d, error %v, want %d", pid, err, ct.InitPID(t))
	}

	// The configuration file is newer than the container from here on.
	if err := os.WriteFile(ct.Config, []byte("lxc.uts.name = other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(ct.Config)
	for _, test := range []struct {
		key  string
		want []string
	}{
		{"lxc.mount.entry", []string{dir + "/dev0 dev/nvidia1 none bind,optional,create=file 0 0"}},
		{"lxc.idmap", []string{"u 0 100000 65536", "g 0 100000 65536"}},
		{"lxc.uts.name", []string{fmt.Sprintf("ct%d", ct.CTID)}},
		{"lxc.environment", nil},
		{"lxc.no.such.key", nil},
	} {
		got, err := c.ConfigItem(ct.CTID, test.key)
		if test.key == "lxc.mount.entry" && len(got) > 1 {
			got = got[len(got)-1:] // those before are of LXC's common.conf
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, error %v, want %q", test.key, got, err, test.want)
		}
	}
	rules, err := c.ConfigItem(ct.CTID, "lxc.cgroup2.devices.allow")
	if err != nil || !slices.Contains(rules, "a") || !slices.Contains(rules, "c 195:1 rw") {
		t.Errorf("lxc.cgroup2.devices.allow: %q, error %v, want a and c 195:1 rw among them", rules, err)
	}

	if out, err := exec.Command("lxc-freeze", "-P", lxctest.Path, "-n", strconv.Itoa(int(ct.CTID))).CombinedOutput(); err != nil {
		t.Fatalf("lxc-freeze: %v: %s", err, out)
	}
	wantState(t, c, ct.CTID, lxcmon.Frozen)

	ct.Stop(t)
	wantState(t, c, ct.CTID, lxcmon.Stopped)
	if _, err := c.InitPID(ct.CTID); !errors.Is(err, lxcmon.ErrNotRunning) {
		t.Errorf("init PID of a stopped container: error %v", err)
	}
}

func wantState(t *testing.T, c lxcmon.Client, ctid int32, want lxcmon.State) {
	t.Helper()
	if state, err := c.State(ctid); err != nil || state != want {
		t.Errorf("state %v, error %v, want %v", state, err, want)
	}
}
