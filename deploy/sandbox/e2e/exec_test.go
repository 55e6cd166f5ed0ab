package e2e_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// TestHostileExec is what a person sees of commands whose surroundings are broken, or break under them.
func TestHostileExec(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	// gone says whether no command with this argument is left on the node.
	gone := func(argument string) func() bool {
		return func() bool {
			out, _, _ := n.Run("grep", "-lsa", "^sleep."+argument, "--include=cmdline", "-r", "/proc", "--exclude-dir=task", "--exclude-dir=self", "--exclude-dir=thread-self")
			return out == ""
		}
	}
	for _, test := range []struct {
		name   string
		args   []string
		stdin  io.Reader
		during func(*process) // after the command has said "begun"
		code   int
		want   string // all of stdout and stderr, with NODE's address left out
	}{
		{name: "user and directory", args: []string{"-u", "5:6", "-w", "/tmp", "901", "sh", "-c", "id -u; id -g; pwd; echo $PWD"}, want: "5\n6\n/tmp\n/tmp\n"},
		{name: "no such user", args: []string{"-u", "nobody-here", "901", "true"}, code: 1,
			want: "phoenix-cli: exec in CTID 901: node pve1: attach to CTID 901: the container has no such user: \"nobody-here\" is no user in the container's /etc/passwd\n" +
				"  See the container's own: phoenix-cli exec 901 cat /etc/passwd /etc/group; or give numbers, UID:GID.\n"},
		{name: "no such directory", args: []string{"-w", "/nowhere", "901", "true"}, code: 1,
			want: "phoenix-cli: exec in CTID 901: node pve1: attach to CTID 901: cannot change to the directory in the container: chdir /nowhere: no such file or directory\n" +
				"  Look at it from inside: phoenix-cli exec 901 ls -ld DIR; the user must be allowed to enter it.\n"},
		{name: "stdin without end for a command that does not read", args: []string{"901", "sh", "-c", "sleep 0.3; exit 5"}, stdin: zeros{}, code: 5},
		{name: "stdin without end for a command that closes it", args: []string{"901", "sh", "-c", "exec <&-; sleep 0.3; exit 6"}, stdin: zeros{}, code: 6},
		{name: "one interrupt behind stdin that fits on the way and is not read", args: []string{"901", "sh", "-c", "echo begun; exec sleep 7106"},
			stdin: io.LimitReader(zeros{}, 300_000), code: 1, want: "begun\nphoenix-cli: interrupted\n",
			during: func(p *process) {
				p.interrupt()
				eventually(t, "the command is ended", gone("7106"))
			}},
		{name: "idle", args: []string{"--idle-timeout", "500ms", "901", "sh", "-c", "echo begun; exec sleep 7101"}, code: 143,
			want: "begun\nphoenix-cli: exec in CTID 901: the command was ended because nothing went in or out for 500ms (--idle-timeout)\n"},
		{name: "the caller is killed", args: []string{"901", "sh", "-c", "echo begun; exec sleep 7102"}, code: -1, want: "begun\n",
			during: func(p *process) {
				p.kill()
				eventually(t, "the command is ended", gone("7102"))
			}},
		{name: "container stopped", args: []string{"901", "sh", "-c", "echo begun; exec sleep 7103"}, code: 137, want: "begun\n",
			during: func(*process) { n.Must("pct", "stop", "901") }},
		{name: "container does not run", args: []string{"901", "true"}, code: 1,
			want: "phoenix-cli: exec in CTID 901: node pve1: CTID 901: container does not run (stopped)\n" +
				"  Start it: pct start 901 on its node; or phoenix-cli apply --start 901 if the fleet file gives it GPUs.\n"},
		{name: "container restarted", args: []string{"901", "sh", "-c", "echo begun; exec sleep 7104"}, code: 137, want: "begun\n",
			during: func(*process) { n.Must("pct", "stop", "901"); n.Must("pct", "start", "901") }},
		{name: "agent killed", args: []string{"901", "sh", "-c", "echo begun; exec sleep 7105"}, code: 1,
			want: "begun\nphoenix-cli: exec in CTID 901: node pve1: the agent at ADDRESS cannot be reached: the connection was closed; is the agent being restarted, or does it refuse our certificate? journalctl -u phoenix-agent (CAUSE)\n" +
				"  See whether the other nodes answer: phoenix-cli health.\n",
			during: func(*process) { n.SignalAgent(syscall.SIGKILL); n.StartAgent() }},
	} {
		if test.name == "container restarted" {
			n.Must("pct", "start", "901")
		}
		t.Run(test.name, func(t *testing.T) {
			p := w.startWithStdin(test.stdin, append([]string{"exec"}, test.args...)...)
			if test.during != nil {
				p.await("begun\n")
				test.during(p)
			}
			code := -1
			if test.code != -1 {
				code = p.wait()
			}
			got := strings.NewReplacer(n.AgentAddress(), "ADDRESS", "(EOF)", "(CAUSE)", "(connection reset by peer)", "(CAUSE)").Replace(p.output())
			if code != test.code || got != test.want {
				t.Errorf("exit status %d and\n%s\nwant %d and\n%s", code, got, test.code, test.want)
			}
		})
	}
}

// A tree goes into a container, and comes out of it, through a pipe.
func TestExecTar(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	startWith(w.nodes[0], 901, conf(901))
	content := bytes.Repeat([]byte("phoenix\x00\xff\n"), 300_000)
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	if err := errors.Join(tw.WriteHeader(&tar.Header{Name: "d/f", Mode: 0o640, Size: int64(len(content))}), second(tw.Write(content)), tw.Close()); err != nil {
		t.Fatal(err)
	}
	run := func(stdin io.Reader, args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), w.Program("phoenix-cli"), append([]string{"--config", w.CLIConfigPath(), "exec", "-w", "/tmp", "901"}, args...)...)
		cmd.Stdin = stdin
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out
	}
	run(&archive, "tar", "-x", "-f", "-")
	tr := tar.NewReader(bytes.NewReader(run(nil, "tar", "-c", "-f", "-", "d/f")))
	if _, err := tr.Next(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(tr); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back, %v; want the %d that were sent", len(got), err, len(content))
	}
}

func second(_ int, err error) error { return err }

// zeros is an input without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
