package confstore_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"phoenix.internal/agent/confstore"
)

const conf = "arch: amd64\nhostname: trainer\nmemory: 2048\nlxc.cgroup2.devices.allow: c 195:0 rwm\n"

// newStore lays out a node as pmxcfs does, with CTID 101.
func newStore(t testing.TB) *confstore.Store {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"pve/nodes/pve1/lxc", "pve/nodes/pve1/qemu-server", "lock"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"local": "nodes/pve1", "lxc": "nodes/pve1/lxc"} {
		if err := os.Symlink(target, filepath.Join(root, "pve", name)); err != nil {
			t.Fatal(err)
		}
	}
	s := &confstore.Store{
		PVE:         filepath.Join(root, "pve"),
		LockDir:     filepath.Join(root, "lock"),
		RevisionDir: filepath.Join(root, "revisions"),
		LockWait:    5 * time.Second,
	}
	write(t, s, conf)
	return s
}

func path(s *confstore.Store) string { return filepath.Join(s.PVE, "nodes/pve1/lxc/101.conf") }

// write puts a conf in place as Proxmox's post-stop hook does: without the lock.
func write(t testing.TB, s *confstore.Store, content string) {
	t.Helper()
	if err := os.WriteFile(path(s), []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, s *confstore.Store) string {
	t.Helper()
	b, err := os.ReadFile(path(s))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
