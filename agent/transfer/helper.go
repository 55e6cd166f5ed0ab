package transfer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/attach"
)

// A helper is the process in the container.
type helper struct {
	in  frameReader
	out frameWriter
}

// Main is that process. The agent's main calls it, before anything else, when its first argument is [Argument]. It runs
// as root of a container, reads frames from stdin, writes frames to stdout and returns the exit status.
func Main(args []string) int {
	if status := attach.Begin(Argument, args); status != 0 {
		return status
	}
	h := &helper{in: frameReader{r: os.Stdin}, out: frameWriter{w: os.Stdout}}
	err := h.serve()
	if e, ok := errors.AsType[*FileError](err); ok {
		err = h.out.value(kindFailed, e)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (h *helper) serve() error {
	var r request
	if err := h.in.value(kindRequest, &r); err != nil {
		return err
	}
	switch {
	case r.Push != nil:
		return h.push(*r.Push)
	case r.Pull != nil:
		return h.pull(*r.Pull)
	default:
		return errors.New("neither push nor pull")
	}
}

// busyInterval is how often the agent hears from a process that works while no bytes move.
const busyInterval = 5 * time.Second

// busy tells the agent from time to time that work goes on.
func (h *helper) busy(work func() error) error {
	done := make(chan error, 1)
	go func() { done <- work() }()
	tick := time.NewTicker(busyInterval)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if err := h.out.write(kindBusy, nil); err != nil {
				return err
			}
		}
	}
}

// digest hashes the next size bytes of a file, and returns the hash to go on with. The size is less if the file is.
func (h *helper) digest(f *os.File, size int64) (sum hash.Hash, d Digest, err error) {
	sum = sha256.New()
	err = h.busy(func() error {
		d.Size, err = io.CopyBuffer(sum, struct{ io.Reader }{io.LimitReader(f, size)}, make([]byte, 256<<10))
		return err
	})
	d.SHA256 = sum.Sum(nil)
	return sum, d, err
}

// pull reads a file.
func (h *helper) pull(source Source) error {
	f, st, err := openSource(source.Path)
	if err != nil {
		return err
	}
	info := Info{Size: st.Size, Mode: st.Mode & 0o777, ModTime: time.Unix(st.Mtim.Unix())}
	sum := sha256.New()
	if n := source.Partial.Size; n > 0 && n <= st.Size {
		resumed, d, err := h.digest(f, n)
		if err == nil && d.Size == n && bytes.Equal(d.SHA256, source.Partial.SHA256) {
			info.Offset, sum = n, resumed
		} else if _, err := f.Seek(0, io.SeekStart); err != nil {
			return failed(source.Path, "read", err)
		}
	}
	if err := h.out.value(kindStart, info); err != nil {
		return err
	}
	size, buf := info.Offset, make([]byte, Chunk)
	for {
		b := buf
		if st.Size > 0 { // else it may have more, as files in /proc do
			b = buf[:min(int64(len(buf)), st.Size-size)]
		}
		n, err := f.Read(b)
		if n > 0 {
			sum.Write(b[:n])
			size += int64(n)
			if err := h.out.write(kindData, b[:n]); err != nil {
				return err
			}
		}
		switch {
		case size == st.Size && size > 0, errors.Is(err, io.EOF) && st.Size == 0:
			return h.out.value(kindEnd, Digest{size, sum.Sum(nil)})
		case errors.Is(err, io.EOF):
			return &FileError{Changed, source.Path, fmt.Sprintf("became shorter while it was read: %d of %d bytes were left", size, st.Size)}
		case err != nil:
			return failed(source.Path, "read", err)
		}
	}
}

// openSource opens a regular file for reading, after a look at what is there: opening something else could do anything.
func openSource(path string) (*os.File, *unix.Stat_t, error) {
	fd, err := open(path, unix.O_PATH)
	if err != nil {
		return nil, nil, failed(path, "open", err)
	}
	defer unix.Close(fd)
	var st, now unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, failed(path, "look at", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, &FileError{Refused, path, "is " + typeOf(st.Mode) + "; only regular files are copied"}
	}
	opened, err := open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, nil, failed(path, "open", err)
	}
	// A /proc of the container's making gives something else.
	if err := unix.Fstat(opened, &now); err != nil || now.Dev != st.Dev || now.Ino != st.Ino {
		return nil, nil, failed(path, "open", unix.ESTALE)
	}
	return os.NewFile(uintptr(opened), path), &now, nil
}

func open(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func typeOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "a device"
	case unix.S_IFLNK:
		return "a link"
	case unix.S_IFREG:
		return "a regular file"
	default:
		return "of an unknown type"
	}
}

// failed makes a FileError of what a call on a file said.
func failed(path, what string, err error) error {
	if e, ok := errors.AsType[*FileError](err); ok {
		return e
	}
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		return &FileError{Refused, path, fmt.Sprintf("%s: %v", what, err)}
	}
	switch errno {
	case unix.ENOENT:
		return &FileError{NotFound, path, "no such file in the container"}
	case unix.ENOTDIR:
		return &FileError{NotFound, path, "no such file in the container: a part of the path is not a directory"}
	case unix.ELOOP:
		return &FileError{Refused, path, "too many links lead from one to the next"}
	case unix.EACCES, unix.EPERM:
		return &FileError{Refused, path, fmt.Sprintf("the container's root may not %s it (%s)", what, unix.ErrnoName(errno))}
	case unix.EROFS:
		return &FileError{Refused, path, "the file system there is read-only"}
	case unix.ENOSPC, unix.EDQUOT:
		return &FileError{NoSpace, path, "no space is left in its file system"}
	case unix.EFBIG:
		return &FileError{Refused, path, "it is larger than its file system allows"}
	case unix.EBUSY:
		return &FileError{Refused, path, "it is a mount point by itself, and cannot be replaced"}
	case unix.ENAMETOOLONG:
		return &FileError{Refused, path, "the name is too long for its file system"}
	default:
		return &FileError{Refused, path, fmt.Sprintf("%s: %v (%s)", what, errno, unix.ErrnoName(errno))}
	}
}
