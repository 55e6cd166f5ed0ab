package lxcmon

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Settled tells whether a container runs steadily or has stopped for good: whether LXC's post-stop hook, in which Proxmox
// rewrites the conf, cannot be at work. While one that reboots is in its hook nobody answers, and the error is a timeout.
//
// The signs are LXC's state, which leaves the steady ones before the hook; its command socket, which is closed before the
// hook, except for a reboot; and its monitor, which lives until the hook has ended (lxc/start.c, lxc_end; tried with 5.0.2). The
// monitor's cgroup is no sign: LXC removes it before the hook.
func (c Client) Settled(ctid int32) (bool, error) {
	a, err := c.ask(ctid, cmdGetState, nil)
	if err == nil {
		err = a.failure()
	}
	if _, squatter := errors.AsType[*PeerError](err); squatter || errors.Is(err, ErrNotRunning) {
		lives, err := c.monitorLives(ctid)
		return err == nil && !lives, err
	}
	if err != nil {
		return false, fmt.Errorf("state of CTID %d: %w", ctid, err)
	}
	// A container that fails to start gets to the hook through Aborting; one that reboots is Stopped with its socket open.
	return slices.Contains([]State{Starting, Running, Freezing, Frozen, Thawed}, State(a.value)), nil
}

// monitorLives looks for a monitor that does not listen: one that begins, or one in its post-stop hook. Only a process
// of ours, which is root's, in our own namespaces is one, whatever those in containers and of other users call themselves.
func (c Client) monitorLives(ctid int32) (bool, error) {
	proc := cmp.Or(c.Proc, "/proc")
	processes, err := os.ReadDir(proc)
	if err != nil {
		return false, fmt.Errorf("monitor of CTID %d: %w", ctid, err)
	}
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(proc, p.Name(), "cmdline"))
		if err != nil || !c.isMonitor(string(cmdline), ctid) {
			continue // most likely it has ended
		}
		if ownedByUs(proc, p.Name()) && sameNamespace(proc, p.Name(), "net") && sameNamespace(proc, p.Name(), "pid") {
			return true, nil
		}
	}
	return false, nil
}

// isMonitor knows the two forms of a monitor's command line: lxc-start in the foreground, as Proxmox's unit runs it, and
// the title that it gives itself in the background.
func (c Client) isMonitor(cmdline string, ctid int32) bool {
	id := strconv.Itoa(int(ctid))
	if title, ok := strings.CutPrefix(cmdline, "[lxc monitor] "); ok {
		return strings.TrimRight(title, "\x00") == c.path()+" "+id
	}
	args := strings.Split(strings.TrimSuffix(cmdline, "\x00"), "\x00")
	if filepath.Base(args[0]) != "lxc-start" {
		return false
	}
	for _, arg := range args[1:] {
		if arg == id || arg == "-n"+id || arg == "--name="+id {
			return true
		}
	}
	return false
}

// ownedByUs says whether a process is of our user. The owner of its files in procfs does not tell: they are root's for any
// process that may not be dumped. Its effective UID alone does not either: anybody can run su with another name.
func ownedByUs(proc, pid string) bool {
	status, err := os.ReadFile(filepath.Join(proc, pid, "status"))
	uid := os.Geteuid()
	return err == nil && strings.Contains(string(status), fmt.Sprintf("\nUid:\t%d\t%d\t", uid, uid))
}

// sameNamespace compares a process's namespace with ours. One that has ended has none.
func sameNamespace(proc, pid, kind string) bool {
	theirs, err := os.Stat(filepath.Join(proc, pid, "ns", kind))
	if err != nil {
		return false
	}
	ours, err := os.Stat(filepath.Join(proc, "self", "ns", kind))
	return err == nil && os.SameFile(ours, theirs)
}
