package transfer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// push writes a file: to a partial one beside it, which takes its place when it is whole.
func (h *helper) push(t Target) error {
	p, err := findPlace(t)
	if err != nil {
		return err
	}
	if err := h.openPartial(p); err != nil {
		return err
	}
	err = h.fill(p, t)
	_, isFile := errors.AsType[*FileError](err)
	if err != nil && (isFile || t.NoResume || p.size == 0) {
		unix.Unlinkat(p.dir, p.partialName(), 0) // what is left has no use, and would take up the space
	}
	return err
}

// fill takes the content and puts the file in its place.
func (h *helper) fill(p *place, t Target) error {
	sum, left := sha256.New(), Digest{}
	if !t.NoResume {
		var err error
		if sum, left, err = h.digest(p.partial, 1<<62); err != nil {
			return failed(p.path, "read what an earlier copy left of", err)
		}
	}
	p.size = left.Size
	if err := p.checkSpace(t.Size - left.Size); err != nil {
		return err
	}
	r := ready{Path: p.path}
	if left.Size > 0 {
		r.Partial = left
	}
	if err := h.out.value(kindReady, r); err != nil {
		return err
	}
	var b begin
	if err := h.in.value(kindBegin, &b); err != nil {
		return err
	}
	switch b.Offset {
	case left.Size:
	case 0:
		sum.Reset()
	default:
		return fmt.Errorf("begin at %d: %d bytes are there", b.Offset, left.Size)
	}
	p.size = b.Offset
	if err := p.partial.Truncate(b.Offset); err != nil {
		return failed(p.path, "truncate", err)
	}
	if _, err := p.partial.Seek(b.Offset, io.SeekStart); err != nil {
		return failed(p.path, "write", err)
	}
	whole, err := h.content(p, t, sum)
	if err != nil {
		return err
	}
	got := Digest{p.size, sum.Sum(nil)}
	if got.Size != whole.Size || !bytes.Equal(got.SHA256, whole.SHA256) {
		return &FileError{Changed, p.path, fmt.Sprintf("what arrived is not what was sent: %d bytes with SHA-256 %x instead of %d with %x",
			got.Size, got.SHA256, whole.Size, whole.SHA256)}
	}
	if err := h.busy(func() error { return p.finish(t) }); err != nil {
		return err
	}
	return h.out.value(kindDone, Done{p.path, got})
}

// content writes the data that comes up to its end.
func (h *helper) content(p *place, t Target, sum hash.Hash) (whole Digest, err error) {
	for {
		k, payload, err := h.in.read()
		switch {
		case err != nil:
			return whole, err
		case k == kindEnd:
			return whole, json.Unmarshal(payload, &whole)
		case k != kindData:
			return whole, fmt.Errorf("a frame of kind %q in the content", k)
		}
		n, err := p.partial.Write(payload)
		sum.Write(payload[:n])
		p.size += int64(n)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			of := ""
			if t.Size >= 0 {
				of = fmt.Sprintf(" of %d", t.Size)
			}
			return whole, &FileError{NoSpace, p.path, fmt.Sprintf("no space is left in its file system after %d%s bytes; they are removed again", p.size, of)}
		}
		if err != nil {
			return whole, failed(p.path, "write", err)
		}
	}
}

// A place is where a file goes: a name in an open directory, so that it stays the same whatever becomes of the path.
type place struct {
	dir     int
	name    string
	path    string // for people
	partial *os.File
	size    int64 // of what is written and known to be the content
}

// findPlace follows the target's path, as cp does: into a directory, and through links.
func findPlace(t Target) (*place, error) {
	p := t.Path
	fd, err := open(p, unix.O_PATH)
	if err != nil {
		return newPlace(t, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, failed(p, "look at", err)
	}
	real, err := pathOf(fd, &st)
	if err != nil {
		return nil, failed(p, "look at", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if t.Name == "" && t.IntoDirectory {
			return nil, &FileError{Refused, p, "is a directory, and the file has no name to have in it"}
		}
		if t.Name == "" {
			return nil, &FileError{Refused, p, "is a directory; give the file's path in it"}
		}
		in, err := findPlace(Target{Path: filepath.Join(real, t.Name)})
		if e, ok := errors.AsType[*FileError](err); ok && strings.HasPrefix(e.Message, "is a directory;") {
			e.Message = "is a directory: a file does not replace it"
		}
		return in, err
	case unix.S_IFREG:
		if t.IntoDirectory {
			return nil, &FileError{Refused, p, "is not a directory"}
		}
		return openPlace(real)
	default:
		return nil, &FileError{Refused, p, "is " + typeOf(st.Mode) + "; only regular files are replaced"}
	}
}

// pathOf returns the path of what is open, without links.
func pathOf(fd int, st *unix.Stat_t) (string, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	// The kernel says this also of a mount whose source is gone.
	for _, path := range []string{path, strings.TrimSuffix(path, " (deleted)")} {
		var now unix.Stat_t
		if err := unix.Lstat(path, &now); err == nil && now.Dev == st.Dev && now.Ino == st.Ino {
			return path, nil
		}
	}
	return "", unix.ESTALE
}

// newPlace is findPlace where opening the path gave an error.
func newPlace(t Target, err error) (*place, error) {
	p := t.Path
	if !errors.Is(err, unix.ENOENT) {
		if errors.Is(err, unix.ENOTDIR) {
			return nil, &FileError{NotFound, p, "a part of its path in the container is not a directory"}
		}
		return nil, failed(p, "look at", err)
	}
	if link, err := os.Readlink(strings.TrimRight(p, "/")); err == nil {
		return nil, &FileError{Refused, p, "is a link to nothing: " + link}
	}
	if t.IntoDirectory || strings.HasSuffix(p, "/") {
		return nil, &FileError{NotFound, p, "no such directory in the container"}
	}
	return openPlace(p)
}

func openPlace(path string) (*place, error) {
	parent, name := filepath.Split(path)
	dir, err := open(parent, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, &FileError{NotFound, path, "the container has no directory " + filepath.Clean(parent)}
	case err != nil:
		return nil, failed(path, "open the directory of", err)
	}
	return &place{dir: dir, name: name, path: path}, nil
}

// partialName is the name of the file that grows.
func (p *place) partialName() string {
	const most = 255
	if name := "." + p.name + ".phoenix-partial"; len(name) <= most {
		return name
	}
	sum := sha256.Sum256([]byte(p.name))
	return "." + hex.EncodeToString(sum[:]) + ".phoenix-partial"
}

// lockWait is for an earlier process of ours whose agent has just ended.
const lockWait = 10 * time.Second

// openPartial opens and locks the file that grows.
func (h *helper) openPartial(p *place) error {
	return h.busy(func() error {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for until := time.Now().Add(lockWait); ; <-tick.C {
			f, err := p.tryPartial()
			switch {
			case err == nil:
				p.partial = f
				return nil
			case !errors.Is(err, errTryAgain) && !errors.Is(err, unix.EWOULDBLOCK):
				return failed(p.path, "write", err)
			case time.Now().After(until):
				return &FileError{Refused, p.path, "another copy to it is under way"}
			}
		}
	})
}

var errTryAgain = errors.New("the file was replaced")

// tryPartial opens and locks the file that grows. Somebody in the container may have put something else in its place.
func (p *place) tryPartial() (*os.File, error) {
	name := p.partialName()
	var st, now unix.Stat_t
	err := unix.Fstatat(p.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	flags := unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	switch {
	case errors.Is(err, unix.ENOENT):
		flags |= unix.O_CREAT | unix.O_EXCL
	case err != nil:
		return nil, err
	case !ours(&st):
		if err := unix.Unlinkat(p.dir, name, 0); err != nil {
			return nil, &FileError{Refused, p.path, fmt.Sprintf("%s beside it is in the way: %v", name, err)}
		}
		return nil, errTryAgain
	}
	fd, err := unix.Openat(p.dir, name, flags, 0o600)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) && flags&unix.O_CREAT == 0 {
		return nil, errTryAgain
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	// A process that holds the lock may have put this very file in its place by now.
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = unix.Fstatat(p.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.Fstat(fd, &now)
	}
	if errors.Is(err, unix.ENOENT) || err == nil && (st.Dev != now.Dev || st.Ino != now.Ino || !ours(&now)) {
		err = errTryAgain
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ours says whether a file can be one that we have made and nobody else has touched.
func ours(st *unix.Stat_t) bool {
	return st.Mode&(unix.S_IFMT|0o7777) == unix.S_IFREG|0o600 && int(st.Uid) == os.Geteuid() && st.Nlink == 1
}

// checkSpace refuses what cannot fit. A file system that does not tell how much is free decides while the file is written.
func (p *place) checkSpace(more int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(p.dir, &st); err != nil || st.Blocks == 0 {
		return nil
	}
	if free := int64(st.Bfree) * st.Bsize; more > free {
		return &FileError{NoSpace, p.path, fmt.Sprintf("it needs %d bytes more, and its file system has %d free", more, free)}
	}
	return nil
}

// finish gives the whole file its mode, owner and time, and puts it in its place on the disk.
func (p *place) finish(t Target) error {
	var old unix.Stat_t
	err := unix.Fstatat(p.dir, p.name, &old, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return failed(p.path, "look at", err)
	}
	if err == nil && old.Mode&unix.S_IFMT != unix.S_IFREG { // it has changed since
		return &FileError{Refused, p.path, "is " + typeOf(old.Mode) + "; only regular files are replaced"}
	}
	owner := Owner{int64(old.Uid), int64(old.Gid)}
	if t.Owner != nil {
		owner = *t.Owner
	}
	// First of all, so that all that may take long is done while the file can still be continued.
	if err := p.partial.Sync(); err != nil {
		return failed(p.path, "sync", err)
	}
	fd := int(p.partial.Fd())
	if err := unix.Fchown(fd, int(owner.UID), int(owner.GID)); errors.Is(err, unix.EINVAL) {
		return &FileError{Refused, p.path, fmt.Sprintf("the container has no owner %d:%d: it is beyond its map of numbers", owner.UID, owner.GID)}
	} else if err != nil {
		return failed(p.path, "change the owner of", err)
	}
	if err := unix.Fchmod(fd, t.Mode&0o777); err != nil {
		return failed(p.path, "change the mode of", err)
	}
	if !t.ModTime.IsZero() {
		at := unix.NsecToTimespec(t.ModTime.UnixNano())
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{at, at}, 0); err != nil {
			return failed(p.path, "set the time of", err)
		}
	}
	if err := p.partial.Sync(); err != nil {
		return failed(p.path, "sync", err)
	}
	if err := unix.Renameat(p.dir, p.partialName(), p.dir, p.name); err != nil {
		return failed(p.path, "replace", err)
	}
	if err := unix.Fsync(p.dir); err != nil && !errors.Is(err, unix.EINVAL) {
		return failed(p.path, "sync the directory of", err)
	}
	return nil
}
