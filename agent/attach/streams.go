package attach

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// chunk is the size of the largest Write: what one message of the agent's API holds.
const chunk = 16<<10 - 64

// streams are the descriptors between us and a command.
type streams struct {
	theirs, ours []*os.File
	outputs      []output
	stdin        io.Reader
	stdinTo      *os.File
	tty          bool
	moved        func()      // called when bytes have
	failed       func() bool // whether lxc-attach cannot enter the container
}

type output struct {
	from  *os.File
	to    io.Writer
	moved func()
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
	// Not /dev/null: the root of a privileged container could change the mode of the host's.
	r, w, err := os.Pipe()
	if err != nil {
		return s, err
	}
	s.theirs, s.ours = append(s.theirs, r), append(s.ours, w)
	p.cmd.Stdin, s.stdinTo = r, w
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
		s.outputs = append(s.outputs, output{from: r, to: discardIfNil(o.to)})
	}
	return s, nil
}

// openTTY gives the command a terminal. lxc-attach makes a second one inside the container, which
// does the echoing and the line editing; ours only carries bytes.
func (p *Process) openTTY(c Command, s *streams) error {
	ours, theirs, err := openPTY()
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	s.ours, s.theirs = append(s.ours, ours), append(s.theirs, theirs)
	columns, rows := c.Columns, c.Rows
	if columns == 0 || rows == 0 {
		columns, rows = 80, 24
	}
	if err := setSize(ours, columns, rows); err != nil {
		return fmt.Errorf("size of the terminal: %w", err)
	}
	if _, err := term.MakeRaw(int(theirs.Fd())); err != nil {
		return fmt.Errorf("make the terminal raw: %w", err)
	}
	// Until awaitTTY has set it right.
	if err := unix.IoctlSetInt(int(theirs.Fd()), unix.TCXONC, outputOff); err != nil {
		return fmt.Errorf("hold the terminal's output: %w", err)
	}
	p.tty = ours
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = theirs, theirs, theirs
	p.cmd.SysProcAttr.Setctty = true // of descriptor 0
	s.stdinTo = ours
	s.outputs = []output{{from: ours, to: discardIfNil(c.Stdout)}}
	return nil
}

// openPTY opens a new terminal. Our side does not block, so that deadlines and Close end a Read; that
// is why no library does this: they hand it through File.Fd, which makes it block.
func openPTY() (ours, theirs *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	ours = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("TIOCSPTLCK: %w", err), ours.Close())
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, errors.Join(fmt.Errorf("TIOCGPTPEER: %w", errno), ours.Close())
	}
	return ours, os.NewFile(peer, "terminal"), nil
}

func setSize(tty *os.File, columns, rows int) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		setErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(columns), Row: uint16(rows)})
	})
	return cmp.Or(err, setErr)
}

// startWait bounds the wait for lxc-attach to be ready.
const startWait = 2 * time.Second

// Arguments of TCXONC: asm-generic/termbits-common.h.
const (
	outputOff = 0
	outputOn  = 1
)

// awaitTTY returns when lxc-attach has set up our terminal, and undoes a part of that before it lets output through. lxc-attach
// throws away what was typed before, and turns on IGNPAR, which we had turned off, and OPOST with
// ONLCR, which makes a second CR of each line end that the terminal in the container sends.
// (terminal.c, lxc_setup_tios. It does that some milliseconds before it starts the command.)
//
// If lxc-attach cannot enter the container it says so on the terminal instead, which must not keep it waiting: failed
// tells.
func awaitTTY(tty *os.File, failed func() bool) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return
	}
	defer raw.Control(func(fd uintptr) {
		// By the other end: there is no other way to name it, and holding it open would hide that it is closed.
		peer, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno == 0 {
			unix.IoctlSetInt(int(peer), unix.TCXONC, outputOn)
			unix.Close(int(peer))
		}
	})
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(startWait); time.Now().Before(until); <-tick.C {
		ready := false
		err := raw.Control(func(fd uintptr) {
			t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
			if err != nil || t.Iflag&unix.IGNPAR == 0 {
				ready = err != nil
				return
			}
			t.Oflag &^= unix.OPOST
			unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
			ready = true
		})
		if err != nil || ready || failed() {
			return
		}
	}
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
	go s.copyStdin()
	var group errgroup.Group
	var open atomic.Bool
	for _, o := range s.outputs {
		o.moved = s.moved
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
	if s.tty {
		awaitTTY(s.stdinTo, s.failed)
	}
	if s.stdin != nil {
		io.CopyBuffer(s.stdinTo, movedReader{s.stdin, s.moved}, make([]byte, chunk))
	}
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
	o.moved() // a Write may block for long
	if _, err := o.to.Write(b); err != nil {
		fail(fmt.Errorf("write the output: %w", err))
		o.to = io.Discard
	}
	o.moved()
}

// A movedReader tells of what it reads.
type movedReader struct {
	io.Reader
	moved func()
}

func (r movedReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if n > 0 {
		r.moved()
	}
	return n, err
}

// An idleTimer calls a function when nothing has reset it for so long.
type idleTimer struct {
	after time.Duration

	mu    sync.Mutex
	timer *time.Timer // nil: stopped, or no limit
}

func newIdleTimer(after time.Duration, f func()) *idleTimer {
	t := &idleTimer{after: after}
	if after > 0 {
		t.timer = time.AfterFunc(after, f)
	}
	return t
}

func (t *idleTimer) reset() {
	if t.after <= 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer != nil {
		t.timer.Reset(t.after)
	}
}

func (t *idleTimer) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
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
