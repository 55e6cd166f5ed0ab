package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long Down waits for the kernel to take down what nobody uses any more.
const patience = 10 * time.Second

// Down ends and removes everything of the sandbox in dir, whatever state it is in, then looks whether
// anything is left. It tells out what it removed and returns whether there was anything. What is left is
// in the error.
func Down(ctx context.Context, dir string, out io.Writer) (found bool, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	d := &takedown{dir: dir, name: nameFor(dir), out: out}
	if s, err := Load(dir); err == nil {
		d.sandbox = s
	}
	defer d.closeNamespaces()
	for _, step := range []func() error{d.openNamespaces, d.processes, d.network, d.mounts, d.cliConfig, d.files, d.check} {
		err = errors.Join(err, step())
	}
	return d.found, err
}

type takedown struct {
	dir     string
	name    string
	out     io.Writer
	sandbox *Sandbox // nil: none, or only half a one
	found   bool
	// namespaces are the nodes' mount namespaces by node. They are kept open until the end, or the kernel could give
	// their numbers to others.
	namespaces map[string]*os.File
}

func (d *takedown) tell(format string, args ...any) {
	d.found = true
	fmt.Fprintf(d.out, format+"\n", args...)
}

func (d *takedown) openNamespaces() error {
	d.namespaces = map[string]*os.File{}
	if d.sandbox == nil {
		return nil
	}
	group, err := cgroupOf(d.name)
	if err != nil {
		return err
	}
	for _, n := range d.sandbox.Nodes {
		pids, err := group.sub(n.Name, "holder").pids()
		if err != nil || len(pids) == 0 {
			continue // it died: nobody can tell its namespace from a later one of the same number
		}
		if f, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pids[0])); err == nil {
			d.namespaces[n.Name] = f
		}
	}
	return nil
}

func (d *takedown) closeNamespaces() {
	for _, f := range d.namespaces {
		f.Close()
	}
}

func (d *takedown) processes() error {
	group, err := cgroupOf(d.name)
	if err != nil || !group.exists() {
		return err
	}
	pids, err := group.allPIDs()
	if err != nil {
		return err
	}
	if err := group.kill(patience); err != nil {
		return err
	}
	d.tell("ended %d processes", len(pids))
	cgroups := 0
	_ = group.walk(func(cgroup) error { cgroups++; return nil })
	if err := group.remove(patience); err != nil {
		return err
	}
	d.tell("removed %d cgroups", cgroups)
	return nil
}

// network removes the ends of the nodes' interfaces on this machine. They go by themselves soon after
// the last process of the node's network namespace; this does not wait for it.
func (d *takedown) network() error {
	links, err := d.links()
	if err != nil {
		return err
	}
	for _, link := range links {
		if err := ip("link", "delete", link); err != nil {
			if still, _ := d.links(); slices.Contains(still, link) {
				return err
			}
		}
		d.tell("removed network interface %s", link)
	}
	return nil
}

func (d *takedown) links() ([]string, error) {
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return nil, err
	}
	var links []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), d.name+".") {
			links = append(links, e.Name())
		}
	}
	return links, nil
}

// mounts undoes what may be mounted below the folder on this machine; Up mounts only inside the nodes.
func (d *takedown) mounts() error {
	points, err := d.mountPoints()
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
		d.tell("unmounted %s", point)
	}
	return nil
}

func (d *takedown) mountPoints() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4]+"/", d.dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points, lines.Err()
}

// cliConfig removes the CLI's configuration: that of the demo also if nothing is known about the sandbox.
func (d *takedown) cliConfig() error {
	paths := []string{DefaultCLIConfig}
	if d.sandbox != nil && d.sandbox.CLIConfig != "" {
		paths = []string{d.sandbox.CLIConfig}
	}
	for _, path := range paths {
		if !isOurs(path, d.dir) {
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		d.tell("removed %s", path)
		_ = os.Remove(filepath.Dir(path)) // if nothing else is in it
	}
	return nil
}

func (d *takedown) files() error {
	if _, err := os.Lstat(filepath.Join(d.dir, markerFile)); errors.Is(err, fs.ErrNotExist) {
		return nil // not ours
	} else if err != nil {
		return err
	}
	if err := os.RemoveAll(d.dir); err != nil {
		return err
	}
	d.tell("removed %s", d.dir)
	return nil
}

// check looks for anything that is left.
func (d *takedown) check() error {
	var left []error
	if group, err := cgroupOf(d.name); err == nil && group.exists() {
		left = append(left, fmt.Errorf("cgroup %s is left", group))
	}
	if links, _ := d.links(); len(links) > 0 {
		left = append(left, fmt.Errorf("network interfaces %v are left", links))
	}
	if points, _ := d.mountPoints(); len(points) > 0 {
		left = append(left, fmt.Errorf("mounts %v are left", points))
	}
	if _, err := os.Lstat(filepath.Join(d.dir, markerFile)); err == nil {
		left = append(left, fmt.Errorf("folder %s is left", d.dir))
	}
	return errors.Join(append(left, d.strayProcesses()...)...)
}

// strayProcesses finds processes that are in a node's mount namespace without being of the sandbox: a
// person's shell, say. They are not ended.
func (d *takedown) strayProcesses() []error {
	var left []error
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return []error{err}
	}
	for node, namespace := range d.namespaces {
		own, err := namespace.Stat()
		if err != nil {
			return []error{err}
		}
		for _, p := range processes {
			pid, err := strconv.Atoi(p.Name())
			if err != nil {
				continue
			}
			if its, err := os.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err == nil && os.SameFile(own, its) {
				left = append(left, fmt.Errorf("process %d, which the sandbox did not start, is still in node %s", pid, node))
			}
		}
	}
	return left
}
