package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/cli"
)

// proxmox is where the files are that record what Proxmox itself made of confs; they are never rewritten.
const proxmox = "../agent/pveconf/testdata/pve"

// TestAsProxmox compares conf inspect --proxmox and conf canonical with what Proxmox's own parser and writer made of each
// conf. Where they died, so do we, with a reason and without output.
func TestAsProxmox(t *testing.T) {
	confs, err := filepath.Glob(filepath.Join(proxmox, "*.conf"))
	if err != nil {
		t.Fatal(err)
	}
	noSettings(t)
	compared, died := 0, 0
	for _, path := range confs {
		name := strings.TrimSuffix(path, ".conf")
		golden, err := os.ReadFile(name + ".parsed.json")
		if errors.Is(err, fs.ErrNotExist) {
			continue // a .rewritten.conf
		} else if err != nil {
			t.Fatal(err)
		}
		compared++
		t.Run(filepath.Base(name), func(t *testing.T) {
			var want struct{ Config any }
			if err := decode(golden, &want); err != nil {
				t.Fatal(err)
			}
			got := alone(t, nil, "conf", "inspect", "--proxmox", path)
			if want.Config == nil {
				died++
				wantDeath(t, got)
			} else {
				var config any
				if err := decode([]byte(got.stdout), &config); err != nil || got.code != 0 || got.stderr != "" {
					t.Fatalf("exit %d, %v\n%s", got.code, err, got.stderr)
				}
				if diff := cmp.Diff(want.Config, config); diff != "" {
					t.Errorf("config (-Proxmox +phoenix-cli):\n%s", diff)
				}
			}
			rewritten, err := os.ReadFile(name + ".rewritten.conf")
			got = alone(t, nil, "conf", "canonical", path)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				wantDeath(t, got)
			case err != nil:
				t.Fatal(err)
			case got != result{stdout: string(rewritten)}:
				t.Errorf("canonical: exit %d, stderr %q, -Proxmox +phoenix-cli:\n%s", got.code, got.stderr, cmp.Diff(string(rewritten), got.stdout))
			}
		})
	}
	if compared < 88 || died == 0 {
		t.Errorf("compared %d confs, of which Proxmox cannot read %d; there are 88, some of which it cannot read", compared, died)
	}
}

// noSettings makes this machine one on which phoenix-cli was never set up.
func noSettings(t *testing.T) {
	t.Helper()
	settings(t, "")
	t.Setenv("PHOENIX_CONFIG", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
}

// alone runs phoenix-cli where nobody can be asked.
func alone(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	p := cli.Program{In: stdin, Out: &stdout, Err: &stderr, Connect: func(context.Context, cli.Config) (*cli.Conn, error) {
		t.Errorf("phoenix-cli %s: it connects", strings.Join(args, " "))
		return nil, errors.New("nobody is there")
	}}
	code := p.Run(t.Context(), args)
	return result{stdout.String(), stderr.String(), code}
}

// decode keeps numbers as they stand, so that 1 and "1", and 512 and 512.0, are told apart.
func decode(b []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(to)
}

func wantDeath(t *testing.T, got result) {
	t.Helper()
	if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, ": Proxmox cannot ") {
		t.Errorf("exit %d, stdout %q, stderr %q; want 1, nothing, and that Proxmox cannot read or write it", got.code, got.stdout, got.stderr)
	}
}

// A conf from stdin is the same conf, and the bytes that are written are those of the file: Proxmox reads it no other way.
func TestConfFromStdin(t *testing.T) {
	const conf = "tags: \xfc\x00\r\nhostname: a\n"
	noSettings(t)
	got := alone(t, strings.NewReader(conf), "conf", "canonical", "-")
	if want := (result{stdout: "hostname: a\ntags: \xfc\x00\n"}); got != want {
		t.Errorf("canonical: %+v, want %+v", got, want)
	}
	got = alone(t, strings.NewReader(conf), "conf", "inspect", "-")
	if want := "stdin: 22 bytes, digest 1476c431398ca8e3f7f261e4412889a94177bc23\n"; got.code != 0 || !strings.HasPrefix(got.stdout, want) {
		t.Errorf("inspect: exit %d\n%s\nwant it to begin with\n%s", got.code, got.stdout, want)
	}
	got = alone(t, strings.NewReader(conf), "conf", "audit", "--files", "-")
	if want := "\nstdin:1: warning (odd-bytes): "; got.code != 1 || !strings.Contains(got.stdout, want) {
		t.Errorf("audit: exit %d\n%s\nwant %q in it", got.code, got.stdout, want)
	}
}

// A conf of exactly the size that Proxmox's file system takes is read, one byte more is not.
func TestConfSize(t *testing.T) {
	const most = 1 << 20
	comment := "#" + strings.Repeat("x", most-2) + "\n"
	noSettings(t)
	got := alone(t, strings.NewReader(comment), "conf", "canonical", "-")
	if want := (result{stdout: comment}); got != want {
		t.Errorf("1 MiB: exit %d, %d bytes of output, stderr %q", got.code, len(got.stdout), got.stderr)
	}
	got = alone(t, strings.NewReader(comment+"\n"), "conf", "canonical", "-")
	if want := (result{"", "phoenix-cli: read the conf: stdin is larger than 1 MiB\n", 1}); got != want {
		t.Errorf("one byte more: %+v, want %+v", got, want)
	}
}

// What is said about a file needs neither settings nor anybody who is asked.
func TestConfFilesWithoutSettings(t *testing.T) {
	noSettings(t)
	for _, command := range []string{"inspect", "inspect --proxmox", "inspect --json", "canonical", "audit --files"} {
		const conf = "arch: amd64\nostype: debian\nrootfs: local:8\nunprivileged: 1\n"
		got := alone(t, strings.NewReader(conf), append([]string{"conf"}, strings.Fields(command+" -")...)...)
		if got.code != 0 || got.stdout == "" || got.stderr != "" {
			t.Errorf("conf %s -: exit %d\n%s%s", command, got.code, got.stdout, got.stderr)
		}
	}
}

// A first Ctrl-C ends the wait for a stdin that says nothing.
func TestStdinInterrupted(t *testing.T) {
	noSettings(t)
	for _, args := range [][]string{{"conf", "inspect", "-"}, {"conf", "canonical", "-"}, {"conf", "audit", "--files", "-"}, {"validate", "-"}} {
		stdin, silent := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var stderr bytes.Buffer
		ended := make(chan int, 1)
		p := cli.Program{In: stdin, Out: io.Discard, Err: &stderr}
		go func() { ended <- p.Run(ctx, args) }()
		select {
		case code := <-ended:
			if want := "phoenix-cli: interrupted\n"; code != 1 || stderr.String() != want {
				t.Errorf("%v: exit %d, stderr %q, want 1, %q", args, code, stderr.String(), want)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%v: still reading 10 s after it was interrupted", args)
		}
		silent.Close()
	}
}
