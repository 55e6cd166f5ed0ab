// Package onlxc_test holds what package container asks of LXC against LXC itself. It stands apart so that the other tests
// run without containers.
package onlxc_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/container"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/lxctest"
)

func TestMain(m *testing.M) { lxctest.Main(m) }

// TestStarted asks a container for everything that it was started with, after its configuration was replaced on disk.
func TestStarted(t *testing.T) {
	ct := lxctest.Start(t, lxctest.Config{
		CTID:         901,
		Unprivileged: true,
		Devices:      []lxctest.Device{{Path: "/dev/nvidia1", Major: 195, Minor: 1}},
		Lines: []string{
			"lxc.arch = amd64",
			"lxc.environment = TERM=linux",
			"lxc.environment = GREETING=two words",
			"lxc.hook.pre-start = /bin/true",
			"lxc.cap.drop = mac_admin mac_override",
			"lxc.cap.drop = sys_time",
			"lxc.sysctl.net.core.somaxconn = 256",
			"lxc.proc.oom_score_adj = 10",
			"lxc.prlimit.nofile = 1024:2048",
			"lxc.tty.max = 2",
			"lxc.signal.halt = SIGTERM",
			"lxc.cgroup2.devices.deny = c 10:229 rwm",
			"lxc.net.2.type = empty",
			"lxc.net.2.flags = up",
		},
	})
	if err := os.WriteFile(ct.Config, []byte("lxc.uts.name = other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var proxmox container.Proxmox
	items, err := proxmox.Started(t.Context(), ct.CTID)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, item := range items {
		if item.Line != 0 {
			t.Errorf("%v has a line, of no conf", item)
		}
		// Of what LXC's common.conf says only the devices are looked at: it differs between versions.
		switch item.Key {
		case "lxc.mount.entry":
			if !strings.Contains(item.Value, "nvidia") {
				continue
			}
		case "lxc.cgroup2.devices.allow":
			if !strings.Contains(item.Value, "195") && item.Value != "a" {
				continue
			}
		case "lxc.seccomp.profile", "lxc.mount.auto", "lxc.autodev", "lxc.pty.max", "lxc.rootfs.options", "lxc.apparmor.profile":
			continue
		}
		got = append(got, item.Key+" = "+strings.ReplaceAll(item.Value, lxctest.Path, "PATH"))
	}
	want := []string{
		"lxc.arch = x86_64",
		"lxc.uts.name = ct901",
		"lxc.rootfs.path = PATH/901/rootfs",
		"lxc.init.cmd = /sbin/init",
		"lxc.idmap = u 0 100000 65536",
		"lxc.idmap = g 0 100000 65536",
		"lxc.cap.drop = mac_admin",
		"lxc.cap.drop = mac_override",
		"lxc.cap.drop = sys_time",
		"lxc.cgroup2.devices.allow = a",
		"lxc.cgroup2.devices.allow = c 195:1 rw",
		"lxc.cgroup2.devices.deny = c 10:229 rwm",
		"lxc.prlimit.nofile = 1024:2048",
		"lxc.sysctl.net.core.somaxconn = 256",
		"lxc.proc.oom_score_adj = 10",
		"lxc.mount.entry = PATH/901/dev0 dev/nvidia1 none bind,optional,create=file 0 0",
		"lxc.tty.max = 2",
		"lxc.environment = TERM=linux",
		"lxc.environment = GREETING=two words",
		"lxc.signal.halt = 15",
		"lxc.hook.pre-start = /bin/true",
		"lxc.net.0.type = empty",
		"lxc.net.0.name = lo",
		"lxc.net.2.type = empty",
		"lxc.net.2.name = lo",
		"lxc.net.2.flags = up",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("started with (-want +got):\n%s", diff)
	}

	ct.Stop(t)
	if items, err := proxmox.Started(t.Context(), ct.CTID); !errors.Is(err, lxcmon.ErrNotRunning) || items != nil {
		t.Errorf("of a stopped container: %v, %v", items, err)
	}
}
