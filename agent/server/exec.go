package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/agent/attach"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// Limits of the threat model, section 8.
const (
	maxExecs           = 64
	maxExecsPerCTID    = 8
	maxArgs            = 256
	maxArgBytes        = 128 << 10
	maxEnv             = 64
	maxEnvBytes        = 32 << 10
	maxStdinChunk      = 32 << 10
	outputChunk        = 32 << 10
	defaultExecTimeout = time.Hour
	maxExecTimeout     = 24 * time.Hour
	// maxUnread is how long a caller may leave output unread while its command waits.
	maxUnread = 10 * time.Minute
	// queuedStdin is how many chunks of stdin, 1 MiB in all, wait for a command that does not read: what comes after them
	// in the stream, a signal for example, is not held up by them.
	queuedStdin = 32
)

// unreadGrace is how long after a command's timeout its end may take before the caller must have read the output: longer
// than ending it and draining its output take.
var unreadGrace = 20 * time.Second

type execServer struct {
	agentv1.UnimplementedExecServiceServer
	node *Node

	mu    sync.Mutex
	execs map[int32]int // under way, by CTID
	total int
}

func newExecServer(node *Node) *execServer {
	return &execServer{node: node, execs: make(map[int32]int)}
}

func (s *execServer) Exec(stream agentv1.ExecService_ExecServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	start := first.GetInput().GetStart()
	if start == nil {
		return invalid("input", "the first message must be start")
	}
	timeout, err := checkStart(start)
	if err != nil {
		return err
	}
	leave, err := s.enter(start.GetCtid())
	if err != nil {
		return err
	}
	defer leave()

	ctx := stream.Context()
	running, err := s.node.Containers.Running(ctx, start.GetCtid())
	if err != nil {
		return &ctidError{start.GetCtid(), err}
	}
	return s.run(ctx, stream, start, timeout, running.Instance)
}

func (s *execServer) run(ctx context.Context, stream agentv1.ExecService_ExecServer, start *typev1.ExecStart, timeout time.Duration, instance string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	out := &outputs{stream: stream, stuck: make(chan struct{})}
	command := attach.Command{
		CTID: start.GetCtid(), Argv: start.GetArgv(), Env: start.GetEnv(), Timeout: timeout,
		TTY: start.GetTty(), Columns: int(start.GetSize().GetColumns()), Rows: int(start.GetSize().GetRows()),
		Stdout: out.writer(func(b []byte) *typev1.ExecOutput {
			return &typev1.ExecOutput{Output: &typev1.ExecOutput_Stdout{Stdout: b}}
		}),
		Stderr: out.writer(func(b []byte) *typev1.ExecOutput {
			return &typev1.ExecOutput{Output: &typev1.ExecOutput_Stderr{Stderr: b}}
		}),
	}
	input := newStdin()
	defer input.abandon()
	if start.GetStdin() {
		command.Stdin = input
	}
	if err := out.send(&typev1.ExecOutput{Output: &typev1.ExecOutput_Started{Started: &typev1.ExecStarted{Instance: instance}}}); err != nil {
		return err
	}
	process, err := s.node.Attacher.Start(ctx, command)
	if err != nil {
		return &ctidError{start.GetCtid(), err}
	}
	// The receiver ends when the caller half-closes, breaks the protocol or goes away, all of which end with this
	// handler at the latest: Recv returns once the handler has.
	received := make(chan error, 1)
	go func() {
		err := receive(stream, process, start, input)
		input.end()
		received <- err
		if !errors.Is(err, io.EOF) {
			cancel() // the command must not outlive a broken protocol
		}
	}()
	// A Send to a caller that does not read returns when this handler has, and not before. So this handler does not
	// wait for it for ever, and the goroutine ends right after the handler at the latest.
	late := time.AfterFunc(timeout+unreadGrace, out.giveUp)
	defer late.Stop()
	ended := make(chan error, 1)
	go func() {
		exit, err := process.Wait()
		input.abandon() // else the receiver would wait for a command that ended without reading its stdin
		select {
		case receiveErr := <-received:
			if !errors.Is(receiveErr, io.EOF) && stream.Context().Err() == nil {
				ended <- receiveErr
				return
			}
		default:
		}
		if err != nil {
			ended <- &ctidError{start.GetCtid(), err}
			return
		}
		ended <- out.send(&typev1.ExecOutput{Output: &typev1.ExecOutput_Exit{Exit: &typev1.ExecExit{
			Code: int32(exit.Code), OutputComplete: exit.OutputComplete, TimedOut: exit.TimedOut,
		}}})
	}()
	select {
	case err := <-ended:
		return err
	case <-out.stuck:
		return withReason(codes.ResourceExhausted, errorv1.Reason_REASON_LIMIT_EXCEEDED,
			"the command was ended because its output was not read", map[string]string{"limit": "exec_unread_output"})
	}
}

// A stdin passes the caller's stdin to the command.
type stdin struct {
	chunks    chan []byte // closed by its only sender at the end
	abandoned chan struct{}
	endOnce   sync.Once
	goneOnce  sync.Once
	rest      []byte // of the chunk that is being read
}

func newStdin() *stdin {
	return &stdin{chunks: make(chan []byte, queuedStdin), abandoned: make(chan struct{})}
}

// write queues a chunk. A command that reads no more drops it, as at the end of a shell's pipe.
func (s *stdin) write(b []byte) {
	select {
	case s.chunks <- b:
	case <-s.abandoned:
	}
}

func (s *stdin) end()     { s.endOnce.Do(func() { close(s.chunks) }) }
func (s *stdin) abandon() { s.goneOnce.Do(func() { close(s.abandoned) }) }

// Read implements [io.Reader].
func (s *stdin) Read(b []byte) (int, error) {
	for len(s.rest) == 0 {
		select {
		case chunk, ok := <-s.chunks:
			if !ok {
				return 0, io.EOF
			}
			s.rest = chunk
		case <-s.abandoned:
			return 0, io.EOF
		}
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// receive passes the caller's messages on. io.EOF says that the caller has no more.
func receive(stream agentv1.ExecService_ExecServer, p *attach.Process, start *typev1.ExecStart, stdin *stdin) error {
	ended := !start.GetStdin()
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		switch in := req.GetInput().GetInput().(type) {
		case *typev1.ExecInput_Stdin:
			if ended {
				return invalid("input", "stdin after its end, or without start.stdin")
			}
			if len(in.Stdin) > maxStdinChunk {
				return invalid("input.stdin", "%d bytes in one message; at most %d are allowed", len(in.Stdin), maxStdinChunk)
			}
			stdin.write(in.Stdin)
		case *typev1.ExecInput_StdinEnd:
			ended = true
			stdin.end()
		case *typev1.ExecInput_Resize:
			if !start.GetTty() {
				return invalid("input.resize", "the command has no terminal")
			}
			if err := checkSize("input.resize", in.Resize); err != nil {
				return err
			}
			if err := p.Resize(int(in.Resize.GetColumns()), int(in.Resize.GetRows())); err != nil {
				return err
			}
		case *typev1.ExecInput_Signal:
			if !slices.Contains(signals, in.Signal.GetName()) {
				return invalid("input.signal.name", "%.40q is none of %s", in.Signal.GetName(), strings.Join(signals, ", "))
			}
			if err := p.Signal(in.Signal.GetName()); err != nil {
				return err
			}
		default:
			return invalid("input", "only the first message may be start")
		}
	}
}

var signals = []string{"HUP", "INT", "QUIT", "KILL", "TERM", "USR1", "USR2", "WINCH", "CONT", "STOP", "TSTP"}

// enter counts an exec, or refuses it.
func (s *execServer) enter(ctid int32) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := ""
	switch {
	case s.total >= maxExecs:
		limit = "execs_per_node"
	case s.execs[ctid] >= maxExecsPerCTID:
		limit = "execs_per_ctid"
	}
	if limit != "" {
		return nil, withReason(codes.ResourceExhausted, errorv1.Reason_REASON_LIMIT_EXCEEDED,
			"too many commands are running; wait for one to end", map[string]string{"limit": limit})
	}
	s.total++
	s.execs[ctid]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.total--
		if s.execs[ctid]--; s.execs[ctid] == 0 {
			delete(s.execs, ctid)
		}
	}, nil
}

// outputs sends the command's output. Send blocks while the caller does not read: that is the back-pressure we want.
type outputs struct {
	mu     sync.Mutex
	stream agentv1.ExecService_ExecServer

	once  sync.Once
	stuck chan struct{} // closed when the caller has left output unread for too long
}

func (o *outputs) giveUp() { o.once.Do(func() { close(o.stuck) }) }

func (o *outputs) send(out *typev1.ExecOutput) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	unread := time.AfterFunc(maxUnread, o.giveUp)
	defer unread.Stop()
	return o.stream.Send(&agentv1.ExecResponse{Output: out})
}

func (o *outputs) writer(wrap func([]byte) *typev1.ExecOutput) io.Writer {
	return writerFunc(func(b []byte) (int, error) {
		n := 0
		for chunk := range slices.Chunk(b, outputChunk) {
			if err := o.send(wrap(chunk)); err != nil {
				return n, err
			}
			n += len(chunk)
		}
		return n, nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

var envPattern = regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_]{0,127}=`)

// checkStart checks the command and returns its timeout.
func checkStart(start *typev1.ExecStart) (time.Duration, error) {
	if err := checkCTID(start.GetCtid()); err != nil {
		return 0, err
	}
	if n := len(start.GetArgv()); n == 0 || n > maxArgs {
		return 0, invalid("argv", "%d words given; 1 to %d are allowed", n, maxArgs)
	}
	if start.GetArgv()[0] == "" {
		return 0, invalid("argv[0]", "the program's name is empty")
	}
	size := 0
	for i, arg := range start.GetArgv() {
		if strings.ContainsRune(arg, 0) {
			return 0, invalid(fmt.Sprintf("argv[%d]", i), "NUL cannot be passed to a program")
		}
		size += len(arg) + 1
	}
	if size > maxArgBytes {
		return 0, invalid("argv", "%d bytes in all; at most %d are allowed", size, maxArgBytes)
	}
	if n := len(start.GetEnv()); n > maxEnv {
		return 0, invalid("env", "%d variables given; at most %d are allowed", n, maxEnv)
	}
	size = 0
	for i, v := range start.GetEnv() {
		if !envPattern.MatchString(v) || !utf8.ValidString(v) || strings.ContainsFunc(v, isControl) {
			return 0, invalid(fmt.Sprintf("env[%d]", i), "%.80q is not NAME=VALUE without control characters", v)
		}
		size += len(v) + 1
	}
	if size > maxEnvBytes {
		return 0, invalid("env", "%d bytes in all; at most %d are allowed", size, maxEnvBytes)
	}
	if start.GetSize() != nil {
		if err := checkSize("size", start.GetSize()); err != nil {
			return 0, err
		}
	}
	return execTimeout(start.GetTimeout())
}

func isControl(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }

func checkSize(field string, size *typev1.TerminalSize) error {
	const most = 4096
	if c := size.GetColumns(); c < 1 || c > most {
		return invalid(field+".columns", "%d is not between 1 and %d", c, most)
	}
	if r := size.GetRows(); r < 1 || r > most {
		return invalid(field+".rows", "%d is not between 1 and %d", r, most)
	}
	return nil
}

func execTimeout(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return defaultExecTimeout, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, invalid("timeout", "%v", err)
	}
	if t := d.AsDuration(); t > 0 && t <= maxExecTimeout {
		return t, nil
	}
	return 0, invalid("timeout", "%v is not between 0 s and %v", d.AsDuration(), maxExecTimeout)
}
