package attach

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

var signals = map[string]unix.Signal{
	"HUP": unix.SIGHUP, "INT": unix.SIGINT, "QUIT": unix.SIGQUIT, "KILL": unix.SIGKILL,
	"TERM": unix.SIGTERM, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2, "WINCH": unix.SIGWINCH,
	"CONT": unix.SIGCONT, "STOP": unix.SIGSTOP, "TSTP": unix.SIGTSTP,
}

// Signal sends a signal to the command's process group. The name is HUP, INT, QUIT, KILL, TERM, USR1,
// USR2, WINCH, CONT, STOP or TSTP. Nothing happens if the command has ended.
func (p *Process) Signal(name string) error {
	sig, ok := signals[name]
	if !ok {
		return fmt.Errorf("no signal %.20q", name)
	}
	all, err := processes()
	if err != nil {
		return err
	}
	leader := p.cmd.Process.Pid
	group := leader
	for _, q := range all {
		if q.parent == leader && q.session != leader {
			group = q.group // lxc-attach made a session for the terminal in the container
		}
	}
	// lxc-attach is in the group of a command without a terminal, but must live to tell its status.
	for _, q := range all {
		if q.group == group && q.pid != leader {
			q.signal(sig)
		}
	}
	return nil
}

// end ends the command and returns when lxc-attach has ended.
func (p *Process) end(exited <-chan struct{}) {
	leader := p.cmd.Process.Pid
	sessions := p.signalSessions(nil, unix.SIGTERM)
	select {
	case <-exited:
	case <-time.After(grace):
	}
	// lxc-attach is not reaped yet, so the sessions' numbers cannot mean others.
	p.signalSessions(sessions, unix.SIGKILL)
	unix.Kill(leader, unix.SIGKILL)
	<-exited
}

// signalSessions sends a signal to all processes of the command's session, of lxc-attach's and of
// the given ones, and returns these sessions. lxc-attach itself is left to notice the command's
// end, unless there is no command yet.
func (p *Process) signalSessions(sessions []int, sig unix.Signal) []int {
	all, err := processes()
	if err != nil {
		return sessions
	}
	leader := p.cmd.Process.Pid
	sessions = append(sessions, leader)
	for _, q := range all {
		if q.parent == leader {
			sessions = append(sessions, q.session)
		}
	}
	found := false
	for _, q := range all {
		for _, s := range sessions {
			if q.session == s && q.pid != leader {
				if p.tty != nil && sig == unix.SIGTERM {
					q.signal(unix.SIGHUP) // interactive shells ignore SIGTERM
				}
				q.signal(sig)
				found = true
				break
			}
		}
	}
	if !found {
		unix.Kill(leader, sig)
	}
	return sessions
}

// process is a line of /proc/<pid>/stat.
type process struct{ pid, parent, group, session int }

func processes() ([]process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []process
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if q, ok := readProcess(pid); ok {
				all = append(all, q)
			}
		}
	}
	return all, nil
}

func readProcess(pid int) (process, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false // it has ended
	}
	// The name in parentheses may hold anything, parentheses too.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 4 {
		return process{}, false
	}
	q := process{pid: pid}
	for i, to := range []*int{&q.parent, &q.group, &q.session} {
		if *to, err = strconv.Atoi(string(fields[1+i])); err != nil {
			return process{}, false
		}
	}
	return q, true
}

// signal sends a signal to the process if the PID still means it.
func (q process) signal(sig unix.Signal) {
	fd, err := unix.PidfdOpen(q.pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, ok := readProcess(q.pid); ok && now.session == q.session {
		unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}

// waitExit returns when a child has ended, and leaves it to be reaped.
func waitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
