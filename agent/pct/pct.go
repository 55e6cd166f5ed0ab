// Package pct starts and stops containers with Proxmox's pct, so that Proxmox's locks, hooks and task log see it.
package pct

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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
// For a container that is managed by Proxmox's HA stack pct only passes on a request: the error is then an
// [ErrRequested] if it was accepted, and an [ErrHA] if not.
type Runner struct {
	Path      string // of pct; empty means /usr/sbin/pct
	HAManager string // path of ha-manager; empty means /usr/sbin/ha-manager
	Dir       string // where Proxmox keeps what LXC says on a start; empty means /run/pve
	// How long pct may take to end after SIGTERM, and how long children of it may keep its output open after its
	// end; 0 means 10 s. Then pct is killed, but its worker goes on, and keeps Proxmox's lock until it is done.
	Grace time.Duration
}

// Start starts a container and waits until it runs. Look at the container afterwards: pct cannot always tell.
func (r Runner) Start(ctx context.Context, ctid int32) error {
	begin := time.Now()
	err := r.pct(ctx, ctid, "start")
	if e, ok := errors.AsType[*Error](err); ok && e.Code != 0 && !strings.Contains(e.Output, "startup for container") {
		e.Log = r.StartLog(ctid, begin)
	}
	return err
}

// Shutdown asks the container's init to shut down and returns after the end of the container, when Proxmox has
// rewritten its conf. If it still runs after timeout, which is rounded up to whole seconds, the error is an
// [ErrStopTimeout]. Giving up can take twice the timeout and 10 s more.
func (r Runner) Shutdown(ctx context.Context, ctid int32, timeout time.Duration) error {
	seconds := max(1, int64((timeout+time.Second-1)/time.Second))
	return r.pct(ctx, ctid, "shutdown", "--timeout", strconv.FormatInt(seconds, 10))
}

// Stop kills the container's processes and returns after the end of the container, when Proxmox has rewritten its
// conf.
func (r Runner) Stop(ctx context.Context, ctid int32) error { return r.pct(ctx, ctid, "stop") }

// Withdraw takes back a request to stop a container that Proxmox's HA stack has accepted: the stack is to see that it
// runs. The error is an [*Error] whose command is "set".
func (r Runner) Withdraw(ctx context.Context, ctid int32) error {
	_, err := r.run(ctx, ctid, cmp.Or(r.HAManager, "/usr/sbin/ha-manager"),
		"set", fmt.Sprintf("ct:%d", ctid), "--state", "started") // what pct start itself calls (PVE/API2/LXC/Status.pm)
	return err
}

// requestText is the last line of a pct that has passed on a request.
var requestText = regexp.MustCompile(`^Requesting HA (start|stop) for CT [0-9]+$`)

func (r Runner) pct(ctx context.Context, ctid int32, command string, options ...string) error {
	args := append([]string{command, strconv.Itoa(int(ctid))}, options...)
	output, err := r.run(ctx, ctid, cmp.Or(r.Path, "/usr/sbin/pct"), args...)
	if err == nil && requestText.MatchString(lastLine(output)) {
		return &Error{Command: command, CTID: ctid, Output: output, program: "pct", cause: ErrRequested}
	}
	return err
}

// maxLog is how much of LXC's log is kept, from its end.
const maxLog = 4 << 10

// StartLog returns the end of what LXC said on the container's last start (systemd puts its stderr there), at most 4 KiB,
// if that began after since; empty if there is none. Of a container that came up and died at once it may say why.
func (r Runner) StartLog(ctid int32, since time.Time) string {
	f, err := os.Open(fmt.Sprintf("%s/ct-%d.stderr", cmp.Or(r.Dir, "/run/pve"), ctid))
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

func (r Runner) run(ctx context.Context, ctid int32, path string, args ...string) (string, error) {
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
	cmd.WaitDelay = cmp.Or(r.Grace, 10*time.Second)

	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
		return output.String(), nil // pct succeeded; something that it left behind, a hookscript's child say, keeps its output open
	}
	if err == nil {
		return output.String(), nil
	}
	e := &Error{Command: args[0], CTID: ctid, Code: -1, Output: output.String(), program: filepath.Base(path)}
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
