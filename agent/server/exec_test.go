package server_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/server"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func execStream(t *testing.T, n *agenttest.Node) agentv1.ExecService_ExecClient {
	t.Helper()
	stream, err := agentv1.NewExecServiceClient(n.Dial(t)).Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func send(t *testing.T, stream agentv1.ExecService_ExecClient, in *typev1.ExecInput) {
	t.Helper()
	if err := stream.Send(&agentv1.ExecRequest{Input: in}); err != nil {
		t.Fatal(err)
	}
}

func startCommand(start *typev1.ExecStart) *typev1.ExecInput {
	return &typev1.ExecInput{Input: &typev1.ExecInput_Start{Start: start}}
}

// collect reads a stream to its end.
func collect(stream agentv1.ExecService_ExecClient) (stdout, stderr string, exit *typev1.ExecExit, err error) {
	var out, errOut bytes.Buffer
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out.String(), errOut.String(), exit, nil
		} else if err != nil {
			return out.String(), errOut.String(), exit, err
		}
		out.Write(resp.GetOutput().GetStdout())
		errOut.Write(resp.GetOutput().GetStderr())
		if resp.GetOutput().GetExit() != nil {
			exit = resp.GetOutput().GetExit()
		}
	}
}

func TestExec(t *testing.T) {
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	t.Run("separate streams and the command's own status", func(t *testing.T) {
		stream := execStream(t, n)
		send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}}))
		stdout, stderr, exit, err := collect(stream)
		if stdout != "out\n" || stderr != "err\n" || exit.GetCode() != 7 || !exit.GetOutputComplete() || err != nil {
			t.Errorf("got %q, %q, %v, %v", stdout, stderr, exit, err)
		}
	})
	t.Run("stdin with its end", func(t *testing.T) {
		stream := execStream(t, n)
		send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"wc", "-c"}, Stdin: true}))
		for range 100 {
			send(t, stream, &typev1.ExecInput{Input: &typev1.ExecInput_Stdin{Stdin: bytes.Repeat([]byte("x"), 32<<10)}})
		}
		send(t, stream, &typev1.ExecInput{Input: &typev1.ExecInput_StdinEnd{StdinEnd: &typev1.ExecStdinEnd{}}})
		stdout, _, exit, err := collect(stream)
		if strings.TrimSpace(stdout) != "3276800" || exit.GetCode() != 0 || err != nil {
			t.Errorf("got %q, %v, %v; want 3276800 bytes", stdout, exit, err)
		}
	})
	t.Run("a terminal of the given size", func(t *testing.T) {
		stream := execStream(t, n)
		send(t, stream, startCommand(&typev1.ExecStart{
			Ctid: 901, Argv: []string{"stty", "size"}, Tty: true, Stdin: true, Size: &typev1.TerminalSize{Columns: 91, Rows: 17},
		}))
		stdout, _, exit, err := collect(stream)
		if strings.TrimSpace(stdout) != "17 91" || exit.GetCode() != 0 || err != nil {
			t.Errorf("got %q, %v, %v; want 17 91", stdout, exit, err)
		}
	})
	t.Run("a signal", func(t *testing.T) {
		stream := execStream(t, n)
		send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"sh", "-c", `trap "echo caught; exit 3" USR1; echo ready; while :; do read x || sleep 0.01; done`}}))
		for {
			resp, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if string(resp.GetOutput().GetStdout()) == "ready\n" {
				break
			}
		}
		send(t, stream, &typev1.ExecInput{Input: &typev1.ExecInput_Signal{Signal: &typev1.ExecSignal{Name: "CONT"}}})
		if resp, err := stream.Recv(); err != nil || resp.GetOutput().GetSignalled() == nil {
			t.Errorf("after a signal: %v, %v; want that it has arrived", resp, err)
		}
		send(t, stream, &typev1.ExecInput{Input: &typev1.ExecInput_Signal{Signal: &typev1.ExecSignal{Name: "USR1"}}})
		stdout, _, exit, err := collect(stream)
		if stdout != "caught\n" || exit.GetCode() != 3 || err != nil {
			t.Errorf("got %q, %v, %v", stdout, exit, err)
		}
	})
}

func TestExecRefusals(t *testing.T) {
	n := newNode(t)
	n.PutConf(902, plain)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	sh := []string{"sh", "-c", "cat"}
	for _, tc := range []struct {
		name   string
		inputs []*typev1.ExecInput
		code   codes.Code
		text   string
	}{
		{"no start", []*typev1.ExecInput{{Input: &typev1.ExecInput_Stdin{Stdin: []byte("x")}}},
			codes.InvalidArgument, "input: the first message must be start"},
		{"no command", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901})},
			codes.InvalidArgument, "argv: 0 words given; 1 to 256 are allowed"},
		{"NUL in an argument", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"a", "b\x00"}})},
			codes.InvalidArgument, "argv[1]: NUL cannot be passed to a program"},
		{"a bad variable", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, Env: []string{"1A=x"}})},
			codes.InvalidArgument, `env[0]: "1A=x" is not NAME=VALUE without control characters`},
		{"a huge terminal", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, Tty: true, Size: &typev1.TerminalSize{Columns: 65535, Rows: 1}})},
			codes.InvalidArgument, "size.columns: 65535 is not between 1 and 4096"},
		{"an idle limit of a week", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, IdleTimeout: durationpb.New(7 * 24 * time.Hour)})},
			codes.InvalidArgument, "idle_timeout: 168h0m0s is not between 0 s and 24h0m0s"},
		{"a user with a path in it", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, User: "../root"})},
			codes.InvalidArgument, `user: "../root" is not NAME, UID, NAME:GROUP or UID:GID of at most 128 bytes`},
		{"a user with an empty group", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, User: "root:"})},
			codes.InvalidArgument, `user: "root:" is not NAME, UID, NAME:GROUP or UID:GID of at most 128 bytes`},
		{"a long user", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, User: strings.Repeat("u", 129)})},
			codes.InvalidArgument, `user: "` + strings.Repeat("u", 80) + `" is not NAME, UID, NAME:GROUP or UID:GID of at most 128 bytes`},
		{"a relative directory", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, WorkingDirectory: "tmp"})},
			codes.InvalidArgument, `working_directory: "tmp" is not an absolute path of at most 4096 bytes`},
		{"NUL in the directory", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, WorkingDirectory: "/a\x00b"})},
			codes.InvalidArgument, `working_directory: "/a\x00b" is not an absolute path of at most 4096 bytes`},
		{"a long instance", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, Instance: strings.Repeat("i", 129)})},
			codes.InvalidArgument, "instance: 129 bytes; at most 128 are allowed"},
		{"another instance", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, Instance: "fake:0"})},
			codes.Aborted, "CTID 901 was started anew since it was looked at"},
		{"a container that does not run", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 902, Argv: sh})},
			codes.FailedPrecondition, "CTID 902: container does not run (stopped)"},
		{"a container that is not there", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 999, Argv: sh})},
			codes.NotFound, "conf of CTID 999: no such container on this node"},
		{"two starts", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, Stdin: true}), startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh})},
			codes.InvalidArgument, "input: only the first message may be start"},
		{"stdin that was not announced", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"sleep", "60"}}), {Input: &typev1.ExecInput_Stdin{Stdin: []byte("x")}}},
			codes.InvalidArgument, "input: stdin after its end, or without start.stdin"},
		{"an unknown signal", []*typev1.ExecInput{startCommand(&typev1.ExecStart{Ctid: 901, Argv: sh, Stdin: true}), {Input: &typev1.ExecInput_Signal{Signal: &typev1.ExecSignal{Name: "BOOM"}}}},
			codes.InvalidArgument, `input.signal.name: "BOOM" is none of HUP, INT, QUIT, KILL, TERM, USR1, USR2, WINCH, CONT, STOP, TSTP`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stream := execStream(t, n)
			for _, in := range tc.inputs {
				send(t, stream, in)
			}
			_, _, exit, err := collect(stream)
			if status.Code(err) != tc.code || status.Convert(err).Message() != tc.text {
				t.Errorf("got exit %v, %v\nwant %v: %s", exit, err, tc.code, tc.text)
			}
		})
	}
}

// A caller that never reads must not keep its command, and its place, beyond the command's timeout.
func TestExecEndsThoughItsOutputIsNotRead(t *testing.T) {
	server.SetUnreadGrace(t, 200*time.Millisecond)
	// On a slow machine a command may not have written enough within its timeout to have to wait.
	for timeout := 2 * time.Second; !endsUnread(t, timeout); timeout *= 2 {
		if timeout > time.Minute {
			t.Fatalf("a command's output was taken for %v though nobody read it", timeout)
		}
	}
}

// endsUnread says whether commands with this timeout came to wait for their reader. If so, they have to end.
func endsUnread(t *testing.T, timeout time.Duration) bool {
	t.Helper()
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	client := agentv1.NewExecServiceClient(n.Dial(t))
	var unread []agentv1.ExecService_ExecClient
	for range 8 { // all that a container may have
		stream, err := client.Exec(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"yes"}, Timeout: durationpb.New(timeout)}))
		if _, err := stream.Recv(); err != nil { // started
			t.Fatal(err)
		}
		unread = append(unread, stream)
	}
	for { // until the test binary's own timeout
		stream, err := client.Exec(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"true"}}))
		_, _, exit, err := collect(stream)
		if err == nil && exit.GetCode() == 0 {
			break
		}
		if status.Code(err) != codes.ResourceExhausted {
			t.Fatalf("no place for another command: %v, %v", exit, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	_, _, exit, err := collect(unread[0])
	if exit.GetTimedOut() {
		return false
	}
	if status.Code(err) != codes.ResourceExhausted || reason(t, err) != "LIMIT_EXCEEDED" {
		t.Errorf("read at last: %v, %v; want LIMIT_EXCEEDED", exit, err)
	}
	return true
}

// A caller that sends nothing must not keep its place.
func TestExecWithoutFirstMessage(t *testing.T) {
	server.SetStartWait(t, 20*time.Millisecond)
	n := newNode(t)
	_, _, exit, err := collect(execStream(t, n))
	if want := "input: no start within 20ms"; status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != want {
		t.Errorf("got %v, %v; want %s", exit, err, want)
	}
}

// A command ends when nothing has moved for too long, and says so.
func TestExecIdle(t *testing.T) {
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	stream := execStream(t, n)
	send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"sh", "-c", "echo one; exec sleep 600"}, IdleTimeout: durationpb.New(300 * time.Millisecond)}))
	stdout, _, exit, err := collect(stream)
	if err != nil || stdout != "one\n" && stdout != "" || !exit.GetIdledOut() || exit.GetTimedOut() || exit.GetCode() != 143 {
		t.Errorf("got %q, %v, %v; want status 143 of an idle command", stdout, exit, err)
	}
}

// A command that was ended names what escaped from it.
func TestExecSurvivors(t *testing.T) {
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	stream := execStream(t, n)
	send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, IdleTimeout: durationpb.New(2 * time.Second), Argv: []string{"sh", "-c",
		"setsid sleep 7001 <&- >&- 2>&- & until grep -q sleep /proc/$!/comm; do sleep 0.02; done; echo $!; exec sleep 7002"}}))
	stdout, _, exit, err := collect(stream)
	if err != nil || !exit.GetIdledOut() || len(exit.GetSurvivors()) != 1 {
		t.Fatalf("got %q, %v, %v; want one survivor", stdout, exit, err)
	}
	survivor := exit.GetSurvivors()[0]
	if survivor.GetCommand() != "sleep 7001" || fmt.Sprintln(survivor.GetPid()) != stdout {
		t.Errorf("got %v, want sleep 7001 with PID %s", survivor, stdout)
	}
	if err := syscall.Kill(int(survivor.GetPid()), syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// A caller that names the instance it means gets no answer from another one.
func TestExecInstanceChanges(t *testing.T) {
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	running, err := n.Manager.Running(t.Context(), 901)
	if err != nil {
		t.Fatal(err)
	}
	stream := execStream(t, n)
	send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"cat"}, Stdin: true, Instance: running.Instance}))
	if _, err := stream.Recv(); err != nil { // started
		t.Fatal(err)
	}
	if err := errors.Join(n.Runtime.Stop(t.Context(), 901), n.Runtime.Start(t.Context(), 901)); err != nil {
		t.Fatal(err)
	}
	send(t, stream, &typev1.ExecInput{Input: &typev1.ExecInput_StdinEnd{StdinEnd: &typev1.ExecStdinEnd{}}})
	if _, _, exit, err := collect(stream); status.Code(err) != codes.Aborted || reason(t, err) != "INSTANCE_CHANGED" {
		t.Errorf("got %v, %v; want INSTANCE_CHANGED", exit, err)
	}
}

// A message is as long as the memory that it takes while nobody reads it.
func TestExecPadding(t *testing.T) {
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	stream := execStream(t, n)
	send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"cat"}, Stdin: true}))
	if _, err := stream.Recv(); err != nil { // started
		t.Fatal(err)
	}
	for _, test := range []struct{ bytes, want int }{{1, 512}, {512, 512}, {513, 513}, {960, 960}, {961, 4032}, {4032, 4032}} {
		send(t, stream, &typev1.ExecInput{Input: &typev1.ExecInput_Stdin{Stdin: make([]byte, test.bytes)}})
		resp, err := stream.Recv() // cat writes what it reads, and a pipe gives that much in one piece
		if err != nil {
			t.Fatal(err)
		}
		out := resp.GetOutput()
		if len(out.GetStdout()) != test.bytes || len(out.GetStdout())+len(out.GetPadding()) != test.want {
			t.Errorf("%d bytes came as %d with %d of padding, want %d in all", test.bytes, len(out.GetStdout()), len(out.GetPadding()), test.want)
		}
	}
}

// A signal must reach a command that does not read its stdin.
func TestExecSignalBehindUnreadStdin(t *testing.T) {
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	stream := execStream(t, n)
	send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"sleep", "60"}, Stdin: true}))
	for range 6 { // a pipe holds 64 KiB, and the agent 128
		send(t, stream, &typev1.ExecInput{Input: &typev1.ExecInput_Stdin{Stdin: bytes.Repeat([]byte("x"), 32<<10)}})
	}
	send(t, stream, &typev1.ExecInput{Input: &typev1.ExecInput_Signal{Signal: &typev1.ExecSignal{Name: "TERM"}}})
	_, _, exit, err := collect(stream)
	if err != nil || exit.GetCode() != 128+15 {
		t.Errorf("got %v, %v; want status 143", exit, err)
	}
}

func TestExecLimitPerContainer(t *testing.T) {
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	client := agentv1.NewExecServiceClient(n.Dial(t))
	var streams []agentv1.ExecService_ExecClient
	for range 8 {
		stream, err := client.Exec(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"cat"}, Stdin: true}))
		if _, err := stream.Recv(); err != nil { // started
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	ninth := execStream(t, n)
	send(t, ninth, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"true"}}))
	if _, _, _, err := collect(ninth); status.Code(err) != codes.ResourceExhausted || reason(t, err) != "LIMIT_EXCEEDED" {
		t.Errorf("the ninth command: %v, want LIMIT_EXCEEDED", err)
	}
	for _, stream := range streams {
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, _, exit, err := collect(stream); err != nil || exit.GetCode() != 0 {
			t.Errorf("after stdin's end: %v, %v", exit, err)
		}
	}
}
