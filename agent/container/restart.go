package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/pct"
	"phoenix.internal/agent/pveconf"
)

// A Phase is where a restart is.
type Phase int

// The phases of a restart.
const (
	Waiting Phase = iota + 1
	ShuttingDown
	Forcing
	Starting
	RollingBack
)

// Restart options; the zero value shuts down gracefully with the default timeout and then kills.
type RestartOptions struct {
	Timeout  time.Duration // for the graceful shutdown; 0 kills at once
	NoForce  bool          // fail instead of killing
	Instance string        // if not empty: restart only this start of the container
	Who      string
	Why      string
}

var (
	// ErrTemplate says that a template cannot run.
	ErrTemplate = errors.New("container is a template: it cannot be started")
	// ErrNotRunning says that the container does not run.
	ErrNotRunning = errors.New("container does not run")
)

// An InstanceError says that the container was started anew since the caller looked.
type InstanceError struct {
	CTID int32
	Got  string // the instance that runs now; empty if none does
}

func (e *InstanceError) Error() string {
	if e.Got == "" {
		return fmt.Sprintf("CTID %d stopped since it was looked at", e.CTID)
	}
	return fmt.Sprintf("CTID %d was started anew since it was looked at", e.CTID)
}

// A StartError says that a container did not come up and is stopped.
type StartError struct {
	CTID int32
	Err  error // of the start; joined with that of the roll-back if there was one
}

func (e *StartError) Error() string { return fmt.Sprintf("CTID %d did not start: %v", e.CTID, e.Err) }
func (e *StartError) Unwrap() error { return e.Err }

// A RolledBackError says that a container did not come up with our conf, and runs with the older one again.
type RolledBackError struct {
	CTID     int32
	Revision int64 // whose content is the conf again
	Err      error // of the start with the new conf
}

func (e *RolledBackError) Error() string {
	return fmt.Sprintf("CTID %d did not start with its new conf (%v); revision %d is its conf again and it runs with that",
		e.CTID, e.Err, e.Revision)
}
func (e *RolledBackError) Unwrap() error { return e.Err }

// startTimeout bounds pct start, which runs hookscripts and mounts storage.
const startTimeout = 5 * time.Minute

// Restart stops a container and starts it; a stopped one is only started. progress, called from this goroutine, is told
// of each phase as it begins. If the container does not come up and its conf is one that we wrote since it last ran, the
// old conf is put back and the container started with that: the error is then a [*RolledBackError], otherwise a
// [*StartError]. Other errors left the container as it was: confstore.ErrNotFound, [ErrTemplate],
// [*confstore.LockedError], confstore.ErrNoQuorum, [*InstanceError], pct.ErrStopTimeout, [*pct.Error].
func (m *Manager) Restart(ctx context.Context, ctid int32, opts RestartOptions, progress func(Phase, string)) (Container, error) {
	progress(Waiting, "")
	unlock, err := m.locks.Lock(ctx, ctid)
	if err != nil {
		return Container{}, err
	}
	defer unlock()

	running, err := m.mayRestart(ctx, ctid, opts.Instance)
	if err != nil {
		return Container{}, err
	}
	// From here on the container is down because we are restarting it: leaving with the caller would leave it down.
	// pct shutdown may take twice its timeout and five seconds (LXC.pm, vm_stop).
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*(opts.Timeout+5*time.Second)+2*startTimeout)
	defer cancel()

	intent := intent{CTID: ctid, Who: opts.Who, Why: opts.Why}
	if running.State != lxcmon.Stopped {
		intent.Instance = running.Instance
		if err := m.recordIntent(intent); err != nil {
			return Container{}, err
		}
		if err := m.stop(ctx, ctid, opts, progress); err != nil {
			return Container{}, errors.Join(err, m.dropIntent(ctid))
		}
	}
	err = m.start(ctx, ctid, opts, progress)
	if err := errors.Join(err, m.dropIntent(ctid)); err != nil {
		return Container{}, err
	}
	c, _, err := m.Get(ctx, ctid)
	return c, err
}

// mayRestart checks everything that would make a start fail, before anything is stopped.
func (m *Manager) mayRestart(ctx context.Context, ctid int32, instance string) (Running, error) {
	if err := m.Confs.Check(); err != nil {
		return Running{}, err // without quorum no container can start
	}
	b, err := m.Confs.Read(ctid)
	if err != nil {
		return Running{}, err
	}
	conf := pveconf.Parse(b)
	if isTrue(conf, "template") {
		return Running{}, fmt.Errorf("CTID %d: %w", ctid, ErrTemplate)
	}
	if lock, ok := conf.Property("lock"); ok && lock != "0" {
		return Running{}, &confstore.LockedError{CTID: ctid, Lock: lock}
	}
	running, err := m.Runtime.Observe(ctx, ctid, nil)
	if err != nil {
		return Running{}, err
	}
	if instance != "" && instance != running.Instance {
		return Running{}, &InstanceError{CTID: ctid, Got: running.Instance}
	}
	return running, nil
}

// stop returns when the container is stopped and Proxmox has rewritten its conf.
func (m *Manager) stop(ctx context.Context, ctid int32, opts RestartOptions, progress func(Phase, string)) error {
	if opts.Timeout > 0 {
		progress(ShuttingDown, "")
		err := m.Runtime.Shutdown(ctx, ctid, opts.Timeout)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, pct.ErrStopTimeout) && opts.NoForce:
			return err
		case !errors.Is(err, pct.ErrStopTimeout):
			// It may have ended by itself in the meantime; then there is nothing left to stop.
			if running, observeErr := m.Runtime.Observe(ctx, ctid, nil); observeErr != nil || running.State != lxcmon.Stopped {
				return errors.Join(err, observeErr)
			}
			return nil
		}
	}
	progress(Forcing, "")
	err := m.Runtime.Stop(ctx, ctid)
	if err == nil {
		return nil
	}
	if running, observeErr := m.Runtime.Observe(ctx, ctid, nil); observeErr == nil && running.State == lxcmon.Stopped {
		return nil
	}
	return err
}

// start starts a stopped container, with the old conf if it does not come up with a new one of ours.
func (m *Manager) start(ctx context.Context, ctid int32, opts RestartOptions, progress func(Phase, string)) error {
	progress(Starting, "")
	startErr := m.startOnce(ctx, ctid)
	if startErr == nil {
		return m.dropUnproven(ctid)
	}
	edit, ok, err := m.unproven(ctid)
	if err != nil {
		return &StartError{CTID: ctid, Err: fmt.Errorf("%w; and the journal of its conf: %w", startErr, err)}
	}
	if !ok || !m.confMeans(ctid, edit.After) {
		return &StartError{CTID: ctid, Err: startErr}
	}
	progress(RollingBack, startErr.Error())
	m.Log.Warn("container did not start with its new conf", "ctid", ctid, "revision", edit.Revision, "err", startErr)
	by := confstore.Author{Who: opts.Who, Why: fmt.Sprintf("roll-back: the container did not start (%s)", opts.Why)}
	if _, err := m.Confs.Restore(ctx, ctid, edit.Revision, "", by); err != nil {
		return &StartError{CTID: ctid, Err: fmt.Errorf("%w; its old conf could not be put back: revision %d: %w", startErr, edit.Revision, err)}
	}
	if err := m.startOnce(ctx, ctid); err != nil {
		return &StartError{CTID: ctid, Err: fmt.Errorf("%w; nor with its old conf, revision %d, which is in place again: %w", startErr, edit.Revision, err)}
	}
	return errors.Join(&RolledBackError{CTID: ctid, Revision: edit.Revision, Err: startErr}, m.dropUnproven(ctid))
}

// startOnce starts the container and looks whether it really runs: pct start may succeed without knowing (LXC.pm,
// monitor_start), and for a container under high availability it only passes on a request.
func (m *Manager) startOnce(ctx context.Context, ctid int32) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	startErr := m.Runtime.Start(ctx, ctid)
	if startErr != nil {
		if running, err := m.Runtime.Observe(ctx, ctid, nil); err == nil && running.State == lxcmon.Running {
			return nil // somebody else started it
		}
		return startErr
	}
	const patience = 10 * time.Second
	deadline := time.Now().Add(patience)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		running, err := m.Runtime.Observe(ctx, ctid, nil)
		switch {
		case err != nil:
			return err
		case running.State == lxcmon.Running:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("pct start succeeded, but after %v the container is %v", patience, running.State)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// confMeans says whether the conf on disk still means what we wrote; a stop may have rewritten its bytes.
func (m *Manager) confMeans(ctid int32, after []byte) bool {
	now, err := m.Confs.Read(ctid)
	if err != nil {
		return false
	}
	if bytes.Equal(now, after) {
		return true
	}
	ours, err := pveconf.Parse(after).Canonical()
	if err != nil {
		return false
	}
	theirs, err := pveconf.Parse(now).Canonical()
	return err == nil && bytes.Equal(ours, theirs)
}

// Recover looks for restarts that the end of an earlier agent interrupted and takes the locks of their containers, so
// that nobody else touches them. finish, which must be called, brings each container that ran before up again; its
// errors are about single containers.
func (m *Manager) Recover(ctx context.Context) (finish func(context.Context) error, err error) {
	intents, err := m.intents()
	if err != nil {
		return nil, err
	}
	unlocks := make([]func(), len(intents))
	for i, in := range intents {
		if unlocks[i], err = m.locks.Lock(ctx, in.CTID); err != nil {
			for _, unlock := range unlocks[:i] {
				unlock()
			}
			return nil, err
		}
	}
	return func(ctx context.Context) error {
		errs := make([]error, len(intents))
		var wg sync.WaitGroup
		for i, in := range intents {
			wg.Go(func() {
				defer unlocks[i]()
				if err := m.resume(ctx, in); err != nil {
					errs[i] = fmt.Errorf("finish the restart of CTID %d: %w", in.CTID, err)
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}, nil
}

const (
	// recoverTimeout bounds the wait for a pct of the earlier agent that is still at work.
	recoverTimeout = 2 * time.Minute
	// pctGrace is how long a pct that the earlier agent started last may take until it holds Proxmox's lock: loading
	// its Perl takes 0.6 s on an idle machine.
	pctGrace = 3 * time.Second
)

func (m *Manager) resume(ctx context.Context, in intent) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	quietSince := time.Now() // when the container was last seen with a pct at work on it
	for {
		running, err := m.Runtime.Observe(ctx, in.CTID, nil)
		if err != nil {
			return err
		}
		busy := m.Confs.Held(in.CTID)
		if busy {
			quietSince = time.Now()
		}
		switch {
		case running.State == lxcmon.Stopped && !busy:
			m.Log.Info("container found stopped in the middle of a restart", "ctid", in.CTID)
			err := m.start(ctx, in.CTID, RestartOptions{Who: in.Who, Why: in.Why}, func(Phase, string) {})
			return errors.Join(err, m.dropIntent(in.CTID))
		case running.State == lxcmon.Running && running.Instance != in.Instance:
			return m.dropIntent(in.CTID) // it was started anew
		case running.State == lxcmon.Running && time.Since(quietSince) > pctGrace:
			return m.dropIntent(in.CTID) // the stop had not begun
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the stop that was under way: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
