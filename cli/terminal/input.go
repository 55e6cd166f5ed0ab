package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// An Input reads from a file, of any kind, until it is stopped. A plain read of a terminal or a pipe cannot be
// interrupted: the goroutine in it would stay, and take what is typed next.
type Input struct {
	f          *os.File
	wake, stop *os.File // two ends of a pipe; closing stop wakes the reader
}

// NewInput returns an input that reads from f. f itself is never closed.
func NewInput(f *os.File) (*Input, error) {
	wake, stop, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("read from %s: %w", f.Name(), err)
	}
	return &Input{f: f, wake: wake, stop: stop}, nil
}

// Read implements [io.Reader]. After Stop it returns io.EOF, also if it waits already.
func (in *Input) Read(p []byte) (int, error) {
	fds := []unix.PollFd{
		{Fd: int32(in.f.Fd()), Events: unix.POLLIN},
		{Fd: int32(in.wake.Fd()), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("wait for %s: %w", in.f.Name(), err)
		case fds[1].Revents != 0:
			return 0, io.EOF
		default:
			return in.f.Read(p)
		}
	}
}

// Stop makes Read return. Call it once.
func (in *Input) Stop() error { return in.stop.Close() }

// Close frees what the input holds, after the last Read has returned.
func (in *Input) Close() error { return in.wake.Close() }
