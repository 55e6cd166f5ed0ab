package lxcmon

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// An Init is the first process of a running container, told apart from every other process that has or will have its
// PID: one start of the container.
type Init struct {
	CTID  int32
	PID   int    // in our namespace
	Start int64  // clock ticks after boot: field 22 of /proc/PID/stat
	Boot  string // ID of the boot
}

// Instance returns the identity of the start, BOOT:PID:START.
func (i Init) Instance() string { return fmt.Sprintf("%s:%d:%d", i.Boot, i.PID, i.Start) }

// StrangerError says that the process which the monitor calls a container's init is in no cgroup of that container, so
// that whoever listens on its command socket is no monitor of it.
type StrangerError struct {
	CTID   int32
	PID    int
	Cgroup string // where it is; of the unified hierarchy if it has one
}

func (e *StrangerError) Error() string {
	return fmt.Sprintf("process %d, said to be the init of CTID %d, is in the cgroup %q, which is not that container's", e.PID, e.CTID, e.Cgroup)
}

// ChangedError says that a container is not the same start any more.
type ChangedError struct {
	CTID int32
	Was  Init
	Now  Init // zero: it does not run
}

func (e *ChangedError) Error() string {
	if e.Now == (Init{}) {
		return fmt.Sprintf("CTID %d has stopped meanwhile (its init was process %d)", e.CTID, e.Was.PID)
	}
	return fmt.Sprintf("CTID %d was started again meanwhile: its init was process %d (start %d) and is process %d (start %d)",
		e.CTID, e.Was.PID, e.Was.Start, e.Now.PID, e.Now.Start)
}

// Init returns the container's init, cross-checked: the process lives, is in a cgroup of the container, and its monitor
// names it after that was read as before. It wraps [ErrNotRunning] if there is none; a [*StrangerError] says that what
// answers must not be believed.
func (c Client) Init(ctid int32) (Init, error) {
	const attempts = 3 // it may be restarted while we look
	var failure error
	for range attempts {
		pid, err := c.InitPID(ctid)
		if err != nil {
			return Init{}, err
		}
		i, err := c.look(ctid, pid)
		again, againErr := c.InitPID(ctid)
		switch {
		case againErr != nil:
			return Init{}, againErr
		case again != pid:
			failure = fmt.Errorf("init of CTID %d: changed from process %d to %d while it was looked at", ctid, pid, again)
		default:
			return i, err
		}
	}
	return Init{}, failure
}

// Same returns nil if the container is still the same start, else a [*ChangedError], or why that cannot be told.
func (c Client) Same(was Init) error {
	now, err := c.Init(was.CTID)
	if errors.Is(err, ErrNotRunning) {
		return &ChangedError{CTID: was.CTID, Was: was}
	}
	if err != nil {
		return err
	}
	if now != was {
		return &ChangedError{CTID: was.CTID, Was: was, Now: now}
	}
	return nil
}

// look reads what there is to know of a process. A pidfd held meanwhile makes sure that it was one and the same.
func (c Client) look(ctid int32, pid int) (Init, error) {
	proc := cmp.Or(c.Proc, "/proc")
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return Init{}, fmt.Errorf("init of CTID %d: process %d: %w", ctid, pid, ErrNotRunning)
	}
	if err != nil {
		return Init{}, fmt.Errorf("init of CTID %d: pidfd of process %d: %w", ctid, pid, err)
	}
	defer unix.Close(fd)
	boot, err := os.ReadFile(proc + "/sys/kernel/random/boot_id")
	if err != nil {
		return Init{}, fmt.Errorf("identify this boot: %w", err)
	}
	start, startErr := startTicks(fmt.Sprintf("%s/%d", proc, pid))
	cgroups, cgroupErr := os.ReadFile(fmt.Sprintf("%s/%d/cgroup", proc, pid))
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); errors.Is(err, unix.ESRCH) {
		return Init{}, fmt.Errorf("init of CTID %d: process %d: %w", ctid, pid, ErrNotRunning)
	}
	if err := errors.Join(startErr, cgroupErr); err != nil {
		return Init{}, fmt.Errorf("init of CTID %d: process %d: %w", ctid, pid, err)
	}
	if !inPayload(cgroups, strconv.Itoa(int(ctid))) {
		return Init{}, &StrangerError{CTID: ctid, PID: pid, Cgroup: unified(cgroups)}
	}
	return Init{CTID: ctid, PID: pid, Start: start, Boot: string(bytes.TrimSpace(boot))}, nil
}

func startTicks(dir string) (int64, error) {
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses and may itself hold blanks and parentheses.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("%s/stat: too few fields", dir)
	}
	return strconv.ParseInt(string(fields[19]), 10, 64)
}

// lxcCgroup finds the parts of a path that LXC makes: for a container's processes lxc/CTID, as Proxmox sets it, or
// lxc.payload.CTID, LXC's own default, with "-1" and so on behind it if a leftover has that name; for its monitor
// lxc.monitor/CTID or lxc.monitor.CTID.
var lxcCgroup = regexp.MustCompile(`/lxc(?:\.(payload|monitor))?[./]([0-9]+)(?:-[0-9]+)?(?:/|$)`)

// inPayload says whether /proc/PID/cgroup shows a process of the container in any hierarchy, of any container if ctid is
// empty. The last part that LXC made counts, so that it works in a container too.
func inPayload(cgroups []byte, ctid string) bool {
	for line := range strings.Lines(string(cgroups)) {
		all := lxcCgroup.FindAllStringSubmatch(strings.TrimSuffix(line, "\n"), -1)
		if len(all) == 0 {
			continue
		}
		last := all[len(all)-1]
		if last[1] != "monitor" && (ctid == "" || last[2] == ctid) {
			return true
		}
	}
	return false
}

// unified returns the path in cgroup2, else the last there is.
func unified(cgroups []byte) string {
	path := ""
	for line := range strings.Lines(string(cgroups)) {
		hierarchy, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, path, _ = strings.Cut(rest, ":")
		if hierarchy == "0" {
			return path
		}
	}
	return path
}

// peerInContainer tells the cgroup of a living peer that is in a container: root of a privileged one that has the host's
// network can take a command socket too. The PID of SO_PEERCRED proves nothing, because a daemonised lxc-start, which
// called listen, is dead and its PID may be anybody's by now; a pidfd of the peer (Linux 6.5) is never anybody else's. With
// an older kernel, and for a peer that is dead, the answer is that nothing is known against it.
func peerInContainer(socket int) (pid int, cgroup string) {
	const soPeerPIDFD = 77 // asm-generic/socket.h
	fd, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, soPeerPIDFD)
	if err != nil {
		return 0, ""
	}
	defer unix.Close(fd)
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, ""
	}
	for line := range strings.Lines(string(info)) {
		if s, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, _ = strconv.Atoi(strings.TrimSpace(s)) // -1: dead
		}
	}
	if pid <= 0 {
		return 0, ""
	}
	if own, err := os.ReadFile("/proc/self/cgroup"); err != nil || inPayload(own, "") {
		return 0, "" // we are in a container ourselves, and so is everybody else
	}
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || unix.PidfdSendSignal(fd, 0, nil, 0) != nil || !inPayload(cgroups, "") {
		return 0, ""
	}
	return pid, unified(cgroups)
}
