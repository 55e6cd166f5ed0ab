package engine

import (
	"context"
	"fmt"
	"time"

	"phoenix.internal/controller/node"
)

// How long a worker goes on, and how often it tries.
const (
	retryFor     = 2 * time.Minute // while a node is away, or something else holds what we need
	firstPause   = 200 * time.Millisecond
	longestPause = 5 * time.Second
	maxConflicts = 5 // times that something else changed what we were changing
)

// transient reports whether the same call may succeed later.
func transient(err error) bool {
	switch node.ReasonOf(err) {
	case node.ConfLockTimeout, node.ContainerStopping, node.NoQuorum, node.ConfFSUnavailable, node.Unreachable, node.ShuttingDown, node.LimitExceeded, node.InstallerUnavailable:
		return true
	}
	return false
}

// A pause grows from try to try until its deadline.
type pause struct {
	next     time.Duration
	deadline time.Time
}

func newPause(limit time.Duration) *pause {
	return &pause{next: firstPause, deadline: time.Now().Add(limit)}
}

// wait sleeps before the next try. It returns false if there is to be none: the deadline is over, ctx has ended, or
// the run was canceled.
func (p *pause) wait(ctx context.Context, stop <-chan struct{}) bool {
	if time.Now().Add(p.next).After(p.deadline) {
		return false
	}
	timer := time.NewTimer(p.next)
	defer timer.Stop()
	p.next = min(p.next*2, longestPause)
	select {
	case <-timer.C:
		return true
	case <-stop:
	case <-ctx.Done():
	}
	return false
}

// retry calls fn until it succeeds, fails for good, or there is to be no other try.
func (w *worker) retry(ctx context.Context, fn func() error) error {
	p := newPause(retryFor)
	for tries := 1; ; tries++ {
		err := fn()
		if err == nil || !transient(err) {
			return err
		}
		w.progress("waiting to try again: " + err.Error())
		if !p.wait(ctx, w.stop) {
			return fmt.Errorf("given up after %d tries: %w", tries, err)
		}
	}
}
