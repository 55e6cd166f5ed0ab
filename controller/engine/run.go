package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/lane"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
	"phoenix.internal/controller/store"
)

// A run is one execution of a plan. Each container has one worker, which alone changes that container's record.
type run struct {
	engine   *Engine
	fleet    *fleet.Fleet
	observed *observed.Fleet // what it was planned from
	plans    []task          // beside record.Containers
	cancel   context.CancelCauseFunc
	rollout  *rollout

	// saving orders the writes to the store, so that a whole run never overwrites a newer container. It is held across
	// them.
	saving sync.Mutex

	mu      sync.Mutex
	record  store.Run
	watches map[*Watch]struct{}
	end     error // io.EOF or ErrClosed once it has ended here
}

// A task is what a run is to do on one container.
type task struct {
	plan  plan.Container
	start bool // start it if it is stopped
	// restarting says that a restart of ours was begun whose end we have not seen: it may be stopped in the middle.
	restarting bool
}

// moves are the legal changes of a step's state, and of a container's. A container is skipped while it runs when the run
// is canceled between two of its steps. When a run is taken up again, records are made anew; nothing moves back.
var moves = map[store.StepState][]store.StepState{
	store.StepPending: {store.StepRunning, store.StepSkipped, store.StepFailed, store.StepUnchanged},
	store.StepRunning: {store.StepSucceeded, store.StepUnchanged, store.StepFailed, store.StepSkipped},
}

// move is the only writer of states.
func move(state *store.StepState, to store.StepState) {
	if !slices.Contains(moves[*state], to) {
		panic(fmt.Sprintf("engine: a step cannot go from %s to %s", *state, to))
	}
	*state = to
}

// work carries the plan out. Nothing begins after stop has ended; what is under way ends with ctx.
//
// A container takes its place in the line as soon as those before it have ended, and of those that are ready at the same
// time the plan's first does first.
func (r *run) work(ctx, stop context.Context) {
	log := r.engine.cfg.Log.With("run", r.record.ID)
	log.Info("run begins", "who", r.record.Who, "containers", len(r.plans), "resumptions", r.record.Resumptions)
	var waiting []*worker
	open := map[int32]bool{} // containers that have not ended
	for i, c := range r.snapshot().Containers {
		w := &worker{run: r, index: i, task: r.plans[i], after: c.After, log: log.With("ctid", c.CTID)}
		if c.State.Ended() {
			r.engine.done(c.CTID)
			continue
		}
		waiting = append(waiting, w)
		open[c.CTID] = true
	}
	ended := make(chan int32)
	for {
		waiting = slices.DeleteFunc(waiting, func(w *worker) bool {
			if stop.Err() == nil && slices.ContainsFunc(w.after, func(ctid int32) bool { return open[ctid] }) {
				return false
			}
			place, err := w.queue(stop)
			go func() {
				w.work(ctx, stop, place, err)
				r.engine.done(w.ctid())
				ended <- w.ctid()
			}()
			return true
		})
		if len(open) == 0 {
			return
		}
		stopped := stop.Done()
		if len(waiting) == 0 {
			stopped = nil // nothing more to learn from it
		}
		select {
		case ctid := <-ended:
			delete(open, ctid)
		case <-stopped:
		}
	}
}

// finish records how the run ended and returns what its watchers are to hear. A run that was cut off by the end of the
// process is left to the next one.
func (r *run) finish(closing bool) error {
	r.saving.Lock()
	defer r.saving.Unlock()
	final := r.snapshot()
	unfinished := slices.ContainsFunc(final.Containers, func(c store.Container) bool { return !c.State.Ended() })
	if unfinished && closing {
		return ErrClosed
	}
	final.State = outcome(final)
	final.Ended = time.Now().UTC()
	log := r.engine.cfg.Log.With("run", final.ID)
	if err := r.engine.cfg.Store.SaveRun(final); err != nil {
		// The next process takes it up, finds nothing left to do, and ends it.
		log.Error("the end of a run could not be recorded", "err", err)
	}
	r.mu.Lock()
	r.record = final
	r.mu.Unlock()
	log.Info("run ended", "state", string(final.State))
	return io.EOF
}

// outcome is the state of a run whose containers have ended.
func outcome(r store.Run) store.RunState {
	bad := func(c store.Container) bool { return !c.State.OK() }
	switch {
	case !slices.ContainsFunc(r.Containers, bad):
		return store.RunSucceeded
	case r.Canceled:
		return store.RunCanceled
	}
	return store.RunFailed
}

func (r *run) requestCancel() error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	if r.end != nil || r.record.State != store.RunRunning {
		r.mu.Unlock()
		return nil
	}
	r.record.Canceled = true
	record := r.record.Clone()
	r.mu.Unlock()
	// Recorded first, so that a crash does not bring the run back.
	err := r.engine.cfg.Store.SaveRun(record)
	r.cancel(errCanceled)
	return err
}

// snapshot returns a copy of the record.
func (r *run) snapshot() store.Run {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.record.Clone()
}

func (r *run) watch() *Watch {
	w := &Watch{run: r, wake: make(chan struct{}, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.end != nil {
		w.end(r.end)
		return w
	}
	r.watches[w] = struct{}{}
	return w
}

func (r *run) unwatch(w *Watch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.watches, w)
}

func (r *run) endWatches(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end = err
	for w := range r.watches {
		w.end(err)
	}
	clear(r.watches)
}

// A worker brings one container where its plan wants it.
type worker struct {
	run   *run
	index int // in the run's containers
	task
	after []int32 // containers that come first
	log   *slog.Logger
	agent Agent
	stop  <-chan struct{} // closed when nothing more may begin
	step  int             // under way

	digest string // of the conf as last seen
	// started is the instance that our restart has just brought up; empty if verifying must look for it.
	started string
	// leaveRollout is not nil while the container has a place in the rollout of a driver.
	leaveRollout func(ctid int32, err error)
}

func (w *worker) ctid() int32 { return w.plan.CTID }

// record returns the container's record.
func (w *worker) record() store.Container {
	w.run.mu.Lock()
	defer w.run.mu.Unlock()
	return w.run.record.Containers[w.index].Clone()
}

// A change is one of a container's record. step is the position of the step that changes, or -1.
type change struct {
	step int
	do   func(*store.Container)
}

// save changes the container's record, first in the store: all changes in one transaction, each with an event of its own.
func (w *worker) save(changes ...change) error {
	r := w.run
	r.saving.Lock()
	defer r.saving.Unlock()
	c := w.record()
	records := make([]store.Container, len(changes))
	for i, change := range changes {
		change.do(&c)
		records[i] = c.Clone()
	}
	if err := r.engine.cfg.Store.SaveContainer(r.record.ID, c); err != nil {
		return err
	}
	for i, change := range changes {
		w.publish(change.step, records[i])
	}
	return nil
}

// progress shows what a step is doing. It is not recorded: only its end is.
func (w *worker) progress(message string) {
	c := w.record()
	c.Steps[w.step].Message = message
	w.publish(w.step, c)
}

func (w *worker) publish(step int, c store.Container) {
	ev := Event{Time: time.Now().UTC(), CTID: c.CTID, ContainerState: c.State, Error: c.Error}
	if step >= 0 {
		s := c.Steps[step]
		ev.Step, ev.StepIndex = &s, step
	}
	r := w.run
	r.mu.Lock()
	defer r.mu.Unlock()
	r.record.Containers[w.index] = c
	for watch := range r.watches {
		watch.push(ev)
	}
}

// queue takes the container's place in the line. The error says why it is not to be begun. Those that come first have
// ended, or stop has.
func (w *worker) queue(stop context.Context) (*lane.Ticket, error) {
	if stop.Err() != nil {
		return nil, errCanceled
	}
	for _, ctid := range w.after {
		if c, ok := w.run.container(ctid); ok && !c.State.OK() {
			return nil, &dependencyError{ctid: ctid, state: c.State, cause: c.Error}
		}
	}
	return w.run.engine.lanes.Queue(w.ctid(), w.plan.Node, w.run.record.Options.ParallelPerNode), nil
}

// work waits for its turn and takes the steps, unless err says why not. When the engine closes it leaves the record as it
// is, for the next process: a step that failed then may have failed because it was given no more time, and is taken
// again.
func (w *worker) work(ctx, stop context.Context, place *lane.Ticket, err error) {
	w.stop = stop.Done()
	if err == nil {
		var leave func()
		if leave, err = place.Enter(stop); err == nil {
			defer leave()
			err = w.steps(ctx, stop)
		}
	}
	if err == nil || closing(ctx, stop) {
		return
	}
	w.giveUp(err)
}

// A dependencyError tells that a container was not begun because of one before it.
type dependencyError struct {
	ctid  int32
	state store.StepState
	cause string
}

func (e *dependencyError) Error() string {
	if e.state == store.StepFailed {
		return fmt.Sprintf("not begun: CTID %d, which comes first, failed: %s", e.ctid, e.cause)
	}
	return fmt.Sprintf("not begun: CTID %d, which comes first, was not finished: %s", e.ctid, e.cause)
}

func (r *run) container(ctid int32) (store.Container, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.record.Containers, func(c store.Container) bool { return c.CTID == ctid })
	if i < 0 {
		return store.Container{}, false
	}
	return r.record.Containers[i].Clone(), true
}

// steps takes the steps that have not ended, in their order.
func (w *worker) steps(ctx, stop context.Context) (err error) {
	w.agent, err = w.run.engine.cfg.Agents.Agent(w.plan.Node)
	if err != nil {
		return err
	}
	w.digest = w.plan.Digest
	steps := w.record().Steps
	var open []int
	for i, step := range steps {
		if !step.State.Ended() {
			open = append(open, i)
		}
	}
	defer func() { w.leave(err) }()
	begun := false // whether the intent of the step is recorded
	for n, i := range open {
		if !begun {
			if stop.Err() != nil {
				return errCanceled
			}
			if err := w.save(w.begin(i)); err != nil {
				return err
			}
		}
		w.step = i
		did, err := w.act(ctx, steps[i])
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return &stepError{kind: steps[i].Kind, feature: steps[i].Feature, err: err}
		}
		changes := []change{w.end(i, did)}
		last := n == len(open)-1
		begun = !last && stop.Err() == nil
		switch {
		case last:
			changes = append(changes, w.done())
		case begun:
			changes = append(changes, w.begin(open[n+1]))
		}
		if err := w.save(changes...); err != nil {
			return err
		}
	}
	w.log.Info("container done", "node", w.plan.Node)
	return nil
}

// begin records the intent of a step: before it is taken, together with the outcome of the one before it.
func (w *worker) begin(step int) change {
	return change{step, func(c *store.Container) {
		s := &c.Steps[step]
		move(&s.State, store.StepRunning)
		s.Started = time.Now().UTC()
		if c.State == store.StepPending {
			move(&c.State, store.StepRunning)
		}
	}}
}

// end records the outcome of a step.
func (w *worker) end(step int, did did) change {
	return change{step, func(c *store.Container) {
		s := &c.Steps[step]
		move(&s.State, did.state)
		s.Ended = time.Now().UTC()
		s.Message = did.message
	}}
}

// done records the end of a container whose steps have all ended well.
func (w *worker) done() change {
	return change{-1, func(c *store.Container) {
		unchanged := !slices.ContainsFunc(c.Steps, func(s store.Step) bool { return s.State != store.StepUnchanged })
		if unchanged {
			move(&c.State, store.StepUnchanged)
		} else {
			move(&c.State, store.StepSucceeded)
		}
	}}
}

// A did is how a step went that did not fail.
type did struct {
	state   store.StepState // succeeded or unchanged
	message string
}

func succeeded(format string, args ...any) (did, error) {
	return did{store.StepSucceeded, fmt.Sprintf(format, args...)}, nil
}

func unchanged(format string, args ...any) (did, error) {
	return did{store.StepUnchanged, fmt.Sprintf(format, args...)}, nil
}

func (w *worker) act(ctx context.Context, step store.Step) (did, error) {
	switch step.Kind {
	case plan.CheckDevices:
		return w.checkDevices(ctx)
	case plan.PatchConf:
		return w.patchConf(ctx)
	case plan.Restart:
		return w.restart(ctx)
	case plan.VerifyDevices:
		return w.verifyDevices(ctx)
	case plan.InstallDriver:
		return w.installDriver(ctx)
	case plan.VerifyDriver:
		return w.verifyDriver(ctx)
	case plan.Feature:
		return w.feature(ctx, step.Feature)
	case plan.HealthCheck:
		return w.healthCheck(ctx)
	}
	return did{}, fmt.Errorf("this version has no step of kind %d", step.Kind)
}

// A stepError is a failed step.
type stepError struct {
	kind    plan.Kind
	feature string
	err     error
}

func (e *stepError) Error() string { return title(e.kind, e.feature) + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// giveUp records why the container's work ended before its steps did.
func (w *worker) giveUp(cause error) {
	_, failed := errors.AsType[*stepError](cause)
	_, first := errors.AsType[*dependencyError](cause)
	c := w.record()
	end, text := store.StepFailed, cause.Error()
	switch {
	case first:
		end = store.StepSkipped
	case failed, !errors.Is(cause, errCanceled):
		if next := advice(cause, w.ctid(), w.plan.Node); next != "" {
			text += "; " + next
		}
	case c.State == store.StepPending:
		end, text = store.StepSkipped, "not begun: the run was canceled"
	default:
		end, text = store.StepSkipped, "not finished: the run was canceled"
	}
	w.log.Warn("container not done", "node", w.plan.Node, "err", cause)
	changed := slices.IndexFunc(c.Steps, func(s store.Step) bool { return s.State == store.StepRunning })
	last := change{changed, func(c *store.Container) {
		endSteps(c, text)
		move(&c.State, end)
		c.Error = text
		c.Reason = node.ReasonName(node.ReasonOf(cause))
	}}
	if err := w.save(last); err != nil {
		// Then at least those who watch are told; the next process takes the run up.
		w.log.Error("the end of a container's work could not be recorded", "err", err)
		last.do(&c)
		w.publish(changed, c)
	}
}

// endSteps ends the steps that have not ended: the one under way has failed.
func endSteps(c *store.Container, why string) {
	for i := range c.Steps {
		switch s := &c.Steps[i]; s.State {
		case store.StepRunning:
			move(&s.State, store.StepFailed)
			s.Ended, s.Message = time.Now().UTC(), why
		case store.StepPending:
			move(&s.State, store.StepSkipped)
		}
	}
}

func sentences(errs []string) string { return strings.Join(errs, "; ") }
