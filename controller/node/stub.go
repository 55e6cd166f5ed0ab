package node

import (
	"context"
	"errors"

	"phoenix.internal/controller/observed"
)

// STUBS: signatures only; bodies follow.

var errStub = errors.New("not there yet")

// ErrNotFound is matched by the [*NotFoundError] that Find returns when no node has the container.
var ErrNotFound = errors.New("no such container")

// Observe asks every node, all at once.
func (f *Fleet) Observe(ctx context.Context) *observed.Fleet { return &observed.Fleet{} }

// A NotFoundError tells that no reachable node has a container.
type NotFoundError struct {
	CTID        int32
	Unreachable []*Error // nodes that could not be asked
}

func (e *NotFoundError) Error() string { return "" }

// A SeveralError tells that several nodes have a container with this CTID.
type SeveralError struct {
	CTID  int32
	Nodes []string
}

func (e *SeveralError) Error() string { return "" }

// Find returns the node that has the container: [*NotFoundError], [*SeveralError], [*Error].
func (f *Fleet) Find(ctx context.Context, ctid int32) (*Node, error) { return nil, errStub }
