package lxctest_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"phoenix.internal/agent/lxctest"
)

func TestMain(m *testing.M) { lxctest.Main(m) }

func TestContainer(t *testing.T) {
	for _, test := range []struct {
		name   string
		cfg    lxctest.Config
		denied string // what opening the denied node says
	}{
		{"privileged", lxctest.Config{}, "Operation not permitted"},
		// The cgroup of an unprivileged container allows all, as on Proxmox.
		{"unprivileged", lxctest.Config{Unprivileged: true}, "No such device or address"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Devices = []lxctest.Device{
				{Path: "/dev/nvidia0", Major: 195, Minor: 0},
				{Path: "/dev/nvidia1", Major: 195, Minor: 1, Denied: true},
				{Path: "/dev/nvidia2", Major: 195, Minor: 2, NoSource: true},
			}
			c := lxctest.Start(t, test.cfg)

			got := c.Run(t, `for i in 0 1 2; do dd if=/dev/nvidia$i of=/dev/null count=0; done 2>&1 | grep -v records; test -f /dev/nvidia2 && echo a file`)
			want := "dd: can't open '/dev/nvidia0': No such device or address\n" +
				"dd: can't open '/dev/nvidia1': " + test.denied + "\n" +
				"a file\n"
			if got != want {
				t.Errorf("devices in the container:\n%swant\n%s", got, want)
			}
			if root, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(c.InitPID(t)), "exe")); err != nil || root != "/bin/busybox" {
				t.Errorf("init runs %q, %v, want /bin/busybox", root, err)
			}
			c.Stop(t)
			c.Start(t)
			if got, want := c.Run(t, "echo again"), "again\n"; got != want {
				t.Errorf("after a restart got %q, want %q", got, want)
			}
		})
	}
}
