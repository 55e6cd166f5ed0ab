package confstore_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/pveconf"
)

const edited = "arch: amd64\nhostname: trainer\nmemory: 4096\nlxc.cgroup2.devices.allow: c 195:0 rwm\n"

// What works on a disk works where there is no fsync and no chmod, and where modes are given.
func TestProxmoxFileSystem(t *testing.T) {
	s, _ := mountPVE(t)
	r, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096"))
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, s); got != edited {
		t.Errorf("conf is now %q", got)
	}
	if _, err := s.Restore(t.Context(), 101, r.Revision, r.Digest, alice); err != nil || read(t, s) != conf {
		t.Errorf("restored %q, error %v", read(t, s), err)
	}
	if ctids, err := s.CTIDs(); err != nil || len(ctids) != 1 {
		t.Errorf("CTIDs %v, error %v", ctids, err)
	}
	if removed, err := s.Sweep(); err != nil || len(removed) != 0 {
		t.Errorf("removed %v, error %v", removed, err)
	}
	wantFiles(t, s, "101.conf")
}

func TestNoQuorum(t *testing.T) {
	s, p := mountPVE(t)
	p.quorum(false)
	if err := s.Check(); !errors.Is(err, confstore.ErrNoQuorum) {
		t.Errorf("Check: error %v", err)
	}
	called := false
	if _, err := s.Edit(t.Context(), 101, "", alice, noted(&called)); !errors.Is(err, confstore.ErrNoQuorum) || called {
		t.Errorf("Edit: error %v, fn called: %t", err, called)
	}
	// Reading goes on.
	if b, err := s.Read(101); err != nil || string(b) != conf {
		t.Errorf("Read: %q, error %v", b, err)
	}
	if r, err := s.Preview(101, "", setMemory("4096")); err != nil || string(r.After) != edited {
		t.Errorf("Preview: %+v, error %v", r, err)
	}
	p.quorum(true)
	if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096")); err != nil {
		t.Errorf("with quorum again: %v", err)
	}
}

// The quorum is lost after it was looked at: every write is refused with EACCES, root's too.
func TestQuorumLostDuringEdit(t *testing.T) {
	s, p := mountPVE(t)
	_, err := s.Edit(t.Context(), 101, "", alice, func(f *pveconf.File) error {
		p.quorum(false)
		return f.Set("memory", "4096")
	})
	if !errors.Is(err, confstore.ErrNoQuorum) || !errors.Is(err, syscall.EACCES) {
		t.Errorf("error %v", err)
	}
	p.quorum(true)
	wantUntouched(t, s)
}

func TestErrorsOfTheFileSystem(t *testing.T) {
	for _, test := range []struct {
		operation string
		errno     syscall.Errno
		want      error
	}{
		{"create", syscall.EACCES, confstore.ErrNoQuorum},
		{"create", syscall.EBUSY, confstore.ErrBusy},
		{"create", syscall.EIO, confstore.ErrDatabase},
		{"create", syscall.ENOTCONN, confstore.ErrDisconnected},
		{"write", syscall.EFBIG, confstore.ErrTooLarge},
		{"write", syscall.EACCES, confstore.ErrNoQuorum},
		{"write", syscall.ENOSPC, syscall.ENOSPC},
		{"flush", syscall.EIO, confstore.ErrDatabase},
		{"rename", syscall.EACCES, confstore.ErrNoQuorum},
		{"rename", syscall.EBUSY, confstore.ErrBusy},
		{"rename", syscall.EIO, confstore.ErrDatabase},
		{"rename", syscall.EEXIST, confstore.ErrNotFound}, // the number is another node's now
		{"lookup", syscall.ENOTCONN, confstore.ErrDisconnected},
		{"read", syscall.EIO, confstore.ErrDatabase},
	} {
		t.Run(test.operation+" "+test.errno.Error(), func(t *testing.T) {
			s, p := mountPVE(t)
			p.fail(test.operation, test.errno)
			_, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096"))
			if !errors.Is(err, test.want) || !errors.Is(err, test.errno) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			p.fail(test.operation, 0)
			wantUntouched(t, s)
			// It was transient, and nothing is in the way of the next.
			if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096")); err != nil {
				t.Errorf("next edit: %v", err)
			}
		})
	}
}

func wantUntouched(t *testing.T, s *confstore.Store) {
	t.Helper()
	if got := read(t, s); got != conf {
		t.Errorf("conf is now %q", got)
	}
	wantFiles(t, s, "101.conf")
	if revisions, err := s.Revisions(101); err != nil || len(revisions) != 0 {
		t.Errorf("revisions %v, error %v", revisions, err)
	}
}

// Somebody writes without the lock right after our rename: that we wrote it does not mean that it is there.
func TestOverwrittenAfterEdit(t *testing.T) {
	s, p := mountPVE(t)
	p.overwrite()
	_, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096"))
	want := confstore.DigestError{
		CTID: 101, Want: pveconf.Parse([]byte(edited)).Digest(), Got: pveconf.Parse([]byte("memory: 7\n")).Digest(),
	}
	if e, ok := errors.AsType[*confstore.DigestError](err); !ok || *e != want {
		t.Errorf("error %v, want %v", err, &want)
	}
	if got := read(t, s); got != "memory: 7\n" {
		t.Errorf("conf is now %q", got)
	}
	// Ours was there for a moment, so what it replaced is kept.
	if _, b, err := s.Revision(101, 1); err != nil || string(b) != conf {
		t.Errorf("revision 1: %q, error %v", b, err)
	}
}

// A rename that fails here may have reached the cluster: then the revision is needed.
func TestRenameThatFailsAndWorks(t *testing.T) {
	s, p := mountPVE(t)
	p.failAfterwards()
	if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096")); !errors.Is(err, confstore.ErrBusy) {
		t.Errorf("error %v", err)
	}
	if got := read(t, s); got != edited {
		t.Errorf("conf is now %q", got)
	}
	if _, b, err := s.Revision(101, 1); err != nil || string(b) != conf {
		t.Errorf("revision 1: %q, error %v", b, err)
	}
	wantFiles(t, s, "101.conf")
}

// pmxcfs ends: every call gets ENOTCONN until it is mounted again.
func TestFileSystemDies(t *testing.T) {
	s, p := mountPVE(t)
	for _, operation := range []string{"lookup", "getattr", "opendir", "readdir"} {
		p.fail(operation, syscall.ENOTCONN)
	}
	_, readErr := s.Read(101)
	_, listErr := s.CTIDs()
	for call, err := range map[string]error{"Check": s.Check(), "Read": readErr, "CTIDs": listErr} {
		if !errors.Is(err, confstore.ErrDisconnected) {
			t.Errorf("%s: error %v", call, err)
		}
	}
}

// A file system that hangs before the rename has let the caller go; when it answers again nothing is changed behind
// the caller's back.
func TestHangingCreate(t *testing.T) {
	s, p := mountPVE(t)
	s.AnswerWait = 30 * time.Millisecond
	p.hang("create")
	_, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096"))
	if !errors.Is(err, confstore.ErrNoAnswer) || strings.Contains(err.Error(), "may still take effect") {
		t.Errorf("error %v", err)
	}
	p.resume()
	s.AnswerWait = 5 * time.Second
	// The background call has released the lock once this gets it.
	if _, err := s.Edit(t.Context(), 101, pveconf.Parse([]byte(conf)).Digest(), alice, setMemory("4096")); err != nil {
		t.Errorf("next edit: %v", err)
	}
	wantFiles(t, s, "101.conf")
}

// Hanging in the rename itself leaves two outcomes; the error says so, and the lock stays until it is decided.
func TestHangingRename(t *testing.T) {
	s, p := mountPVE(t)
	s.AnswerWait = 100 * time.Millisecond
	p.hang("rename")
	_, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096"))
	if !errors.Is(err, confstore.ErrNoAnswer) || !strings.Contains(err.Error(), "may still take effect") {
		t.Errorf("error %v", err)
	}
	s.LockWait = 30 * time.Millisecond
	if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("1")); err == nil {
		t.Error("a second edit got the lock")
	} else if e, ok := errors.AsType[*confstore.LockTimeoutError](err); !ok || e.HolderPID != os.Getpid() {
		t.Errorf("second edit: %v", err)
	}
	p.resume()
	s.AnswerWait, s.LockWait = 5*time.Second, 5*time.Second
	r, err := s.Edit(t.Context(), 101, "", alice, setMemory("1"))
	if err != nil || string(r.Before) != edited {
		t.Errorf("after that the conf was %q, error %v, want the first edit's", r.Before, err)
	}
	if revisions, err := s.Revisions(101); err != nil || len(revisions) != 2 || revisions[1].ReplacedBy != pveconf.Parse([]byte(edited)).Digest() {
		t.Errorf("revisions %+v, error %v", revisions, err)
	}
}

// The threads that a hanging file system holds are bounded.
func TestHangingReadsAreBounded(t *testing.T) {
	s, p := mountPVE(t)
	s.AnswerWait = time.Millisecond
	p.hang("open")
	for range 100 {
		if _, err := s.Read(101); !errors.Is(err, confstore.ErrNoAnswer) {
			t.Fatalf("error %v", err)
		}
	}
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil || len(entries) > 64+40 {
		t.Errorf("%d threads, error %v", len(entries), err)
	}
	p.resume()
	s.AnswerWait = 5 * time.Second
	deadline := time.Now().Add(5 * time.Second)
	for {
		if _, err = s.Read(101); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Errorf("after that: %v", err)
	}
}

func TestDestroyedContainerStaysSo(t *testing.T) {
	s, _ := mountPVE(t)
	if err := os.Remove(path(s)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("1")); !errors.Is(err, confstore.ErrNotFound) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Lstat(filepath.Join(s.PVE, "local/lxc/101.conf")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a destroyed container came back: %v", err)
	}
}

// The double refuses what pmxcfs refuses (reference 5.3 to 5.6).
func TestDoubleIsLikePmxcfs(t *testing.T) {
	s, p := mountPVE(t)
	confPath, dir := path(s), filepath.Dir(path(s))
	modes := func(file, dir, root fs.FileMode) {
		t.Helper()
		for path, want := range map[string]fs.FileMode{confPath: file, filepath.Dir(confPath): dir, s.PVE: root, filepath.Join(s.PVE, "local"): dir} {
			if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, error %v, want mode %o", path, info, err, want)
			}
		}
	}
	modes(0o640, 0o755, 0o755)
	for _, test := range []struct {
		name string
		err  error
		want syscall.Errno
	}{
		{"chmod 0644", syscall.Chmod(confPath, 0o644), syscall.EPERM},
		{"chmod 0640", syscall.Chmod(confPath, 0o640), 0},
		{"chown to another user", syscall.Chown(confPath, 1000, -1), syscall.EPERM},
		{"chown to another group", syscall.Chown(confPath, -1, 0), syscall.EPERM},
		{"chown to root and www-data", syscall.Chown(confPath, 0, 33), 0},
		{"link", syscall.Link(confPath, filepath.Join(dir, "102.conf")), syscall.ENOSYS},
		{"symlink", syscall.Symlink("101.conf", filepath.Join(dir, "102.conf")), syscall.ENOSYS},
		{"mknod", syscall.Mknod(filepath.Join(dir, "102.conf"), syscall.S_IFREG|0o640, 0), syscall.ENOSYS},
	} {
		got, _ := errors.AsType[syscall.Errno](test.err)
		// The newest kernels have EPERM for what is not implemented.
		if got != test.want && (test.want != syscall.ENOSYS || got != syscall.EPERM) {
			t.Errorf("%s: %v, want %v", test.name, test.err, test.want)
		}
	}
	fd, err := syscall.Open(confPath, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	p.quorum(false)
	modes(0o440, 0o555, 0o755)
	if _, err := syscall.Write(fd, []byte("x")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("write without quorum: %v", err)
	}
	if err := syscall.Ftruncate(fd, 0); !errors.Is(err, syscall.EACCES) {
		t.Errorf("truncate without quorum: %v", err)
	}
	wantUntouched(t, s)
}

// A number exists once in the cluster: pmxcfs itself refuses to make a second guest of it, also when our temporary file is
// there already.
func TestMigratedDuringEdit(t *testing.T) {
	s, _ := mountPVE(t)
	_, err := s.Edit(t.Context(), 101, "", alice, func(f *pveconf.File) error {
		if err := os.Rename(path(s), filepath.Join(s.PVE, "nodes/pve2/lxc/101.conf")); err != nil {
			return err
		}
		return f.Set("memory", "4096")
	})
	if e, ok := errors.AsType[*confstore.MovedError](err); !ok || *e != (confstore.MovedError{CTID: 101, Node: "pve2"}) {
		t.Errorf("error %v, want that it is on pve2", err)
	}
	fd, err := syscall.Open(path(s), syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_CLOEXEC, 0o640)
	if !errors.Is(err, syscall.EEXIST) {
		syscall.Close(fd)
		t.Errorf("a second guest of the number: %v", err)
	}
	wantFiles(t, s)
}

// The database of pmxcfs fails, because the root disk is full: every write does from then on, but reads work.
func TestDatabaseFails(t *testing.T) {
	s, p := mountPVE(t)
	p.breakDatabase()
	for range 2 {
		if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096")); !errors.Is(err, confstore.ErrDatabase) {
			t.Errorf("error %v", err)
		}
	}
	wantUntouched(t, s)
}
