package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"phoenix.internal/controller/node"
)

// rolloutWidth is how many containers of a run get another version of the driver at the same time: enough that a fleet
// does not wait for each, few enough that one bad version does not take it down.
const rolloutWidth = 3

// A rollout lets the containers of a run exchange a driver that they have for another version, a few at a time, each
// verified before the next begins. The first failure of a version on a node stops it there: those that have not begun
// keep the driver that they have.
type rollout struct {
	places chan struct{} // as many as may be at work

	mu     sync.Mutex
	failed map[driverOn]failedDriver
}

type driverOn struct{ node, version string }

type failedDriver struct {
	ctid int32
	err  error
}

func newRollout() *rollout {
	return &rollout{places: make(chan struct{}, rolloutWidth), failed: map[driverOn]failedDriver{}}
}

// A RolloutStoppedError says that a container keeps its driver because the new one failed in another container.
type RolloutStoppedError struct {
	Version string
	CTID    int32 // where it failed
	Err     error
}

func (e *RolloutStoppedError) Error() string {
	return fmt.Sprintf("driver %s failed in CTID %d, so this container keeps its own: %v", e.Version, e.CTID, e.Err)
}

func (e *RolloutStoppedError) Unwrap() error { return e.Err }

// enter waits for a place. Fails with a [*RolloutStoppedError]. Who has entered must leave, with what came of it.
func (r *rollout) enter(ctx context.Context, stop <-chan struct{}, on driverOn) (leave func(ctid int32, err error), err error) {
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-stop:
		return nil, errCanceled
	case r.places <- struct{}{}:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, ok := r.failed[on]; ok {
		<-r.places
		return nil, &RolloutStoppedError{Version: on.version, CTID: f.ctid, Err: f.err}
	}
	return func(ctid int32, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if err != nil && !refused(err) {
			r.failed[on] = failedDriver{ctid, err}
		}
		<-r.places
	}, nil
}

// leave gives the container's place in the rollout up, if it has one.
func (w *worker) leave(err error) {
	if w.leaveRollout != nil {
		w.leaveRollout(w.ctid(), err)
		w.leaveRollout = nil
	}
}

// refused reports whether an installation was refused for what the one container is, before anything was done in it. That
// says nothing about the others.
func refused(err error) bool {
	e, ok := errors.AsType[*node.Error](err)
	if !ok {
		return errors.Is(err, errCanceled) || errors.Is(err, context.Canceled)
	}
	switch e.Reason {
	case node.LibcNotSupported, node.DriverPackaged, node.ContainerTooSmall:
		return true
	}
	return false
}
