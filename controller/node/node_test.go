package node_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/pki/pkitest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func TestObserve(t *testing.T) {
	ca, otherCA := pkitest.NewCA(t, "test"), pkitest.NewCA(t, "other")
	minor := int32(3)
	good := &agent{
		devices: &typev1.NodeDevices{DriverVersion: "580.76.05", Gpus: []*typev1.Gpu{
			{Index: 0, Uuid: "GPU-1", PciAddress: "0000:01:00.0", Minor: &minor, Model: "RTX", Driver: typev1.GpuDriver_GPU_DRIVER_NVIDIA, Vms: []int32{100}},
			{Index: -1, PciAddress: "0000:02:00.0", Driver: typev1.GpuDriver_GPU_DRIVER_VFIO_PCI},
			{Index: -1, PciAddress: "0000:03:00.0", Driver: typev1.GpuDriver_GPU_DRIVER_UNSPECIFIED},
		}},
		containers: []*typev1.Container{
			container(900),
			{
				Ctid: 901, Hostname: "ct", State: typev1.ContainerState_CONTAINER_STATE_RUNNING, Lock: "backup", Template: true,
				Unprivileged: true, Digest: "abc", RestartPending: true, Instance: "i",
				Configured: &typev1.Passthrough{
					Gpus: []*typev1.GpuRef{{Index: -1}, {Index: 0}}, Mode: typev1.PassthroughMode_PASSTHROUGH_MODE_MIXED,
					Devices: []*typev1.Device{{Path: "/dev/nvidia3"}, {Path: "/dev/nvidiactl"}},
				},
				Effective: &typev1.Passthrough{},
				Problems: []*typev1.Problem{{
					Kind: typev1.ProblemKind_PROBLEM_KIND_WRONG_MAJOR, Message: "c 243", Line: 7, Advice: "apply",
				}},
			},
		},
		vms: []int32{100},
	}
	f := dial(t, ca,
		node.Config{Name: "pve2", Address: refused(t)},
		node.Config{Name: "pve1", Address: good.serve(t, ca, "pve1")},
		node.Config{Name: "pve3", Address: (&agent{}).serve(t, ca, "elsewhere")},
		node.Config{Name: "pve4", Address: (&agent{}).serve(t, otherCA, "pve4")},
		node.Config{Name: "pve5", Address: (&agent{hang: true}).serve(t, ca, "node-five"), ServerName: "node-five"},
	)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	o := f.Observe(ctx)

	errs := map[string]string{}
	for i := range o.Nodes {
		n := &o.Nodes[i]
		if n.Err != nil {
			errs[n.Name] = strings.ReplaceAll(n.Err.Error(), n.Address, "ADDRESS")
			if node.ReasonOf(n.Err) != node.Unreachable {
				t.Errorf("%s: reason %v", n.Name, node.ReasonOf(n.Err))
			}
			n.Err = nil
		}
		if n.At.IsZero() || n.Address == "" {
			t.Errorf("%s: time %v, address %q", n.Name, n.At, n.Address)
		}
		n.At, n.Address = time.Time{}, ""
	}
	for name, want := range map[string]string{
		"pve2": "node pve2: the agent at ADDRESS cannot be reached: nothing listens there; is phoenix-agent running? systemctl status phoenix-agent (connection refused)",
		"pve3": `node pve3: the agent at ADDRESS cannot be reached: another host answers, or the agent's certificate is not made for the name "pve3"; check the address here and tls.cert_file there (`,
		"pve4": "node pve4: the agent at ADDRESS cannot be reached: the agent's certificate is from another authority; check tls.ca_file here and tls.cert_file there (certificate signed by unknown authority)",
		"pve5": "node pve5: the agent at ADDRESS did not answer in time; look at its log: journalctl -u phoenix-agent",
	} {
		if !strings.HasPrefix(errs[name], want) {
			t.Errorf("%s: error\n%s, want\n%s", name, errs[name], want)
		}
	}
	want := []observed.Node{
		{
			Name: "pve1", DriverVersion: "580.76.05", VMs: []int32{100},
			GPUs: []observed.GPU{
				{Index: 0, UUID: "GPU-1", PCIAddress: "0000:01:00.0", Minor: 3, Model: "RTX", Driver: "nvidia", VMs: []int32{100}},
				{Index: -1, PCIAddress: "0000:02:00.0", Minor: -1, Driver: "vfio-pci"},
				{Index: -1, PCIAddress: "0000:03:00.0", Minor: -1, Driver: "other"},
			},
			Containers: []observed.Container{
				{CTID: 900, State: "unspecified"},
				{
					CTID: 901, Hostname: "ct", State: "running", Lock: "backup", Template: true, Unprivileged: true, Digest: "abc",
					RestartPending: true, Instance: "i",
					Configured: observed.Passthrough{GPUs: []observed.Ref{{Index: -1}, {Index: 0}}, Mode: observed.ModeMixed, Devices: []string{"/dev/nvidia3", "/dev/nvidiactl"}},
					Effective:  &observed.Passthrough{},
					Problems:   []observed.Problem{{Kind: "wrong_major", Message: "c 243", Line: 7, Advice: "apply"}},
				},
			},
		},
		{Name: "pve2"}, {Name: "pve3"}, {Name: "pve4"}, {Name: "pve5"},
	}
	if diff := cmp.Diff(want, o.Nodes); diff != "" {
		t.Errorf("nodes, -want +got:\n%s", diff)
	}
	// They are made at the same time, so either may come first.
	if got := good.took(); got != "ListDevices, ListContainers" && got != "ListContainers, ListDevices" {
		t.Errorf("one observation took the calls %s", got)
	}
}

// A caller without our authority's certificate is refused, and is told so.
func TestRefusedCertificate(t *testing.T) {
	ca, otherCA := pkitest.NewCA(t, "test"), pkitest.NewCA(t, "other")
	address := (&agent{}).serve(t, ca, "pve1")
	ours, err := ca.Issue(t, pkitest.Leaf{Name: "phoenix-controller"}).Load()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := otherCA.Issue(t, pkitest.Leaf{Name: "phoenix-controller"}).Load()
	if err != nil {
		t.Fatal(err)
	}
	conf := ours.Client("") // trusts the agent, but shows another authority's certificate
	conf.Certificates = nil
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &theirs.Client("").Certificates[0], nil
	}
	f, err := node.Dial([]node.Config{{Name: "pve1", Address: address}}, conf, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := f.Observe(t.Context()).Nodes[0].Err
	// Whether the agent's alert or the end of the connection comes first is chance.
	if got == nil || !strings.Contains(got.Error(), "the agent refuses our certificate, which is from another authority; check tls.cert_file here and tls.ca_file there") &&
		!strings.Contains(got.Error(), "or does it refuse our certificate? journalctl -u phoenix-agent") {
		t.Errorf("Observe = %v", got)
	}
}

// grpc's own failures are told in words that help.
func TestForeignFailures(t *testing.T) {
	var give error
	n := one(t, &agent{probe: func(*agentv1.ProbeRequest) (*agentv1.ProbeResponse, error) { return nil, give }})
	for _, tt := range []struct {
		give error
		want string
	}{
		{status.Error(codes.Unimplemented, "unknown method Probe for service phoenix.agent.v1.ContainerService"),
			"node pve1: the agent at ADDRESS does not know this call; install the same version there and here " +
				"(unknown method Probe for service phoenix.agent.v1.ContainerService)"},
		{status.Error(codes.ResourceExhausted, "grpc: received message larger than max (9 vs. 8)"),
			"node pve1: the agent at ADDRESS gave no proper answer; look at its log: journalctl -u phoenix-agent " +
				"(grpc: received message larger than max (9 vs. 8))"},
	} {
		give = tt.give
		_, _, err := n.Probe(t.Context(), 901, "")
		if got := strings.ReplaceAll(err.Error(), n.Address(), "ADDRESS"); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// The agent of another node, for whose certificate both names are good, is not taken for ours.
func TestOtherNode(t *testing.T) {
	other := &agent{
		devices:    &typev1.NodeDevices{Node: "pve2"},
		containers: []*typev1.Container{{Ctid: 901, Node: "pve2"}},
	}
	n := one(t, other)
	const want = `node pve1: the agent at ADDRESS is that of node "pve2"; correct name and address of the node in our configuration, or "node" in the agent's`
	_, devices := n.Devices().ListDevices(t.Context(), &agentv1.ListDevicesRequest{})
	_, list := n.Containers().ListContainers(t.Context(), &agentv1.ListContainersRequest{})
	_, get := n.Containers().GetContainer(t.Context(), &agentv1.GetContainerRequest{Ctid: 901})
	for name, err := range map[string]error{"ListDevices": devices, "ListContainers": list, "GetContainer": get} {
		e, ok := errors.AsType[*node.Error](err)
		if !ok || strings.ReplaceAll(e.Error(), n.Address(), "ADDRESS") != want || e.Reason != node.Unreachable ||
			e.Code != codes.Unavailable || e.Metadata["node"] != "pve1" || e.Metadata["address"] != n.Address() {
			t.Errorf("%s: %#v, want Unreachable with %s", name, err, want)
		}
	}
}

func TestDialTwice(t *testing.T) {
	_, err := node.Dial([]node.Config{{Name: "pve1", Address: "a:1"}, {Name: "pve1", Address: "b:1"}}, &tls.Config{}, nil)
	if err == nil || err.Error() != "node pve1 is configured twice" {
		t.Errorf("Dial = %v", err)
	}
}

func TestNode(t *testing.T) {
	f := dial(t, pkitest.NewCA(t, "test"), node.Config{Name: "pve2", Address: "b:1"}, node.Config{Name: "pve1", Address: "a:1"})
	n, err := f.Node("pve2")
	if err != nil || n.Name() != "pve2" || n.Address() != "b:1" {
		t.Errorf("Node(pve2) = %v, %v", n, err)
	}
	_, err = f.Node("pve3")
	if _, ok := errors.AsType[*node.UnknownError](err); !ok || err.Error() != `no node "pve3"; configured are pve1, pve2` {
		t.Errorf("Node(pve3) = %v", err)
	}
	if names := f.Names(); !slices.Equal(names, []string{"pve1", "pve2"}) {
		t.Errorf("Names = %q", names)
	}
}

func TestFind(t *testing.T) {
	ca := pkitest.NewCA(t, "test")
	first := &agent{containers: []*typev1.Container{container(901), container(903)}}
	second := &agent{containers: []*typev1.Container{container(902), container(903)}}
	f := dial(t, ca,
		node.Config{Name: "pve1", Address: first.serve(t, ca, "pve1")},
		node.Config{Name: "pve2", Address: second.serve(t, ca, "pve2")})
	find := func(ctid int32) string {
		t.Helper()
		n, err := f.Find(t.Context(), ctid)
		if err != nil {
			return err.Error()
		}
		return n.Name()
	}
	for _, step := range []struct {
		name          string
		ctid          int32
		want          string
		first, second string // calls
	}{
		{"unknown so far: all are asked", 902, "pve2", "GetContainer 902", "GetContainer 902"},
		{"known: it alone is asked", 902, "pve2", "", "GetContainer 902"},
		{"on several", 903, "CTID 903 is on several nodes: pve1, pve2; a CTID must be unique, remove one of them", "GetContainer 903", "GetContainer 903"},
		{"on none", 950, "no node has CTID 950", "GetContainer 950", "GetContainer 950"},
	} {
		if got := find(step.ctid); got != step.want {
			t.Errorf("%s: Find(%d) = %s, want %s", step.name, step.ctid, got, step.want)
		}
		if one, two := first.took(), second.took(); one != step.first || two != step.second {
			t.Errorf("%s: calls %q and %q, want %q and %q", step.name, one, two, step.first, step.second)
		}
	}
	_, err := f.Find(t.Context(), 950)
	if !errors.Is(err, node.ErrNotFound) {
		t.Errorf("Find(950) = %v, want ErrNotFound", err)
	}
	_, err = f.Find(t.Context(), 903)
	if e, ok := errors.AsType[*node.SeveralError](err); !ok || !slices.Equal(e.Nodes, []string{"pve1", "pve2"}) {
		t.Errorf("Find(903) = %v, want a SeveralError", err)
	}

	first.took()
	second.took()
	first.containers, second.containers = second.containers, first.containers // migrated
	if got := find(902); got != "pve1" {
		t.Errorf("Find of a migrated container = %s, want pve1", got)
	}
	if got := second.took(); got != "GetContainer 902, GetContainer 902" {
		t.Errorf("calls to where it was: %q", got)
	}
}

func TestOn(t *testing.T) {
	ca := pkitest.NewCA(t, "test")
	first, second := &agent{containers: []*typev1.Container{container(901)}}, &agent{}
	f := dial(t, ca,
		node.Config{Name: "pve1", Address: first.serve(t, ca, "pve1")},
		node.Config{Name: "pve2", Address: second.serve(t, ca, "pve2")})
	for _, step := range []struct {
		name   string
		answer error  // of the first node that do is called with
		want   string // the nodes that it is called with
		asked  string // calls that pve1 got besides
	}{
		{"unknown so far", nil, "pve1", "GetContainer 901"},
		{"known", nil, "pve1", ""},
		{"any other failure", context.Canceled, "pve1", ""},
		{"migrated", &node.Error{Reason: node.ContainerNotFound}, "pve1 pve2", "GetContainer 901, GetContainer 901"},
		{"known where it is now", nil, "pve2", ""},
	} {
		if step.name == "migrated" {
			first.containers, second.containers = second.containers, first.containers
		}
		var nodes []string
		err := f.On(t.Context(), 901, func(n *node.Node) error {
			nodes = append(nodes, n.Name())
			if len(nodes) == 1 {
				return step.answer
			}
			return nil
		})
		if len(nodes) == 1 && err != step.answer || len(nodes) == 2 && err != nil {
			t.Errorf("%s: error %v", step.name, err)
		}
		if got := strings.Join(nodes, " "); got != step.want {
			t.Errorf("%s: on %s, want %s", step.name, got, step.want)
		}
		if got := first.took(); got != step.asked {
			t.Errorf("%s: pve1 was asked %q, want %q", step.name, got, step.asked)
		}
	}
	err := f.On(t.Context(), 950, func(*node.Node) error { panic("called without a node") })
	if !errors.Is(err, node.ErrNotFound) {
		t.Errorf("On(950) = %v, want ErrNotFound", err)
	}
}

func TestFindUnreachable(t *testing.T) {
	ca := pkitest.NewCA(t, "test")
	a := &agent{containers: []*typev1.Container{container(901)}}
	f := dial(t, ca, node.Config{Name: "pve1", Address: a.serve(t, ca, "pve1")}, node.Config{Name: "pve2", Address: refused(t)})
	if n, err := f.Find(t.Context(), 901); err != nil || n.Name() != "pve1" {
		t.Errorf("Find(901) = %v, want pve1 although pve2 is away", err)
	}
	_, err := f.Find(t.Context(), 902)
	e, ok := errors.AsType[*node.NotFoundError](err)
	if !ok || len(e.Unreachable) != 1 || e.Unreachable[0].Node != "pve2" ||
		!strings.HasPrefix(err.Error(), "no node that could be asked has CTID 902; node pve2: the agent at 127.0.0.1:") {
		t.Errorf("Find(902) = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Find(ctx, 903); !errors.Is(err, context.Canceled) {
		t.Errorf("Find with an ended context = %v", err)
	}
}

func TestError(t *testing.T) {
	n := one(t, &agent{})
	_, err := n.Prepare(t.Context(), []observed.Ref{{Index: 0}, {Index: 3}}, nil)
	e, ok := errors.AsType[*node.Error](err)
	if !ok {
		t.Fatalf("Prepare = %v, want a *node.Error", err)
	}
	if e.Node != "pve1" || e.Address != n.Address() || e.Code != codes.FailedPrecondition || e.Reason != node.GPUNotFound ||
		e.ReasonName() != "GPU_NOT_FOUND" || e.Message != "no GPU 3; the node has 0, 1" || e.Metadata["available"] != "0,1" {
		t.Errorf("Prepare = %#v", e)
	}
	if got, want := err.Error(), "node pve1: no GPU 3; the node has 0, 1"; got != want {
		t.Errorf("error %q, want %q", got, want)
	}
	// A server passes it on as it is.
	s, ok := status.FromError(err)
	if !ok || s.Code() != codes.FailedPrecondition || len(s.Details()) != 1 {
		t.Fatalf("status %v", s)
	}
	if info, ok := s.Details()[0].(*errdetails.ErrorInfo); !ok || info.GetReason() != "GPU_NOT_FOUND" || info.GetDomain() != "phoenix.internal" ||
		info.GetMetadata()["gpu"] != "3" {
		t.Errorf("details %v", s.Details())
	}
	if node.ReasonOf(errors.New("another")) != errorv1.Reason_REASON_UNSPECIFIED || node.ReasonOf(nil) != errorv1.Reason_REASON_UNSPECIFIED {
		t.Error("an error that is not ours has a reason")
	}
}

// A status that the agent did not make, and one with a reason of a later version.
func TestErrorWithoutReason(t *testing.T) {
	var give error
	n := one(t, &agent{probe: func(*agentv1.ProbeRequest) (*agentv1.ProbeResponse, error) { return nil, give }})
	foreign, err := status.New(codes.Aborted, "m").WithDetails(&errdetails.ErrorInfo{Reason: "DIGEST_MISMATCH", Domain: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	later, err := status.New(codes.Aborted, "m").WithDetails(&errdetails.ErrorInfo{Reason: "FROM_THE_FUTURE", Domain: "phoenix.internal"})
	if err != nil {
		t.Fatal(err)
	}
	for name, give1 := range map[string]error{
		"no details": status.Error(codes.Aborted, "m"), "another domain": foreign.Err(), "a later reason": later.Err(),
	} {
		give = give1
		_, _, err := n.Probe(t.Context(), 901, "")
		e, ok := errors.AsType[*node.Error](err)
		if !ok || e.Reason != errorv1.Reason_REASON_UNSPECIFIED || e.ReasonName() != "" || e.Code != codes.Aborted || e.Message != "m" {
			t.Errorf("%s: Probe = %#v", name, err)
		}
		if s, _ := status.FromError(err); s.Code() != codes.Aborted || len(s.Details()) != 0 {
			t.Errorf("%s: status %v", name, s)
		}
	}
}

func TestCanceled(t *testing.T) {
	n := one(t, &agent{hang: true})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err := n.Devices().ListDevices(ctx, &agentv1.ListDevicesRequest{})
	if !errors.Is(err, context.Canceled) || node.ReasonOf(err) == node.Unreachable {
		t.Errorf("ListDevices = %v, want one that is context.Canceled", err)
	}
}

func TestPatch(t *testing.T) {
	var got *agentv1.PatchConfRequest
	n := one(t, &agent{patch: func(r *agentv1.PatchConfRequest) (*agentv1.PatchConfResponse, error) {
		got = r
		return &agentv1.PatchConfResponse{Changed: true, Before: []byte("a\xff"), After: []byte("b"), Digest: "new", Revision: 7}, nil
	}})
	p, err := n.Patch(t.Context(), node.Patch{
		CTID: 901, GPUs: []observed.Ref{
			{Index: 0, UUID: "GPU-1"}, {Index: 1}, {Index: 2, UUID: "GPU-3", IsMIG: true, MIG: observed.MIGDevice{UUID: "MIG-1"}},
		},
		Mode: observed.ModeNative, Capabilities: []string{"compute", "graphics"}, Assignment: "0,1,2:0", Digest: "old", DryRun: true, RequestID: "run/901", Who: "J\u00f6rg\x1b\xff",
	})
	want := node.Patched{Changed: true, Before: []byte("a\xff"), After: []byte("b"), Digest: "new", Revision: 7}
	if diff := cmp.Diff(want, p); err != nil || diff != "" {
		t.Errorf("Patch: %v, -want +got:\n%s", err, diff)
	}
	set := got.GetOperations()[0].GetSetPassthrough()
	if got.GetCtid() != 901 || got.GetDigest() != "old" || !got.GetDryRun() || got.GetRequestId() != "run/901" || got.GetOnBehalfOf() != "J\u00f6rg??" || len(got.GetOperations()) != 1 ||
		set.GetMode() != typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE || len(set.GetGpus()) != 3 || set.GetGpus()[0].GetUuid() != "GPU-1" || set.GetGpus()[1].GetIndex() != 1 || set.GetGpus()[2].GetUuid() != "MIG-1" ||
		set.GetAssignment() != "0,1,2:0" || !slices.Equal(set.GetCapabilities(), []typev1.GpuCapability{
		typev1.GpuCapability_GPU_CAPABILITY_COMPUTE, typev1.GpuCapability_GPU_CAPABILITY_GRAPHICS,
	}) {
		t.Errorf("request %v", got)
	}
	if _, err := n.Patch(t.Context(), node.Patch{CTID: 901, Mode: observed.ModeRaw}); err != nil {
		t.Fatal(err)
	}
	set = got.GetOperations()[0].GetSetPassthrough()
	if set.GetMode() != typev1.PassthroughMode_PASSTHROUGH_MODE_RAW || set == nil || len(set.GetGpus()) != 0 {
		t.Errorf("request without GPUs %v", got)
	}
}

// An identity that an agent would refuse is made fit: its owner must be able to work.
func TestOnBehalfOf(t *testing.T) {
	for _, test := range []struct{ name, who, want string }{
		{"nobody", "", ""},
		{"a URI", "spiffe://fleet/ann", "spiffe://fleet/ann"},
		{"control characters", "ann\n\x00\u202e", "ann???"},
		{"not UTF-8", "ann\xff\xfe", "ann?"},
		{"long", strings.Repeat("n", 257), strings.Repeat("n", 256)},
		{"long, cut between characters", strings.Repeat("n", 255) + "\u00f6", strings.Repeat("n", 255)},
	} {
		if got := node.OnBehalfOf(test.who); got != test.want {
			t.Errorf("%s: OnBehalfOf(%q) = %q, want %q", test.name, test.who, got, test.want)
		}
	}
}

func TestRestart(t *testing.T) {
	send := func(s grpc.ServerStreamingServer[agentv1.RestartResponse], phase typev1.RestartPhase, message string, c *typev1.Container) error {
		return s.Send(&agentv1.RestartResponse{Progress: &typev1.RestartProgress{Phase: phase, Message: message, Container: c}})
	}
	const stopping, running = typev1.RestartPhase_RESTART_PHASE_SHUTTING_DOWN, typev1.RestartPhase_RESTART_PHASE_RUNNING
	tests := []struct {
		name    string
		restart func(*agentv1.RestartRequest, grpc.ServerStreamingServer[agentv1.RestartResponse]) error
		phases  []string
		reason  node.Reason
		err     string
	}{
		{"well", func(_ *agentv1.RestartRequest, s grpc.ServerStreamingServer[agentv1.RestartResponse]) error {
			return errors.Join(send(s, stopping, "60s", nil), send(s, running, "", &typev1.Container{Ctid: 901, Instance: "new"}))
		}, []string{"shutting_down 60s", "running "}, 0, ""},
		{"rolled back", func(_ *agentv1.RestartRequest, s grpc.ServerStreamingServer[agentv1.RestartResponse]) error {
			if err := send(s, stopping, "", nil); err != nil {
				return err
			}
			return fail(codes.FailedPrecondition, errorv1.Reason_REASON_START_ROLLED_BACK, "the old conf is back", nil)
		}, []string{"shutting_down "}, node.StartRolledBack, "node pve1: the old conf is back"},
		{"ends without an answer", func(_ *agentv1.RestartRequest, s grpc.ServerStreamingServer[agentv1.RestartResponse]) error {
			return send(s, stopping, "", nil)
		}, []string{"shutting_down "}, 0, "node pve1: restart of CTID 901 ended without an answer"},
		{"request", func(r *agentv1.RestartRequest, _ grpc.ServerStreamingServer[agentv1.RestartResponse]) error {
			return status.Error(codes.Aborted, strings.Join([]string{r.GetInstance(), r.GetTimeout().AsDuration().String(), r.GetRequestId(),
				r.GetOnBehalfOf()}, " "))
		}, nil, 0, "node pve1: old 1m0s run/901 ann"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := one(t, &agent{restart: test.restart})
			var phases []string
			c, err := n.Restart(t.Context(), node.Restart{CTID: 901, Instance: "old", Timeout: time.Minute, RequestID: "run/901", Who: "ann"},
				func(phase, message string) { phases = append(phases, phase+" "+message) })
			if !slices.Equal(phases, test.phases) {
				t.Errorf("phases %q, want %q", phases, test.phases)
			}
			if test.err == "" && (err != nil || c.Instance != "new") {
				t.Errorf("Restart = %+v, %v", c, err)
			}
			if test.err != "" && (err == nil || err.Error() != test.err || node.ReasonOf(err) != test.reason) {
				t.Errorf("Restart = %v (%v), want %s (%v)", err, node.ReasonOf(err), test.err, test.reason)
			}
		})
	}
}

func TestProbe(t *testing.T) {
	n := one(t, &agent{probe: func(r *agentv1.ProbeRequest) (*agentv1.ProbeResponse, error) {
		return &agentv1.ProbeResponse{Instance: r.GetInstance() + "!", Results: []*typev1.ProbeResult{
			{Path: "/dev/nvidia0", GpuIndex: 0, Outcome: typev1.ProbeOutcome_PROBE_OUTCOME_DENIED, Errno: "EPERM", Message: "m"},
			{Path: "/dev/nvidiactl", GpuIndex: -1, Expected: true, Outcome: typev1.ProbeOutcome_PROBE_OUTCOME_NO_DRIVER},
		}}, nil
	}})
	got, instance, err := n.Probe(t.Context(), 901, "i")
	want := []node.Probed{
		{Path: "/dev/nvidia0", GPU: 0, Outcome: node.Denied, Errno: "EPERM", Message: "m"},
		{Path: "/dev/nvidiactl", GPU: -1, Expected: true, Outcome: node.NoDriver},
	}
	if diff := cmp.Diff(want, got); err != nil || instance != "i!" || diff != "" {
		t.Errorf("Probe: %q, %v, -want +got:\n%s", instance, err, diff)
	}
	if v, err := n.PVEVersion(t.Context()); err != nil || v != "9.1.2-sandbox" {
		t.Errorf("PVEVersion = %q, %v", v, err)
	}
	if paths, err := n.Prepare(t.Context(), []observed.Ref{{Index: 0}}, nil); err != nil || !slices.Equal(paths, []string{"/dev/nvidia-uvm"}) {
		t.Errorf("Prepare = %q, %v", paths, err)
	}
}

// Every outcome of the contract has its constant, and every constant its outcome.
func TestOutcomes(t *testing.T) {
	known := []node.Outcome{node.Opened, node.NoDriver, node.Denied, node.NoPermission, node.Absent, node.NotADevice, node.WrongNumber, node.TimedOut, node.Failed}
	var want []node.Outcome
	for i := range int32(len(typev1.ProbeOutcome_name)) {
		if i > 0 {
			want = append(want, node.Outcome(strings.ToLower(strings.TrimPrefix(typev1.ProbeOutcome_name[i], "PROBE_OUTCOME_"))))
		}
	}
	if !slices.Equal(known, want) {
		t.Errorf("constants %q, contract %q", known, want)
	}
}

func TestRun(t *testing.T) {
	script := bytes.Repeat([]byte("x"), 100_000)
	long := strings.Repeat("y", 32<<10)
	var heard *said
	tests := []struct {
		name    string
		command node.Command
		exec    func(agentv1.ExecService_ExecServer) error
		want    node.Exit
		err     string
	}{
		{"output and status", node.Command{Argv: []string{"true"}}, func(s agentv1.ExecService_ExecServer) (err error) {
			if heard, err = hear(s); err != nil {
				return err
			}
			return say(s, stdout("a"), stderr("b"), stdout("c"), exit(3))
		}, node.Exit{Code: 3, Stdout: []byte("ac"), Output: []byte("abc")}, ""},
		{"the end of long output", node.Command{Argv: []string{"true"}}, func(s agentv1.ExecService_ExecServer) (err error) {
			if heard, err = hear(s); err != nil {
				return err
			}
			return say(s, stdout(long), stdout("end"), exit(0))
		}, node.Exit{Stdout: []byte(long[:16<<10-3] + "end"), Output: []byte(long[:16<<10-3] + "end")}, ""},
		{"stdin in pieces", node.Command{Argv: []string{"sh"}, Stdin: script}, func(s agentv1.ExecService_ExecServer) (err error) {
			if heard, err = hear(s); err != nil {
				return err
			}
			return say(s, exit(0))
		}, node.Exit{}, ""},
		{"a command that does not read its stdin", node.Command{Argv: []string{"true"}, Stdin: bytes.Repeat(script, 100)},
			func(s agentv1.ExecService_ExecServer) error {
				heard = nil
				return say(s, exit(0))
			}, node.Exit{}, ""},
		{"a status", node.Command{Argv: []string{"true"}, Stdin: bytes.Repeat(script, 100)}, func(agentv1.ExecService_ExecServer) error {
			heard = nil
			return fail(codes.FailedPrecondition, errorv1.Reason_REASON_CONTAINER_NOT_RUNNING, "it is stopped", nil)
		}, node.Exit{}, "node pve1: it is stopped"},
		{"no answer", node.Command{Argv: []string{"true"}}, func(agentv1.ExecService_ExecServer) error { heard = nil; return nil },
			node.Exit{}, "node pve1: the exec in CTID 901 ended without an answer"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := one(t, &agent{exec: test.exec})
			test.command.CTID, test.command.Env, test.command.Timeout = 901, []string{"A=b"}, 7*time.Second
			got, err := n.Run(t.Context(), test.command)
			if test.err != "" {
				if err == nil || err.Error() != test.err {
					t.Errorf("Run = %v, want %s", err, test.err)
				}
				return
			}
			if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
				t.Fatalf("Run: %v, -want +got:\n%s", err, diff)
			}
			if heard == nil {
				return
			}
			s := heard.start
			if s.GetCtid() != 901 || !slices.Equal(s.GetArgv(), test.command.Argv) || !slices.Equal(s.GetEnv(), []string{"A=b"}) ||
				s.GetTimeout().AsDuration() != 7*time.Second || s.GetTty() {
				t.Errorf("start %v", s)
			}
			if !bytes.Equal(heard.stdin.Bytes(), test.command.Stdin) || heard.largest > 32<<10 {
				t.Errorf("%d bytes of stdin came, in pieces of up to %d", heard.stdin.Len(), heard.largest)
			}
		})
	}
}

// An agent that comes back is reached again at once, however long it was away: no call waits for gRPC's back-off.
func TestReconnect(t *testing.T) {
	ca := pkitest.NewCA(t, "test")
	address := refused(t)
	f := dial(t, ca, node.Config{Name: "pve1", Address: address})
	for range 6 { // so that the next attempt would be due in a second or two
		if err := f.Observe(t.Context()).Nodes[0].Err; node.ReasonOf(err) != node.Unreachable {
			t.Fatalf("Observe = %v, want one that is Unreachable", err)
		}
	}
	(&agent{}).serveOn(t, ca, "pve1", listen(t, address))
	err := f.Observe(t.Context()).Nodes[0].Err
	if err != nil { // the handshake may be slow on a busy machine; the next call finds it done
		err = f.Observe(t.Context()).Nodes[0].Err
	}
	if err != nil {
		t.Errorf("not reached again: %v", err)
	}
}
