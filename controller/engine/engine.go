// Package engine carries plans out: it observes the fleet, plans, and sequences the agents' calls for each container
// until it is as the fleet file wants it. A run is durable: what it is about to do is recorded before each step and how
// it went after it, and a run whose process died is taken up again by observing and planning anew.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/lane"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
	"phoenix.internal/controller/store"
)

// The limits of a [Request], and what its zero values mean.
const (
	DefaultParallelPerNode = 4
	MaxParallelPerNode     = 64
	DefaultRestartTimeout  = 60 * time.Second
	MaxRestartTimeout      = 10 * time.Minute
)

// A Config is what an engine works with.
type Config struct {
	FleetFile   string // read anew for each plan and apply
	FeaturesDir string // scripts of the features; empty: none
	Agents      Agents // see [Nodes]
	Store       store.Store
	Log         *slog.Logger
}

// A Request asks for a plan or an apply.
type Request struct {
	CTIDs           []int32       // empty: all of the fleet file
	Start           bool          // start stopped containers that have an assignment
	Verify          bool          // verify devices also where nothing has changed
	AcceptMoved     bool          // take indexes for the GPUs that they mean now
	RestartTimeout  time.Duration // for each graceful shutdown; 0: DefaultRestartTimeout
	ParallelPerNode int           // containers worked on at once per node; 0: DefaultParallelPerNode
	Who             string        // identity of the caller
}

// A Planned is a plan and what it was made from.
type Planned struct {
	Plan     *plan.Plan // its warnings are those of the fleet file too, which come first
	Fleet    *fleet.Fleet
	Observed *observed.Fleet
}

// An Engine plans and applies. Its methods may be called concurrently.
type Engine struct {
	cfg   Config
	lanes lane.Lanes
	live  sync.WaitGroup // runs under way

	// ctx is that of the runs, which outlive the calls that begin them; Close ends it by stop. No step begins after
	// steps has ended; Drain ends it.
	ctx, steps context.Context
	stop       context.CancelFunc
	drain      context.CancelCauseFunc

	mu     sync.Mutex
	closed bool
	runs   map[string]*run  // under way, by ID
	active map[int32]string // run that works on the CTID, or is going to
	lastID time.Time        // of newID
}

// New returns an engine. It starts nothing. The caller closes it.
func New(cfg Config) *Engine {
	e := &Engine{cfg: cfg, runs: map[string]*run{}, active: map[int32]string{}}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.steps, e.drain = context.WithCancelCause(e.ctx)
	return e
}

// Drain begins no step and no run any more, and waits until those steps that are under way have ended, or ctx has. Then
// comes Close.
func (e *Engine) Drain(ctx context.Context) {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.drain(ErrClosed)
	ended := make(chan struct{})
	go func() { // until Close at the latest
		e.live.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// closing reports whether the runs are left to the next process. stop is that of a run.
func closing(ctx, stop context.Context) bool {
	return ctx.Err() != nil || context.Cause(stop) == ErrClosed
}

// Close breaks all runs off and waits for them; a restart that an agent has begun it finishes. In the store
// they are still running, for [Engine.Resume] or [Engine.MarkInterrupted] of the next process.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.live.Wait()
}

// LoadFleet reads the fleet file. Fails with an [*UnreadableError]; that the file has errors is told by the findings.
func (e *Engine) LoadFleet() (*fleet.Fleet, []fleet.Finding, error) {
	if e.cfg.FleetFile == "" {
		return nil, nil, &UnreadableError{}
	}
	f, findings, err := fleet.Load(e.cfg.FleetFile)
	if err != nil {
		return nil, nil, &UnreadableError{Path: e.cfg.FleetFile, Err: err}
	}
	return f, findings, nil
}

// loadValid reads a fleet file that may be planned with. Fails with a [*FleetError] besides.
func (e *Engine) loadValid() (*fleet.Fleet, []fleet.Finding, error) {
	f, findings, err := e.LoadFleet()
	if err != nil {
		return nil, nil, err
	}
	if !fleet.Valid(findings) {
		bad := slices.DeleteFunc(slices.Clone(findings), func(f fleet.Finding) bool { return f.Severity != fleet.Error })
		return nil, nil, &FleetError{Path: e.cfg.FleetFile, Findings: bad}
	}
	return f, findings, nil
}

// Observe asks every node, and adds what is known of earlier verifications. Fails if the store does, or if ctx ends.
func (e *Engine) Observe(ctx context.Context) (*observed.Fleet, error) {
	verified, err := e.cfg.Store.Verified()
	if err != nil {
		return nil, err
	}
	o := e.cfg.Agents.Observe(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx) // that no node answered then means nothing
	}
	o.Verified = verified
	return o, nil
}

// Plan observes and plans, and changes nothing. Fails with [*UnreadableError], [*FleetError] or [*NotInFleetError].
func (e *Engine) Plan(ctx context.Context, req Request) (*Planned, error) {
	f, findings, err := e.desired(req.CTIDs)
	if err != nil {
		return nil, err
	}
	o, err := e.Observe(ctx)
	if err != nil {
		return nil, err
	}
	p, err := e.compute(f, o, plan.Options{CTIDs: req.CTIDs, Start: req.Start, Verify: req.Verify, AcceptMoved: req.AcceptMoved})
	if err != nil {
		return nil, err
	}
	p.Warnings = warnings(findings, p)
	return &Planned{Plan: p, Fleet: f, Observed: o}, nil
}

// desired reads the fleet file and checks that it has the CTIDs.
func (e *Engine) desired(ctids []int32) (*fleet.Fleet, []fleet.Finding, error) {
	f, findings, err := e.loadValid()
	if err != nil {
		return nil, nil, err
	}
	for _, ctid := range ctids {
		if f.Container(ctid) == nil {
			return nil, nil, &NotInFleetError{CTID: ctid, Path: e.cfg.FleetFile}
		}
	}
	return f, findings, nil
}

func (e *Engine) compute(f *fleet.Fleet, o *observed.Fleet, opts plan.Options) (*plan.Plan, error) {
	scripts, err := e.scripts()
	if err != nil {
		return nil, err
	}
	opts.Scripts = scripts
	return plan.Compute(f, o, opts), nil
}

// Apply plans, records the plan as a run and begins it. ctx is for the planning alone: the run goes on without the
// caller, see [Engine.Cancel]. The caller closes the watch.
//
// Fails as Plan does, and with a [*RequestError] or an [*InProgressError].
func (e *Engine) Apply(ctx context.Context, req Request) (*Watch, error) {
	opts, err := options(req)
	if err != nil {
		return nil, err
	}
	f, findings, err := e.desired(opts.CTIDs)
	if err != nil {
		return nil, err
	}
	ctids := opts.CTIDs
	if len(ctids) == 0 {
		for _, c := range f.Containers {
			ctids = append(ctids, c.CTID)
		}
	}
	r := &run{engine: e, fleet: f, watches: map[*Watch]struct{}{}, rollout: newRollout()}
	r.record = store.Run{
		ID: e.newID(), State: store.RunRunning, Created: time.Now().UTC(), Who: req.Who, FleetSHA256: f.SHA256, Options: opts,
	}
	if err := e.reserve(r, ctids); err != nil {
		return nil, err
	}
	w, err := e.begin(ctx, r, findings)
	if err != nil {
		e.release(r.record.ID)
		return nil, err
	}
	return w, nil
}

// begin plans the run, records it and starts it.
func (e *Engine) begin(ctx context.Context, r *run, findings []fleet.Finding) (*Watch, error) {
	o, err := e.Observe(ctx)
	if err != nil {
		return nil, err
	}
	opts := r.record.Options
	p, err := e.compute(r.fleet, o, plan.Options{CTIDs: opts.CTIDs, Start: opts.Start, Verify: opts.Verify, AcceptMoved: opts.AcceptMoved})
	if err != nil {
		return nil, err
	}
	r.observed = o
	r.record.Warnings = warnings(findings, p)
	for _, c := range p.Containers {
		r.plans = append(r.plans, task{plan: c, start: opts.Start})
		r.record.Containers = append(r.record.Containers, container(c))
	}
	if err := e.cfg.Store.SaveRun(r.record); err != nil {
		return nil, err
	}
	w := r.watch()
	return w, e.start(r, r.work)
}

// container makes the record of a plan.
func container(c plan.Container) store.Container {
	s := store.Container{CTID: c.CTID, Name: c.Name, Node: c.Node, State: store.StepPending, After: c.After, Notes: c.Notes}
	for _, step := range c.Steps {
		s.Steps = append(s.Steps, store.Step{Kind: step.Kind, Feature: step.Feature, Reason: step.Reason, State: store.StepPending})
	}
	switch {
	case len(c.Errors) > 0:
		s.State = store.StepFailed
		s.Error = sentences(c.Errors)
	case len(c.Steps) == 0:
		s.State = store.StepUnchanged
	}
	return s
}

// warnings are those of the fleet file and of its plan. Each stands in a list of warnings, so it does not say that it is
// one.
func warnings(findings []fleet.Finding, p *plan.Plan) []string {
	var out []string
	for _, f := range findings {
		out = append(out, f.Unmarked())
	}
	return append(out, p.Warnings...)
}

// options checks a request and fills in its defaults.
func options(req Request) (store.Options, error) {
	o := store.Options{
		CTIDs: slices.Compact(slices.Sorted(slices.Values(req.CTIDs))), Start: req.Start, Verify: req.Verify, AcceptMoved: req.AcceptMoved,
		RestartTimeout: req.RestartTimeout, ParallelPerNode: req.ParallelPerNode,
	}
	switch {
	case o.RestartTimeout < 0 || o.RestartTimeout > MaxRestartTimeout:
		return o, &RequestError{"restart_timeout", fmt.Sprintf("%v is not between 0s and %v", o.RestartTimeout, MaxRestartTimeout)}
	case o.ParallelPerNode < 0 || o.ParallelPerNode > MaxParallelPerNode:
		return o, &RequestError{"parallel_per_node", fmt.Sprintf("%d is not between 1 and %d", o.ParallelPerNode, MaxParallelPerNode)}
	}
	if o.RestartTimeout == 0 {
		o.RestartTimeout = DefaultRestartTimeout
	}
	if o.ParallelPerNode == 0 {
		o.ParallelPerNode = DefaultParallelPerNode
	}
	return o, nil
}

// newID makes an ID that sorts after all earlier ones of this process.
func (e *Engine) newID() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now().UTC().Truncate(time.Millisecond)
	if !now.After(e.lastID) {
		now = e.lastID.Add(time.Millisecond)
	}
	e.lastID = now
	return fmt.Sprintf("%s-%04x", now.Format("20060102-150405.000"), rand.N(1<<16))
}

// reserve takes the containers for the run, or tells which run has one of them.
func (e *Engine) reserve(r *run, ctids []int32) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	for _, ctid := range ctids {
		if id, ok := e.active[ctid]; ok {
			return &InProgressError{Run: id, CTID: ctid}
		}
	}
	for _, ctid := range ctids {
		e.active[ctid] = r.record.ID
	}
	return nil
}

// release gives up all containers of a run.
func (e *Engine) release(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.active, func(_ int32, by string) bool { return by == id })
	delete(e.runs, id)
}

// done gives up one container.
func (e *Engine) done(ctid int32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.active, ctid)
}

// start lets work carry the run out. The engine waits for it in Close. Fails with [ErrClosed].
func (e *Engine) start(r *run, work func(ctx, stop context.Context)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	id := r.record.ID
	stop, cancel := context.WithCancelCause(e.steps)
	r.cancel = cancel
	e.runs[id] = r
	e.live.Go(func() {
		defer cancel(nil)
		work(e.ctx, stop)
		end := r.finish(closing(e.ctx, stop))
		// Released before the watchers hear of the end, so that they can apply again at once.
		e.release(id)
		r.endWatches(end)
	})
	return nil
}

// Run returns the run with this ID, or the only one whose ID begins with it. Fails with [store.ErrNotFound] or a
// [*store.AmbiguousError].
func (e *Engine) Run(id string) (store.Run, error) {
	past, err := e.cfg.Store.Run(id)
	if err != nil {
		return store.Run{}, err
	}
	if r := e.running(past.ID); r != nil {
		return r.snapshot(), nil // newer: with what is under way in a step
	}
	return past, nil
}

func (e *Engine) running(id string) *run {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runs[id]
}

// Runs returns up to limit runs, newest first; all that are kept if limit is 0.
func (e *Engine) Runs(limit int) ([]store.Run, error) { return e.cfg.Store.Runs(limit) }

// Active returns the ID of the run that works on each CTID, or is going to.
func (e *Engine) Active() map[int32]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.active)
}

// Watch follows a run, named as for Run; one that has ended gives its end. The caller closes the watch. Fails as Run
// does, and with [ErrClosed] for a run that an earlier process left and nobody has taken up.
func (e *Engine) Watch(id string) (*Watch, error) {
	past, err := e.cfg.Store.Run(id)
	if err != nil {
		return nil, err
	}
	if r := e.running(past.ID); r != nil {
		return r.watch(), nil
	}
	// It may have ended since it was read.
	if past, err = e.cfg.Store.Run(past.ID); err != nil {
		return nil, err
	}
	if past.State == store.RunRunning {
		return nil, ErrClosed // another process left it, or this one is about to
	}
	w := &Watch{past: past, wake: make(chan struct{}, 1)}
	w.end(io.EOF)
	return w, nil
}

// Cancel lets the steps of a run that are under way end, and starts no more. It returns at once. The run is named as for
// Run; one that is not under way stays as it is.
func (e *Engine) Cancel(id string) error {
	past, err := e.cfg.Store.Run(id)
	if err != nil {
		return err
	}
	r := e.running(past.ID)
	if r == nil {
		return nil
	}
	return r.requestCancel()
}

// errCanceled is why a run stops after Cancel.
var errCanceled = errors.New("the run was canceled")
