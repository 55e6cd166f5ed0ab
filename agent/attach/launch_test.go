package attach_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
broken line
www:x:33:33:www:/var/www:/usr/sbin/nologin
100:x:1000:1000:a name that is a number:/home/100:/bin/sh
ann:x:1001:1001:Ann,,,:/home/ann:/bin/sh
`

const group = `root:x:0:
www:x:33:
video:x:44:ann,root
ann:x:1001:
render:x:105:bob,ann
render:x:105:ann
`

func TestUser(t *testing.T) {
	a := attach.Attacher{Helper: &attach.Helper{Path: newHelper(t)}}
	both(t, func(t *testing.T, c *lxctest.Container) {
		c.Run(t, "mkdir -p -m 700 /home/ann /locked && chown 1001:1001 /home/ann && mkdir -m 755 /open && ln -s /open /link")
		for name, content := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(c.Rootfs, "etc", name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		const show = "exec 2>/dev/null; id -u; id -g; id -G; pwd; echo $HOME $USER $LOGNAME"
		for _, test := range []struct {
			name      string
			user, dir string
			env       []string
			argv      []string
			stdout    string
			stderr    string
			exit      attach.Exit
			err       error
			text      string // of err, after the CTID
		}{
			{name: "root by name", user: "root", stdout: "0\n0\n0 44\n/\n/root root root\n"},
			{name: "name with groups", user: "ann", dir: "/home/ann", stdout: "1001\n1001\n1001 44 105\n/home/ann\n/home/ann ann ann\n"},
			{name: "uid with an entry", user: "33", stdout: "33\n33\n33\n/\n/var/www www www\n"},
			{name: "a name goes before a number", user: "100", stdout: "1000\n1000\n1000\n/\n/home/100 100 100\n"},
			{name: "uid and gid without entries", user: "4242:4343", stdout: "4242\n4343\n4343\n/\n/\n"},
			{name: "group by name", user: "ann:video", stdout: "1001\n44\n44\n/\n/home/ann ann ann\n"},
			{name: "what the caller sets stays", user: "ann", env: []string{"HOME=/x", "USER=y"}, stdout: "1001\n1001\n1001 44 105\n/\n/x y ann\n"},
			{name: "directory alone", dir: "/link", stdout: "0\n0\n0\n/link\n\n"},
			{name: "directory with blanks", dir: "/open/a  b\n", err: attach.ErrNoDirectory,
				text: "cannot change to the directory in the container: chdir /open/a  b?: no such file or directory"},
			{name: "directory that is a file", dir: "/etc/passwd", err: attach.ErrNoDirectory,
				text: "cannot change to the directory in the container: chdir /etc/passwd: not a directory"},
			{name: "directory of somebody else", user: "ann", dir: "/locked", err: attach.ErrNoDirectory,
				text: "cannot change to the directory in the container: chdir /locked: permission denied"},
			{name: "no such user", user: "nobody", err: attach.ErrNoUser,
				text: `the container has no such user: "nobody" is no user in the container's /etc/passwd`},
			{name: "no such group", user: "ann:staff", err: attach.ErrNoUser,
				text: `the container has no such user: "staff" is no group in the container's /etc/group`},
			{name: "uid without an entry", user: "4242", err: attach.ErrNoUser,
				text: `the container has no such user: uid 4242 has no entry in the container's /etc/passwd, so its group is unknown: give 4242:GID`},
			{name: "uid that means none", user: "4294967295:1", err: attach.ErrNoUser,
				text: `the container has no such user: "4294967295" is no user in the container's /etc/passwd`},
			{name: "no such program", user: "ann", argv: []string{"nosuch"}, stderr: "nosuch: no such file or directory\n", exit: attach.Exit{Code: 127, NotStarted: true}},
			{name: "not executable", user: "ann", argv: []string{"/etc/passwd-"}, stderr: "/etc/passwd-: no such file or directory\n", exit: attach.Exit{Code: 127, NotStarted: true}},
			{name: "not executable by the user", user: "ann", argv: []string{"/locked/x"}, stderr: "/locked/x: permission denied\n", exit: attach.Exit{Code: 126, NotStarted: true}},
			{name: "status 126 of the command", user: "ann", argv: []string{"sh", "-c", "exit 126"}, exit: attach.Exit{Code: 126}},
			{name: "status 127 of the command", user: "ann", argv: []string{"sh", "-c", "exit 127"}, exit: attach.Exit{Code: 127}},
			{name: "status 1 of the command", user: "ann", argv: []string{"false"}, exit: attach.Exit{Code: 1}},
			{name: "killed", user: "ann", argv: []string{"sh", "-c", "kill -9 $$"}, exit: attach.Exit{Code: 137}},
			{name: "rights", user: "ann", argv: []string{"sh", "-c", "grep CapEff /proc/self/status; echo /proc/self/fd/*; echo x 2>/dev/null >/etc/x || echo refused"},
				stdout: "CapEff:\t0000000000000000\n/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\nrefused\n"},
		} {
			t.Run(test.name, func(t *testing.T) {
				if test.argv == nil {
					test.argv = []string{"sh", "-c", show}
				}
				exit, stdout, stderr, err := runBy(t, a, attach.Command{CTID: c.CTID, User: test.user, Dir: test.dir, Env: test.env, Argv: test.argv})
				if test.err != nil {
					want := fmt.Sprintf("attach to CTID %d: %s", c.CTID, test.text)
					if !errors.Is(err, test.err) || err.Error() != want {
						t.Errorf("as %q in %q: %v, want %s", test.user, test.dir, err, want)
					}
					return
				}
				test.exit.OutputComplete = true
				if err != nil || !reflect.DeepEqual(exit, test.exit) || stdout != test.stdout || stderr != test.stderr {
					t.Errorf("as %q in %q: %+v, %v, stdout %q, stderr %q, want %+v, %q, %q",
						test.user, test.dir, exit, err, stdout, stderr, test.exit, test.stdout, test.stderr)
				}
			})
		}
	})
}

// Nothing runs in a container that was started anew since its caller looked at it: at the last moment, inside, it is seen.
func TestInit(t *testing.T) {
	a := attach.Attacher{Helper: &attach.Helper{Path: newHelper(t)}}
	both(t, func(t *testing.T, c *lxctest.Container) {
		pid := c.InitPID(t)
		init := attach.Init{PID: pid, StartTicks: startTicks(t, pid)}
		command := attach.Command{CTID: c.CTID, Init: init, Argv: []string{"sh", "-c", "echo run; touch /run/here"}}
		exit, stdout, _, err := runBy(t, a, command)
		if want := (attach.Exit{OutputComplete: true}); err != nil || !reflect.DeepEqual(exit, want) || stdout != "run\n" {
			t.Fatalf("in the container that is meant: %+v, %v, %q", exit, err, stdout)
		}
		here := filepath.Join(c.Rootfs, "run/here")
		if err := os.Remove(here); err != nil {
			t.Fatal(err)
		}
		t.Run("restarted between look-up and start", func(t *testing.T) {
			for name, other := range map[string]attach.Init{
				"same PID, other start":   {PID: pid, StartTicks: init.StartTicks + 1},
				"a process that has gone": {PID: 1 << 22, StartTicks: init.StartTicks},
			} {
				command.Init = other
				if _, err := a.Start(t.Context(), command); !errors.Is(err, attach.ErrRestarted) {
					t.Errorf("%s: %v, want an ErrRestarted", name, err)
				}
			}
		})
		// lxc-attach is held up while the container is started anew.
		gate, open := filepath.Join(t.TempDir(), "lxc-attach"), filepath.Join(t.TempDir(), "open")
		script := fmt.Sprintf("#!/bin/sh\nuntil [ -e %s ]; do sleep 0.01; done\nexec lxc-attach \"$@\"\n", open)
		if err := os.WriteFile(gate, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		held := a
		held.Path = gate
		command.Init = init
		var begun []*attach.Process
		for _, command.User = range []string{"", "root"} {
			p, err := held.Start(t.Context(), command)
			if err != nil {
				t.Fatal(err)
			}
			begun = append(begun, p)
		}
		c.Stop(t)
		c.Start(t)
		if err := os.WriteFile(open, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, p := range begun {
			_, err := p.Wait()
			want := fmt.Sprintf("attach to CTID %d: the container was started anew before the command could begin", c.CTID)
			if !errors.Is(err, attach.ErrRestarted) || err.Error() != want {
				t.Errorf("restarted between start and attach: %v, want %s", err, want)
			}
		}
		if _, err := os.Lstat(here); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the command ran in the other container: %v", err)
		}
	})
}

func startTicks(t *testing.T, pid int) uint64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, fields, _ := strings.Cut(string(b), ") ")
	n, err := strconv.ParseUint(strings.Fields(fields)[19], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What a user has beyond its numbers: a terminal, and nothing that was the agent's.
func TestUserTerminal(t *testing.T) {
	a := attach.Attacher{Helper: &attach.Helper{Path: newHelper(t)}}
	both(t, func(t *testing.T, c *lxctest.Container) {
		script, want := "stty size; id -u; pwd", "24 80\n1001\n/tmp\n"
		if privileged := !strings.Contains(t.Name(), "unprivileged_true"); privileged {
			// lxc-attach takes the terminal of an unprivileged container from the host, and nobody in there owns it.
			script, want = script+"; echo by its name >$(tty)", want+"by its name\n"
		}
		exit, stdout, _, err := runBy(t, a, attach.Command{CTID: c.CTID, TTY: true, User: "1001:1001", Dir: "/tmp", Argv: []string{"sh", "-c", script}})
		if end := (attach.Exit{OutputComplete: true}); err != nil || !reflect.DeepEqual(exit, end) {
			t.Errorf("%+v, %v, want %+v", exit, err, end)
		}
		if got := strings.ReplaceAll(stdout, "\r", ""); got != want {
			t.Errorf("the terminal shows %q", stdout)
		}
	})
}

// The container decides what its files are; reading them is bounded.
func TestHostileUserFiles(t *testing.T) {
	a := attach.Attacher{Helper: &attach.Helper{Path: newHelper(t)}}
	c := lxctest.Start(t, lxctest.Config{})
	passwd := filepath.Join(c.Rootfs, "etc/passwd")
	for _, test := range []struct {
		name string
		make func() error
		user string
		want string // error; empty: none
	}{
		{"no file", func() error { return nil }, "ann", `the container has no such user: "ann" is no user in the container's /etc/passwd`},
		{"no file is needed", func() error { return nil }, "5:5", ""},
		{"FIFO", func() error { return unix.Mkfifo(passwd, 0o644) }, "5:5", "the container has no such user: /etc/passwd is no regular file"},
		{"endless device", func() error { return unix.Mknod(passwd, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) }, "5:5", "the container has no such user: /etc/passwd is no regular file"},
		{"1 TiB", func() error {
			return errors.Join(os.WriteFile(passwd, nil, 0o644), os.Truncate(passwd, 1<<40))
		}, "5:5", "the container has no such user: /etc/passwd is longer than 4194304 bytes"},
		{"link in a circle", func() error { return os.Symlink("passwd", passwd) }, "5:5", "the container has no such user: open /etc/passwd: too many levels of symbolic links"},
		{"bytes that are no text", func() error { return os.WriteFile(passwd, []byte("\xff\x00:x:1:1:::\n"), 0o644) }, "5:5", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := errors.Join(os.RemoveAll(passwd), test.make()); err != nil {
				t.Fatal(err)
			}
			_, _, _, err := runBy(t, a, attach.Command{CTID: c.CTID, User: test.user, Argv: []string{"true"}})
			got := ""
			if err != nil {
				got = strings.TrimPrefix(err.Error(), fmt.Sprintf("attach to CTID %d: ", c.CTID))
			}
			if got != test.want {
				t.Errorf("as %s: %q, want %q", test.user, got, test.want)
			}
		})
	}
}

func FuzzFindUser(f *testing.F) {
	f.Add("ann", passwd+"ann:x:4294967295:1::/:/bin/sh\n", group)
	f.Add("1:2", "broken line\n:x:1:2:::\n", "a:b\n")
	f.Add("0:video", passwd, group)
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		uid, gid, groups, err := attach.FindUser(spec, []byte(passwd), []byte(group))
		if err != nil {
			return
		}
		// Whatever the files say, the numbers are ones that setuid and its like take, and mean.
		for _, n := range append(groups, uid, gid) {
			if n < 0 || n >= 1<<32-1 {
				t.Errorf("user %q of %q and %q: %d, %d, %v", spec, passwd, group, uid, gid, groups)
			}
		}
		if len(groups) == 0 || groups[0] != gid {
			t.Errorf("user %q: group %d is not the first of %v", spec, gid, groups)
		}
	})
}
