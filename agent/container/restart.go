package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/pct"
	"phoenix.internal/agent/pveconf"
)

// A Phase is where a restart is.
type Phase int

// The phases of a restart.
const (
	Waiting Phase = iota + 1
	ShuttingDown
	Forcing
	Starting
	RollingBack
)

// Restart options; the zero value shuts down gracefully with the default timeout and then kills.
type RestartOptions struct {
	Timeout  time.Duration    // for the graceful shutdown; 0 kills at once
	NoForce  bool             // fail instead of killing
	Instance string           // if not empty: restart only this start of the container
	By       confstore.Author // of the restart, and of the revision if it has to be rolled back
}

// ErrTemplate says that a template cannot run.
var ErrTemplate = errors.New("container is a template: it cannot be started")

// A NotRunningError says that the container does not run.
type NotRunningError struct {
	CTID  int32
	State lxcmon.State
}

func (e *NotRunningError) Error() string {
	return fmt.Sprintf("CTID %d: container does not run (%v)", e.CTID, e.State)
}

// An InstanceError says that the container was started anew since the caller looked.
type InstanceError struct {
	CTID int32
	Got  string // the instance that runs now; empty if none does
}

func (e *InstanceError) Error() string {
	if e.Got == "" {
		return fmt.Sprintf("CTID %d stopped since it was looked at", e.CTID)
	}
	return fmt.Sprintf("CTID %d was started anew since it was looked at", e.CTID)
}

// A StartError says that a container did not come up and is stopped.
type StartError struct {
	CTID int32
	Err  error // of the start; joined with that of the roll-back if there was one
}

func (e *StartError) Error() string { return fmt.Sprintf("CTID %d did not start: %v", e.CTID, e.Err) }
func (e *StartError) Unwrap() error { return e.Err }

// A RolledBackError says that a container did not come up with our conf, and runs with the older one again.
type RolledBackError struct {
	CTID     int32
	Revision int64 // whose content is the conf again
	Err      error // of the start with the new conf
}

func (e *RolledBackError) Error() string {
	return fmt.Sprintf("CTID %d did not start with its new conf (%v); revision %d is its conf again and it runs with that",
		e.CTID, e.Err, e.Revision)
}
func (e *RolledBackError) Unwrap() error { return e.Err }

const (
	// startTimeout bounds pct start, which runs hookscripts and mounts storage; killTimeout pct stop, which waits for the
	// post-stop hooks.
	startTimeout = 5 * time.Minute
	killTimeout  = 2 * time.Minute
	// settleTime is how long the container may take to be as pct says it is.
	settleTime = 10 * time.Second
	// defaultStartPatience covers the moment in which a backup has locked the container, and a short loss of quorum.
	defaultStartPatience = 2 * time.Minute
)

// Restart stops a container and starts it; a stopped one is only started. progress, called from this goroutine, is told
// of each phase as it begins. Of several at once the first restarts the container, and the others, which waited for it, get
// an [*InstanceError]. If the container does not come up and its conf is one that we wrote since it last ran, the
// old conf is put back and the container started with that: the error is then a [*RolledBackError], otherwise a
// [*StartError]. Other errors left the container as it was: confstore.ErrNotFound, [ErrTemplate],
// [*confstore.LockedError], confstore.ErrNoQuorum, [*gpu.NodeError], [*InstanceError], pct.ErrStopTimeout, [*HAError],
// [*pct.Error].
func (m *Manager) Restart(ctx context.Context, ctid int32, opts RestartOptions, progress func(Phase, string)) (Container, error) {
	progress(Waiting, "")
	asked, askedErr := m.Runtime.Observe(ctx, ctid, nil)
	unlock, err := m.locks.Lock(ctx, ctid)
	if err != nil {
		return Container{}, err
	}
	defer unlock()
	// Only now: those that wait for the same container keep nobody else waiting.
	release, err := m.slots.take(ctx, func() { progress(Waiting, fmt.Sprintf("%d restarts are under way on this node", maxAtOnce)) })
	if err != nil {
		return Container{}, err
	}
	defer release()

	running, err := m.mayRestart(ctx, ctid, opts.Instance)
	if err != nil {
		return Container{}, err
	}
	settled := askedErr == nil && (asked.State == lxcmon.Running || asked.State == lxcmon.Stopped)
	if settled && running.Instance != "" && running.Instance != asked.Instance {
		return Container{}, &InstanceError{CTID: ctid, Got: running.Instance} // by whoever had the lock: not once more
	}
	// From here on the container is down because we are restarting it: leaving with the caller would leave it down. Each
	// command has a deadline of its own, so that a slow stop leaves time for the start.
	ctx = context.WithoutCancel(ctx)

	if edit, ok, err := m.unproven(ctid); err != nil {
		return Container{}, err
	} else if ok && edit.provenBy(running.Instance) {
		// It came up with our conf already. If it does not come up now, the conf is not why.
		if err := m.dropUnproven(ctid); err != nil {
			return Container{}, err
		}
	}
	end := m.restarting.begin(ctid)
	defer end()
	if running.State != lxcmon.Stopped {
		in := intent{
			CTID: ctid, Instance: running.Instance, Begin: time.Now().UnixNano(), Timeout: opts.Timeout,
			Who: opts.By.Who, OnBehalfOf: opts.By.OnBehalfOf, Why: opts.By.Why,
		}
		if err := m.recordIntent(in); err != nil {
			return Container{}, err
		}
		if err := m.stop(ctx, ctid, running.Instance, opts, progress); err != nil {
			return Container{}, errors.Join(err, m.dropIntent(ctid))
		}
	}
	err = m.start(ctx, ctid, opts, progress)
	if passing(err) {
		return Container{}, err // the intent stays: the next agent tries again
	}
	if err := errors.Join(err, m.dropIntent(ctid)); err != nil {
		return Container{}, err
	}
	end()
	c, _, err := m.Get(ctx, ctid)
	if err == nil && c.Running.State == lxcmon.Stopped {
		return Container{}, &StartError{CTID: ctid, Err: &DiedError{CTID: ctid}}
	}
	return c, err
}

// mayRestart checks everything that would make a start fail, before anything is stopped.
func (m *Manager) mayRestart(ctx context.Context, ctid int32, instance string) (Running, error) {
	if err := m.Confs.Check(); err != nil {
		return Running{}, err // without quorum no container can start
	}
	b, err := m.Confs.Read(ctid)
	if err != nil {
		return Running{}, err
	}
	conf := pveconf.Parse(b)
	if isTrue(conf, "template") {
		return Running{}, fmt.Errorf("CTID %d: %w", ctid, ErrTemplate)
	}
	if lock := lockOf(conf); lock != "" {
		return Running{}, &confstore.LockedError{CTID: ctid, Lock: lock}
	}
	if err := m.devicesExist(conf); err != nil {
		return Running{}, err
	}
	running, err := m.Runtime.Observe(ctx, ctid, nil)
	if err != nil {
		return Running{}, err
	}
	if instance != "" && instance != running.Instance {
		return Running{}, &InstanceError{CTID: ctid, Got: running.Instance}
	}
	return running, nil
}

// devicesExist checks that the node has the device of each devN: without one Proxmox refuses to start the container
// (LXC.pm, update_lxc_config). The error is a [*gpu.NodeError].
func (m *Manager) devicesExist(conf *pveconf.File) error {
	for _, e := range conf.Properties() {
		if !devKey().MatchString(e.Key) {
			continue
		}
		d, err := pveconf.ParseDevice(e.Value)
		if err != nil {
			continue // Proxmox itself says what is wrong with it
		}
		info, err := os.Stat(filepath.Join(cmp.Or(m.GPUs.Dev, "/dev"), strings.TrimPrefix(d.Path, "/dev")))
		wrong := ""
		switch {
		case errors.Is(err, fs.ErrNotExist):
			wrong = "the node does not have it"
		case err == nil && info.Mode()&fs.ModeDevice == 0:
			wrong = "it is no device"
		default:
			continue
		}
		return &gpu.NodeError{Path: d.Path, Err: fmt.Errorf(
			"%s, and with %s in its conf the container could not start again; correct or remove that line", wrong, e.Key)}
	}
	return nil
}

var devKey = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^dev[0-9]+$`) })

// stop returns when the container is stopped and Proxmox has rewritten its conf.
func (m *Manager) stop(ctx context.Context, ctid int32, instance string, opts RestartOptions, progress func(Phase, string)) error {
	if opts.Timeout > 0 {
		progress(ShuttingDown, "")
		// It may take twice its timeout and five seconds (LXC.pm, vm_stop), after 10 s for Proxmox's lock; under high
		// availability less than a minute and a half more than the timeout.
		limited, cancel := context.WithTimeout(ctx, 2*opts.Timeout+90*time.Second)
		err := m.Runtime.Shutdown(limited, ctid, opts.Timeout)
		cancel()
		if !errors.Is(err, pct.ErrStopTimeout) {
			err = m.awaitStop(ctx, ctid, instance, err)
		}
		if !errors.Is(err, pct.ErrStopTimeout) || opts.NoForce {
			return err
		}
	}
	progress(Forcing, "")
	limited, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return m.awaitStop(ctx, ctid, instance, m.Runtime.Stop(limited, ctid))
}

// awaitStop looks whether the container really stopped. After an error of pct it may have stopped all the same, or be about
// to.
func (m *Manager) awaitStop(ctx context.Context, ctid int32, instance string, stopErr error) error {
	deadline := time.Now().Add(settleTime)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		running, err := m.Runtime.Observe(ctx, ctid, nil)
		same := running.State == lxcmon.Running && running.Instance == instance
		switch {
		case err == nil && (running.State == lxcmon.Stopped || running.State == lxcmon.Running && !same):
			return nil
		case stopErr != nil && (same || time.Now().After(deadline)):
			return errors.Join(stopErr, err)
		case time.Now().Before(deadline):
		case err != nil:
			return err
		default:
			return fmt.Errorf("pct says that CTID %d is stopped, but after %v it is %v: %w", ctid, settleTime, running.State, pct.ErrStopTimeout)
		}
		<-time.After(wait) // ctx does not end
	}
}

// start starts a stopped container, with the old conf if it does not come up with a new one of ours.
func (m *Manager) start(ctx context.Context, ctid int32, opts RestartOptions, progress func(Phase, string)) error {
	progress(Starting, "")
	startErr := m.startPatiently(ctx, ctid)
	if startErr == nil {
		m.proven(ctid)
		return nil
	}
	if passing(startErr) {
		return &StartError{CTID: ctid, Err: startErr}
	}
	edit, ok, err := m.unproven(ctid)
	if err != nil {
		return &StartError{CTID: ctid, Err: fmt.Errorf("%w; and the journal of its conf: %w", startErr, err)}
	}
	if now, err := m.Confs.Read(ctid); !ok || err != nil || !edit.wrote(now) {
		return &StartError{CTID: ctid, Err: startErr}
	}
	if err := m.down(ctx, ctid); err != nil {
		return &StartError{CTID: ctid, Err: fmt.Errorf("%w; its old conf was not put back, because it does not stop: %w", startErr, err)}
	}
	progress(RollingBack, startErr.Error())
	m.Log.Warn("container did not start with its new conf", "ctid", ctid, "revision", edit.Revision, "err", startErr)
	by := opts.By
	by.Why = fmt.Sprintf("roll-back: the container did not start (%s)", opts.By.Why)
	if err := m.rollBack(ctx, ctid, edit, by); err != nil {
		return &StartError{CTID: ctid, Err: fmt.Errorf("%w; its old conf could not be put back: revision %d: %w", startErr, edit.Revision, err)}
	}
	if err := m.recordApplied(ctid, edit.Applied); err != nil {
		m.Log.Warn("record of what was applied is not that of the old conf", "ctid", ctid, "err", err)
	}
	if err := m.startPatiently(ctx, ctid); err != nil {
		return &StartError{CTID: ctid, Err: fmt.Errorf("%w; nor with its old conf, revision %d, which is in place again: %w", startErr, edit.Revision, err)}
	}
	m.proven(ctid)
	return &RolledBackError{CTID: ctid, Revision: edit.Revision, Err: startErr}
}

// rollBack puts the old conf back, again and again while something passing prevents it, but never over a conf that somebody
// else wrote meanwhile.
func (m *Manager) rollBack(ctx context.Context, ctid int32, edit unprovenEdit, by confstore.Author) error {
	return m.patiently(ctid, func() error {
		r, err := m.Confs.PreviewRestore(ctid, edit.Revision, "")
		if err != nil || !r.Changed {
			return err
		}
		if !edit.wrote(r.Before) {
			return errors.New("somebody else has changed the conf")
		}
		_, err = m.Confs.Restore(ctx, ctid, edit.Revision, pveconf.Parse(r.Before).Digest(), by)
		return err
	})
}

// proven forgets the way back: the container came up.
func (m *Manager) proven(ctid int32) {
	if err := m.dropUnproven(ctid); err != nil {
		m.Log.Warn("a proven edit is still recorded as unproven", "ctid", ctid, "err", err)
	}
}

// down makes sure that a container whose start failed does not hang half-way.
func (m *Manager) down(ctx context.Context, ctid int32) error {
	running, err := m.Runtime.Observe(ctx, ctid, nil)
	if err != nil || running.State == lxcmon.Stopped {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return m.awaitStop(ctx, ctid, running.Instance, m.Runtime.Stop(limited, ctid))
}

// passing says whether a start, or a roll-back, failed for a cause that has nothing to do with the conf and will pass.
func passing(err error) bool {
	for _, cause := range []error{
		pct.ErrLockTimeout, pct.ErrNoQuorum, confstore.ErrNoQuorum, confstore.ErrNotMounted,
		confstore.ErrBusy, confstore.ErrDisconnected, confstore.ErrNoAnswer,
	} {
		if errors.Is(err, cause) {
			return true
		}
	}
	_, locked := errors.AsType[*pct.LockedError](err)
	_, confLocked := errors.AsType[*confstore.LockedError](err)
	_, held := errors.AsType[*confstore.LockTimeoutError](err)
	_, stopping := errors.AsType[*confstore.StoppingError](err)
	_, changed := errors.AsType[*confstore.DigestError](err)
	ha, requested := errors.AsType[*HAError](err)
	untried := requested && ha.Want == lxcmon.Running && ha.Log == ""
	return locked || confLocked || held || stopping || changed || untried
}

func (m *Manager) startPatiently(ctx context.Context, ctid int32) error {
	return m.patiently(ctid, func() error { return m.startOnce(ctx, ctid) })
}

// patiently calls fn again and again while something passing prevents it: the container runs no more because of us.
func (m *Manager) patiently(ctid int32, fn func() error) error {
	patience := m.StartPatience
	if patience == 0 {
		patience = defaultStartPatience
	}
	deadline := time.Now().Add(patience)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := fn()
		if !passing(err) || time.Now().Add(wait).After(deadline) {
			return err
		}
		m.Log.Warn("start or roll-back refused for the moment; trying again", "ctid", ctid, "err", err)
		<-time.After(wait) // ctx does not end
	}
}

// startOnce starts the container and looks whether it really runs: pct start may succeed without knowing (LXC.pm,
// monitor_start). What cannot be observed for a moment is looked at again, so that a busy node is not taken for a failed
// start.
func (m *Manager) startOnce(ctx context.Context, ctid int32) error {
	limited, cancel := context.WithTimeout(ctx, startTimeout)
	startErr := m.Runtime.Start(limited, ctid)
	cancel()
	deadline := time.Now().Add(settleTime)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		running, err := m.Runtime.Observe(ctx, ctid, nil)
		switch {
		case err == nil && running.State == lxcmon.Running:
			return nil // if pct failed, somebody else started it
		case err == nil && startErr != nil && running.State == lxcmon.Stopped:
			return startErr
		case time.Now().Before(deadline):
		case startErr != nil || err != nil:
			return errors.Join(startErr, err)
		default:
			return fmt.Errorf("pct start succeeded, but after %v the container is %v", settleTime, running.State)
		}
		<-time.After(wait) // ctx does not end
	}
}
