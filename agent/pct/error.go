package pct

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// What pct's output told; an [*Error] wraps at most one of them, or a [*LockedError], [*HookError] or [*DeviceError].
var (
	ErrStopTimeout = errors.New("container did not stop")
	ErrRunning     = errors.New("container is already running")
	ErrNotRunning  = errors.New("container is not running")
	ErrNotFound    = errors.New("container does not exist on this node")
	ErrTemplate    = errors.New("container is a template")
	ErrLockTimeout = errors.New("another process holds Proxmox's lock on the conf")
	ErrNoQuorum    = errors.New("node has no quorum")
	ErrHA          = errors.New("Proxmox's HA stack refused the request")
	ErrRequested   = errors.New("Proxmox's HA stack was asked to do it, and does it later")
)

// errStartFailed is for people alone: nothing follows from it but that the container did not start.
var errStartFailed = errors.New("LXC could not start the container")

// A HookError says that the container's hookscript refused, so that nothing was started.
type HookError struct {
	CTID  int32
	Phase string // "pre-start"
}

func (e *HookError) Error() string {
	return fmt.Sprintf("hookscript of CTID %d failed in its phase %s", e.CTID, e.Phase)
}

// A DeviceError says that the node lacks the device of a devN entry, so that the container cannot start.
type DeviceError struct {
	CTID int32
	Path string
	File bool // there is something, but no device
}

func (e *DeviceError) Error() string {
	if e.File {
		return fmt.Sprintf("%s, which a devN of CTID %d gives, is no device on the node", e.Path, e.CTID)
	}
	return fmt.Sprintf("the node has no %s, which a devN of CTID %d gives", e.Path, e.CTID)
}

// A LockedError says that the conf holds `lock: Lock`: an operation of Proxmox is under way, or crashed.
type LockedError struct {
	CTID int32
	Lock string // "backup" for example
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("CTID %d is locked (%s)", e.CTID, e.Lock)
}

// An Error is a command of pct that could not be run or did not succeed. It wraps what its output told, or the
// error of the context that ended it.
type Error struct {
	Command string // "start", "shutdown" or "stop"; "set" of ha-manager
	CTID    int32
	Code    int    // exit status; -1 if it did not run or was ended by a signal. Proxmox gives it no meaning
	Output  string // stdout and stderr together, the last 1 MiB; not always UTF-8
	Log     string // end of what LXC said on the container's start, at most 4 KiB; only if Output lacks it

	program string // "pct" or "ha-manager"
	signal  syscall.Signal
	cause   error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %d: ", cmp.Or(e.program, "pct"), e.Command, e.CTID)
	switch {
	case e.signal != 0:
		fmt.Fprintf(&b, "ended by signal %d (%s)", int(e.signal), e.signal)
	case e.Code >= 0:
		fmt.Fprintf(&b, "exit status %d", e.Code)
	default:
		b.WriteString("did not run")
	}
	if e.cause != nil {
		fmt.Fprintf(&b, ": %v", e.cause)
	}
	if last := lastLine(e.Output); last != "" {
		fmt.Fprintf(&b, ": %q", last)
		for _, line := range above(e.Output, startupText.MatchString(last)) {
			fmt.Fprintf(&b, "; %q", line)
		}
	}
	if e.Log != "" {
		fmt.Fprintf(&b, "; LXC's log ends with %q", lastLine(e.Log))
	}
	return b.String()
}

// startupText is the last line of a start that LXC failed; LXC's own words, the cause first, stand above it.
var startupText = regexp.MustCompile(`^startup for container '[0-9]+' failed$`)

// above returns at most three of the lines above the last that have something on them, 200 bytes of each: the first, or
// those nearest to the last, which are a hookscript's for example.
func above(output string, first bool) []string {
	var found []string
	lines := strings.Split(strings.TrimSpace(output), "\n")
	for _, line := range lines[:len(lines)-1] {
		if line = strings.TrimSpace(line); line != "" {
			found = append(found, line[:min(len(line), 200)])
		}
	}
	if first {
		return found[:min(len(found), 3)]
	}
	return found[max(0, len(found)-3):]
}

var lockFileText = regexp.MustCompile(`can't lock file '([^']*)'`)

// LockFile returns the path of the lock that pct waited for in vain, empty if that is not why it failed.
func (e *Error) LockFile() string {
	if m := lockFileText.FindStringSubmatch(lastLine(e.Output)); m != nil {
		return m[1]
	}
	return ""
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// lastLine returns the last line with something on it, where pct says why it gave up, at most 300 bytes of it.
func lastLine(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	if len(last) > 300 {
		last = last[:300] + "..."
	}
	return last
}

var lockedText = regexp.MustCompile(`^CT is locked \((.*)\)$`)

// causes are the beginnings of what Proxmox 8 and 9 print; see testdata. %d is the CTID.
var causes = []struct {
	text  string
	cause error
}{
	{"container did not stop", ErrStopTimeout},
	{"CT %d already running", ErrRunning},
	{"CT %d not running", ErrNotRunning},
	{"Configuration file 'nodes/", ErrNotFound}, // then <node>/lxc/<CTID>.conf' does not exist
	{"you can't start a CT if it's a template", ErrTemplate},
	{"can't lock file '", ErrLockTimeout},
	{"cluster not ready - no quorum?", ErrNoQuorum},
	{"command 'ha-manager ", ErrHA}, // then the arguments and how it ended
	{"startup for container '%d' failed", errStartFailed},
}

var (
	hookText   = regexp.MustCompile(`^hookscript error for [0-9]+ on ([a-z-]+): `)
	deviceText = regexp.MustCompile(`^Device (/.*) does not exist$`)
	fileText   = regexp.MustCompile(`^(/.*) is not a device$`)
)

// causeOf finds what the output of a failed command tells, nil if nothing known. Only the last line is believed: it
// is pct's own, those above may be from hooks or from the container.
func causeOf(ctid int32, output string) error {
	line := strings.TrimPrefix(lastLine(output), "trying to acquire lock...")
	if m := lockedText.FindStringSubmatch(line); m != nil {
		return &LockedError{CTID: ctid, Lock: m[1]}
	}
	if m := hookText.FindStringSubmatch(line); m != nil {
		return &HookError{CTID: ctid, Phase: m[1]}
	}
	if m := deviceText.FindStringSubmatch(line); m != nil {
		return &DeviceError{CTID: ctid, Path: m[1]}
	}
	if m := fileText.FindStringSubmatch(line); m != nil {
		return &DeviceError{CTID: ctid, Path: m[1], File: true}
	}
	for _, c := range causes {
		if strings.HasPrefix(line, strings.ReplaceAll(c.text, "%d", strconv.Itoa(int(ctid)))) {
			return c.cause
		}
	}
	return nil
}
