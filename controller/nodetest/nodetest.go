// Package nodetest is agents for tests: the agent's API over real mutual TLS on the loopback interface, in front of
// containers that exist in memory only. A patch changes what a container is configured to have, a restart brings that
// into force, and a probe opens what is in force.
package nodetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
)

// An Agent is the agent of one pretended node. Its fields may be set before Start.
type Agent struct {
	agentv1.UnimplementedNodeServiceServer
	agentv1.UnimplementedDeviceServiceServer
	agentv1.UnimplementedContainerServiceServer
	agentv1.UnimplementedExecServiceServer

	Name string
	GPUs int // how many the node has; GPU i has minor i
	// PVEVersion is that of the node; one with "sandbox" in it tells that no driver stands behind the devices.
	PVEVersion string
	// Probed replaces what a probe of a running container finds.
	Probed func(*typev1.Container) []*typev1.ProbeResult
	// OnExec replaces the command, which copies its stdin to its stdout and exits with the status 7.
	OnExec func(agentv1.ExecService_ExecServer) error
	// Fail makes calls fail, by the name of the RPC.
	Fail map[string]error
	// Hold makes restarts wait until it is closed, if it is not nil.
	Hold chan struct{}

	stop       func()
	mu         sync.Mutex
	containers map[int32]*typev1.Container
	calls      []string
	actedFor   []string
	starts     int
}

// Start serves the agent until the test ends and returns its address.
func (a *Agent) Start(t testing.TB, ca *pkitest.CA) (address string) {
	t.Helper()
	c, err := ca.Issue(t, pkitest.Leaf{Name: a.Name, Purposes: []pki.Purpose{pki.Serve}}).Load(pki.Serve)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(c.Server())))
	agentv1.RegisterNodeServiceServer(s, a)
	agentv1.RegisterDeviceServiceServer(s, a)
	agentv1.RegisterContainerServiceServer(s, a)
	agentv1.RegisterExecServiceServer(s, a)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	a.stop = sync.OnceFunc(func() {
		s.Stop()
		// A test may end before the server has begun to serve.
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("agent %s: %v", a.Name, err)
		}
	})
	t.Cleanup(a.stop)
	return l.Addr().String()
}

// Stop ends the agent before the test does: nothing listens at its address any more.
func (a *Agent) Stop() { a.stop() }

// Add adds a container that has the GPUs by its conf and, if it runs, in force.
func (a *Agent) Add(ctid int32, running bool, gpus ...int32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers == nil {
		a.containers = map[int32]*typev1.Container{}
	}
	c := &typev1.Container{
		Ctid: ctid, Node: a.Name, State: typev1.ContainerState_CONTAINER_STATE_STOPPED, Digest: "0",
		Configured: passthrough(gpus, typev1.PassthroughMode_PASSTHROUGH_MODE_RAW),
	}
	a.containers[ctid] = c
	if running {
		a.startLocked(c)
	}
}

// Change changes a container.
func (a *Agent) Change(ctid int32, change func(*typev1.Container)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a.containers[ctid])
}

// Migrate moves a container as it is.
func (a *Agent) Migrate(ctid int32, to *Agent) {
	a.mu.Lock()
	c := a.containers[ctid]
	delete(a.containers, ctid)
	a.mu.Unlock()
	to.mu.Lock()
	defer to.mu.Unlock()
	if to.containers == nil {
		to.containers = map[int32]*typev1.Container{}
	}
	c.Node = to.Name
	to.containers[ctid] = c
}

// Calls returns the calls that change something or start a process, in their order: "Restart 901".
func (a *Agent) Calls() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls)
}

// ActedFor returns who the calls that change something named as the one they were made for, in their order:
// "Restart ann".
func (a *Agent) ActedFor() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.actedFor)
}

func (a *Agent) startLocked(c *typev1.Container) {
	a.starts++
	c.State = typev1.ContainerState_CONTAINER_STATE_RUNNING
	c.Effective = proto.CloneOf(c.Configured)
	c.RestartPending = false
	c.Instance = fmt.Sprintf("boot:%d", a.starts)
}

func passthrough(gpus []int32, mode typev1.PassthroughMode) *typev1.Passthrough {
	p := &typev1.Passthrough{}
	for _, i := range slices.Sorted(slices.Values(gpus)) {
		p.Mode = mode
		p.Gpus = append(p.Gpus, &typev1.GpuRef{Index: i, Minor: i, Uuid: uuid(int(i))})
		p.Devices = append(p.Devices, &typev1.Device{Path: device(int(i)), Major: 195, Minor: i})
	}
	if len(gpus) > 0 {
		for _, path := range shared {
			p.Devices = append(p.Devices, &typev1.Device{Path: path, Major: -1, Minor: -1})
		}
	}
	return p
}

// shared are the devices that every GPU needs besides its own.
var shared = []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"}

func uuid(i int) string   { return fmt.Sprintf("GPU-%08d-0000-0000-0000-000000000000", i) }
func device(i int) string { return fmt.Sprintf("/dev/nvidia%d", i) }

// A Failure is what a real agent answers: a status with an ErrorInfo.
func Failure(code codes.Code, reason, message string, metadata map[string]string) error {
	s, err := status.New(code, message).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "phoenix.internal", Metadata: metadata})
	if err != nil {
		panic(err) // only if the details are no proto message
	}
	return s.Err()
}

func notFound(ctid int32) error {
	return Failure(codes.NotFound, "CONTAINER_NOT_FOUND", fmt.Sprintf("CTID %d: no such container", ctid),
		map[string]string{"ctid": fmt.Sprint(ctid)})
}

// GetNode implements the agent's API, as do the following methods.
func (a *Agent) GetNode(context.Context, *agentv1.GetNodeRequest) (*agentv1.GetNodeResponse, error) {
	return &agentv1.GetNodeResponse{Node: &typev1.Node{Name: a.Name, PveVersion: a.PVEVersion, DriverVersion: "580.105.08", Quorate: true}}, a.Fail["GetNode"]
}

// ListDevices returns GPUs that are all bound to the nvidia driver.
func (a *Agent) ListDevices(context.Context, *agentv1.ListDevicesRequest) (*agentv1.ListDevicesResponse, error) {
	d := &typev1.NodeDevices{Node: a.Name, DriverVersion: "580.105.08"}
	for i := range a.GPUs {
		d.Gpus = append(d.Gpus, &typev1.Gpu{
			Index: int32(i), Minor: proto.Int32(int32(i)), Uuid: uuid(i), PciAddress: fmt.Sprintf("0000:%02x:00.0", i+1),
			Driver: typev1.GpuDriver_GPU_DRIVER_NVIDIA,
		})
	}
	return &agentv1.ListDevicesResponse{Devices: d}, a.Fail["ListDevices"]
}

// PrepareDevices finds everything as it should be.
func (a *Agent) PrepareDevices(context.Context, *agentv1.PrepareDevicesRequest) (*agentv1.PrepareDevicesResponse, error) {
	a.called("PrepareDevices", 0)
	return &agentv1.PrepareDevicesResponse{}, a.Fail["PrepareDevices"]
}

// ListContainers returns all, by CTID.
func (a *Agent) ListContainers(context.Context, *agentv1.ListContainersRequest) (*agentv1.ListContainersResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	resp := &agentv1.ListContainersResponse{}
	for _, ctid := range slices.Sorted(maps.Keys(a.containers)) {
		resp.Containers = append(resp.Containers, proto.CloneOf(a.containers[ctid]))
	}
	return resp, a.Fail["ListContainers"]
}

// GetContainer returns a container with a conf that says which GPUs it has.
func (a *Agent) GetContainer(_ context.Context, req *agentv1.GetContainerRequest) (*agentv1.GetContainerResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[req.GetCtid()]
	if c == nil {
		return nil, notFound(req.GetCtid())
	}
	resp := &agentv1.GetContainerResponse{Container: proto.CloneOf(c), Conf: conf(c.GetConfigured())}
	if req.GetIncludeEffectiveEntries() && c.GetEffective() != nil {
		resp.EffectiveEntries = []*typev1.ConfEntry{{Key: "lxc.uts.name", Value: fmt.Sprintf("ct%d", c.GetCtid())}}
	}
	return resp, a.Fail["GetContainer"]
}

func conf(p *typev1.Passthrough) []byte {
	var b strings.Builder
	b.WriteString("memory: 512\n")
	for _, d := range p.GetDevices() {
		fmt.Fprintf(&b, "device: %s\n", d.GetPath())
	}
	return []byte(b.String())
}

// PatchConf knows SetPassthrough of whole GPUs, and keeps the record.
func (a *Agent) PatchConf(_ context.Context, req *agentv1.PatchConfRequest) (*agentv1.PatchConfResponse, error) {
	if !req.GetDryRun() {
		a.called("PatchConf", req.GetCtid())
		a.named("PatchConf", req.GetOnBehalfOf())
	}
	if err := a.Fail["PatchConf"]; err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[req.GetCtid()]
	if c == nil {
		return nil, notFound(req.GetCtid())
	}
	set := req.GetOperations()[0].GetSetPassthrough()
	var gpus []int32
	record := &typev1.Applied{Assignment: set.GetAssignment(), Mode: set.GetMode(), Capabilities: set.GetCapabilities()}
	for _, g := range set.GetGpus() {
		i := int(g.GetIndex())
		for g.GetUuid() != "" && i < a.GPUs && uuid(i) != g.GetUuid() {
			i++
		}
		gpus = append(gpus, int32(i))
		record.Gpus = append(record.Gpus, &typev1.AppliedGpu{Index: int32(i), Uuid: uuid(i)})
	}
	after := passthrough(gpus, set.GetMode())
	resp := &agentv1.PatchConfResponse{
		Changed: !proto.Equal(c.Configured, after), Before: conf(c.Configured), After: conf(after), Digest: c.GetDigest() + "1",
	}
	if req.GetDryRun() {
		return resp, nil
	}
	c.Configured, c.Applied, c.Digest = after, record, resp.GetDigest()
	c.RestartPending = c.GetEffective() != nil && !proto.Equal(c.GetConfigured(), c.GetEffective())
	return resp, nil
}

// ListRevisions returns one revision.
func (a *Agent) ListRevisions(context.Context, *agentv1.ListRevisionsRequest) (*agentv1.ListRevisionsResponse, error) {
	return &agentv1.ListRevisionsResponse{Revisions: []*typev1.Revision{{Revision: 1, Who: "ann"}}}, a.Fail["ListRevisions"]
}

// GetRevision knows revision 1.
func (a *Agent) GetRevision(_ context.Context, req *agentv1.GetRevisionRequest) (*agentv1.GetRevisionResponse, error) {
	if req.GetRevision() != 1 {
		return nil, Failure(codes.NotFound, "REVISION_NOT_FOUND", "no such revision", map[string]string{"revision": fmt.Sprint(req.GetRevision())})
	}
	return &agentv1.GetRevisionResponse{Revision: &typev1.Revision{Revision: 1, Who: "ann"}, Conf: []byte("memory: 256\n")}, nil
}

// RestoreRevision shows the request_id in the answer.
func (a *Agent) RestoreRevision(_ context.Context, req *agentv1.RestoreRevisionRequest) (*agentv1.RestoreRevisionResponse, error) {
	a.called("RestoreRevision", req.GetCtid())
	a.named("RestoreRevision", req.GetOnBehalfOf())
	return &agentv1.RestoreRevisionResponse{After: []byte("memory: 256\n"), Digest: "restored for " + req.GetRequestId()}, a.Fail["RestoreRevision"]
}

// Restart starts the container with what is configured.
func (a *Agent) Restart(req *agentv1.RestartRequest, s agentv1.ContainerService_RestartServer) error {
	a.called("Restart", req.GetCtid())
	a.named("Restart", req.GetOnBehalfOf())
	if err := s.Send(progress(typev1.RestartPhase_RESTART_PHASE_SHUTTING_DOWN, nil)); err != nil {
		return err
	}
	if err := a.Fail["Restart"]; err != nil {
		return err
	}
	if a.Hold != nil {
		select {
		case <-a.Hold:
		case <-s.Context().Done(): // a real agent would finish it
			return s.Context().Err()
		}
	}
	a.mu.Lock()
	c := a.containers[req.GetCtid()]
	if c == nil {
		a.mu.Unlock()
		return notFound(req.GetCtid())
	}
	a.startLocked(c)
	c = proto.CloneOf(c)
	a.mu.Unlock()
	return s.Send(progress(typev1.RestartPhase_RESTART_PHASE_RUNNING, c))
}

func progress(p typev1.RestartPhase, c *typev1.Container) *agentv1.RestartResponse {
	return &agentv1.RestartResponse{Progress: &typev1.RestartProgress{Phase: p, Container: c}}
}

// Probe opens the node's GPUs: those in force are opened, the others absent.
func (a *Agent) Probe(_ context.Context, req *agentv1.ProbeRequest) (*agentv1.ProbeResponse, error) {
	a.called("Probe", req.GetCtid())
	if err := a.Fail["Probe"]; err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[req.GetCtid()]
	switch {
	case c == nil:
		return nil, notFound(req.GetCtid())
	case c.GetEffective() == nil:
		return nil, Failure(codes.FailedPrecondition, "CONTAINER_NOT_RUNNING", "it does not run", map[string]string{"state": "stopped"})
	case a.Probed != nil:
		return &agentv1.ProbeResponse{Results: a.Probed(c), Instance: c.GetInstance()}, nil
	}
	resp := &agentv1.ProbeResponse{Instance: c.GetInstance()}
	result := func(path string, gpu int32, given bool) {
		r := &typev1.ProbeResult{Path: path, GpuIndex: gpu, Expected: given, Outcome: typev1.ProbeOutcome_PROBE_OUTCOME_ABSENT, Errno: "ENOENT"}
		if given {
			r.Outcome, r.Errno = typev1.ProbeOutcome_PROBE_OUTCOME_OPENED, ""
		}
		resp.Results = append(resp.Results, r)
	}
	for i := range a.GPUs {
		given := slices.ContainsFunc(c.GetEffective().GetGpus(), func(g *typev1.GpuRef) bool { return int(g.GetIndex()) == i })
		result(device(i), int32(i), given)
	}
	for _, path := range shared {
		result(path, -1, len(c.GetEffective().GetGpus()) > 0)
	}
	return resp, nil
}

// Exec runs no command: see OnExec. It knows which containers there are.
func (a *Agent) Exec(s agentv1.ExecService_ExecServer) error {
	if err := a.Fail["Exec"]; err != nil {
		return err
	}
	if a.OnExec != nil {
		return a.OnExec(s)
	}
	first, err := s.Recv()
	if err != nil {
		return err
	}
	ctid := first.GetInput().GetStart().GetCtid()
	a.mu.Lock()
	c := a.containers[ctid]
	a.mu.Unlock()
	if c == nil {
		return notFound(ctid)
	}
	if err := s.Send(output(&typev1.ExecOutput{Output: &typev1.ExecOutput_Started{Started: &typev1.ExecStarted{}}})); err != nil {
		return err
	}
	for {
		in, err := s.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if b := in.GetInput().GetStdin(); len(b) > 0 {
			if err := s.Send(output(&typev1.ExecOutput{Output: &typev1.ExecOutput_Stdout{Stdout: b}})); err != nil {
				return err
			}
		}
	}
	return s.Send(output(&typev1.ExecOutput{Output: &typev1.ExecOutput_Exit{Exit: &typev1.ExecExit{Code: 7, OutputComplete: true}}}))
}

func output(o *typev1.ExecOutput) *agentv1.ExecResponse { return &agentv1.ExecResponse{Output: o} }

func (a *Agent) named(rpc, who string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.actedFor = append(a.actedFor, rpc+" "+who)
}

func (a *Agent) called(rpc string, ctid int32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ctid == 0 {
		a.calls = append(a.calls, rpc)
		return
	}
	a.calls = append(a.calls, fmt.Sprintf("%s %d", rpc, ctid))
}
