package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/attach"
)

// openTimeout bounds the open of one device. The driver of a broken GPU may never return.
const openTimeout = 2 * time.Second

// Main is the helper's side. The agent's main calls it, before anything else, when its first
// argument is [Argument]; args are those after it. It runs as root of a container: it reads the
// devices from stdin, writes the results to stdout and returns the exit status.
func Main(args []string) int {
	if status := attach.Begin(Argument, args); status != 0 {
		return status
	}
	var devices []Device
	if err := json.NewDecoder(io.LimitReader(os.Stdin, maxAnswer)).Decode(&devices); err != nil {
		fmt.Fprintln(os.Stderr, "read the devices:", err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(openAll(devices)); err != nil {
		fmt.Fprintln(os.Stderr, "write the results:", err)
		return 1
	}
	return 0
}

// openAll opens all devices at once. An open that hangs is left to the end of the process.
func openAll(devices []Device) []Result {
	expired := time.After(openTimeout)
	answers := make([]chan Result, len(devices))
	for i, d := range devices {
		answers[i] = make(chan Result, 1)
		go func() { answers[i] <- open(d) }()
	}
	results := make([]Result, len(devices))
	late := false
	for i, d := range devices {
		if !late {
			select {
			case results[i] = <-answers[i]:
				continue
			case <-expired:
				late = true
			}
		}
		select {
		case results[i] = <-answers[i]:
		default:
			results[i] = Result{Path: d.Path, Outcome: Timeout, Major: d.Major, Minor: d.Minor}
		}
	}
	return results
}

// open opens one device, after a look at what is there: opening something else could do anything.
func open(d Device) Result {
	r := Result{Path: d.Path, Major: -1, Minor: -1}
	fd, err := unix.Open(d.Path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return r.failed(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return r.failed(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		r.Outcome = NotADevice
		return r
	}
	r.Major, r.Minor = int(unix.Major(st.Rdev)), int(unix.Minor(st.Rdev))
	if d.Major >= 0 && r.Major != d.Major || d.Minor >= 0 && r.Minor != d.Minor {
		r.Outcome = WrongNumber
		return r
	}
	// By the descriptor, so that it is the same file; another mount of /proc gives another or none,
	// and then the numbers are not the ones seen above.
	access := unix.O_RDWR
	if d.ReadOnly {
		access = unix.O_RDONLY
	}
	opened, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), access|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return r.failed(err)
	}
	defer unix.Close(opened)
	var now unix.Stat_t
	if err := unix.Fstat(opened, &now); err != nil || now.Rdev != st.Rdev || now.Mode != st.Mode {
		return r.failed(unix.ESTALE)
	}
	r.Outcome = Opened
	return r
}

func (r Result) failed(err error) Result {
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		r.Outcome = Failed
		return r
	}
	r.Errno = unix.ErrnoName(errno)
	switch errno {
	case unix.ENXIO, unix.ENODEV:
		r.Outcome = NoDriver
	case unix.EPERM:
		r.Outcome = Denied
	case unix.EACCES:
		r.Outcome = NoPermission
	case unix.ENOENT, unix.ENOTDIR:
		r.Outcome = Absent
	default:
		r.Outcome = Failed
	}
	return r
}
