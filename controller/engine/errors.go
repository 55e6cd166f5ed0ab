package engine

import (
	"errors"
	"fmt"
	"strings"

	"phoenix.internal/controller/fleet"
)

// ErrClosed is returned once the engine is closed. A [Watch] returns it for a run that had not ended by then.
var ErrClosed = errors.New("the controller is shutting down; runs are taken up again when it is back")

// A RequestError tells that a field of a [Request] is out of range.
type RequestError struct {
	Field   string
	Message string
}

func (e *RequestError) Error() string { return e.Field + ": " + e.Message }

// A FleetError tells that the fleet file has errors, so nothing was planned.
type FleetError struct {
	Path     string
	Findings []fleet.Finding // the errors among them
}

func (e *FleetError) Error() string {
	var b strings.Builder
	b.WriteString("the fleet file has errors; nothing was planned")
	for _, f := range e.Findings {
		b.WriteString("\n" + f.String())
	}
	return b.String()
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
	return e.Err.Error()
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
