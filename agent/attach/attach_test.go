package attach_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
)

func TestMain(m *testing.M) { lxctest.Main(m) }

// run runs a command to its end and returns its output too.
func run(t *testing.T, c attach.Command) (exit attach.Exit, stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	p, err := attach.Attacher{}.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	exit, err = p.Wait()
	return exit, out.String(), errOut.String(), err
}

func TestCommand(t *testing.T) {
	for _, unprivileged := range []bool{false, true} {
		t.Run(fmt.Sprintf("unprivileged %v", unprivileged), func(t *testing.T) {
			c := lxctest.Start(t, lxctest.Config{Unprivileged: unprivileged})
			for _, test := range []struct {
				name   string
				argv   []string
				env    []string
				stdin  io.Reader
				stdout string
				stderr string
				code   int
			}{
				{name: "output apart", argv: []string{"sh", "-c", "echo a; echo b >&2"}, stdout: "a\n", stderr: "b\n"},
				{name: "status 1 of the command", argv: []string{"false"}, code: 1},
				{name: "status 255", argv: []string{"sh", "-c", "exit 255"}, code: 255},
				{name: "killed", argv: []string{"sh", "-c", "kill -9 $$"}, code: 137},
				{name: "arguments are not a shell's", argv: []string{"echo", "$PATH", "`id`", "-n", "a  b", ""}, stdout: "$PATH `id` -n a  b \n"},
				{name: "environment", argv: []string{"env"}, env: []string{"A=b c=d", "_X9="},
					stdout: "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\ncontainer=lxc\nA=b c=d\n_X9=\n"},
				{name: "root in /", argv: []string{"sh", "-c", "pwd; id -u; id -g; umask"}, stdout: "/\n0\n0\n0022\n"},
				{name: "no stdin", argv: []string{"cat"}},
				{name: "stdin", argv: []string{"wc", "-c"}, stdin: strings.NewReader(strings.Repeat("x", 1<<20)), stdout: "1048576\n"},
				{name: "stdin not read", argv: []string{"true"}, stdin: strings.NewReader(strings.Repeat("x", 1<<20))},
				{name: "descriptors", argv: []string{"sh", "-c", "echo /proc/self/fd/*"}, stdout: "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\n"},
			} {
				t.Run(test.name, func(t *testing.T) {
					exit, stdout, stderr, err := run(t, attach.Command{CTID: c.CTID, Argv: test.argv, Env: test.env, Stdin: test.stdin})
					want := attach.Exit{Code: test.code, OutputComplete: true}
					if err != nil || exit != want {
						t.Errorf("%q: exit %+v, %v, want %+v", test.argv, exit, err, want)
					}
					if stdout != test.stdout || stderr != test.stderr {
						t.Errorf("%q: stdout %q, stderr %q, want %q, %q", test.argv, stdout, stderr, test.stdout, test.stderr)
					}
				})
			}
		})
	}
}

func TestNotRunning(t *testing.T) {
	c := lxctest.New(t, lxctest.Config{})
	_, _, _, err := run(t, attach.Command{CTID: c.CTID, Argv: []string{"true"}})
	if !errors.Is(err, attach.ErrAttach) {
		t.Errorf("command in a stopped container: %v, want an ErrAttach", err)
	}
	t.Log(err)
}

func TestCancel(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	for _, tty := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := attach.Attacher{}.Start(ctx, attach.Command{CTID: c.CTID, TTY: tty, Argv: []string{"sh", "-c", "trap 'echo term; exit 3' TERM; trap '' HUP; echo ready; sleep 60 & wait; wait"}, Stdout: w})
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5)
		io.ReadFull(r, buf)
		cancel()
		start := time.Now()
		exit, err := p.Wait()
		t.Log(exit, err, time.Since(start))
		t.Log(c.Run(t, "ps"))
	}
}
