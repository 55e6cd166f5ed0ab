package server

import (
	"fmt"
	"slices"
	"strings"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/plan"
)

// judge compares the desired state of a container with what the nodes report about it. The nodes are those configured.
func judge(want fleet.Container, nodes []string, found []*typev1.Container, unreachable []*typev1.NodeError, run string) *controllerv1.ContainerStatus {
	st := &controllerv1.ContainerStatus{Desired: fleetContainerProto(want), Run: run}
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
	addDrift(st, confDrift(want, st.Observed)...)
	addDrift(st, effectiveDrift(st.Observed)...)
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

// confDrift compares the conf with the fleet file.
func confDrift(want fleet.Container, c *typev1.Container) (drift []string) {
	if want.Node != "" && want.Node != c.GetNode() {
		drift = append(drift, fmt.Sprintf("it is on node %s; the fleet file wants it on %s", c.GetNode(), want.Node))
	}
	configured, mode := gpuIndexes(c.GetConfigured()), c.GetConfigured().GetMode()
	switch devices := c.GetConfigured().GetDevices(); {
	case !slices.Equal(configured, want.GPUs):
		drift = append(drift, fmt.Sprintf("its conf gives %s; the fleet file assigns %s", gpuText(configured), gpuText(want.GPUs)))
	case len(want.GPUs) == 0 && len(devices) > 0:
		paths := strings.Join(convert(devices, (*typev1.Device).GetPath), ", ")
		drift = append(drift, fmt.Sprintf("its conf gives %s; the fleet file assigns no GPU", paths))
	}
	if len(want.GPUs) > 0 && mode != typev1.PassthroughMode_PASSTHROUGH_MODE_UNSPECIFIED && mode != modeProto(want.Mode) {
		drift = append(drift, fmt.Sprintf("its conf gives the devices in %s mode; the fleet file says %s", modeText(mode), want.Mode))
	}
	for _, p := range node.Container(c).Problems {
		if plan.Mendable(p) {
			drift = append(drift, "its conf: "+p.Message)
		}
	}
	return drift
}

// effectiveDrift compares what the running container has with its conf.
func effectiveDrift(c *typev1.Container) []string {
	if !c.GetRestartPending() {
		return nil
	}
	configured, effective := gpuIndexes(c.GetConfigured()), gpuIndexes(c.GetEffective())
	if slices.Equal(configured, effective) {
		return []string{"a restart is pending: what it has differs from its conf in devices that GPUs share, or in their numbers"}
	}
	return []string{fmt.Sprintf("a restart is pending: it has %s; its conf gives %s", gpuText(effective), gpuText(configured))}
}

func gpuIndexes(p *typev1.Passthrough) []int {
	return convert(p.GetGpus(), func(g *typev1.GpuRef) int { return int(g.GetIndex()) })
}

func gpuText(indexes []int) string {
	if len(indexes) == 0 {
		return "no GPU"
	}
	var texts []string
	for _, i := range indexes {
		if i < 0 {
			texts = append(texts, "one that is gone")
		} else {
			texts = append(texts, fmt.Sprint(i))
		}
	}
	if len(texts) == 1 {
		return "GPU " + texts[0]
	}
	return "GPUs " + strings.Join(texts, ", ")
}

func modeText(m typev1.PassthroughMode) string {
	return strings.ToLower(strings.TrimPrefix(m.String(), "PASSTHROUGH_MODE_"))
}

func stateText(s typev1.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_STATE_"))
}

func nodeNames(errs []*typev1.NodeError) string {
	return strings.Join(convert(errs, (*typev1.NodeError).GetNode), ", ")
}
