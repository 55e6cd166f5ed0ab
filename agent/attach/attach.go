// Package attach runs processes inside LXC containers by way of lxc-attach, without leaking anything
// of this process into them: no descriptor, no environment, no terminal.
//
// The container is taken to be hostile: it chooses the bytes of the output, their amount and their
// end, and whether the command ever ends.
package attach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that say that the command was not run. One that could not be executed is an answer instead: see
// [Exit.NotStarted].
var (
	ErrAttach      = errors.New("cannot enter the container")
	ErrNoUser      = errors.New("the container has no such user")
	ErrNoDirectory = errors.New("cannot change to the directory in the container")
	ErrRestarted   = errors.New("the container was started anew before the command could begin")
)

// Causes with which a command's own limits end it.
var (
	errTimeout = errors.New("the command's timeout is over")
	errIdle    = errors.New("the command was idle for too long")
)

// An Attacher starts processes in containers. The zero value uses the node's own LXC.
type Attacher struct {
	Path    string        // lxc-attach; empty: /usr/bin/lxc-attach
	LXCPath string        // directory of the containers; empty: /var/lib/lxc
	Grace   time.Duration // between SIGTERM and SIGKILL for a command that is to end; 0: 5 s
	Drain   time.Duration // for a child that a command left behind to close the output; 0: 5 s
	Helper  *Helper       // starts commands with a User or Dir; nil: a copy of the running program
}

// A Command is a command to run in a container, with lxc-attach's default environment, which is PATH, "container=lxc" and
// what the container's conf sets.
type Command struct {
	CTID int32
	Argv []string // at least the program; without a slash it is looked up in the container's PATH
	Env  []string // further variables, NAME=VALUE; see [CheckEnv]

	// User is NAME, UID, NAME:GROUP or UID:GID, looked up in the container's own /etc/passwd and /etc/group; empty is
	// root. HOME, USER and LOGNAME are set for one that is given, unless Env has them. Dir is the absolute working
	// directory, which the user must be allowed to enter; empty is /. Both need /proc to be mounted in the container.
	User, Dir string

	// Init is the process that must be the container's init when the command begins, in its PID namespace; the zero value
	// is any. Like User it needs /proc in the container.
	Init Init

	// With TTY the command has a terminal of Columns by Rows (0: 80 by 24), which takes Stdin and
	// gives Stdout; Stderr is not used.
	TTY           bool
	Columns, Rows int

	// Stdin is copied to the command through a pipe; nil is an empty stdin. A Read that is under way
	// when the command ends is not waited for: the caller ends it.
	Stdin io.Reader

	// Output is written as it comes, in pieces of at most 16 KiB; nil discards it. A Write that
	// blocks makes the command wait. It must return when the context of Start is done. If it fails,
	// the command is ended.
	Stdout, Stderr io.Writer

	Timeout time.Duration // after which the command is ended; 0: none
	Idle    time.Duration // without a byte in either direction, after which the command is ended; 0: none
	Files   []*os.File    // descriptors 3 and up of the command, which then has no User, Dir and Init
}

// An Init is a process, told apart from all that have had its number or will have it.
type Init struct {
	PID        int
	StartTicks uint64 // since boot, as in /proc/<pid>/stat
}

// Exit is how a command ended.
type Exit struct {
	Code           int  // 0 to 255; 128 plus the signal's number, 126 not executable, 127 not found
	OutputComplete bool // false: something the command left behind still held its output
	TimedOut       bool // ended because of Command.Timeout
	IdledOut       bool // ended because of Command.Idle
	NotStarted     bool // the container has no such program, or it is not executable: Code is 127 or 126

	// Survivors are what lives on: if the command was ended, the processes that had escaped to sessions of their own;
	// otherwise, if OutputComplete is false, those that hold the output. They are the container's; nothing ends them.
	Survivors []Survivor
}

// A Process is a started command. Its methods may be called at the same time.
type Process struct {
	ctid   int32
	grace  time.Duration
	drain  time.Duration
	cmd    *exec.Cmd
	log    *os.File // what lxc-attach logged
	tty    *os.File // our side of the terminal; nil without
	report *os.File // what the launcher says; nil without
	pids   *os.File // PID namespace of Command.Init: as long as it is open, no other has its number
	cancel context.CancelCauseFunc

	session uint32 // audit session of the command's processes; 0: none
	idle    *idleTimer

	exited chan struct{} // closed when lxc-attach has ended, before it is reaped
	waited chan struct{} // closed when exit and err are set
	exit   Exit
	err    error
}

// Start starts a command. The container should be known to run: what lxc-attach says otherwise is
// an [ErrAttach] from [Process.Wait]. When ctx is done or the timeout is over, the command's
// processes get SIGTERM (SIGHUP before that with a terminal), and SIGKILL when the command has
// ended or Grace is over. One that has made a session of its own survives that, and is named in [Exit.Survivors].
func (a Attacher) Start(ctx context.Context, c Command) (*Process, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("run a command in CTID %d: %w", c.CTID, err)
	}
	log, err := newLog()
	if err != nil {
		return nil, fmt.Errorf("run a command in CTID %d: %w", c.CTID, err)
	}
	p := &Process{
		ctid:   c.CTID,
		grace:  cmp.Or(a.Grace, 5*time.Second),
		drain:  cmp.Or(a.Drain, 5*time.Second),
		log:    log,
		exited: make(chan struct{}),
		waited: make(chan struct{}),
	}
	var report *os.File
	if c.User != "" || c.Dir != "" || c.Init != (Init{}) {
		if report, err = p.launch(a, &c); err != nil {
			p.closeLogs()
			return nil, fmt.Errorf("run a command in CTID %d: %w", c.CTID, err)
		}
		defer report.Close()
	}
	p.cmd = exec.Command(cmp.Or(a.Path, "/usr/bin/lxc-attach"), a.args(c, log)...)
	p.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	p.cmd.Dir = "/"
	p.cmd.ExtraFiles = c.Files
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}

	streams, err := p.open(c)
	if err != nil {
		p.closeLogs()
		return nil, fmt.Errorf("run a command in CTID %d: %w", c.CTID, err)
	}
	// A library may have opened a descriptor without close-on-exec.
	err = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		p.session, err = startLabelled(p.cmd.Start)
	}
	streams.closeTheirs()
	if err != nil {
		streams.closeOurs()
		p.closeLogs()
		return nil, fmt.Errorf("run a command in CTID %d: %w: %w", c.CTID, ErrAttach, err)
	}

	ctx, p.cancel = context.WithCancelCause(ctx)
	if c.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, c.Timeout, errTimeout)
		context.AfterFunc(ctx, stop)
	}
	p.idle = newIdleTimer(c.Idle, func() { p.cancel(errIdle) })
	streams.moved = p.idle.reset
	streams.failed = func() bool { return failure(p.log) != "" }
	go p.run(ctx, streams)
	return p, nil
}

func (p *Process) closeLogs() {
	p.log.Close()
	for _, f := range []*os.File{p.report, p.pids} {
		if f != nil {
			f.Close()
		}
	}
}

func (c Command) check() error {
	if c.CTID < 100 || c.CTID > 999_999_999 {
		return errors.New("no such CTID")
	}
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return errors.New("no program")
	}
	if slices.ContainsFunc(c.Argv, func(s string) bool { return strings.ContainsRune(s, 0) }) {
		return errors.New("NUL in an argument")
	}
	for _, v := range c.Env {
		if err := CheckEnv(v); err != nil {
			return err
		}
	}
	if strings.ContainsAny(c.User, "\x00,/\n") || len(c.User) > 128 {
		return fmt.Errorf("user %.40q: not NAME, UID, NAME:GROUP or UID:GID", c.User)
	}
	if c.Dir != "" && (c.Dir[0] != '/' || strings.ContainsRune(c.Dir, 0)) {
		return fmt.Errorf("directory %.80q: not an absolute path", c.Dir)
	}
	if len(c.Files) > 0 && (c.User != "" || c.Dir != "" || c.Init != (Init{})) {
		return errors.New("descriptors together with a user, directory or init")
	}
	if c.TTY && (c.Columns < 0 || c.Columns > 4096 || c.Rows < 0 || c.Rows > 4096) {
		return fmt.Errorf("terminal of %d by %d: not 1 to 4096", c.Columns, c.Rows)
	}
	return nil
}

func (a Attacher) args(c Command, log *os.File) []string {
	args := []string{"-P", cmp.Or(a.LXCPath, "/var/lib/lxc"), "-n", strconv.Itoa(int(c.CTID)),
		// By its name in our /proc, so that lxc-attach inherits no descriptor for it.
		"-o", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), log.Fd()), "-l", "NOTICE", "--clear-env"}
	for _, v := range c.Env {
		args = append(args, "--set-var", v)
	}
	return append(append(args, "--"), c.Argv...)
}

// Wait waits until the command has ended and its output is written. The error is an [ErrAttach], the
// failure of a Write, or the cause why the context of Start is done; Exit is valid with the latter
// two. Wait may be called again.
func (p *Process) Wait() (Exit, error) {
	<-p.waited
	return p.exit, p.err
}

// Resize changes the size of the command's terminal.
func (p *Process) Resize(columns, rows int) error {
	if p.tty == nil {
		return errors.New("the command has no terminal")
	}
	if columns < 1 || columns > 4096 || rows < 1 || rows > 4096 {
		return fmt.Errorf("terminal of %d by %d: not 1 to 4096", columns, rows)
	}
	if err := setSize(p.tty, columns, rows); err != nil {
		select {
		case <-p.exited:
		default:
			return fmt.Errorf("resize the terminal of the command in CTID %d: %w", p.ctid, err)
		}
	}
	return nil
}

// run copies the streams, waits for the end and sets the result.
func (p *Process) run(ctx context.Context, s *streams) {
	defer close(p.waited)
	defer p.cancel(nil)
	defer p.closeLogs()
	defer p.idle.stop()

	copied := s.start(p.cancel)
	go func() {
		defer close(p.exited)
		waitExit(p.cmd.Process.Pid)
	}()
	select {
	case <-p.exited:
	case <-ctx.Done():
		p.exit.Survivors = p.end()
	}
	err := p.cmd.Wait()
	p.exit.Code = code(p.cmd.ProcessState)
	if _, ok := errors.AsType[*exec.ExitError](err); !ok && err != nil {
		p.err = fmt.Errorf("wait for lxc-attach of CTID %d: %w", p.ctid, err)
	}

	p.idle.stop() // the drain has its own limit
	s.expire(time.Now().Add(p.drain))
	if p.exit.OutputComplete = <-copied; !p.exit.OutputComplete && p.exit.Survivors == nil {
		p.exit.Survivors = holders(s.ours)
	}
	s.closeOurs()

	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errTimeout):
		p.exit.TimedOut = true
	case errors.Is(cause, errIdle):
		p.exit.IdledOut = true
	case cause != nil:
		p.err = fmt.Errorf("command in CTID %d: %w", p.ctid, cause)
	default:
		p.exit.NotStarted, err = p.started()
		if err != nil {
			p.err = fmt.Errorf("attach to CTID %d: %w", p.ctid, err)
		}
	}
}

// started says whether a command that ended by itself was not found or not executable; the error is why there was none
// at all.
func (p *Process) started() (notStarted bool, err error) {
	execFailed := p.exit.Code == 126 || p.exit.Code == 127
	var text string
	if p.exit.Code == 1 || execFailed {
		text = failure(p.log) // lxc-attach's own failure has these statuses too
	}
	if p.report == nil {
		if text != "" && p.exit.Code == 1 {
			return false, fmt.Errorf("%w: %s", ErrAttach, text)
		}
		return text != "" && execFailed, nil
	}
	switch kind, said := p.launched(); kind {
	case reportStarted:
		return false, nil
	case reportExec:
		return execFailed, nil
	case reportUser:
		return false, fmt.Errorf("%w: %s", ErrNoUser, said)
	case reportDirectory:
		return false, fmt.Errorf("%w: %s", ErrNoDirectory, said)
	case reportRestarted:
		return false, ErrRestarted
	case reportFailed:
		return false, fmt.Errorf("%w as that user: %s", ErrAttach, said)
	}
	if text == "" {
		text = fmt.Sprintf("the helper that was to start the command ended with status %d", p.exit.Code)
	}
	return false, fmt.Errorf("%w: %s", ErrAttach, text)
}

func code(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}

// CheckEnv says what is wrong with a variable given as NAME=VALUE.
func CheckEnv(v string) error {
	name, value, found := strings.Cut(v, "=")
	if !found {
		return fmt.Errorf("variable %.40q: not NAME=VALUE", v)
	}
	if name == "" || len(name) > 128 {
		return fmt.Errorf("variable %.40q: the name is empty or too long", v)
	}
	for i, r := range name {
		letter := r == '_' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return fmt.Errorf("variable %.40q: the name has a character other than letters, digits and _, or begins with a digit", v)
		}
	}
	return checkText(name, value)
}
