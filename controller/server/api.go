package server

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/node"
)

// An API is what the services work with.
type API struct {
	Nodes  *node.Fleet
	Engine *engine.Engine
	Log    *slog.Logger // nil: none
}

// The time that one agent has to answer.
const (
	nodeTimeout  = 15 * time.Second // a question about its node
	probeTimeout = 30 * time.Second // with the wait for other work on the same container
)

// ask asks all nodes at once, or only the named one. It returns the answers, and those that did not answer, both by
// name of the node.
func ask[T any](ctx context.Context, a API, only string, question func(context.Context, *node.Node) (T, error)) (
	answers []T, unreachable []*typev1.NodeError, err error) {
	nodes := a.Nodes.Nodes()
	if only != "" {
		n, err := a.Nodes.Node(only)
		if err != nil {
			return nil, nil, err
		}
		nodes = []*node.Node{n}
	}
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	all, errs := make([]T, len(nodes)), make([]error, len(nodes))
	var asked sync.WaitGroup
	for i, n := range nodes {
		asked.Go(func() { all[i], errs[i] = question(ctx, n) })
	}
	asked.Wait()
	for i, err := range errs {
		if err != nil {
			unreachable = append(unreachable, nodeError(nodes[i], err))
		} else {
			answers = append(answers, all[i])
		}
	}
	return answers, unreachable, nil
}

// callsPerNode bounds the calls at the same time to one agent, where one request asks about many containers.
const callsPerNode = 4

// perNode calls do for each of n items and waits for them: nodes in parallel, at most callsPerNode at a time for one.
// Items without a node are left out.
func perNode(n int, nodeOf func(i int) string, do func(i int)) {
	items := map[string][]int{}
	for i := range n {
		if name := nodeOf(i); name != "" {
			items[name] = append(items[name], i)
		}
	}
	var nodes sync.WaitGroup
	for _, is := range items {
		nodes.Go(func() {
			var calls errgroup.Group
			calls.SetLimit(callsPerNode)
			for _, i := range is {
				calls.Go(func() error { do(i); return nil })
			}
			_ = calls.Wait() // nil: do returns no error
		})
	}
	nodes.Wait()
}

// fleet returns the fleet file as it is now, or why nothing may be decided from it.
func (a API) fleet() (*fleet.Fleet, error) {
	f, findings, err := a.Engine.LoadFleet()
	if err != nil {
		return nil, err
	}
	var bad []fleet.Finding
	for _, finding := range findings {
		if finding.Severity == fleet.Error {
			bad = append(bad, finding)
		}
	}
	if len(bad) > 0 {
		return nil, &engine.FleetError{Path: f.Path, Findings: bad}
	}
	return f, nil
}

func checkCTID(ctid int32) error { return checkCTIDField("ctid", ctid) }

// checkCTIDs checks a choice of containers.
func checkCTIDs(ctids []int32) error {
	for _, ctid := range ctids {
		if err := checkCTIDField("ctids", ctid); err != nil {
			return err
		}
	}
	return nil
}

func checkCTIDField(field string, ctid int32) error {
	if ctid < 100 || ctid > 999_999_999 {
		return &FieldError{Field: field, Message: fmt.Sprintf("%d is no CTID: they are 100 to 999999999", ctid)}
	}
	return nil
}
