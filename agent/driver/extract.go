package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// extractTimeout bounds the work of a runfile on itself.
const extractTimeout = 10 * time.Minute

// unpack makes the tree of a verified runfile, and then the entry, which says that all is there. The runfile has no
// further use.
func (c *Cache) unpack(ctx context.Context, e *Entry, f *flight) error {
	f.set(Progress{Phase: Extract, Total: e.Bytes})
	if err := c.checkSpace(expansion * e.Bytes); err != nil {
		return err
	}
	work, err := os.MkdirTemp(c.path(e.Version), workPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, treeName) // a runfile refuses a directory that is there already
	err = runfileExtract(ctx, c.path(e.Version, partialName), tree)
	if err == nil {
		e.TreeBytes, err = checkTree(tree, e.Version)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return errors.Join(&InvalidError{Version: e.Version, Err: err}, c.forget(e.Version))
	}
	if err := syncFS(tree); err != nil {
		return err
	}
	// An agent that was killed may have left one without its entry.
	if err := os.RemoveAll(c.path(e.Version, treeName)); err != nil {
		return err
	}
	if err := os.Rename(tree, c.path(e.Version, treeName)); err != nil {
		return err
	}
	e.Fetched = time.Now().UTC()
	if err := replaceFile(c.path(e.Version, entryName), e); err != nil {
		return err
	}
	return errors.Join(os.Remove(c.path(e.Version, partialName)), os.Remove(c.path(e.Version, metaName)))
}

// runfileExtract has a runfile extract itself. It gets no network, nothing to write to but the tree's directory, and of
// root's power what unpacking needs; nothing of it outlives this function or this process: it is the first of a PID
// namespace of its own.
func runfileExtract(ctx context.Context, runfile, tree string) error {
	ended := make(chan error)
	go func() {
		// Never unlocked: the thread, which is confined for ever, ends with this goroutine.
		runtime.LockOSThread()
		ended <- confinedExtract(ctx, runfile, tree)
	}()
	return <-ended
}

func confinedExtract(ctx context.Context, runfile, tree string) error {
	ctx, cancel := context.WithTimeout(ctx, extractTimeout)
	defer cancel()
	if err := confine(filepath.Dir(tree)); err != nil {
		return fmt.Errorf("confine it: %w", err)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", runfile, "--extract-only", "--target", tree)
	cmd.Dir = filepath.Dir(tree)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/", "TMPDIR=" + cmd.Dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL, // sent when the thread ends that started it
		Setsid:     true,
	}
	cmd.WaitDelay = 5 * time.Second
	out := &tail{max: 2 << 10}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("extract it: %w: %s", err, out)
	}
	return nil
}

// checkTree makes sure that a tree holds the installer of a version, and nothing but files, directories and links; it
// returns the files' size.
func checkTree(tree, version string) (size int64, err error) {
	got, err := manifestVersion(tree)
	if err != nil {
		return 0, err
	}
	if got != version {
		return 0, fmt.Errorf("it is of version %.40q", got)
	}
	for _, name := range []string{installerName, "libnvidia-ml.so." + version} {
		if info, err := os.Lstat(filepath.Join(tree, name)); err != nil || !info.Mode().IsRegular() {
			return 0, fmt.Errorf("it holds no %s", name)
		}
	}
	err = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch info.Mode().Type() {
		case 0:
			size += info.Size()
		case fs.ModeDir, fs.ModeSymlink:
		default:
			return fmt.Errorf("%s in it is no file, directory or link", path)
		}
		return nil
	})
	return size, err
}

// manifestVersion returns the version that stands in the second line of .manifest (nvidia-installer, parse_manifest).
func manifestVersion(tree string) (string, error) {
	b, err := os.ReadFile(filepath.Join(tree, ".manifest"))
	if err != nil {
		return "", errors.New("it holds no .manifest")
	}
	_, rest, _ := bytes.Cut(b, []byte("\n"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return strings.TrimSpace(string(line)), nil
}

func syncFS(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncfs %s: %w", path, err)
	}
	return nil
}

// tail keeps the last bytes that are written to it.
type tail struct {
	max int
	b   []byte
}

// Write implements [io.Writer].
func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b...)
	if over := len(t.b) - t.max; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(b), nil
}

// String returns them without what could confuse a terminal.
func (t *tail) String() string {
	return printable(strings.ToValidUTF8(strings.TrimSpace(string(t.b)), "?"))
}
