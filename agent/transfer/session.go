package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"phoenix.internal/agent/attach"
)

// Argument is the first argument with which the agent's binary is the process in the container; see [Main].
const Argument = "file-helper"

// A session is the process in a container and the frames to and from it.
type session struct {
	cancel   context.CancelCauseFunc
	in       *io.PipeWriter
	frames   frameWriter // to in
	answers  chan answer
	incoming *incoming // of a pull; nil
	idle     *time.Timer
	patience time.Duration
	ended    chan struct{} // closed when the process has ended
	finished bool          // the last answer has come; of the goroutine that takes the output, until that has ended

	failed  chan struct{} // closed when cause is set
	once    sync.Once
	cause   error
	unblock func(error) // makes writes to in return this
}

// An answer is a frame with a value.
type answer struct {
	kind    kind
	payload []byte
}

// start starts the process. in takes the frames of a pull.
func (m *Mover) start(ctx context.Context, ctid int32, in *incoming) (*session, error) {
	program, err := m.Attacher.Program()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	r, w := io.Pipe()
	s := &session{
		cancel: cancel, in: w, frames: frameWriter{w: w}, incoming: in,
		answers: make(chan answer, 4), // more than the protocol has
		ended:   make(chan struct{}), failed: make(chan struct{}),
		unblock:  func(err error) { r.CloseWithError(err) },
		patience: m.idle(),
	}
	s.idle = time.AfterFunc(s.patience, func() {
		s.fail(fmt.Errorf("%w: nothing moved for %v", ErrBrokenOff, s.patience))
	})
	complaint := &limited{max: 4 << 10}
	process, err := m.Attacher.Start(ctx, attach.Command{
		CTID:  ctid,
		Argv:  []string{"/proc/self/fd/3", Argument}, // the first of Files is descriptor 3
		Files: []*os.File{program},
		Stdin: r, Stdout: &frameSplitter{frame: s.frame}, Stderr: complaint,
		Timeout: longest,
	})
	if err != nil {
		s.fail(err)
		s.idle.Stop()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })
	go func() {
		defer close(s.ended)
		exit, err := process.Wait()
		stop()
		if s.finished && err == nil && exit.Code == 0 {
			s.unblock(protocol("it ended before its input")) // if there is more to come, which is not as it should be
			return
		}
		s.idle.Stop()
		s.fail(ending(exit, err, complaint.Bytes()))
	}()
	return s, nil
}

// ending says why there is no more from a process that has ended without a word about it.
func ending(exit attach.Exit, err error, complaint []byte) error {
	switch {
	case err != nil:
		return err
	case exit.TimedOut:
		return fmt.Errorf("%w: it took longer than %v", ErrBrokenOff, longest)
	case exit.Code == 128+9:
		return fmt.Errorf("%w: the process in the container was killed; was the container stopped?", ErrBrokenOff)
	case len(complaint) > 0:
		return fmt.Errorf("%w: the process in the container ended with status %d: %s", ErrBrokenOff, exit.Code, printable(string(complaint)))
	default:
		return fmt.Errorf("%w: the process in the container ended with status %d", ErrBrokenOff, exit.Code)
	}
}

// fail ends the session with this cause, unless it has one.
func (s *session) fail(err error) {
	s.once.Do(func() {
		s.cause = err
		close(s.failed)
		s.unblock(err)
		s.cancel(err)
	})
}

func (s *session) err() error {
	<-s.failed
	return s.cause
}

// closeWait bounds the wait for the process to end. One that the kernel holds, by a file system that does not answer, is
// left to itself.
const closeWait = 10 * time.Second

func (s *session) close() {
	s.fail(context.Canceled)
	s.idle.Stop()
	wait := time.NewTimer(closeWait)
	defer wait.Stop()
	select {
	case <-s.ended:
	case <-wait.C:
	}
}

// frame takes a frame from the container. It is called in the course of the process's output.
func (s *session) frame(k kind, payload []byte) error {
	s.idle.Reset(s.patience)
	switch k {
	case kindBusy:
		return nil
	case kindFailed:
		e := new(FileError)
		if err := json.Unmarshal(payload, e); err != nil {
			return protocol("%v", err)
		}
		e.Path, e.Message = printable(e.Path), printable(e.Message)
		s.fail(e)
		return nil
	case kindReady, kindEnd, kindDone:
		s.finished = k != kindReady
		select {
		case s.answers <- answer{k, bytes.Clone(payload)}:
			return nil
		default:
			return protocol("too many answers")
		}
	}
	if s.incoming == nil {
		return protocol("a frame of kind %q", k)
	}
	err := s.incoming.frame(k, payload)
	s.idle.Reset(s.patience) // a Write may have blocked for long
	return err
}

func (s *session) write(k kind, payload []byte) error {
	if err := s.frames.write(k, payload); err != nil {
		select {
		case <-s.failed:
			return s.cause
		default:
			return err
		}
	}
	s.idle.Reset(s.patience)
	return nil
}

func (s *session) send(k kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.write(k, b)
}

// receive waits for an answer of this kind.
func (s *session) receive(want kind, v any) error {
	var a answer
	select {
	case a = <-s.answers:
	case <-s.failed:
		select {
		case a = <-s.answers: // it came before the end
		default:
			return s.err()
		}
	}
	if a.kind != want {
		return protocol("a frame of kind %q instead of %q", a.kind, want)
	}
	if err := json.Unmarshal(a.payload, v); err != nil {
		return protocol("%v", err)
	}
	return nil
}

// protocol is the error about a process that does not say what it should: the container has its hand in it.
func protocol(format string, args ...any) error {
	return fmt.Errorf("%w: the process in the container gave no valid answer: %s", ErrBrokenOff, fmt.Sprintf(format, args...))
}

// limited keeps the first max bytes that are written to it.
type limited struct {
	bytes.Buffer
	max int
}

// Write implements [io.Writer].
func (l *limited) Write(b []byte) (int, error) {
	l.Buffer.Write(b[:min(len(b), l.max-l.Len())])
	return len(b), nil
}
