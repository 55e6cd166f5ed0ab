// Package lane orders work: one thing at a time per key, keys in parallel, bounded per group, in order of arrival.
package lane

import (
	"context"
	"fmt"
	"sync"
)

// Lanes let work through. In Phoenix the key is a CTID and the group a node. The zero value is ready; methods may be
// called concurrently.
type Lanes struct {
	mu     sync.Mutex
	keys   map[int32]*queue
	groups map[string]*queue
}

// A queue counts those inside and holds those who wait, first come first.
type queue struct {
	inside  int
	waiting []*ticket
}

// A ticket is one who waits. admit is closed when it is its turn.
type ticket struct {
	width int
	admit chan struct{}
}

// Enter waits until no one else is in with this key, and fewer than width are in with this group; then the caller is in
// until it calls leave, which may be called more than once. Who came first enters first: nobody overtakes in a group,
// even with a larger width. A width below 1 counts as 1. If ctx ends before, its cause is returned.
func (l *Lanes) Enter(ctx context.Context, key int32, group string, width int) (leave func(), err error) {
	if err := wait(ctx, l, &l.keys, key, 1); err != nil {
		return nil, fmt.Errorf("wait for CTID %d: %w", key, err)
	}
	// The key first, then the group, always: a place in the group is never held by one who waits for a key.
	if err := wait(ctx, l, &l.groups, group, max(width, 1)); err != nil {
		exit(l, l.keys, key)
		return nil, fmt.Errorf("wait for a place on node %s: %w", group, err)
	}
	return sync.OnceFunc(func() {
		exit(l, l.groups, group)
		exit(l, l.keys, key)
	}), nil
}

func wait[K comparable](ctx context.Context, l *Lanes, queues *map[K]*queue, k K, width int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t := &ticket{width: width, admit: make(chan struct{})}
	l.mu.Lock()
	if *queues == nil {
		*queues = map[K]*queue{}
	}
	q := (*queues)[k]
	if q == nil {
		q = &queue{}
		(*queues)[k] = q
	}
	q.waiting = append(q.waiting, t)
	q.admitLocked()
	l.mu.Unlock()

	select {
	case <-t.admit:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-t.admit: // in the same moment
		q.inside--
	default:
		q.remove(t)
	}
	q.admitLocked()
	dropLocked(*queues, k)
	return context.Cause(ctx)
}

func exit[K comparable](l *Lanes, queues map[K]*queue, k K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := queues[k]
	q.inside--
	q.admitLocked()
	dropLocked(queues, k)
}

// admitLocked lets in those at the head of the queue for whom there is room.
func (q *queue) admitLocked() {
	for len(q.waiting) > 0 && q.inside < q.waiting[0].width {
		q.inside++
		close(q.waiting[0].admit)
		q.waiting = q.waiting[1:]
	}
}

func (q *queue) remove(t *ticket) {
	for i := range q.waiting {
		if q.waiting[i] == t {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			return
		}
	}
}

// dropLocked forgets a queue that nobody uses.
func dropLocked[K comparable](queues map[K]*queue, k K) {
	if q := queues[k]; q.inside == 0 && len(q.waiting) == 0 {
		delete(queues, k)
	}
}
