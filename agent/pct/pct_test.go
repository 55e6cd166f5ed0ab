package pct_test

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"phoenix.internal/agent/pct"
)

// runner returns a Runner of testdata/pct, whose CTID says what it does.
func runner(t *testing.T) pct.Runner {
	t.Helper()
	path, err := filepath.Abs("testdata/pct")
	if err != nil {
		t.Fatal(err)
	}
	return pct.Runner{Path: path}
}

func TestSuccess(t *testing.T) {
	r := runner(t)
	for name, run := range map[string]func() error{
		"start":    func() error { return r.Start(t.Context(), 100) },
		"shutdown": func() error { return r.Shutdown(t.Context(), 100, time.Minute) },
		"stop":     func() error { return r.Stop(t.Context(), 100) },
	} {
		if err := run(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHowPctIsCalled(t *testing.T) {
	t.Setenv("PERL5LIB", "/tmp/evil")
	r := runner(t)
	for _, test := range []struct {
		name string
		run  func() error
		args string
	}{
		{"start", func() error { return r.Start(t.Context(), 200) }, "start 200"},
		{"stop", func() error { return r.Stop(t.Context(), 200) }, "stop 200"},
		{"shutdown", func() error { return r.Shutdown(t.Context(), 200, time.Minute) }, "shutdown 200 --timeout 60"},
		{"shutdown rounds up", func() error { return r.Shutdown(t.Context(), 200, 1500*time.Millisecond) }, "shutdown 200 --timeout 2"},
		{"shutdown at once", func() error { return r.Shutdown(t.Context(), 200, 0) }, "shutdown 200 --timeout 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, ok := errors.AsType[*pct.Error](test.run())
			if !ok {
				t.Fatal("no *pct.Error")
			}
			want := "args: " + test.args + `
session: own
directory: /
stdin: /dev/null
HOME=/root
LANG=C.UTF-8
LC_ALL=C.UTF-8
PATH=/usr/sbin:/usr/bin:/sbin:/bin
`
			if e.Output != want {
				t.Errorf("pct saw:\n%s\nwant:\n%s", e.Output, want)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	r := runner(t)
	for _, test := range []struct {
		name string
		ctid int32
		want error
		text string
	}{
		{"already running", 101, pct.ErrRunning,
			`pct start 101: exit status 255: container is already running: "CT 101 already running"`},
		{"did not stop", 103, pct.ErrStopTimeout,
			`pct start 103: exit status 255: container did not stop: "container did not stop"`},
		{"does not exist", 104, pct.ErrNotFound,
			`pct start 104: exit status 255: container does not exist on this node: "Configuration file 'nodes/hyp-a/lxc/104.conf' does not exist"`},
		{"template", 105, pct.ErrTemplate,
			`pct start 105: exit status 255: container is a template: "you can't start a CT if it's a template"`},
		{"not running", 106, pct.ErrNotRunning,
			`pct start 106: exit status 255: container is not running: "CT 106 not running"`},
		{"lock held", 107, pct.ErrLockTimeout,
			`pct start 107: exit status 255: another process holds Proxmox's lock on the conf: "trying to acquire lock...can't lock file '/run/lock/lxc/pve-config-107.lock' - got timeout"`},
		{"no quorum", 108, pct.ErrNoQuorum,
			`pct start 108: exit status 255: node has no quorum: "cluster not ready - no quorum?"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := r.Start(t.Context(), test.ctid)
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if err.Error() != test.text {
				t.Errorf("error %s\nwant  %s", err, test.text)
			}
			if e, ok := errors.AsType[*pct.Error](err); !ok || e.Command != "start" || e.CTID != test.ctid || e.Code != 255 {
				t.Errorf("facts %+v", e)
			}
		})
	}
}

func TestLocked(t *testing.T) {
	err := runner(t).Start(t.Context(), 102)
	e, ok := errors.AsType[*pct.LockedError](err)
	if !ok || *e != (pct.LockedError{CTID: 102, Lock: "backup"}) {
		t.Errorf("error %v", err)
	}
}

// What a hook or the container prints is not believed.
func TestUnknownFailure(t *testing.T) {
	err := runner(t).Start(t.Context(), 109)
	if errors.Is(err, pct.ErrRunning) {
		t.Errorf("a line in the middle decides: %v", err)
	}
	e, ok := errors.AsType[*pct.Error](err)
	if !ok || !strings.HasPrefix(e.Output, "run_buffer: 571 Script exited with status 2\n") {
		t.Errorf("output %+v", e)
	}
	if want := `pct start 109: exit status 255: "startup for container '109' failed"; ` +
		`"run_buffer: 571 Script exited with status 2"; "lxc_init: 845 Failed to initialize container \"109\""; ` +
		`"__lxc_start: 2034 Failed to initialize container \"109\""`; err.Error() != want {
		t.Errorf("error %s\nwant  %s", err, want)
	}
}

func TestHostileOutput(t *testing.T) {
	err := runner(t).Start(t.Context(), 205)
	if want := `pct start 205: exit status 9: "bad \xff \x1b[31m \x00 bytes"`; err.Error() != want {
		t.Errorf("error %s\nwant  %s", err, want)
	}
}

func TestLongOutputKeepsItsEnd(t *testing.T) {
	e, ok := errors.AsType[*pct.Error](runner(t).Start(t.Context(), 203))
	if !ok {
		t.Fatal("no *pct.Error")
	}
	if !strings.HasPrefix(e.Output, "[only the last 1048576 bytes]\nxxx") || !strings.HasSuffix(e.Output, "xxx\nlast words\n") {
		t.Errorf("output begins %q and ends %q", e.Output[:40], e.Output[len(e.Output)-20:])
	}
	if len(e.Output) != 1<<20+len("[only the last 1048576 bytes]\n") {
		t.Errorf("%d bytes kept", len(e.Output))
	}
}

func TestMissingProgram(t *testing.T) {
	err := pct.Runner{Path: "/nonexistent/pct"}.Start(t.Context(), 100)
	e, ok := errors.AsType[*pct.Error](err)
	if !ok || e.Code != -1 || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if want := "pct start 100: did not run: fork/exec /nonexistent/pct: no such file or directory"; err.Error() != want {
		t.Errorf("error %s\nwant  %s", err, want)
	}
}

// cancelWhenReady returns a context that ends when testdata/pct says that it is ready.
func cancelWhenReady(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	ready := make(chan os.Signal, 1)
	signal.Notify(ready, syscall.SIGUSR1)
	stop := context.AfterFunc(ctx, func() { signal.Stop(ready) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ready:
			cancel()
		case <-ctx.Done():
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		stop()
		signal.Stop(ready)
	})
	return ctx
}

func TestCancelSendsSIGTERM(t *testing.T) {
	err := runner(t).Start(cancelWhenReady(t), 201)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if want := `pct start 201: exit status 255: context canceled: "received signal TERM"`; err.Error() != want {
		t.Errorf("error %s\nwant  %s", err, want)
	}
}

func TestCancelKillsAfterGrace(t *testing.T) {
	r := runner(t)
	r.Grace = 50 * time.Millisecond
	err := r.Stop(cancelWhenReady(t), 202)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if want := "pct stop 202: ended by signal 9 (killed): context canceled"; err.Error() != want {
		t.Errorf("error %s\nwant  %s", err, want)
	}
}

func TestCancelledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := runner(t).Start(ctx, 100)
	if want := "pct start 100: did not run: context canceled"; err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
}

func TestChildThatKeepsTheOutputOpen(t *testing.T) {
	r := runner(t)
	r.Grace = 50 * time.Millisecond
	if err := r.Start(t.Context(), 204); err != nil {
		t.Errorf("error %v, though pct succeeded", err)
	}
}
