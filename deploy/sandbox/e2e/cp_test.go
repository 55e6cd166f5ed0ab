package e2e_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// TestCopy copies files the whole way, and goes on with what was broken off, whoever went away.
func TestCopy(t *testing.T) {
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	w.Program("phoenix-cli") // building it takes longer than anything here is waited for
	dir := t.TempDir()
	content := make([]byte, 64<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, content, 0o640); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(n.Dir(), "var-lib-lxc", "901", "rootfs")
	inContainer := filepath.Join(root, "tmp", "copy")
	partial := filepath.Join(root, "tmp", ".copy.phoenix-partial")
	same := func(t *testing.T, path string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, content) {
			t.Fatalf("%s: %d other bytes, %v", path, len(b), err)
		}
	}
	grows := func(path string) func() bool {
		return func() bool {
			info, err := os.Stat(path)
			return err == nil && info.Size() > 1<<20
		}
	}
	for _, test := range []struct {
		name string
		kill func(p *process)
		code int
		want string // on stderr
	}{
		{"the CLI is killed", func(p *process) { p.kill() }, -1, ""},
		{"Ctrl-C", func(p *process) { p.cmd.Process.Signal(syscall.SIGINT) }, 1, "interrupted"},
		{"the agent is killed", func(*process) {
			n.SignalAgent(syscall.SIGKILL)
			n.StartAgent()
		}, 1, "what has arrived is kept; the same command goes on from there"},
		{"the controller is killed", func(*process) {
			w.SignalController(syscall.SIGKILL)
			w.StartController()
		}, 1, "what has arrived is kept; the same command goes on from there"},
		{"the container is restarted", func(*process) {
			n.Must("pct", "stop", "901")
			n.Must("pct", "start", "901")
		}, 1, "what has arrived is kept; the same command goes on from there"},
	} {
		t.Run("push: "+test.name, func(t *testing.T) {
			p := w.start("cp", source, "901:/tmp/copy")
			sandboxtest.Eventually(t, "the file grows", grows(partial))
			test.kill(p)
			if code := p.wait(); test.code >= 0 && (code != test.code || !strings.Contains(p.output(), test.want)) {
				t.Errorf("exit status %d, want %d; it said %q, want %q in it", code, test.code, p.output(), test.want)
			}
			if _, err := os.Lstat(inContainer); err == nil {
				t.Fatal("the file is in its place already")
			}
			out := w.cli("cp", "--json", source, "901:/tmp/copy")
			if strings.Contains(out, `"resumed_bytes":0,`) {
				t.Errorf("it did not go on: %s", out)
			}
			same(t, inContainer)
			if got, _, _ := n.Attach(901, "rm /tmp/copy; ls -A /tmp"); got != "" {
				t.Errorf("left behind: %q", got)
			}
		})
	}
	w.cli("cp", source, "901:/tmp/copy")
	for i, kill := range []func(p *process){
		func(p *process) { p.kill() },
		func(*process) {
			n.SignalAgent(syscall.SIGKILL)
			n.StartAgent()
		},
	} {
		target := filepath.Join(dir, fmt.Sprint("target", i))
		p := w.start("cp", "901:/tmp/copy", target)
		sandboxtest.Eventually(t, "the file grows", grows(filepath.Join(dir, fmt.Sprintf(".target%d.phoenix-partial", i))))
		kill(p)
		p.wait()
		if out := w.cli("cp", "--json", "901:/tmp/copy", target); strings.Contains(out, `"resumed_bytes":0,`) {
			t.Errorf("it did not go on: %s", out)
		}
		same(t, target)
	}
}
