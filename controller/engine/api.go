package engine

import (
	"context"
	"errors"
	"time"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/store"
)

// STUBS: signatures only; bodies follow.

var errStub = errors.New("not there yet")

// Agents are the agents of the fleet.
type Agents interface{}

// Nodes makes the agents of f usable for an engine.
func Nodes(f *node.Fleet) Agents { return f }

// An Engine plans and applies. Its methods may be called concurrently.
type Engine struct{ cfg Config }

// New returns an engine. It starts nothing; see [Engine.Resume] and [Engine.Close].
func New(cfg Config) *Engine { return &Engine{cfg: cfg} }

// LoadFleet reads the fleet file. The fleet is not nil unless the error is an [*UnreadableError]; the findings may hold errors.
func (e *Engine) LoadFleet() (*fleet.Fleet, []fleet.Finding, error) { return nil, nil, errStub }

// Plan observes and plans without changing anything. Of the request only CTIDs, Start and Verify count.
func (e *Engine) Plan(ctx context.Context, req Request) (*Planned, error) { return nil, errStub }

// Apply plans and begins a run. ctx is only for the planning; the run goes on without it.
func (e *Engine) Apply(ctx context.Context, req Request) (*Watch, error) { return nil, errStub }

// Run returns a run by its ID or a unique prefix: [store.ErrNotFound], [*store.AmbiguousError].
func (e *Engine) Run(id string) (store.Run, error) { return store.Run{}, errStub }

// Runs returns up to limit runs, newest first.
func (e *Engine) Runs(limit int) ([]store.Run, error) { return nil, errStub }

// Watch follows a run by its ID or a unique prefix, ended ones included.
func (e *Engine) Watch(id string) (*Watch, error) { return nil, errStub }

// Cancel lets the steps under way end and starts no more. It returns at once. Nothing happens to a run that has ended.
func (e *Engine) Cancel(id string) error { return errStub }

// Active returns the ID of the run that works on each CTID.
func (e *Engine) Active() map[int32]string { return nil }

// Resume takes up the runs that an earlier process left running. It returns when they are under way.
func (e *Engine) Resume(ctx context.Context) error { return errStub }

// MarkInterrupted ends runs that an earlier process left running, for a process that does not take them up.
func (e *Engine) MarkInterrupted() error { return errStub }

// Close stops all runs where they are and waits for them. In the store they stay running.
func (e *Engine) Close() {}

// A Watch follows one run: `for { ev, err := w.Next(ctx); if err == io.EOF { break } ... }`, then w.Run() is the ended run.
type Watch struct{}

// Run returns the run as it is now.
func (w *Watch) Run() store.Run { return store.Run{} }

// Next waits for the next event. io.EOF: the run has ended, see Run. ErrClosed, or ctx's error.
func (w *Watch) Next(ctx context.Context) (Event, error) { return Event{}, errStub }

// Close ends the watch; the run goes on.
func (w *Watch) Close() {}

// An Event is a change of one step or container of a run.
type Event struct {
	Time           time.Time
	CTID           int32
	ContainerState store.StepState
	Step           *store.Step // nil if only the container's state changed
	StepIndex      int
	Error          string
}
