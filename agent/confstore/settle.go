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
	Written bool // the edit is in the conf, but may get lost
	Err     error
}

func (e *StoppingError) Error() string {
	outcome := "so its conf was not edited"
	if e.Written {
		outcome = "so the edit of its conf may get lost"
	}
	return fmt.Sprintf("CTID %d is stopping and its post-stop hook rewrites the conf, %s: %v", e.CTID, outcome, e.Err)
}
func (e *StoppingError) Unwrap() error { return e.Err }

// maxStops bounds how often one edit is made again because a stop undid it.
const maxStops = 5

// replace changes a conf when no post-stop hook is at work on it. If one began meanwhile it may have read the conf before
// our write and written it after: then replace looks again when it has ended, and makes the change again if that is lost.
func (s *Store) replace(ctx context.Context, ctid int32, ifDigest string, by Author, fn change, tell []func(Result) error) (Result, error) {
	if s.Settle == nil {
		return s.replaceOnce(ctx, ctid, ifDigest, by, fn, tell)
	}
	for stops := 0; ; stops++ {
		stopped, err := s.settle(ctx, ctid)
		if err != nil {
			return Result{}, err
		}
		r, err := s.replaceOnce(ctx, ctid, ifDigest, by, fn, tell)
		// The conf may be written: whether that lasts is looked at even if the caller has left.
		began, waitErr := s.stoppedSince(context.WithoutCancel(ctx), stopped)
		_, overwritten := errors.AsType[*DigestError](err)
		if !began || !r.Changed || err != nil && !overwritten {
			return r, err
		}
		if waitErr != nil {
			return Result{}, &StoppingError{CTID: ctid, Written: err == nil, Err: waitErr}
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
func (s *Store) settle(ctx context.Context, ctid int32) (stopped func(context.Context) (bool, error), err error) {
	limited, cancel := context.WithTimeout(ctx, s.stopWait())
	defer cancel()
	stopped, err = s.Settle(limited, ctid)
	if err != nil && ctx.Err() == nil {
		return nil, &StoppingError{CTID: ctid, Err: err}
	}
	return stopped, err
}

func (s *Store) stoppedSince(ctx context.Context, stopped func(context.Context) (bool, error)) (bool, error) {
	limited, cancel := context.WithTimeout(ctx, s.stopWait())
	defer cancel()
	return stopped(limited)
}

func (s *Store) stopWait() time.Duration { return orDefault(s.StopWait, 30*time.Second) }

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
