package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A cgroup is a folder of the machine's cgroup2 tree.
type cgroup string

// cgroupOf is the cgroup of a sandbox. It may not exist.
func cgroupOf(name string) (cgroup, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// "36 35 0:30 / /sys/fs/cgroup rw,... shared:9 - cgroup2 cgroup2 rw,..."
		mount, filesystem, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if len(fields) > 4 && strings.HasPrefix(filesystem, "cgroup2 ") {
			return cgroup(filepath.Join(fields[4], name)), nil
		}
	}
	return "", errors.Join(errors.New("no cgroup2 mount on this machine"), lines.Err())
}

func (c cgroup) sub(names ...string) cgroup {
	return cgroup(filepath.Join(append([]string{string(c)}, names...)...))
}

func (c cgroup) exists() bool {
	_, err := os.Stat(string(c))
	return err == nil
}

func (c cgroup) create() error {
	return os.MkdirAll(string(c), 0o755)
}

// delegate gives the controllers that c has to its children, as systemd does. Those that cannot be
// given are left out: containers then have no such limits.
func (c cgroup) delegate() {
	b, err := os.ReadFile(filepath.Join(string(c), "cgroup.controllers"))
	if err != nil {
		return
	}
	for name := range strings.FieldsSeq(string(b)) {
		_ = os.WriteFile(filepath.Join(string(c), "cgroup.subtree_control"), []byte("+"+name), 0)
	}
}

// enter moves the calling process into c.
func (c cgroup) enter() error {
	return os.WriteFile(filepath.Join(string(c), "cgroup.procs"), []byte("0"), 0)
}

func (c cgroup) open() (*os.File, error) {
	return os.OpenFile(string(c), unix.O_PATH|unix.O_DIRECTORY, 0)
}

// pids are the processes directly in c.
func (c cgroup) pids() ([]int, error) {
	b, err := os.ReadFile(filepath.Join(string(c), "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for word := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// walk calls fn for c and every cgroup below it, children first.
func (c cgroup) walk(fn func(cgroup) error) error {
	entries, err := os.ReadDir(string(c))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := c.sub(e.Name()).walk(fn); err != nil {
				return err
			}
		}
	}
	return fn(c)
}

// allPIDs are the processes in c and below it.
func (c cgroup) allPIDs() ([]int, error) {
	var all []int
	err := c.walk(func(c cgroup) error {
		pids, err := c.pids()
		all = append(all, pids...)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
	return all, err
}

// kill ends every process in c and below it, and returns when they have gone.
func (c cgroup) kill(timeout time.Duration) error {
	err := os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	events := filepath.Join(string(c), "cgroup.events")
	return poll(timeout, func() error {
		b, err := os.ReadFile(events)
		if err != nil || strings.Contains(string(b), "populated 0") {
			return nil
		}
		pids, _ := c.allPIDs()
		return fmt.Errorf("processes %v in %s do not end", pids, c)
	})
}

// remove removes c and everything below it. No process may be left in it.
func (c cgroup) remove(timeout time.Duration) error {
	return poll(timeout, func() error {
		return c.walk(func(c cgroup) error {
			if err := unix.Rmdir(string(c)); err != nil && err != unix.ENOENT {
				return fmt.Errorf("remove cgroup %s: %w", c, err)
			}
			return nil
		})
	})
}

// poll calls fn until it returns nil, every few milliseconds until timeout; then it returns fn's error.
func poll(timeout time.Duration, fn func() error) error {
	deadline := time.After(timeout)
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-deadline:
			return err
		case <-tick.C:
		}
	}
}
