package e2e_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long the tests wait for what must happen, on a busy machine.
const patience = 20 * time.Second

// eventually waits until fn is true, for what happens in other processes.
func eventually(t testing.TB, what string, fn func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !fn() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

// A process is a phoenix-cli at work.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *buffer
	done chan struct{} // closed when it has ended
	err  error         // of Wait
}

// start starts phoenix-cli. It is ended with the test, at the latest.
func (w *world) start(args ...string) *process {
	w.t.Helper()
	return w.startWithStdin(nil, args...)
}

// startWithStdin is start with this stdin.
func (w *world) startWithStdin(stdin io.Reader, args ...string) *process {
	w.t.Helper()
	p := &process{t: w.t, out: &buffer{}, done: make(chan struct{})}
	p.cmd = exec.CommandContext(w.t.Context(), w.Program("phoenix-cli"), append([]string{"--config", w.CLIConfigPath()}, args...)...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, p.out, p.out
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	w.t.Cleanup(func() { <-p.done })
	return p
}

// await waits until the program has written these words.
func (p *process) await(words string) {
	p.t.Helper()
	eventually(p.t, "phoenix-cli says "+words, func() bool {
		if strings.Contains(p.output(), words) {
			return true
		}
		select {
		case <-p.done:
			if !strings.Contains(p.output(), words) {
				p.t.Fatalf("phoenix-cli ended without saying %q:\n%s", words, p.output())
			}
		default:
		}
		return false
	})
}

// wait waits for the end and returns the exit status, -1 if a signal ended it.
func (p *process) wait() int {
	p.t.Helper()
	eventually(p.t, "phoenix-cli ends", func() bool {
		select {
		case <-p.done:
			return true
		default:
			return false
		}
	})
	if exit, ok := errors.AsType[*exec.ExitError](p.err); ok {
		return exit.ExitCode()
	}
	if p.err != nil {
		p.t.Fatal(p.err)
	}
	return 0
}

// kill ends it as kill -9 does. It may have ended.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
	<-p.done
}

// interrupt does what ^C does.
func (p *process) interrupt() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
}

// output is what it has written so far.
func (p *process) output() string { return p.out.String() }

// A buffer may be read while it is written to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
