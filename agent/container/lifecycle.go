package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/pct"
)

// A DiedError says that a container came up, and that its init ended at once.
type DiedError struct {
	CTID int32
	Log  string // end of what LXC said on this start, at most 4 KiB; empty if it said nothing
}

func (e *DiedError) Error() string {
	return fmt.Sprintf("CTID %d came up, but its init ended at once%s", e.CTID, quoted(e.Log))
}

// An HAError says that Proxmox's HA stack accepted a request, and has not carried it out in time.
type HAError struct {
	CTID  int32
	Want  lxcmon.State // Stopped or Running
	After time.Duration
	Log   string // of a start: as in DiedError; empty if LXC has not failed to start it
	Err   error  // of a stop: why the request could not be taken back; nil if it was
}

func (e *HAError) Error() string {
	text := fmt.Sprintf("CTID %d is managed by Proxmox's HA stack, which accepted the request, but the HA manager has not ", e.CTID)
	switch {
	case e.Want == lxcmon.Running:
		return text + fmt.Sprintf("started it yet, after %v%s", e.After, quoted(e.Log))
	case e.Err != nil:
		return text + fmt.Sprintf("stopped it yet, after %v; it may do so later, because the request could not be taken back: %v", e.After, e.Err)
	}
	return text + fmt.Sprintf("stopped it yet, after %v; the request is taken back", e.After)
}

// quoted shows the last lines of LXC's log, at most four of them.
func quoted(log string) string {
	if log == "" {
		return ""
	}
	lines := strings.Split(log, "\n")
	return fmt.Sprintf("; LXC's log ends with %q", strings.Join(lines[max(0, len(lines)-4):], "\n"))
}

const (
	defaultHAPatience = time.Minute
	// unsure is how long a container may take to show itself after pct start: Proxmox goes on without knowing where it
	// cannot ask LXC (LXC.pm, monitor_start).
	unsure = 2 * time.Second
	// initPatience bounds the wait for init's first sleep.
	initPatience = time.Second
	look         = 10 * time.Millisecond
)

// Start runs pct start and returns when the container's init has come to rest. If init ends before, the error is a
// [*DiedError]; if Proxmox's HA stack is to start it and does not, an [*HAError].
func (p *Proxmox) Start(ctx context.Context, ctid int32) error {
	begin := time.Now()
	err := p.PCT.Start(ctx, ctid)
	if errors.Is(err, pct.ErrRequested) {
		err = p.awaitHA(ctx, ctid, lxcmon.Running, 0)
		if e, ok := errors.AsType[*HAError](err); ok {
			e.Log = p.PCT.StartLog(ctid, begin)
		}
	}
	if err != nil {
		return err
	}
	return p.settle(ctx, ctid, begin)
}

// settle waits until init has come to rest: seen asleep twice. One that cannot do its work ends without ever having
// slept, and LXC tells that a container runs only when its init has been executed (LXC 5.0.2; tried).
func (p *Proxmox) settle(ctx context.Context, ctid int32, begin time.Time) error {
	seen, asleep := false, 0
	for since := time.Now(); ; {
		state, err := p.LXC.State(ctid)
		switch {
		case err != nil:
			return nil // who started it will look himself, with more patience
		case state == lxcmon.Running:
			seen = true
			if p.sleeps(ctid) {
				asleep++
			}
			if asleep == 2 || time.Since(since) > initPatience {
				return nil
			}
		case state == lxcmon.Stopped:
			if log := p.PCT.StartLog(ctid, begin); seen || log != "" || time.Since(since) > unsure {
				return &DiedError{CTID: ctid, Log: log}
			}
		case state == lxcmon.Stopping || state == lxcmon.Aborting:
			seen = true
		case time.Since(since) > unsure:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(look):
		}
	}
}

// sleeps says whether the container's init waits for something.
func (p *Proxmox) sleeps(ctid int32) bool {
	pid, err := p.LXC.InitPID(ctid)
	if err != nil {
		return false
	}
	fields, err := p.stat(pid)
	return err == nil && string(fields[0]) == "S"
}

// Shutdown runs pct shutdown. If Proxmox's HA stack is to stop the container and does not, the error is an [*HAError].
func (p *Proxmox) Shutdown(ctx context.Context, ctid int32, timeout time.Duration) error {
	return p.stopped(ctx, ctid, timeout, p.PCT.Shutdown(ctx, ctid, timeout))
}

// Stop runs pct stop. Its errors are as those of Shutdown.
func (p *Proxmox) Stop(ctx context.Context, ctid int32) error {
	return p.stopped(ctx, ctid, 0, p.PCT.Stop(ctx, ctid))
}

// stopped waits for the HA stack, where that was asked to stop the container. A request that it has not carried out is
// taken back: it would stop the container later, when nobody starts it again.
func (p *Proxmox) stopped(ctx context.Context, ctid int32, timeout time.Duration, err error) error {
	if !errors.Is(err, pct.ErrRequested) {
		return err
	}
	err = p.awaitHA(ctx, ctid, lxcmon.Stopped, timeout)
	if e, ok := errors.AsType[*HAError](err); ok {
		// Whatever ended the wait, the request stands.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTimeout)
		defer cancel()
		e.Err = p.PCT.Withdraw(ctx, ctid)
	}
	return err
}

const withdrawTimeout = 30 * time.Second

// awaitHA waits until the HA stack has done what it was asked to. A monitor that does not answer is asked again.
func (p *Proxmox) awaitHA(ctx context.Context, ctid int32, want lxcmon.State, timeout time.Duration) error {
	begin := time.Now()
	limited, cancel := context.WithTimeout(ctx, timeout+cmp.Or(p.HAPatience, defaultHAPatience))
	defer cancel()
	for {
		if state, err := p.LXC.State(ctid); err == nil && state == want {
			return nil
		}
		select {
		case <-limited.Done():
			return &HAError{CTID: ctid, Want: want, After: time.Since(begin).Round(time.Second)}
		case <-time.After(10 * look):
		}
	}
}
