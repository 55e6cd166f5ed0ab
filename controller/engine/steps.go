package engine

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

// checkDevices makes sure that the node can give the GPUs. The agent makes missing device nodes.
func (w *worker) checkDevices(ctx context.Context) (did, error) {
	if len(w.plan.Desired) == 0 {
		return unchanged("no GPU is assigned")
	}
	var created []string
	err := w.retry(ctx, func() (err error) {
		created, err = w.agent.Prepare(ctx, w.plan.Desired, w.plan.Capabilities)
		return err
	})
	switch {
	case err != nil:
		return did{}, err
	case len(created) > 0:
		return succeeded("made %s", strings.Join(created, ", "))
	}
	return unchanged("%s can be given", observed.Names(w.plan.Desired))
}

// patchConf makes the conf give exactly the assignment. The agent writes only if something has to change.
func (w *worker) patchConf(ctx context.Context) (did, error) {
	p, err := w.patch(ctx)
	switch {
	case err != nil:
		return did{}, err
	case !p.Changed:
		return unchanged("the conf gives %s already", observed.Names(w.plan.Desired))
	}
	return succeeded("the conf gives %s; revision %d keeps the old one", observed.Names(w.plan.Desired), p.Revision)
}

// patch sets the passthrough. If the conf is not the one last seen, it is read again: the operation says what the conf
// is to give, so it is as right for the new one.
func (w *worker) patch(ctx context.Context) (p node.Patched, err error) {
	for range maxConflicts {
		err = w.retry(ctx, func() (err error) {
			p, err = w.agent.Patch(ctx, node.Patch{
				CTID: w.ctid(), GPUs: w.plan.Desired, Mode: observed.Mode(w.plan.Mode), Capabilities: w.plan.Capabilities,
				Assignment: w.plan.Assignment, Digest: w.digest,
				RequestID: w.requestID(), Who: w.run.record.Who,
			})
			return err
		})
		if node.ReasonOf(err) != node.DigestMismatch {
			break
		}
		if _, lookErr := w.look(ctx); lookErr != nil {
			return p, lookErr
		}
	}
	if err == nil {
		w.digest = p.Digest
	}
	return p, err
}

// look returns the container as it is now.
func (w *worker) look(ctx context.Context) (c observed.Container, err error) {
	err = w.retry(ctx, func() (err error) {
		c, err = w.agent.Container(ctx, w.ctid())
		return err
	})
	if err == nil {
		w.digest = c.Digest
	}
	return c, err
}

// replan plans the container anew from how it is now: the one place that decides what is needed is plan.Compute.
func (w *worker) replan(c observed.Container) plan.Container {
	o := &observed.Fleet{Nodes: slices.Clone(w.run.observed.Nodes)}
	for i := range o.Nodes {
		n := &o.Nodes[i]
		n.Containers = slices.DeleteFunc(slices.Clone(n.Containers), func(c observed.Container) bool { return c.CTID == w.ctid() })
		if n.Name == w.plan.Node {
			n.Containers = append(n.Containers, c)
		}
	}
	p := plan.Compute(w.run.fleet, o, plan.Options{
		CTIDs: []int32{w.ctid()}, Start: w.start, AcceptMoved: w.run.record.Options.AcceptMoved,
		Chosen: map[int32][]observed.Ref{w.ctid(): w.plan.Desired},
	})
	return p.Containers[0]
}

func has(p plan.Container, kind plan.Kind) bool {
	return slices.ContainsFunc(p.Steps, func(s plan.Step) bool { return s.Kind == kind })
}

// requestID is what the agent keeps with a revision, so that it leads back to the run.
func (w *worker) requestID() string {
	return w.run.record.ID + "/" + strconv.Itoa(int(w.ctid()))
}
