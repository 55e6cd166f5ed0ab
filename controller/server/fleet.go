package server

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

type fleetService struct {
	API
	controllerv1.UnimplementedFleetServiceServer
}

func (s *fleetService) ValidateFleet(_ context.Context, req *controllerv1.ValidateFleetRequest) (*controllerv1.ValidateFleetResponse, error) {
	if n := len(req.GetName()); n > maxNameBytes {
		return nil, &FieldError{Field: "name", Message: fmt.Sprintf("%d bytes; a name has at most %d", n, maxNameBytes)}
	}
	var f *fleet.Fleet
	var findings []fleet.Finding
	switch content := req.GetContent(); {
	case len(content) > maxFleetBytes:
		return nil, &LimitError{Limit: "bytes in a fleet file", Max: maxFleetBytes}
	case len(content) > 0 || req.GetName() != "": // a file with a name may be empty
		name := req.GetName()
		if name == "" {
			name = "fleet file"
		}
		f, findings = fleet.Parse(name, content)
	default:
		var err error
		if f, findings, err = s.Engine.LoadFleet(); err != nil {
			return nil, err
		}
	}
	return &controllerv1.ValidateFleetResponse{
		Findings:   convert(findings, findingProto),
		Valid:      fleet.Valid(findings),
		Containers: convert(f.Containers, fleetContainerProto),
	}, nil
}

func (s *fleetService) GetFleet(context.Context, *controllerv1.GetFleetRequest) (*controllerv1.GetFleetResponse, error) {
	f, findings, err := s.Engine.LoadFleet()
	if err != nil {
		return nil, err
	}
	return &controllerv1.GetFleetResponse{
		Path: f.Path, Sha256: f.SHA256, Containers: convert(f.Containers, fleetContainerProto),
		Findings: convert(findings, findingProto),
	}, nil
}

func (s *fleetService) GetStatus(ctx context.Context, req *controllerv1.GetStatusRequest) (*controllerv1.GetStatusResponse, error) {
	if err := checkCTIDs(req.GetCtids()); err != nil {
		return nil, err
	}
	f, err := s.fleet()
	if err != nil {
		return nil, err
	}
	wanted, err := choose(f, req.GetCtids())
	if err != nil {
		return nil, err
	}
	runs := s.Engine.Active()
	found, o, unreachable, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	assigned := plan.Assign(f, o, plan.Options{})
	maps.Copy(runs, s.Engine.Active()) // what a run was changing at the time of the look is no drift either
	resp := &controllerv1.GetStatusResponse{Unreachable: unreachable}
	for _, c := range wanted {
		b := comparison{want: c, nodes: s.Nodes.Names(), observed: o, found: having(found, c.CTID), unreachable: unreachable}
		b.assigned, b.located = assigned[c.CTID]
		resp.Containers = append(resp.Containers, b.judge(runs[c.CTID]))
	}
	if req.GetProbe() {
		s.probeAll(ctx, wanted, assigned, resp.Containers)
	}
	for _, c := range found {
		if f.Container(c.GetCtid()) == nil && len(c.GetConfigured().GetDevices()) > 0 {
			resp.Unmanaged = append(resp.Unmanaged, c)
		}
	}
	return resp, nil
}

// look asks every node for its containers, which are returned by CTID and node, and its devices.
func (s *fleetService) look(ctx context.Context) ([]*typev1.Container, *observed.Fleet, []*typev1.NodeError, error) {
	type answer struct {
		containers []*typev1.Container
		node       observed.Node
	}
	answers, unreachable, err := ask(ctx, s.API, "", func(ctx context.Context, n *node.Node) (answer, error) {
		var devices *agentv1.ListDevicesResponse
		var containers *agentv1.ListContainersResponse
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() (err error) {
			devices, err = n.Devices().ListDevices(ctx, &agentv1.ListDevicesRequest{})
			return err
		})
		group.Go(func() (err error) {
			containers, err = n.Containers().ListContainers(ctx, &agentv1.ListContainersRequest{})
			return err
		})
		err := group.Wait()
		for _, c := range containers.GetContainers() {
			c.Node = n.Name() // the name that callers can use here
		}
		return answer{
			containers.GetContainers(),
			node.Observed(n.Name(), devices.GetDevices(), containers.GetContainers(), containers.GetVmIds()),
		}, err
	})
	o := &observed.Fleet{}
	var found []*typev1.Container
	for _, a := range answers {
		found = append(found, a.containers...)
		o.Nodes = append(o.Nodes, a.node)
	}
	sortContainers(found)
	return found, o, unreachable, err
}

// choose returns the containers with these CTIDs, or all, by CTID.
func choose(f *fleet.Fleet, ctids []int32) ([]fleet.Container, error) {
	if len(ctids) == 0 {
		return f.Containers, nil
	}
	var chosen []fleet.Container
	for _, ctid := range slices.Compact(slices.Sorted(slices.Values(ctids))) {
		c := f.Container(ctid)
		if c == nil {
			return nil, &engine.NotInFleetError{CTID: ctid, Path: f.Path}
		}
		chosen = append(chosen, *c)
	}
	return chosen, nil
}

// containers lists the containers of all nodes, or of one, by CTID and node.
func (a API) containers(ctx context.Context, only string) ([]*typev1.Container, []*typev1.NodeError, error) {
	lists, unreachable, err := ask(ctx, a, only, func(ctx context.Context, n *node.Node) ([]*typev1.Container, error) {
		resp, err := n.Containers().ListContainers(ctx, &agentv1.ListContainersRequest{})
		for _, c := range resp.GetContainers() {
			c.Node = n.Name() // the name that callers can use here
		}
		return resp.GetContainers(), err
	})
	found := slices.Concat(lists...)
	sortContainers(found)
	return found, unreachable, err
}

// sortContainers sorts by CTID, and leaves those of several nodes in their order.
func sortContainers(all []*typev1.Container) {
	slices.SortStableFunc(all, func(a, b *typev1.Container) int { return int(a.GetCtid()) - int(b.GetCtid()) })
}

// having returns those of the sorted containers that have this CTID.
func having(sorted []*typev1.Container, ctid int32) []*typev1.Container {
	first, _ := slices.BinarySearchFunc(sorted, ctid, func(c *typev1.Container, ctid int32) int { return int(c.GetCtid() - ctid) })
	end := first
	for end < len(sorted) && sorted[end].GetCtid() == ctid {
		end++
	}
	return sorted[first:end]
}

// probeAll probes each container that runs and adds what it finds. statuses[i] is the status of wanted[i].
func (s *fleetService) probeAll(ctx context.Context, wanted []fleet.Container, assigned map[int32]plan.Assigned, statuses []*controllerv1.ContainerStatus) {
	perNode(len(statuses), func(i int) string { return statuses[i].GetObserved().GetNode() }, func(i int) {
		st := statuses[i]
		if state := st.GetObserved().GetState(); state != typev1.ContainerState_CONTAINER_STATE_RUNNING {
			st.ProbeError = "it is " + stateText(state)
			return
		}
		drift, err := s.probe(ctx, wanted[i].CTID, assigned[wanted[i].CTID].GPUs, st)
		if err != nil {
			st.ProbeError = err.Error()
		}
		addDrift(st, drift...)
	})
}

// probe probes a running container and says in what the result differs from what the container is to have.
func (s *fleetService) probe(ctx context.Context, ctid int32, assigned []observed.Ref, st *controllerv1.ContainerStatus) (drift []string, err error) {
	n, err := s.Nodes.Node(st.GetObserved().GetNode())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	resp, err := n.Containers().Probe(ctx, &agentv1.ProbeRequest{Ctid: ctid, Instance: st.GetObserved().GetInstance()})
	if err != nil {
		return nil, err
	}
	st.Probe = resp.GetResults()
	results := node.Probes(st.GetProbe())
	sandbox := false
	if slices.ContainsFunc(results, func(r node.Probed) bool { return r.Outcome == node.NoDriver }) {
		version, err := n.PVEVersion(ctx)
		if err != nil {
			return nil, err
		}
		sandbox = engine.Sandbox(version)
	}
	return engine.Judge(results, toHave(assigned, st), sandbox), nil
}

// toHave returns the GPUs that the running container is to have: those assigned. If drift has been told already they are
// those that it was started with, or each device would tell of the same drift again.
func toHave(assigned []observed.Ref, st *controllerv1.ContainerStatus) []observed.Ref {
	if len(st.GetDrift()) == 0 || st.GetObserved().GetEffective() == nil {
		return assigned
	}
	gpus := node.Container(st.GetObserved()).Effective.GPUs
	if slices.ContainsFunc(gpus, func(r observed.Ref) bool { return r.Index < 0 }) {
		return assigned
	}
	return gpus
}
