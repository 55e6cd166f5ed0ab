package attach_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
)

// commands returns the command lines of survivors, in order, and ends them.
func commands(t *testing.T, survivors []attach.Survivor) []string {
	t.Helper()
	var all []string
	for _, s := range survivors {
		all = append(all, s.Command)
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.PID)); err != nil || strings.TrimRight(strings.ReplaceAll(string(b), "\x00", " "), " ") != s.Command && !strings.HasPrefix(s.Command, "[") {
			t.Errorf("process %d is %q, %v, not %q", s.PID, b, err, s.Command)
		}
		unix.Kill(s.PID, unix.SIGKILL)
	}
	slices.Sort(all)
	return all
}

// What a cancelled command started and put out of our reach is named, and is all that is left.
func TestSurvivorsOfACancel(t *testing.T) {
	if _, err := os.Stat("/proc/self/sessionid"); err != nil {
		t.Skip("the kernel has no audit sessions, by which processes that lost their parents are told")
	}
	for _, test := range []struct {
		name, script string
		want         []string
	}{
		{"none", "sleep 61 & sleep 62 & echo ready; wait", nil},
		{"session of its own", "setsid sleep 61 >/dev/null 2>&1 & sleep 62 & until ps | grep -v setsid | grep -q '[s]leep 61$'; do :; done; echo ready; wait", []string{"sleep 61"}},
		{"daemon: its parents are gone", "(setsid sh -c '(sleep 63 >/dev/null 2>&1 &)' &); sleep 62 & until ps | grep -v setsid | grep -q '[s]leep 63$'; do :; done; echo ready; wait", []string{"sleep 63"}},
		{"without its environment", "(env -i setsid sh -c '(sleep 63 >/dev/null 2>&1 &) ; (sleep 64 >/dev/null 2>&1 &)' &); until ps | grep -v setsid | grep -q '[s]leep 64$'; do :; done; echo ready; sleep 65", []string{"sleep 63", "sleep 64"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			both(t, func(t *testing.T, c *lxctest.Container) {
				// Neither what ran before nor what another command leaves is taken for this one's.
				c.Run(t, "setsid sleep 71 >/dev/null 2>&1 </dev/null &")
				_, _, _, err := run(t, attach.Command{CTID: c.CTID, Argv: []string{"sh", "-c", "setsid sleep 72 >/dev/null 2>&1 </dev/null &"}})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				p, _ := start(t, ctx, attach.Attacher{}, attach.Command{CTID: c.CTID}, test.script)
				cancel()
				exit, err := p.Wait()
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%v, want context.Canceled", err)
				}
				if got := commands(t, exit.Survivors); !slices.Equal(got, test.want) {
					t.Errorf("%s: survivors %q, want %q", test.script, got, test.want)
				}
			})
		})
	}
}

// Who holds the output of a command that has ended is named, and lives.
func TestSurvivorsOfAnEnd(t *testing.T) {
	both(t, func(t *testing.T, c *lxctest.Container) {
		a := attach.Attacher{Drain: 50 * time.Millisecond}
		exit, stdout, _, err := runBy(t, a, attach.Command{CTID: c.CTID, Argv: []string{"sh", "-c",
			"echo before; sleep 81 & setsid sleep 82 2>/dev/null & sleep 83 >/dev/null 2>&1 & exit 3"}})
		if err != nil || exit.Code != 3 || exit.OutputComplete || stdout != "before\n" {
			t.Errorf("%+v, %v, output %q, want status 3 and an output that is not complete", exit, err, stdout)
		}
		if got := c.Run(t, "ps | grep -c '[s]leep 8[123]'"); got != "3\n" {
			t.Errorf("%s children live, want 3", got)
		}
		if got, want := commands(t, exit.Survivors), []string{"sleep 81", "sleep 82"}; !slices.Equal(got, want) {
			t.Errorf("survivors %q, want %q", got, want)
		}
	})
}

// The container chooses the names of its processes.
func TestSurvivorNames(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	script := `sh -c 'sleep 84 >/dev/null 2>&1; :' "$(printf 'a\033[2Jb\377')" & sh -c 'sleep 85 >/dev/null 2>&1; :' ` + strings.Repeat("x", 300) +
		` & until ps | grep '[s]leep 84$' && ps | grep '[s]leep 85$'; do :; done >/dev/null`
	exit, _, _, err := runBy(t, attach.Attacher{Drain: 50 * time.Millisecond}, attach.Command{CTID: c.CTID, Argv: []string{"sh", "-c", script}})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	var got []string
	for _, s := range exit.Survivors {
		got = append(got, s.Command)
		unix.Kill(s.PID, unix.SIGKILL)
	}
	slices.Sort(got)
	if want := []string{"sh -c sleep 84 >/dev/null 2>&1; : a?[2Jb\ufffd", ("sh -c sleep 85 >/dev/null 2>&1; : " + strings.Repeat("x", 200))[:200]}; !slices.Equal(got, want) {
		t.Errorf("survivors %q, want %q", got, want)
	}
}

// A command that moves no byte is ended; one that does is not.
func TestIdle(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	t.Run("silent", func(t *testing.T) {
		exit, stdout, _, err := run(t, attach.Command{CTID: c.CTID, Idle: 100 * time.Millisecond, Argv: []string{"sh", "-c", "echo a; sleep 60"}})
		if want := (attach.Exit{Code: 143, OutputComplete: true, IdledOut: true}); err != nil || !same(exit, want) || stdout != "a\n" {
			t.Errorf("%+v, %v, output %q, want %+v", exit, err, stdout, want)
		}
	})
	t.Run("busy for longer than the limit", func(t *testing.T) {
		exit, stdout, _, err := run(t, attach.Command{CTID: c.CTID, Idle: 3 * time.Second,
			Argv: []string{"sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo -n .; sleep 0.5; done"}})
		if want := (attach.Exit{OutputComplete: true}); err != nil || !same(exit, want) || stdout != "........" {
			t.Errorf("%+v, %v, output %q, want %+v", exit, err, stdout, want)
		}
	})
	t.Run("stdin that is not read", func(t *testing.T) {
		exit, _, _, err := run(t, attach.Command{CTID: c.CTID, Idle: 100 * time.Millisecond, Stdin: endless{}, Argv: []string{"sleep", "60"}})
		if want := (attach.Exit{Code: 143, OutputComplete: true, IdledOut: true}); err != nil || !same(exit, want) {
			t.Errorf("%+v, %v, want %+v", exit, err, want)
		}
	})
	t.Run("reader that stops", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p, err := attach.Attacher{}.Start(ctx, attach.Command{CTID: c.CTID, Idle: 200 * time.Millisecond, Argv: []string{"yes"},
			Stdout: writerFunc(func(b []byte) (int, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			})})
		if err != nil {
			t.Fatal(err)
		}
		// The command is ended although the Write still blocks; the Write is the caller's to end.
		waitFor(t, func() bool { return survivors(t, c) == nil })
		cancel()
		if exit, err := p.Wait(); err == nil && !exit.IdledOut {
			t.Errorf("%+v, %v, want an end for idling or the reader's error", exit, err)
		}
	})
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
