package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
	"phoenix.internal/controller/store"
)

// Resume takes up the runs that an earlier process left running, under their IDs: each observes and plans anew over the
// containers it has not ended. It returns when they are under way.
func (e *Engine) Resume(ctx context.Context) error {
	runs, err := e.cfg.Store.Running()
	if err != nil {
		return err
	}
	for _, record := range runs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.running(record.ID) != nil {
			continue
		}
		if record.Canceled {
			if err := e.cfg.Store.SaveRun(abandon(record, store.RunCanceled, "not finished: the run was canceled")); err != nil {
				return err
			}
			continue
		}
		if err := e.takeUp(record); err != nil {
			return fmt.Errorf("take up run %s: %w", record.ID, err)
		}
	}
	return nil
}

// MarkInterrupted ends the runs that an earlier process left running, for a process that does not take them up. Those
// that are under way here are left alone.
func (e *Engine) MarkInterrupted() error {
	runs, err := e.cfg.Store.Running()
	if err != nil {
		return err
	}
	for _, record := range runs {
		if e.running(record.ID) != nil {
			continue
		}
		record = abandon(record, store.RunInterrupted, "not finished: the process that worked on it ended; apply again")
		if err := e.cfg.Store.SaveRun(record); err != nil {
			return err
		}
	}
	return nil
}

// abandon ends a run that nobody works on.
func abandon(r store.Run, state store.RunState, why string) store.Run {
	r.State, r.Ended = state, time.Now().UTC()
	for i := range r.Containers {
		c := &r.Containers[i]
		if c.State.Ended() {
			continue
		}
		endSteps(c, why)
		move(&c.State, store.StepSkipped)
		c.Error = why
	}
	return r
}

func (e *Engine) takeUp(record store.Run) error {
	record.Resumptions++
	r := &run{engine: e, record: record, watches: map[*Watch]struct{}{}, rollout: newRollout()}
	var ctids []int32
	for _, c := range record.Containers {
		ctids = append(ctids, c.CTID)
	}
	if err := e.reserve(r, ctids); err != nil {
		return err
	}
	if err := e.cfg.Store.SaveRun(record); err != nil {
		e.release(record.ID)
		return err
	}
	return e.start(r, func(ctx, stop context.Context) {
		err := r.replanAll(stop)
		if closing(ctx, stop) {
			return
		}
		if err != nil {
			r.fail(err)
			return
		}
		r.work(ctx, stop)
	})
}

// replanAll observes and plans what the run has not ended.
func (r *run) replanAll(ctx context.Context) error {
	e := r.engine
	f, _, err := e.loadValid()
	if err != nil {
		return err
	}
	o, err := r.observeSettled(ctx)
	if err != nil {
		return err
	}
	opts := plan.Options{Start: r.record.Options.Start, Verify: r.record.Options.Verify, AcceptMoved: r.record.Options.AcceptMoved}
	for _, c := range r.record.Containers {
		if !c.State.Ended() && f.Container(c.CTID) != nil {
			opts.CTIDs = append(opts.CTIDs, c.CTID)
		}
	}
	planned := map[int32]plan.Container{}
	if len(opts.CTIDs) > 0 { // without any it would plan all of the fleet file
		p, err := e.compute(f, o, opts)
		if err != nil {
			return err
		}
		for _, c := range p.Containers {
			planned[c.CTID] = c
		}
	}

	r.saving.Lock()
	defer r.saving.Unlock()
	record := r.snapshot()
	r.plans = nil
	for i, c := range record.Containers {
		p, ok := planned[c.CTID]
		if !ok {
			p = plan.Container{CTID: c.CTID, Errors: []string{"it is not in the fleet file any more"}}
		}
		r.plans = append(r.plans, task{
			plan: p, start: opts.Start,
			// The restart may have been cut off between stop and start: who ran before is to run again.
			restarting: interrupted(c, plan.Restart),
		})
		if !c.State.Ended() {
			record.Containers[i] = resumed(c, p)
		}
	}
	if err := e.cfg.Store.SaveRun(record); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.record, r.fleet, r.observed = record, f, o
	return nil
}

// observeSettled observes until every node that the run needs answers, and none of its containers is between two states,
// as they are while an agent still finishes a restart; or until that has taken too long.
func (r *run) observeSettled(ctx context.Context) (*observed.Fleet, error) {
	p := newPause(retryFor)
	for {
		o, err := r.engine.Observe(ctx)
		if err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if r.settled(o) || !p.wait(ctx, ctx.Done()) {
			return o, context.Cause(ctx)
		}
	}
}

func (r *run) settled(o *observed.Fleet) bool {
	open := map[int32]string{} // node by CTID
	for _, c := range r.record.Containers {
		if !c.State.Ended() {
			open[c.CTID] = c.Node
		}
	}
	for _, n := range o.Nodes {
		for _, c := range n.Containers {
			if _, ok := open[c.CTID]; ok && passing(c.State) {
				return false
			}
		}
		for _, name := range open {
			if n.Err != nil && (name == n.Name || name == "") {
				return false
			}
		}
	}
	return true
}

// interrupted reports whether the process died in a step of this kind.
func interrupted(c store.Container, kind plan.Kind) bool {
	return slices.ContainsFunc(c.Steps, func(s store.Step) bool { return s.Kind == kind && s.State == store.StepRunning })
}

// resumed returns the record of a container that is taken up again: steps that had not ended and those that the new plan
// has are to be done, the others stay. Each step asks first whether its outcome holds, so none is done in vain.
func resumed(c store.Container, p plan.Container) store.Container {
	fresh := container(p)
	fresh.Name, fresh.After = c.Name, c.After // it still comes after those that the run has ended
	if fresh.Node == "" {
		fresh.Node = c.Node
	}
	if len(p.Errors) > 0 {
		fresh.Steps = c.Steps
		endSteps(&fresh, fresh.Error)
		return fresh
	}
	var steps []store.Step
	for _, s := range c.Steps {
		if slices.ContainsFunc(p.Steps, func(n plan.Step) bool { return n.Kind == s.Kind && n.Feature == s.Feature }) {
			continue
		}
		if !s.State.Ended() {
			s = store.Step{Kind: s.Kind, Feature: s.Feature, Reason: s.Reason, State: store.StepPending}
			fresh.State = store.StepPending
		}
		steps = append(steps, s)
	}
	if fresh.State == store.StepUnchanged && slices.ContainsFunc(steps, func(s store.Step) bool { return s.State == store.StepSucceeded }) {
		fresh.State = store.StepSucceeded // only that could not be recorded any more
	}
	fresh.Steps = append(steps, fresh.Steps...)
	slices.SortStableFunc(fresh.Steps, func(a, b store.Step) int { return cmp.Compare(a.Kind, b.Kind) })
	return fresh
}

// fail ends every container that was not ended.
func (r *run) fail(cause error) {
	why := "the run could not be taken up again: " + cause.Error()
	if errors.Is(cause, errCanceled) {
		why = "not finished: the run was canceled"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.record = abandon(r.record, store.RunRunning, why)
	r.record.Ended = time.Time{}
}
