// Package store keeps what must outlive the controller's process: the record of each run, and which start of each
// container was last verified.
package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"phoenix.internal/controller/plan"
)

// Keep is how many runs are kept. When a new one is added, the oldest ended ones beyond it are dropped.
const Keep = 1000

// A Store keeps runs and verification keys. What a method was given is durable when it returns nil. Its methods may
// be called concurrently.
type Store interface {
	// SaveRun adds a run, or replaces it with all its containers.
	SaveRun(Run) error
	// SaveContainer replaces one container of a run, the one with the same CTID. Returns [ErrNotFound] if there is
	// no such run, or no such container in it.
	SaveContainer(id string, c Container) error
	// Run returns the run with this ID, or the only one whose ID begins with it. Returns [ErrNotFound] or
	// [*AmbiguousError].
	Run(id string) (Run, error)
	// Runs returns up to limit runs, newest first; all of them if limit is 0.
	Runs(limit int) ([]Run, error)
	// Running returns the runs in state RunRunning, oldest first.
	Running() ([]Run, error)
	// SetVerified records that the start of ctid with this key was verified.
	SetVerified(ctid int32, key string) error
	// Verified returns the recorded keys by CTID.
	Verified() (map[int32]string, error)
	// Close frees the store. No other method may be called any more.
	Close() error
}

// ErrNotFound is returned for a run that is not in the store.
var ErrNotFound = errors.New("no such run")

// An AmbiguousError tells that several runs have IDs with this prefix.
type AmbiguousError struct {
	Prefix string
	IDs    []string // ascending
}

func (e *AmbiguousError) Error() string {
	const shown = 5 // the newest
	ids, more := e.IDs, ""
	if n := len(ids) - shown; n > 0 {
		ids, more = ids[n:], fmt.Sprintf(" and %d older ones", n)
	}
	return fmt.Sprintf("%q is the beginning of several run IDs: %s%s; give more of it", e.Prefix, strings.Join(ids, ", "), more)
}

// A Run is one execution of a plan.
type Run struct {
	ID          string // sorts by time of creation as text
	State       RunState
	Created     time.Time
	Ended       time.Time // zero while it runs
	Who         string
	FleetSHA256 string
	Options     Options
	Containers  []Container `json:"-"` // in the plan's order; stored apart from the rest
	Resumptions int
	Warnings    []string
	// Canceled says that somebody asked to end it. It is recorded before the run's state follows, so that a crash
	// in between does not bring the run back.
	Canceled bool
}

// Options are what was asked for, kept so that a run can be planned anew after a crash.
type Options struct {
	CTIDs           []int32 // nil: all of the fleet file
	Start, Verify   bool
	AcceptMoved     bool
	RestartTimeout  time.Duration
	ParallelPerNode int
}

// A RunState is the state of a run.
type RunState string

// The states of a run.
const (
	RunRunning     RunState = "running"
	RunSucceeded   RunState = "succeeded"   // every container succeeded or had nothing to do
	RunFailed      RunState = "failed"      // at least one failed or was not begun
	RunCanceled    RunState = "canceled"    // somebody ended it
	RunInterrupted RunState = "interrupted" // its process ended, and nothing took it up again
)

// A Container is a run's work on one container.
type Container struct {
	CTID   int32 // first, for [Bolt] finds it by that in the JSON
	Name   string
	Node   string
	State  StepState
	Steps  []Step
	After  []int32 // CTIDs of the run that must succeed first
	Error  string  // why it failed or was not begun, and what to do
	Reason string  // of the failure, by its name in phoenix.error.v1.Reason without prefix; may be empty
	Notes  []string
}

// A Step is one step of a run.
type Step struct {
	Kind    plan.Kind
	Feature string
	Reason  string // why it was planned
	State   StepState
	Started time.Time // zero if it has not
	Ended   time.Time // zero if it has not
	Message string    // what it found or did; the error if it failed
}

// A StepState is the state of a step, or of a container in a run.
type StepState string

// The states of steps and containers.
const (
	StepPending   StepState = "pending"
	StepRunning   StepState = "running"
	StepSucceeded StepState = "succeeded"
	StepFailed    StepState = "failed"
	StepSkipped   StepState = "skipped"   // not begun: something before it failed, or the run was canceled
	StepUnchanged StepState = "unchanged" // its outcome held already
)

// Ended reports whether no further change of state follows.
func (s StepState) Ended() bool { return s != StepPending && s != StepRunning }

// OK reports whether what depends on it may begin.
func (s StepState) OK() bool { return s == StepSucceeded || s == StepUnchanged }

// Clone returns a copy that shares nothing with r.
func (r Run) Clone() Run {
	r.Options.CTIDs = slices.Clone(r.Options.CTIDs)
	r.Warnings = slices.Clone(r.Warnings)
	r.Containers = slices.Clone(r.Containers)
	for i := range r.Containers {
		r.Containers[i] = r.Containers[i].Clone()
	}
	return r
}

// Clone returns a copy that shares nothing with c.
func (c Container) Clone() Container {
	c.Steps = slices.Clone(c.Steps)
	c.After = slices.Clone(c.After)
	c.Notes = slices.Clone(c.Notes)
	return c
}
