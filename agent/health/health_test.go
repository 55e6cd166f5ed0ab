package health_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/health"
	"phoenix.internal/agent/xid"
)

const (
	gpu0 = "0000:01:00.0"
	gpu1 = "0000:41:00.0"
)

// A host is a made-up /proc and kernel log.
type host struct {
	t    *testing.T
	dir  string
	mu   sync.Mutex
	seq  int
	gpus []string // that the driver serves
}

func newHost(t *testing.T) *host {
	h := &host{t: t, dir: t.TempDir(), gpus: []string{gpu0, gpu1}}
	h.boot("one")
	return h
}

func (h *host) write(name, content string) {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// boot begins the log and the identity of the boot anew.
func (h *host) boot(id string) {
	h.write("proc/sys/kernel/random/boot_id", id+"\n")
	h.write("kmsg", "")
	h.seq = 0
}

// say appends a record of the kernel at a second after the boot.
func (h *host) say(second int, message string) { h.record(4, second, message) }

func (h *host) record(priority, second int, message string) {
	h.t.Helper()
	f, err := os.OpenFile(filepath.Join(h.dir, "kmsg"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%d,%d,%d,-;%s\n SUBSYSTEM=pci\n", priority, h.seq, second*1_000_000, message); err != nil {
		h.t.Fatal(err)
	}
	h.seq++
}

func (h *host) serve(gpus ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gpus = gpus
}

// monitor runs a monitor until the test ends or the function is called.
func (h *host) monitor() (*health.Monitor, func()) {
	m := &health.Monitor{
		KernelLog: filepath.Join(h.dir, "kmsg"), Proc: filepath.Join(h.dir, "proc"), File: filepath.Join(h.dir, "state/health.json"),
		Present: func(context.Context) ([]string, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.gpus, nil
		},
		Log: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
	h.t.Cleanup(stop)
	return m, stop
}

// waitFor waits until the errors of a GPU are these, as "XID class xCOUNT".
func waitFor(t *testing.T, m *health.Monitor, gpu string, want ...string) []health.Error {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		errs := m.Errors(gpu)
		var got []string
		for _, e := range errs {
			got = append(got, fmt.Sprintf("%d %v x%d", e.Code, e.Class, e.Count))
		}
		if strings.Join(got, ", ") == strings.Join(want, ", ") {
			return errs
		}
		select {
		case <-deadline:
			t.Fatalf("errors of %s: %q, want %q", gpu, got, want)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestErrors(t *testing.T) { synctest.Test(t, testErrors) }

func testErrors(t *testing.T) {
	h := newHost(t)
	h.write("proc/4711/cgroup", "0::/lxc/901/ns/app.slice\n")
	h.say(1, "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.105.08")
	h.say(2, "NVRM: Xid (PCI:0000:01:00): 31, pid=4711, name=python3, MMU Fault")
	m, _ := h.monitor()
	errs := waitFor(t, m, gpu0, "31 application x1")
	if errs[0].CTID != 901 || errs[0].Process != "python3" {
		t.Errorf("the error is of CTID %d, process %q, want 901, python3", errs[0].CTID, errs[0].Process)
	}
	h.say(3, "NVRM: Xid (PCI:0000:01:00): 31, pid=4712, name=x, MMU Fault")
	h.say(4, "NVRM: Xid (PCI:0000:41:00): 79, GPU has fallen off the bus.")
	waitFor(t, m, gpu1, "79 reboot x1")
	waitFor(t, m, gpu0, "31 application x2")
}

// Whoever has /dev/kmsg in a container may write into it what he likes.
func TestForgedRecord(t *testing.T) { synctest.Test(t, testForgedRecord) }

func testForgedRecord(t *testing.T) {
	h := newHost(t)
	m, _ := h.monitor()
	h.record(8|4, 1, "NVRM: Xid (PCI:0000:01:00): 79, forged")
	h.say(2, "NVRM: Xid (PCI:0000:01:00): 13, true")
	waitFor(t, m, gpu0, "13 application x1")
}

func TestWatchThatRepeats(t *testing.T) { synctest.Test(t, testWatchThatRepeats) }

func testWatchThatRepeats(t *testing.T) {
	h := newHost(t)
	m, _ := h.monitor()
	h.say(0, "NVRM: Xid (PCI:0000:01:00): 109, pid=1, name=x, CTX SWITCH TIMEOUT")
	h.say(1200, "NVRM: Xid (PCI:0000:01:00): 109, pid=1, name=x, CTX SWITCH TIMEOUT")
	h.say(0, "NVRM: Xid (PCI:0000:41:00): 109, pid=1, name=x, CTX SWITCH TIMEOUT")
	h.say(599, "NVRM: Xid (PCI:0000:41:00): 109, pid=1, name=x, CTX SWITCH TIMEOUT")
	waitFor(t, m, gpu1, "109 reset x2")
	waitFor(t, m, gpu0, "109 watch x2") // twenty minutes apart
	h.say(9999, "NVRM: Xid (PCI:0000:41:00): 109, pid=1, name=x, CTX SWITCH TIMEOUT")
	waitFor(t, m, gpu1, "109 reset x3") // it does not become better by waiting
}

func TestRestartOfTheAgent(t *testing.T) { synctest.Test(t, testRestartOfTheAgent) }

func testRestartOfTheAgent(t *testing.T) {
	h := newHost(t)
	m, stop := h.monitor()
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 95, Uncontained")
	waitFor(t, m, gpu0, "95 reset x1")
	stop()
	h.say(2, "NVRM: Xid (PCI:0000:41:00): 13, Graphics Exception")
	m, stop = h.monitor()
	waitFor(t, m, gpu1, "13 application x1")
	waitFor(t, m, gpu0, "95 reset x1") // not counted twice, though the log begins anew
	stop()
	h.boot("two")
	h.say(1, "NVRM: Xid (PCI:0000:41:00): 8, after the boot")
	m, _ = h.monitor()
	waitFor(t, m, gpu1, "8 application x1")
	waitFor(t, m, gpu0)
}

func TestGPUThatComesBack(t *testing.T) { synctest.Test(t, testGPUThatComesBack) }

func testGPUThatComesBack(t *testing.T) {
	h := newHost(t)
	m, _ := h.monitor()
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.")
	h.say(1, "NVRM: Xid (PCI:0000:41:00): 95, Uncontained")
	waitFor(t, m, gpu0, "79 reboot x1")
	h.serve(gpu1)
	time.Sleep(6 * time.Second) // Present is asked every five
	h.serve(gpu0, gpu1)
	waitFor(t, m, gpu0)
	waitFor(t, m, gpu1, "95 reset x1") // was there all the time
}

func TestAcknowledge(t *testing.T) { synctest.Test(t, testAcknowledge) }

func testAcknowledge(t *testing.T) {
	h := newHost(t)
	m, stop := h.monitor()
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 95, Uncontained")
	waitFor(t, m, gpu0, "95 reset x1")
	if n := m.Acknowledge(gpu0); n != 1 {
		t.Errorf("Acknowledge forgot %d errors, want 1", n)
	}
	if n := m.Acknowledge(gpu0); n != 0 {
		t.Errorf("Acknowledge forgot %d errors the second time, want 0", n)
	}
	stop()
	h.say(2, "NVRM: Xid (PCI:0000:41:00): 13, x")
	m, _ = h.monitor()
	waitFor(t, m, gpu1, "13 application x1")
	waitFor(t, m, gpu0)
}

// A GPU that was acknowledged while it was away brings no pardon for its next fault.
func TestFaultAfterAnAcknowledgedAbsence(t *testing.T) {
	synctest.Test(t, testFaultAfterAnAcknowledgedAbsence)
}

func testFaultAfterAnAcknowledgedAbsence(t *testing.T) {
	h := newHost(t)
	m, _ := h.monitor()
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.")
	h.say(1, "NVRM: Xid (PCI:0000:41:00): 31, pid=1, name=x, MMU Fault")
	waitFor(t, m, gpu1, "31 application x1")
	h.serve()
	time.Sleep(6 * time.Second) // Present is asked every five
	m.Acknowledge(gpu0)
	time.Sleep(6 * time.Second)
	h.serve(gpu0, gpu1)
	time.Sleep(6 * time.Second)
	h.say(30, "NVRM: Xid (PCI:0000:01:00): 95, Uncontained")
	h.say(30, "NVRM: Xid (PCI:0000:41:00): 95, Uncontained")
	time.Sleep(11 * time.Second)
	waitFor(t, m, gpu0, "95 reset x1")
	waitFor(t, m, gpu1, "31 application x1", "95 reset x1")
}

// The driver itself tells when a GPU needs no reset any more, which Present is too slow to see.
func TestDriverSaysRecovered(t *testing.T) { synctest.Test(t, testDriverSaysRecovered) }

func testDriverSaysRecovered(t *testing.T) {
	h := newHost(t)
	m, _ := h.monitor()
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 74, NVLink: fatal error detected on link 3")
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 95, Uncontained")
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")
	h.say(1, "NVRM: Xid (PCI:0000:41:00): 95, Uncontained")
	waitFor(t, m, gpu0, "74 support x1", "95 reset x1", "154 reset x1")
	h.say(9, "NVRM: Xid (PCI:0000:01:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)")
	waitFor(t, m, gpu0, "74 support x1", "154 informational x2")
	waitFor(t, m, gpu1, "95 reset x1")
}

func TestOverride(t *testing.T) { synctest.Test(t, testOverride) }

func testOverride(t *testing.T) {
	h := newHost(t)
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 95, Uncontained")
	m, stop := h.monitor()
	stop()
	if err := os.Remove(filepath.Join(h.dir, "state/health.json")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	m = &health.Monitor{KernelLog: m.KernelLog, Proc: m.Proc, File: m.File, Present: m.Present, Log: m.Log, Classes: map[int]xid.Class{95: xid.Informational}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	waitFor(t, m, gpu0, "95 informational x1")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A record that is damaged is no reason to see nothing.
func TestDamagedFile(t *testing.T) { synctest.Test(t, testDamagedFile) }

func testDamagedFile(t *testing.T) {
	h := newHost(t)
	h.write("state/health.json", "{")
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 95, Uncontained")
	m, _ := h.monitor()
	waitFor(t, m, gpu0, "95 reset x1")
}

func TestManyKinds(t *testing.T) { synctest.Test(t, testManyKinds) }

func testManyKinds(t *testing.T) {
	h := newHost(t)
	h.say(1, "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.")
	for i := range 300 {
		h.say(2, fmt.Sprintf("NVRM: Xid (PCI:0000:41:00): %d, x", 1000+i))
	}
	m, _ := h.monitor()
	deadline := time.After(20 * time.Second)
	for errs := m.Errors(gpu1); len(errs) != 255 || errs[254].Code != 1299; errs = m.Errors(gpu1) {
		select {
		case <-deadline:
			t.Fatalf("%d errors are kept, want 255 and the newest among them", len(errs))
		case <-time.After(20 * time.Millisecond):
		}
	}
	waitFor(t, m, gpu0, "79 reboot x1") // the fault is not pushed out by what is harmless
}

// TestKernelLog reads the machine's own log.
func TestKernelLog(t *testing.T) {
	f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no kernel log here: %v", err)
	}
	f.Close()
	if err := os.WriteFile("/dev/kmsg", []byte("<4>NVRM: Xid (PCI:0000:01:00): 79, written by a test of Phoenix\n"), 0); err != nil {
		t.Skipf("kernel log cannot be written: %v", err)
	}
	h := newHost(t)
	m := &health.Monitor{
		Proc: filepath.Join(h.dir, "proc"), File: filepath.Join(h.dir, "state/health.json"), Present: func(context.Context) ([]string, error) { return nil, nil },
		Log: slog.New(slog.NewTextHandler(failOnWrite{t}, nil)),
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := m.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	if errs := m.Errors(gpu0); len(errs) != 0 {
		t.Errorf("a line of user space was believed: %+v", errs)
	}
}

type failOnWrite struct{ t *testing.T }

func (w failOnWrite) Write(b []byte) (int, error) {
	w.t.Errorf("logged: %s", b)
	return len(b), nil
}
