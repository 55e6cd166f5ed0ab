package attach_test

import (
	"bytes"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"phoenix.internal/agent/lxctest"
)

// newHelper builds testdata/helper and returns its path.
func newHelper(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "helper")
	build := exec.Command("go", "build", "-o", program, "./testdata/helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	return program
}

// look shows, from inside, what a process was given by those who started it. Descriptor 3 is ls's own.
const look = `for f in status limits environ cgroup oom_score_adj; do echo "== $f"; cat /proc/self/$f | tr '\0' '\n'; done
echo "== fd"; ls /proc/self/fd | tr '\n' ' '; echo; for i in 0 1 2; do readlink /proc/$$/fd/$i; done
echo "== stat"; cut -d' ' -f4-8,18,19,40,41 /proc/self/stat`

// masks hide what differs between two runs of the very same command.
var masks = []struct{ what, why string }{
	{`(?m)^(Tgid|Pid|PPid|NStgid|NSpid):.*`, "numbers of processes"},
	{`(?m)^(Vm\w+|Rss\w+):.*`, "memory in use just now, and where the kernel happened to lay the stack"},
	{`(?m)^(non)?voluntary_ctxt_switches:.*`, "a count of what the scheduler did"},
	{`(?m)^SigQ:\t\d+/`, "signals queued just now for all processes of the user; the limit behind it is compared"},
	{`pipe:\[\d+\]`, "number of a pipe"},
	{`(?m)^\d+( -?\d+ -?\d+ -?\d+ -?\d+ \d+ -?\d+ \d+ \d+)$`, "stat's parent; group, session, terminal and scheduling are compared"},
}

func masked(s string) string {
	for _, m := range masks {
		s = regexp.MustCompile(m.what).ReplaceAllStringFunc(s, func(s string) string {
			switch {
			case strings.HasPrefix(s, "SigQ"):
				return "SigQ:\tN/"
			case regexp.MustCompile(`^\d`).MatchString(s):
				_, rest, _ := strings.Cut(s, " ")
				return "N " + rest
			}
			return regexp.MustCompile(`[:\[].*`).ReplaceAllString(s, " N")
		})
	}
	return s
}

// Target S8: a command started by an agent, however that itself was started, sees what one sees that lxc-attach started
// from a login shell.
//
// The login shell is a process with the limits of PID 1 but 1024 open files, which is what pam_limits gives; umask 022;
// no signal ignored or blocked; ordinary scheduling; a session of its own; and an environment of which --clear-env lets
// nothing through. It is made by env, prlimit, chrt, renice, ionice, choom and setsid, not by code of ours.
func TestLikeALoginShell(t *testing.T) {
	lxctest.Require(t)
	// A login has descriptors 0 to 2; who runs this test may have left more open.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"env", "prlimit", "chrt", "ionice", "choom", "setsid", "nice", "renice"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the login shell and the odd agent of this test are made by %s", tool)
		}
	}
	helper := newHelper(t)
	both(t, func(t *testing.T, c *lxctest.Container) {
		ctid := strconv.Itoa(int(c.CTID))
		// Hard limits stay: raising them again takes CAP_SYS_RESOURCE, which not every machine of tests gives.
		login := []string{"sh", "-c", `renice -n 0 $$ >/dev/null; exec "$@"`, "sh", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "SHELL=/bin/bash", "TERM=linux",

			"env", "--default-signal", "--block-signal=", "chrt", "--other", "0", "ionice", "-c", "0", "choom", "-n", "0", "--", "prlimit"}
		for name, resource := range map[string]int{"cpu": unix.RLIMIT_CPU, "fsize": unix.RLIMIT_FSIZE, "data": unix.RLIMIT_DATA, "stack": unix.RLIMIT_STACK,
			"core": unix.RLIMIT_CORE, "rss": unix.RLIMIT_RSS, "nproc": unix.RLIMIT_NPROC, "nofile": unix.RLIMIT_NOFILE, "memlock": unix.RLIMIT_MEMLOCK,
			"as": unix.RLIMIT_AS, "locks": unix.RLIMIT_LOCKS, "sigpending": unix.RLIMIT_SIGPENDING, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE,
			"rtprio": unix.RLIMIT_RTPRIO, "rttime": unix.RLIMIT_RTTIME} {
			var limit unix.Rlimit
			if err := unix.Prlimit(1, resource, nil, &limit); err != nil {
				t.Fatal(err)
			}
			if name == "nofile" {
				limit.Cur = 1024
			}
			login = append(login, "--"+name+"="+limitText(limit.Cur)+":"+limitText(limit.Max))
		}
		login = append(login, "setsid", "--wait", "sh", "-c", `umask 022; cd /; exec "$@"`, "sh", "lxc-attach", "-n", ctid, "--clear-env", "--", "sh", "-c", look)
		want := output(t, login)

		odd := []string{"sh", "-c", `renice -n 0 $$ >/dev/null; exec "$@"`, "sh", "env", "GODEBUG=x=y", "LD_PRELOAD=/nonexistent.so", "--ignore-signal=HUP,INT,QUIT,USR1", "--block-signal=TERM,CHLD,USR2",
			"nice", "-n", "7", "ionice", "-c", "3", "choom", "-n", "500", "--", "prlimit", "--nofile=77:", "--core=4096:", "--stack=1048576:", "--msgqueue=0:",
			"--memlock=4096:", "--sigpending=100:", "--nproc=1000:", "sh", "-c", `umask 077; exec "$@" 9</etc`, "sh", helper, "agent", ctid, "sh", "-c", look}
		if diff := cmp.Diff(want, output(t, odd)); diff != "" {
			t.Errorf("what a command in the container sees (-from a login shell +from us):\n%s", diff)
		}
		// The oddities do reach a command of an agent that does nothing about them: what is compared can differ. (Signals do
		// not: lxc-attach 5.0.2 itself lets none be ignored or blocked.)
		plain := odd[:len(odd)-6]
		plain = append(append([]string(nil), plain...), "lxc-attach", "-n", ctid, "--clear-env", "--", "sh", "-c", look)
		got := output(t, plain)
		for _, line := range []string{"Umask:\t0077", "Max open files            77 ", "== oom_score_adj\n500\n", " 27 7 ", "\n0 1 2 3 9 \n"} {
			if !strings.Contains(got, line) {
				t.Errorf("from an odd shell: no %q in\n%s", line, got)
			}
		}
		if n := len(strings.Split(want, "\n")); n < 70 {
			t.Errorf("only %d lines compared:\n%s", n, want)
		}
	})
}

// What an agent cannot have of a login, commands will not have either, and somebody should know: once, and only then.
func TestAsLoginTellsWhatIsLost(t *testing.T) {
	lxctest.Require(t)
	for _, tool := range []string{"unshare", "setpriv", "prlimit"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the weak agents of this test are made by %s", tool)
		}
	}
	helper := newHelper(t)
	const weak = "setpriv --bounding-set -sys_resource "
	for _, test := range []struct{ name, around, before, want string }{
		{"weak, but everything can be lowered", weak, "prlimit --memlock=4096:8192 --core=0:65536 ", ""},
		{"weak, and limits are lower already", weak, "prlimit --memlock=2048:4096 --core=0:4096 ",
			"limit core: it stays at most 4096, PID 1 has 65536, and raising it takes CAP_SYS_RESOURCE; " +
				"limit memlock: it stays at most 4096, PID 1 has 8192, and raising it takes CAP_SYS_RESOURCE\n"},
		{"no_new_privs", "", "setpriv --no-new-privs ", "no_new_privs is set: set-user-ID programs will not work in commands in containers\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			// PID 1 of the new namespace is a shell with these limits.
			script := test.before + helper + " login; exit $?"
			cmd := exec.Command("sh", "-c", "prlimit --memlock=8192:8192 --core=65536:65536 "+test.around+`unshare --pid --fork --mount-proc sh -c "$1"`, "sh", script)
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != test.want {
				t.Errorf("%v, it says %q, want %q", err, out, test.want)
			}
		})
	}
}

func limitText(v uint64) string {
	if v == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return strconv.FormatUint(v, 10)
}

// output runs a command whose descriptors are pipes and returns its stdout without what always differs.
func output(t *testing.T, argv []string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(""), &out, &errOut
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, errOut.String())
	}
	return masked(out.String())
}
