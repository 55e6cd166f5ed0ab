package attach_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
)

// start starts a shell script and returns when it has printed its first line, "ready".
func start(t *testing.T, ctx context.Context, a attach.Attacher, c attach.Command, script string) (*attach.Process, *bytes.Buffer) {
	t.Helper()
	var rest bytes.Buffer
	ready := make(chan struct{})
	c.Argv = []string{"sh", "-c", script}
	c.Stdout = writerFunc(func(b []byte) (int, error) {
		select {
		case <-ready:
			return rest.Write(b)
		default:
			close(ready)
			return len(b), nil
		}
	})
	p, err := a.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-ready:
	case <-time.After(5 * time.Second):
		t.Fatalf("%s: not ready after five seconds", script)
	}
	return p, &rest
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestSignal(t *testing.T) {
	both(t, func(t *testing.T, c *lxctest.Container) {
		for _, test := range []struct {
			name, signal, script string
			code                 int
			output               string
		}{
			{"command ends by it", "TERM", "echo ready; sleep 60", 143, ""},
			{"KILL", "KILL", "echo ready; sleep 60", 137, ""},
			{"command has a handler", "HUP", "trap 'echo hup; exit 4' HUP; echo ready; sleep 60 >/dev/null 2>&1 & wait", 4, "hup\n"},
			{"children get it too", "USR1", "trap : USR1; (trap 'echo child; exit' USR1; echo ready; sleep 60 >/dev/null 2>&1 & wait) & wait; wait; echo parent", 0, "child\nparent\n"},
		} {
			t.Run(test.name, func(t *testing.T) {
				p, output := start(t, t.Context(), attach.Attacher{}, attach.Command{CTID: c.CTID}, test.script)
				if err := p.Signal(test.signal); err != nil {
					t.Error(err)
				}
				exit, err := p.Wait()
				if want := (attach.Exit{Code: test.code, OutputComplete: true}); err != nil || !same(exit, want) {
					t.Errorf("%s: %+v, %v, want %+v", test.script, exit, err, want)
				}
				if got := output.String(); got != test.output {
					t.Errorf("%s: output %q, want %q", test.script, got, test.output)
				}
				if err := p.Signal(test.signal); err != nil {
					t.Errorf("signal after the end: %v, want nil", err)
				}
			})
		}
		t.Run("with a terminal", func(t *testing.T) {
			p, _ := start(t, t.Context(), attach.Attacher{}, attach.Command{CTID: c.CTID, TTY: true}, "trap 'exit 9' USR2; echo ready; sleep 60 & wait")
			if err := p.Signal("USR2"); err != nil {
				t.Error(err)
			}
			if exit, err := p.Wait(); err != nil || exit.Code != 9 {
				t.Errorf("%+v, %v, want status 9", exit, err)
			}
		})
		t.Run("at once", func(t *testing.T) {
			p, err := attach.Attacher{}.Start(t.Context(), attach.Command{CTID: c.CTID, Argv: []string{"sleep", "60"}})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Signal("TERM"); err != nil {
				t.Error(err)
			}
			exit, err := p.Wait()
			if want := (attach.Exit{Code: 143, OutputComplete: true}); err != nil || !same(exit, want) {
				t.Errorf("%+v, %v, want %+v", exit, err, want)
			}
		})
		t.Run("unknown", func(t *testing.T) {
			p, _ := start(t, t.Context(), attach.Attacher{}, attach.Command{CTID: c.CTID}, "echo ready")
			if err := p.Signal("SEGV"); err == nil || err.Error() != `no signal "SEGV"` {
				t.Errorf("signal SEGV: %v, want no signal", err)
			}
			p.Wait()
		})
	})
}

// survivors returns the command lines of the container's processes that are not init's own.
func survivors(t *testing.T, c *lxctest.Container) []string {
	t.Helper()
	var left []string
	err := filepath.WalkDir(fmt.Sprintf("/sys/fs/cgroup/lxc.payload.%d", c.CTID), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		pids, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			b, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue
			}
			if err != nil {
				return err
			}
			if line := strings.ReplaceAll(strings.Trim(string(b), "\x00"), "\x00", " "); line != "" /* dying */ && line != "/bin/sh /sbin/init" && line != "sleep 86400" {
				left = append(left, pid+": "+line)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func TestCancel(t *testing.T) {
	for _, test := range []struct {
		name, script string
		tty          bool
		code         int
		output       string
		killed       bool // had to be
	}{
		{"ends by SIGTERM", "echo ready; sleep 60", false, 143, "", false},
		{"cleans up", "trap 'echo bye; exit 3' TERM; echo ready; sleep 60 & wait", false, 3, "bye\n", false},
		{"ignores SIGTERM", "trap '' TERM; echo ready; sleep 60 & sleep 61; wait", false, 137, "", true},
		{"leaves a child that ignores SIGTERM", "(trap '' TERM; echo ready; sleep 60) & sleep 61", false, 143, "", false},
		{"is stopped", "echo ready; kill -STOP $$", false, 143, "", false},
		{"terminal", "echo ready; sleep 60", true, 129, "", false},
		{"terminal, ignores SIGHUP and SIGTERM", "trap '' HUP TERM; echo ready; sleep 60 & sleep 61; wait", true, 137, "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			both(t, func(t *testing.T, c *lxctest.Container) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				grace := 5 * time.Second
				if test.killed {
					grace = 100 * time.Millisecond
				}
				p, output := start(t, ctx, attach.Attacher{Grace: grace}, attach.Command{CTID: c.CTID, TTY: test.tty}, test.script)
				begin := time.Now()
				cancel()
				exit, err := p.Wait()
				if took := time.Since(begin); took >= grace != test.killed || took > 10*time.Second {
					t.Errorf("took %v, want %v or more: %v", took, grace, test.killed)
				}
				if want := (attach.Exit{Code: test.code, OutputComplete: true}); !errors.Is(err, context.Canceled) || !same(exit, want) {
					t.Errorf("%s: %+v, %v, want %+v, context.Canceled", test.script, exit, err, want)
				}
				if got := output.String(); got != test.output {
					t.Errorf("%s: output %q, want %q", test.script, got, test.output)
				}
				if got := survivors(t, c); got != nil {
					t.Errorf("%s left %q", test.script, got)
				}
			})
		})
	}
}

func TestTimeout(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	p, err := attach.Attacher{}.Start(t.Context(), attach.Command{CTID: c.CTID, Timeout: 100 * time.Millisecond, Argv: []string{"sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait()
	if want := (attach.Exit{Code: 143, OutputComplete: true, TimedOut: true}); err != nil || !same(exit, want) {
		t.Errorf("%+v, %v, want %+v", exit, err, want)
	}
}

// Whenever the caller goes away, nothing of the command stays.
func TestCancelAtAnyTime(t *testing.T) {
	const grace = 2 * time.Second
	both(t, func(t *testing.T, c *lxctest.Container) {
		for i := range 40 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.Int64N(int64(15*time.Millisecond))))
			p, err := attach.Attacher{Grace: grace}.Start(ctx, attach.Command{CTID: c.CTID, TTY: i%2 == 0, Argv: []string{"sh", "-c", "sleep 60 & sleep 61 & sleep 62"}})
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if _, err := p.Wait(); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("run %d: %v, want context.DeadlineExceeded", i, err)
			}
			// Most end at once. One whose SIGTERM lxc-attach dropped, just as it was about to execute the command, ends by
			// SIGKILL after the grace; what may not be is one that outlives that.
			if took := time.Since(begin); took > 3*grace {
				t.Errorf("run %d: ended after %v, want at most the grace of %v and what a busy machine adds", i, took, grace)
			}
			cancel()
		}
		if got := survivors(t, c); got != nil {
			t.Errorf("left %q", got)
		}
	})
}

func TestReaderGone(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	gone := errors.New("connection lost")
	p, err := attach.Attacher{}.Start(t.Context(), attach.Command{CTID: c.CTID, Argv: []string{"yes"},
		Stdout: writerFunc(func([]byte) (int, error) { return 0, gone })})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); !errors.Is(err, gone) {
		t.Errorf("%v, want %v", err, gone)
	}
	if got := survivors(t, c); got != nil {
		t.Errorf("left %q", got)
	}
}

// Nobody waits for a caller that sends no stdin to a command that has ended.
func TestStdinThatNeverComes(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	r, w := io.Pipe()
	defer w.Close()
	exit, _, _, err := run(t, attach.Command{CTID: c.CTID, Argv: []string{"true"}, Stdin: r})
	if want := (attach.Exit{OutputComplete: true}); err != nil || !same(exit, want) {
		t.Errorf("%+v, %v, want %+v", exit, err, want)
	}
}

func TestContainerStops(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	p, _ := start(t, t.Context(), attach.Attacher{}, attach.Command{CTID: c.CTID}, "echo ready; sleep 60")
	c.Stop(t)
	exit, err := p.Wait()
	if want := (attach.Exit{Code: 137, OutputComplete: true}); err != nil || !same(exit, want) {
		t.Errorf("%+v, %v, want %+v", exit, err, want)
	}
}

// The container chooses the names of its processes.
func TestProcessNames(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	script := fmt.Sprintf("cp /bin/busybox '/tmp/%s'; echo ready; exec '/tmp/%[1]s' 60", "sleep) S 1 1 1 (")
	p, _ := start(t, t.Context(), attach.Attacher{}, attach.Command{CTID: c.CTID},
		strings.ReplaceAll(script, "exec '", "exec -a sleep '"))
	if err := p.Signal("KILL"); err != nil {
		t.Error(err)
	}
	if exit, err := p.Wait(); err != nil || exit.Code != 137 {
		t.Errorf("%+v, %v, want status 137", exit, err)
	}
}
