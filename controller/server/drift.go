package server

import (
	"fmt"
	"slices"
	"strings"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

// A comparison has what there is to judge one container by.
type comparison struct {
	want        fleet.Container
	assigned    plan.Assigned // what its assignment comes to
	located     bool          // whether that could be told, or there is no assignment
	nodes       []string      // those configured
	observed    *observed.Fleet
	found       []*typev1.Container // what the nodes report about it
	unreachable []*typev1.NodeError
}

// judge compares the desired state of the container with what the nodes report about it. run is the one that works on it.
func (b comparison) judge(run string) *controllerv1.ContainerStatus {
	want, nodes, found, unreachable := b.want, b.nodes, b.found, b.unreachable
	st := &controllerv1.ContainerStatus{
		Desired: fleetContainerProto(want), Run: run,
		DesiredGpus: convert(b.assigned.GPUs, refProto), GpuMoved: len(b.assigned.Moved) > 0,
	}
	switch {
	case len(found) == 0 && mayBeOn(want.Node, unreachable):
		st.State = controllerv1.SyncState_SYNC_STATE_UNKNOWN
		st.Drift = []string{fmt.Sprintf("no node that answers has it; %s did not answer", nodeNames(unreachable))}
		return st
	case len(found) == 0 && want.Node != "" && !slices.Contains(nodes, want.Node):
		st.State = controllerv1.SyncState_SYNC_STATE_MISSING
		st.Drift = []string{fmt.Sprintf("the fleet file puts it on node %s, which is not configured; configured: %s", want.Node, strings.Join(nodes, ", "))}
		return st
	case len(found) == 0:
		st.State = controllerv1.SyncState_SYNC_STATE_MISSING
		st.Drift = []string{"no node has it; create it, or take it out of the fleet file"}
		return st
	}
	st.State = controllerv1.SyncState_SYNC_STATE_IN_SYNC
	if run != "" {
		st.State = controllerv1.SyncState_SYNC_STATE_IN_PROGRESS
	}
	st.Observed = found[0]
	for _, c := range found {
		if c.GetNode() == want.Node {
			st.Observed = c
		}
	}
	if len(found) > 1 {
		var names []string
		for _, c := range found {
			names = append(names, c.GetNode())
		}
		addDrift(st, fmt.Sprintf("nodes %s all have a container with this CTID; shown is that of %s",
			strings.Join(names, ", "), st.Observed.GetNode()))
	}
	addDrift(st, b.confDrift(st.Observed)...)
	addDrift(st, effectiveDrift(b.node(st.Observed), st.Observed)...)
	return st
}

// mayBeOn reports whether a container may be on a node that does not answer; name is the node it must be on, if any.
func mayBeOn(name string, unreachable []*typev1.NodeError) bool {
	return slices.ContainsFunc(unreachable, func(n *typev1.NodeError) bool { return name == "" || n.GetNode() == name })
}

// addDrift adds differences to a status. While a run works on the container they are no drift.
func addDrift(st *controllerv1.ContainerStatus, sentences ...string) {
	if len(sentences) == 0 {
		return
	}
	st.Drift = append(st.Drift, sentences...)
	if st.GetState() == controllerv1.SyncState_SYNC_STATE_IN_SYNC {
		st.State = controllerv1.SyncState_SYNC_STATE_DRIFT
	}
}

// node returns the node of a container as observed.
func (b comparison) node(c *typev1.Container) *observed.Node {
	i := slices.IndexFunc(b.observed.Nodes, func(n observed.Node) bool { return n.Name == c.GetNode() })
	return &b.observed.Nodes[i]
}

// confDrift compares the conf with the fleet file.
func (b comparison) confDrift(c *typev1.Container) (drift []string) {
	want := b.want
	if want.Node != "" && want.Node != c.GetNode() {
		drift = append(drift, fmt.Sprintf("it is on node %s; the fleet file wants it on %s", c.GetNode(), want.Node))
	}
	seen := node.Container(c)
	configured := b.node(c).Full(seen.Configured.GPUs)
	assigned, known := b.gpus()
	drift = append(drift, b.assigned.Errors...)
	switch devices := seen.Configured.Devices; {
	case !known:
	case !observed.Equal(configured, assigned):
		drift = append(drift, fmt.Sprintf("its conf gives %s; the fleet file assigns %s", observed.Names(configured), observed.Names(assigned)))
	case len(want.GPUs) == 0 && len(devices) > 0:
		drift = append(drift, fmt.Sprintf("its conf gives %s; the fleet file assigns no GPU", strings.Join(devices, ", ")))
	case len(want.GPUs) > 0 && len(seen.Configured.Capabilities) > 0 && !slices.Equal(seen.Configured.Capabilities, want.Capabilities):
		drift = append(drift, fmt.Sprintf("its conf gives devices for %s; the fleet file says %s",
			strings.Join(seen.Configured.Capabilities, ", "), strings.Join(want.Capabilities, ", ")))
	}
	if mode := seen.Configured.Mode; len(want.GPUs) > 0 && mode != observed.ModeNone && string(mode) != want.Mode {
		drift = append(drift, fmt.Sprintf("its conf gives the devices in %s mode; the fleet file says %s", mode, want.Mode))
	}
	for _, p := range seen.Problems {
		if plan.Mendable(p) {
			drift = append(drift, "its conf: "+p.Message)
		}
	}
	return drift
}

// gpus returns what the container is to have, if that is known: where it is not located indexes say enough.
func (b comparison) gpus() (gpus []observed.Ref, known bool) {
	if b.located || len(b.want.GPUs) == 0 {
		return b.assigned.GPUs, len(b.assigned.Errors) == 0
	}
	for _, s := range b.want.GPUs {
		if s.Kind != fleet.ByIndex {
			return nil, false
		}
		gpus = append(gpus, observed.Ref{Index: s.Index})
	}
	return gpus, true
}

// effectiveDrift compares what the running container has with its conf.
func effectiveDrift(n *observed.Node, c *typev1.Container) []string {
	if !c.GetRestartPending() {
		return nil
	}
	seen := node.Container(c)
	configured, effective := n.Full(seen.Configured.GPUs), []observed.Ref(nil)
	if seen.Effective != nil {
		effective = n.Full(seen.Effective.GPUs)
	}
	if observed.Equal(configured, effective) {
		return []string{"a restart is pending: what it has differs from its conf in devices that GPUs share, or in their numbers"}
	}
	return []string{fmt.Sprintf("a restart is pending: it has %s; its conf gives %s", observed.Names(effective), observed.Names(configured))}
}

func stateText(s typev1.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_STATE_"))
}

func nodeNames(errs []*typev1.NodeError) string {
	return strings.Join(convert(errs, (*typev1.NodeError).GetNode), ", ")
}
