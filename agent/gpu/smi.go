package gpu

import (
	"context"
	"errors"
	"os/exec"
	"time"
)

// smiTimeout bounds the wait for nvidia-smi.
const smiTimeout = 5 * time.Second

// An smiAnswer is what nvidia-smi told of one driver and set of GPUs, for all scans that find the same.
type smiAnswer[T any] struct {
	key    string
	waited context.Context // done when nobody waits for the answer any more
	done   chan struct{}   // closed when value is set
	value  T               // zero if it did not tell
}

// askSMI returns what query makes of nvidia-smi's answers. It is asked once for each key, which tells apart what the
// answer is about; the latest answer is kept in kept, which is the scanner's. A scan goes on without one: nvidia-smi may not be
// installed, and one that waits for a broken GPU cannot even be killed.
func askSMI[T any](ctx context.Context, s *Scanner, kept **smiAnswer[T], key string, query func(smi) T) (value T) {
	path := or(s.SMI, "/usr/bin/nvidia-smi")
	if _, err := exec.LookPath(path); err != nil {
		return value
	}
	s.mu.Lock()
	a := *kept
	if a == nil || a.key != key {
		a = &smiAnswer[T]{key: key, done: make(chan struct{})}
		*kept = a
		// The answer is for all later scans, so it does not end with this one.
		var cancel context.CancelFunc
		a.waited, cancel = context.WithTimeout(context.WithoutCancel(ctx), smiTimeout)
		go func() { // ends with nvidia-smi, which is killed after smiTimeout
			defer cancel()
			defer close(a.done)
			a.value = query(smi{a.waited, path})
		}()
	}
	s.mu.Unlock()

	select {
	case <-a.done:
	case <-a.waited.Done():
	case <-ctx.Done():
	}
	select {
	case <-a.done:
		return a.value
	default:
		return value
	}
}

// An smi asks nvidia-smi.
type smi struct {
	ctx  context.Context
	path string
}

// output returns what nvidia-smi prints, at most max bytes.
func (s smi) output(max int, args ...string) ([]byte, error) {
	out := &limited{max: max}
	cmd := exec.CommandContext(s.ctx, s.path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdout = out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	return out.b, err
}

var errTooLong = errors.New("output too long")

// limited keeps what is written to it, and refuses more than max bytes.
type limited struct {
	b   []byte
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(l.b)+len(p) > l.max {
		return 0, errTooLong
	}
	l.b = append(l.b, p...)
	return len(p), nil
}
