package nvml

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Why there is no report, beside an [*Error].
var (
	ErrAbsent   = errors.New("no NVML here")                 // phoenix-nvml or the library is not installed
	ErrCrashed  = errors.New("phoenix-nvml crashed")         // most likely the library did
	ErrHung     = errors.New("phoenix-nvml does not answer") // most likely the library waits for a broken GPU
	ErrNonsense = errors.New("phoenix-nvml talks nonsense")
	ErrClosed   = errors.New("NVML client closed")
)

// An Error is the library's refusal to be initialised. For "library not found" it is an ErrAbsent.
type Error struct {
	Code int // nvmlReturn_t
}

func (e *Error) Error() string {
	return fmt.Sprintf("NVML: %s (code %d)", Text(e.Code), e.Code)
}

func (e *Error) Is(target error) bool { return target == ErrAbsent && e.Code == libraryNotFound }

const libraryNotFound = 12

// Text says what a return code of the library means.
func Text(code int) string {
	switch code {
	case 4:
		return "no permission"
	case 9:
		return "driver not loaded"
	case 10:
		return "timeout"
	case libraryNotFound:
		return "library not found"
	case 15:
		return "GPU is lost"
	case 16:
		return "GPU requires reset"
	case 17:
		return "blocked by the operating system"
	case 18:
		return "driver/library version mismatch"
	case 20:
		return "not enough memory"
	}
	return "unknown error"
}

const (
	maxAnswer  = 4 << 20
	maxBackoff = 5 * time.Minute
	// killPatience is how long a killed helper is waited for. One that hangs in the kernel ends later or never.
	killPatience = time.Second
)

// A Client asks the library through the helper, which it starts when it is needed. The zero value is ready. Its
// methods may be called at the same time.
type Client struct {
	Program string        // empty: phoenix-nvml, beside this process's program
	Library string        // empty: libnvidia-ml.so.1, where the dynamic linker finds it
	Limit   time.Duration // how long the helper may take before it is killed; 0: 30 seconds, as each GPU without persistence mode takes one or two to wake
	Log     *slog.Logger  // gets a line when it begins to work or ceases to; nil: nobody

	now func() time.Time // nil: time.Now

	running sync.WaitGroup // queries

	mu       sync.Mutex
	closed   bool
	query    *query  // under way; nil: none
	helper   *helper // nil: none
	failure  failure
	reported string // the state that the log knows; empty: it works
}

// A query is one request to the helper, shared by all who wait for it.
type query struct {
	driver string
	done   chan struct{} // closed when report and err are set
	report *Report
	err    error
}

// failure is the last one, which keeps the next queries from trying.
type failure struct {
	err    error
	driver string
	count  int // without a long time of success between them
	at     time.Time
	until  time.Time
}

// Scan returns what the library of the driver with this version tells now. The result is shared and must not be changed.
//
// It waits until ctx ends at most; the question then goes on for the next caller. After a failure the same error is
// returned without another try for a while, up to five minutes, unless the driver's version changes.
func (c *Client) Scan(ctx context.Context, driver string) (*Report, error) {
	for {
		q := c.start(driver)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-q.done:
		}
		if q.driver == driver {
			return q.report, q.err
		}
	}
}

// start returns the query that is under way, or a new one.
func (c *Client) start(driver string) *query {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.query != nil {
		return c.query
	}
	q := &query{driver: driver, done: make(chan struct{})}
	switch {
	case c.closed:
		q.err = ErrClosed
	case c.failure.driver == driver && c.clock().Before(c.failure.until):
		q.err = c.failure.err
	default:
		c.query = q
		c.running.Go(func() { c.run(q) })
		return q
	}
	close(q.done)
	return q
}

// run asks the helper, and keeps it only if it answered well.
func (c *Client) run(q *query) {
	h, err := c.ready(q.driver)
	if err == nil {
		q.report, err = h.ask(c.limit())
		if err != nil {
			h.kill()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed && err != nil {
		err = ErrClosed
	}
	q.err = err
	c.noteLocked(q)
	c.query = nil
	close(q.done)
}

// ready returns a helper that has no other driver's library loaded.
func (c *Client) ready(driver string) (*helper, error) {
	c.mu.Lock()
	old := c.helper
	c.mu.Unlock()
	if old != nil && old.driver == driver && !old.killed.Load() && old.alive() {
		return old, nil
	}
	if old != nil && !old.kill() {
		// Another one would hang as well, and they would pile up.
		return nil, fmt.Errorf("%w: it cannot even be killed", ErrHung)
	}
	h, err := c.launch(driver)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.helper = h
	if c.closed {
		h.kill()
		return nil, ErrClosed
	}
	return h, nil
}

// noteLocked remembers how a query went, and logs it if it went otherwise than the one before.
func (c *Client) noteLocked(q *query) {
	state := ""
	switch {
	case errors.Is(q.err, ErrClosed):
		return
	case q.err == nil:
		c.failure.until = time.Time{}
	default:
		f := &c.failure
		if f.driver != q.driver || c.clock().Sub(f.at) > 2*maxBackoff {
			f.count = 0
		}
		wait := min(time.Second<<min(f.count, 16), maxBackoff)
		if errors.Is(q.err, ErrAbsent) {
			wait = maxBackoff
		}
		*f = failure{err: q.err, driver: q.driver, count: f.count + 1, at: c.clock(), until: c.clock().Add(wait)}
		state = q.err.Error()
	}
	if state == c.reported || c.Log == nil {
		c.reported = state
		return
	}
	c.reported = state
	switch {
	case q.err == nil:
		c.Log.Info("nvml answers")
	case errors.Is(q.err, ErrAbsent):
		c.Log.Info("nvml is not used", "err", q.err)
	default:
		c.Log.Warn("nvml does not answer", "err", q.err)
	}
}

// Close ends the helper, and with it what is asked now. Later scans return [ErrClosed].
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	h := c.helper
	c.mu.Unlock()
	if h != nil {
		h.kill()
	}
	c.running.Wait()
}

func (c *Client) clock() time.Time {
	if c.now != nil {
		return c.now()
	}
	return time.Now()
}

func (c *Client) limit() time.Duration {
	if c.Limit == 0 {
		return 30 * time.Second
	}
	return c.Limit
}

// A helper is a process of phoenix-nvml.
type helper struct {
	driver  string // version of the driver whose library it loads
	process *os.Process
	in, out *os.File      // our ends of its standard input and output
	gone    chan struct{} // closed when it has ended
	state   *os.ProcessState
	killed  atomic.Bool // it may still be there
}

// launch starts a helper with nothing of ours: no variables, no descriptors but its input and output.
func (c *Client) launch(driver string) (*helper, error) {
	program, err := c.program()
	if err != nil {
		return nil, err
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirIn.Close()
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	defer theirOut.Close()
	cmd := &exec.Cmd{
		Path:   program,
		Args:   []string{program},
		Env:    []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Dir:    "/",
		Stdin:  theirIn,
		Stdout: theirOut,
		// Not in our process group: who interrupts the agent from a terminal does not interrupt the helper's answer.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if c.Library != "" {
		cmd.Args = append(cmd.Args, c.Library)
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	h := &helper{driver: driver, process: cmd.Process, in: in, out: out, gone: make(chan struct{})}
	// It ends with the process, which nobody waits for if it hangs in the kernel.
	go func() {
		cmd.Wait()
		h.state = cmd.ProcessState
		close(h.gone)
	}()
	return h, nil
}

// program returns the path of the helper, or an ErrAbsent: it is left out where there is no C compiler.
func (c *Client) program() (string, error) {
	path := c.Program
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		path = filepath.Join(filepath.Dir(self), "phoenix-nvml")
	}
	if _, err := exec.LookPath(path); err != nil {
		return "", fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return path, nil
}

// ask sends a request and waits for the answer.
func (h *helper) ask(limit time.Duration) (*Report, error) {
	deadline := time.Now().Add(limit)
	if err := errors.Join(h.in.SetDeadline(deadline), h.out.SetDeadline(deadline)); err != nil {
		return nil, err
	}
	if _, err := h.in.WriteString(Request + "\n"); err != nil {
		return nil, h.problem(err)
	}
	line, err := readLine(h.out)
	if err != nil {
		return nil, h.problem(err)
	}
	report, last, err := parse(line)
	if last {
		h.kill()
	}
	return report, err
}

func parse(line []byte) (report *Report, last bool, err error) {
	var answer Answer
	if err := json.Unmarshal(line, &answer); err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrNonsense, err)
	}
	switch {
	case answer.Code != 0:
		return nil, false, &Error{Code: answer.Code}
	case answer.Report == nil || !answer.Report.clean():
		return nil, false, fmt.Errorf("%w: no report, or one that cannot be", ErrNonsense)
	}
	return answer.Report, answer.Last, nil
}

// readLine reads one line, after which nothing may come.
func readLine(r io.Reader) ([]byte, error) {
	var line []byte
	buffer := make([]byte, 32<<10)
	for {
		n, err := r.Read(buffer)
		line = append(line, buffer[:n]...)
		i := bytes.IndexByte(line, '\n')
		switch {
		case i >= 0 && i == len(line)-1:
			return line, nil
		case i >= 0:
			return nil, fmt.Errorf("%w: more than one line", ErrNonsense)
		case len(line) > maxAnswer:
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrNonsense, maxAnswer)
		case err != nil:
			return nil, err
		}
	}
}

// problem says what became of a helper that could not be written to or read from.
func (h *helper) problem(err error) error {
	if errors.Is(err, ErrNonsense) {
		return err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrHung
	}
	select {
	case <-h.gone:
		return fmt.Errorf("%w: %s", ErrCrashed, strings.TrimSpace(h.state.String()))
	case <-time.After(killPatience):
		return fmt.Errorf("%w: %w", ErrNonsense, err)
	}
}

func (h *helper) alive() bool {
	select {
	case <-h.gone:
		return false
	default:
		return true
	}
}

// kill ends the process and says whether it is gone. It may be called again.
func (h *helper) kill() bool {
	h.killed.Store(true)
	h.process.Kill()
	h.in.Close()
	h.out.Close()
	select {
	case <-h.gone:
		return true
	case <-time.After(killPatience):
		return false
	}
}
