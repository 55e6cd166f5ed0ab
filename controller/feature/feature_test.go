package feature_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"phoenix.internal/controller/feature"
)

// dir makes a directory of scripts by name.
func dir(t *testing.T, scripts map[string]string) string {
	t.Helper()
	d := t.TempDir()
	for name, content := range scripts {
		if err := os.WriteFile(filepath.Join(d, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestList(t *testing.T) {
	d := dir(t, map[string]string{
		"vllm.sh": "", "trusted_ca.sh": "", "step-cli.2.sh": "",
		"README.md": "", "Upper.sh": "", ".hidden.sh": "", ".sh": "", "a..b.sh": "", "vllm.sh~": "",
		strings.Repeat("a", 128) + ".sh": "", strings.Repeat("b", 129) + ".sh": "",
	})
	if err := os.Mkdir(filepath.Join(d, "dir.sh"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := feature.Scripts{Dir: d}.List()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"vllm": true, "trusted_ca": true, "step-cli.2": true, strings.Repeat("a", 128): true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if got, err := (feature.Scripts{}).List(); err != nil || len(got) > 0 {
		t.Errorf("List without directory = %v, %v", got, err)
	}
	_, err = feature.Scripts{Dir: filepath.Join(d, "none")}.List()
	if e, ok := errors.AsType[*feature.DirError](err); !ok || err.Error() != "features_dir: "+e.Dir+": no such file or directory" {
		t.Errorf("List of no directory: %v", err)
	}
}

func TestOpen(t *testing.T) {
	d := dir(t, map[string]string{"vllm.sh": "#!/bin/bash -e\necho hi\n"})
	s, err := feature.Scripts{Dir: d}.Open("vllm")
	if err != nil {
		t.Fatal(err)
	}
	want := &feature.Script{
		Feature: "vllm",
		SHA256:  "8b07889473f75262d84e58e86dbef0606a3d43466919ab840b6a3ca5e8bd1606",
		Content: []byte("#!/bin/bash -e\necho hi\n"),
		Shell:   []string{"/bin/bash", "-e"},
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("Open (-want +got):\n%s", diff)
	}
}

func TestOpenRefuses(t *testing.T) {
	d := dir(t, map[string]string{
		"good.sh": "true\n", "group.sh": "", "world.sh": "",
		"large.sh": strings.Repeat("#", feature.MaxBytes+1), "full.sh": strings.Repeat("#", feature.MaxBytes),
		"python.sh": "#!/usr/bin/python3\n", "perl.sh": "#! /usr/bin/env perl -w\n", "nothing.sh": "#!\n",
		"crlf.sh": "#!/bin/sh\r\necho\r\n", "nul.sh": "echo\x00\n",
	})
	outside := dir(t, map[string]string{"x.sh": "true\n"})
	for name, mode := range map[string]os.FileMode{"group.sh": 0o620, "world.sh": 0o602} {
		if err := os.Chmod(filepath.Join(d, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"out.sh": filepath.Join(outside, "x.sh"), "in.sh": "good.sh"} {
		if err := os.Symlink(target, filepath.Join(d, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(d, "fifo.sh"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(d, "dir.sh"), 0o700); err != nil {
		t.Fatal(err)
	}
	const notAName = `not a name; use a to z, 0 to 9, ".", "_" and "-", at most 128, beginning with a letter or digit and without two dots in a row`
	for _, tt := range []struct{ feature, want string }{
		{"../x", `script of feature "../x": ` + notAName},
		{"a/b", `script of feature "a/b": ` + notAName},
		{"", `script of feature "": ` + notAName},
		{"a..b", `script of feature "a..b": ` + notAName},
		{"x\n", `script of feature "x\n": ` + notAName},
		{"none", "script none.sh in DIR: no such script"},
		{"out", "script out.sh in DIR: it is a symbolic link; put the file itself there"},
		{"in", "script in.sh in DIR: it is a symbolic link; put the file itself there"},
		{"fifo", "script fifo.sh in DIR: it is not a regular file"},
		{"dir", "script dir.sh in DIR: it is not a regular file"},
		{"group", "script group.sh in DIR: it may be written by its group or by everybody (mode 0620); run chmod go-w"},
		{"world", "script world.sh in DIR: it may be written by its group or by everybody (mode 0602); run chmod go-w"},
		{"large", "script large.sh in DIR: it is larger than 1048576 bytes (1 MiB)"},
		{"python", `script python.sh in DIR: its first line asks for "/usr/bin/python3"; a feature script is one for sh or bash`},
		{"perl", `script perl.sh in DIR: its first line asks for "/usr/bin/env perl -w"; a feature script is one for sh or bash`},
		{"crlf", "script crlf.sh in DIR: its lines end with CR LF; save it with LF alone"},
		{"nul", "script nul.sh in DIR: it holds a NUL"},
		{"nothing", `script nothing.sh in DIR: its first line asks for ""; a feature script is one for sh or bash`},
	} {
		t.Run(tt.feature, func(t *testing.T) {
			s, err := feature.Scripts{Dir: d}.Open(tt.feature)
			want := strings.ReplaceAll(tt.want, "DIR", d)
			if err == nil || err.Error() != want {
				t.Errorf("Open(%q) = %v, %v\nwant %s", tt.feature, s, err, want)
			}
		})
	}
	for _, good := range []string{"good", "full"} {
		if _, err := (feature.Scripts{Dir: d}).Open(good); err != nil {
			t.Errorf("Open(%q): %v", good, err)
		}
	}
	if _, err := (feature.Scripts{Dir: d}).Open("none"); !errors.Is(err, feature.ErrNotFound) {
		t.Errorf("Open of none: %v is not ErrNotFound", err)
	}
	if _, err := (feature.Scripts{}).Open("good"); !errors.Is(err, feature.ErrNotFound) {
		t.Errorf("Open without directory: %v is not ErrNotFound", err)
	}
	if err := os.Chmod(d, 0o777); err != nil {
		t.Fatal(err)
	}
	want := "script good.sh in " + d + ": the directory may be written by its group or by everybody (mode 0777); run chmod go-w"
	if _, err := (feature.Scripts{Dir: d}).Open("good"); err == nil || err.Error() != want {
		t.Errorf("Open in a directory for everybody: %v; want %s", err, want)
	}
}

func TestOpenRefusesAnotherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	d := dir(t, map[string]string{"theirs.sh": ""})
	if err := os.Chown(filepath.Join(d, "theirs.sh"), 1234, 0); err != nil {
		t.Fatal(err)
	}
	want := "script theirs.sh in " + d + ": it belongs to user 1234; it must belong to root or to user 0"
	if _, err := (feature.Scripts{Dir: d}).Open("theirs"); err == nil || err.Error() != want {
		t.Errorf("Open: %v; want %s", err, want)
	}
}

// run executes a command here as the engine does in a container, with the shell that a small container has.
func run(t *testing.T, c feature.Command, busybox string) (stdout, stderr string, code int) {
	t.Helper()
	argv := c.Argv
	if busybox != "" {
		argv = append([]string{busybox}, argv...)
	}
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.Stdin), &out, &errs
	cmd.Env = append(os.Environ(), c.Env...)
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// shells returns the programs before "sh" with which commands are tried: the machine's own, and busybox.
func shells(t *testing.T) []string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed")
	}
	return []string{"", busybox}
}

func TestScriptCommand(t *testing.T) {
	d := dir(t, map[string]string{
		"env.sh":    "#!/bin/sh -e\nprintf '%s|%s|%s|%s|%s\\n' \"$0\" \"$#\" \"$PHOENIX_CTID\" \"$PHOENIX_FEATURE\" \"$PHOENIX_GPUS\"\n",
		"fails.sh":  "#!/bin/sh -e\nfalse\necho not reached\n",
		"exits.sh":  "exit 7",
		"reads.sh":  "cat\necho after\n",
		"syntax.sh": "if true; then\n",
		"empty.sh":  "",
		"quotes.sh": "x='a b'\"$(echo \\\"c\\\")\"\necho \"$x\" '$1'\ncat <<'EOF'\nhere $x\nEOF\n",
		"bash.sh":   "#!/usr/bin/env bash\na=(1 2)\necho \"${a[1]}\"\n",
	})
	for _, busybox := range shells(t) {
		for _, tt := range []struct {
			feature, stdout string
			code            int
		}{
			{"env", "env.sh|0|901|env|0,1\n", 0},
			{"fails", "", 1},
			{"exits", "", 7},
			{"reads", "after\n", 0},
			{"syntax", "", 2},
			{"empty", "", 0},
			{"quotes", "a b\"c\" $1\nhere $x\n", 0},
			{"bash", "2\n", 0},
		} {
			s, err := feature.Scripts{Dir: d}.Open(tt.feature)
			if err != nil {
				t.Fatal(err)
			}
			c := s.Command(901, []int{0, 1})
			with := busybox
			if c.Argv[0] != "sh" {
				with = ""
			}
			stdout, stderr, code := run(t, c, with)
			if stdout != tt.stdout || code != tt.code && !(tt.feature == "syntax" && code != 0) {
				t.Errorf("%s %s: %q, status %d, stderr %q; want %q, status %d", busybox, tt.feature, stdout, code, stderr, tt.stdout, tt.code)
			}
		}
	}
}

// A connection that breaks must not leave half a script, or half a line, to be run.
func TestIncompleteScriptIsNotRun(t *testing.T) {
	d := dir(t, map[string]string{"vllm.sh": "echo one\necho two\n"})
	s, err := feature.Scripts{Dir: d}.Open("vllm")
	if err != nil {
		t.Fatal(err)
	}
	for _, busybox := range shells(t) {
		whole := s.Command(901, nil)
		for cut := range len(whole.Stdin) - 1 {
			if cut%7 != 0 && cut < len(whole.Stdin)-3 {
				continue // each run is a process
			}
			c := whole
			c.Stdin = whole.Stdin[:cut]
			stdout, stderr, code := run(t, c, busybox)
			if stdout != "" || code != 125 || stderr != "the script came incomplete; nothing of it was run\n" {
				t.Errorf("%s: with %d of %d bytes: %q, %q, status %d", busybox, cut, len(whole.Stdin), stdout, stderr, code)
			}
		}
	}
}

func TestMarker(t *testing.T) {
	for _, busybox := range shells(t) {
		root := t.TempDir()
		in := func(c feature.Command) feature.Command {
			for i, arg := range c.Argv {
				if strings.HasPrefix(arg, "/var/lib/phoenix/features/") {
					c.Argv[i] = root + arg
				}
			}
			return c
		}
		read := func() []byte {
			stdout, stderr, code := run(t, in(feature.ReadMarker("vllm")), busybox)
			if code != 0 || stderr != "" {
				t.Errorf("%s: ReadMarker: status %d, %s", busybox, code, stderr)
			}
			return []byte(stdout)
		}
		sum, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
		if got := read(); len(got) > 0 || feature.Holds(got, sum) {
			t.Errorf("%s: marker before: %q", busybox, got)
		}
		for _, s := range []string{other, sum} {
			if _, stderr, code := run(t, in(feature.WriteMarker("vllm", s)), busybox); code != 0 {
				t.Fatalf("%s: WriteMarker: status %d, %s", busybox, code, stderr)
			}
		}
		if got := read(); !feature.Holds(got, sum) || feature.Holds(got, other) {
			t.Errorf("%s: marker after: %q; want %s", busybox, got, sum)
		}
		entries, err := os.ReadDir(filepath.Join(root, "var/lib/phoenix/features"))
		if err != nil || len(entries) != 1 {
			t.Errorf("%s: %v, %v; want the marker alone", busybox, entries, err)
		}
	}
	if feature.Holds(nil, "") {
		t.Error("no marker holds for no script")
	}
}

func TestHealthCheck(t *testing.T) {
	got := feature.HealthCheck("test -c /dev/null && echo 'a  b'")
	if diff := cmp.Diff([]string{"sh", "-c", "test -c /dev/null && echo 'a  b'"}, got.Argv); diff != "" {
		t.Errorf("argv (-want +got):\n%s", diff)
	}
	if stdout, _, code := run(t, got, ""); stdout != "a  b\n" || code != 0 {
		t.Errorf("%q, status %d", stdout, code)
	}
}
