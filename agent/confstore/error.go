package confstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// What can be wrong with a conf or with the file system it lives in.
var (
	ErrNotFound   = errors.New("no such container on this node")
	ErrNotMounted = errors.New("Proxmox's file system is not mounted")
	ErrNoQuorum   = errors.New("node has no quorum")
	ErrTooLarge   = errors.New("larger than the 1 MiB that Proxmox's file system takes")

	ErrBusy         = errors.New("cluster is re-forming")                       // EBUSY: try again
	ErrDisconnected = errors.New("Proxmox's file system has died")              // ENOTCONN: pmxcfs ended or is being restarted
	ErrDatabase     = errors.New("Proxmox's file system cannot store anything") // EIO: for all writes until pmxcfs is restarted, for example because the root disk was full
	ErrUnconfirmed  = errors.New("conf was replaced, but could not be synced or read back")
	ErrNoAnswer     = errors.New("Proxmox's file system does not answer") // see [Store]
)

// MayHaveWritten tells whether the conf may be the new one although an edit ended with err.
func MayHaveWritten(err error) bool {
	for _, unclear := range []error{ErrBusy, ErrDisconnected, ErrDatabase, ErrUnconfirmed, ErrNoAnswer} {
		if errors.Is(err, unclear) {
			return true
		}
	}
	e, stopping := errors.AsType[*StoppingError](err)
	return stopping && e.Written
}

// A DigestError says that a conf is not the one the caller planned against, or that somebody else wrote it
// during the edit.
type DigestError struct {
	CTID      int32
	Want, Got string // digests; Got is of the conf as it is now
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("conf of CTID %d was changed by somebody else: its digest is %s, not %s", e.CTID, e.Got, e.Want)
}

// A MovedError says that the number belongs to a guest elsewhere in the cluster: the container was migrated, or it is a
// virtual machine. It is an [ErrNotFound].
type MovedError struct {
	CTID int32
	Node string // that has it
	VM   bool   // it is a virtual machine
}

func (e *MovedError) Error() string {
	if e.VM {
		return fmt.Sprintf("%d is no container but a virtual machine on node %s", e.CTID, e.Node)
	}
	return fmt.Sprintf("CTID %d is not on this node any more but on node %s", e.CTID, e.Node)
}

func (e *MovedError) Is(target error) bool { return target == ErrNotFound }

// A LockedError says that the conf holds `lock: Lock`: an operation of Proxmox is under way, or crashed.
type LockedError struct {
	CTID int32
	Lock string // "backup" for example
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("CTID %d is locked by Proxmox (lock: %q)", e.CTID, e.Lock)
}

// A LockTimeoutError says that another process held Proxmox's lock on the conf all the time.
type LockTimeoutError struct {
	CTID      int32
	Path      string // of the lock file
	HolderPID int    // 0 if unknown
}

func (e *LockTimeoutError) Error() string {
	if e.HolderPID == 0 {
		return fmt.Sprintf("lock on the conf of CTID %d (%s) is held by another process", e.CTID, e.Path)
	}
	return fmt.Sprintf("lock on the conf of CTID %d (%s) is held by process %d", e.CTID, e.Path, e.HolderPID)
}

// A RevisionError says that no such revision is kept.
type RevisionError struct {
	CTID   int32
	Number int64
}

func (e *RevisionError) Error() string {
	return fmt.Sprintf("CTID %d has no revision %d", e.CTID, e.Number)
}

// A RevisionDirError says that the old conf could not be kept, so the conf was not touched: the disk is full, for
// example.
type RevisionDirError struct {
	Path string // of the directory of all revisions
	Err  error
}

func (e *RevisionDirError) Error() string { return "keep the old conf: " + e.Err.Error() }
func (e *RevisionDirError) Unwrap() error { return e.Err }

// readError adds what an errno of pmxcfs means.
func readError(err error) error {
	for errno, meaning := range map[syscall.Errno]error{
		syscall.EBUSY:    ErrBusy,
		syscall.EIO:      ErrDatabase,
		syscall.ENOTCONN: ErrDisconnected,
	} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", meaning, err)
		}
	}
	return err
}

// writeError does so for writes. pmxcfs refuses each of them with EACCES, root's too, if there is no quorum
// (dcdb.c, dcdb_send_fuse_message).
func writeError(err error) error {
	switch {
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: %w", ErrNoQuorum, err)
	case errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return readError(err)
}

// makeDir makes a directory and its parents. One that exists must be nobody else's to write.
func makeDir(path string, mode fs.FileMode) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, mode); err != nil {
			return err
		}
		if err := syncDir(filepath.Dir(path)); err != nil {
			return err
		}
		info, err = os.Lstat(path)
	}
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s: not a directory", path)
	case !ok || (st.Uid != 0 && int(st.Uid) != os.Geteuid()):
		return fmt.Errorf("%s: belongs to another user", path)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s: others may write to it (mode %v)", path, info.Mode().Perm())
	}
	return nil
}
