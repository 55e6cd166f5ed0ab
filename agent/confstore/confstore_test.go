package confstore_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"phoenix.internal/agent/confstore"
)

const conf = "arch: amd64\nhostname: trainer\nmemory: 2048\nlxc.cgroup2.devices.allow: c 195:0 rwm\n"

// newStore lays out a node as pmxcfs does, with CTID 101.
func newStore(t testing.TB) *confstore.Store {
	t.Helper()
	root := tempDir(t)
	for _, dir := range []string{"pve/nodes/pve1/lxc", "pve/nodes/pve1/qemu-server", "pve/nodes/pve2/lxc", "lock"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"local": "nodes/pve1", "lxc": "nodes/pve1/lxc"} {
		if err := os.Symlink(target, filepath.Join(root, "pve", name)); err != nil {
			t.Fatal(err)
		}
	}
	s := storeIn(root)
	write(t, s, conf)
	return s
}

// tempDir is t.TempDir in memory where there is such a place: these tests sync a lot.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "confstore")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// storeIn returns the Store of a node that newStore laid out.
func storeIn(root string) *confstore.Store {
	return &confstore.Store{
		PVE:         filepath.Join(root, "pve"),
		LockDir:     filepath.Join(root, "lock"),
		RevisionDir: filepath.Join(root, "revisions"),
		LockWait:    5 * time.Second,
	}
}

func path(s *confstore.Store) string { return filepath.Join(s.PVE, "nodes/pve1/lxc/101.conf") }

// write puts a conf in place without the lock, as Proxmox's post-stop hook does.
func write(t testing.TB, s *confstore.Store, content string) {
	t.Helper()
	if err := os.WriteFile(path(s), []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

// read opens the conf without Go's poller, at which the pmxcfs double takes offence.
func read(t testing.TB, s *confstore.Store) string {
	t.Helper()
	fd, err := syscall.Open(path(s), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path(s))
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// wantFiles checks what lies in the directory of the confs: nothing temporary may be left.
func wantFiles(t testing.TB, s *confstore.Store, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path(s)))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}

func TestCheck(t *testing.T) {
	s := newStore(t)
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// Without Proxmox's file system /etc/pve is an ordinary directory of the root disk.
func TestNotMounted(t *testing.T) {
	for name, pve := range map[string]func(t *testing.T) string{
		"empty directory": func(t *testing.T) string { return t.TempDir() },
		"no directory":    func(t *testing.T) string { return filepath.Join(t.TempDir(), "pve") },
		"local is a directory": func(t *testing.T) string {
			dir := t.TempDir()
			if err := os.MkdirAll(filepath.Join(dir, "local/lxc"), 0o755); err != nil {
				t.Fatal(err)
			}
			return dir
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			s.PVE = pve(t)
			_, editErr := s.Edit(t.Context(), 101, "", alice, setMemory("1"))
			_, previewErr := s.Preview(101, "", setMemory("1"))
			_, readErr := s.Read(101)
			_, listErr := s.CTIDs()
			_, vmErr := s.VMs()
			_, readVMErr := s.ReadVM(300)
			_, sweepErr := s.Sweep()
			for call, err := range map[string]error{
				"Check": s.Check(), "Edit": editErr, "Preview": previewErr, "Read": readErr,
				"CTIDs": listErr, "VMs": vmErr, "ReadVM": readVMErr, "Sweep": sweepErr,
			} {
				if !errors.Is(err, confstore.ErrNotMounted) {
					t.Errorf("%s: error %v", call, err)
				}
			}
			if _, err := os.Stat(filepath.Join(s.PVE, "local/lxc/101.conf")); err == nil {
				t.Error("a conf was made below the mount point")
			}
		})
	}
}

func TestReadVM(t *testing.T) {
	s := newStore(t)
	vm := filepath.Join(s.PVE, "local/qemu-server/300.conf")
	for content, want := range map[string]error{"hostpci0: 01:00\n": nil, strings.Repeat("#", confstore.MaxSize+1): confstore.ErrTooLarge} {
		if err := os.WriteFile(vm, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		b, err := s.ReadVM(300)
		if !errors.Is(err, want) || want == nil && string(b) != content {
			t.Errorf("of %d bytes: read %d, error %v, want %v", len(content), len(b), err, want)
		}
	}
	if b, err := s.ReadVM(101); !errors.Is(err, confstore.ErrNotFound) {
		t.Errorf("a container read as a VM: %q, error %v", b, err)
	}
}

func TestGuests(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{
		"lxc/1000.conf", "lxc/999999999.conf", "lxc/100.conf",
		"lxc/99.conf", "lxc/0101.conf", "lxc/1000000000.conf", "lxc/101.conf.tmp.7", "lxc/102.new.conf",
		"lxc/a.conf", "lxc/103.CONF", "lxc/104", "lxc/-105.conf", "lxc/١٠٦.conf", "lxc/.fuse_hidden0001",
		"qemu-server/300.conf", "qemu-server/200.conf",
	} {
		if err := os.WriteFile(filepath.Join(s.PVE, "local", name), nil, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	ctids, err := s.CTIDs()
	if want := []int32{100, 101, 1000, 999999999}; err != nil || !slices.Equal(ctids, want) {
		t.Errorf("CTIDs %v, error %v, want %v", ctids, err, want)
	}
	vms, err := s.VMs()
	if want := []int32{200, 300}; err != nil || !slices.Equal(vms, want) {
		t.Errorf("VMs %v, error %v, want %v", vms, err, want)
	}
}

func TestRead(t *testing.T) {
	s := newStore(t)
	b, err := s.Read(101)
	if err != nil || string(b) != conf {
		t.Errorf("read %q, error %v", b, err)
	}
	for _, ctid := range []int32{102, 0, 99, -101, 1000000000} {
		if _, err := s.Read(ctid); !errors.Is(err, confstore.ErrNotFound) {
			t.Errorf("CTID %d: error %v", ctid, err)
		}
	}
	write(t, s, strings.Repeat("#", confstore.MaxSize+1))
	if _, err := s.Read(101); !errors.Is(err, confstore.ErrTooLarge) {
		t.Errorf("1 MiB and a byte: error %v", err)
	}
}

// A file system that hangs holds up nobody for ever. An open of a FIFO hangs like that.
func TestHangingRead(t *testing.T) {
	s := newStore(t)
	s.AnswerWait = 20 * time.Millisecond
	if err := os.Remove(path(s)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path(s), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(101); !errors.Is(err, confstore.ErrNoAnswer) {
		t.Errorf("Read: error %v", err)
	}
	called := false
	_, err := s.Edit(t.Context(), 101, "", alice, noted(&called))
	if !errors.Is(err, confstore.ErrNoAnswer) || called {
		t.Errorf("Edit: error %v, fn called: %t", err, called)
	}
	// The background call of that edit keeps the lock: nobody else may write now.
	s.LockWait = 20 * time.Millisecond
	_, err = s.Edit(t.Context(), 101, "", alice, noted(&called))
	if e, ok := errors.AsType[*confstore.LockTimeoutError](err); !ok || e.HolderPID != os.Getpid() {
		t.Errorf("second Edit: error %v", err)
	}

	// The file system answers again.
	f, err := os.OpenFile(path(s), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.Remove(path(s)); err != nil {
		t.Fatal(err)
	}
	write(t, s, conf)
	s.LockWait, s.AnswerWait = 5*time.Second, 5*time.Second
	if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096")); err != nil {
		t.Errorf("third Edit: error %v", err)
	}
}

func TestSweep(t *testing.T) {
	s := newStore(t)
	dead := deadPID(t)
	confs := filepath.Dir(path(s))
	if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		filepath.Join(confs, "101.conf.tmp."+dead),
		filepath.Join(confs, "102.conf.tmp."+itoa(os.Getpid())),
		filepath.Join(confs, "103.conf.tmp.1"), // alive: Proxmox's
		filepath.Join(confs, "104.conf.tmp.1"), // alive, but the file is old
		filepath.Join(confs, "105.conf.tmp.x"),
		filepath.Join(confs, "notes.tmp."+dead),
		filepath.Join(s.RevisionDir, "101/2.conf"), // never completed
		filepath.Join(s.RevisionDir, "101/3.conf.tmp"),
	} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(filepath.Join(confs, "104.conf.tmp.1"), old, old); err != nil {
		t.Fatal(err)
	}
	removed, err := s.Sweep()
	var names []string
	for _, path := range removed {
		names = append(names, strings.ReplaceAll(filepath.Base(path), dead, "DEAD"))
	}
	slices.Sort(names)
	want := []string{"101.conf.tmp.DEAD", "102.conf.tmp." + itoa(os.Getpid()), "104.conf.tmp.1", "2.conf", "3.conf.tmp"}
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("removed %q, error %v, want %q", names, err, want)
	}
	wantFiles(t, s, "101.conf", "103.conf.tmp.1", "105.conf.tmp.x", "notes.tmp."+dead)
	if revisions, err := s.Revisions(101); err != nil || len(revisions) != 1 {
		t.Errorf("revisions %v, error %v, want the complete one", revisions, err)
	}
}
