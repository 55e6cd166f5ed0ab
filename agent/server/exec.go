package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/container"
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
	maxUserBytes       = 128
	maxPathBytes       = 4096
	maxInstanceBytes   = 128
	maxStdinChunk      = 32 << 10
	maxSurvivors       = 32
	defaultExecTimeout = time.Hour
	maxExecTimeout     = 24 * time.Hour
	// maxUnread is how long a caller may leave output unread while its command waits.
	maxUnread = 10 * time.Minute
	// queuedStdin is how many bytes of stdin wait for a command that does not read: what comes after them in the stream,
	// a signal for example, is not held up by them.
	queuedStdin = 128 << 10
)

// startWait is how long a caller may take for its first message, and with it holds one of the server's places for calls.
var startWait = 10 * time.Second

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
	first, err := receiveFirst(stream.Recv)
	if err != nil {
		return err
	}
	start := first.GetInput().GetStart()
	if start == nil {
		return invalid("input", "the first message must be start")
	}
	command, err := commandOf(start)
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
	if start.GetInstance() != "" && start.GetInstance() != running.Instance {
		return &container.InstanceError{CTID: start.GetCtid(), Got: running.Instance}
	}
	if start.GetInstance() != "" && running.StartTicks != 0 {
		command.Init = attach.Init{PID: running.InitPID, StartTicks: running.StartTicks}
	}
	return s.run(ctx, stream, start, command, running.Instance)
}

// receiveFirst returns the first message of a stream, which must come in time.
func receiveFirst[M any](recv func() (M, error)) (first M, err error) {
	type received struct {
		m   M
		err error
	}
	got := make(chan received, 1)
	go func() { // ends with the handler at the latest
		m, err := recv()
		got <- received{m, err}
	}()
	late := time.NewTimer(startWait)
	defer late.Stop()
	select {
	case r := <-got:
		if errors.Is(r.err, io.EOF) {
			return first, invalid("input", "the stream ended before start")
		}
		return r.m, r.err
	case <-late.C:
		return first, invalid("input", "no start within %v", startWait)
	}
}

func (s *execServer) run(ctx context.Context, stream agentv1.ExecService_ExecServer, start *typev1.ExecStart, command attach.Command, instance string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	out := &outputs{stream: stream, stuck: make(chan struct{})}
	command.Stdout = out.writer(func(b []byte) *typev1.ExecOutput {
		return &typev1.ExecOutput{Output: &typev1.ExecOutput_Stdout{Stdout: b}}
	})
	command.Stderr = out.writer(func(b []byte) *typev1.ExecOutput {
		return &typev1.ExecOutput{Output: &typev1.ExecOutput_Stderr{Stderr: b}}
	})
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
		return s.notRun(ctx, start, err)
	}
	// The receiver ends when the caller half-closes, breaks the protocol or goes away, all of which end with this
	// handler at the latest: Recv returns once the handler has.
	received := make(chan error, 1)
	go func() {
		err := receive(stream, process, start, input, out)
		input.end()
		received <- err
		if !errors.Is(err, io.EOF) {
			cancel() // the command must not outlive a broken protocol
		}
	}()
	// A Send to a caller that does not read returns when this handler has, and not before. So this handler does not
	// wait for it for ever, and the goroutine ends right after the handler at the latest.
	late := time.AfterFunc(command.Timeout+unreadGrace, out.giveUp)
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
			ended <- s.notRun(stream.Context(), start, err)
			return
		}
		if err := s.sameInstance(stream.Context(), start); err != nil {
			ended <- err
			return
		}
		ended <- out.send(&typev1.ExecOutput{Output: &typev1.ExecOutput_Exit{Exit: exitOf(exit)}})
	}()
	select {
	case err := <-ended:
		return err
	case <-out.stuck:
		return withReason(codes.ResourceExhausted, errorv1.Reason_REASON_LIMIT_EXCEEDED,
			"the command was ended because its output was not read", map[string]string{"limit": "exec_unread_output"})
	}
}

// notRun says why a command did not run.
func (s *execServer) notRun(ctx context.Context, start *typev1.ExecStart, err error) error {
	if errors.Is(err, attach.ErrRestarted) {
		if other := s.sameInstance(ctx, start); other != nil {
			return other
		}
	}
	return &ctidError{start.GetCtid(), err}
}

// sameInstance makes sure that the instance that the caller named, if it named one, is still there: a command that ended
// because its container did has no answer.
func (s *execServer) sameInstance(ctx context.Context, start *typev1.ExecStart) error {
	if start.GetInstance() == "" {
		return nil
	}
	after, err := s.node.Containers.Runtime.Observe(ctx, start.GetCtid(), nil)
	if err != nil {
		return &ctidError{start.GetCtid(), err}
	}
	if after.Instance != start.GetInstance() {
		return &container.InstanceError{CTID: start.GetCtid(), Got: after.Instance}
	}
	return nil
}

func exitOf(exit attach.Exit) *typev1.ExecExit {
	e := &typev1.ExecExit{
		Code: int32(exit.Code), OutputComplete: exit.OutputComplete,
		TimedOut: exit.TimedOut, IdledOut: exit.IdledOut, NotStarted: exit.NotStarted,
		MoreSurvivors: int32(max(len(exit.Survivors)-maxSurvivors, 0)),
	}
	for _, s := range exit.Survivors[:min(len(exit.Survivors), maxSurvivors)] {
		e.Survivors = append(e.Survivors, &typev1.ExecSurvivor{Pid: int32(s.PID), Command: text(s.Command)})
	}
	return e
}

// receive passes the caller's messages on. io.EOF says that the caller has no more.
func receive(stream agentv1.ExecService_ExecServer, p *attach.Process, start *typev1.ExecStart, stdin *stdin, out *outputs) error {
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
			if err := out.send(&typev1.ExecOutput{Output: &typev1.ExecOutput_Signalled{Signalled: &typev1.ExecSignalled{}}}); err != nil {
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
