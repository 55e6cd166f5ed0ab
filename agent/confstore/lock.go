package confstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// retryLock is how often a lock that somebody holds is tried again.
const retryLock = 20 * time.Millisecond

// A lock is Proxmox's lock on the conf of one CTID, held. The kernel frees it when the process ends.
type lock struct {
	fd         int
	handedOver atomic.Bool
}

// lock takes Proxmox's lock: an exclusive flock(2) on a file that is never removed. Other kinds of locks would not
// exclude Proxmox.
func (s *Store) lock(ctx context.Context, ctid int32) (*lock, error) {
	fd, path, err := s.openLock(ctid)
	if err != nil {
		return nil, err
	}
	if err := s.flock(ctx, fd, path, ctid); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &lock{fd: fd}, nil
}

// tryLock returns nil if somebody holds the lock.
func (s *Store) tryLock(ctid int32) (*lock, error) {
	fd, path, err := s.openLock(ctid)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return &lock{fd: fd}, nil
	}
	if err != unix.EWOULDBLOCK {
		return nil, errors.Join(&os.PathError{Op: "flock", Path: path, Err: err}, unix.Close(fd))
	}
	return nil, unix.Close(fd)
}

func (s *Store) openLock(ctid int32) (fd int, path string, err error) {
	// Proxmox makes the directory when it is first used, so it may be missing after boot. It stands in one that
	// everybody can write.
	if err := makeDir(s.lockDir(), 0o755); err != nil {
		return -1, "", err
	}
	path = s.lockFile(ctid)
	// Without close-on-exec a child would go on holding the lock.
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return -1, "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, path, nil
}

func (s *Store) lockDir() string { return orDefault(s.LockDir, "/run/lock/lxc") }

func (s *Store) lockFile(ctid int32) string {
	return filepath.Join(s.lockDir(), fmt.Sprintf("pve-config-%d.lock", ctid))
}

func (s *Store) flock(ctx context.Context, fd int, path string, ctid int32) error {
	timeout := time.NewTimer(orDefault(s.LockWait, 10*time.Second))
	defer timeout.Stop()
	retry := time.NewTicker(retryLock)
	defer retry.Stop()
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return &os.PathError{Op: "flock", Path: path, Err: err}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-timeout.C:
			return &LockTimeoutError{CTID: ctid, Path: path, HolderPID: holder(fd)}
		case <-retry.C:
		}
	}
}

// release frees the lock, unless a call in the background still needs it. A nil lock is none.
func (l *lock) release() {
	if l != nil && !l.handedOver.Load() {
		l.close()
	}
}

// handOver leaves it to close to free the lock.
func (l *lock) handOver() {
	if l != nil {
		l.handedOver.Store(true)
	}
}

func (l *lock) close() {
	if l != nil {
		_ = unix.Close(l.fd) // nothing was written to it
	}
}

// holder returns the PID of the process that locked the file, 0 if it cannot be told: it may live in another PID
// namespace, or be gone while a child of it has the file open.
func holder(fd int) int {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0
	}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer f.Close()
	return holderOf(f, unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
}

// holderOf reads lines of the form "1: FLOCK  ADVISORY  WRITE 12403 fe:00:9978017 0 EOF" (proc_pid_locks(5)); those
// of processes that wait have "->" after the number.
func holderOf(locks io.Reader, major, minor uint32, inode uint64) int {
	file := fmt.Sprintf("%02x:%02x:%d", major, minor, inode)
	for scanner := bufio.NewScanner(locks); scanner.Scan(); {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(fields[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}
