package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
	"phoenix.internal/controller/store"
)

type runService struct {
	API
	controllerv1.UnimplementedRunServiceServer
	stopping context.Context // done when the server stops
}

func (s *runService) Plan(ctx context.Context, req *controllerv1.PlanRequest) (*controllerv1.PlanResponse, error) {
	if err := checkCTIDs(req.GetCtids()); err != nil {
		return nil, err
	}
	planned, err := s.Engine.Plan(ctx, engine.Request{CTIDs: req.GetCtids(), Start: req.GetStart(), Verify: req.GetVerify(), AcceptMoved: req.GetAcceptMoved()})
	if err != nil {
		return nil, err
	}
	p := planProto(planned.Plan)
	p.Unreachable = unreachableProto(planned.Observed)
	s.addConfs(ctx, planned.Plan, p)
	fit(p)
	return &controllerv1.PlanResponse{Plan: p}, nil
}

func unreachableProto(o *observed.Fleet) (errs []*typev1.NodeError) {
	for _, n := range o.Nodes {
		if n.Err != nil {
			errs = append(errs, &typev1.NodeError{Node: n.Name, Address: n.Address, Message: messageOf(n.Err)})
		}
	}
	return errs
}

// addConfs asks the agents how each conf would change. Where that fails the plan stands without it, with a note.
func (s *runService) addConfs(ctx context.Context, from *plan.Plan, to *controllerv1.Plan) {
	nodeOf := func(i int) string {
		if !has(from.Containers[i], plan.PatchConf) {
			return ""
		}
		return from.Containers[i].Node
	}
	perNode(len(from.Containers), nodeOf, func(i int) {
		if err := s.addConf(ctx, from.Containers[i], to.Containers[i]); err != nil {
			to.Containers[i].Notes = append(to.Containers[i].Notes, fmt.Sprintf("the change of the conf cannot be shown: %v", err))
		}
	})
}

func has(c plan.Container, kind plan.Kind) bool {
	for _, s := range c.Steps {
		if s.Kind == kind {
			return true
		}
	}
	return false
}

func (s *runService) addConf(ctx context.Context, c plan.Container, p *controllerv1.ContainerPlan) error {
	n, err := s.Nodes.Node(c.Node)
	if err != nil {
		return err
	}
	patched, err := n.Patch(ctx, node.Patch{
		CTID: c.CTID, GPUs: c.Desired, Mode: observed.Mode(c.Mode), Capabilities: c.Capabilities, DryRun: true,
	})
	if err != nil {
		return err
	}
	p.ConfBefore, p.ConfAfter = patched.Before, patched.After
	return nil
}

// fit leaves out confs, the last ones first, until the plan fits into one message, and says so.
func fit(p *controllerv1.Plan) {
	const room = maxSendBytes - 64<<10
	size, dropped := proto.Size(p), 0
	for i := len(p.Containers) - 1; i >= 0 && size > room; i-- {
		c := p.Containers[i]
		if len(c.ConfBefore)+len(c.ConfAfter) == 0 {
			continue
		}
		size -= len(c.ConfBefore) + len(c.ConfAfter)
		c.ConfBefore, c.ConfAfter = nil, nil
		dropped++
	}
	if dropped > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf(
			"the changes of %d confs do not fit into one answer and are left out; plan those CTIDs alone to see them", dropped))
	}
}

func (s *runService) Apply(req *controllerv1.ApplyRequest, stream controllerv1.RunService_ApplyServer) error {
	ctx := stream.Context()
	if err := checkCTIDs(req.GetCtids()); err != nil {
		return err
	}
	r := engine.Request{
		CTIDs: req.GetCtids(), Start: req.GetStart(), Verify: req.GetVerify(), AcceptMoved: req.GetAcceptMoved(),
		ParallelPerNode: int(req.GetParallelPerNode()), Who: callerOf(ctx).who,
	}
	if d := req.GetRestartTimeout(); d != nil {
		if err := d.CheckValid(); err != nil || d.AsDuration() <= 0 {
			return &FieldError{Field: "restart_timeout", Message: fmt.Sprintf("%v is no time to wait; 1 s to 10 min", d.AsDuration())}
		}
		r.RestartTimeout = d.AsDuration()
	}
	w, err := s.Engine.Apply(ctx, r)
	if err != nil {
		return err
	}
	return s.follow(ctx, w, func(run *controllerv1.Run, step *controllerv1.RunEvent) error {
		if run != nil {
			return stream.Send(&controllerv1.ApplyResponse{Event: &controllerv1.ApplyResponse_Run{Run: run}})
		}
		return stream.Send(&controllerv1.ApplyResponse{Event: &controllerv1.ApplyResponse_Step{Step: step}})
	})
}

func (s *runService) WatchRun(req *controllerv1.WatchRunRequest, stream controllerv1.RunService_WatchRunServer) error {
	if err := checkRun(req.GetRun()); err != nil {
		return err
	}
	w, err := s.Engine.Watch(req.GetRun())
	if err != nil {
		return runError(req.GetRun(), err)
	}
	return s.follow(stream.Context(), w, func(run *controllerv1.Run, step *controllerv1.RunEvent) error {
		if run != nil {
			return stream.Send(&controllerv1.WatchRunResponse{Event: &controllerv1.WatchRunResponse_Run{Run: run}})
		}
		return stream.Send(&controllerv1.WatchRunResponse{Event: &controllerv1.WatchRunResponse_Step{Step: step}})
	})
}

// follow sends the run, its events, and the ended run; only once if it had ended before. It closes w.
func (s *runService) follow(ctx context.Context, w *engine.Watch, send func(*controllerv1.Run, *controllerv1.RunEvent) error) error {
	defer w.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(engine.ErrClosed) })()

	run := w.Run()
	if err := send(runProto(run), nil); err != nil {
		return err
	}
	if run.State != store.RunRunning {
		return nil
	}
	for {
		event, err := w.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return send(runProto(w.Run()), nil)
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
		if err := send(nil, eventProto(event)); err != nil {
			return err
		}
	}
}

const (
	defaultRuns = 20
	maxRuns     = 1000
)

func (s *runService) ListRuns(_ context.Context, req *controllerv1.ListRunsRequest) (*controllerv1.ListRunsResponse, error) {
	limit := int(req.GetLimit())
	switch {
	case limit == 0:
		limit = defaultRuns
	case limit < 0 || limit > maxRuns:
		return nil, &FieldError{Field: "limit", Message: fmt.Sprintf("%d is out of range; 1 to %d", limit, maxRuns)}
	}
	runs, err := s.Engine.Runs(limit)
	if err != nil {
		return nil, err
	}
	resp := &controllerv1.ListRunsResponse{Runs: convert(runs, runProto)}
	for _, r := range resp.Runs {
		for _, c := range r.Containers {
			c.Steps = nil
		}
	}
	return resp, nil
}

func (s *runService) GetRun(_ context.Context, req *controllerv1.GetRunRequest) (*controllerv1.GetRunResponse, error) {
	if err := checkRun(req.GetRun()); err != nil {
		return nil, err
	}
	run, err := s.Engine.Run(req.GetRun())
	if err != nil {
		return nil, runError(req.GetRun(), err)
	}
	return &controllerv1.GetRunResponse{Run: runProto(run)}, nil
}

func (s *runService) CancelRun(_ context.Context, req *controllerv1.CancelRunRequest) (*controllerv1.CancelRunResponse, error) {
	if err := checkRun(req.GetRun()); err != nil {
		return nil, err
	}
	if err := s.Engine.Cancel(req.GetRun()); err != nil {
		return nil, runError(req.GetRun(), err)
	}
	return &controllerv1.CancelRunResponse{}, nil
}

// maxRunID is more than any ID has.
const maxRunID = 64

// checkRun refuses the empty prefix, which every run has, and what would come back in the error.
func checkRun(id string) error {
	switch {
	case id == "":
		return &FieldError{Field: "run", Message: "missing; the ID of a run, or its beginning"}
	case len(id) > maxRunID:
		return &FieldError{Field: "run", Message: fmt.Sprintf("%d bytes are no ID of a run; `phoenix-cli runs` lists them", len(id))}
	}
	return nil
}

func runError(id string, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return &RunNotFoundError{Run: id}
	}
	return err
}
