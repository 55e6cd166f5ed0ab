package attach

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var signals = map[string]unix.Signal{
	"HUP": unix.SIGHUP, "INT": unix.SIGINT, "QUIT": unix.SIGQUIT, "KILL": unix.SIGKILL,
	"TERM": unix.SIGTERM, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2, "WINCH": unix.SIGWINCH,
	"CONT": unix.SIGCONT, "STOP": unix.SIGSTOP, "TSTP": unix.SIGTSTP,
}

// poll is the time between two looks at the processes.
const poll = 10 * time.Millisecond

// Signal sends a signal to the command's process group. The name is HUP, INT, QUIT, KILL, TERM, USR1,
// USR2, WINCH, CONT, STOP or TSTP. Nothing happens if the command has ended.
func (p *Process) Signal(name string) error {
	sig, ok := signals[name]
	if !ok {
		return fmt.Errorf("no signal %.20q", name)
	}
	// lxc-attach takes some milliseconds to execute the command; a signal would end it before.
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for until := time.Now().Add(startWait); time.Now().Before(until); {
		all, err := processes()
		if err != nil {
			return err
		}
		if command, ok := p.command(all); ok {
			for _, q := range p.executed(all) {
				if q.group == command.group {
					q.signal(sig)
				}
			}
			return nil
		}
		select {
		case <-p.exited:
			return nil
		case <-tick.C:
		}
	}
	return fmt.Errorf("signal %s to the command in CTID %d: it has not been started yet", name, p.ctid)
}

// command finds the process of the command. It is a child of lxc-attach that has executed something
// else.
func (p *Process) command(all []process) (process, bool) {
	for _, q := range p.executed(all) {
		if q.parent == p.cmd.Process.Pid && !q.dead {
			return q, true
		}
	}
	return process{}, false
}

// executed returns the processes without lxc-attach and the children it has before the command is
// executed. They are in the same group and session as a command without a terminal, but must live:
// lxc-attach fails if its first child does, and it tells us the command's status.
func (p *Process) executed(all []process) []process {
	leader := p.cmd.Process.Pid
	attach, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", leader))
	if err != nil {
		return nil
	}
	var executed []process
	for _, q := range all {
		if q.pid == leader {
			continue
		}
		if q.parent == leader {
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", q.pid)); err != nil || exe == attach {
				continue
			}
		}
		executed = append(executed, q)
	}
	return executed
}

// end ends the command and everything in its sessions, and returns what escaped to sessions of its own.
func (p *Process) end() []Survivor {
	leader := p.cmd.Process.Pid
	members := members{leader: leader, sessions: map[int]bool{leader: true}}
	// Before the command is executed lxc-attach's child may drop a signal, so the command is told once more.
	type telling struct {
		pid     int
		command bool
	}
	told := map[telling]bool{}
	var family []process
	tick := time.NewTicker(poll)
	defer tick.Stop()
	over := time.After(p.grace)
wait:
	for {
		// Again and again, because lxc-attach may be about to start the command just now.
		all := members.list()
		if p.session == 0 {
			family = members.family(family)
		}
		_, running := p.command(all)
		if running {
			all = p.executed(all)
		}
		for _, q := range all {
			if told[telling{q.pid, running}] {
				continue
			}
			told[telling{q.pid, running}] = true
			if p.tty != nil {
				q.signal(unix.SIGHUP) // interactive shells ignore SIGTERM
			}
			q.signal(unix.SIGTERM)
			q.signal(unix.SIGCONT) // for one that is stopped
		}
		if len(told) == 0 {
			unix.Kill(leader, unix.SIGTERM)
		}
		select {
		case <-p.exited:
			break wait
		case <-over:
			break wait
		case <-tick.C:
		}
	}
	// A few times, because processes may fork between a look and a signal, lxc-attach too: so the last look comes after
	// its end. Nobody reaps it meanwhile, so the numbers of the sessions cannot come to mean others.
	for range 100 {
		ended := p.ended()
		left := append(members.list(), p.orphans()...)
		for _, q := range left {
			q.signal(unix.SIGKILL)
		}
		unix.Kill(leader, unix.SIGKILL)
		if ended && len(left) == 0 {
			break
		}
		<-tick.C
	}
	<-p.exited
	return p.escaped(family)
}

func (p *Process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// orphans returns the children of lxc-attach that have lost it in a session of their own before they executed anything.
func (p *Process) orphans() []process {
	if p.session == 0 {
		return nil
	}
	all, err := processes()
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(q process) bool {
		if q.dead || q.pid == p.cmd.Process.Pid || readAuditSession(fmt.Sprintf("/proc/%d", q.pid)) != p.session {
			return true
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", q.pid))
		// It may have executed itself again from memory, and is called /memfd:lxc-attach then.
		return err != nil || !strings.Contains(exe, filepath.Base(p.cmd.Path))
	})
}

// members finds the living processes of a command.
type members struct {
	leader   int          // lxc-attach
	sessions map[int]bool // its own and those that its children were seen in
}

// list returns the living processes of the sessions, without lxc-attach.
func (m members) list() []process {
	all, err := processes()
	if err != nil {
		return nil
	}
	for _, q := range all {
		if q.parent == m.leader {
			m.sessions[q.session] = true
		}
	}
	return slices.DeleteFunc(all, func(q process) bool {
		return !m.sessions[q.session] || q.pid == m.leader || q.dead
	})
}

// family returns the processes seen so far and the descendants that lxc-attach has now: with those whose parent is
// gone it is what a kernel without audit sessions lets us know.
func (m members) family(seen []process) []process {
	all, err := processes()
	if err != nil {
		return seen
	}
	known := map[int]bool{m.leader: true}
	for grown := true; grown; {
		grown = false
		for _, q := range all {
			if !known[q.parent] || known[q.pid] {
				continue
			}
			known[q.pid], grown = true, true
			if !slices.ContainsFunc(seen, func(s process) bool { return s.pid == q.pid && s.start == q.start }) {
				seen = append(seen, q)
			}
		}
	}
	return seen
}

// process is what /proc/<pid>/stat says of a process, in this PID namespace's numbers.
type process struct {
	pid, parent, group, session int

	start string // ticks after boot
	dead  bool   // and not reaped yet
}

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
	if len(fields) < 20 {
		return process{}, false
	}
	q := process{pid: pid, start: string(fields[19]), dead: fields[0][0] == 'Z' || fields[0][0] == 'X'}
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
