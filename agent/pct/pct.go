// Package pct starts and stops containers with Proxmox's pct, so that Proxmox's locks, hooks and task log see it.
package pct

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Runner runs pct. Its methods may be called concurrently; pct itself lets one change at a time work on a
// container and waits up to 10 s for its turn. Never call them for a CTID whose conf is locked by the caller.
//
// Every error of a command that ran is an [*Error]. The context ends a command with SIGTERM, which pct passes on
// to its worker. The worker may have done its work all the same: look at the container.
//
// On a container that is managed by Proxmox's HA stack, success means only that the request was accepted; [Runner.Run]
// tells.
type Runner struct {
	Path string // of pct; empty means /usr/sbin/pct
	Dir  string // where Proxmox keeps what LXC says on a start; empty means /run/pve
	// How long pct may take to end after SIGTERM, and how long children of it may keep its output open after its
	// end; 0 means 10 s. Then pct is killed, but its worker goes on, and keeps Proxmox's lock until it is done.
	Grace time.Duration
}

// An Action is what pct is to do.
type Action struct {
	Command string        // "start", "shutdown" or "stop"
	Timeout time.Duration // of a shutdown, rounded up to whole seconds
}

// Done is how a command ended that succeeded.
type Done struct {
	Requested bool   // the HA stack was asked to do it and has not done it yet
	Warnings  string // the task's output if it ended with warnings, the last 1 MiB
}

// Start starts a container and waits until it runs. Look at the container afterwards: pct cannot always tell.
func (r Runner) Start(ctx context.Context, ctid int32) error {
	_, err := r.Run(ctx, ctid, Action{Command: "start"})
	return err
}

// Shutdown asks the container's init to shut down and returns after the end of the container, when Proxmox has
// rewritten its conf. If it still runs after timeout, which is rounded up to whole seconds, the error is an
// [ErrStopTimeout]. Giving up can take twice the timeout and 10 s more.
func (r Runner) Shutdown(ctx context.Context, ctid int32, timeout time.Duration) error {
	_, err := r.Run(ctx, ctid, Action{Command: "shutdown", Timeout: timeout})
	return err
}

// Stop kills the container's processes and returns after the end of the container, when Proxmox has rewritten its
// conf.
func (r Runner) Stop(ctx context.Context, ctid int32) error {
	_, err := r.Run(ctx, ctid, Action{Command: "stop"})
	return err
}

// Run does what Start, Shutdown and Stop do, and tells how.
func (r Runner) Run(ctx context.Context, ctid int32, a Action) (Done, error) {
	args := []string{a.Command, strconv.Itoa(int(ctid))}
	if a.Command == "shutdown" {
		seconds := max(1, int64((a.Timeout+time.Second-1)/time.Second))
		args = append(args, "--timeout", strconv.FormatInt(seconds, 10))
	}
	begin := time.Now()
	output, err := r.run(ctx, ctid, args...)
	if e, ok := errors.AsType[*Error](err); ok {
		if a.Command == "start" && !strings.Contains(e.Output, "startup for container") {
			e.Log = r.StartLog(ctid, begin)
		}
		return Done{}, err
	}
	var done Done
	last := lastLine(output)
	done.Requested = requestText.MatchString(last)
	if warningsText.MatchString(last) {
		done.Warnings = output
	}
	return done, nil
}

// What pct prints last when it succeeded in a way of its own.
var (
	requestText  = regexp.MustCompile(`^Requesting HA (start|stop) for CT [0-9]+$`)
	warningsText = regexp.MustCompile(`^Task finished with [0-9]+ warning\(s\)!$`)
)

// maxLog is how much of LXC's log is kept, from its end.
const maxLog = 4 << 10

// StartLog returns the end of what LXC said on the container's last start (systemd puts its stderr there), at most 4 KiB,
// if that began after since; empty if there is none. A container that comes up and dies at once may say why here.
func (r Runner) StartLog(ctid int32, since time.Time) string {
	dir := r.Dir
	if dir == "" {
		dir = "/run/pve"
	}
	f, err := os.Open(fmt.Sprintf("%s/ct-%d.stderr", dir, ctid))
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.ModTime().Before(since.Truncate(time.Second)) {
		return ""
	}
	b, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-maxLog), maxLog))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (r Runner) run(ctx context.Context, ctid int32, args ...string) (string, error) {
	path := r.Path
	if path == "" {
		path = "/usr/sbin/pct"
	}
	grace := r.Grace
	if grace == 0 {
		grace = 10 * time.Second
	}
	output := &tail{max: maxOutput}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "LC_ALL=C.UTF-8"}
	// A worker's stdout and stderr both arrive on pct's stdout, pct's own last words on stderr: one stream keeps
	// their order.
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// SIGTERM to pct alone: it passes the signal on to the process group of its worker. After SIGKILL the worker
	// would live on and hold Proxmox's lock.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = grace

	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
		return output.String(), nil // pct succeeded; something that it left behind, a hookscript's child say, keeps its output open
	}
	if err == nil {
		return output.String(), nil
	}
	e := &Error{Command: args[0], CTID: ctid, Code: -1, Output: output.String()}
	if cmd.ProcessState == nil {
		e.cause = err
		return "", e
	}
	e.Code = cmd.ProcessState.ExitCode()
	e.signal = signalOf(cmd.ProcessState)
	if e.cause = ctx.Err(); e.cause == nil {
		e.cause = causeOf(ctid, e.Output)
	}
	return "", e
}

func signalOf(state *os.ProcessState) syscall.Signal {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal()
	}
	return 0
}

// maxOutput is how much of pct's output is kept, from its end. A container started with --debug can be verbose.
const maxOutput = 1 << 20

// A tail keeps the last max bytes written to it, or a little more.
type tail struct {
	max int
	buf []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
		t.cut = true
	}
	return len(p), nil
}

// String returns what is kept, with a mark in front if something is missing.
func (t *tail) String() string {
	buf := t.buf
	if len(buf) > t.max {
		buf = buf[len(buf)-t.max:]
	}
	if t.cut || len(t.buf) > t.max {
		return fmt.Sprintf("[only the last %d bytes]\n%s", len(buf), buf)
	}
	return string(buf)
}
