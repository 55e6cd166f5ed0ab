package container_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/pct"
)

// A twisted runtime behaves as the fake one, but for what is set.
type twisted struct {
	*agenttest.Runtime
	start    func(context.Context, int32) error
	shutdown func(context.Context, int32) error
	observe  func(container.Running, error) (container.Running, error)
}

func (r *twisted) Start(ctx context.Context, ctid int32) error {
	if r.start != nil {
		return r.start(ctx, ctid)
	}
	return r.Runtime.Start(ctx, ctid)
}

func (r *twisted) Shutdown(ctx context.Context, ctid int32, timeout time.Duration) error {
	if r.shutdown != nil {
		return r.shutdown(ctx, ctid)
	}
	return r.Runtime.Shutdown(ctx, ctid, timeout)
}

func (r *twisted) Observe(ctx context.Context, ctid int32, paths []string) (container.Running, error) {
	running, err := r.Runtime.Observe(ctx, ctid, paths)
	if r.observe != nil {
		return r.observe(running, err)
	}
	return running, err
}

// manager is a manager of the node over another runtime: one more agent.
func manager(n *agenttest.Node, r container.Runtime) *container.Manager {
	return &container.Manager{
		Confs: n.Manager.Confs, GPUs: n.Manager.GPUs, Runtime: r, StateDir: n.Manager.StateDir, Log: n.Manager.Log,
	}
}

// killedIn runs fn, which must panic: that is where the agent is killed.
func killedIn(t *testing.T, fn func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("it went past the kill")
		}
	}()
	fn()
}

var quickly = container.RestartOptions{Timeout: time.Second}

// The record that leads back is there before the conf is.
func TestKillRightAfterTheWriteKeepsTheWayBack(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	record := filepath.Join(n.Dir, "var/lib/phoenix/unproven")
	if err := os.MkdirAll(filepath.Dir(record), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, nil, 0o600); err != nil { // no directory: nothing can be recorded
		t.Fatal(err)
	}
	if _, err := n.Manager.Patch(t.Context(), 901, "", false, tester, give(0)); err == nil {
		t.Error("an edit without a record of the way back succeeded")
	}
	if diff := cmp.Diff(plain, n.Conf(901)); diff != "" {
		t.Errorf("the conf was written before the record (-want +got):\n%s", diff)
	}
}

func TestARefusedEditLosesNoWayBack(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	patch(t, n, give(0))
	if _, err := n.Manager.Patch(t.Context(), 901, "0000000000000000000000000000000000000000", false, tester, give(1)); err == nil {
		t.Fatal("an edit against a stale digest succeeded")
	}
	n.Runtime.RefuseStart(refuseGPU)
	_, err := n.Manager.Restart(t.Context(), 901, quickly, silent)
	if _, ok := errors.AsType[*container.RolledBackError](err); !ok {
		t.Errorf("got %v, want a RolledBackError", err)
	}
}

// Somebody else's start with our conf proves it: a later failure has another cause.
func TestNoRollBackOfAConfThatSomebodyElseStartedWith(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	patch(t, n, give(0))
	if err := n.Runtime.Stop(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	start(t, n)
	n.Runtime.RefuseStart(refuseGPU)
	_, err := n.Manager.Restart(t.Context(), 901, quickly, silent)
	if _, ok := errors.AsType[*container.StartError](err); !ok {
		t.Errorf("got %v, want a StartError", err)
	}
	if c := get(t, n); !cmp.Equal(gpus(&c.Configured), []int{0}) {
		t.Errorf("GPUs of the conf %v, want [0]", gpus(&c.Configured))
	}
}

// A backup that begins between stop and start locks the container for a moment.
func TestPassingRefusalIsTriedAgainAndBlamesNoConf(t *testing.T) {
	for _, tc := range []struct {
		name   string
		output string
	}{
		{"locked by a backup", "CT is locked (backup)"},
		{"lock held", "can't lock file '/run/lock/lxc/pve-config-901.lock' - got timeout"},
		{"no quorum", "cluster not ready - no quorum?"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.PutConf(901, plain)
			start(t, n)
			patch(t, n, give(0))
			refused := 0
			r := &twisted{Runtime: n.Runtime}
			r.start = func(ctx context.Context, ctid int32) error {
				if refused++; refused < 3 {
					return pct.Runner{Path: fakePct(t, tc.output)}.Start(ctx, ctid)
				}
				return n.Runtime.Start(ctx, ctid)
			}
			if _, err := manager(n, r).Restart(t.Context(), 901, quickly, silent); err != nil {
				t.Fatal(err)
			}
			if c := get(t, n); c.RestartPending || !cmp.Equal(gpus(c.Effective), []int{0}) {
				t.Errorf("effective %v, pending %v; want [0], false", gpus(c.Effective), c.RestartPending)
			}
		})
	}
}

// What does not pass in time is told, leaves the conf, and is left to the next agent.
func TestRefusalThatDoesNotPassIsLeftToTheNextAgent(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	patch(t, n, give(0))
	r := &twisted{Runtime: n.Runtime}
	r.start = func(ctx context.Context, ctid int32) error {
		return pct.Runner{Path: fakePct(t, "cluster not ready - no quorum?")}.Start(ctx, ctid)
	}
	m := manager(n, r)
	m.StartPatience = time.Millisecond
	_, err := m.Restart(t.Context(), 901, quickly, silent)
	if _, ok := errors.AsType[*container.StartError](err); !ok {
		t.Errorf("got %v, want a StartError", err)
	}
	if c := get(t, n); !cmp.Equal(gpus(&c.Configured), []int{0}) {
		t.Errorf("GPUs of the conf %v, want [0]", gpus(&c.Configured))
	}
	finish, err := manager(n, n.Runtime).Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if get(t, n).Running.State != lxcmon.Running {
		t.Error("the next agent left the container down")
	}
}

// A start that failed may still be in its post-stop hook, and a task of Proxmox may begin at that moment.
func TestRollBackWaitsForASlowStopAndForALock(t *testing.T) {
	for _, test := range []struct {
		name string
		hold func(t *testing.T, n *agenttest.Node) (free func())
	}{
		{"its post-stop hook is at work", func(_ *testing.T, n *agenttest.Node) func() {
			var ended atomic.Bool
			n.Manager.Confs.Settled = func(int32) (bool, error) { return ended.Load(), nil }
			n.Manager.Confs.StopWait = time.Millisecond
			return func() { ended.Store(true) }
		}},
		{"its conf is locked", lockConf},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.PutConf(901, plain)
			start(t, n)
			patch(t, n, give(0))
			n.Runtime.RefuseStart(refuseGPU)
			var free func()
			r := &twisted{Runtime: n.Runtime}
			r.start = func(ctx context.Context, ctid int32) error {
				err := n.Runtime.Start(ctx, ctid)
				if free == nil {
					free = test.hold(t, n)
					time.AfterFunc(50*time.Millisecond, free)
				}
				return err
			}
			_, err := manager(n, r).Restart(t.Context(), 901, quickly, silent)
			if _, ok := errors.AsType[*container.RolledBackError](err); !ok {
				t.Errorf("got %v, want a RolledBackError", err)
			}
			if get(t, n).Running.State != lxcmon.Running {
				t.Error("the container is down")
			}
		})
	}
}

// lockConf holds Proxmox's lock on the conf of 901.
func lockConf(t *testing.T, n *agenttest.Node) (free func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(n.Dir, "run/lock/lxc/pve-config-901.lock"))
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.Manager.Confs.LockWait = time.Millisecond
	return func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Whoever held the lock may have edited the conf.
func TestRollBackSparesWhatSomebodyWroteWhileItWaited(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	patch(t, n, give(0))
	n.Runtime.RefuseStart(refuseGPU)
	theirs := strings.Replace(withGPU0, "memory: 512", "memory: 2048", 1)
	r := &twisted{Runtime: n.Runtime}
	r.start = func(ctx context.Context, ctid int32) error {
		err := n.Runtime.Start(ctx, ctid)
		free := lockConf(t, n)
		time.AfterFunc(50*time.Millisecond, func() {
			n.PutConf(901, theirs)
			free()
		})
		return err
	}
	_, err := manager(n, r).Restart(t.Context(), 901, quickly, silent)
	if _, ok := errors.AsType[*container.StartError](err); !ok {
		t.Errorf("got %v, want a StartError", err)
	}
	if got := n.Conf(901); got != theirs {
		t.Errorf("conf:\n%s\nwant:\n%s", got, theirs)
	}
}

// fakePct is a pct that fails with a last line.
func fakePct(t *testing.T, line string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "line"), []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "pct")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncat "+dir+"/line >&2\nexit 255\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// A monitor that does not answer for a moment is no failed start.
func TestStartIsNotTakenForFailedBecauseTheNodeIsBusy(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	patch(t, n, give(0))
	r := &twisted{Runtime: n.Runtime}
	busy := 0
	r.start = func(ctx context.Context, ctid int32) error {
		busy = 2
		return n.Runtime.Start(ctx, ctid)
	}
	r.observe = func(running container.Running, err error) (container.Running, error) {
		if busy--; busy >= 0 {
			return container.Running{}, os.ErrDeadlineExceeded
		}
		return running, err
	}
	if _, err := manager(n, r).Restart(t.Context(), 901, quickly, silent); err != nil {
		t.Errorf("got %v, want success", err)
	}
}

// What the HA stack has not tried yet says nothing about the conf; what it tried in vain does.
func TestStartUnderHA(t *testing.T) {
	for _, tc := range []struct {
		name string
		log  string // of LXC, on the start with the new conf
		want []int  // GPUs of the conf afterwards
	}{
		{"not tried yet", "", []int{0}},
		{"tried in vain", "no such device", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.PutConf(901, plain)
			start(t, n)
			patch(t, n, give(0))
			r := &twisted{Runtime: n.Runtime}
			r.start = func(ctx context.Context, ctid int32) error {
				if strings.Contains(n.Conf(901), "nvidia0") {
					return &container.HAError{CTID: ctid, Want: lxcmon.Running, After: time.Minute, Log: tc.log}
				}
				return n.Runtime.Start(ctx, ctid)
			}
			m := manager(n, r)
			m.StartPatience = time.Millisecond
			_, err := m.Restart(t.Context(), 901, quickly, silent)
			if _, ok := errors.AsType[*container.HAError](err); !ok {
				t.Errorf("got %v, want an HAError", err)
			}
			if c := get(t, n); !cmp.Equal(gpus(&c.Configured), tc.want) {
				t.Errorf("GPUs of the conf %v, want %v", gpus(&c.Configured), tc.want)
			}
		})
	}
}

// A stop that the HA stack has not carried out is not forced, and the container goes on.
func TestStopThatHADoesNotCarryOut(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	r := &twisted{Runtime: n.Runtime}
	r.shutdown = func(_ context.Context, ctid int32) error { return &container.HAError{CTID: ctid, Want: lxcmon.Stopped} }
	calls := n.Runtime.Calls()
	_, err := manager(n, r).Restart(t.Context(), 901, quickly, silent)
	if e, ok := errors.AsType[*container.HAError](err); !ok || e.Want != lxcmon.Stopped {
		t.Errorf("got %v, want an HAError", err)
	}
	if diff := cmp.Diff(calls, n.Runtime.Calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	// Nothing is left for the next agent to make up for.
	finish, err := manager(n, n.Runtime).Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := finish(t.Context()); err != nil {
		t.Error(err)
	}
}

// An init that ends at once with the new conf is a reason to go back.
func TestRollBackOfAConfWithWhichInitDies(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	patch(t, n, give(0))
	r := &twisted{Runtime: n.Runtime}
	r.start = func(ctx context.Context, ctid int32) error {
		if strings.Contains(n.Conf(901), "nvidia0") {
			return &container.DiedError{CTID: ctid}
		}
		return n.Runtime.Start(ctx, ctid)
	}
	_, err := manager(n, r).Restart(t.Context(), 901, quickly, silent)
	if _, ok := errors.AsType[*container.RolledBackError](err); !ok {
		t.Errorf("got %v, want a RolledBackError", err)
	}
	if c := get(t, n); c.Running.State != lxcmon.Running || len(gpus(c.Effective)) > 0 {
		t.Errorf("%v with GPUs %v, want it running with none", c.Running.State, gpus(c.Effective))
	}
}

// Of several at once the first restarts the container; the others are told that it was done.
func TestConcurrentRestarts(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	const others = 4
	waiting := make(chan struct{}, others)
	r := &twisted{Runtime: n.Runtime}
	r.shutdown = func(ctx context.Context, ctid int32) error {
		for range others {
			<-waiting
		}
		return n.Runtime.Stop(ctx, ctid)
	}
	begun := make(chan struct{})
	m := manager(n, r)
	done := make(chan error, 1)
	go func() {
		_, err := m.Restart(t.Context(), 901, quickly, func(p container.Phase, _ string) {
			if p == container.ShuttingDown {
				close(begun)
			}
		})
		done <- err
	}()
	<-begun
	observed := atomic.Int32{}
	r.observe = func(running container.Running, err error) (container.Running, error) {
		if observed.Add(1) <= others {
			waiting <- struct{}{}
		}
		return running, err
	}
	told := make(chan error, others)
	for range others {
		go func() {
			_, err := m.Restart(t.Context(), 901, quickly, silent)
			told <- err
		}()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	now := get(t, n).Running.Instance
	for range others {
		if e, ok := errors.AsType[*container.InstanceError](<-told); !ok || e.Got != now {
			t.Errorf("got %v, want an InstanceError with %s", e, now)
		}
	}
	if diff := cmp.Diff([]string{"start 901", "stop 901", "start 901"}, n.Runtime.Calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// So many containers of a node are restarted at a time. Those who wait for one of them take nobody's place.
func TestRestartsAtATime(t *testing.T) {
	const most, others = 16, 4
	n := newNode(t)
	entered, release := make(chan int32, 100), make(chan struct{})
	r := &twisted{Runtime: n.Runtime}
	r.start = func(ctx context.Context, ctid int32) error {
		entered <- ctid
		<-release
		return n.Runtime.Start(ctx, ctid)
	}
	m := manager(n, r)
	for ctid := int32(901); ctid < 901+most+1; ctid++ {
		n.PutConf(ctid, plain)
	}
	var wg sync.WaitGroup
	restart := func(ctid int32, progress func(container.Phase, string)) {
		wg.Go(func() {
			_, err := m.Restart(t.Context(), ctid, quickly, progress)
			if _, told := errors.AsType[*container.InstanceError](err); err != nil && !told {
				t.Errorf("CTID %d: %v", ctid, err)
			}
		})
	}
	restart(901, silent)
	<-entered
	for range others {
		restart(901, silent)
	}
	for ctid := int32(902); ctid < 901+most; ctid++ {
		restart(ctid, silent)
		<-entered
	}
	waits := make(chan string, 2)
	restart(901+most, func(p container.Phase, message string) {
		if p == container.Waiting && message != "" {
			waits <- message
		}
	})
	if got, want := <-waits, "16 restarts are under way on this node"; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	if len(entered) > 0 {
		t.Errorf("CTID %d is restarted although %d others are", <-entered, most)
	}
	close(release)
	wg.Wait()
}

// An agent is killed while the HA stack is to stop the container, which it does a minute later.
func TestRecoverStartsWhatTheHAStackStopsLate(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	r := &twisted{Runtime: n.Runtime}
	r.shutdown = func(context.Context, int32) error { panic("killed here") }
	killedIn(t, func() { _, _ = manager(n, r).Restart(t.Context(), 901, quickly, silent) })
	synctest.Test(t, func(t *testing.T) {
		finish, err := manager(n, n.Runtime).Recover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Minute, func() {
			if err := n.Runtime.Stop(context.Background(), 901); err != nil {
				t.Error(err)
			}
		})
		if err := finish(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if get(t, n).Running.State != lxcmon.Running {
		t.Error("the container is down")
	}
}

// systemd kills the pct of an agent that ends; the container has been told to shut down, and does so later.
func TestRecoverStartsWhatStopsAfterTheAgentAndItsPctWereKilled(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	r := &twisted{Runtime: n.Runtime}
	r.shutdown = func(context.Context, int32) error { panic("killed here") }
	killedIn(t, func() {
		_, _ = manager(n, r).Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Minute}, silent)
	})
	synctest.Test(t, func(t *testing.T) {
		next := manager(n, n.Runtime)
		finish, err := next.Recover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(40*time.Second, func() {
			if err := n.Runtime.Stop(context.Background(), 901); err != nil {
				t.Error(err)
			}
		})
		done := make(chan error, 1)
		go func() { done <- finish(t.Context()) }()
		// It must not keep others from the container meanwhile.
		time.Sleep(10 * time.Second)
		if _, err := next.Patch(t.Context(), 901, "", false, tester, give(0)); err != nil {
			t.Error(err)
		}
		if time.Sleep(time.Second); len(done) > 0 {
			t.Error("the container was given up while it was shutting down")
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if get(t, n).Running.State != lxcmon.Running {
		t.Error("the container is down")
	}
}

// A restart that was about to begin is not made up for: much may have happened since.
func TestRecoverLeavesWhatWasNotStopped(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	r := &twisted{Runtime: n.Runtime}
	r.shutdown = func(context.Context, int32) error { panic("killed here") }
	killedIn(t, func() {
		_, _ = manager(n, r).Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Minute}, silent)
	})
	calls := n.Runtime.Calls()
	synctest.Test(t, func(t *testing.T) {
		next := manager(n, n.Runtime)
		for range 2 { // the second has nothing to do
			finish, err := next.Recover(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := finish(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	if diff := cmp.Diff(calls, n.Runtime.Calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// One damaged record must not keep the agent from serving, nor from the other containers.
func TestRecoverTellsOfADamagedRecord(t *testing.T) {
	n := newNode(t)
	dir := filepath.Join(n.Dir, "var/lib/phoenix/restart")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "902.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	finish, err := n.Manager.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := finish(t.Context()); err == nil {
		t.Error("the damaged record was passed over in silence")
	}
}
