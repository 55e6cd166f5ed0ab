// Package lane orders work: one thing at a time per key, keys in parallel, bounded per group, in order of arrival.
package lane

import (
	"context"
	"fmt"
	"slices"
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
	waiting []*Ticket
}

// A Ticket is a place in the line. Whoever has it calls Enter, once.
type Ticket struct {
	lanes    *Lanes
	key      int32
	group    string
	width    int
	admitted chan struct{} // closed when it is its turn

	hasKey, inside bool // guarded by lanes.mu
}

// Queue takes a place in the line, and does not wait. With this key no one else may be in, and with this group fewer
// than width. Who came first enters first: nobody overtakes in a group, even with a larger width. A width below 1
// counts as 1.
func (l *Lanes) Queue(key int32, group string, width int) *Ticket {
	t := &Ticket{lanes: l, key: key, group: group, width: max(width, 1), admitted: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keys == nil {
		l.keys, l.groups = map[int32]*queue{}, map[string]*queue{}
	}
	q := l.keys[key]
	if q == nil {
		q = &queue{}
		l.keys[key] = q
	}
	q.waiting = append(q.waiting, t)
	l.admitLocked(t.key, t.group)
	return t
}

// Enter waits for the ticket's turn; then the caller is in until it calls leave, which may be called more than once. If
// ctx ends before, the place is given up and the cause returned.
func (t *Ticket) Enter(ctx context.Context) (leave func(), err error) {
	if ctx.Err() == nil {
		select {
		case <-t.admitted:
			return sync.OnceFunc(func() { t.leave() }), nil
		case <-ctx.Done():
		}
	}
	hadKey := t.leave()
	if !hadKey {
		return nil, fmt.Errorf("wait for CTID %d: %w", t.key, context.Cause(ctx))
	}
	return nil, fmt.Errorf("wait for a place on node %s: %w", t.group, context.Cause(ctx))
}

// leave gives up what the ticket has or waits for, and tells whether it had the key.
func (t *Ticket) leave() (hadKey bool) {
	l := t.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case t.inside:
		l.groups[t.group].inside--
		l.keys[t.key].inside--
	case t.hasKey:
		l.groups[t.group].remove(t)
		l.keys[t.key].inside--
	default:
		l.keys[t.key].remove(t)
	}
	l.admitLocked(t.key, t.group)
	return t.hasKey
}

func (q *queue) remove(t *Ticket) {
	q.waiting = slices.DeleteFunc(q.waiting, func(w *Ticket) bool { return w == t })
}

// admitLocked lets in those at the head of a key's and a group's queue for whom there is room. The key first, then the
// group, always: a place in the group is never held by one who waits for a key.
func (l *Lanes) admitLocked(key int32, group string) {
	q := l.keys[key]
	if q.inside == 0 && len(q.waiting) > 0 {
		next := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.inside, next.hasKey = 1, true
		if l.groups[next.group] == nil {
			l.groups[next.group] = &queue{}
		}
		l.groups[next.group].waiting = append(l.groups[next.group].waiting, next)
		l.admitGroupLocked(next.group)
	}
	l.admitGroupLocked(group)
	if q.inside == 0 { // nobody uses it
		delete(l.keys, key)
	}
}

func (l *Lanes) admitGroupLocked(group string) {
	q := l.groups[group]
	if q == nil {
		return
	}
	for len(q.waiting) > 0 && q.inside < q.waiting[0].width {
		next := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.inside++
		next.inside = true
		close(next.admitted)
	}
	if q.inside == 0 && len(q.waiting) == 0 {
		delete(l.groups, group)
	}
}
