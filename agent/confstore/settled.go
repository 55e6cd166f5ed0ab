package confstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"phoenix.internal/agent/pveconf"
)

// A StoppingError says that a container which was about to stop was not done with it in time. Until then Proxmox's
// post-stop hook, which holds no lock, may write the conf as it read it before.
type StoppingError struct {
	CTID    int32
	Waited  time.Duration
	Written bool  // the edit is in the conf, but may get lost
	Err     error // why the container could not be looked at, if so
}

func (e *StoppingError) Error() string {
	outcome := "the conf was not edited"
	if e.Written {
		outcome = "the edit of the conf may get lost"
	}
	text := fmt.Sprintf("CTID %d is stopping, and its post-stop hook, which rewrites the conf, has not ended in %v: %s", e.CTID, e.Waited, outcome)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}
func (e *StoppingError) Unwrap() error { return e.Err }

const (
	// maxStops bounds how often one edit is made again because a stop undid it.
	maxStops = 5
	// A container that is about to stop is looked at again after firstLook, and ever more seldom up to lastLook: a look may
	// read all of /proc.
	firstLook = 10 * time.Millisecond
	lastLook  = 250 * time.Millisecond
)

// replace changes a conf when no post-stop hook is at work on it. One that began all the same may have read the conf before
// our write and write it after: then replace looks when it has ended, and makes the change again if that is lost.
func (s *Store) replace(ctx context.Context, ctid int32, ifDigest string, by Author, fn change, tell []func(Result) error) (Result, error) {
	for stops := 0; ; stops++ {
		if err := s.settle(ctx, ctid, false); err != nil {
			return Result{}, err
		}
		r, lasts, err := s.replaceOnce(ctx, ctid, ifDigest, by, fn, tell)
		_, overwritten := errors.AsType[*DigestError](err)
		if s.Settled == nil || lasts || !r.Changed || err != nil && !overwritten {
			return r, err
		}
		// The conf is written: what becomes of it is looked at even if the caller has left.
		if err := s.settle(context.WithoutCancel(ctx), ctid, err == nil); err != nil {
			return Result{}, err
		}
		now, err := s.Read(ctid)
		if err != nil {
			return Result{}, err
		}
		kept := Survives(r.After, now)
		lost := !kept && Survives(r.Before, now)
		if lost && stops < maxStops {
			ifDigest = digest(now)
			continue
		}
		if kept || !lost && holdsAlready(fn, now) {
			r.After, r.Digest = now, digest(now)
			return r, nil
		}
		// Somebody else wanted it so.
		return Result{}, &DigestError{CTID: ctid, Want: r.Digest, Got: digest(now)}
	}
}

// settle waits until no post-stop hook can be at work.
func (s *Store) settle(ctx context.Context, ctid int32, written bool) error {
	if s.Settled == nil {
		return nil
	}
	wait := orDefault(s.StopWait, 30*time.Second)
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		settled, err := s.Settled(ctid)
		if settled {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of the stop of CTID %d: %w", ctid, ctx.Err())
		case <-timeout.C:
			return &StoppingError{CTID: ctid, Waited: wait, Written: written, Err: err}
		case <-time.After(pause):
		}
	}
}

// lasts tells whether what was written stays: no post-stop hook is at work, and none that was has overwritten it. The
// caller holds the lock, so nobody else can have.
func (s *Store) lasts(ctid int32, written []byte) bool {
	if s.Settled == nil {
		return true
	}
	settled, _ := s.Settled(ctid) // what cannot be told now is waited for
	if !settled {
		return false
	}
	now, err := s.Read(ctid)
	return err == nil && bytes.Equal(now, written)
}

// Survives tells whether a conf that was written still is what it was for Proxmox: now is the same, or what a rewrite at a
// stop makes of it, which applies pending changes.
func Survives(written, now []byte) bool {
	if bytes.Equal(written, now) {
		return true
	}
	got, err := pveconf.Parse(now).Canonical()
	if err != nil {
		return false
	}
	f := pveconf.Parse(written)
	if want, err := f.Canonical(); err != nil || bytes.Equal(want, got) {
		return err == nil
	}
	if err := f.ApplyPending(); err != nil {
		return false
	}
	want, err := f.Canonical()
	return err == nil && bytes.Equal(want, got)
}

// holdsAlready says whether a conf has nothing left to change.
func holdsAlready(fn change, conf []byte) bool {
	after, err := fn(conf)
	return err == nil && bytes.Equal(after, conf)
}
