package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/connectivity"

	"phoenix.internal/controller/observed"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
)

// How long one node may take to be observed, and to tell whether it has a container.
const (
	observeTimeout = 10 * time.Second
	findTimeout    = 5 * time.Second
)

// Observe asks every node, all at once, with one ListDevices and one ListContainers each. A node that does not answer
// within ten seconds is in the result with its error.
func (f *Fleet) Observe(ctx context.Context) *observed.Fleet {
	o := &observed.Fleet{Nodes: make([]observed.Node, len(f.nodes))}
	f.each(ctx, observeTimeout, func(ctx context.Context, i int, n *Node) { o.Nodes[i] = n.observe(ctx) })
	f.remember(ctx, o)
	return o
}

func (n *Node) observe(ctx context.Context) observed.Node {
	at := time.Now()
	o := observed.Node{Name: n.name, Address: n.address, At: at}
	var devices *agentv1.ListDevicesResponse
	var containers *agentv1.ListContainersResponse
	group, ctx := errgroup.WithContext(ctx) // the error of the first that fails, not the other's cancellation
	group.Go(func() (err error) {
		devices, err = n.Devices().ListDevices(ctx, &agentv1.ListDevicesRequest{})
		return err
	})
	group.Go(func() (err error) {
		containers, err = n.Containers().ListContainers(ctx, &agentv1.ListContainersRequest{})
		return err
	})
	if err := group.Wait(); err != nil {
		o.Err = err
		return o
	}
	o = Observed(n.name, devices.GetDevices(), containers.GetContainers(), containers.GetVmIds())
	o.Address, o.At = n.address, at
	return o
}

// remember notes where containers are, for Find. One that is on several nodes is left out.
func (f *Fleet) remember(ctx context.Context, o *observed.Fleet) {
	at := map[int32][]string{}
	for _, n := range o.Nodes {
		for _, c := range n.Containers {
			at[c.CTID] = append(at[c.CTID], n.Name)
		}
	}
	for ctid, names := range at {
		if len(names) == 1 {
			f.note(ctx, ctid, names[0])
		}
	}
}

func (f *Fleet) note(ctx context.Context, ctid int32, name string) {
	f.mu.Lock()
	last := f.found[ctid]
	f.found[ctid] = name
	f.mu.Unlock()
	if last != "" && last != name {
		f.log.InfoContext(ctx, "container is on another node", "ctid", ctid, "node", name, "before", last)
	}
}

// ErrNotFound is matched by a [*NotFoundError].
var ErrNotFound = errors.New("no such container")

// A NotFoundError tells that no node that could be asked has a container with this CTID.
type NotFoundError struct {
	CTID        int32
	Unreachable []*Error // nodes that could not be asked
}

func (e *NotFoundError) Error() string {
	if len(e.Unreachable) == 0 {
		return fmt.Sprintf("no node has CTID %d", e.CTID)
	}
	var lines []string
	for _, u := range e.Unreachable {
		lines = append(lines, u.Error())
	}
	return fmt.Sprintf("no node that could be asked has CTID %d; %s", e.CTID, strings.Join(lines, "; "))
}

// Is makes errors.Is(e, ErrNotFound) true.
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// A SeveralError tells that several nodes have a container with this CTID.
type SeveralError struct {
	CTID  int32
	Nodes []string // by name
}

func (e *SeveralError) Error() string {
	return fmt.Sprintf("CTID %d is on several nodes: %s; a CTID must be unique, remove one of them",
		e.CTID, strings.Join(e.Nodes, ", "))
}

// Find returns the node that has the container. The node that had it last is asked first; only if it has it no more, all
// are. Fails with a [*NotFoundError], a [*SeveralError], or the [*Error] of the node that had it and cannot be asked.
func (f *Fleet) Find(ctx context.Context, ctid int32) (*Node, error) {
	f.mu.Lock()
	last := f.nodes[f.found[ctid]]
	f.mu.Unlock()
	var lastErr error
	if last != nil {
		has, err := last.has(ctx, ctid)
		if has {
			return last, nil
		}
		lastErr = err
	}

	has, errs := make([]bool, len(f.names)), make([]error, len(f.names))
	f.each(ctx, findTimeout, func(ctx context.Context, i int, n *Node) { has[i], errs[i] = n.has(ctx, ctid) })
	var nodes []string
	missing := &NotFoundError{CTID: ctid}
	for i, name := range f.names {
		if has[i] {
			nodes = append(nodes, name)
		}
		if e, ok := errors.AsType[*Error](errs[i]); ok {
			missing.Unreachable = append(missing.Unreachable, e)
		}
	}
	switch {
	case len(nodes) > 1:
		return nil, &SeveralError{CTID: ctid, Nodes: nodes}
	case len(nodes) == 1:
		f.note(ctx, ctid, nodes[0])
		return f.nodes[nodes[0]], nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("find CTID %d: %w", ctid, context.Cause(ctx))
	case lastErr != nil:
		return nil, lastErr
	}
	return nil, missing
}

// On calls do with the node that has the container. It does not ask first which one that is: do is called with the node
// that had it last, and once more with another if it returns that node's CONTAINER_NOT_FOUND. So do returns that only as
// long as the agent has done nothing else. Fails as Find and do.
func (f *Fleet) On(ctx context.Context, ctid int32, do func(*Node) error) error {
	f.mu.Lock()
	last := f.nodes[f.found[ctid]]
	f.mu.Unlock()
	// If it is away, Find looks on the other nodes too. do cannot tell that from a connection lost while the agent acts.
	if last != nil && last.conn.GetState() == connectivity.Ready {
		if err := do(last); ReasonOf(err) != ContainerNotFound {
			return err
		}
	}
	n, err := f.Find(ctx, ctid)
	if err != nil {
		return err
	}
	return do(n)
}

// has asks the agent whether it has the container.
func (n *Node) has(ctx context.Context, ctid int32) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	_, err := n.Containers().GetContainer(ctx, &agentv1.GetContainerRequest{Ctid: ctid})
	if ReasonOf(err) == ContainerNotFound {
		return false, nil
	}
	return err == nil, err
}

// Names returns the names of the configured nodes, sorted.
func (f *Fleet) Names() []string { return slices.Clone(f.names) }
