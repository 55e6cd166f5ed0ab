package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/store"
)

var errKilled = errors.New("killed")

// A killer ends a process at its n-th act or write: from then on nothing that it does reaches store or agents.
type killer struct {
	store.Store
	mu    sync.Mutex
	left  int    // acts and writes until the end
	at    string // the last one
	ended bool
}

func (k *killer) alive(what string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left--; k.left < 0 {
		k.ended = true
		return errKilled
	}
	k.at = what
	return nil
}

func (k *killer) SaveRun(r store.Run) error {
	if err := k.alive("save run " + string(r.State)); err != nil {
		return err
	}
	return k.Store.SaveRun(r)
}

func (k *killer) SaveContainer(id string, c store.Container) error {
	if err := k.alive(fmt.Sprintf("save container %d %s", c.CTID, c.State)); err != nil {
		return err
	}
	return k.Store.SaveContainer(id, c)
}

func (k *killer) SetVerified(ctid int32, key string) error {
	if err := k.alive(fmt.Sprintf("set verified %d", ctid)); err != nil {
		return err
	}
	return k.Store.SetVerified(ctid, key)
}

// The controller is killed at each of its acts and writes in turn, and comes back; at some points it is killed a second
// time while it takes the run up.
func TestResumeAfterKill(t *testing.T) {
	points := 0
	for n := 1; ; n++ {
		killed := 0
		t.Run(fmt.Sprint(n), func(t *testing.T) { killed = testKill(t, n) })
		if n%3 == 0 {
			for _, m := range []int{1, 2, 5, 11, 18} {
				t.Run(fmt.Sprintf("%d and %d", n, m), func(t *testing.T) { testKill(t, n, m) })
			}
		}
		if killed == 0 || t.Failed() {
			break
		}
		points++
	}
	if points < 30 {
		t.Errorf("killed at %d points only", points)
	}
}

// testKill applies, and kills one process after the other after so many acts and writes each. The run ends under its own
// ID, each container has what it shall have, runs, was restarted exactly once, and the next apply finds nothing to do.
// Returns how many processes were killed before the run had ended.
func testKill(t *testing.T, after ...int) (killed int) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1", "pve2")
		containers := []*fakeContainer{f.add("pve1", 901, true, 0), f.add("pve2", 902, true, 0), f.add("pve1", 903, true, 1)}
		b := newBench(t, f, `{
			"901": {"gpu_assignment": "0,1", "features": ["base"]},
			"902": {"gpu_assignment": "1", "clone_from_ctid": 901},
			"903": {"gpu_assignment": "none"}
		}`)
		b.write("base.sh", "setup\n")
		id, points := "", []string{}
		for i, n := range after {
			k := &killer{Store: b.store, left: n}
			cfg := b.cfg
			cfg.Store = k
			f.before = k.alive
			dying := engine.New(cfg)
			var w *engine.Watch
			var err error
			if i == 0 {
				w, err = dying.Apply(t.Context(), engine.Request{Who: "root"})
			} else if err = dying.Resume(t.Context()); err == nil {
				w, err = dying.Watch(id)
			}
			if err == nil {
				id = w.Run().ID
				for err == nil {
					_, err = w.Next(t.Context())
				}
			}
			dying.Close()
			points = append(points, k.at)
			if !k.ended {
				break
			}
			killed++
		}
		f.before = nil

		b.restartEngine(t.Context())
		w, err := b.Watch(id)
		if err != nil {
			t.Fatalf("killed after %q: Watch = %v", points, err)
		}
		r := b.end(w)
		// The last process may have died before it could record that it took the run up.
		if r.State != store.RunSucceeded || r.Resumptions > killed || r.Resumptions < min(killed, 1) || r.Who != "root" {
			t.Errorf("killed after %q: run %s, taken up %d times; want succeeded, %d; %q", points, r.State, r.Resumptions, killed, summary(r))
		}
		for i, want := range [][]int{{0, 1}, {1}, nil} {
			c := containers[i]
			if c.State != observed.StateRunning || !observed.Equal(c.Effective.GPUs, refs(want...)) || c.starts != 2 {
				t.Errorf("killed after %q: CTID %d is %s with GPUs %v, started %d times; want running, %v, 2",
					points, c.CTID, c.State, c.Effective.GPUs, c.starts, want)
			}
		}
		f.calls = nil
		b.want(b.apply(engine.Request{}), "succeeded", "901 unchanged: feature base unchanged", "902 unchanged", "903 unchanged")
		b.wantActs()
	})
	return killed
}

// The controller goes down in the middle of a restart, which the agent finishes: there is no second one.
func TestResumeDuringRestart(t *testing.T) {
	for _, after := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFake("pve1")
				c := f.add("pve1", 901, true)
				b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
				w, err := b.Apply(t.Context(), engine.Request{})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(after)
				old := b.Engine
				var wg sync.WaitGroup
				wg.Go(old.Close) // waits for the fake agent, as a real one would not
				synctest.Wait()
				b.restartEngine(t.Context())
				again, err := b.Watch(w.Run().ID)
				if err != nil {
					t.Fatal(err)
				}
				r := b.end(again)
				wg.Wait()
				b.want(r, "succeeded", "901 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded")
				if c.starts != 2 || c.State != observed.StateRunning {
					t.Errorf("it is %s, started %d times; want running, 2", c.State, c.starts)
				}
				for err = nil; err == nil; {
					_, err = w.Next(t.Context())
				}
				if !errors.Is(err, engine.ErrClosed) {
					t.Errorf("the old watch ended with %v, want ErrClosed", err)
				}
			})
		})
	}
}

// Controller and agent die together between stop and start of a container that is to lose its GPUs: it runs again.
func TestResumeStartsWhatWeStopped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true, 0)
		b := newBench(t, f, `{"901": {"gpu_assignment": "none"}}`)
		k := &killer{Store: b.store, left: 1000}
		cfg := b.cfg
		cfg.Store = k
		f.before = func(call string) error {
			if call == "pve1 restart 901" {
				k.left = 0
				f.mu.Lock()
				defer f.mu.Unlock()
				c.stopNow()
				return errKilled
			}
			return nil
		}
		dying := engine.New(cfg)
		w, err := dying.Apply(t.Context(), engine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		id := w.Run().ID
		for err == nil {
			_, err = w.Next(t.Context())
		}
		dying.Close()
		f.before = nil

		b.restartEngine(t.Context())
		if w, err = b.Watch(id); err != nil {
			t.Fatal(err)
		}
		b.want(b.end(w), "succeeded", "901 succeeded: patch succeeded, restart succeeded, verify succeeded")
		if c.State != observed.StateRunning || c.starts != 2 || len(c.Effective.GPUs) != 0 {
			t.Errorf("it is %s, started %d times, with %+v", c.State, c.starts, c.Effective)
		}
	})
}

// interruptedRun is a store with a run that a process left in the middle: 901 failed, 902 is in its patch, 903 comes
// after 901.
func interruptedRun(t *testing.T, b *bench, canceled bool) {
	t.Helper()
	err := b.store.SaveRun(store.Run{
		ID: "20260101-000000.000-0000", State: store.RunRunning, Canceled: canceled,
		Options: store.Options{ParallelPerNode: 4, RestartTimeout: time.Minute},
		Containers: []store.Container{
			{CTID: 901, Node: "pve1", State: store.StepFailed, Error: "broken", Steps: []store.Step{{Kind: 2, State: store.StepFailed}}},
			{CTID: 902, Node: "pve1", State: store.StepRunning, Steps: []store.Step{{Kind: 2, State: store.StepRunning}, {Kind: 3, State: store.StepPending}}},
			{CTID: 903, Node: "pve1", State: store.StepPending, After: []int32{901}, Steps: []store.Step{{Kind: 2, State: store.StepPending}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
}

const three = `{"901": {"gpu_assignment": "0"}, "902": {"gpu_assignment": "0"}, "903": {"gpu_assignment": "0"}}`

func TestResume(t *testing.T) {
	fixture := func(t *testing.T, fleet string) *bench {
		f := newFake("pve1")
		for ctid := int32(901); ctid <= 903; ctid++ {
			f.add("pve1", ctid, true)
		}
		return newBench(t, f, fleet)
	}
	resume := func(t *testing.T, b *bench) store.Run {
		b.restartEngine(t.Context())
		w, err := b.Watch("20") // the only run
		if err != nil {
			t.Fatal(err)
		}
		return b.end(w)
	}
	t.Run("what failed stays so, and what comes after it is skipped", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			b := fixture(t, three)
			interruptedRun(t, b, false)
			r := resume(t, b)
			b.want(r, "failed", "901 failed: patch failed",
				"902 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded",
				"903 skipped: check skipped, patch skipped, restart skipped, verify skipped")
			if got, want := r.Containers[2].Error, "not begun: CTID 901, which comes first, failed: broken"; got != want {
				t.Errorf("error %q, want %q", got, want)
			}
		})
	})
	t.Run("the node comes later than the controller", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			b := fixture(t, three)
			interruptedRun(t, b, false)
			n := b.fleet.nodes["pve1"]
			n.err = n.fail(node.Unreachable, "connection refused")
			time.AfterFunc(time.Minute, func() {
				b.fleet.mu.Lock()
				defer b.fleet.mu.Unlock()
				n.err = nil
			})
			if r := resume(t, b); !r.Containers[1].State.OK() {
				t.Errorf("902 is %s: %s", r.Containers[1].State, r.Containers[1].Error)
			}
		})
	})
	t.Run("the node does not come back", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			b := fixture(t, three)
			interruptedRun(t, b, false)
			n := b.fleet.nodes["pve1"]
			n.err = n.fail(node.Unreachable, "connection refused")
			r := resume(t, b)
			b.want(r, "failed", "901 failed: patch failed", "902 failed: patch failed, restart skipped", "903 failed: patch skipped")
			if got := r.Containers[1].Error; !strings.Contains(got, "connection refused") {
				t.Errorf("error %q", got)
			}
		})
	})
	t.Run("the fleet file has an error now", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			b := fixture(t, `{"901": {"gpu_assignment": "x"}}`)
			interruptedRun(t, b, false)
			r := resume(t, b)
			b.want(r, "failed", "901 failed: patch failed", "902 skipped: patch failed, restart skipped", "903 skipped: patch skipped")
			if got := r.Containers[1].Error; !strings.HasPrefix(got, "the run could not be taken up again: the fleet file has errors") {
				t.Errorf("error %q", got)
			}
			b.wantActs()
		})
	})
	t.Run("a container is not in the fleet file any more", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			b := fixture(t, `{"901": {"gpu_assignment": "0"}, "903": {"gpu_assignment": "0"}}`)
			interruptedRun(t, b, false)
			r := resume(t, b)
			if got, want := r.Containers[1].Error, "it is not in the fleet file any more"; got != want || r.Containers[1].State != store.StepFailed {
				t.Errorf("902 is %s: %q, want failed: %q", r.Containers[1].State, got, want)
			}
			b.wantActs()
		})
	})
	t.Run("only the end was not recorded", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			f := newFake("pve1")
			f.add("pve1", 901, true, 0)
			b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
			r := b.apply(engine.Request{})
			r.State, r.Ended, r.Containers[0].State = store.RunRunning, time.Time{}, store.StepRunning
			if err := b.store.SaveRun(r); err != nil {
				t.Fatal(err)
			}
			f.calls = nil
			b.want(resume(t, b), "succeeded", "901 succeeded: check unchanged, verify succeeded")
			b.wantActs()
		})
	})
	t.Run("a canceled run stays canceled", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			b := fixture(t, three)
			interruptedRun(t, b, true)
			b.want(resume(t, b), "canceled", "901 failed: patch failed", "902 skipped: patch failed, restart skipped", "903 skipped: patch skipped")
			b.wantActs()
		})
	})
}

func TestMarkInterrupted(t *testing.T) {
	b := newBench(t, newFake("pve1"), three)
	interruptedRun(t, b, false)
	if err := b.MarkInterrupted(); err != nil {
		t.Fatal(err)
	}
	r, err := b.Run("2026")
	if err != nil {
		t.Fatal(err)
	}
	b.want(r, "interrupted", "901 failed: patch failed", "902 skipped: patch failed, restart skipped", "903 skipped: patch skipped")
	if got, want := r.Containers[1].Error, "not finished: the process that worked on it ended; apply again"; got != want {
		t.Errorf("error %q, want %q", got, want)
	}
	if r.Ended.IsZero() {
		t.Error("it has no end time")
	}
}

// Close leaves a run where it is; whoever watches hears that it goes on later.
func TestClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		f.add("pve1", 901, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}}`)
		w, err := b.Apply(t.Context(), engine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.Close()
		for err == nil {
			_, err = w.Next(t.Context())
		}
		if !errors.Is(err, engine.ErrClosed) {
			t.Errorf("Next = %v, want ErrClosed", err)
		}
		r, err := b.store.Run(w.Run().ID)
		if err != nil {
			t.Fatal(err)
		}
		b.want(r, "running", "901 running: check unchanged, patch succeeded, restart running, verify pending")
		if err := b.MarkInterrupted(); err != nil { // what the CLI does
			t.Fatal(err)
		}
		if r, err = b.Run(r.ID); err != nil || r.State != store.RunInterrupted {
			t.Errorf("run %s, %v; want interrupted", r.State, err)
		}
	})
}

// Drain lets the step under way end and be recorded, and begins none; the next process goes on from there.
func TestDrain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		c := f.add("pve1", 901, true)
		f.add("pve1", 902, true)
		b := newBench(t, f, `{"901": {"gpu_assignment": "0"}, "902": {"gpu_assignment": "0", "dependencies": [901]}}`)
		w, err := b.Apply(t.Context(), engine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond) // into the restart of 2 s
		begin := time.Now()
		b.Drain(t.Context())
		if took := time.Since(begin); took != 1500*time.Millisecond {
			t.Errorf("Drain took %v", took)
		}
		if _, err := b.Apply(t.Context(), engine.Request{}); !errors.Is(err, engine.ErrClosed) {
			t.Errorf("Apply while draining = %v, want ErrClosed", err)
		}
		for err == nil {
			_, err = w.Next(t.Context())
		}
		if !errors.Is(err, engine.ErrClosed) {
			t.Errorf("Next = %v, want ErrClosed", err)
		}
		b.want(w.Run(), "running", "901 running: check unchanged, patch succeeded, restart succeeded, verify pending",
			"902 pending: check pending, patch pending, restart pending, verify pending")
		b.Close()

		b.restartEngine(t.Context())
		if w, err = b.Watch(w.Run().ID); err != nil {
			t.Fatal(err)
		}
		b.want(b.end(w), "succeeded", "901 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded",
			"902 succeeded: check unchanged, patch succeeded, restart succeeded, verify succeeded")
		if c.starts != 2 {
			t.Errorf("901 was started %d times, want 2", c.starts)
		}
	})
}

// Drain does not wait longer than it may, also for a step that waits itself.
func TestDrainGivesUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFake("pve1")
		f.nodes["pve1"].gpus = nil
		c := f.add("pve1", 901, true)
		c.command = func(string) node.Exit { return node.Exit{Code: 1} }
		b := newBench(t, f, `{"901": {"gpu_assignment": "none", "health_check": {"command": "false", "interval": 3600}}}`)
		f.before = func(string) error {
			time.Sleep(time.Hour)
			return nil
		}
		w, err := b.Apply(t.Context(), engine.Request{})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		begin := time.Now()
		b.Drain(ctx)
		if took := time.Since(begin); took != 20*time.Second {
			t.Errorf("Drain took %v, want 20s", took)
		}
		b.Close()
		b.want(w.Run(), "running", "901 running: health running")
	})
}
