// Package ctlock lets one change at a time work on a container, in the order in which they came.
package ctlock

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Locks is a lock per CTID. The zero value is ready; it must not be copied. It holds memory only for CTIDs that
// are locked at the moment.
type Locks struct {
	mu      sync.Mutex
	waiting map[int32][]chan struct{} // a key for each locked CTID; the channels of those who wait, first come first
}

// Lock waits until all earlier holders of ctid have unlocked it and returns the function that unlocks it, of which
// only the first call counts. If ctx ends first, the error wraps ctx.Err() and the caller loses its place.
func (l *Locks) Lock(ctx context.Context, ctid int32) (unlock func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("wait for other changes to CTID %d: %w", ctid, err)
	}
	turn := l.enqueue(ctid)
	if turn != nil {
		select {
		case <-turn:
		case <-ctx.Done():
			l.leave(ctid, turn)
			return nil, fmt.Errorf("wait for other changes to CTID %d: %w", ctid, ctx.Err())
		}
	}
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.passLocked(ctid)
	}), nil
}

// enqueue takes the lock and returns nil, or returns a channel that is closed when the lock is the caller's.
func (l *Locks) enqueue(ctid int32) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting, held := l.waiting[ctid]
	if !held {
		if l.waiting == nil {
			l.waiting = make(map[int32][]chan struct{})
		}
		l.waiting[ctid] = nil
		return nil
	}
	turn := make(chan struct{})
	l.waiting[ctid] = append(waiting, turn)
	return turn
}

// leave gives up the place of turn. The lock may have become the caller's in the same moment; then it is passed on.
func (l *Locks) leave(ctid int32, turn <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.waiting[ctid], func(c chan struct{}) bool { return c == turn })
	if i < 0 {
		l.passLocked(ctid)
		return
	}
	l.waiting[ctid] = slices.Delete(l.waiting[ctid], i, i+1)
}

func (l *Locks) passLocked(ctid int32) {
	waiting := l.waiting[ctid]
	if len(waiting) == 0 {
		delete(l.waiting, ctid)
		return
	}
	close(waiting[0])
	l.waiting[ctid] = waiting[1:]
}
