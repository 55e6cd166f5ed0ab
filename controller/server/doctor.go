package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/doctor"
	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

type doctorService struct {
	API
	controllerv1.UnimplementedDoctorServiceServer
}

func (s *doctorService) Diagnose(ctx context.Context, req *controllerv1.DiagnoseRequest) (*controllerv1.DiagnoseResponse, error) {
	if err := checkCTIDs(req.GetCtids()); err != nil {
		return nil, err
	}
	f, err := s.fleet()
	if err != nil {
		return nil, err
	}
	w, err := s.ward(ctx, f)
	if err != nil {
		return nil, err
	}
	ctids := slices.Compact(slices.Sorted(slices.Values(req.GetCtids())))
	everybody := len(ctids) == 0
	if everybody {
		ctids = w.patients()
	}
	facts := make([]doctor.Facts, len(ctids))
	for i, ctid := range ctids {
		facts[i] = w.facts(ctid)
	}
	perNode(len(facts), func(i int) string {
		if facts[i].Container == nil || facts[i].Container.State != "running" {
			return ""
		}
		return facts[i].Node.Name
	}, func(i int) { s.lookInside(ctx, &facts[i], w.instance(facts[i])) })

	resp := &controllerv1.DiagnoseResponse{Healthy: true}
	for _, f := range facts {
		d := doctor.Examine(f)
		_, broken := d.Cause()
		if broken && !(everybody && d.Stopped) {
			resp.Healthy = false
		}
		resp.Containers = append(resp.Containers, diagnosisProto(d))
	}
	if everybody {
		resp.Nodes = w.nodeFindings()
		for _, n := range resp.Nodes {
			if n.GetFinding().GetSeverity() == controllerv1.Severity_SEVERITY_ERROR {
				resp.Healthy = false
			}
		}
	}
	return resp, nil
}

// A ward is what one round of questions has told about the fleet.
type ward struct {
	fleet      *fleet.Fleet
	nodes      []nodeFacts
	away       []doctor.Away
	containers []*typev1.Container // by CTID and node
	assigned   map[int32]plan.Assigned
}

// nodeFacts are one node's answers.
type nodeFacts struct {
	node       *doctor.Node
	observed   observed.Node
	containers []*typev1.Container
}

// ward asks every node, all at once.
func (s *doctorService) ward(ctx context.Context, f *fleet.Fleet) (*ward, error) {
	nodes, unreachable, err := ask(ctx, s.API, "", func(ctx context.Context, n *node.Node) (nodeFacts, error) {
		info, err := n.Info().GetNode(ctx, &agentv1.GetNodeRequest{})
		if err != nil {
			return nodeFacts{}, err
		}
		devices, err := n.Devices().ListDevices(ctx, &agentv1.ListDevicesRequest{})
		if err != nil {
			return nodeFacts{}, err
		}
		containers, err := n.Containers().ListContainers(ctx, &agentv1.ListContainersRequest{})
		if err != nil {
			return nodeFacts{}, err
		}
		for _, c := range containers.GetContainers() {
			c.Node = n.Name() // the name that callers can use here
		}
		facts := nodeFacts{
			doctorNode(n.Name(), info.GetNode(), devices.GetDevices()),
			node.Observed(n.Name(), devices.GetDevices(), containers.GetContainers(), containers.GetVmIds()),
			containers.GetContainers(),
		}
		if versions, err := n.Drivers().GetDriver(ctx, &agentv1.GetDriverRequest{DiskVersion: true}); err == nil { // an older agent cannot tell
			facts.node.Disk, facts.node.Library = versions.GetNode().GetDiskVersion(), versions.GetNode().GetLibraryVersion()
		}
		return facts, nil
	})
	if err != nil {
		return nil, err
	}
	w := &ward{fleet: f, nodes: nodes}
	o := &observed.Fleet{}
	for _, n := range nodes {
		w.containers = append(w.containers, n.containers...)
		o.Nodes = append(o.Nodes, n.observed)
	}
	w.assigned = plan.Assign(f, o, plan.Options{})
	slices.SortStableFunc(w.containers, func(a, b *typev1.Container) int { return int(a.GetCtid()) - int(b.GetCtid()) })
	for _, u := range unreachable {
		w.away = append(w.away, doctor.Away{Node: u.GetNode(), Message: u.GetMessage()})
	}
	return w, nil
}

// patients are the containers of the fleet file, and those others that have GPUs, by CTID.
func (w *ward) patients() []int32 {
	var ctids []int32
	for _, c := range w.fleet.Containers {
		ctids = append(ctids, c.CTID)
	}
	for _, c := range w.containers {
		if len(c.GetConfigured().GetDevices()) > 0 {
			ctids = append(ctids, c.GetCtid())
		}
	}
	slices.Sort(ctids)
	return slices.Compact(ctids)
}

// facts are what is known about one container from outside.
func (w *ward) facts(ctid int32) doctor.Facts {
	f := doctor.Facts{CTID: ctid, Fleet: "the fleet file", Away: w.away}
	var chosen *typev1.Container
	for _, c := range having(w.containers, ctid) {
		f.On = append(f.On, c.GetNode())
		if wish := w.fleet.Container(ctid); chosen == nil || wish != nil && c.GetNode() == wish.Node {
			chosen = c
		}
	}
	if chosen == nil {
		f.Wish = doctorWish(w.fleet, ctid, nil, w.assigned[ctid])
		return f
	}
	found := node.Container(chosen)
	f.Wish = doctorWish(w.fleet, ctid, &found, w.assigned[ctid])
	f.Container = doctorContainer(chosen)
	i := slices.IndexFunc(w.nodes, func(n nodeFacts) bool { return n.node.Name == chosen.GetNode() })
	f.Node = w.nodes[i].node
	return f
}

// instance is the start of the container that was observed.
func (w *ward) instance(f doctor.Facts) string {
	for _, c := range having(w.containers, f.CTID) {
		if c.GetNode() == f.Node.Name {
			return c.GetInstance()
		}
	}
	return ""
}

func (w *ward) nodeFindings() []*controllerv1.NodeFinding {
	var out []*controllerv1.NodeFinding
	for _, a := range w.away {
		out = append(out, &controllerv1.NodeFinding{Node: a.Node, Finding: doctorFindingProto(doctor.ExamineAway(a))})
	}
	for _, n := range w.nodes {
		for _, f := range doctor.ExamineNode(n.node) {
			out = append(out, &controllerv1.NodeFinding{Node: n.node.Name, Finding: doctorFindingProto(f)})
		}
	}
	slices.SortStableFunc(out, func(a, b *controllerv1.NodeFinding) int { return strings.Compare(a.GetNode(), b.GetNode()) })
	return out
}

// verifyTimeout is the time for nvidia-smi and cuInit: without a persistence daemon each GPU takes seconds.
const verifyTimeout = 60 * time.Second

// lookInside asks the agent what can only be seen in the running container.
func (s *doctorService) lookInside(ctx context.Context, f *doctor.Facts, instance string) {
	n, err := s.Nodes.Node(f.Node.Name)
	if err != nil {
		f.Probe = &doctor.Probe{Err: err.Error()}
		return
	}
	probing, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	probe, err := n.Containers().Probe(probing, &agentv1.ProbeRequest{Ctid: f.CTID, Instance: instance})
	f.Probe = doctorProbe(probe, err)
	uuids := f.UUIDs()
	if err != nil || uuids == nil {
		return
	}
	if f.Docker.Config = s.file(probing, n, f.CTID, doctor.DockerConfig); f.Docker.Config != "" {
		f.Docker.CDI = s.file(probing, n, f.CTID, doctor.CDISpec)
	}
	driver, err := n.Drivers().GetDriver(probing, &agentv1.GetDriverRequest{Ctid: f.CTID})
	f.Driver = doctorUserDriver(driver.GetContainer(), err)
	if !f.WorthVerifying() {
		return
	}
	verifying, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	check, err := n.Drivers().VerifyDriver(verifying, &agentv1.VerifyDriverRequest{Ctid: f.CTID, Instance: instance, Uuids: uuids})
	f.Check = doctorCheck(check.GetCheck(), err)
}

// maxLooked bounds what is read of one file in a container.
const maxLooked = 256 << 10

// file reads the beginning of a file in a container; empty if there is none, or it cannot be read.
func (s *doctorService) file(ctx context.Context, n *node.Node, ctid int32, path string) string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := n.Files().Pull(ctx, &agentv1.PullRequest{Pull: &typev1.FilePull{Ctid: ctid, Path: path}})
	if err != nil {
		return ""
	}
	var text []byte
	for len(text) < maxLooked {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return ""
		}
		text = append(text, m.GetOutput().GetData()...)
	}
	return string(text)
}
