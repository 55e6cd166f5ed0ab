package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/cli"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// A remote is the other side of an exec, for a fake.
type remote struct {
	controllerv1.ContainerService_ExecServer
}

func (r remote) stdout(s string) error {
	return r.Send(&controllerv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Stdout{Stdout: []byte(s)}}})
}

func (r remote) stderr(s string) error {
	return r.Send(&controllerv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Stderr{Stderr: []byte(s)}}})
}

func (r remote) exit(exit *typev1.ExecExit) error {
	return r.Send(&controllerv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Exit{Exit: exit}}})
}

// exec returns a fake whose commands are run by do, after the message that begins them was kept.
func execFake(start *typev1.ExecStart, do func(remote) error) *fake {
	return &fake{exec: func(stream controllerv1.ContainerService_ExecServer) error {
		first, err := stream.Recv()
		if err != nil {
			return err
		}
		if first.GetInput().GetStart() == nil {
			return errors.New("the first message is no start")
		}
		if start != nil {
			proto.Merge(start, first.GetInput().GetStart())
		}
		if err := stream.Send(&controllerv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Started{Started: &typev1.ExecStarted{}}}}); err != nil {
			return err
		}
		return do(remote{stream})
	}}
}

func done(code int32) *typev1.ExecExit { return &typev1.ExecExit{Code: code, OutputComplete: true} }

func TestExecStart(t *testing.T) {
	hour := durationpb.New(time.Hour)
	for _, test := range []struct {
		args string
		want *typev1.ExecStart
	}{
		{"exec 901 ls -la /", &typev1.ExecStart{Ctid: 901, Argv: []string{"ls", "-la", "/"}, Timeout: hour}},
		{"exec 901 -- ls -- -la", &typev1.ExecStart{Ctid: 901, Argv: []string{"ls", "--", "-la"}, Timeout: hour}},
		{"exec -- 901 ls", &typev1.ExecStart{Ctid: 901, Argv: []string{"ls"}, Timeout: hour}},
		{"exec -i -e A=b -e C=d=e --timeout 5s 901 cat --json", &typev1.ExecStart{Ctid: 901, Argv: []string{"cat", "--json"},
			Env: []string{"A=b", "C=d=e"}, Stdin: true, Timeout: durationpb.New(5 * time.Second)}},
		{"exec -n -u www-data:33 -w /srv --idle-timeout 1m 901 id", &typev1.ExecStart{Ctid: 901, Argv: []string{"id"}, Timeout: hour,
			User: "www-data:33", WorkingDirectory: "/srv", IdleTimeout: durationpb.New(time.Minute)}},
	} {
		t.Run(test.args, func(t *testing.T) {
			var start typev1.ExecStart
			got := run(t, execFake(&start, func(r remote) error { return r.exit(done(0)) }), nil, strings.Fields(test.args)...)
			if got != (result{}) {
				t.Errorf("got %+v, want nothing and exit 0", got)
			}
			if diff := cmp.Diff(test.want, &start, protocmp.Transform()); diff != "" {
				t.Errorf("start (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExecEnd(t *testing.T) {
	for _, test := range []struct {
		name string
		args string
		do   func(remote) error
		want result
	}{
		{"done", "exec 901 true", func(r remote) error { return r.exit(done(0)) }, result{}},
		{"status of the command", "exec 901 x", func(r remote) error { return r.exit(done(42)) }, result{code: 42}},
		{"ended by a signal", "exec 901 x", func(r remote) error { return r.exit(done(137)) }, result{code: 137}},
		{"not found", "exec 901 x", func(r remote) error {
			return errors.Join(r.stderr("x: not found\n"), r.exit(done(127)))
		}, result{stderr: "x: not found\n", code: 127}},
		{"not started", "exec 901 x", func(r remote) error {
			return r.exit(&typev1.ExecExit{Code: 127, OutputComplete: true, NotStarted: true})
		}, result{stderr: "phoenix-cli: exec in CTID 901: the container has no such program, or lacks what that needs to start: the loader of its " +
			"C library (a program for glibc in a container with musl, or the other way round) or the interpreter of a script\n", code: 127}},
		{"both streams, as they are", "exec 901 x", func(r remote) error {
			return errors.Join(r.stdout("a\x1b[1m\x00\xff"), r.stderr("b\r\n"), r.stdout("c"), r.exit(done(0)))
		}, result{stdout: "a\x1b[1m\x00\xffc", stderr: "b\r\n"}},
		{"time is over", "exec --timeout 2s 901 x", func(r remote) error {
			return r.exit(&typev1.ExecExit{Code: 143, OutputComplete: true, TimedOut: true})
		}, result{code: 143, stderr: "phoenix-cli: exec in CTID 901: the command was ended because its time of 2s was over; --timeout gives more\n"}},
		{"idle for too long", "exec --idle-timeout 3s 901 x", func(r remote) error {
			return r.exit(&typev1.ExecExit{Code: 143, OutputComplete: true, IdledOut: true, MoreSurvivors: 3, Survivors: []*typev1.ExecSurvivor{
				{Pid: 4711, Command: "sleep 600"}, {Pid: 4712, Command: "\x1b[2J"}}})
		}, result{code: 143, stderr: "phoenix-cli: exec in CTID 901: the command was ended because nothing went in or out for 3s (--idle-timeout)\n" +
			"phoenix-cli: exec in CTID 901: left behind, and still running: sleep 600 (PID 4711 on the node)\n" +
			"phoenix-cli: exec in CTID 901: left behind, and still running: \\x1b[2J (PID 4712 on the node)\n" +
			"phoenix-cli: exec in CTID 901: left behind, and still running: 3 more\n"}},
		{"output is not complete", "exec 901 x", func(r remote) error {
			return r.exit(&typev1.ExecExit{Code: 0})
		}, result{stderr: "phoenix-cli: exec in CTID 901: the output may lack its end: a process that the command left behind still holds it\n"}},
		{"answer without an end", "exec 901 x", func(r remote) error { return r.stdout("a") },
			result{stdout: "a", code: 1, stderr: "phoenix-cli: exec in CTID 901: the answer ended before the command did\n"}},
		{"JSON", "exec --json 901 x", func(r remote) error {
			padded := &typev1.ExecOutput{Output: &typev1.ExecOutput_Stdout{Stdout: []byte("hi")}, Padding: make([]byte, 512)}
			return errors.Join(r.Send(&controllerv1.ExecResponse{Output: padded}), r.exit(done(3)))
		}, result{code: 3, stdout: `{"output":{"started":{"instance":""}}}` + "\n" + `{"output":{"stdout":"aGk="}}` + "\n" +
			`{"output":{"exit":{"code":3,"output_complete":true,"timed_out":false,"idled_out":false,"not_started":false,"survivors":[],"more_survivors":0}}}` + "\n"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := run(t, execFake(nil, test.do), nil, strings.Fields(test.args)...); got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// TestExecStdin sends more than a message holds, and the end.
func TestExecStdin(t *testing.T) {
	sent := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	var received bytes.Buffer
	f := execFake(nil, func(r remote) error {
		for {
			m, err := r.Recv()
			if err != nil {
				return err
			}
			switch in := m.GetInput().GetInput().(type) {
			case *typev1.ExecInput_Stdin:
				if len(in.Stdin) > 32<<10 {
					return fmt.Errorf("%d bytes in one message", len(in.Stdin))
				}
				received.Write(in.Stdin)
			case *typev1.ExecInput_StdinEnd:
				return r.exit(done(0))
			default:
				return fmt.Errorf("unexpected %v", m)
			}
		}
	})
	got := run(t, f, bytes.NewReader(sent), "exec", "-i", "901", "cat")
	if got != (result{}) || !bytes.Equal(received.Bytes(), sent) {
		t.Errorf("got %+v and %d bytes on the other side, want %d", got, received.Len(), len(sent))
	}
}

// TestExecStdinIsNotRead leaves stdin alone without -i, so that a loop over lines can call exec.
func TestExecStdinIsNotRead(t *testing.T) {
	stdin := strings.NewReader("next line")
	run(t, execFake(nil, func(r remote) error { return r.exit(done(0)) }), stdin, "exec", "901", "true")
	if stdin.Len() != len("next line") {
		t.Errorf("%d bytes of stdin were read", len("next line")-stdin.Len())
	}
}

// TestExecEndsWithoutStdin ends with the command although stdin goes on.
func TestExecEndsWithoutStdin(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	got := run(t, execFake(nil, func(r remote) error { return r.exit(done(5)) }), r, "exec", "-i", "901", "true")
	if got.code != 5 {
		t.Errorf("got %+v, want exit 5", got)
	}
}

// endless is an input without end.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// Whoever interrupts a command in many containers gets an account of each, and all of them end.
func TestExecManyInterrupted(t *testing.T) {
	var begun atomic.Int32
	ended := make(chan struct{}, 3)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	f := execFake(nil, func(r remote) error {
		defer func() { ended <- struct{}{} }()
		if begun.Add(1) == 3 {
			interrupt()
		}
		<-r.Context().Done()
		return r.Context().Err()
	})
	settle(t)
	var stdout, stderr bytes.Buffer
	p := cli.Program{In: new(bytes.Buffer), Out: &stdout, Err: &stderr, Connect: f.serve(t), Now: func() time.Time { return now }}
	const want = "phoenix-cli: CTID 901 on pve1: interrupted\nphoenix-cli: CTID 910 on pve1: interrupted\n" +
		"phoenix-cli: CTID 912 on pve2: interrupted\nphoenix-cli: succeeded in 0 of 3 containers\n"
	if code := p.Run(ctx, []string{"exec", "--all", "--", "x"}); code != 1 || stdout.String() != "" || stderr.String() != want {
		t.Errorf("exit status %d, stdout %q, stderr %q; want 1, nothing and %q", code, stdout.String(), stderr.String(), want)
	}
	for range 3 {
		<-ended
	}
}

func TestExecSignals(t *testing.T) {
	t.Run("goes to the command", func(t *testing.T) {
		var name string
		f := execFake(nil, func(r remote) error {
			if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
				return err
			}
			m, err := r.Recv()
			name = m.GetInput().GetSignal().GetName()
			return errors.Join(err, r.exit(done(138)))
		})
		if got := run(t, f, nil, "exec", "901", "x"); got.code != 138 || name != "USR1" {
			t.Errorf("got %+v and signal %q, want exit 138 and USR1", got, name)
		}
	})
	for name, stdin := range map[string]io.Reader{
		"ends the call behind stdin without end that nobody reads": endless{},
		"ends the call behind stdin that was sent and nobody read": strings.NewReader("all of it"),
	} {
		t.Run(name, func(t *testing.T) {
			cli.SetSignalWait(t, 50*time.Millisecond)
			f := execFake(nil, func(r remote) error {
				if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
					return err
				}
				<-r.Context().Done()
				return r.Context().Err()
			})
			want := result{"", "phoenix-cli: interrupted\n", 1}
			if got := run(t, f, stdin, "exec", "-i", "901", "x"); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	t.Run("lets a command end in its own time that has got it", func(t *testing.T) {
		cli.SetSignalWait(t, 2*time.Second)
		f := execFake(nil, func(r remote) error {
			if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
				return err
			}
			for {
				m, err := r.Recv()
				if err != nil {
					return err
				}
				if m.GetInput().GetSignal() != nil {
					break
				}
			}
			if err := r.Send(&controllerv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Signalled{Signalled: &typev1.ExecSignalled{}}}}); err != nil {
				return err
			}
			select {
			case <-time.After(2500 * time.Millisecond):
			case <-r.Context().Done():
			}
			return r.exit(done(9))
		})
		if got, want := run(t, f, strings.NewReader("all of it"), "exec", "-i", "901", "x"), (result{code: 9}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
	t.Run("ends the call at the third time", func(t *testing.T) {
		f := execFake(nil, func(r remote) error {
			for range 2 {
				if err := syscall.Kill(os.Getpid(), syscall.SIGUSR2); err != nil {
					return err
				}
				if _, err := r.Recv(); err != nil {
					return err
				}
			}
			if err := syscall.Kill(os.Getpid(), syscall.SIGUSR2); err != nil {
				return err
			}
			<-r.Context().Done() // a command that ignores everything
			return r.Context().Err()
		})
		want := result{"", "phoenix-cli: interrupted\n", 1}
		if got := run(t, f, nil, "exec", "901", "x"); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// A console is a person's terminal with phoenix-cli on it.
type console struct {
	person, tty *os.File
	output      chan string // everything written, once the terminal is closed
}

func newConsole(t *testing.T) *console {
	t.Helper()
	person, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo-terminal here: %v", err)
	}
	c := &console{person: person, tty: tty, output: make(chan string, 1)}
	c.resize(t, 30, 100)
	go func() {
		b, _ := io.ReadAll(person) // ends with EIO when the other side is closed
		c.output <- string(b)
	}()
	t.Cleanup(func() { tty.Close(); person.Close() })
	return c
}

// resize makes the terminal so large.
func (c *console) resize(t *testing.T, rows, columns uint16) {
	t.Helper()
	if err := pty.Setsize(c.person, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		t.Fatal(err)
	}
}

// run runs phoenix-cli with all streams on the terminal, and returns what it wrote.
func (c *console) run(t *testing.T, f *fake, now func() time.Time, args ...string) (output string, code int) {
	t.Helper()
	settle(t)
	p := cli.Program{In: c.tty, Out: c.tty, Err: c.tty, Connect: f.serve(t), Now: now}
	code = p.Run(t.Context(), args)
	c.tty.Close()
	return <-c.output, code
}

func TestExecTerminal(t *testing.T) {
	c := newConsole(t)
	before, err := term.GetState(int(c.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	// Another descriptor of the same terminal, to look at it when phoenix-cli has closed its own.
	again, err := os.OpenFile(c.tty.Name(), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()

	var start typev1.ExecStart
	var typed string
	var during *term.State
	f := execFake(&start, func(r remote) error {
		if _, err := c.person.WriteString("ls\x03\r"); err != nil { // Ctrl-C is data
			return err
		}
		for len(typed) < 4 {
			m, err := r.Recv()
			if err != nil {
				return err
			}
			typed += string(m.GetInput().GetStdin())
		}
		var err error
		if during, err = term.GetState(int(again.Fd())); err != nil {
			return err
		}
		if err := pty.Setsize(c.person, &pty.Winsize{Rows: 50, Cols: 132}); err != nil {
			return err
		}
		// The kernel tells the terminal's own processes; this test is none.
		if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
			return err
		}
		m, err := r.Recv()
		if err != nil {
			return err
		}
		if size := m.GetInput().GetResize(); size.GetColumns() != 132 || size.GetRows() != 50 {
			return fmt.Errorf("resize: %v", m)
		}
		return errors.Join(r.stdout("prompt$ "), r.exit(done(7)))
	})
	settle(t)
	p := cli.Program{In: c.tty, Out: c.tty, Err: c.tty, Connect: f.serve(t)}
	code := p.Run(t.Context(), []string{"exec", "-it", "901", "sh"})
	after, err := term.GetState(int(again.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	c.tty.Close()

	if code != 7 {
		t.Errorf("exit %d, want 7", code)
	}
	if typed != "ls\x03\r" {
		t.Errorf("the command read %q, want %q", typed, "ls\x03\r")
	}
	if got := start.GetSize(); !start.GetTty() || got.GetColumns() != 100 || got.GetRows() != 30 {
		t.Errorf("start %v, want a terminal of 100 by 30", &start)
	}
	if during == nil || *during == *before {
		t.Error("the terminal was not raw while the command ran")
	}
	if *after != *before {
		t.Errorf("the terminal was left as %+v, before %+v", *after, *before)
	}
	if out := <-c.output; !strings.Contains(out, "prompt$ ") {
		t.Errorf("output %q", out)
	}
}

// TestExecTerminalRestored restores the terminal when the call fails.
func TestExecTerminalRestored(t *testing.T) {
	c := newConsole(t)
	before, err := term.GetState(int(c.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	settle(t)
	f := execFake(nil, func(remote) error { return errors.New("agent died") })
	p := cli.Program{In: c.tty, Out: c.tty, Err: c.tty, Connect: f.serve(t)}
	code := p.Run(t.Context(), []string{"exec", "-it", "901", "sh"})
	after, err := term.GetState(int(c.tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if code != 1 || *after != *before {
		t.Errorf("exit %d, terminal %+v; want exit 1, %+v", code, *after, *before)
	}
	c.tty.Close()
	if out := <-c.output; !strings.Contains(out, "phoenix-cli: exec in CTID 901: agent died\r\n") {
		t.Errorf("output %q", out)
	}
}

// TestExecSessionEnds ends a session at once when somebody else ends phoenix-cli, or the controller goes away, and leaves
// the terminal as it was.
func TestExecSessionEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(remote) error
		want string
	}{
		{"SIGTERM", func(r remote) error {
			err := syscall.Kill(os.Getpid(), syscall.SIGTERM)
			<-r.Context().Done()
			return err
		}, "phoenix-cli: interrupted\r\n"},
		{"SIGHUP", func(r remote) error {
			err := syscall.Kill(os.Getpid(), syscall.SIGHUP)
			<-r.Context().Done()
			return err
		}, "phoenix-cli: interrupted\r\n"},
		{"the controller is lost", func(remote) error { return status.Error(codes.Unavailable, "error reading from server: EOF") },
			"phoenix-cli: the controller at controller.example cannot be reached: EOF\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newConsole(t)
			before, err := term.GetState(int(c.tty.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			again, err := os.OpenFile(c.tty.Name(), os.O_RDWR|syscall.O_NOCTTY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			raw := make(chan *term.State, 1)
			f := execFake(nil, func(r remote) error {
				if _, err := c.person.WriteString("x"); err != nil {
					return err
				}
				if _, err := r.Recv(); err != nil { // it is raw, and reads
					return err
				}
				during, err := term.GetState(int(again.Fd()))
				if err != nil {
					return err
				}
				raw <- during
				return test.do(r)
			})
			settle(t)
			p := cli.Program{In: c.tty, Out: c.tty, Err: c.tty, Connect: f.serve(t)}
			code := p.Run(t.Context(), []string{"exec", "-it", "901", "sh"})
			after, err := term.GetState(int(again.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			var during *term.State
			select {
			case during = <-raw: // and nobody uses the terminal any more
			case <-time.After(10 * time.Second):
			}
			again.Close()
			c.tty.Close()
			out := <-c.output
			if code != 1 || !strings.Contains(out, test.want) {
				t.Errorf("exit %d, output %q; want exit 1, %q", code, out, test.want)
			}
			if during == nil || *during == *before || *after != *before {
				t.Errorf("the terminal was %+v before, %+v during, %+v after", before, during, after)
			}
		})
	}
}
