package lxcmon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// retrySettle is how often a container that is about to stop is looked at again.
const retrySettle = 20 * time.Millisecond

// Settle returns when a container runs steadily or has stopped for good: when LXC's post-stop hook, in which Proxmox
// rewrites the conf, cannot be at work. The function it returns tells whether the container has begun to stop since, and
// then waits until it has settled anew. It must be called, once.
//
// The signs are LXC's state, which leaves the steady ones before the hook; its command socket, which is closed before the
// hook, except for a reboot; and its monitor, which lives until the hook has ended (lxc/start.c, lxc_end; tried with 5.0.2). The
// monitor's cgroup is no sign: LXC removes it before the hook.
func (c Client) Settle(ctx context.Context, ctid int32) (stopped func(context.Context) (bool, error), err error) {
	before, err := c.await(ctx, ctid)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (bool, error) {
		defer before.close()
		now := c.look(ctid)
		now.close()
		if now.settled && (before.conn == nil || now.conn != nil && before.lasts()) {
			return false, nil
		}
		after, err := c.await(ctx, ctid)
		after.close()
		return true, err
	}, nil
}

func (c Client) await(ctx context.Context, ctid int32) (look, error) {
	retry := time.NewTicker(retrySettle)
	defer retry.Stop()
	if deadline, ok := ctx.Deadline(); ok {
		// In the hook of a reboot the monitor lets everybody connect and answers nobody.
		c.Timeout = min(c.timeout(), max(time.Until(deadline), retrySettle))
	}
	for {
		l := c.look(ctid)
		if l.settled {
			return l, nil
		}
		l.close()
		select {
		case <-ctx.Done():
			return look{}, fmt.Errorf("wait for the end of the stop of CTID %d: %w", ctid, errors.Join(ctx.Err(), l.err))
		case <-retry.C:
		}
	}
}

// A look is what one look at a container showed.
type look struct {
	settled bool
	conn    *net.UnixConn // to the monitor, if there is one that answers; it ends with the monitor
	err     error         // why it is not known to be settled
}

func (c Client) look(ctid int32) look {
	// The connection is made before the state is asked for: whatever that answer says, the end of this monitor shows.
	conn, err := c.dial(ctid, time.Now().Add(c.timeout()))
	if _, squatter := errors.AsType[*PeerError](err); squatter || errors.Is(err, ErrNotRunning) {
		lives, err := c.monitorLives(ctid)
		return look{settled: err == nil && !lives, err: err}
	}
	if err != nil {
		return look{err: err}
	}
	state, err := c.State(ctid)
	return look{settled: err == nil && steady(state), conn: conn, err: err}
}

// steady says whether a state is one from before the post-stop hook. A container that fails to start gets there through
// Aborting; one that reboots is Stopped with its socket open.
func steady(s State) bool {
	switch s {
	case Starting, Running, Freezing, Frozen, Thawed:
		return true
	}
	return false
}

// lasts says whether the monitor that answered is still there.
func (l look) lasts() bool {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return false
	}
	lasts := false
	cerr := raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		lasts = err == unix.EAGAIN || err == unix.EINTR // it says nothing unasked: all else is its end
	})
	return lasts && cerr == nil
}

func (l look) close() {
	if l.conn != nil {
		l.conn.Close()
	}
}

// monitorLives looks for a monitor that does not listen: one that begins, or one in its post-stop hook. Only a process
// in our own namespaces is one, whatever those in containers call themselves.
func (c Client) monitorLives(ctid int32) (bool, error) {
	proc := cmp.Or(c.Proc, "/proc")
	processes, err := os.ReadDir(proc)
	if err != nil {
		return false, fmt.Errorf("monitor of CTID %d: %w", ctid, err)
	}
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(proc, p.Name(), "cmdline"))
		if err != nil || !c.isMonitor(string(cmdline), ctid) {
			continue // most likely it has ended
		}
		if sameNamespace(proc, p.Name(), "net") && sameNamespace(proc, p.Name(), "pid") {
			return true, nil
		}
	}
	return false, nil
}

// isMonitor knows the two forms of a monitor's command line: lxc-start in the foreground, as Proxmox's unit runs it, and
// the title that it gives itself in the background.
func (c Client) isMonitor(cmdline string, ctid int32) bool {
	id := strconv.Itoa(int(ctid))
	if title, ok := strings.CutPrefix(cmdline, "[lxc monitor] "); ok {
		return strings.TrimRight(title, "\x00") == c.path()+" "+id
	}
	args := strings.Split(strings.TrimSuffix(cmdline, "\x00"), "\x00")
	if filepath.Base(args[0]) != "lxc-start" {
		return false
	}
	for _, arg := range args[1:] {
		if arg == id || arg == "-n"+id || arg == "--name="+id {
			return true
		}
	}
	return false
}

// sameNamespace compares a process's namespace with ours. One that has ended has none.
func sameNamespace(proc, pid, kind string) bool {
	theirs, err := os.Stat(filepath.Join(proc, pid, "ns", kind))
	if err != nil {
		return false
	}
	ours, err := os.Stat(filepath.Join(proc, "self", "ns", kind))
	return err == nil && os.SameFile(ours, theirs)
}
