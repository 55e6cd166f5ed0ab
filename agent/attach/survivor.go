package attach

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Survivor is a process that a command left behind.
type Survivor struct {
	PID     int    // the host's number
	Command string // its command line as it shows it, words parted by blanks, at most 200 bytes
}

// startLabelled starts the command in an audit session of its own, whose number it returns; 0 if the kernel has none.
//
// The number is the one thing that every descendant of a process keeps, whatever it does with its parents, process
// groups, sessions, descriptors and environment, and that the container can neither see in what S8 compares nor change
// (kernel/auditsc.c, audit_set_loginuid; without CAP_AUDIT_CONTROL on the host it can be set once only). The kernel
// draws a fresh one each time that a login UID is written. A login shell's lxc-attach has one as well.
func startLabelled(start func() error) (session uint32, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with this goroutine, so that nothing else is started from it and gets the label.
		runtime.LockOSThread()
		session = newAuditSession()
		err = start()
	}()
	<-done
	return session, err
}

// newAuditSession begins a new audit session for this thread.
func newAuditSession() uint32 {
	if os.WriteFile("/proc/thread-self/loginuid", []byte("0"), 0) != nil {
		return 0
	}
	return readAuditSession("/proc/thread-self")
}

func readAuditSession(proc string) uint32 {
	b, err := os.ReadFile(proc + "/sessionid")
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 32)
	if err != nil || n == 1<<32-1 { // unset
		return 0
	}
	return uint32(n)
}

// escaped returns the living processes of the command, which all others have left by now.
func (p *Process) escaped(seen []process) []Survivor {
	all, err := processes()
	if err != nil {
		return nil
	}
	var left []Survivor
	for _, q := range all {
		ours := p.session != 0 && readAuditSession(fmt.Sprintf("/proc/%d", q.pid)) == p.session
		ours = ours || slices.ContainsFunc(seen, func(s process) bool { return s.pid == q.pid && s.start == q.start })
		if ours && !q.dead && q.pid != p.cmd.Process.Pid {
			left = append(left, q.survivor())
		}
	}
	return left
}

// holders returns the processes other than this one that have one of the pipes open.
func holders(pipes []*os.File) []Survivor {
	var links []string
	for _, f := range pipes {
		if raw, err := f.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
					links = append(links, link)
				}
			})
		}
	}
	all, err := processes()
	if err != nil {
		return nil
	}
	var found []Survivor
	for _, q := range all {
		if q.pid != os.Getpid() && !q.dead && holds(q.pid, links) {
			found = append(found, q.survivor())
		}
	}
	return found
}

func holds(pid int, links []string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(names, func(name string) bool {
		link, err := os.Readlink(dir + "/" + name)
		return err == nil && slices.Contains(links, link)
	})
}

// commandWait bounds the wait for a command line: the kernel reads it from the process's memory, which the container can
// put on a file system that never answers.
const commandWait = 200 * time.Millisecond

func (q process) survivor() Survivor {
	read := make(chan string, 1)
	go func() {
		b, err := readStart(fmt.Sprintf("/proc/%d/cmdline", q.pid), 200)
		if err != nil {
			b = nil
		}
		read <- strings.TrimRight(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})), " ")
	}()
	s := Survivor{PID: q.pid}
	select {
	case s.Command = <-read:
	case <-time.After(commandWait):
	}
	if s.Command == "" {
		if b, err := readStart(fmt.Sprintf("/proc/%d/comm", q.pid), 20); err == nil {
			s.Command = "[" + strings.TrimSpace(string(b)) + "]"
		}
	}
	s.Command = printable(s.Command)
	return s
}

func readStart(path string, most int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, most)
	n, err := unix.Read(fd, b)
	return b[:max(n, 0)], err
}
