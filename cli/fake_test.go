package cli_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"phoenix.internal/cli"
	"phoenix.internal/controller/pki/pkitest"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// now is the time at which every test takes place.
var now = time.Date(2026, 11, 23, 15, 0, 0, 0, time.UTC)

func at(seconds float64) *timestamppb.Timestamp {
	return timestamppb.New(now.Add(time.Duration(seconds * float64(time.Second))))
}

// A fake is a controller with answers made up beforehand.
type fake struct {
	controllerv1.UnimplementedFleetServiceServer
	controllerv1.UnimplementedRunServiceServer
	controllerv1.UnimplementedNodeServiceServer
	controllerv1.UnimplementedContainerServiceServer

	fail        error               // of every call
	unreachable []*typev1.NodeError // in every answer that has them
	notServing  string              // service that does not serve
	plain       bool                // nothing is wrong in the fleet
	old         bool                // it does not know what is newer than the first release
	conf        []byte              // of CTID 901 in place of the ordinary one
	divided     bool                // GPU 0 of pve1 by MIG, with processes on its GPUs
	events      func(send func(proto.Message) error) error
	cancel      func() // on CancelRun
	exec        func(controllerv1.ContainerService_ExecServer) error

	mu       sync.Mutex
	requests []proto.Message
}

func (f *fake) got(m proto.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, proto.Clone(m))
	return f.fail
}

// last returns the latest request.
func (f *fake) last(t *testing.T) proto.Message {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.requests) == 0 {
		t.Fatal("no request arrived")
	}
	return f.requests[len(f.requests)-1]
}

// serve starts the fake and returns a way to reach it, until the test ends.
func (f *fake) serve(t *testing.T) func(context.Context, cli.Config) (*cli.Conn, error) {
	t.Helper()
	pipe := bufconn.Listen(1 << 20)
	f.listen(t, pipe)
	return func(context.Context, cli.Config) (*cli.Conn, error) {
		conn, err := grpc.NewClient("passthrough:///fake",
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		return cli.NewConn(conn, conn.Close), nil
	}
}

// listen serves the fake on a listener until the test ends.
func (f *fake) listen(t *testing.T, on net.Listener, opts ...grpc.ServerOption) {
	t.Helper()
	srv := grpc.NewServer(opts...)
	controllerv1.RegisterFleetServiceServer(srv, f)
	controllerv1.RegisterRunServiceServer(srv, f)
	controllerv1.RegisterNodeServiceServer(srv, f)
	controllerv1.RegisterContainerServiceServer(srv, f)
	h := health.NewServer()
	for name := range srv.GetServiceInfo() {
		h.SetServingStatus(name, healthv1.HealthCheckResponse_SERVING)
	}
	if f.notServing != "" {
		h.SetServingStatus(f.notServing, healthv1.HealthCheckResponse_NOT_SERVING)
	}
	healthv1.RegisterHealthServer(srv, h)
	var served sync.WaitGroup
	served.Go(func() { srv.Serve(on) })
	t.Cleanup(func() { srv.Stop(); served.Wait() })
}

// A result is what one call of phoenix-cli wrote, and how it ended.
type result struct {
	stdout, stderr string
	code           int
}

// run runs phoenix-cli against the fake, with settings that name a controller.
func run(t *testing.T, f *fake, stdin io.Reader, args ...string) result {
	t.Helper()
	settle(t)
	var stdout, stderr bytes.Buffer
	p := cli.Program{
		In: stdin, Out: &stdout, Err: &stderr,
		Connect: f.serve(t),
		Now:     func() time.Time { return now },
	}
	if stdin == nil {
		p.In = new(bytes.Buffer)
	}
	code := p.Run(t.Context(), args)
	return result{stdout.String(), stderr.String(), code}
}

// settle makes this machine's settings those of the test: a file that names a controller, and no variables.
func settle(t *testing.T) {
	t.Helper()
	files := pkitest.NewCA(t, "test").Issue(t, pkitest.Leaf{Name: "person"})
	settings(t, "controller: controller.example\ntls:\n  cert_file: "+files.CertFile+"\n  key_file: "+files.KeyFile+
		"\n  ca_file: "+files.CAFile+"\n")
}

// settings makes text the settings file, and returns its path.
func settings(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cli.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PHOENIX_CONFIG", file)
	for _, v := range []string{"CONTROLLER", "AGENTS", "TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_FILE", "FLEET_FILE",
		"FEATURES_DIR", "STATE_DIR", "COLOR", "TIMEOUT"} {
		t.Setenv("PHOENIX_"+v, "")
	}
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm-256color")
	return file
}

// failure returns a status as a server of Phoenix makes it.
func failure(code codes.Code, reason errorv1.Reason, message string, metadata map[string]string) error {
	st, err := status.New(code, message).WithDetails(&errdetails.ErrorInfo{
		Reason: reason.String()[len("REASON_"):], Domain: "phoenix.internal", Metadata: metadata,
	})
	if err != nil {
		return err
	}
	return st.Err()
}

func (f *fake) ListNodes(_ context.Context, r *controllerv1.ListNodesRequest) (*controllerv1.ListNodesResponse, error) {
	return &controllerv1.ListNodesResponse{Nodes: []*typev1.Node{
		{Name: "pve1", AgentVersion: "v0.1.0", PveVersion: "9.1.2", KernelVersion: "6.17.2-1-pve", LxcVersion: "6.0.5",
			BootId: "b1", DriverVersion: "580.105.08", Quorate: true, AgentStartTime: at(-3600)},
		{Name: "pve2", AgentVersion: "v0.1.0", KernelVersion: "6.17.2-1-pve", Quorate: f.plain, AgentStartTime: at(-7200)},
	}, Unreachable: f.unreachable}, f.got(r)
}

func (f *fake) ListDevices(_ context.Context, r *controllerv1.ListDevicesRequest) (*controllerv1.ListDevicesResponse, error) {
	ok := typev1.DeviceNodeState_DEVICE_NODE_STATE_OK
	answer := &controllerv1.ListDevicesResponse{Unreachable: f.unreachable, Nodes: []*typev1.NodeDevices{
		{
			Node: "pve1", DriverVersion: "580.105.08", OpenKernelModule: true,
			Gpus: []*typev1.Gpu{
				{Index: 0, Uuid: "GPU-7a1b", PciAddress: "0000:01:00.0", Minor: proto.Int32(1), Model: "NVIDIA GeForce RTX 5060 Ti",
					MemoryMib: proto.Int64(16311), Driver: typev1.GpuDriver_GPU_DRIVER_NVIDIA, NumaNode: 0, Ctids: []int32{901, 910},
					DeviceNodes: []*typev1.DeviceNode{{Path: "/dev/nvidia1", Major: 195, Minor: 1, Mode: 0o666, State: ok}},
					Health:      &typev1.GpuHealth{State: typev1.GpuHealthState_GPU_HEALTH_STATE_OK}},
				{Index: 1, Uuid: "GPU-9c2d", PciAddress: "0000:41:00.0", Minor: proto.Int32(0), Model: "NVIDIA GeForce RTX 5060 Ti",
					Driver: typev1.GpuDriver_GPU_DRIVER_NVIDIA, NumaNode: 1, Ctids: []int32{901},
					DeviceNodes: []*typev1.DeviceNode{{Path: "/dev/nvidia0", Major: 195, Minor: 0, Mode: 0o666,
						State: typev1.DeviceNodeState_DEVICE_NODE_STATE_STALE}},
					Health: &typev1.GpuHealth{State: typev1.GpuHealthState_GPU_HEALTH_STATE_WARNING, Errors: []*typev1.GpuError{
						{Xid: 31, Class: typev1.GpuErrorClass_GPU_ERROR_CLASS_APPLICATION, Count: 3, Process: "python3", Ctid: 901, Message: "MMU Fault"},
						{Xid: 109, Class: typev1.GpuErrorClass_GPU_ERROR_CLASS_WATCH, Count: 1, GpuInstanceId: proto.Int32(5), Message: "CTX SWITCH TIMEOUT"},
					}}},
				{Index: -1, PciAddress: "0000:81:00.0", Driver: typev1.GpuDriver_GPU_DRIVER_VFIO_PCI, NumaNode: -1,
					Health: &typev1.GpuHealth{State: typev1.GpuHealthState_GPU_HEALTH_STATE_OK}},
			},
			Majors: []*typev1.DeviceNumber{{Name: "nvidia", Major: 195}, {Name: "nvidia-uvm", Major: 511}},
			SharedNodes: []*typev1.DeviceNode{
				{Path: "/dev/nvidia-uvm", Major: 511, State: typev1.DeviceNodeState_DEVICE_NODE_STATE_MISSING},
				{Path: "/dev/nvidiactl", Major: 195, Minor: 255, Mode: 0o666, State: ok},
			},
			Problems: []string{"/dev/nvidia0 has the numbers 195:7, not 195:0."},
		},
		{Node: "pve2"},
	}}
	if f.divided {
		gpus := answer.Nodes[0].Gpus
		gpus[0].MigEnabled = true
		gpus[0].MigDevices = []*typev1.MigDevice{
			{Index: 0, Uuid: "MIG-5b1f4c8e-0000-0000-0000-000000000000", GpuInstanceId: 3, Profile: "1g.10gb", MemoryMib: proto.Int64(9856),
				Ctids: []int32{920}},
			{Index: 1, Uuid: "MIG-6c2e5d9f-0000-0000-0000-000000000000", GpuInstanceId: 4, Profile: "1g.10gb",
				DeviceNodes: []*typev1.DeviceNode{{Path: "/dev/nvidia-caps/nvidia-cap39", Major: 237, Minor: 39, State: typev1.DeviceNodeState_DEVICE_NODE_STATE_MISSING}}},
		}
		gpus[0].Processes = []*typev1.GpuProcess{{Pid: 70, Ctid: 920, UsedMib: 1024}, {Pid: 71}}
		gpus[2].Vms = []int32{300}
		gpus[1].Processes = []*typev1.GpuProcess{{Pid: 72, Ctid: 901, UsedMib: 512}, {Pid: 73, Ctid: 921}}
	}
	return answer, f.got(r)
}

func given(mode typev1.PassthroughMode, indexes ...int32) *typev1.Passthrough {
	p := &typev1.Passthrough{Mode: mode}
	if len(indexes) > 0 {
		p.Devices = append(p.Devices, &typev1.Device{Path: "/dev/nvidia-uvm", Major: 511, Minor: 0})
	}
	for _, i := range indexes {
		p.Gpus = append(p.Gpus, &typev1.GpuRef{Index: i, Minor: i})
		p.Devices = append(p.Devices, &typev1.Device{Path: "/dev/nvidia" + string(rune('0'+i)), Major: 195, Minor: i})
	}
	return p
}

const (
	raw    = typev1.PassthroughMode_PASSTHROUGH_MODE_RAW
	native = typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE
	none   = typev1.PassthroughMode_PASSTHROUGH_MODE_UNSPECIFIED
)

// fleetContainers are the containers of the fake's nodes. The hostname of 912 is what a hostile container would take.
func fleetContainers() []*typev1.Container {
	running, stopped := typev1.ContainerState_CONTAINER_STATE_RUNNING, typev1.ContainerState_CONTAINER_STATE_STOPPED
	return []*typev1.Container{
		{Ctid: 900, Node: "pve1", Hostname: "base", State: stopped, Template: true, Unprivileged: true, Configured: given(none)},
		{Ctid: 901, Node: "pve1", Hostname: "cuda", State: running, Unprivileged: true,
			Configured: given(raw, 0, 1), Effective: given(raw, 0, 1)},
		{Ctid: 910, Node: "pve1", Hostname: "vllm", State: running, RestartPending: true,
			Configured: given(native, 0), Effective: given(none),
			Problems: []*typev1.Problem{
				{Kind: typev1.ProblemKind_PROBLEM_KIND_WILDCARD_RULE, Message: "the rule gives every device of major 195", Line: 12},
				{Kind: typev1.ProblemKind_PROBLEM_KIND_PRIVILEGED, Message: "a privileged container is no security boundary",
					Advice: "make it unprivileged"},
			}},
		{Ctid: 912, Node: "pve2", Hostname: "\x1b[2Jevil\u202e", State: running, Lock: "backup", Unprivileged: true,
			Configured: &typev1.Passthrough{Mode: raw, Gpus: []*typev1.GpuRef{{Index: -1, Minor: 7}}}, Effective: given(raw, 2)},
	}
}

func (f *fake) ListContainers(_ context.Context, r *controllerv1.ListContainersRequest) (*controllerv1.ListContainersResponse, error) {
	cs := fleetContainers()
	if f.divided {
		instance := &typev1.Passthrough{Mode: raw, Gpus: []*typev1.GpuRef{{Index: 0, GpuInstanceId: proto.Int32(3), ComputeInstanceId: proto.Int32(0)}}}
		cs = append(cs, &typev1.Container{Ctid: 920, Node: "pve1", State: typev1.ContainerState_CONTAINER_STATE_RUNNING,
			Configured: instance, Effective: instance})
	}
	return &controllerv1.ListContainersResponse{Containers: cs, Unreachable: f.unreachable}, f.got(r)
}

func entries(pairs ...string) []*typev1.ConfEntry {
	var es []*typev1.ConfEntry
	for i := 0; i < len(pairs); i += 2 {
		es = append(es, &typev1.ConfEntry{Key: pairs[i], Value: pairs[i+1], Line: int32(i/2 + 1)})
	}
	return es
}

const (
	conf901    = "arch: amd64\ncores: 2\nhostname: cuda\nmemory: 2048\nunprivileged: 1\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n"
	conf901Old = "arch: amd64\ncores: 2\nhostname: cuda\nmemory: 2048\nunprivileged: 1\n"
	// conf912 is what somebody leaves who wants to run a program on the node.
	conf912 = "cores: many\nnonsense\nunprivileged: 1\narch: amd64\nostype: debian\nrootfs: a:b\nlxc.environment: LANG=C\rlxc.hook.pre-start = /x\nlxc.hook.pre-start: /root/\x1b[2Jx\n" +
		"lxc.cgroup2.devices.allow: c 195:* rwm\n\n[\x1b]\n[before]\nlxc.hook.mount: /y\n"
)

func (f *fake) GetContainer(_ context.Context, r *controllerv1.GetContainerRequest) (*controllerv1.GetContainerResponse, error) {
	cs := fleetContainers()
	answer := &controllerv1.GetContainerResponse{Container: cs[1], Conf: []byte(conf901), Entries: entries(
		"arch", "amd64", "cores", "2", "hostname", "cuda", "memory", "2048",
		"net0", "name=eth0,bridge=vmbr0,hwaddr=52:54:00:AA:BB:CD,ip=10.0.0.201/24",
		"rootfs", "quickOS:subvol-901-disk-0,size=16G", "unprivileged", "1",
		"lxc.mount.entry", "/dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
		"lxc.mount.entry", "/dev/nvidia1 dev/nvidia1 none  bind,optional,create=file",
		"lxc.cgroup2.devices.allow", "c 195:0 rwm"), Snapshots: []string{"final-form"}}
	switch r.GetCtid() {
	case 900:
		answer = &controllerv1.GetContainerResponse{Container: cs[0], Conf: []byte("arch: amd64\nostype: debian\nrootfs: a:b\ntemplate: 1\nunprivileged: 1\n")}
	case 912:
		answer = &controllerv1.GetContainerResponse{Container: cs[3], Conf: []byte(conf912)}
	case 913:
		if err := f.got(r); err != nil {
			return nil, err
		}
		return nil, failure(codes.NotFound, errorv1.Reason_REASON_CONTAINER_NOT_FOUND, "CTID 913: no such container", map[string]string{"ctid": "913"})
	case 910:
		answer = &controllerv1.GetContainerResponse{Container: cs[2], Conf: []byte("arch: amd64\n"), Entries: entries(
			"arch", "amd64", "cores", "10", "hostname", "vllm", "memory", "72000",
			"net0", "name=eth0,bridge=vmbr1,hwaddr=52:54:00:AA:BB:D1,ip=10.0.0.220/24,tag=7",
			"rootfs", "quickOS:subvol-910-disk-0,size=128G", "dev0", "/dev/nvidia0,mode=0666",
			"lxc.mount.entry", "/dev/nvidia1 dev/nvidia1 none bind,optional,create=file",
			"lxc.cgroup2.devices.allow", "c 195:* rwm", "lxc.cgroup2.devices.allow", "c 195:* rwm"),
			Pending: entries("memory", "64000")}
	case 902:
		answer = proto.CloneOf(answer) // as a clone of 901 is
		answer.Container.Ctid, answer.Container.Hostname = 902, "copy"
		answer.Entries[2].Value = "copy"
		answer.Entries[4].Value = "name=eth0,bridge=vmbr0,hwaddr=52:54:00:AA:BB:CE,ip=10.0.0.202/24"
		answer.Entries[5].Value = "quickOS:subvol-902-disk-0,size=16G"
		answer.Snapshots = nil
	}
	if f.conf != nil {
		answer.Conf = f.conf
	}
	if r.GetIncludeEffectiveEntries() && answer.GetContainer().GetEffective() != nil && !f.old {
		answer.EffectiveEntries = entries("lxc.uts.name", "cu\x1bda", "lxc.cgroup2.devices.allow", "c 195:0 rwm",
			"lxc.mount.entry", "/dev/nvidia0 dev/nvidia0 none bind,optional,create=file")
		for i, line := range []int32{0, 10, 8} {
			answer.EffectiveEntries[i].Line = line
		}
	}
	return answer, f.got(r)
}

func (f *fake) ListRevisions(_ context.Context, r *controllerv1.ListRevisionsRequest) (*controllerv1.ListRevisionsResponse, error) {
	return &controllerv1.ListRevisionsResponse{Revisions: []*typev1.Revision{
		{Revision: 2, CreateTime: at(-60), Who: "phoenix-controller", OnBehalfOf: "ann\u202e", Why: "patch conf", Digest: "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
			ReplacedByDigest: "de9f2c7fd25e1b3afad3e85a0bd17d9b100db4b3"},
		{Revision: 1, CreateTime: at(-3600), Who: "anna", Why: "restore", Digest: "da39a3ee5e6b4b0d3255bfef95601890afd80709",
			ReplacedByDigest: "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12"},
	}}, f.got(r)
}

func (f *fake) GetRevision(_ context.Context, r *controllerv1.GetRevisionRequest) (*controllerv1.GetRevisionResponse, error) {
	conf := conf901Old
	if r.GetRevision() == 2 {
		conf = conf901
	}
	return &controllerv1.GetRevisionResponse{Revision: &typev1.Revision{Revision: r.GetRevision()}, Conf: []byte(conf)}, f.got(r)
}

func (f *fake) RestoreRevision(_ context.Context, r *controllerv1.RestoreRevisionRequest) (*controllerv1.RestoreRevisionResponse, error) {
	return &controllerv1.RestoreRevisionResponse{Before: []byte(conf901), After: []byte(conf901Old), Digest: "d"}, f.got(r)
}

func (f *fake) Restart(r *controllerv1.RestartRequest, stream controllerv1.ContainerService_RestartServer) error {
	if err := f.got(r); err != nil {
		return err
	}
	for _, p := range []*typev1.RestartProgress{
		{Phase: typev1.RestartPhase_RESTART_PHASE_SHUTTING_DOWN},
		{Phase: typev1.RestartPhase_RESTART_PHASE_FORCING, Message: "still running after 1m0s"},
		{Phase: typev1.RestartPhase_RESTART_PHASE_STARTING},
		{Phase: typev1.RestartPhase_RESTART_PHASE_RUNNING, Container: fleetContainers()[1]},
	} {
		if err := stream.Send(&controllerv1.RestartResponse{Progress: p}); err != nil {
			return err
		}
	}
	return nil
}

func probeResults(bad bool) []*typev1.ProbeResult {
	opened, noDriver, denied := typev1.ProbeOutcome_PROBE_OUTCOME_OPENED, typev1.ProbeOutcome_PROBE_OUTCOME_NO_DRIVER,
		typev1.ProbeOutcome_PROBE_OUTCOME_DENIED
	uvm := &typev1.ProbeResult{Path: "/dev/nvidia-uvm", GpuIndex: -1, Expected: true, Outcome: opened, Major: 511, Minor: 0}
	last := &typev1.ProbeResult{Path: "/dev/nvidia2", GpuIndex: 2, Outcome: denied, Errno: "EPERM", Major: 195, Minor: 2}
	if bad {
		uvm.Outcome, uvm.Errno, uvm.Major, uvm.Minor = typev1.ProbeOutcome_PROBE_OUTCOME_NOT_A_DEVICE, "", -1, -1
		uvm.Message = "It is an empty file: its source was missing when the container started. Restart the container."
		last.Outcome, last.Errno, last.Message = opened, "", "A GPU that is not assigned can be opened."
	}
	return []*typev1.ProbeResult{uvm,
		{Path: "/dev/nvidia0", GpuIndex: 0, Expected: true, Outcome: opened, Major: 195, Minor: 0},
		{Path: "/dev/nvidia1", GpuIndex: 1, Expected: true, Outcome: noDriver, Errno: "ENXIO", Major: 195, Minor: 1},
		last,
		{Path: "/dev/nvidiactl", GpuIndex: -1, Expected: true, Outcome: opened, Major: 195, Minor: 255},
	}
}

func (f *fake) Probe(_ context.Context, r *controllerv1.ProbeRequest) (*controllerv1.ProbeResponse, error) {
	return &controllerv1.ProbeResponse{Node: "pve1", Results: probeResults(!f.plain)}, f.got(r)
}

func (f *fake) Exec(stream controllerv1.ContainerService_ExecServer) error {
	if f.fail != nil {
		return f.fail
	}
	return f.exec(stream)
}

func (f *fake) ValidateFleet(_ context.Context, r *controllerv1.ValidateFleetRequest) (*controllerv1.ValidateFleetResponse, error) {
	answer := &controllerv1.ValidateFleetResponse{Valid: true, Containers: []*controllerv1.FleetContainer{{Ctid: 901, Name: "cuda"}}}
	if !f.plain {
		answer.Valid = false
		answer.Findings = []*controllerv1.Finding{
			{Severity: controllerv1.Severity_SEVERITY_ERROR, Line: 7, Column: 5, Ctid: 901, Key: "gpu_assignment", Message: "\"0,\" ends with a comma",
				Text: "fleet.json:7:5: containers 901: gpu_assignment: \"0,\" ends with a comma"},
			{Severity: controllerv1.Severity_SEVERITY_WARNING, Line: 9, Column: 5, Message: "unknown key",
				Text: "fleet.json:9:5: warning: unknown key \"nmae\""},
		}
	}
	return answer, f.got(r)
}

func (f *fake) GetStatus(_ context.Context, r *controllerv1.GetStatusRequest) (*controllerv1.GetStatusResponse, error) {
	cs := fleetContainers()
	want := func(ctid int32, name string, indexes ...int32) *controllerv1.FleetContainer {
		return &controllerv1.FleetContainer{Ctid: ctid, Name: name, GpuAssignment: cmp.Or(joined(indexes), "none"), Mode: raw}
	}
	answer := &controllerv1.GetStatusResponse{Unreachable: f.unreachable, Containers: []*controllerv1.ContainerStatus{
		{Desired: want(900, "Copy-Base"), Observed: cs[0], State: controllerv1.SyncState_SYNC_STATE_IN_SYNC},
		{Desired: want(901, "Copy-Cuda12.8", 0, 1), Observed: cs[1], State: controllerv1.SyncState_SYNC_STATE_IN_SYNC},
	}}
	if f.divided {
		exclusive := answer.Containers[1]
		exclusive.Desired.GpuPolicy, exclusive.DesiredGpus = controllerv1.GpuPolicy_GPU_POLICY_EXCLUSIVE, assignedTo(0, 1)
	}
	if !f.plain {
		answer.Containers = append(answer.Containers,
			&controllerv1.ContainerStatus{Desired: want(910, "Copy-VLLM", 0, 1), Observed: cs[2], State: controllerv1.SyncState_SYNC_STATE_DRIFT,
				Drift: []string{"configured GPUs 0, desired 0,1", "a restart is pending"}, Probe: probeResults(true)},
			&controllerv1.ContainerStatus{Desired: want(911, "Copy-New", 1), State: controllerv1.SyncState_SYNC_STATE_MISSING,
				Drift: []string{"no node has it"}},
			&controllerv1.ContainerStatus{Desired: &controllerv1.FleetContainer{Ctid: 913, Name: "far", Node: "pve3", GpuAssignment: "none"},
				State: controllerv1.SyncState_SYNC_STATE_UNKNOWN},
			&controllerv1.ContainerStatus{Desired: want(914, "busy", 1), Observed: cs[1], State: controllerv1.SyncState_SYNC_STATE_IN_PROGRESS,
				ProbeError: "it is being restarted", Run: "20261123T150000-1"})
		answer.Unmanaged = []*typev1.Container{cs[2]}
	}
	if r.GetProbe() {
		answer.Containers[1].Probe = probeResults(false)
	}
	return answer, f.got(r)
}

func joined(indexes []int32) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(indexes), "[]"), " ", ",")
}

// assignedTo are GPUs with these indexes.
func assignedTo(indexes ...int32) (gpus []*controllerv1.AssignedGpu) {
	for _, i := range indexes {
		gpus = append(gpus, &controllerv1.AssignedGpu{Index: i})
	}
	return gpus
}

func step(kind controllerv1.StepKind, reason string) *controllerv1.PlannedStep {
	return &controllerv1.PlannedStep{Kind: kind, Reason: reason}
}

func (f *fake) Plan(_ context.Context, r *controllerv1.PlanRequest) (*controllerv1.PlanResponse, error) {
	plan := &controllerv1.Plan{FleetSha256: "abc", Unreachable: f.unreachable, Containers: []*controllerv1.ContainerPlan{
		{Ctid: 900, Name: "Copy-Base", Node: "pve1"},
		{Ctid: 901, Name: "Copy-Cuda12.8", Node: "pve1", ConfiguredGpus: assignedTo(-1, 1), DesiredGpus: assignedTo(0, 1), GpuAssignment: "0,1", After: []int32{900},
			Steps: []*controllerv1.PlannedStep{
				step(controllerv1.StepKind_STEP_KIND_CHECK_DEVICES, "GPUs 0, 1 on node pve1"),
				step(controllerv1.StepKind_STEP_KIND_PATCH_CONF, "add GPU 0"),
				step(controllerv1.StepKind_STEP_KIND_RESTART, "effective GPUs 1; desired 0, 1"),
				step(controllerv1.StepKind_STEP_KIND_VERIFY_DEVICES, ""),
				{Kind: controllerv1.StepKind_STEP_KIND_FEATURE, Feature: "vllm", Reason: "script vllm.sh"},
			},
			ConfBefore: []byte(conf901Old), ConfAfter: []byte(conf901), Notes: []string{"feature nvidia has no script in features_dir: not managed"}},
	}}
	if !f.plain {
		plan.Warnings = []string{"fleet.json:9:5: unknown key \"nmae\""}
		plan.Containers = append(plan.Containers, &controllerv1.ContainerPlan{Ctid: 910, Name: "Copy-VLLM", Node: "pve1",
			GpuAssignment: "3", Errors: []string{"node pve1 has no GPU 3; it has 0, 1"}})
	}
	return &controllerv1.PlanResponse{Plan: plan}, f.got(r)
}

// applied is a run at its beginning, or at its end.
func applied(state controllerv1.RunState) *controllerv1.Run {
	pending, done := controllerv1.StepState_STEP_STATE_PENDING, controllerv1.StepState_STEP_STATE_SUCCEEDED
	run := &controllerv1.Run{Run: "20261123T150000-1", State: state, CreateTime: at(0), Who: "anna", Containers: []*controllerv1.ContainerRun{
		{Ctid: 900, Name: "Copy-Base", Node: "pve1", State: controllerv1.StepState_STEP_STATE_UNCHANGED},
		{Ctid: 901, Name: "Copy-Cuda12.8", Node: "pve1", State: pending, Notes: []string{"feature nvidia has no script: not managed"},
			Steps: []*controllerv1.Step{
				{Kind: controllerv1.StepKind_STEP_KIND_PATCH_CONF, State: pending},
				{Kind: controllerv1.StepKind_STEP_KIND_RESTART, State: pending},
			}},
		{Ctid: 910, Name: "Copy-VLLM", Node: "pve1", State: pending, Steps: []*controllerv1.Step{
			{Kind: controllerv1.StepKind_STEP_KIND_CHECK_DEVICES, State: pending}}},
	}}
	if state == controllerv1.RunState_RUN_STATE_RUNNING {
		return run
	}
	run.EndTime = at(12.5)
	c := run.Containers[1]
	c.State = done
	c.Steps[0] = &controllerv1.Step{Kind: c.Steps[0].Kind, State: done, StartTime: at(0), EndTime: at(0.2), Message: "add GPU 0"}
	c.Steps[1] = &controllerv1.Step{Kind: c.Steps[1].Kind, State: done, StartTime: at(0.2), EndTime: at(12.5)}
	c = run.Containers[2]
	c.State = done
	if state == controllerv1.RunState_RUN_STATE_FAILED {
		c.State, c.Error = controllerv1.StepState_STEP_STATE_FAILED, "check devices: node pve1 has no GPU 3; it has 0, 1"
	}
	c.Steps[0] = &controllerv1.Step{Kind: c.Steps[0].Kind, State: c.State, StartTime: at(0), EndTime: at(1)}
	return run
}

// progressOf sends a run as Apply does: its beginning, its events, its end.
func progressOf(end controllerv1.RunState) func(func(proto.Message) error) error {
	return func(send func(proto.Message) error) error {
		last := applied(end)
		running := controllerv1.StepState_STEP_STATE_RUNNING
		for _, m := range []proto.Message{
			applied(controllerv1.RunState_RUN_STATE_RUNNING),
			&controllerv1.RunEvent{Time: at(0), Ctid: 901, ContainerState: running,
				Step: &controllerv1.Step{Kind: controllerv1.StepKind_STEP_KIND_PATCH_CONF, State: running, StartTime: at(0)}},
			&controllerv1.RunEvent{Time: at(0.2), Ctid: 901, ContainerState: running, Step: last.Containers[1].Steps[0]},
			&controllerv1.RunEvent{Time: at(0.2), Ctid: 901, ContainerState: running, StepIndex: 1,
				Step: &controllerv1.Step{Kind: controllerv1.StepKind_STEP_KIND_RESTART, State: running, StartTime: at(0.2), Message: "shutting down"}},
			&controllerv1.RunEvent{Time: at(1), Ctid: 910, ContainerState: last.Containers[2].State, Error: last.Containers[2].Error,
				Step: last.Containers[2].Steps[0]},
			&controllerv1.RunEvent{Time: at(12.5), Ctid: 901, ContainerState: last.Containers[1].State, StepIndex: 1, Step: last.Containers[1].Steps[1]},
			&controllerv1.RunEvent{Time: at(12.5), Ctid: 910, ContainerState: last.Containers[2].State, Error: last.Containers[2].Error},
			last,
		} {
			if err := send(m); err != nil {
				return err
			}
		}
		return nil
	}
}

func (f *fake) Apply(r *controllerv1.ApplyRequest, stream controllerv1.RunService_ApplyServer) error {
	if err := f.got(r); err != nil {
		return err
	}
	return f.events(func(m proto.Message) error {
		switch m := m.(type) {
		case *controllerv1.Run:
			return stream.Send(&controllerv1.ApplyResponse{Event: &controllerv1.ApplyResponse_Run{Run: m}})
		default:
			return stream.Send(&controllerv1.ApplyResponse{Event: &controllerv1.ApplyResponse_Step{Step: m.(*controllerv1.RunEvent)}})
		}
	})
}

func (f *fake) WatchRun(r *controllerv1.WatchRunRequest, stream controllerv1.RunService_WatchRunServer) error {
	if err := f.got(r); err != nil {
		return err
	}
	return stream.Send(&controllerv1.WatchRunResponse{Event: &controllerv1.WatchRunResponse_Run{
		Run: applied(controllerv1.RunState_RUN_STATE_SUCCEEDED)}})
}

func (f *fake) CancelRun(_ context.Context, r *controllerv1.CancelRunRequest) (*controllerv1.CancelRunResponse, error) {
	if f.cancel != nil {
		f.cancel()
	}
	return &controllerv1.CancelRunResponse{}, f.got(r)
}

func (f *fake) ListRuns(_ context.Context, r *controllerv1.ListRunsRequest) (*controllerv1.ListRunsResponse, error) {
	running := applied(controllerv1.RunState_RUN_STATE_RUNNING)
	running.CreateTime = at(-90)
	return &controllerv1.ListRunsResponse{Runs: []*controllerv1.Run{running, applied(controllerv1.RunState_RUN_STATE_FAILED)}}, f.got(r)
}

func (f *fake) GetRun(_ context.Context, r *controllerv1.GetRunRequest) (*controllerv1.GetRunResponse, error) {
	run := applied(controllerv1.RunState_RUN_STATE_FAILED)
	run.Resumptions, run.Warnings = 1, []string{"fleet.json:9:5: unknown key \"nmae\""}
	return &controllerv1.GetRunResponse{Run: run}, f.got(r)
}
