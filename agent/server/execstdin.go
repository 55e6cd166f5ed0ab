package server

import (
	"io"
	"sync"
)

// A stdin passes the caller's stdin to the command.
type stdin struct {
	mu        sync.Mutex
	changed   sync.Cond // anything below
	queue     [][]byte
	queued    int // bytes in queue
	ended     bool
	abandoned bool
}

func newStdin() *stdin {
	s := &stdin{}
	s.changed.L = &s.mu
	return s
}

// write queues a chunk, and waits while too much is queued. A command that reads no more drops it, as at the end of a
// shell's pipe.
func (s *stdin) write(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.queued > 0 && s.queued+len(b) > queuedStdin && !s.abandoned {
		s.changed.Wait()
	}
	if len(b) == 0 || s.abandoned {
		return
	}
	// A hostile caller's bytes may come one by one; each slice would cost more than it holds.
	if last := len(s.queue) - 1; last >= 0 && len(s.queue[last])+len(b) <= maxStdinChunk {
		s.queue[last] = append(s.queue[last], b...)
	} else {
		s.queue = append(s.queue, b)
	}
	s.queued += len(b)
	s.changed.Broadcast()
}

// end says that nothing more will be written.
func (s *stdin) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.changed.Broadcast()
}

// abandon says that nothing more will be read.
func (s *stdin) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abandoned = true
	s.changed.Broadcast()
}

// Read implements [io.Reader].
func (s *stdin) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.queued == 0 && !s.ended && !s.abandoned {
		s.changed.Wait()
	}
	if s.queued == 0 || s.abandoned {
		return 0, io.EOF
	}
	n := copy(b, s.queue[0])
	if s.queue[0] = s.queue[0][n:]; len(s.queue[0]) == 0 {
		s.queue = s.queue[1:]
	}
	s.queued -= n
	s.changed.Broadcast()
	return n, nil
}
