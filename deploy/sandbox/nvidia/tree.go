package nvidia

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Tree is where the files of a host are.
type Tree struct {
	Root  string // has proc, sys, dev and run: "/" on the host itself
	State string // path of the file that holds the Host, and beside which the lock lies
}

// Files of a node that no real host has.
const (
	// NVMLFile has the answers of the library, an [NVML].
	NVMLFile = "/run/phoenix-sandbox/nvml.json"
	// KernelLogFile is a regular file with the records of /dev/kmsg, one a line; see [Tree.Log].
	KernelLogFile = "/run/phoenix-sandbox/kernel.log"
)

// Host reads the host as it is.
func (t Tree) Host() (Host, error) {
	var h Host
	b, err := os.ReadFile(t.State)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("%s: %w", t.State, err)
	}
	return h, nil
}

// Change lets fn change the host, and makes /proc, /sys, the libraries and their answers agree with it. Files that stay as
// they are are not touched. If fn gives an error nothing is changed. Device nodes stay as they are; see
// [Tree.MakeNodes].
func (t Tree) Change(fn func(*Host) error) error {
	lock, err := os.OpenFile(t.State+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	h, err := t.Host()
	if err != nil {
		return err
	}
	if err := fn(&h); err != nil {
		return err
	}
	if err := t.write(&h); err != nil {
		return err
	}
	return t.lay(&h)
}

// Create writes the host's state where there is none yet. The next Change lays it out.
func (t Tree) Create(h Host) error { return t.write(&h) }

func (t Tree) write(h *Host) error {
	b, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return err
	}
	return replace(t.State, append(b, '\n'), 0o644)
}

// lay makes /proc, /sys and the library's answers those of h.
func (t Tree) lay(h *Host) error {
	want := h.entries()
	for _, dir := range ownDirs {
		if err := t.sweep(dir, want); err != nil {
			return err
		}
	}
	for path, e := range want {
		if err := t.put(path, e); err != nil {
			return err
		}
	}
	if err := t.layDevices(h); err != nil {
		return err
	}
	if err := t.layLibraries(h); err != nil {
		return err
	}
	b, err := json.MarshalIndent(h.nvml(), "", "  ")
	if err != nil {
		return err
	}
	return t.put(NVMLFile, entry{content: string(b) + "\n", mode: 0o644})
}

// sweep removes what is below dir and not wanted, and dir itself if nothing in it is.
func (t Tree) sweep(dir string, want map[string]entry) error {
	needed := map[string]bool{}
	for path := range want {
		for ; strings.HasPrefix(path+"/", dir+"/"); path = filepath.Dir(path) {
			needed[path] = true
		}
	}
	return filepath.WalkDir(filepath.Join(t.Root, dir), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		relative, err := filepath.Rel(t.Root, path)
		if err != nil || needed[relative] {
			return err
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
}

// put makes one entry right. A reader sees the old or the new one.
func (t Tree) put(path string, e entry) error {
	path = filepath.Join(t.Root, path)
	if e.mode.IsDir() {
		return os.MkdirAll(path, e.mode.Perm())
	}
	if e.target != "" {
		if now, err := os.Readlink(path); err == nil && now == e.target {
			return nil
		}
	} else if now, err := os.ReadFile(path); err == nil && string(now) == e.content {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if e.target == "" {
		return replace(path, []byte(e.content), e.mode)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(e.target, path)
}

func replace(path string, content []byte, mode fs.FileMode) error {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temporary, content, mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// layDevices writes /proc/devices. In a node it is bound over the machine's, so it has to stay the same file.
func (t Tree) layDevices(h *Host) error {
	path := filepath.Join(t.Root, "proc/devices")
	now, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	want := h.devicesFile(string(now))
	if want == string(now) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	// One write, and the rest cut off: a reader in between sees no half of it.
	_, err = f.WriteAt([]byte(want), 0)
	return errors.Join(err, f.Truncate(int64(len(want))), f.Close())
}
