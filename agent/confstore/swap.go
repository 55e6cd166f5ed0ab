package confstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// swap replaces a conf that still holds before, and reads it back. It reports whether the conf was, or may have been,
// replaced.
//
// As Proxmox does it (PVE::File, file_set_contents): a temporary file beside it, whose name cannot be taken for a
// conf, renamed over it. Never in place, because each write is a message of its own to the cluster; never with
// chmod, which pmxcfs refuses.
func (s *Store) swap(j *job, ctid int32, before, after []byte) (replaced bool, err error) {
	path := s.path(ctid)
	temp := fmt.Sprintf("%s.tmp.%d", path, os.Getpid())
	// The mode that pmxcfs gives every conf, whatever is asked for.
	if err := writeTemp(temp, after, 0o640); err != nil {
		return false, writeError(err)
	}
	// Proxmox's post-stop hook writes without the lock. Looking again right before the rename makes the time in
	// which its write can get lost as short as it can be.
	if err := s.holds(ctid, before); err != nil {
		return false, errors.Join(err, removeIfThere(temp))
	}
	if !j.commit() {
		return false, errors.Join(ErrNoAnswer, removeIfThere(temp)) // nobody hears it
	}
	if err := os.Rename(temp, path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			// The number now belongs to a guest on another node (memdb.c, memdb_rename).
			err = fmt.Errorf("%w: %w", s.notFound(ctid), err)
		}
		err = errors.Join(writeError(err), removeIfThere(temp))
		// The cluster may have got the message all the same.
		return s.holds(ctid, before) != nil, err
	}
	err = errors.Join(syncDir(filepath.Dir(path)), s.holds(ctid, after))
	_, overwritten := errors.AsType[*DigestError](err)
	if err != nil && !overwritten && !errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	return true, err
}

// holds returns an error, a [*DigestError] if there is a conf at all, unless the conf is want.
func (s *Store) holds(ctid int32, want []byte) error {
	got, err := s.read(ctid)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return &DigestError{CTID: ctid, Want: digest(want), Got: digest(got)}
	}
	return nil
}

// writeTemp makes a file that did not exist. A left-over of that name is removed, but not for ever.
func writeTemp(path string, b []byte, mode uint32) error {
	f, err := create(path, mode)
	for try := 0; errors.Is(err, fs.ErrExist) && try < 3; try++ {
		if err := removeIfThere(path); err != nil {
			return err
		}
		f, err = create(path, mode)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = ignoreUnsupported(f.Sync())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, removeIfThere(path))
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func create(path string, mode uint32) (*os.File, error) {
	return open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, mode)
}

// open is os.OpenFile without Go's poller, to which the files of a FUSE file system look pollable. The runtime does
// not expect it to block: pmxcfs hanging at that point would stop every goroutine of the agent.
func open(path string, flags int, mode uint32) (*os.File, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if err != unix.EINTR {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

func syncDir(path string) error {
	d, err := open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return errors.Join(ignoreUnsupported(d.Sync()), d.Close())
}

// ignoreUnsupported drops what fsync answers on pmxcfs, which does not have it.
func ignoreUnsupported(err error) error {
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

var tempName = regexp.MustCompile(`^[1-9][0-9]{2,8}\.conf\.tmp\.([0-9]{1,10})$`)

// abandonedAfter is the age at which a temporary file is a left-over, even if its process seems to be alive.
const abandonedAfter = time.Hour

// Sweep removes what edits that were killed have left behind: temporary files of processes that are gone, or of this
// PID, and unfinished revisions. It returns their paths. Call it before the first edit.
func (s *Store) Sweep() (removed []string, err error) {
	confs, err := answer(s, nil, func(*job) ([]string, error) {
		if err := s.check(false); err != nil {
			return nil, err
		}
		removed, err := removeFiles(s.confDir(), func(e fs.DirEntry) bool {
			m := tempName.FindStringSubmatch(e.Name())
			return m != nil && !alive(m[1], e)
		})
		return removed, writeError(err)
	})
	revisions, err2 := s.sweepRevisions()
	return append(confs, revisions...), errors.Join(err, err2)
}

// alive reports whether the process of a temporary file may still be at work on it.
func alive(pid string, e fs.DirEntry) bool {
	n, err := strconv.Atoi(pid)
	if err != nil || n == os.Getpid() || errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
		return false
	}
	info, err := e.Info()
	return err != nil || time.Since(info.ModTime()) < abandonedAfter
}

// removeFiles removes the files of a directory that match and returns their paths.
func removeFiles(dir string, match func(fs.DirEntry) bool) (removed []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !match(e) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if rerr := os.Remove(path); rerr == nil {
			removed = append(removed, path)
		} else if !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return removed, err
}
