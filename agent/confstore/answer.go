package confstore

import (
	"fmt"
	"sync"
	"time"
)

// maxUnanswered bounds the jobs that nobody waits for any more: each holds a thread of the system.
const maxUnanswered = 64

// A job is one series of calls into /etc/pve, in a goroutine of its own.
type job struct {
	mu        sync.Mutex
	ended     bool
	abandoned bool // nobody waits for it any more
	committed bool
}

// commit asks whether the job may do what cannot be undone. After it has returned false nobody waits for the job.
func (j *job) commit() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.committed = !j.abandoned
	return j.committed
}

// end reports whether somebody still waits.
func (j *job) end() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ended = true
	return !j.abandoned
}

// abandon reports whether the job is still under way, and whether it has passed its commit.
func (j *job) abandon() (underWay, committed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return false, false
	}
	j.abandoned = true
	return true, j.committed
}

// answer runs fn and waits for it at most AnswerWait. If that is not enough, the error is [ErrNoAnswer], fn goes on
// in the background, and the lock, which may be nil, is released by it in the end and not by its owner.
func answer[T any](s *Store, l *lock, fn func(*job) (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var none T
	if s.unanswered.Load() >= maxUnanswered {
		return none, fmt.Errorf("%s: %w: %d calls are waiting already", s.pve(), ErrNoAnswer, maxUnanswered)
	}
	wait := orDefault(s.AnswerWait, 15*time.Second)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	j := &job{}
	done := make(chan result, 1)
	// Nobody can wait for this goroutine: its system calls may never end.
	go func() {
		v, err := fn(j)
		done <- result{v, err}
		if !j.end() {
			l.close()
			s.unanswered.Add(-1)
		}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-timer.C:
	}
	underWay, committed := j.abandon()
	if !underWay {
		r := <-done
		return r.v, r.err
	}
	s.unanswered.Add(1)
	l.handOver()
	if committed {
		return none, fmt.Errorf("%s: %w in %v: the change may still take effect", s.pve(), ErrNoAnswer, wait)
	}
	return none, fmt.Errorf("%s: %w in %v", s.pve(), ErrNoAnswer, wait)
}
