package container

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/lxcmon"
)

// Recover looks for restarts that the end of an earlier agent interrupted and takes the locks of their containers, so
// that nobody else touches them. finish, which must be called, brings each container that ran before up again; its
// errors are about single containers.
func (m *Manager) Recover(ctx context.Context) (finish func(context.Context) error, err error) {
	intents, damaged := m.intents()
	unlocks := make([]func(), len(intents))
	for i, in := range intents {
		if unlocks[i], err = m.locks.Lock(ctx, in.CTID); err != nil {
			for _, unlock := range unlocks[:i] {
				unlock()
			}
			return nil, err
		}
	}
	ends := make([]func(), len(intents))
	for i, in := range intents {
		ends[i] = m.restarting.begin(in.CTID)
	}
	return func(ctx context.Context) error {
		errs := make([]error, len(intents))
		var wg sync.WaitGroup
		for i, in := range intents {
			wg.Go(func() {
				defer ends[i]()
				if err := m.resume(ctx, in, unlocks[i]); err != nil {
					errs[i] = fmt.Errorf("finish the restart of CTID %d: %w", in.CTID, err)
				}
			})
		}
		wg.Wait()
		return errors.Join(append(damaged, errs...)...)
	}, nil
}

const (
	// recoverTimeout bounds, with the timeout of the shutdown, the wait for a pct of the earlier agent that is still at work.
	recoverTimeout = 2 * time.Minute
	// pctGrace is how long a pct that the earlier agent started last may take until it holds Proxmox's lock: loading
	// its Perl takes 0.6 s on an idle machine.
	pctGrace = 3 * time.Second
)

// A verdict is what is to be done about an interrupted restart.
type verdict int

const (
	undecided verdict = iota
	underWay          // a pct is at work
	down              // the container is to be started
	settled           // nothing is left to do
)

// judge looks how far an interrupted restart got. quiet is for how long no pct has been at work.
func (m *Manager) judge(ctx context.Context, in intent, quiet time.Duration) (verdict, error) {
	running, err := m.Runtime.Observe(ctx, in.CTID, nil)
	switch {
	case err != nil:
		return undecided, err
	case m.Confs.Held(in.CTID):
		return underWay, nil
	case running.State == lxcmon.Stopped:
		return down, nil
	case running.State == lxcmon.Running && running.Instance != in.Instance:
		return settled, nil // it was started anew
	case quiet > in.Timeout+pctGrace+defaultHAPatience:
		return settled, nil // the stop had not begun, the container ignores it, or the HA stack was not asked to stop it
	}
	return undecided, nil
}

// resume finishes one restart. It holds the container's lock while a pct of the earlier agent may be at work. If there is
// none and the container still runs, that pct may have been killed with its agent after it had told the container to shut
// down: the container is then watched, without the lock, for as long as its shutdown may take.
func (m *Manager) resume(ctx context.Context, in intent, unlock func()) error {
	defer func() { unlock() }()
	locked := true
	quietSince := time.Now()
	deadline := quietSince.Add(2*(in.Timeout+5*time.Second) + recoverTimeout)
	for {
		v, err := m.judge(ctx, in, time.Since(quietSince))
		switch {
		case v == underWay:
			quietSince = time.Now()
		case v == undecided && locked && time.Since(quietSince) > pctGrace:
			unlock()
			locked = false
		case v == undecided:
		case !locked:
			// Look again when nobody else can act.
			if unlock, err = m.locks.Lock(ctx, in.CTID); err != nil {
				unlock = func() {}
				return err
			}
			locked = true
			if !m.isCurrent(in) {
				return nil
			}
			continue
		case v == settled:
			return m.dropIntent(in.CTID)
		case v == down:
			m.Log.Info("container found stopped in the middle of a restart", "ctid", in.CTID)
			release, err := m.slots.take(ctx, func() {})
			if err != nil {
				return err // the next agent tries again
			}
			defer release()
			// Not with ctx: an agent that is told to stop would break off the start, and take that for a bad conf.
			by := confstore.Author{Who: in.Who, OnBehalfOf: in.OnBehalfOf, Why: in.Why}
			err = m.start(context.WithoutCancel(ctx), in.CTID, RestartOptions{By: by}, func(Phase, string) {})
			if passing(err) {
				return err // the next agent tries again
			}
			return errors.Join(err, m.dropIntent(in.CTID))
		}
		if time.Now().After(deadline) {
			return errors.Join(errors.New("the stop that was under way has not ended"), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the stop that was under way: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
