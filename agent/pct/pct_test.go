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
			`pct start 103: exit status 255: container did not stop: "container did not stop"; ` +
				`"command 'lxc-stop -n 103 --nokill --timeout 5' failed: exit code 1"`},
		{"does not exist", 104, pct.ErrNotFound,
			`pct start 104: exit status 255: container does not exist on this node: "Configuration file 'nodes/hyp-a/lxc/104.conf' does not exist"`},
		{"template", 105, pct.ErrTemplate,
			`pct start 105: exit status 255: container is a template: "you can't start a CT if it's a template"`},
		{"not running", 106, pct.ErrNotRunning,
			`pct start 106: exit status 255: container is not running: "CT 106 not running"`},
		{"lock held", 107, pct.ErrLockTimeout,
			`pct start 107: exit status 255: another process holds Proxmox's lock on the conf: "trying to acquire lock...can't lock file '/run/lock/lxc/pve-config-107.lock' - got timeout"`},
		{"HA stack refuses", 113, pct.ErrHA,
			`pct start 113: exit status 255: Proxmox's HA stack refused the request: "command 'ha-manager set ct:113 --state started' failed: exit code 255"`},
		{"mount entry without source", 115, nil,
			`pct start 115: exit status 255: LXC could not start the container: "startup for container '115' failed"; ` +
				`"mount_entry: 2182 No such file or directory - Failed to mount \"/dev/nvidia9\" on \"/usr/lib/x86_64-linux-gnu/lxc/rootfs/dev/nvidia9\""; ` +
				`"lxc_setup: 3897 Failed to setup mount entries"; "do_start: 1272 Failed to setup container \"115\""`},
		{"no quorum", 108, pct.ErrNoQuorum,
			`pct start 108: exit status 255: node has no quorum: "cluster not ready - no quorum?"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := r.Start(t.Context(), test.ctid)
			if test.want != nil && !errors.Is(err, test.want) {
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

func TestHookFails(t *testing.T) {
	err := runner(t).Start(t.Context(), 110)
	e, ok := errors.AsType[*pct.HookError](err)
	if !ok || *e != (pct.HookError{CTID: 110, Phase: "pre-start"}) {
		t.Errorf("error %v", err)
	}
	if want := `pct start 110: exit status 255: hookscript of CTID 110 failed in its phase pre-start: ` +
		`"hookscript error for 110 on pre-start: command '/var/lib/vz/snippets/gpu.sh 110 pre-start' failed: exit code 2"`; err.Error() != want {
		t.Errorf("error %s\nwant  %s", err, want)
	}
}

func TestDeviceMissing(t *testing.T) {
	for _, test := range []struct {
		name string
		want pct.DeviceError
		text string
	}{
		{"missing", pct.DeviceError{CTID: 111, Path: "/dev/nvidia7"},
			`pct start 111: exit status 255: the node has no /dev/nvidia7, which a devN of CTID 111 gives: "Device /dev/nvidia7 does not exist"`},
		{"something else", pct.DeviceError{CTID: 112, Path: "/dev/nvidia7", File: true},
			`pct start 112: exit status 255: /dev/nvidia7, which a devN of CTID 112 gives, is no device on the node: "/dev/nvidia7 is not a device"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := runner(t).Start(t.Context(), test.want.CTID)
			if e, ok := errors.AsType[*pct.DeviceError](err); !ok || *e != test.want || err.Error() != test.text {
				t.Errorf("error %v\nwant  %s", err, test.text)
			}
		})
	}
}

// Success of pct is not always the thing done.
func TestRequested(t *testing.T) {
	r := runner(t)
	for _, test := range []struct {
		name string
		run  func() error
		text string
	}{
		{"start", func() error { return r.Start(t.Context(), 114) },
			`pct start 114: exit status 0: Proxmox's HA stack was asked to do it, and does it later: "Requesting HA start for CT 114"`},
		{"stop", func() error { return r.Stop(t.Context(), 114) },
			`pct stop 114: exit status 0: Proxmox's HA stack was asked to do it, and does it later: "Requesting HA stop for CT 114"`},
		{"shutdown", func() error { return r.Shutdown(t.Context(), 114, time.Minute) },
			`pct shutdown 114: exit status 0: Proxmox's HA stack was asked to do it, and does it later: "Requesting HA stop for CT 114"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.run(); !errors.Is(err, pct.ErrRequested) || err.Error() != test.text {
				t.Errorf("error %v\nwant  %s", err, test.text)
			}
		})
	}
}

func TestSuccessWithWarnings(t *testing.T) {
	if err := runner(t).Start(t.Context(), 116); err != nil {
		t.Errorf("error %v, though the task ended with warnings only", err)
	}
}

func TestWithdraw(t *testing.T) {
	dir := t.TempDir()
	write := func(script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "ha-manager"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := pct.Runner{HAManager: filepath.Join(dir, "ha-manager")}
	write(`[ "$*" = "set ct:901 --state started" ]`)
	if err := r.Withdraw(t.Context(), 901); err != nil {
		t.Error(err)
	}
	write("echo \"no such resource 'ct:901'\" >&2; exit 2")
	err := r.Withdraw(t.Context(), 901)
	if want := `ha-manager set 901: exit status 2: "no such resource 'ct:901'"`; err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
}

// Where pct itself says nothing, LXC's own words are looked for.
func TestStartLog(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "pct")
	path, err := filepath.Abs("testdata/pct")
	if err != nil {
		t.Fatal(err)
	}
	// pct's environment is fixed.
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexport PHOENIX_PCT_RUN="+dir+"\nexec "+path+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := pct.Runner{Path: program, Dir: dir}
	begin := time.Now()
	err = r.Start(t.Context(), 117)
	if want := `pct start 117: exit status 255; LXC's log ends with "lxc_start: 842 Received container state \"ABORTING\" instead of \"RUNNING\"\x1b[2J"`; err == nil || strings.Replace(err.Error(), ": ;", ";", 1) != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
	err = r.Start(cancelWhenReady(t), 118)
	if e, ok := errors.AsType[*pct.Error](err); !ok || e.Log != "__lxc_start: 2034 waiting" || !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the log", err)
	}
	if got := r.StartLog(118, begin); got != "__lxc_start: 2034 waiting" {
		t.Errorf("log %q", got)
	}
	if got := r.StartLog(118, time.Now().Add(time.Hour)); got != "" {
		t.Errorf("log of an earlier start %q, want none", got)
	}
	if got := r.StartLog(119, begin); got != "" {
		t.Errorf("log that is not there %q, want none", got)
	}
	if err := os.WriteFile(dir+"/ct-120.stderr", []byte(strings.Repeat("x", 5000)+"end\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := r.StartLog(120, begin); len(got) != 4<<10-1 || !strings.HasSuffix(got, "xend") {
		t.Errorf("%d bytes of a long log that end with %q", len(got), got[max(0, len(got)-10):])
	}
	// A start that is refused has none of its own.
	e, ok := errors.AsType[*pct.Error](r.Start(t.Context(), 101))
	if !ok || e.Log != "" {
		t.Errorf("error %+v, want no log", e)
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
	if want := `pct start 109: exit status 255: LXC could not start the container: "startup for container '109' failed"; ` +
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
