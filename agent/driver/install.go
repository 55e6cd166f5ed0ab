package driver

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/ctlock"
)

// An Attacher starts our own program and others inside containers.
type Attacher interface {
	Start(ctx context.Context, c attach.Command) (*attach.Process, error)
	Program() (*os.File, error)
}

// An Installer installs what a cache holds into the node's containers. Its methods may be called at the same time; for
// one container they wait for each other.
type Installer struct {
	Cache     *Cache
	Attacher  Attacher
	MemoryMiB int64 // that an installation needs; 0: 256. The 2 GiB that people report are for the extraction, which the node does

	locks ctlock.Locks
}

// Options are what to install.
type Options struct {
	Version   string
	Graphics  bool // libraries for OpenGL, EGL and Vulkan too
	Reinstall bool // even if it is there in full
}

// How long the process in a container may take.
const (
	inspectTimeout = 30 * time.Second
	installTimeout = 30 * time.Minute
	removeTimeout  = 10 * time.Minute
	cleanTimeout   = 30 * time.Second
)

// Inspect looks at a running container's driver. The error is an [attach.ErrAttach], an [ErrHelper] or the context's.
func (i *Installer) Inspect(ctx context.Context, ctid int32) (State, error) {
	return i.state(ctx, ctid, inspectTimeout, request{Do: doInspect}, nil, nil)
}

// Install installs a version in a running container and returns what it has then; installed is false if it was there in
// full. progress may be nil; it is called from another goroutine, but not after Install has returned.
//
// What cannot work is refused before anything is changed: with a [*NotCachedError], [*LibcError], [*PackagedError] or
// [*SmallError]. Other errors are an [*InstallError] and those of Inspect; the container is then as incomplete as it
// says, and another Install repairs it.
func (i *Installer) Install(ctx context.Context, ctid int32, o Options, progress func(Progress) error) (s State, installed bool, err error) {
	unlock, err := i.locks.Lock(ctx, ctid)
	if err != nil {
		return State{}, false, err
	}
	defer unlock()
	if s, err = i.Inspect(ctx, ctid); err != nil {
		return State{}, false, err
	}
	switch {
	case s.Libc != Glibc:
		return s, false, &LibcError{Libc: s.Libc}
	case s.Kind == Complete && s.Version == o.Version && (s.Graphics || !o.Graphics) && !o.Reinstall:
		return s, false, nil
	case len(s.Packages) > 0:
		return s, false, &PackagedError{Packages: s.Packages}
	}
	e, tree, release, err := i.Cache.use(o.Version)
	if err != nil {
		return s, false, err
	}
	defer release()
	// The copy and what is installed of it are there at the same time; an older version goes only in between.
	if need := 2*e.TreeBytes>>20 + 64; s.FreeDiskMiB < need {
		return s, false, &SmallError{Resource: "disk", NeededMiB: need, FreeMiB: s.FreeDiskMiB}
	}
	if need := cmp.Or(i.MemoryMiB, 256); s.FreeMemoryMiB >= 0 && s.FreeMemoryMiB < need {
		return s, false, &SmallError{Resource: "memory", NeededMiB: need, FreeMiB: s.FreeMemoryMiB}
	}
	s, err = i.state(ctx, ctid, installTimeout,
		request{Do: doInstall, Version: o.Version, Graphics: o.Graphics, TreeBytes: e.TreeBytes},
		func(w io.Writer) error { return writeTree(w, tree) }, progress)
	if err != nil {
		return State{}, false, i.cleaned(ctx, ctid, err)
	}
	return s, true, nil
}

// Remove removes what NVIDIA's installer put into a running container. The error is [ErrNotRemovable], an
// [*InstallError] or one of Inspect's.
func (i *Installer) Remove(ctx context.Context, ctid int32) (State, error) {
	unlock, err := i.locks.Lock(ctx, ctid)
	if err != nil {
		return State{}, err
	}
	defer unlock()
	s, err := i.state(ctx, ctid, removeTimeout, request{Do: doRemove}, nil, nil)
	if err != nil {
		return State{}, i.cleaned(ctx, ctid, err)
	}
	return s, nil
}

// cleaned removes what a process in a container left, unless that could say itself what went wrong.
func (i *Installer) cleaned(ctx context.Context, ctid int32, err error) error {
	if _, ok := errors.AsType[*InstallError](err); ok || errors.Is(err, ErrNotRemovable) {
		return err
	}
	// The caller may have gone, and that is why there is something to remove.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	// If this fails too, the container is most likely down; the next installation removes it first.
	_, _ = i.call(ctx, ctid, cleanTimeout, request{Do: doClean}, nil, nil)
	return err
}

// state is call for what is answered with a state.
func (i *Installer) state(ctx context.Context, ctid int32, timeout time.Duration, r request, feed func(io.Writer) error, progress func(Progress) error) (State, error) {
	m, err := i.call(ctx, ctid, timeout, r, feed, progress)
	if err != nil {
		return State{}, err
	}
	if m.State == nil {
		return State{}, fmt.Errorf("%w: no state", ErrHelper)
	}
	return *m.State, m.State.check()
}

// call has the process in a container do something, and returns its last message.
func (i *Installer) call(ctx context.Context, ctid int32, timeout time.Duration, r request, feed func(io.Writer) error, progress func(Progress) error) (message, error) {
	program, err := i.Attacher.Program()
	if err != nil {
		return message{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in, w := io.Pipe()
	answers, complaint := &answers{progress: progress}, &tail{max: maxOutput}
	process, err := i.Attacher.Start(ctx, attach.Command{
		CTID:  ctid,
		Argv:  []string{"/proc/self/fd/3", Argument}, // the first of Files is descriptor 3
		Files: []*os.File{program},
		Stdin: in, Stdout: answers, Stderr: complaint,
		Timeout: timeout,
	})
	if err != nil {
		return message{}, err
	}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		// Stdin stays open until the process has ended: it takes its end for the agent's.
		if err := send(w, r, feed); err != nil {
			cancel(fmt.Errorf("copy the installer to the container: %w", err))
		}
	}()
	exit, err := process.Wait()
	in.CloseWithError(io.ErrClosedPipe)
	<-fed
	if err != nil && answers.err == nil {
		return message{}, err
	}
	return answers.result(exit, complaint)
}

func send(w io.Writer, r request, feed func(io.Writer) error) error {
	b, err := json.Marshal(r)
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	if err == nil && feed != nil {
		err = feed(w)
	}
	if errors.Is(err, io.ErrClosedPipe) {
		return nil // the process has ended, and says why
	}
	return err
}

// answers takes what the process says.
type answers struct {
	progress func(Progress) error

	phase Phase     // that it last spoke of
	told  time.Time // when progress was last called
	rest  []byte    // of a line that is not complete
	last  message
	err   error
}

// maxAnswer bounds a line of the process, which the container may have altered.
const maxAnswer = 1 << 20

// Write implements [io.Writer].
func (a *answers) Write(b []byte) (int, error) {
	a.rest = append(a.rest, b...)
	for {
		line, rest, found := bytes.Cut(a.rest, []byte("\n"))
		if !found {
			break
		}
		if a.err = a.take(line); a.err != nil {
			return 0, a.err
		}
		a.rest = rest
	}
	if len(a.rest) > maxAnswer {
		a.err = fmt.Errorf("%w: a line is too long", ErrHelper)
		return 0, a.err
	}
	return len(b), nil
}

func (a *answers) take(line []byte) error {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("%w: %w", ErrHelper, err)
	}
	if m.Progress == nil {
		a.last = m
		return nil
	}
	p := *m.Progress
	order := []Phase{Copy, Install, Check}
	at := slices.Index(order, p.Phase)
	if at < 0 || at < slices.Index(order, a.phase) || p.Done < 0 || p.Total < 0 {
		return fmt.Errorf("%w: progress of %q", ErrHelper, printable(string(p.Phase)))
	}
	// The process speaks a few times a second, and what a container has made of it not more often.
	if a.progress == nil || p.Phase == a.phase && time.Since(a.told) < 100*time.Millisecond {
		return nil
	}
	a.phase, a.told = p.Phase, time.Now()
	return a.progress(p)
}

// result is what came of it.
func (a *answers) result(exit attach.Exit, complaint *tail) (message, error) {
	switch {
	case a.err != nil:
		return message{}, a.err
	case a.last.Failure != nil && a.last.Failure.NotRemovable:
		return message{}, ErrNotRemovable
	case a.last.Failure != nil:
		const most = 1 << 10
		f := a.last.Failure
		return message{}, &InstallError{
			Message: printable(f.Message[:min(len(f.Message), most)]),
			Output:  printable(f.Output[max(len(f.Output)-maxOutput, 0):]),
		}
	case a.last.State != nil, a.last.CUDA != nil:
		return a.last, nil
	case exit.TimedOut:
		return message{}, fmt.Errorf("%w: it took too long", ErrHelper)
	case exit.NotStarted:
		return message{}, fmt.Errorf("%w: the helper cannot be executed there; is /proc mounted in the container?", ErrHelper)
	case exit.Code == 128+9:
		return message{}, fmt.Errorf("%w: the process in the container was killed; was the container stopped, or is its memory too small?", ErrHelper)
	}
	return message{}, fmt.Errorf("%w: it ended with status %d: %s", ErrHelper, exit.Code, complaint)
}

// check makes sure that a state, which the container may have altered, has only values that there are.
func (s *State) check() error {
	ok := (s.Libc == NoLibc || s.Libc == Glibc || s.Libc == Musl) &&
		(s.Kind == Absent || s.Kind == Complete || s.Kind == Incomplete) && len(s.Broken) <= 1000 && len(s.Packages) <= 1000
	for _, v := range []string{s.Version, s.CUDA} {
		ok = ok && (v == "" || CheckVersion(v) == nil)
	}
	for _, list := range [][]string{s.Broken, s.Packages} {
		for n, text := range list {
			list[n] = printable(text[:min(len(text), 200)])
		}
	}
	if !ok {
		return fmt.Errorf("%w: a state that there is not", ErrHelper)
	}
	return nil
}

// writeTree writes the extracted files as an archive, directories before what is in them.
func writeTree(w io.Writer, tree *os.Root) error {
	archive := tar.NewWriter(w)
	err := fs.WalkDir(tree.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		header := &tar.Header{Name: path, Mode: int64(info.Mode().Perm()), Typeflag: tar.TypeDir}
		switch info.Mode().Type() {
		case fs.ModeDir:
			return archive.WriteHeader(header)
		case fs.ModeSymlink:
			header.Typeflag = tar.TypeSymlink
			if header.Linkname, err = tree.Readlink(path); err != nil {
				return err
			}
			return archive.WriteHeader(header)
		}
		f, err := tree.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		header.Typeflag, header.Size = tar.TypeReg, info.Size()
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err = io.Copy(archive, f)
		return err
	})
	if err != nil {
		return err
	}
	return archive.Close()
}
