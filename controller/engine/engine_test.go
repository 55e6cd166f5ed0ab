package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
	"phoenix.internal/controller/store"
)

// A bench is an engine over a fake fleet.
type bench struct {
	*engine.Engine
	t     *testing.T
	fleet *fakeFleet
	store store.Store
	cfg   engine.Config
}

// newBench makes an engine for the containers of a fleet file, given as the JSON of lxc_configs.
func newBench(t *testing.T, f *fakeFleet, containers string) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{t: t, fleet: f, store: &store.Memory{}}
	b.cfg = engine.Config{
		FleetFile:   filepath.Join(dir, "fleet.json"),
		FeaturesDir: dir,
		Agents:      f,
		Store:       b.store,
		Log:         slog.New(slog.DiscardHandler),
	}
	b.write("fleet.json", `{"lxc_configs": `+containers+`}`)
	b.Engine = engine.New(b.cfg)
	t.Cleanup(func() { b.Close() })
	return b
}

func (b *bench) write(name, content string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.cfg.FeaturesDir, name), []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// restartEngine is what a new process does.
func (b *bench) restartEngine(ctx context.Context) {
	b.t.Helper()
	b.Engine = engine.New(b.cfg)
	if err := b.Resume(ctx); err != nil {
		b.t.Fatalf("Resume = %v", err)
	}
}

// apply applies and waits for the end.
func (b *bench) apply(req engine.Request) store.Run {
	b.t.Helper()
	w, err := b.Apply(b.t.Context(), req)
	if err != nil {
		b.t.Fatalf("Apply = %v", err)
	}
	return b.end(w)
}

func (b *bench) end(w *engine.Watch) store.Run {
	b.t.Helper()
	defer w.Close()
	for {
		_, err := w.Next(b.t.Context())
		if err == io.EOF {
			break
		}
		if err != nil {
			b.t.Fatalf("Next = %v", err)
		}
	}
	r := w.Run()
	kept, err := b.store.Run(r.ID)
	if diff := cmp.Diff(kept, r); err != nil || diff != "" {
		b.t.Errorf("what is kept differs from what was watched: %v, -kept +watched:\n%s", err, diff)
	}
	return r
}

// summary is a run in a few lines: "901 succeeded: check devices unchanged, patch conf succeeded".
func summary(r store.Run) []string {
	lines := []string{string(r.State)}
	for _, c := range r.Containers {
		var steps []string
		for _, s := range c.Steps {
			name := map[plan.Kind]string{
				plan.CheckDevices: "check", plan.PatchConf: "patch", plan.Restart: "restart", plan.VerifyDevices: "verify",
				plan.Feature: "feature " + s.Feature, plan.HealthCheck: "health",
			}[s.Kind]
			steps = append(steps, name+" "+string(s.State))
		}
		line := fmt.Sprintf("%d %s", c.CTID, c.State)
		if len(steps) > 0 {
			line += ": " + strings.Join(steps, ", ")
		}
		lines = append(lines, line)
	}
	return lines
}

func (b *bench) want(r store.Run, want ...string) {
	b.t.Helper()
	if diff := cmp.Diff(want, summary(r)); diff != "" {
		b.t.Errorf("run, -want +got:\n%s", diff)
		for _, c := range r.Containers {
			if c.Error != "" {
				b.t.Logf("%d: %s", c.CTID, c.Error)
			}
		}
	}
}

func (b *bench) wantActs(want ...string) {
	b.t.Helper()
	got := b.fleet.acts()
	if len(want) == 0 && len(got) == 0 {
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("acts, -want +got:\n%s", diff)
	}
}

// bubble runs fn where time is fake.
func bubble(t *testing.T, fn func(t *testing.T)) { t.Helper(); synctest.Test(t, fn) }

const two = `{
	"901": {"name": "base", "gpu_assignment": "0,1"},
	"902": {"name": "child", "gpu_assignment": "1", "clone_from_ctid": 901}
}`

func TestApply(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1", "pve2")
		f.add("pve1", 901, true)
		f.add("pve2", 902, true, 0)
		b := newBench(t, f, two)

		b.want(b.apply(engine.Request{Who: "root"}), "succeeded",
			"901 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded",
			"902 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded")
		b.wantActs("pve1 prepare [0 1]", "pve1 patch 901 [0 1]", "pve1 restart 901", "pve1 probe 901",
			"pve2 prepare [1]", "pve2 patch 902 [1]", "pve2 restart 902", "pve2 probe 902")

		f.calls = nil
		b.want(b.apply(engine.Request{}), "succeeded", "901 unchanged", "902 unchanged")
		b.wantActs() // the second apply does nothing

		b.want(b.apply(engine.Request{CTIDs: []int32{902}, Verify: true}), "succeeded",
			"902 succeeded: check unchanged, verify succeeded")
		b.wantActs("pve2 prepare [1]", "pve2 probe 902")
	})
}

// Failure 1: another writer patched the conf, so there is nothing to change; the container still needs the restart.
func TestFailure01RestartFollowsEffectiveState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		f.before = func(call string) error {
			if call == "pve1 patch 901 [0]" {
				f.mu.Lock()
				defer f.mu.Unlock()
				c.configure(refs(0), observed.ModeRaw) // the other one was faster
			}
			return nil
		}
		b.want(b.apply(engine.Request{}), "succeeded",
			"901 succeeded: check unchanged, patch unchanged, restart succeeded, verify succeeded")
		if c.starts != 2 || !observed.Equal(c.Effective.GPUs, refs(0)) {
			t.Errorf("started %d times, has GPUs %v; want 2 and [0]", c.starts, c.Effective.GPUs)
		}
	})
}

// Failure 1, the other way around: another writer patches between our patch and our restart.
func TestFailure01PatchedUnderOurHands(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		others := 0
		f.after = func(string) {
			if others++; others == 1 {
				f.mu.Lock()
				defer f.mu.Unlock()
				c.configure(refs(1), observed.ModeRaw)
			}
		}
		b.want(b.apply(engine.Request{}), "succeeded",
			"901 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded")
		b.wantActs("pve1 prepare [0]", "pve1 patch 901 [0]", "pve1 patch 901 [0]", "pve1 restart 901", "pve1 probe 901")
		if !observed.Equal(c.Effective.GPUs, refs(0)) {
			t.Errorf("has GPUs %v; want [0]", c.Effective.GPUs)
		}
	})
}

// Failure 4: GPU 1 alone is assigned, so /dev/nvidia0 is never there and nobody waits for it.
func TestFailure04WaitsOnlyForAssignedDevices(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		f.add("pve1", 901, true, 1)
		b := newBench(t, f, `{"901": {"gpu_assignment": "1"}}`)
		begin := time.Now()
		b.want(b.apply(engine.Request{}), "succeeded", "901 succeeded: check unchanged, verify succeeded")
		if took := time.Since(begin); took != 0 {
			t.Errorf("it waited %v", took)
		}
		b.wantActs("pve1 prepare [1]", "pve1 probe 901")
	})
}

// Failure 8: a device that is missing is an error at once, before the conf is touched.
func TestFailure08MissingDeviceIsAnError(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true)
		c2 := f.add("pve1", 902, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}, "902": {"gpu_assignment": "3"}}`)
		f.before = func(call string) error {
			if call == "pve1 prepare [0]" {
				return f.nodes["pve1"].fail(node.DeviceNodeMissing, "/dev/nvidia0 is missing and could not be made")
			}
			return nil
		}
		r := b.apply(engine.Request{})
		b.want(r, "failed", "901 failed: check failed, patch skipped, restart skipped, verify skipped", "902 failed")
		b.wantActs("pve1 prepare [0]")
		if got, want := r.Containers[0].Error, "check devices: node pve1: /dev/nvidia0 is missing and could not be made"; got != want {
			t.Errorf("error %q, want %q", got, want)
		}
		if got := r.Containers[0].Reason; got != "DEVICE_NODE_MISSING" {
			t.Errorf("reason %q", got)
		}
		if got, want := r.Containers[1].Error, "node pve1 has no GPU 3; it has 0, 1"; got != want {
			t.Errorf("error %q, want %q", got, want)
		}
		if c.starts != 1 || c2.starts != 1 {
			t.Error("something was restarted")
		}
	})
}

// Failure 9: no script and no health check begins before the devices are proven to be there.
func TestFailure09NothingRunsBeforeVerification(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true, 0)
		opens := false
		c.outcome = func(int) node.Outcome {
			if opens {
				return node.Opened
			}
			return node.NotADevice
		}
		b := newBench(t, f, `{"901": {"gpu_assignment": "0", "features": ["cuda"], "health_check": {"command": "nvidia-smi"}}}`)
		b.write("cuda.sh", "install-cuda\n")
		r := b.apply(engine.Request{})
		b.want(r, "failed", "901 failed: check unchanged, verify failed, feature cuda skipped, health skipped")
		for _, call := range f.acts() {
			if strings.HasPrefix(call, "pve1 run") {
				t.Errorf("%s although the device is not there", call)
			}
		}
		if got, want := r.Containers[0].Error, "verify devices: not within 30s: /dev/nvidia0: not a device; "+
			"/dev/nvidia-uvm: not a device; /dev/nvidia-uvm-tools: not a device; /dev/nvidiactl: not a device"; got != want {
			t.Errorf("error %q, want %q", got, want)
		}

		opens, f.calls = true, nil
		b.want(b.apply(engine.Request{}), "succeeded", "901 succeeded: check unchanged, verify succeeded, feature cuda succeeded, health succeeded")
		b.wantActs("pve1 prepare [0]", "pve1 probe 901", "pve1 run 901 install-cuda", "pve1 mark 901 cuda", "pve1 run 901 nvidia-smi")
	})
}

func TestDependentsAreSkipped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		for ctid := int32(901); ctid <= 904; ctid++ {
			f.add("pve1", ctid, true)
		}
		b := newBench(t, f, `{
			"901": {"gpu_assignment": "0"},
			"902": {"gpu_assignment": "0", "clone_from_ctid": 901},
			"903": {"gpu_assignment": "0", "dependencies": [902]},
			"904": {"gpu_assignment": "1"}
		}`)
		f.before = func(call string) error {
			if call == "pve1 restart 901" {
				return f.nodes["pve1"].fail(node.StartRolledBack, "CTID 901 did not start with the new conf; the old one is back")
			}
			return nil
		}
		r := b.apply(engine.Request{})
		const skipped = ": check skipped, patch skipped, restart skipped, verify skipped"
		b.want(r, "failed",
			"901 failed: check unchanged, patch succeeded, restart failed, verify skipped",
			"902 skipped"+skipped, "903 skipped"+skipped,
			"904 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded")
		for i, want := range []string{
			"restart: node pve1: CTID 901 did not start with the new conf; the old one is back; the container runs with its old conf",
			"not begun: CTID 901, which comes first, failed: restart: node pve1: CTID 901 did not start with the new conf; the old one is back; the container runs with its old conf",
			"not begun: CTID 902, which comes first, was not finished: not begun: CTID 901, which comes first, failed: restart: node pve1: CTID 901 did not start with the new conf; the old one is back; the container runs with its old conf",
			"",
		} {
			if got := r.Containers[i].Error; got != want {
				t.Errorf("CTID %d: error\n%s, want\n%s", r.Containers[i].CTID, got, want)
			}
		}
	})
}

func TestRetries(t *testing.T) {
	n := &fakeNode{name: "pve1"}
	tests := []struct {
		name   string
		call   string // that fails
		times  int
		err    error
		want   string // state of the run
		begins string // of the container's error
		after  time.Duration
	}{
		{"quorum comes back", "pve1 patch 901 [0]", 3, n.fail(node.NoQuorum, "no quorum"), "succeeded", "", 3400 * time.Millisecond},
		{"the lock is never freed", "pve1 patch 901 [0]", -1, n.fail(node.ConfLockTimeout, "process 42 holds the lock"), "failed",
			"patch conf: given up after 28 tries: node pve1: process 42 holds the lock; apply again when the process that holds the lock has ended", 0},
		{"five conflicts", "pve1 patch 901 [0]", -1, n.fail(node.DigestMismatch, "another conf"), "failed",
			"patch conf: node pve1: another conf; something else keeps changing the conf: find it, then apply again", 0},
		{"four conflicts", "pve1 patch 901 [0]", 4, n.fail(node.DigestMismatch, "another conf"), "succeeded", "", 2 * time.Second},
		{"Proxmox is at work", "pve1 patch 901 [0]", -1, n.fail(node.ContainerLocked, "lock: backup"), "failed",
			"patch conf: node pve1: lock: backup; an operation of Proxmox is under way: apply again when it has ended; if it crashed, run pct unlock 901 on pve1 first", 0},
		{"the agent is restarted", "pve1 restart 901", 2, n.fail(node.Unreachable, "connection refused"), "succeeded", "", 2600 * time.Millisecond},
		{"the agent is stopping", "pve1 patch 901 [0]", 1, n.fail(node.ShuttingDown, "the agent is stopping"), "succeeded", "", 2200 * time.Millisecond},
		{"others restart it once", "pve1 restart 901", 1, n.fail(node.InstanceChanged, "another instance"), "succeeded", "", 2 * time.Second},
		{"others restart it all the time", "pve1 restart 901", -1, n.fail(node.InstanceChanged, "another instance"), "failed",
			"restart: the container changes under our hands", 0},
		{"devices come late", "pve1 probe 901", 2, n.fail(node.AttachFailed, "no process could be started"), "succeeded", "", 2600 * time.Millisecond},
		{"the agent is gone", "pve1 prepare [0]", -1, n.fail(node.Unreachable, "connection refused"), "failed",
			"check devices: given up after 28 tries: node pve1: connection refused", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFake("pve1")
				f.add("pve1", 901, true)
				b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
				left := test.times
				f.before = func(call string) error {
					if call != test.call || left == 0 {
						return nil
					}
					left--
					return test.err
				}
				begin := time.Now()
				r := b.apply(engine.Request{})
				if string(r.State) != test.want || !strings.HasPrefix(r.Containers[0].Error, test.begins) || (test.begins == "") != (r.Containers[0].Error == "") {
					t.Errorf("run %s, error %q; want %s, %q", r.State, r.Containers[0].Error, test.want, test.begins)
				}
				if took := time.Since(begin); test.after != 0 && took != test.after {
					t.Errorf("took %v, want %v", took, test.after)
				}
			})
		})
	}
}

// What another one did since the plan was made is seen: the restart is not repeated.
func TestRestartNoLongerNeeded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true)
		c.configure(refs(0), observed.ModeRaw)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		f.before = func(call string) error {
			if call == "pve1 prepare [0]" {
				f.mu.Lock()
				defer f.mu.Unlock()
				c.startNow()
			}
			return nil
		}
		b.want(b.apply(engine.Request{}), "succeeded", "901 succeeded: check unchanged, restart unchanged, verify succeeded")
		b.wantActs("pve1 prepare [0]", "pve1 probe 901")
	})
}

func TestStopped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, false)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		b.want(b.apply(engine.Request{}), "succeeded", "901 succeeded: check unchanged, patch succeeded")
		b.want(b.apply(engine.Request{Start: true}), "succeeded", "901 succeeded: check unchanged, restart succeeded, verify succeeded")
		if c.State != observed.StateRunning || !observed.Equal(c.Effective.GPUs, refs(0)) {
			t.Errorf("it is %s with %+v", c.State, c.Effective)
		}
	})
}

// A person stops the container while we work: it stays stopped.
func TestStoppedByAPerson(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		f.before = func(call string) error {
			if call == "pve1 patch 901 [0]" {
				f.mu.Lock()
				defer f.mu.Unlock()
				c.stopNow()
			}
			return nil
		}
		r := b.apply(engine.Request{})
		b.want(r, "failed", "901 failed: check unchanged, patch succeeded, restart failed, verify skipped")
		if got, want := r.Containers[0].Error, "restart: it was stopped after the plan was made; start it, or apply with start, and its conf comes into force"; got != want {
			t.Errorf("error %q, want %q", got, want)
		}
	})
}

// The agent dies between stop and start and comes back: the container was running, so it is started, once.
func TestAgentDiesInRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		died := false
		f.before = func(call string) error {
			if call == "pve1 restart 901" && !died {
				died = true
				f.mu.Lock()
				defer f.mu.Unlock()
				c.stopNow()
				return f.nodes["pve1"].fail(node.Unreachable, "connection reset")
			}
			return nil
		}
		b.want(b.apply(engine.Request{}), "succeeded", "901 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded")
		if c.State != observed.StateRunning || c.starts != 2 {
			t.Errorf("it is %s, started %d times; want running, 2", c.State, c.starts)
		}
	})
}

func TestVerify(t *testing.T) {
	only := func(gpu int, o node.Outcome) func(int) node.Outcome {
		return func(g int) node.Outcome {
			if g == gpu {
				return o
			}
			return node.Opened
		}
	}
	all := func(o node.Outcome) func(int) node.Outcome { return func(int) node.Outcome { return o } }
	tests := []struct {
		name    string
		pve     string
		outcome func(gpu int) node.Outcome
		leak    bool
		want    string // error; empty: verified
	}{
		{"opened", "9.1.2", nil, false, ""},
		{"no driver behind it", "9.1.2", only(0, node.NoDriver), false, "verify devices: not within 30s: /dev/nvidia0: no driver"},
		{"no driver in the sandbox", "9.1.2-sandbox", all(node.NoDriver), false, ""},
		{"denied in the sandbox", "9.1.2-sandbox", only(0, node.Denied), false, "verify devices: not within 30s: /dev/nvidia0: denied"},
		{"shared devices missing", "9.1.2", only(-1, node.Absent), false,
			"verify devices: not within 30s: /dev/nvidia-uvm: absent; /dev/nvidia-uvm-tools: absent; /dev/nvidiactl: absent"},
		{"an empty file (failure 15)", "9.1.2", only(0, node.NotADevice), false, "verify devices: not within 30s: /dev/nvidia0: not a device"},
		{"wrong number", "9.1.2", only(0, node.WrongNumber), false, "verify devices: not within 30s: /dev/nvidia0: wrong number"},
		{"another GPU opens", "9.1.2", nil, true, "verify devices: a GPU that is not assigned is not closed to the container: /dev/nvidia1: opened; " +
			"look for a rule that allows too much (phoenix-cli conf show), or another one who patched the conf"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFake("pve1")
				f.nodes["pve1"].pve = test.pve
				c := f.add("pve1", 901, true, 0)
				c.outcome, c.leak[1] = test.outcome, test.leak
				b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
				begin := time.Now()
				r := b.apply(engine.Request{})
				if got := r.Containers[0].Error; got != test.want {
					t.Errorf("error %q, want %q", got, test.want)
				}
				if took := time.Since(begin); test.leak && took != 0 {
					t.Errorf("it waited %v for a leak to mend itself", took)
				}
				verified, err := b.store.Verified()
				if err != nil || (len(verified) == 1) != (test.want == "") {
					t.Errorf("verified: %v, %v", verified, err)
				}
			})
		})
	}
}

func TestFeatures(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "none", "features": ["base", "docker", "unmanaged"]}}`)
		b.write("base.sh", "setup-base\n")
		b.write("docker.sh", "setup-docker\n")
		c.command = func(script string) node.Exit {
			if script == "setup-docker" {
				return node.Exit{Code: 3, Output: []byte("line 1\n\x1b[31mno such \x07package\x1b[0m\n")}
			}
			return node.Exit{}
		}
		r := b.apply(engine.Request{})
		b.want(r, "failed", "901 failed: verify succeeded, feature base succeeded, feature docker failed")
		if got, want := r.Containers[0].Error, "feature docker: its script: it ended with status 3: line 1 | [31mno such package[0m"; got != want {
			t.Errorf("error %q, want %q", got, want)
		}

		c.command, f.calls = nil, nil
		b.want(b.apply(engine.Request{}), "succeeded", "901 succeeded: feature base unchanged, feature docker succeeded")
		b.wantActs("pve1 run 901 setup-docker", "pve1 mark 901 docker")

		f.calls = nil
		b.write("base.sh", "setup-base --better\n") // a changed script is another script
		b.want(b.apply(engine.Request{}), "succeeded", "901 succeeded: feature base succeeded, feature docker unchanged")
		b.wantActs("pve1 run 901 setup-base --better", "pve1 mark 901 base")
	})
}

func TestHealthCheck(t *testing.T) {
	tests := []struct {
		name    string
		healthy int // try that succeeds; 0: none
		want    string
		after   time.Duration
	}{
		{"at once", 1, "", 0},
		{"at the last try", 3, "", 20 * time.Second},
		{"never", 0, "health check: not healthy in 3 tries, 10s apart; at the last one it ended with status 7: refused", 20 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFake("pve1")
				f.nodes["pve1"].gpus = nil
				c := f.add("pve1", 901, true)
				b := newBench(t, f, `{"901": {"gpu_assignment": "none", "health_check": {"command": "curl localhost", "retries": 3, "interval": 10}}}`)
				try := 0
				c.command = func(string) node.Exit {
					if try++; try == test.healthy {
						return node.Exit{}
					}
					return node.Exit{Code: 7, Output: []byte("refused\n")}
				}
				begin := time.Now()
				r := b.apply(engine.Request{})
				if got := r.Containers[0].Error; got != test.want {
					t.Errorf("error %q, want %q", got, test.want)
				}
				if took := time.Since(begin); took != test.after {
					t.Errorf("took %v, want %v", took, test.after)
				}
			})
		})
	}
}

func TestParallelPerNode(t *testing.T) {
	for _, width := range []int{1, 2, 0} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFake("pve1", "pve2")
				var entries []string
				for i := range int32(6) {
					f.add("pve1", 910+i, true)
					f.add("pve2", 920+i, true)
					entries = append(entries, fmt.Sprintf(`"%d": {"gpu_assignment": "0"}, "%d": {"gpu_assignment": "0"}`, 910+i, 920+i))
				}
				f.before = func(string) error {
					time.Sleep(time.Second)
					return nil
				}
				b := newBench(t, f, "{"+strings.Join(entries, ",")+"}")
				if r := b.apply(engine.Request{ParallelPerNode: width}); r.State != store.RunSucceeded {
					t.Errorf("run %s", r.State)
				}
				want := width
				if width == 0 {
					want = engine.DefaultParallelPerNode
				}
				if f.most["pve1"] != want || f.most["pve2"] != want {
					t.Errorf("at most %v at once, want %d on each", f.most, want)
				}
			})
		})
	}
}

// Containers that do not wait for each other are worked on in the order of the plan.
func TestOrderOfThePlan(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		var containers []string
		for ctid := int32(901); ctid <= 908; ctid++ {
			f.add("pve1", ctid, false)
			containers = append(containers, fmt.Sprintf(`"%d": {"gpu_assignment": "0"}`, ctid))
		}
		// 909 comes first, and then, when it has ended, 907 and 908 are ready at once.
		f.add("pve1", 909, false)
		containers[6] = `"907": {"gpu_assignment": "0", "dependencies": [909]}`
		containers[7] = `"908": {"gpu_assignment": "0", "dependencies": [909]}`
		containers = append(containers, `"909": {"gpu_assignment": "0"}`)
		b := newBench(t, f, "{"+strings.Join(containers, ",")+"}")
		b.apply(engine.Request{ParallelPerNode: 1})
		patches := slices.DeleteFunc(f.acts(), func(act string) bool { return !strings.HasPrefix(act, "pve1 patch ") })
		want := []string{
			"pve1 patch 901 [0]", "pve1 patch 902 [0]", "pve1 patch 903 [0]", "pve1 patch 904 [0]", "pve1 patch 905 [0]",
			"pve1 patch 906 [0]", "pve1 patch 909 [0]", "pve1 patch 907 [0]", "pve1 patch 908 [0]",
		}
		if !slices.Equal(patches, want) {
			t.Errorf("acts\n%q, want\n%q", patches, want)
		}
	})
}

func TestCancel(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		f.add("pve1", 901, true)
		f.add("pve1", 902, true)
		f.add("pve1", 903, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}, "902": {"gpu_assignment": "0", "dependencies": [901]}, "903": {"gpu_assignment": "none"}}`)
		w, err := b.Apply(t.Context(), engine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		id := w.Run().ID
		time.Sleep(time.Second) // into the restart
		if err := b.Cancel(id[:15]); err != nil {
			t.Fatalf("Cancel = %v", err)
		}
		r := b.end(w)
		b.want(r, "canceled",
			"901 skipped: check unchanged, patch succeeded, restart succeeded, verify skipped",
			"902 skipped: check skipped, patch skipped, restart skipped, verify skipped",
			"903 succeeded: verify succeeded")
		for i, want := range []string{"not finished: the run was canceled", "not begun: the run was canceled", ""} {
			if got := r.Containers[i].Error; got != want {
				t.Errorf("CTID %d: error %q, want %q", r.Containers[i].CTID, got, want)
			}
		}
		if err := b.Cancel(id); err != nil {
			t.Errorf("Cancel of an ended run = %v", err)
		}
		if err := b.Cancel("no such"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Cancel of an unknown run = %v, want ErrNotFound", err)
		}
	})
}

func TestInProgress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		f.add("pve1", 901, true)
		f.add("pve1", 902, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}, "902": {"gpu_assignment": "1"}}`)
		w, err := b.Apply(t.Context(), engine.Request{CTIDs: []int32{901}})
		if err != nil {
			t.Fatal(err)
		}
		id := w.Run().ID
		_, err = b.Apply(t.Context(), engine.Request{})
		e, ok := errors.AsType[*engine.InProgressError](err)
		if !ok || e.Run != id || e.CTID != 901 {
			t.Errorf("Apply of the same container = %v, want an InProgressError", err)
		}
		if got := b.Active(); len(got) != 1 || got[901] != id {
			t.Errorf("Active = %v", got)
		}
		if r := b.apply(engine.Request{CTIDs: []int32{902}}); r.State != store.RunSucceeded {
			t.Errorf("the run on another container: %s", r.State)
		}
		b.end(w)
		if r := b.apply(engine.Request{}); r.State != store.RunSucceeded {
			t.Errorf("the run after: %s", r.State)
		}
		if got := b.Active(); len(got) != 0 {
			t.Errorf("Active = %v after all", got)
		}
	})
}

func TestApplyRefused(t *testing.T) {
	b := newBench(t, newFake("pve1"), `{"901": {"gpu_assignment": "0"}}`)
	for name, test := range map[string]struct {
		req  engine.Request
		want string
	}{
		"not in the fleet":  {engine.Request{CTIDs: []int32{901, 950}}, "CTID 950 is not in " + b.cfg.FleetFile + "; add it there, or leave it out"},
		"too parallel":      {engine.Request{ParallelPerNode: 65}, "parallel_per_node: 65 is not between 1 and 64"},
		"negative":          {engine.Request{ParallelPerNode: -1}, "parallel_per_node: -1 is not between 1 and 64"},
		"too patient":       {engine.Request{RestartTimeout: time.Hour}, "restart_timeout: 1h0m0s is not between 0s and 10m0s"},
		"negative patience": {engine.Request{RestartTimeout: -1}, "restart_timeout: -1ns is not between 0s and 10m0s"},
	} {
		if _, err := b.Apply(t.Context(), test.req); err == nil || err.Error() != test.want {
			t.Errorf("%s: Apply = %v, want %s", name, err, test.want)
		}
	}

	b.write("fleet.json", `{"lxc_configs": {"901": {"gpu_assignment": "x"}}}`)
	_, err := b.Apply(t.Context(), engine.Request{})
	if e, ok := errors.AsType[*engine.FleetError](err); !ok || len(e.Findings) != 1 {
		t.Errorf("Apply of a bad fleet file = %v, want a FleetError", err)
	}
	if err := os.Remove(b.cfg.FleetFile); err != nil {
		t.Fatal(err)
	}
	_, err = b.Plan(t.Context(), engine.Request{})
	if e, ok := errors.AsType[*engine.UnreadableError](err); !ok || !errors.Is(e, os.ErrNotExist) {
		t.Errorf("Plan without a fleet file = %v, want an UnreadableError", err)
	}
	if runs, err := b.Runs(0); err != nil || len(runs) != 0 {
		t.Errorf("what was refused was recorded: %v, %v", runs, err)
	}
	b.Close()
	b.write("fleet.json", `{"lxc_configs": {"901": {"gpu_assignment": "0"}}}`)
	if _, err := b.Apply(t.Context(), engine.Request{}); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Apply after Close = %v, want ErrClosed", err)
	}
}

// A watcher that does not read delays nobody, holds a bounded number of events, and still learns how each step ended.
func TestSlowWatcher(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const containers = 100
		f := newFake("pve1")
		var entries []string
		for ctid := int32(1000); ctid < 1000+containers; ctid++ {
			f.add("pve1", ctid, true)
			entries = append(entries, fmt.Sprintf(`"%d": {"gpu_assignment": "0"}`, ctid))
		}
		b := newBench(t, f, "{"+strings.Join(entries, ",")+"}")
		begin := time.Now()
		slow, err := b.Apply(t.Context(), engine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		fast, err := b.Watch(slow.Run().ID)
		if err != nil {
			t.Fatal(err)
		}
		if r := b.end(fast); r.State != store.RunSucceeded {
			t.Errorf("run %s", r.State)
		}
		if took := time.Since(begin); took != 50*time.Second { // a hundred restarts of 2 s, 4 at once
			t.Errorf("took %v", took)
		}

		type key struct {
			ctid int32
			step int
		}
		got := map[key]store.StepState{}
		n := 0
		for {
			ev, err := slow.Next(t.Context())
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			n++
			if ev.Step == nil {
				got[key{ev.CTID, -1}] = ev.ContainerState
			} else {
				got[key{ev.CTID, ev.StepIndex}] = ev.Step.State
			}
		}
		want := map[key]store.StepState{}
		for _, c := range slow.Run().Containers {
			want[key{c.CTID, -1}] = c.State
			for i, s := range c.Steps {
				want[key{c.CTID, i}] = s.State
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("states, -run +events:\n%s", diff)
		}
		if most := 256 + 5*containers; n > most {
			t.Errorf("%d events waited, want at most %d", n, most)
		}
		slow.Close()
		b.Close()
	})
}

func TestWatch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		f.add("pve1", 901, true, 0)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		w, err := b.Apply(t.Context(), engine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			ev, err := w.Next(t.Context())
			if err != nil {
				break
			}
			line := fmt.Sprintf("%d %s", ev.CTID, ev.ContainerState)
			if ev.Step != nil {
				line += fmt.Sprintf(": %d %s %s", ev.StepIndex, ev.Step.State, ev.Step.Message)
			}
			got = append(got, line)
		}
		want := []string{
			"901 running: 0 running ", "901 running: 0 unchanged GPU 0 can be given",
			"901 running: 1 running ", "901 running: 1 succeeded GPU 0 can be opened inside, and no other",
			"901 succeeded",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("events, -want +got:\n%s", diff)
		}

		past, err := b.Watch(w.Run().ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := past.Next(t.Context()); err != io.EOF || past.Run().State != store.RunSucceeded {
			t.Errorf("Watch of an ended run: %v, %s", err, past.Run().State)
		}
		if _, err := b.Watch("no such"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Watch of an unknown run = %v, want ErrNotFound", err)
		}
		w.Close()
		if _, err := w.Next(t.Context()); err != io.EOF {
			t.Errorf("Next after Close = %v, want io.EOF", err)
		}
	})
}

func TestNextEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		f.add("pve1", 901, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		w, err := b.Apply(t.Context(), engine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for err == nil {
			_, err = w.Next(ctx)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Next = %v, want context.DeadlineExceeded", err)
		}
		b.want(b.end(w), "succeeded", "901 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded")
	})
}

// A broken store fails its writes after so many.
type brokenStore struct {
	store.Store
	left int
}

func (s *brokenStore) SaveContainer(id string, c store.Container) error {
	if s.left--; s.left < 0 {
		return errors.New("no space left on device")
	}
	return s.Store.SaveContainer(id, c)
}

// What cannot be recorded is not done.
func TestNoActWithoutRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		cfg := b.cfg
		cfg.Store = &brokenStore{Store: b.store, left: 1} // the first step's intent; its outcome is one write with the intent of the next
		b.Engine = engine.New(cfg)
		r := b.apply(engine.Request{})
		b.want(r, "failed", "901 failed: check failed, patch skipped, restart skipped, verify skipped")
		b.wantActs("pve1 prepare [0]")
		if got, want := r.Containers[0].Error, "no space left on device"; got != want || c.starts != 1 {
			t.Errorf("error %q, want %q; started %d times", got, want, c.starts)
		}
	})
}

func TestPlanChangesNothing(t *testing.T) {
	f := newFake("pve1")
	f.add("pve1", 901, true)
	b := newBench(t, f, `{"901": {"gpu_assignment": "0", "unheard_of": 1}}`)
	p, err := b.Plan(t.Context(), engine.Request{CTIDs: []int32{901}})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Plan.Containers) != 1 || len(p.Plan.Containers[0].Steps) != 4 || len(p.Observed.Nodes) != 1 {
		t.Errorf("Plan = %+v of %v", p.Plan, p.Observed)
	}
	if want := []string{b.cfg.FleetFile + `:1:49: containers 901: unknown key "unheard_of"`}; !slices.Equal(p.Plan.Warnings, want) {
		t.Errorf("warnings %q, want %q", p.Plan.Warnings, want)
	}
	b.wantActs()
	if runs, err := b.Runs(0); err != nil || len(runs) != 0 {
		t.Errorf("runs: %v, %v", runs, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Plan(ctx, engine.Request{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Plan with an ended context = %v", err)
	}
	if _, err := b.Apply(ctx, engine.Request{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply with an ended context = %v", err)
	}
	if got := b.Active(); len(got) != 0 {
		t.Errorf("Active = %v after a refused apply", got)
	}
}

func TestJudge(t *testing.T) {
	shared := []node.Probed{
		{Path: "/dev/nvidia-uvm", GPU: -1, Outcome: node.Opened}, {Path: "/dev/nvidia-uvm-tools", GPU: -1, Outcome: node.Opened},
		{Path: "/dev/nvidiactl", GPU: -1, Outcome: node.Opened},
	}
	gpu := func(n int, o node.Outcome) node.Probed {
		return node.Probed{Path: fmt.Sprintf("/dev/nvidia%d", n), GPU: n, Outcome: o, Errno: "E", Message: "m"}
	}
	capability := func(gi, ci int, o node.Outcome) node.Probed {
		return node.Probed{Path: fmt.Sprintf("nvidia-cap %d/%d", gi, ci), IsMIG: true, GPUInstance: gi, ComputeInstance: ci, Outcome: o}
	}
	mig := []observed.Ref{{Index: 0, IsMIG: true, MIG: observed.MIGDevice{UUID: "MIG-1", GPUInstance: 1, ComputeInstance: 0}}}
	tests := []struct {
		name    string
		results []node.Probed
		desired []observed.Ref
		want    []string
	}{
		{"as assigned", append(shared, gpu(0, node.Absent), gpu(1, node.Opened)), refs(1), nil},
		{"refused in any way", append(shared, gpu(0, node.Denied), gpu(1, node.Opened), gpu(2, node.NotADevice), gpu(3, node.NoPermission)), refs(1), nil},
		{"no proof of a refusal", append(shared, gpu(0, node.TimedOut), gpu(1, node.Opened)), refs(1),
			[]string{"not assigned, but not closed inside: /dev/nvidia0: timeout (E): m"}},
		{"no driver is no refusal", append(shared, gpu(0, node.NoDriver)), nil,
			[]string{"not assigned, but not closed inside: /dev/nvidia0: no driver (E): m"}},
		{"nothing assigned, nothing there", []node.Probed{gpu(0, node.Absent)}, nil, nil},
		{"not probed", []node.Probed{shared[2]}, refs(1), []string{
			"/dev/nvidia-uvm was not probed: the node does not know it; look at phoenix-cli devices",
			"/dev/nvidia-uvm-tools was not probed: the node does not know it; look at phoenix-cli devices",
			"GPU 1 was not probed: the node has no device for it; look at phoenix-cli devices",
		}},
		{"the conf gives a device that no use needs", append(shared, gpu(1, node.Opened),
			node.Probed{Path: "/dev/nvidia-modeset", GPU: -1, Expected: true, Outcome: node.Denied}), refs(1), []string{"/dev/nvidia-modeset: denied"}},
		{"DRM nodes and capabilities that nobody asked for", append(shared, gpu(1, node.Opened),
			node.Probed{Path: "/dev/dri/card1", GPU: 1, Outcome: node.Absent},
			node.Probed{Path: "/dev/nvidia-caps/nvidia-cap21", GPU: 1, IsMIG: true, GPUInstance: 1, ComputeInstance: -1, Outcome: node.Absent}), refs(1), nil},
		{"DRM nodes that the conf gives", append(shared, gpu(1, node.Opened),
			node.Probed{Path: "/dev/dri/card1", GPU: 1, Expected: true, Outcome: node.Denied}), refs(1), []string{"/dev/dri/card1: denied"}},
		{"a DRM node is not the GPU", append(shared, node.Probed{Path: "/dev/dri/card1", GPU: 1, Outcome: node.Absent}), refs(1),
			[]string{"GPU 1 was not probed: the node has no device for it; look at phoenix-cli devices"}},
		{"a MIG device, and no other of its GPU", append(shared, gpu(0, node.Opened), capability(1, -1, node.Opened), capability(1, 0, node.Opened),
			capability(1, 1, node.Absent), capability(2, -1, node.Absent), capability(2, 0, node.Absent)), mig, nil},
		{"a MIG device whose GPU instance is closed", append(shared, gpu(0, node.Opened), capability(1, -1, node.Denied), capability(1, 0, node.Opened)),
			mig, []string{"nvidia-cap 1/-1: denied"}},
		{"another MIG device of the same GPU", append(shared, gpu(0, node.Opened), capability(1, -1, node.Opened), capability(1, 0, node.Opened),
			capability(2, 0, node.Opened)), mig, []string{"not assigned, but not closed inside: nvidia-cap 2/0: opened"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, engine.Judge(test.results, test.desired, false)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
