package attach_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
)

// TestHostile is what a person gets from containers and commands that are hostile or broken.
func TestHostile(t *testing.T) {
	helper := &attach.Helper{Path: newHelper(t)}
	const idle = "trap 'exit 0' PWR\nwhile :; do sleep 86400 & wait $!; done\n"
	complete := attach.Exit{OutputComplete: true}
	with := func(change func(*attach.Exit)) attach.Exit {
		e := complete
		change(&e)
		return e
	}
	for _, test := range []struct {
		name    string
		config  lxctest.Config
		setup   string                               // run in the container before
		prepare func(*testing.T, *lxctest.Container) // on the host, before
		command attach.Command
		exit    attach.Exit
		stdout  string
		stderr  string
		err     string // what a person reads; CTID for the number
		is      error
	}{
		// Containers.
		{name: "init that ignores every signal", config: lxctest.Config{Init: "trap '' HUP INT QUIT TERM PWR USR1 USR2\nwhile :; do sleep 86400; done\n"},
			command: attach.Command{Argv: []string{"echo", "still"}}, exit: complete, stdout: "still\n"},
		{name: "init dies under the command", config: lxctest.Config{Init: "until [ -e /go ]; do sleep 0.02; done; exit 1\n"},
			command: attach.Command{Argv: []string{"sh", "-c", "touch /go; sleep 60"}}, exit: with(func(e *attach.Exit) { e.Code = 137 })},
		{name: "init has died", config: lxctest.Config{Init: "until [ -e /go ]; do sleep 0.02; done; exit 1\n"},
			prepare: func(t *testing.T, c *lxctest.Container) { c.Stop(t) },
			command: attach.Command{Argv: []string{"true"}}, is: attach.ErrAttach,
			err: "attach to CTID CTID: cannot enter the container: Connection refused - Failed to get init pid; Connection refused - Failed to get attach context"},
		{name: "restarts itself under the command", config: lxctest.Config{Init: "if [ ! -e /again ]; then until [ -e /go ]; do sleep 0.02; done; touch /again; reboot -f; fi\n" + idle},
			command: attach.Command{Argv: []string{"sh", "-c", "touch /go; sleep 60"}}, exit: with(func(e *attach.Exit) { e.Code = 137 })},
		{name: "init fills its console", config: lxctest.Config{Init: "yes &\n" + idle},
			command: attach.Command{Argv: []string{"echo", "still"}}, exit: complete, stdout: "still\n"},
		{name: "no shell, no tool, no library", setup: "cd /bin; busybox rm -f sh; busybox rm -f /bin/busybox",
			command: attach.Command{Argv: []string{"/bin/sh"}}, exit: with(func(e *attach.Exit) { e.Code, e.NotStarted = 127, true }),
			stderr: "lxc-attach: CTID: ../src/lxc/attach.c: lxc_attach_run_command: 1841 No such file or directory - Failed to exec \"/bin/sh\"\n"},
		{name: "read-only root", config: lxctest.Config{Lines: []string{"lxc.rootfs.options = ro"}},
			command: attach.Command{Argv: []string{"touch", "/x"}}, exit: with(func(e *attach.Exit) { e.Code = 1 }), stderr: "touch: /x: Read-only file system\n"},
		{name: "full disk", setup: "mount -t tmpfs -o size=4k none /tmp",
			command: attach.Command{Argv: []string{"cp", "/bin/busybox", "/tmp/x"}}, exit: with(func(e *attach.Exit) { e.Code = 1 }), stderr: "cp: write error: No space left on device\n"},
		{name: "process limit reached", config: lxctest.Config{Unprivileged: true}, setup: "",
			command: attach.Command{User: "4444:4444", Argv: []string{"sh", "-c", "ulimit -u 1; sleep 1 & echo never"}}, exit: with(func(e *attach.Exit) { e.Code = 2 }),
			stderr: "sh: can't fork: Resource temporarily unavailable\n"},
		{name: "frozen", prepare: freeze,
			command: attach.Command{Timeout: 300 * time.Millisecond, Argv: []string{"true"}}, exit: with(func(e *attach.Exit) { e.Code, e.TimedOut = 1, true })},
		{name: "no /proc", setup: "umount -l /proc",
			command: attach.Command{Argv: []string{"echo", "still"}}, exit: complete, stdout: "still\n"},
		{name: "no /proc, for a user", setup: "umount -l /proc", is: attach.ErrAttach,
			command: attach.Command{User: "root", Argv: []string{"true"}},
			err:     "attach to CTID CTID: cannot enter the container: No such file or directory - Failed to exec \"/proc/self/fd/3\""},
		{name: "a /proc of its own, for a user", setup: "mount -t tmpfs none /proc; mkdir -p /proc/self/fd; cp /bin/busybox /proc/self/fd/3; ln -s /bin/busybox /proc/true", is: attach.ErrAttach,
			command: attach.Command{User: "root", Argv: []string{"true"}},
			err:     "attach to CTID CTID: cannot enter the container: the helper that was to start the command ended with status 127"},
		{name: "memory limit too low for a user's launcher", config: lxctest.Config{Lines: []string{"lxc.prlimit.as = 8000000"}}, is: attach.ErrAttach,
			command: attach.Command{User: "root", Argv: []string{"true"}},
			err:     "attach to CTID CTID: cannot enter the container: the helper that was to start the command ended with status 139"},
		{name: "seccomp refuses what a user needs", config: lxctest.Config{Lines: []string{"lxc.seccomp.profile = SECCOMP"}}, is: attach.ErrAttach,
			command: attach.Command{User: "4444:1", Argv: []string{"true"}},
			err:     "attach to CTID CTID: cannot enter the container as that user: setuid 4444: operation not permitted"},

		// Commands.
		{name: "closes its output", command: attach.Command{Argv: []string{"sh", "-c", "echo a; exec >&- 2>&-; sleep 0.1; exit 4"}},
			exit: with(func(e *attach.Exit) { e.Code = 4 }), stdout: "a\n"},
		{name: "closes all of its descriptors", command: attach.Command{Argv: []string{"sh", "-c", "exec <&- >&- 2>&-; sleep 0.1; exit 5"}},
			exit: with(func(e *attach.Exit) { e.Code = 5 })},
		{name: "writes byte by byte", command: attach.Command{Argv: []string{"sh", "-c", "i=0; while [ $i -lt 3000 ]; do printf x; i=$((i+1)); done"}},
			exit: complete, stdout: strings.Repeat("x", 3000)},
		{name: "writes what is no text", command: attach.Command{Argv: []string{"printf", `\377\376\033[2J\000`}}, exit: complete, stdout: "\xff\xfe\x1b[2J\x00"},
		{name: "arguments that are no text", command: attach.Command{Argv: []string{"printf", "%s|", "\xff\xfe", "\x1b[2J", "a\nb", "", "--", "-n"}}, exit: complete, stdout: "\xff\xfe|\x1b[2J|a\nb||--|-n|"},
		{name: "PATH without it", command: attach.Command{Env: []string{"PATH=/nonexistent:/etc"}, Argv: []string{"ls"}}, exit: with(func(e *attach.Exit) { e.Code, e.NotStarted = 127, true }),
			stderr: "lxc-attach: CTID: ../src/lxc/attach.c: lxc_attach_run_command: 1841 No such file or directory - Failed to exec \"ls\"\n"},
		{name: "a script without an interpreter", setup: "printf 'echo run' >/tmp/s; chmod 755 /tmp/s",
			command: attach.Command{Argv: []string{"/tmp/s"}}, exit: complete, stdout: "run\n"},
		{name: "a script without an interpreter, for a user", setup: "printf 'echo run $1' >/tmp/s; chmod 755 /tmp/s",
			command: attach.Command{User: "5:5", Argv: []string{"/tmp/s", "x"}}, exit: complete, stdout: "run x\n"},
		{name: "an interpreter that is not there", setup: "printf '#!/bin/nosuch\\n' >/tmp/s; chmod 755 /tmp/s",
			command: attach.Command{Argv: []string{"/tmp/s"}}, exit: with(func(e *attach.Exit) { e.Code, e.NotStarted = 127, true }),
			stderr: "lxc-attach: CTID: ../src/lxc/attach.c: lxc_attach_run_command: 1841 No such file or directory - Failed to exec \"/tmp/s\"\n"},
		{name: "a program for musl, in a container without it", config: lxctest.Config{Unprivileged: true}, prepare: putMusl,
			command: attach.Command{Argv: []string{"/bin/for-musl"}}, exit: with(func(e *attach.Exit) { e.Code, e.NotStarted = 127, true }),
			stderr: "lxc-attach: CTID: ../src/lxc/attach.c: lxc_attach_run_command: 1841 No such file or directory - Failed to exec \"/bin/for-musl\"\n"},
		{name: "a program for musl, for a user", prepare: putMusl,
			command: attach.Command{User: "5:5", Argv: []string{"/bin/for-musl"}}, exit: with(func(e *attach.Exit) { e.Code, e.NotStarted = 127, true }),
			stderr: "/bin/for-musl: no such file or directory\n"},
		{name: "process limit reached before the command", config: lxctest.Config{Unprivileged: true, Lines: []string{"lxc.prlimit.nproc = 2"}},
			command: attach.Command{Argv: []string{"sh", "-c", "true | true; echo $?"}}, exit: with(func(e *attach.Exit) { e.Code = 2 }),
			stderr: "sh: can't fork: Resource temporarily unavailable\n"},
		{name: "a program of another machine", setup: "printf '\\177ELF\\002\\001\\001' >/tmp/s; chmod 755 /tmp/s",
			command: attach.Command{User: "0:0", Argv: []string{"/tmp/s"}}, exit: with(func(e *attach.Exit) { e.Code = 127 }),
			stderr: "/tmp/s: line 1: \x7fELF\x02\x01\x01: not found\n"},
		{name: "makes zombies", command: attach.Command{Argv: []string{"sh", "-c", "for i in 1 2 3 4 5 6 7 8; do true & done; exec sleep 0.2"}}, exit: complete},
		{name: "forks without end", command: attach.Command{Timeout: 500 * time.Millisecond, Argv: []string{"sh", "-c", "b() { n=$((n+1)); [ $n -gt 7 ] || { b & b & }; sleep 60; }; b"}},
			exit: with(func(e *attach.Exit) { e.Code, e.TimedOut = 143, true })},
		{name: "stops itself", command: attach.Command{Timeout: 300 * time.Millisecond, Argv: []string{"sh", "-c", "kill -STOP $$"}},
			exit: with(func(e *attach.Exit) { e.Code, e.TimedOut = 143, true })},
		{name: "kills everything it can", command: attach.Command{Argv: []string{"sh", "-c", "kill -9 -1; exit 6"}}, exit: with(func(e *attach.Exit) { e.Code = 6 })},
	} {
		t.Run(test.name, func(t *testing.T) {
			for i, line := range test.config.Lines {
				if strings.Contains(line, "SECCOMP") {
					profile := filepath.Join(t.TempDir(), "seccomp")
					if err := os.WriteFile(profile, []byte("2\ndenylist\nsetuid errno 1 [0,4444,SCMP_CMP_EQ]\n"), 0o644); err != nil {
						t.Fatal(err)
					}
					test.config.Lines = append([]string(nil), test.config.Lines...)
					test.config.Lines[i] = strings.ReplaceAll(line, "SECCOMP", profile)
				}
			}
			c := lxctest.Start(t, test.config)
			if test.setup != "" {
				c.Run(t, test.setup)
			}
			if test.prepare != nil {
				test.prepare(t, c)
			}
			test.command.CTID = c.CTID
			a := attach.Attacher{Helper: helper, Grace: time.Second, Drain: 100 * time.Millisecond}
			begin := time.Now()
			exit, stdout, stderr, err := runBy(t, a, test.command)
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
			number := fmt.Sprint(c.CTID)
			got := ""
			if err != nil {
				got = strings.ReplaceAll(err.Error(), number, "CTID")
			}
			if got != test.err || !errors.Is(err, test.is) {
				t.Errorf("error %q, want %q", got, test.err)
			}
			if test.err == "" && !reflect.DeepEqual(exit, test.exit) {
				t.Errorf("%+v, want %+v", exit, test.exit)
			}
			if stderr = strings.ReplaceAll(stderr, number, "CTID"); test.err == "" && (stdout != test.stdout || stderr != test.stderr) {
				t.Errorf("stdout %.200q, stderr %.400q, want %.200q, %q", stdout, stderr, test.stdout, test.stderr)
			}
		})
	}
}

// putMusl puts a program into the container that wants musl's loader: the machine's own, with that name in it.
func putMusl(t *testing.T, c *lxctest.Container) {
	t.Helper()
	program, err := os.ReadFile("/usr/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	const glibc, musl = "/lib64/ld-linux-x86-64.so.2\x00", "/lib/ld-musl-x86_64.so.1\x00\x00\x00\x00"
	if !bytes.Contains(program, []byte(glibc)) {
		t.Skip("this machine's programs have another loader")
	}
	if err := os.WriteFile(filepath.Join(c.Rootfs, "bin/for-musl"), bytes.Replace(program, []byte(glibc), []byte(musl), 1), 0o755); err != nil {
		t.Fatal(err)
	}
}

func freeze(t *testing.T, c *lxctest.Container) {
	t.Helper()
	path := fmt.Sprintf("/sys/fs/cgroup/lxc.payload.%d/cgroup.freeze", c.CTID)
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(path, []byte("0"), 0) })
}

// Arguments that are more than a kernel takes are refused before anything is started.
func TestTooManyArguments(t *testing.T) {
	_, err := attach.Attacher{}.Start(t.Context(), attach.Command{CTID: 901, Argv: []string{"echo", strings.Repeat("x", 200<<10)}})
	want := "run a command in CTID 901: cannot enter the container: fork/exec /usr/bin/lxc-attach: argument list too long"
	if !errors.Is(err, attach.ErrAttach) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
