package attach

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/creack/pty"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const chunk = 32 << 10 // size of the largest Write

// streams are the descriptors between us and a command.
type streams struct {
	theirs, ours []*os.File
	outputs      []output
	stdin        io.Reader
	stdinTo      *os.File
	tty          bool
}

type output struct {
	from *os.File
	to   io.Writer
}

// open makes the descriptors of a command and gives it its ends.
func (p *Process) open(c Command) (s *streams, err error) {
	s = &streams{stdin: c.Stdin, tty: c.TTY}
	defer func() {
		if err != nil {
			s.closeTheirs()
			s.closeOurs()
		}
	}()
	if c.TTY {
		return s, p.openTTY(c, s)
	}
	if c.Stdin == nil {
		p.cmd.Stdin = nil // exec.Cmd opens /dev/null for reading
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return s, err
		}
		s.theirs, s.ours = append(s.theirs, r), append(s.ours, w)
		p.cmd.Stdin, s.stdinTo = r, w
	}
	for _, o := range []struct {
		theirs *io.Writer
		to     io.Writer
	}{{&p.cmd.Stdout, c.Stdout}, {&p.cmd.Stderr, c.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return s, err
		}
		s.theirs, s.ours = append(s.theirs, w), append(s.ours, r)
		*o.theirs = w
		s.outputs = append(s.outputs, output{r, discardIfNil(o.to)})
	}
	return s, nil
}

// openTTY gives the command a terminal. lxc-attach makes a second one inside the container, which
// does the echoing and the line editing; ours only carries bytes.
func (p *Process) openTTY(c Command, s *streams) error {
	ours, theirs, err := pty.Open()
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	s.ours, s.theirs = append(s.ours, ours), append(s.theirs, theirs)
	size := &pty.Winsize{Cols: 80, Rows: 24}
	if c.Columns > 0 && c.Rows > 0 {
		size.Cols, size.Rows = uint16(c.Columns), uint16(c.Rows)
	}
	if err := pty.Setsize(ours, size); err != nil {
		return fmt.Errorf("size of the terminal: %w", err)
	}
	if _, err := term.MakeRaw(int(theirs.Fd())); err != nil {
		return fmt.Errorf("make the terminal raw: %w", err)
	}
	p.tty = ours
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = theirs, theirs, theirs
	p.cmd.SysProcAttr.Setctty = true // of descriptor 0
	s.stdinTo = ours
	s.outputs = []output{{ours, discardIfNil(c.Stdout)}}
	return nil
}

func discardIfNil(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

func (s *streams) closeTheirs() {
	for _, f := range s.theirs {
		f.Close()
	}
}

func (s *streams) closeOurs() {
	for _, f := range s.ours {
		f.Close()
	}
}

// start starts copying. When all output is copied the channel gets whether every stream was read to
// its end. If a Write fails, fail is called with the error and the rest is discarded.
func (s *streams) start(fail func(error)) <-chan bool {
	if s.stdin != nil {
		go s.copyStdin()
	}
	var group errgroup.Group
	var open atomic.Bool
	for _, o := range s.outputs {
		group.Go(func() error {
			if !o.copy(fail) {
				open.Store(true)
			}
			return nil
		})
	}
	copied := make(chan bool, 1)
	go func() {
		group.Wait()
		copied <- !open.Load()
	}()
	return copied
}

// copyStdin copies until the caller's stdin or the command has ended.
func (s *streams) copyStdin() {
	io.CopyBuffer(s.stdinTo, struct{ io.Reader }{s.stdin}, make([]byte, chunk))
	if s.tty {
		s.stdinTo.Write([]byte{4}) // ^D: a terminal has no other end of input
		return
	}
	s.stdinTo.Close()
}

// expire sets the time after which output is not waited for any more.
func (s *streams) expire(t time.Time) {
	for _, o := range s.outputs {
		o.from.SetReadDeadline(t)
	}
}

// copy copies until the end of the stream, or until its deadline has passed and what was in the pipe
// by then is copied. It says whether it saw the end.
func (o output) copy(fail func(error)) (end bool) {
	buf := make([]byte, chunk)
	for {
		n, err := o.from.Read(buf)
		o.write(buf[:n], fail)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return o.copyRest(buf, fail)
		default: // EOF; EIO from a terminal that nobody has open any more
			return errors.Is(err, io.EOF) || errors.Is(err, unix.EIO)
		}
	}
}

// copyRest copies what can be read without waiting, up to the size of a pipe: a reader that was slow
// for longer than the deadline shall still get what the command wrote.
func (o *output) copyRest(buf []byte, fail func(error)) (end bool) {
	raw, err := o.from.SyscallConn()
	if err != nil {
		return false
	}
	const pipe = 64 << 10
	for left := pipe; left > 0; {
		var n int
		var readErr error
		err := raw.Control(func(fd uintptr) {
			n, readErr = unix.Read(int(fd), buf[:min(left, len(buf))])
		})
		if err != nil || errors.Is(readErr, unix.EAGAIN) {
			return false
		}
		if n <= 0 {
			return true
		}
		o.write(buf[:n], fail)
		left -= n
	}
	return false
}

func (o *output) write(b []byte, fail func(error)) {
	if len(b) == 0 {
		return
	}
	if _, err := o.to.Write(b); err != nil {
		fail(fmt.Errorf("write the output: %w", err))
		o.to = io.Discard
	}
}

// checkText says what is wrong with the value of a variable: what could be taken for more than one
// line by a program that reads it.
func checkText(name, value string) error {
	if !utf8.ValidString(value) {
		return fmt.Errorf("variable %s: the value is not UTF-8", name)
	}
	for i := range len(value) {
		if c := value[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return fmt.Errorf("variable %s: control character %#x in the value", name, c)
		}
	}
	return nil
}
