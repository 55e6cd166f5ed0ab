package attach

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A Helper is a program of ours that goes into containers: a sealed copy in memory, whose descriptor lxc-attach hands
// on, so that it need not exist in the container's file system and the container cannot change it. It must be linked
// statically. The zero value is a copy of the running program. Its methods may be called at the same time.
type Helper struct {
	Path string // of the program; empty: the running one

	mu     sync.Mutex
	sealed *os.File // the copy, once made
}

// self is the helper of an Attacher that has none.
var self Helper

// Program returns the program to hand into a container as a descriptor of [Command.Files]. The caller must not close
// it.
func (a Attacher) Program() (*os.File, error) {
	h := a.Helper
	if h == nil {
		h = &self
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sealed != nil {
		return h.sealed, nil
	}
	path := h.Path
	if path == "" {
		path = "/proc/self/exe"
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkStatic(f); err != nil {
		return nil, fmt.Errorf("helper program %s: %w", path, err)
	}
	h.sealed, err = seal(f)
	if err != nil {
		return nil, fmt.Errorf("copy %s to memory: %w", path, err)
	}
	return h.sealed, nil
}

// checkStatic returns an error if a program needs a loader, which the container may lack or replace.
func checkStatic(f *os.File) error {
	program, err := elf.NewFile(f)
	if err != nil {
		return err
	}
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP {
			return errors.New("not linked statically (build with CGO_ENABLED=0)")
		}
	}
	return nil
}

// seal copies a program to memory that nobody can write any more.
func seal(from *os.File) (*os.File, error) {
	const name = "phoenix-helper"
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is unknown before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	to := os.NewFile(uintptr(fd), name)
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(err, to.Close())
	}
	if _, err := io.Copy(to, from); err != nil {
		return nil, errors.Join(err, to.Close())
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	// The root of a privileged container gets a descriptor of it, so its mode is sealed too; kernels
	// before 6.3 cannot.
	_, err = unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, seals|unix.F_SEAL_EXEC)
	if errors.Is(err, unix.EINVAL) {
		_, err = unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("seal: %w", err), to.Close())
	}
	return to, nil
}

// Begin is what each helper does first in a container, where it is this program with argument and args, which must be none.
// A status other than 0 is to be returned at once; why is on stderr.
func Begin(argument string, args []string) (status int) {
	// The container's root may trace processes of its namespaces.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "prctl:", err)
		return 1
	}
	if len(args) != 0 {
		fmt.Fprintln(os.Stderr, "usage:", argument)
		return 2
	}
	return 0
}
