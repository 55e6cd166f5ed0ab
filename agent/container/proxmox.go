package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pct"
)

// Proxmox is the [Runtime] of a Proxmox VE host: LXC's command socket and /proc to observe, pct to act. The zero
// value is the real host.
type Proxmox struct {
	LXC  lxcmon.Client
	PCT  pct.Runner
	Proc string // root of procfs; empty means /proc
	// HAPatience is how long Proxmox's HA stack may take to carry out a request, on top of the time for a graceful
	// shutdown: its managers look around every ten seconds; 0 means 1 min.
	HAPatience time.Duration

	boot func() (bootInfo, error)
	once sync.Once
}

func (p *Proxmox) proc() string {
	if p.Proc == "" {
		return "/proc"
	}
	return p.Proc
}

// Observe asks the container's monitor for its state and looks at paths through the root of its init. It starts no
// process.
func (p *Proxmox) Observe(_ context.Context, ctid int32, paths []string) (Running, error) {
	state, err := p.LXC.State(ctid)
	if err != nil {
		return Running{}, fmt.Errorf("state of CTID %d: %w", ctid, err)
	}
	switch state {
	case lxcmon.Thawed: // LXC tells it at the end of a freeze
		state = lxcmon.Running
	case lxcmon.Freezing:
		state = lxcmon.Frozen
	}
	r := Running{State: state}
	if state != lxcmon.Running && state != lxcmon.Frozen {
		return r, nil
	}
	pid, err := p.LXC.InitPID(ctid)
	if errors.Is(err, lxcmon.ErrNotRunning) {
		return Running{State: lxcmon.Stopped}, nil
	} else if err != nil {
		return Running{}, fmt.Errorf("init of CTID %d: %w", ctid, err)
	}
	if r.Rules, err = p.rules(ctid); err != nil {
		return Running{}, err
	}
	idmap, err := p.LXC.ConfigItem(ctid, "lxc.idmap")
	if err != nil {
		return Running{}, fmt.Errorf("id map of CTID %d: %w", ctid, err)
	}
	r.UserNS = len(idmap) > 0

	// The root is opened before the start time is read, and the start time read again after: if both
	// readings agree, the root was that of this very process and not of one that took over its PID.
	root, err := unix.Open(fmt.Sprintf("%s/%d/root", p.proc(), pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Running{State: lxcmon.Stopped}, nil // it ended since we asked
	}
	defer unix.Close(root)
	before, err := p.startTicks(pid)
	if err != nil {
		return Running{State: lxcmon.Stopped}, nil
	}
	r.Found = make(map[string]File, len(paths))
	for _, path := range paths {
		if r.Found[path], err = lookAt(root, path); err != nil {
			return Running{}, fmt.Errorf("CTID %d: %w", ctid, err)
		}
	}
	if after, err := p.startTicks(pid); err != nil || after != before {
		return Running{State: lxcmon.Stopped}, nil
	}
	boot, err := p.bootInfo()
	if err != nil {
		return Running{}, err
	}
	r.InitPID, r.StartTicks = pid, uint64(before)
	r.Instance = fmt.Sprintf("%s:%d:%d", boot.id, pid, before)
	r.StartTime = boot.time.Add(time.Duration(before) * time.Second / userHZ)
	return r, nil
}

// rules returns the device rules that the container was started with. The key "lxc.cgroup2" lists every rule of every
// controller with its key, in the order of the configuration; the narrower keys would lose how allow and deny follow
// each other (LXC 5.0.2, confile.c, get_config_cgroup_controller; tried).
func (p *Proxmox) rules(ctid int32) ([]passthrough.RuleLine, error) {
	lines, err := p.LXC.ConfigItem(ctid, "lxc.cgroup2")
	if err != nil {
		return nil, fmt.Errorf("device rules of CTID %d: %w", ctid, err)
	}
	var rules []passthrough.RuleLine
	for _, line := range lines {
		key, value, ok := strings.Cut(line, " = ")
		if !ok {
			continue
		}
		switch key {
		case "lxc.cgroup2.devices.allow":
			rules = append(rules, passthrough.RuleLine{Value: value})
		case "lxc.cgroup2.devices.deny":
			rules = append(rules, passthrough.RuleLine{Deny: true, Value: value})
		}
	}
	return rules, nil
}

// lookAt tells what stands at an absolute path below root. The container chose everything below root: the path is
// resolved inside it, and nothing is opened. Whatever it did to keep us from the path, links in circles or a file system
// that lets nobody in, there is no device to be had there.
func lookAt(root int, path string) (File, error) {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSYS):
		return File{}, &os.PathError{Op: "openat2", Path: path, Err: err}
	case err != nil:
		return File{Kind: Absent}, nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return File{}, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return File{Kind: Other}, nil
	}
	return File{Kind: CharDevice, Major: int(unix.Major(st.Rdev)), Minor: int(unix.Minor(st.Rdev))}, nil
}

// startTicks is when pid was started, in clock ticks since boot: field 22 of /proc/PID/stat.
func (p *Proxmox) startTicks(pid int) (int64, error) {
	fields, err := p.stat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(fields[19]), 10, 64)
}

// stat returns the fields of /proc/PID/stat from the third, the process's state, to the 22nd at least.
func (p *Proxmox) stat(pid int) ([][]byte, error) {
	b, err := os.ReadFile(fmt.Sprintf("%s/%d/stat", p.proc(), pid))
	if err != nil {
		return nil, err
	}
	// The second field is the program's name in parentheses and may itself hold blanks and parentheses.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat: too few fields", pid)
	}
	return fields, nil
}

// userHZ is the kernel's clock tick as user space sees it: 100 on every architecture Proxmox runs on.
const userHZ = 100

// bootInfo identifies the present boot of the host.
type bootInfo struct {
	id   string
	time time.Time
}

func (p *Proxmox) bootInfo() (bootInfo, error) {
	p.once.Do(func() {
		p.boot = sync.OnceValues(func() (bootInfo, error) { return readBoot(p.proc()) })
	})
	return p.boot()
}

func readBoot(proc string) (bootInfo, error) {
	id, err := os.ReadFile(proc + "/sys/kernel/random/boot_id")
	if err != nil {
		return bootInfo{}, fmt.Errorf("identify this boot: %w", err)
	}
	stat, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return bootInfo{}, fmt.Errorf("identify this boot: %w", err)
	}
	for line := range strings.Lines(string(stat)) {
		if s, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
			if err != nil {
				return bootInfo{}, fmt.Errorf("time of boot: %w", err)
			}
			return bootInfo{id: strings.TrimSpace(string(id)), time: time.Unix(seconds, 0)}, nil
		}
	}
	return bootInfo{}, fmt.Errorf("%s/stat has no btime", proc)
}
