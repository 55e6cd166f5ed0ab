package attach_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
)

func TestMain(m *testing.M) { lxctest.Main(m) }

// both runs a test in a privileged and in an unprivileged container.
func both(t *testing.T, f func(t *testing.T, c *lxctest.Container)) {
	for _, unprivileged := range []bool{false, true} {
		t.Run(fmt.Sprintf("unprivileged %v", unprivileged), func(t *testing.T) {
			f(t, lxctest.Start(t, lxctest.Config{Unprivileged: unprivileged}))
		})
	}
}

// run runs a command to its end and returns its output too.
func run(t *testing.T, c attach.Command) (exit attach.Exit, stdout, stderr string, err error) {
	t.Helper()
	return runBy(t, attach.Attacher{}, c)
}

func runBy(t *testing.T, a attach.Attacher, c attach.Command) (exit attach.Exit, stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	p, err := a.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	exit, err = p.Wait()
	return exit, out.String(), errOut.String(), err
}

// same compares two ends. Whoever was left is looked at by the tests that leave somebody.
func same(got, want attach.Exit) bool {
	got.Survivors = nil
	return reflect.DeepEqual(got, want)
}

func TestCommand(t *testing.T) {
	both(t, func(t *testing.T, c *lxctest.Container) {
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
			{name: "program like an option", argv: []string{"--help"}, code: 127,
				stderr: "lxc-attach: CTID: ../src/lxc/attach.c: lxc_attach_run_command: 1841 No such file or directory - Failed to exec \"--help\"\n"},
			{name: "not found", argv: []string{"/bin/nosuch"}, code: 127,
				stderr: "lxc-attach: CTID: ../src/lxc/attach.c: lxc_attach_run_command: 1841 No such file or directory - Failed to exec \"/bin/nosuch\"\n"},
			{name: "not executable", argv: []string{"/etc"}, code: 126,
				stderr: "lxc-attach: CTID: ../src/lxc/attach.c: lxc_attach_run_command: 1841 Permission denied - Failed to exec \"/etc\"\n"},
			{name: "environment", argv: []string{"env"}, env: []string{"A=b c=d\té", "_X9="},
				stdout: "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\ncontainer=lxc\nA=b c=d\té\n_X9=\n"},
			{name: "root in /", argv: []string{"sh", "-c", "pwd; id -u; id -g"}, stdout: "/\n0\n0\n"},
			{name: "no stdin", argv: []string{"cat"}},
			{name: "stdin", argv: []string{"wc", "-c"}, stdin: strings.NewReader(strings.Repeat("x", 1<<20)), stdout: "1048576\n"},
			{name: "stdin that nobody reads", argv: []string{"true"}, stdin: strings.NewReader(strings.Repeat("x", 1<<20))},
			{name: "bytes that are no text", argv: []string{"printf", `\000\377\r\n\033`}, stdout: "\x00\xff\r\n\x1b"},
		} {
			t.Run(test.name, func(t *testing.T) {
				exit, stdout, stderr, err := run(t, attach.Command{CTID: c.CTID, Argv: test.argv, Env: test.env, Stdin: test.stdin})
				want := attach.Exit{Code: test.code, OutputComplete: true, NotStarted: test.code == 126 || test.code == 127}
				if err != nil || !same(exit, want) {
					t.Errorf("%q: exit %+v, %v, want %+v", test.argv, exit, err, want)
				}
				stderr = strings.ReplaceAll(stderr, strconv.Itoa(int(c.CTID)), "CTID")
				if stdout != test.stdout || stderr != test.stderr {
					t.Errorf("%q: stdout %q, stderr %q, want %q, %q", test.argv, stdout, stderr, test.stdout, test.stderr)
				}
			})
		}
	})
}

func TestInvalidCommand(t *testing.T) {
	for _, test := range []struct {
		name    string
		command attach.Command
		want    string
	}{
		{"CTID", attach.Command{CTID: 99, Argv: []string{"true"}}, "run a command in CTID 99: no such CTID"},
		{"no program", attach.Command{CTID: 901}, "run a command in CTID 901: no program"},
		{"empty program", attach.Command{CTID: 901, Argv: []string{"", "a"}}, "run a command in CTID 901: no program"},
		{"NUL", attach.Command{CTID: 901, Argv: []string{"a", "b\x00c"}}, "run a command in CTID 901: NUL in an argument"},
		{"variable", attach.Command{CTID: 901, Argv: []string{"true"}, Env: []string{"A"}}, `run a command in CTID 901: variable "A": not NAME=VALUE`},
		{"terminal", attach.Command{CTID: 901, Argv: []string{"true"}, TTY: true, Columns: 4097, Rows: 1}, "run a command in CTID 901: terminal of 4097 by 1: not 1 to 4096"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := attach.Attacher{}.Start(t.Context(), test.command)
			if err == nil || err.Error() != test.want {
				t.Errorf("start: %v, want %s", err, test.want)
			}
		})
	}
}

func TestCheckEnv(t *testing.T) {
	for _, test := range []struct{ variable, want string }{
		{"A=", ""},
		{"_a9=x=y\tz", ""},
		{strings.Repeat("A", 128) + "=", ""},
		{"A", `variable "A": not NAME=VALUE`},
		{"=x", `variable "=x": the name is empty or too long`},
		{strings.Repeat("A", 129) + "=", `variable "` + strings.Repeat("A", 40) + `": the name is empty or too long`},
		{"9A=", `variable "9A=": the name has a character other than letters, digits and _, or begins with a digit`},
		{"A B=", `variable "A B=": the name has a character other than letters, digits and _, or begins with a digit`},
		{"Ä=", `variable "Ä=": the name has a character other than letters, digits and _, or begins with a digit`},
		{"A=a\nb", "variable A: control character 0xa in the value"},
		{"A=a\rb", "variable A: control character 0xd in the value"},
		{"A=\x00", "variable A: control character 0x0 in the value"},
		{"A=\x7f", "variable A: control character 0x7f in the value"},
		{"A=\xff", "variable A: the value is not UTF-8"},
	} {
		got := ""
		if err := attach.CheckEnv(test.variable); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("CheckEnv(%q) is %q, want %q", test.variable, got, test.want)
		}
	}
}

// A failure of lxc-attach and a command that ends with 1 have the same status.
func TestAttachFailure(t *testing.T) {
	t.Run("not running", func(t *testing.T) {
		c := lxctest.New(t, lxctest.Config{})
		_, _, _, err := run(t, attach.Command{CTID: c.CTID, Argv: []string{"true"}})
		want := fmt.Sprintf("attach to CTID %d: cannot enter the container: Connection refused - Failed to get init pid; Connection refused - Failed to get attach context", c.CTID)
		if !errors.Is(err, attach.ErrAttach) || err.Error() != want {
			t.Errorf("command in a stopped container: %v, want an ErrAttach: %s", err, want)
		}
	})
	// lxc-attach then complains on the terminal, whose output is held until the command begins.
	t.Run("not running, with a terminal", func(t *testing.T) {
		c := lxctest.New(t, lxctest.Config{})
		_, stdout, _, err := run(t, attach.Command{CTID: c.CTID, TTY: true, Argv: []string{"true"}})
		if !errors.Is(err, attach.ErrAttach) || !strings.Contains(stdout, "Failed to get init pid") {
			t.Errorf("command in a stopped container: %v, output %q, want an ErrAttach and the complaint", err, stdout)
		}
	})
	t.Run("no lxc-attach", func(t *testing.T) {
		_, err := attach.Attacher{Path: "/nonexistent"}.Start(t.Context(), attach.Command{CTID: 901, Argv: []string{"true"}})
		if !errors.Is(err, attach.ErrAttach) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v, want an ErrAttach for a missing file", err)
		}
	})
	t.Run("command fails after an error that lxc-attach survived", func(t *testing.T) {
		c := lxctest.Start(t, lxctest.Config{Lines: []string{"lxc.cgroup2.devices.deny = c 1:3 rwm"}})
		for _, tty := range []bool{false, true} {
			exit, _, _, err := run(t, attach.Command{CTID: c.CTID, Argv: []string{"false"}, TTY: tty})
			if want := (attach.Exit{Code: 1, OutputComplete: true}); err != nil || !same(exit, want) {
				t.Errorf("false: %+v, %v, want %+v", exit, err, want)
			}
		}
	})
}

// What a process of ours has must not be in the container.
func TestNothingLeaks(t *testing.T) {
	// A directory of the host that a library opened without close-on-exec.
	fd, err := unix.Open("/etc", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	t.Setenv("LD_PRELOAD", "/nonexistent.so")
	t.Setenv("LXC_MEMFD_REXEC", "1")
	both(t, func(t *testing.T, c *lxctest.Container) {
		// The shell's own descriptor of the directory is 3.
		_, got, _, err := run(t, attach.Command{CTID: c.CTID, Argv: []string{"sh", "-c", "echo /proc/self/fd/*; for i in 0 1; do readlink /proc/$$/fd/$i | sed 's/[0-9]*//g'; done"}})
		want := "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\npipe:[]\npipe:[]\n"
		if err != nil || got != want {
			t.Errorf("descriptors %q, %v, want %q", got, err, want)
		}

		const look = "grep -E '^(Umask|SigBlk|SigIgn|NoNewPrivs|Seccomp|CapBnd|Groups)' /proc/self/status; cat /proc/self/limits; env"
		_, got, _, err = run(t, attach.Command{CTID: c.CTID, Argv: []string{"sh", "-c", look}})
		if err != nil {
			t.Error(err)
		}
		plain := exec.Command("lxc-attach", "-n", strconv.Itoa(int(c.CTID)), "--clear-env", "--", "sh", "-c", look)
		plain.Dir = "/"
		plain.Env = []string{"PATH=/usr/bin:/bin"}
		b, err := plain.Output()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(b), got); diff != "" {
			t.Errorf("process in the container (-plain lxc-attach +got):\n%s", diff)
		}
	})
}

func TestOutputIsComplete(t *testing.T) {
	both(t, func(t *testing.T, c *lxctest.Container) {
		const size = 8<<20 + 7
		wantOut := sha256.Sum256([]byte(strings.Repeat("a\n", size)[:size]))
		wantErr := sha256.Sum256([]byte(strings.Repeat("b\n", size)[:size]))
		out, errOut := sha256.New(), sha256.New()
		p, err := attach.Attacher{}.Start(t.Context(), attach.Command{
			CTID: c.CTID, Stdout: out, Stderr: errOut,
			Argv: []string{"sh", "-c", fmt.Sprintf("yes a | head -c %d & yes b | head -c %[1]d >&2; wait", size)},
		})
		if err != nil {
			t.Fatal(err)
		}
		exit, err := p.Wait()
		if want := (attach.Exit{OutputComplete: true}); err != nil || !same(exit, want) {
			t.Errorf("%+v, %v, want %+v", exit, err, want)
		}
		if [32]byte(out.Sum(nil)) != wantOut || [32]byte(errOut.Sum(nil)) != wantErr {
			t.Error("the output is not what the command wrote")
		}
	})
}

// A command that writes as its last act loses nothing, however often it is run.
func TestLastOutput(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	for _, tty := range []bool{false, true} {
		for range 30 {
			_, stdout, _, err := run(t, attach.Command{CTID: c.CTID, TTY: tty, Argv: []string{"sh", "-c", "printf %04000d 7"}})
			if err != nil || len(stdout) != 4000 {
				t.Fatalf("tty %v: %d bytes, %v, want 4000", tty, len(stdout), err)
			}
		}
	}
}

func TestChildThatKeepsTheOutput(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	var out bytes.Buffer
	p, err := attach.Attacher{Drain: 50 * time.Millisecond}.Start(t.Context(), attach.Command{
		CTID: c.CTID, Stdout: &out, Argv: []string{"sh", "-c", "echo before; sleep 60 & exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait()
	if want := (attach.Exit{Code: 3}); err != nil || !same(exit, want) || out.String() != "before\n" {
		t.Errorf("%+v, %v, output %q, want %+v", exit, err, out.String(), want)
	}
	// It is the container's: a command may start a daemon.
	if got := c.Run(t, "ps | grep -c '[s]leep 60'"); got != "1\n" {
		t.Errorf("%s children live, want 1", got)
	}
}

// The command waits for a reader that does not read.
func TestBackPressure(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	pr, pw := io.Pipe()
	p, err := attach.Attacher{}.Start(t.Context(), attach.Command{CTID: c.CTID, Stdout: pw,
		Argv: []string{"sh", "-c", "i=0; while [ $i -lt 50 ]; do head -c 10000 /dev/zero; i=$((i+1)); echo $i >/progress; done"}})
	if err != nil {
		t.Fatal(err)
	}
	progress := func() int {
		b, _ := os.ReadFile(filepath.Join(c.Rootfs, "progress"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		return n
	}
	// What a pipe and one chunk hold.
	waitFor(t, func() bool { return progress() >= 3 })
	if got := progress(); got > 10 {
		t.Errorf("the command wrote %d0000 bytes that nobody has read, want at most 100000", got)
	}
	go func() {
		p.Wait()
		pw.Close()
	}()
	if n, err := io.Copy(io.Discard, pr); err != nil || n != 500000 {
		t.Errorf("read %d bytes, %v, want 500000", n, err)
	}
}

// A reader that is slower than everything still gets all of it.
func TestSlowReader(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	pr, pw := io.Pipe()
	p, err := attach.Attacher{Drain: time.Nanosecond}.Start(t.Context(), attach.Command{
		CTID: c.CTID, Stdout: pw, Argv: []string{"sh", "-c", "yes | head -c 60000; touch /done"}})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		_, err := os.Stat(filepath.Join(c.Rootfs, "done"))
		return err == nil
	})
	var got int64
	var wg sync.WaitGroup
	wg.Go(func() { got, _ = io.Copy(io.Discard, pr) })
	exit, err := p.Wait()
	pw.Close()
	wg.Wait()
	if want := (attach.Exit{OutputComplete: true}); err != nil || !same(exit, want) || got != 60000 {
		t.Errorf("got %d bytes, %+v, %v, want 60000, %+v", got, exit, err, want)
	}
}

// waitFor waits until something is so; the test ends if that does not come soon.
func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); !f(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("waited for five seconds in vain")
		}
	}
}

func TestTerminal(t *testing.T) {
	both(t, func(t *testing.T, c *lxctest.Container) {
		pr, pw := io.Pipe()
		screen := &screen{changed: make(chan struct{}, 1)}
		p, err := attach.Attacher{}.Start(t.Context(), attach.Command{
			CTID: c.CTID, TTY: true, Columns: 100, Rows: 30, Stdin: pr, Stdout: screen, Env: []string{"PS1=$ "},
			Argv: []string{"sh"},
		})
		if err != nil {
			t.Fatal(err)
		}
		screen.wait(t, "$ ")
		for _, step := range []struct{ typed, want string }{
			{"stty size\n", "30 100\r\n"},
			{"tty\n", "/dev/pts/"},
			{"echo $((6*7)) >&2\n", "42\r\n"},
			{"(echo go; exec sleep 60); echo status $?\n", "go\r\n"},
			{"\x03", "$ "},
		} {
			fmt.Fprint(pw, step.typed)
			screen.wait(t, step.want)
		}
		fmt.Fprint(pw, "exit 5\n")
		exit, err := p.Wait()
		if want := (attach.Exit{Code: 5, OutputComplete: true}); err != nil || !same(exit, want) {
			t.Errorf("%+v, %v, want %+v", exit, err, want)
		}
		pw.Close()
	})
}

func TestResize(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	screen := &screen{changed: make(chan struct{}, 1)}
	p, err := attach.Attacher{}.Start(t.Context(), attach.Command{CTID: c.CTID, TTY: true, Stdout: screen,
		Argv: []string{"sh", "-c", "trap 'stty size; exit' WINCH; stty size; while :; do sleep 60 & wait $!; done"}})
	if err != nil {
		t.Fatal(err)
	}
	screen.wait(t, "24 80\r\n")
	if err := p.Resize(0, 43); err == nil {
		t.Error("resize to 0 columns: no error")
	}
	if err := p.Resize(132, 43); err != nil {
		t.Error(err)
	}
	screen.wait(t, "43 132\r\n")
	if _, err := p.Wait(); err != nil {
		t.Error(err)
	}
	if err := p.Resize(80, 24); err != nil {
		t.Errorf("resize after the end: %v, want nil", err)
	}
}

// The end of the caller's stdin ends a program that reads a terminal.
func TestTerminalStdinEnds(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	exit, stdout, _, err := run(t, attach.Command{CTID: c.CTID, TTY: true, Argv: []string{"cat"}, Stdin: strings.NewReader("a\n")})
	if want := (attach.Exit{OutputComplete: true}); err != nil || !same(exit, want) || !strings.HasPrefix(stdout, "a\r\na\r\n") {
		t.Errorf("cat: %+v, %v, output %q, want %+v, the echo and the line", exit, err, stdout, want)
	}
}

// A screen keeps what a terminal shows.
type screen struct {
	mu      sync.Mutex
	text    string // not found by wait yet
	changed chan struct{}
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text += string(b)
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return len(b), nil
}

// find looks for a text and takes what stands up to it away.
func (s *screen) find(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, after, found := strings.Cut(s.text, text)
	if found {
		s.text = after
	}
	return found
}

func (s *screen) wait(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(5 * time.Second)
	for !s.find(text) {
		select {
		case <-s.changed:
		case <-timeout:
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("waited for %q, the terminal shows %q", text, s.text)
		}
	}
}
