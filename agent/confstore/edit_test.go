package confstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/pveconf"
)

var alice = confstore.Author{Who: "alice", Why: "patch 7f3a"}

func setMemory(mib string) func(*pveconf.File) error {
	return func(f *pveconf.File) error { return f.Set("memory", mib) }
}

// noted returns an edit that changes nothing and notes that it was called.
func noted(called *bool) func(*pveconf.File) error {
	return func(*pveconf.File) error {
		*called = true
		return nil
	}
}

func TestEdit(t *testing.T) {
	s := newStore(t)
	r, err := s.Edit(t.Context(), 101, pveconf.Parse([]byte(conf)).Digest(), alice, setMemory("4096"))
	if err != nil {
		t.Fatal(err)
	}
	want := "arch: amd64\nhostname: trainer\nmemory: 4096\nlxc.cgroup2.devices.allow: c 195:0 rwm\n"
	if got := read(t, s); got != want {
		t.Errorf("conf:\n%s\nwant:\n%s", got, want)
	}
	if string(r.Before) != conf || string(r.After) != want || !r.Changed || r.Revision != 1 ||
		r.Digest != pveconf.Parse([]byte(want)).Digest() {
		t.Errorf("result %+v", r)
	}
	wantFiles(t, s, "101.conf")
}

func TestEditOfNothingWritesNothing(t *testing.T) {
	s := newStore(t)
	before, err := os.Stat(path(s))
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Edit(t.Context(), 101, "", alice, setMemory("2048"))
	if err != nil || r.Changed || r.Revision != 0 || string(r.After) != conf {
		t.Errorf("result %+v, error %v", r, err)
	}
	after, err := os.Stat(path(s))
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the conf was replaced")
	}
	if revisions, err := s.Revisions(101); err != nil || len(revisions) != 0 {
		t.Errorf("revisions %v, error %v", revisions, err)
	}
}

func TestEditRefused(t *testing.T) {
	stop := errors.New("the caller's own")
	for _, test := range []struct {
		name   string
		conf   string
		digest string
		edit   func(*pveconf.File) error
		check  func(error) bool
		text   string
	}{
		{
			name: "digest stale", conf: "memory: 1\n", digest: "0123456789012345678901234567890123456789",
			check: func(err error) bool {
				e, ok := errors.AsType[*confstore.DigestError](err)
				return ok && *e == confstore.DigestError{
					CTID: 101, Want: "0123456789012345678901234567890123456789", Got: "8514946e2443bb86a645dd4df7f2fb3b48ae18f6",
				}
			},
			text: "edit conf of CTID 101: conf of CTID 101 was changed by somebody else: its digest is " +
				"8514946e2443bb86a645dd4df7f2fb3b48ae18f6, not 0123456789012345678901234567890123456789",
		},
		{
			name: "lock", conf: "lock: backup\nmemory: 1\n",
			check: func(err error) bool {
				e, ok := errors.AsType[*confstore.LockedError](err)
				return ok && *e == confstore.LockedError{CTID: 101, Lock: "backup"}
			},
			text: `edit conf of CTID 101: CTID 101 is locked by Proxmox (lock: "backup")`,
		},
		{
			name: "unknown lock", conf: "lock: something else\n",
			check: func(err error) bool { _, ok := errors.AsType[*confstore.LockedError](err); return ok },
			text:  `edit conf of CTID 101: CTID 101 is locked by Proxmox (lock: "something else")`,
		},
		{
			name: "lock before digest, as in Proxmox", conf: "lock: backup\n", digest: "stale",
			check: func(err error) bool { _, ok := errors.AsType[*confstore.LockedError](err); return ok },
			text:  `edit conf of CTID 101: CTID 101 is locked by Proxmox (lock: "backup")`,
		},
		{
			name: "the caller's error", conf: "memory: 1\n",
			edit:  func(*pveconf.File) error { return stop },
			check: func(err error) bool { return errors.Is(err, stop) },
			text:  "edit conf of CTID 101: the caller's own",
		},
		{
			name: "too large", conf: strings.Repeat("#", confstore.MaxSize-11) + "\n",
			edit:  setMemory("4096"),
			check: func(err error) bool { return errors.Is(err, confstore.ErrTooLarge) },
			text:  "edit conf of CTID 101: 1048579 bytes: larger than the 1 MiB that Proxmox's file system takes",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t)
			write(t, s, test.conf)
			edit := test.edit
			if edit == nil {
				edit = func(*pveconf.File) error {
					t.Error("fn was called")
					return nil
				}
			}
			_, err := s.Edit(t.Context(), 101, test.digest, alice, edit)
			if err == nil || !test.check(err) {
				t.Errorf("error %v", err)
			}
			if err != nil && err.Error() != test.text {
				t.Errorf("error %s\nwant  %s", err, test.text)
			}
			_, preview := s.Preview(101, test.digest, edit)
			if preview == nil || !test.check(preview) {
				t.Errorf("Preview: error %v", preview)
			}
			if got := read(t, s); got != test.conf {
				t.Errorf("conf is now %q", got)
			}
			wantFiles(t, s, "101.conf")
			if revisions, err := s.Revisions(101); err != nil || len(revisions) != 0 {
				t.Errorf("revisions %v, error %v", revisions, err)
			}
		})
	}
}

// What is false for Perl does not lock, nor does a lock in a snapshot.
func TestEditWithFalseLock(t *testing.T) {
	for _, content := range []string{"lock: 0\nmemory: 1\n", "memory: 1\n\n[before]\nlock: backup\nmemory: 1\n"} {
		s := newStore(t)
		write(t, s, content)
		if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("2")); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
}

func TestSizeLimit(t *testing.T) {
	s := newStore(t)
	write(t, s, strings.Repeat("#", confstore.MaxSize-14)+"\n")
	r, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096"))
	if err != nil || len(r.After) != confstore.MaxSize {
		t.Errorf("%d bytes, error %v, want exactly 1 MiB", len(r.After), err)
	}
}

func TestNotFound(t *testing.T) {
	s := newStore(t)
	for _, ctid := range []int32{102, 99, -101} {
		called := false
		_, err := s.Edit(t.Context(), ctid, "", alice, noted(&called))
		if !errors.Is(err, confstore.ErrNotFound) || called {
			t.Errorf("CTID %d: error %v, fn called: %t", ctid, err, called)
		}
	}
	wantFiles(t, s, "101.conf")
}

// A number that another guest of the cluster has is told apart from one that nobody has.
func TestElsewhere(t *testing.T) {
	for _, test := range []struct {
		at   string
		want confstore.MovedError
		text string
	}{
		{"nodes/pve2/lxc", confstore.MovedError{CTID: 101, Node: "pve2"},
			"edit conf of CTID 101: CTID 101 is not on this node any more but on node pve2"},
		{"nodes/pve2/qemu-server", confstore.MovedError{CTID: 101, Node: "pve2", VM: true},
			"edit conf of CTID 101: 101 is no container but a virtual machine on node pve2"},
		{"nodes/pve1/qemu-server", confstore.MovedError{CTID: 101, Node: "pve1", VM: true},
			"edit conf of CTID 101: 101 is no container but a virtual machine on node pve1"},
	} {
		s := newStore(t)
		to := filepath.Join(s.PVE, test.at, "101.conf")
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		migrate := func(f *pveconf.File) error { return errors.Join(os.Rename(path(s), to), f.Set("memory", "4096")) }
		for _, when := range []string{"during the edit", "before it"} {
			_, err := s.Edit(t.Context(), 101, "", alice, migrate)
			if e, ok := errors.AsType[*confstore.MovedError](err); !ok || *e != test.want || !errors.Is(err, confstore.ErrNotFound) {
				t.Errorf("%s, %s: error %v, want %+v", test.at, when, err, test.want)
				continue
			}
			wantText(t, err, test.text)
		}
		if b, err := os.ReadFile(to); err != nil || string(b) != conf {
			t.Errorf("%s: %q, error %v, want what was there", test.at, b, err)
		}
		wantFiles(t, s)
	}
}

// A container that is destroyed during an edit stays so.
func TestGoneDuringEdit(t *testing.T) {
	s := newStore(t)
	_, err := s.Edit(t.Context(), 101, "", alice, func(f *pveconf.File) error {
		if err := os.Remove(path(s)); err != nil {
			return err
		}
		return f.Set("memory", "4096")
	})
	if !errors.Is(err, confstore.ErrNotFound) {
		t.Errorf("error %v", err)
	}
	wantFiles(t, s)
}

// Proxmox's post-stop hook writes without the lock; its write is not lost.
func TestWriteWithoutLockDuringEdit(t *testing.T) {
	s := newStore(t)
	theirs := conf + "onboot: 1\n"
	_, err := s.Edit(t.Context(), 101, "", alice, func(f *pveconf.File) error {
		write(t, s, theirs)
		return f.Set("memory", "4096")
	})
	e, ok := errors.AsType[*confstore.DigestError](err)
	want := confstore.DigestError{
		CTID: 101, Want: pveconf.Parse([]byte(conf)).Digest(), Got: pveconf.Parse([]byte(theirs)).Digest(),
	}
	if !ok || *e != want {
		t.Errorf("error %v, want %v", err, &want)
	}
	if got := read(t, s); got != theirs {
		t.Errorf("conf:\n%s\nwant:\n%s", got, theirs)
	}
	wantFiles(t, s, "101.conf")
	if revisions, err := s.Revisions(101); err != nil || len(revisions) != 0 {
		t.Errorf("revisions %v, error %v", revisions, err)
	}
}

// LXC ends a line at CR too, and reads nothing after a NUL. pveconf refuses such values where they are made; here
// whatever an edit produced is looked at once more, as bytes.
func TestSmuggledLines(t *testing.T) {
	for name, smuggle := range map[string]string{
		"CR":                "lxc.environment: A=b\rlxc.hook.pre-start = /x",
		"CR at the end":     "lxc.environment: A=b\r",
		"NUL":               "lxc.environment: A=b\x00",
		"escape":            "lxc.environment: A=\x1b[2J",
		"DEL":               "lxc.environment: A=\x7f",
		"not UTF-8":         "lxc.environment: A=\xff",
		"CR in a new first": "\rlxc.hook.pre-start = /x",
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			_, err := s.Edit(t.Context(), 101, "", alice, func(f *pveconf.File) error {
				*f = *pveconf.Parse([]byte(conf + smuggle + "\n"))
				return nil
			})
			if err == nil || !strings.HasPrefix(err.Error(), "edit conf of CTID 101: line 5 to be written ") {
				t.Errorf("error %v", err)
			}
			if got := read(t, s); got != conf {
				t.Errorf("conf is now %q", got)
			}
		})
	}
}

// Lines that were there before are somebody else's, whatever they hold.
func TestPoisonOfOthersIsKept(t *testing.T) {
	s := newStore(t)
	poison := "lxc.environment: A=b\rlxc.hook.pre-start = /x\nlxc.environment: \x00\xff\n"
	write(t, s, conf+poison)
	if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096")); err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(conf, "2048", "4096", 1) + poison; read(t, s) != want {
		t.Errorf("conf is now %q, want %q", read(t, s), want)
	}
}

// The law of edits: one added line is one line more for Proxmox, which ends lines at LF, and for LXC, which ends them
// at CR too.
func FuzzLines(f *testing.F) {
	f.Add("memory: 1\n", "lxc.environment: A=b")
	f.Add("memory: 1\r\n", "lxc.environment: A=b\r")
	f.Add("lxc.environment: A=\rb\n", "lxc.environment: A=\rb")
	f.Add("", "\r")
	f.Add("[snap]\n", "\x00")
	s := newStore(f)
	f.Fuzz(func(t *testing.T, before, added string) {
		if strings.Contains(added, "\n") || strings.HasPrefix(before, "lock") {
			return
		}
		if before != "" && !strings.HasSuffix(before, "\n") {
			before += "\n"
		}
		write(t, s, before)
		r, err := s.Preview(101, "", func(f *pveconf.File) error {
			*f = *pveconf.Parse([]byte(before + added + "\n"))
			return nil
		})
		if err != nil {
			return
		}
		if got, want := lines(r.After), lines([]byte(before))+1; got != want || strings.Contains(added, "\x00") {
			t.Errorf("%q and %q: %d lines, want %d", before, added, got, want)
		}
	})
}

// lines counts the lines of a file that ends in LF as LXC does.
func lines(b []byte) int { return bytes.Count(b, []byte("\n")) + bytes.Count(b, []byte("\r")) }

func TestPreviewChangesNothing(t *testing.T) {
	s := newStore(t)
	_, unlock := holdLock(t, s) // a preview needs no lock
	defer unlock()
	r, err := s.Preview(101, "", setMemory("4096"))
	want := strings.Replace(conf, "2048", "4096", 1)
	if err != nil || !r.Changed || string(r.Before) != conf || string(r.After) != want || r.Revision != 0 {
		t.Errorf("result %+v, error %v", r, err)
	}
	if got := read(t, s); got != conf {
		t.Errorf("conf is now %q", got)
	}
	if _, err := os.Stat(s.RevisionDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a directory of revisions: %v", err)
	}
}

// Design failure 1: of two writers that planned against the same conf, the second must not believe that there is
// nothing left to do.
func TestFailure01TwoWriters(t *testing.T) {
	s := newStore(t)
	planned := pveconf.Parse([]byte(conf)).Digest()
	add := func(f *pveconf.File) error { return f.AppendRaw("lxc.cgroup2.devices.allow", "c 195:1 rwm") }
	if _, err := s.Edit(t.Context(), 101, planned, confstore.Author{Who: "first"}, add); err != nil {
		t.Fatal(err)
	}
	called := false
	_, err := s.Edit(t.Context(), 101, planned, confstore.Author{Who: "second"}, noted(&called))
	e, ok := errors.AsType[*confstore.DigestError](err)
	if !ok || e.Want != planned || e.Got != pveconf.Parse([]byte(read(t, s))).Digest() {
		t.Errorf("second writer: error %v", err)
	}
	if called {
		t.Error("the second writer's edit was called")
	}
}

// No edit of many at once is lost.
func TestConcurrentEdits(t *testing.T) {
	s := newStore(t)
	write(t, s, "memory: 1\n")
	s.LockWait = 30 * time.Second
	var writers sync.WaitGroup
	for i := range 20 {
		writers.Go(func() {
			_, err := s.Edit(t.Context(), 101, "", alice, func(f *pveconf.File) error {
				return f.AppendRaw("lxc.environment", fmt.Sprintf("N=%02d", i))
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	got := read(t, s)
	for i := range 20 {
		if line := fmt.Sprintf("lxc.environment: N=%02d\n", i); strings.Count(got, line) != 1 {
			t.Errorf("no single line %q in:\n%s", line, got)
		}
	}
	if revisions, err := s.Revisions(101); err != nil || len(revisions) != 20 {
		t.Errorf("%d revisions, error %v", len(revisions), err)
	}
}

func TestLockHeldElsewhere(t *testing.T) {
	s := newStore(t)
	s.LockWait = 50 * time.Millisecond
	pid, unlock := holdLock(t, s)
	called := false
	_, err := s.Edit(t.Context(), 101, "", alice, noted(&called))
	lockFile := filepath.Join(s.LockDir, "pve-config-101.lock")
	want := confstore.LockTimeoutError{CTID: 101, Path: lockFile, HolderPID: pid}
	if e, ok := errors.AsType[*confstore.LockTimeoutError](err); !ok || *e != want {
		t.Errorf("error %v, want %v", err, &want)
	}
	if text := fmt.Sprintf("edit conf of CTID 101: lock on the conf of CTID 101 (%s) is held by process %d", lockFile, pid); err.Error() != text {
		t.Errorf("error %s\nwant  %s", err, text)
	}
	if called {
		t.Error("fn was called without the lock")
	}

	// It gets its turn when the other is done.
	s.LockWait = 5 * time.Second
	done := make(chan error)
	go func() {
		_, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096"))
		done <- err
	}()
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestHeld(t *testing.T) {
	s := newStore(t)
	if s.Held(101) {
		t.Error("held before anybody made the file")
	}
	_, unlock := holdLock(t, s)
	if !s.Held(101) || s.Held(102) {
		t.Errorf("held: 101 %t, 102 %t, want only 101", s.Held(101), s.Held(102))
	}
	unlock()
	if s.Held(101) {
		t.Error("held after its holder is dead")
	}
}

func TestContextEndsWhileWaiting(t *testing.T) {
	s := newStore(t)
	_, unlock := holdLock(t, s)
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.Edit(ctx, 101, "", alice, setMemory("1")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// /run/lock can be written by everybody, so the directory of the locks may be somebody else's.
func TestLockDirectory(t *testing.T) {
	t.Run("made if missing", func(t *testing.T) {
		s := newStore(t)
		s.LockDir = filepath.Join(t.TempDir(), "lxc")
		if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("1")); err != nil {
			t.Error(err)
		}
		if info, err := os.Stat(s.LockDir); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%v, error %v", info, err)
		}
	})
	t.Run("symlink", func(t *testing.T) {
		s := newStore(t)
		link := filepath.Join(t.TempDir(), "lxc")
		if err := os.Symlink(s.LockDir, link); err != nil {
			t.Fatal(err)
		}
		s.LockDir = link
		if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("1")); err == nil {
			t.Error("taken")
		}
	})
	t.Run("others may write", func(t *testing.T) {
		s := newStore(t)
		if err := os.Chmod(s.LockDir, 0o777); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("1")); err == nil {
			t.Error("taken")
		}
	})
	t.Run("another user's", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root can give a directory away")
		}
		s := newStore(t)
		if err := os.Chown(s.LockDir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("1")); err == nil {
			t.Error("taken")
		}
	})
	t.Run("lock file is a symlink", func(t *testing.T) {
		s := newStore(t)
		target := filepath.Join(t.TempDir(), "target")
		if err := os.Symlink(target, filepath.Join(s.LockDir, "pve-config-101.lock")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("1")); err == nil {
			t.Error("followed")
		}
		if _, err := os.Lstat(target); err == nil {
			t.Error("the target was made")
		}
	})
}
