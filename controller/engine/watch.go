package engine

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"phoenix.internal/controller/store"
)

// An Event is a change of one step or container of a run: how it is now.
type Event struct {
	Time           time.Time
	CTID           int32
	ContainerState store.StepState
	Step           *store.Step // nil if only the container's state changed
	StepIndex      int         // among the container's, from 0
	Error          string      // why the container failed or was not begun
}

// maxEvents is how many events wait for a slow watcher one by one. Beyond it a newer event of a step takes the place
// of the older one, so that no more wait than the run has steps, and none of them is lost for good.
const maxEvents = 256

// A Watch follows one run. Its methods may be called concurrently, but for Next. A slow reader delays nobody: it gets
// later states instead of each one.
type Watch struct {
	run  *run      // nil for a run that is not under way
	past store.Run // if run is nil

	mu     sync.Mutex
	events []Event
	err    error // after the last event
	wake   chan struct{}
}

// Run returns the run as it is now. The caller owns it.
func (w *Watch) Run() store.Run {
	if w.run == nil {
		return w.past.Clone()
	}
	return w.run.snapshot()
}

// Next waits for the next event. It returns io.EOF when the run has ended, and Run is its end; [ErrClosed] when the
// engine was closed before; or the cause for which ctx ended.
func (w *Watch) Next(ctx context.Context) (Event, error) {
	for {
		w.mu.Lock()
		if len(w.events) > 0 {
			ev := w.events[0]
			w.events = w.events[1:]
			w.mu.Unlock()
			return ev, nil
		}
		err := w.err
		w.mu.Unlock()
		if err != nil {
			return Event{}, err
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

// Close ends the watch. The run goes on.
func (w *Watch) Close() {
	if w.run != nil {
		w.run.unwatch(w)
	}
	w.end(io.EOF)
}

func (w *Watch) push(ev Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	if len(w.events) >= maxEvents {
		for i, old := range slices.Backward(w.events) { // the newest: what is read last must be the newest state
			if old.CTID == ev.CTID && old.StepIndex == ev.StepIndex && (old.Step == nil) == (ev.Step == nil) {
				w.events[i] = ev
				return
			}
		}
	}
	w.events = append(w.events, ev)
	w.signalLocked()
}

func (w *Watch) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		w.signalLocked()
	}
}

func (w *Watch) signalLocked() {
	select {
	case w.wake <- struct{}{}:
	default: // it is awake already
	}
}
