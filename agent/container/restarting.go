package container

import (
	"context"
	"sync"

	"phoenix.internal/agent/lxcmon"
)

// restarts are those under way.
type restarts struct {
	mu sync.Mutex
	n  map[int32]int // how many, by CTID
}

// begin counts a restart. It ends when the returned function is first called.
func (r *restarts) begin(ctid int32) (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == nil {
		r.n = make(map[int32]int)
	}
	r.n[ctid]++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.n[ctid]--; r.n[ctid] == 0 {
			delete(r.n, ctid)
		}
	})
}

func (r *restarts) has(ctid int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n[ctid] > 0
}

// running tells how a container runs. One that is down because this agent is restarting it is starting: whoever took it
// for stopped would leave it alone, or start it a second time.
func (m *Manager) running(ctx context.Context, ctid int32, paths []string) (Running, error) {
	restarting := m.restarting.has(ctid)
	running, err := m.Runtime.Observe(ctx, ctid, paths)
	if err == nil && restarting && running.State == lxcmon.Stopped {
		running.State = lxcmon.Starting
	}
	return running, err
}

// maxAtOnce bounds the containers that are being restarted at a time: each loads Perl, and starts a system.
const maxAtOnce = 16

// slots are what [Manager] has of maxAtOnce.
type slots struct {
	once sync.Once
	free chan struct{} // full when nobody has one
}

// take waits for a slot; full is called first if there is none.
func (s *slots) take(ctx context.Context, full func()) (release func(), err error) {
	s.once.Do(func() {
		s.free = make(chan struct{}, maxAtOnce)
		for range maxAtOnce {
			s.free <- struct{}{}
		}
	})
	release = func() { s.free <- struct{}{} }
	select {
	case <-s.free:
		return release, nil
	default:
		full()
	}
	select {
	case <-s.free:
		return release, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
