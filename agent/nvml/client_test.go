package nvml_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"phoenix.internal/agent/nvml"
	"phoenix.internal/agent/nvml/nvmltest"
)

const driver = "580.105.08"

// two GPUs, the second with MIG.
const two = `driver 580.105.08
cuda 13000
gpu GPU-11111111-2222-3333-4444-555555555555 0000:01:00.0 1 16311 1024 NVIDIA GeForce RTX 5060 Ti
process C 100 500
process G 100 20
process C 7 -1
recovery 0
gpu GPU-AAAAAAAA-bbbb-cccc-dddd-eeeeeeeeeeee 0000:81:00.0 0 81559 0 NVIDIA H100 80GB HBM3
mig 1 0
migdevice 0 MIG-AAAAAAAA-0000-0000-0000-000000000001 1 0 9856 1g.10gb
migdevice 2 MIG-aaaaaaaa-0000-0000-0000-000000000002 2 1 40448 1c.3g.40gb
recovery 4
link 0 1
`

func ptr[T any](v T) *T { return &v }

func wantTwo() *nvml.Report {
	return &nvml.Report{
		DriverVersion: "580.105.08",
		CUDAVersion:   "13.0",
		GPUs: []nvml.GPU{
			{Index: 0, PCIAddress: "0000:01:00.0", UUID: "GPU-11111111-2222-3333-4444-555555555555", Minor: ptr(1),
				Name: "NVIDIA GeForce RTX 5060 Ti", MemoryMiB: 16311, MemoryUsedMiB: ptr[int64](1024),
				NVLinkPeers: []string{"0000:81:00.0"}, RecoveryAction: ptr(0),
				Processes: []nvml.Process{{PID: 7}, {PID: 100, UsedMiB: ptr[int64](500)}}},
			{Index: 1, PCIAddress: "0000:81:00.0", UUID: "GPU-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", Minor: ptr(0),
				Name: "NVIDIA H100 80GB HBM3", MemoryMiB: 81559, MemoryUsedMiB: ptr[int64](0),
				NVLinkPeers: []string{"0000:01:00.0"}, RecoveryAction: ptr(4),
				MIG: &nvml.MIGMode{Current: true},
				MIGDevices: []nvml.MIGDevice{
					{Index: 0, UUID: "MIG-aaaaaaaa-0000-0000-0000-000000000001", GPUInstance: 1, Profile: "1g.10gb", MemoryMiB: 9856},
					{Index: 2, UUID: "MIG-aaaaaaaa-0000-0000-0000-000000000002", GPUInstance: 2, ComputeInstance: 1, Profile: "1c.3g.40gb", MemoryMiB: 40448},
				}},
		},
	}
}

// client returns a client of the real helper and a stand-in for the library.
func client(t *testing.T, text string, options ...string) *nvml.Client {
	c := &nvml.Client{Program: nvmltest.Helper(t), Library: nvmltest.Library(t, text, options...)}
	t.Cleanup(c.Close)
	return c
}

func TestScan(t *testing.T) {
	for _, test := range []struct {
		name, text string
		options    []string
		want       func(r *nvml.Report)
	}{
		{name: "two GPUs, one with MIG", text: two},
		{name: "a library that prints", text: "print {\"code\":9}\n" + two},
		{name: "an old library without MIG, processes, links and fields", text: two, options: []string{"-DOLD"}, want: func(r *nvml.Report) {
			r.CUDAVersion = ""
			for i := range r.GPUs {
				g := &r.GPUs[i]
				*g = nvml.GPU{Index: g.Index, PCIAddress: g.PCIAddress, UUID: g.UUID, Minor: g.Minor, Name: g.Name, MemoryMiB: g.MemoryMiB,
					MemoryUsedMiB: ptr(*g.MemoryUsedMiB + 500)} // what the driver reserves counts there
			}
		}},
		{name: "nothing is supported", text: "gpu GPU-11111111-2222-3333-4444-555555555555 0000:01:00.0 -1 0 0 Tesla K80\n", want: func(r *nvml.Report) {
			*r = nvml.Report{GPUs: []nvml.GPU{{PCIAddress: "0000:01:00.0", UUID: "GPU-11111111-2222-3333-4444-555555555555", Name: "Tesla K80"}}}
		}},
		{name: "the second GPU is lost", text: two + "code 15\n", want: func(r *nvml.Report) {
			r.GPUs[0].NVLinkPeers = nil
			r.GPUs[1] = nvml.GPU{Index: 1, Code: 15}
		}},
		{name: "the second GPU needs a reset", text: two + "code 16\n", want: func(r *nvml.Report) {
			r.GPUs[0].NVLinkPeers = nil
			r.GPUs[1] = nvml.GPU{Index: 1, Code: 16, PCIAddress: "0000:81:00.0"}
		}},
		{name: "the second GPU is lost while it is asked", text: two + "misbehaves 15\n", want: func(r *nvml.Report) {
			r.GPUs[1].Code, r.GPUs[1].MemoryMiB, r.GPUs[1].MemoryUsedMiB = 15, 0, nil
		}},
		{name: "no GPU", text: "driver 580.105.08\n", want: func(r *nvml.Report) {
			*r = nvml.Report{DriverVersion: "580.105.08", GPUs: []nvml.GPU{}}
		}},
		{name: "strings that are garbage", text: "driver \xff\xfe;rm -rf\ncuda -1\n" +
			"gpu GPU-garbage 0000:01:00.0 1 16311 1024 \x1b[31mred\xff\n" +
			"mig 1 1\nmigdevice 0 MIG-;;;; 1 0 9856 \x01\x02\nprocess C 0 1\nprocess C 4294967295 1\n", want: func(r *nvml.Report) {
			*r = nvml.Report{GPUs: []nvml.GPU{{PCIAddress: "0000:01:00.0", Minor: ptr(1), Name: "[31mred", MemoryMiB: 16311, MemoryUsedMiB: ptr[int64](1024), Processes: []nvml.Process{},
				MIG: &nvml.MIGMode{Current: true, Pending: true}, MIGDevices: []nvml.MIGDevice{{GPUInstance: 1, MemoryMiB: 9856}}}}}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := wantTwo()
			if test.want != nil {
				test.want(want)
			}
			got, err := client(t, test.text, test.options...).Scan(t.Context(), driver)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("scan: %v, report (-want +got):\n%s", err, diff)
			}
		})
	}
}

// Whatever the driver's library does, the agent has an error and lives on.
func TestLibraryFails(t *testing.T) {
	for _, test := range []struct {
		name, text string
		code       int   // of the Error
		want       error // if it is none
	}{
		{name: "driver not loaded", text: "init 9", code: 9},
		{name: "library not found by the library", text: "init 12", code: 12, want: nvml.ErrAbsent},
		{name: "GPU is lost", text: "init 15", code: 15},
		{name: "version mismatch", text: "init 18", code: 18},
		{name: "crashes when initialised", text: "init segfault", want: nvml.ErrCrashed},
		{name: "aborts", text: "init abort", want: nvml.ErrCrashed},
		{name: "exits", text: "init exit", want: nvml.ErrCrashed},
		{name: "hangs", text: "init hang", want: nvml.ErrHung},
		{name: "crashes half-way", text: two + "misbehaves segfault\n", want: nvml.ErrCrashed},
		{name: "hangs half-way", text: two + "misbehaves hang\n", want: nvml.ErrHung},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := client(t, test.text)
			if test.want == nvml.ErrHung {
				c.Limit = 300 * time.Millisecond
			}
			report, err := c.Scan(t.Context(), driver)
			if e, ok := errors.AsType[*nvml.Error](err); report != nil || ok != (test.code != 0) || ok && e.Code != test.code {
				t.Errorf("scan: %v, %v, want the library's code %d", report, err, test.code)
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("scan: %v, want %v", err, test.want)
			}
			if err := unix.Kill(c.HelperPID(), 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("the helper is still there: kill: %v", err)
			}
		})
	}
}

func TestLibraryMissing(t *testing.T) {
	for _, test := range []struct{ name, library, program string }{
		{"no library", "/nonexistent/libnvidia-ml.so.1", nvmltest.Helper(t)},
		{"no helper", "", "/nonexistent/phoenix-nvml"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &nvml.Client{Program: test.program, Library: test.library}
			defer c.Close()
			if report, err := c.Scan(t.Context(), driver); !errors.Is(err, nvml.ErrAbsent) {
				t.Errorf("scan: %v, %v, want %v", report, err, nvml.ErrAbsent)
			}
		})
	}
}

// script returns a client whose helper is a shell script.
func script(t *testing.T, body string) *nvml.Client {
	path := filepath.Join(t.TempDir(), "phoenix-nvml")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := &nvml.Client{Program: path}
	t.Cleanup(c.Close)
	return c
}

func TestNonsense(t *testing.T) {
	for _, test := range []struct {
		name, body string
		want       error
	}{
		{"no JSON", "read r; echo hello; read r", nvml.ErrNonsense},
		{"an empty line", "read r; echo; read r", nvml.ErrNonsense},
		{"an empty object", "read r; echo '{}'; read r", nvml.ErrNonsense},
		{"other types", `read r; echo '{"report":{"gpus":"none"}}'; read r`, nvml.ErrNonsense},
		{"two lines", `read r; printf '{"code":9}\n{"code":9}\n'; read r`, nvml.ErrNonsense},
		{"a line without end", "read r; exec tr '\\0' x </dev/zero", nvml.ErrNonsense},
		{"a million GPUs", `read r; printf '{"report":{"gpus":[{}'; i=0; while [ $i -lt 100 ]; do printf ',{}'; i=$((i+1)); done; echo ']}}'; read r`, nvml.ErrNonsense},
		{"its output closed", "exec >&-; read r; read r", nvml.ErrNonsense},
		{"half a line, then its end", `read r; printf '{"code":'`, nvml.ErrCrashed},
		{"it ends at once", "exit 0", nvml.ErrCrashed},
	} {
		t.Run(test.name, func(t *testing.T) {
			report, err := script(t, test.body).Scan(t.Context(), driver)
			if report != nil || !errors.Is(err, test.want) {
				t.Errorf("scan: %v, %v, want %v", report, err, test.want)
			}
		})
	}
}

const answers = `while read r; do echo '{"report":{"gpus":[]}}'; done`

func TestHelperHasNothingOfOurs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("LD_PRELOAD_OF_THE_AGENT", "x")
	// The agent does that too when it starts.
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	c := script(t, "ls /proc/self/fd >"+dir+"/fds; tr '\\0' '\\n' </proc/$$/environ | cut -d = -f 1 >"+dir+"/env; pwd >"+dir+"/pwd; "+answers)
	if _, err := c.Scan(t.Context(), driver); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ file, want string }{
		{"fds", "0 1 2 3"}, // 3 is the directory that ls reads
		{"env", "PATH LANG"},
		{"pwd", "/"},
	} {
		b, err := os.ReadFile(filepath.Join(dir, test.file))
		if got := strings.Join(strings.Fields(string(b)), " "); err != nil || got != test.want {
			t.Errorf("%s of the helper: %q, %v, want %q", test.file, got, err, test.want)
		}
	}
}

// A helper that is asked again is the same process, until the driver is another one.
func TestHelperStays(t *testing.T) {
	c := script(t, answers)
	pids := []int{}
	for _, version := range []string{driver, driver, "580.159.03"} {
		if _, err := c.Scan(t.Context(), version); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, c.HelperPID())
	}
	if pids[0] != pids[1] || pids[1] == pids[2] {
		t.Errorf("helpers %v, want the first two the same and the third another one", pids)
	}
	if err := unix.Kill(pids[0], 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the first helper is still there: kill: %v", err)
	}
	// Killed by somebody else while it had nothing to do: the next scan starts another one.
	p, err := os.FindProcess(pids[2])
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); unix.Kill(pids[2], 0) == nil && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // until it has been waited for
	}
	if _, err := c.Scan(t.Context(), "580.159.03"); err != nil {
		t.Errorf("scan after the helper was killed: %v", err)
	}
}

func TestBackoff(t *testing.T) {
	dir := t.TempDir()
	c := script(t, "echo >>"+dir+"/starts; exit 1")
	now := time.Unix(1e9, 0)
	c.SetNow(func() time.Time { return now })
	starts := func() int {
		b, _ := os.ReadFile(filepath.Join(dir, "starts"))
		return len(b)
	}
	for _, step := range []struct {
		after  time.Duration
		driver string
		want   int // starts of the helper so far
	}{
		{0, driver, 1},
		{0, driver, 1},
		{999 * time.Millisecond, driver, 1},
		{time.Millisecond, driver, 2},
		{time.Second, driver, 2},
		{time.Second, driver, 3},
		{3 * time.Second, driver, 3},
		{0, "580.159.03", 4}, // another driver may do better
		{time.Second, "580.159.03", 5},
		{5 * time.Minute, "580.159.03", 6},
		{5 * time.Minute, "580.159.03", 7},
		{time.Hour, "580.159.03", 8},
		{time.Second, "580.159.03", 9}, // it begins anew
	} {
		now = now.Add(step.after)
		if _, err := c.Scan(t.Context(), step.driver); !errors.Is(err, nvml.ErrCrashed) {
			t.Fatalf("scan: %v, want %v", err, nvml.ErrCrashed)
		}
		if got := starts(); got != step.want {
			t.Fatalf("%v later: started %d times, want %d", step.after, got, step.want)
		}
	}
}

// With NVML absent nothing is logged more than once; else each change is, once.
func TestLog(t *testing.T) {
	c := client(t, "init 18")
	var out strings.Builder
	c.Log = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	now := time.Unix(1e9, 0)
	c.SetNow(func() time.Time { return now })
	library := c.Library
	for _, text := range []string{"init 18", "init 18", "init 12", "init 12", "init 12", two, two, "init segfault", "init segfault"} {
		nvmltest.Tell(t, library, text)
		now = now.Add(6 * time.Minute)
		c.Scan(t.Context(), driver)
	}
	const want = `level=WARN msg="nvml does not answer" err="NVML: driver/library version mismatch (code 18)"
level=INFO msg="nvml is not used" err="NVML: library not found (code 12)"
level=INFO msg="nvml answers"
level=WARN msg="nvml does not answer" err="phoenix-nvml crashed: exit status 2"
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

// Many callers share one question, and none of them waits longer than it wants to.
func TestManyCallers(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "go"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := script(t, "while read r; do echo >>"+dir+"/asked; read x <"+dir+"/go; echo '{\"report\":{\"gpus\":[]}}'; done")
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := c.Scan(ctx, driver)
		gaveUp <- err
	}()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := c.Scan(t.Context(), driver); err != nil {
				t.Errorf("scan: %v", err)
			}
		})
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("scan of a caller that left: %v, want %v", err, context.Canceled)
	}
	// The helper is let go on for as often as it is asked: opened for both, the FIFO blocks nobody.
	f, err := os.OpenFile(filepath.Join(dir, "go"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strings.Repeat("\n", 21)); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	if b, err := os.ReadFile(filepath.Join(dir, "asked")); err != nil || len(b) == 0 || len(b) > 21 {
		t.Errorf("asked %d times, %v, want at least once and at most once per caller", len(b), err)
	}
}

func TestClose(t *testing.T) {
	c := client(t, "init hang")
	failed := make(chan error)
	go func() {
		_, err := c.Scan(t.Context(), driver)
		failed <- err
	}()
	for c.HelperPID() == 0 {
		time.Sleep(time.Millisecond) // until it has been started
	}
	c.Close()
	if err := <-failed; !errors.Is(err, nvml.ErrClosed) {
		t.Errorf("scan that was under way: %v, want %v", err, nvml.ErrClosed)
	}
	if _, err := c.Scan(t.Context(), driver); !errors.Is(err, nvml.ErrClosed) {
		t.Errorf("scan after that: %v, want %v", err, nvml.ErrClosed)
	}
	if err := unix.Kill(c.HelperPID(), 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the helper is still there: kill: %v", err)
	}
}

// An agent that is killed leaves no helper behind, not even one that hangs.
func TestHelperEndsWithItsInput(t *testing.T) {
	for _, text := range []string{two, "init hang"} {
		cmd := exec.Command(nvmltest.Helper(t), nvmltest.Library(t, text))
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write([]byte(nvml.Request + "\n")); err != nil {
			t.Fatal(err)
		}
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("helper with %q: %v, want its end", text, err)
		}
	}
}

// Between two requests nothing of the driver is open, so that a GPU can be reset and the driver unloaded.
func TestLibraryDoesNotLetGo(t *testing.T) {
	device := filepath.Join(t.TempDir(), "dev/nvidia0")
	if err := os.MkdirAll(filepath.Dir(device), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(device, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := client(t, "leak "+device+"\n"+two)
	for range 2 {
		got, err := c.Scan(t.Context(), driver)
		if diff := cmp.Diff(wantTwo(), got); err != nil || diff != "" {
			t.Errorf("scan: %v, report (-want +got):\n%s", err, diff)
		}
		if err := unix.Kill(c.HelperPID(), 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("the helper is still there: kill: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"code":18}`))
	f.Add([]byte(`{"report":{"driver_version":"580.105.08","gpus":[{"index":0,"pci_address":"0000:01:00.0","uuid":"GPU-AAAAAAAA-bbbb-cccc-dddd-eeeeeeeeeeee","minor":-1,"name":"\u001b","processes":[{"pid":-1}]}]}}`))
	f.Add([]byte(`{"report":{"gpus":[{"index":1,"pci_address":"0000:01:00.0"},{"index":0,"pci_address":"0000:01:00.0"},{"mig_devices":[{"uuid":"MIG-"}]}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := nvml.Parse(b)
		if (r == nil) == (err == nil) {
			t.Fatalf("%q: %v, %v", b, r, err)
		}
		if r == nil {
			return
		}
		seen := map[string]bool{}
		for _, g := range r.GPUs {
			if g.PCIAddress != "" && seen[g.PCIAddress] {
				t.Errorf("%q: %s twice", b, g.PCIAddress)
			}
			seen[g.PCIAddress] = true
			if strings.ContainsAny(g.UUID+g.Name+g.PCIAddress, "\n\x1b\x00") || len(g.Name) > 96 {
				t.Errorf("%q: %+v", b, g)
			}
			for _, p := range g.Processes {
				if p.PID <= 0 {
					t.Errorf("%q: PID %d", b, p.PID)
				}
			}
		}
	})
}

// Beside a helper that cannot be killed no other is started.
func TestHelperThatDoesNotDie(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	c := &nvml.Client{Program: "/bin/true"}
	c.Undying(driver, cmd.Process)
	const want = "phoenix-nvml does not answer: it cannot even be killed"
	if _, err := c.Scan(t.Context(), driver); !errors.Is(err, nvml.ErrHung) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
