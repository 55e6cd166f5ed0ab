// Package engine carries plans out: it observes the fleet, plans, and sequences the agents' RPCs for each container
// until it is as the fleet file wants it. A run is durable: its intent is recorded before each step and its outcome
// after it, and a run whose process died is taken up again by observing and planning anew.
package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
	"phoenix.internal/controller/store"
)

// Limits of a [Request], and what its zero values mean.
const (
	DefaultParallelPerNode = 4
	MaxParallelPerNode     = 64
	DefaultRestartTimeout  = 60 * time.Second
	MaxRestartTimeout      = 10 * time.Minute
)

// A Config is what an engine works with.
type Config struct {
	FleetFile   string // path of the fleet file; read anew for each plan and apply
	FeaturesDir string // scripts of the features; empty: none
	Agents      Agents // [Nodes] of a *node.Fleet
	Store       store.Store
	Log         *slog.Logger
}

// A Request asks for an apply.
type Request struct {
	CTIDs           []int32       // nil: all of the fleet file
	Start           bool          // start stopped containers that have an assignment
	Verify          bool          // verify devices also where nothing has changed
	RestartTimeout  time.Duration // for each graceful shutdown; 0: DefaultRestartTimeout
	ParallelPerNode int           // 0: DefaultParallelPerNode
	Who             string        // identity of the caller
}

// A Planned is a plan with what it was made from.
type Planned struct {
	Plan     *plan.Plan
	Fleet    *fleet.Fleet
	Findings []fleet.Finding // warnings only
	Observed *observed.Fleet
}

// ErrClosed is returned by a [Watch] whose engine was closed before the run ended.
var ErrClosed = errors.New("the engine is shutting down; the run is taken up again when it is back")

// A FleetError tells that the fleet file has errors, so nothing was planned.
type FleetError struct {
	Path     string
	Findings []fleet.Finding // the errors among them
}

func (e *FleetError) Error() string {
	lines := make([]string, len(e.Findings))
	for i, f := range e.Findings {
		lines[i] = f.String()
	}
	return fmt.Sprintf("the fleet file has errors; nothing was planned:\n%s", strings.Join(lines, "\n"))
}

// An UnreadableError tells that the fleet file cannot be read.
type UnreadableError struct {
	Path string // empty if none is configured
	Err  error
}

func (e *UnreadableError) Error() string {
	if e.Path == "" {
		return "no fleet file is configured; set fleet_file"
	}
	return fmt.Sprintf("read the fleet file: %v", e.Err)
}

func (e *UnreadableError) Unwrap() error { return e.Err }

// A NotInFleetError tells that the fleet file has no container with this CTID.
type NotInFleetError struct {
	CTID int32
	Path string
}

func (e *NotInFleetError) Error() string {
	return fmt.Sprintf("CTID %d is not in %s; add it there, or leave it out", e.CTID, e.Path)
}

// An InProgressError tells that another run works on one of the containers.
type InProgressError struct {
	Run  string
	CTID int32
}

func (e *InProgressError) Error() string {
	return fmt.Sprintf("run %s works on CTID %d; wait for it, or cancel it", e.Run, e.CTID)
}

// A RequestError tells that a field of a [Request] is out of range.
type RequestError struct {
	Field   string
	Message string
}

func (e *RequestError) Error() string { return e.Field + ": " + e.Message }
