package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/server"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

const plain = `arch: amd64
hostname: trainer
memory: 512
ostype: debian
rootfs: local:subvol-901-disk-0,size=8G
unprivileged: 1
`

func newNode(t *testing.T) *agenttest.Node {
	t.Helper()
	n := agenttest.New(t, agenttest.Options{GPUs: 2})
	n.PutConf(901, plain)
	return n
}

func gpu(index int32) *typev1.GpuSelector {
	return &typev1.GpuSelector{Gpu: &typev1.GpuSelector_Index{Index: index}}
}

func setGPUs(indexes ...int32) *agentv1.ConfOperation {
	op := &agentv1.SetPassthrough{Mode: typev1.PassthroughMode_PASSTHROUGH_MODE_RAW}
	for _, i := range indexes {
		op.Gpus = append(op.Gpus, gpu(i))
	}
	return &agentv1.ConfOperation{Operation: &agentv1.ConfOperation_SetPassthrough{SetPassthrough: op}}
}

// No plaintext, no older TLS, nobody without a client certificate of our authority.
func TestHandshake(t *testing.T) {
	n := newNode(t)
	foreign := agenttest.NewCA(t)
	good := n.CA.ClientTLS(t, "tester", n.Name)
	tests := []struct {
		name string
		cfg  func() *tls.Config
		ok   bool
	}{
		{"our client", func() *tls.Config { return good.Clone() }, true},
		{"TLS 1.2", func() *tls.Config {
			c := good.Clone()
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}, false},
		{"no certificate", func() *tls.Config { c := good.Clone(); c.Certificates = nil; return c }, false},
		{"certificate of another authority", func() *tls.Config {
			c := good.Clone()
			c.Certificates = foreign.ClientTLS(t, "tester", n.Name).Certificates
			return c
		}, false},
		{"certificate of a server", func() *tls.Config {
			c := good.Clone()
			c.Certificates = agenttest.LoadTLS(t, n.CA.Issue(t, "pve9", agenttest.Server), n.Name).Certificates
			return c
		}, false},
		{"client that expects another node", func() *tls.Config { c := good.Clone(); c.ServerName = "pve9"; return c }, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			conn := agenttest.Dial(t, n.Address, tc.cfg())
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := agentv1.NewNodeServiceClient(conn).GetNode(ctx, &agentv1.GetNodeRequest{})
			if tc.ok != (err == nil) {
				t.Errorf("got %v, want success %v", err, tc.ok)
			}
			if !tc.ok && status.Code(err) != codes.Unavailable {
				t.Errorf("code %v, want Unavailable: no handler may have answered", status.Code(err))
			}
		})
	}
	t.Run("plaintext", func(t *testing.T) {
		conn, err := net.Dial("tcp", n.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the server leaves a connection without TLS open")
		}
		// Nothing, or an alert of TLS: an HTTP/2 server would begin with its settings.
		const alert = 0x15
		if len(got) > 0 && got[0] != alert {
			t.Errorf("the server answered without TLS: %q", got)
		}
	})
}

func TestHealthAndReflection(t *testing.T) {
	conn := newNode(t).Dial(t)
	services := []string{
		"phoenix.agent.v1.ContainerService", "phoenix.agent.v1.DeviceService",
		"phoenix.agent.v1.DriverService", "phoenix.agent.v1.ExecService", "phoenix.agent.v1.FileService", "phoenix.agent.v1.NodeService",
	}
	for _, service := range append([]string{""}, services...) {
		resp, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v; want SERVING", service, resp.GetStatus(), err)
		}
	}
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		if strings.HasPrefix(s.GetName(), "phoenix.") {
			got = append(got, s.GetName())
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(services, got); diff != "" {
		t.Errorf("reflected services (-want +got):\n%s", diff)
	}
}

// A client that asks for the health of what it needs learns that the confs cannot be read.
func TestHealthTellsThatProxmoxFileSystemIsGone(t *testing.T) {
	n := newNode(t)
	health := healthv1.NewHealthClient(n.Dial(t))
	watch, err := health.Watch(t.Context(), &healthv1.HealthCheckRequest{Service: "phoenix.agent.v1.ContainerService"})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if resp, err := watch.Recv(); err != nil || resp.GetStatus() != want {
			t.Fatalf("got %v, %v; want %v", resp.GetStatus(), err, want)
		}
	}
	next(healthv1.HealthCheckResponse_SERVING)
	if err := os.Remove(filepath.Join(n.Dir, "etc/pve/local")); err != nil {
		t.Fatal(err)
	}
	next(healthv1.HealthCheckResponse_NOT_SERVING)
	resp, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "phoenix.agent.v1.NodeService"})
	if err != nil || resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("NodeService: %v, %v; want SERVING", resp.GetStatus(), err)
	}
	if err := os.Symlink("nodes/pve1", filepath.Join(n.Dir, "etc/pve/local")); err != nil {
		t.Fatal(err)
	}
	next(healthv1.HealthCheckResponse_SERVING)
}

func TestConnectionsPerAddress(t *testing.T) {
	n := newNode(t)
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp", n.Address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	// closed says whether the server closes the connection before it has heard anything.
	closed := func(conn net.Conn) bool {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Read(make([]byte, 1))
		return !errors.Is(err, os.ErrDeadlineExceeded)
	}
	first := dial("127.0.0.1")
	for range 7 {
		dial("127.0.0.1")
	}
	if closed(first) {
		t.Error("the first connection was closed")
	}
	if !closed(dial("127.0.0.1")) {
		t.Error("the ninth connection from one address stays")
	}
	if closed(dial("127.0.0.2")) {
		t.Error("a connection from another address was closed")
	}
	first.Close()
	for begin := time.Now(); closed(dial("127.0.0.1")); {
		if time.Since(begin) > 5*time.Second {
			t.Fatal("the place of a closed connection is not given to another")
		}
	}
}

func TestTLSRefusesAKeyThatOthersMayRead(t *testing.T) {
	files := agenttest.NewCA(t).Issue(t, "pve1", agenttest.Server)
	if err := os.Chmod(files.KeyFile, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err := server.TLS(server.TLSFiles(files))
	want := "tls.key_file: " + files.KeyFile + ": others than its owner may use it (mode 0640): chmod 600 " + files.KeyFile + ", and replace the key if somebody may have read it"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// reason is the reason in an error's details.
func reason(t *testing.T, err error) string {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			if info.GetDomain() != "phoenix.internal" {
				t.Errorf("domain %q", info.GetDomain())
			}
			if _, ok := errorv1.Reason_value["REASON_"+info.GetReason()]; !ok {
				t.Errorf("reason %q is not in the enum", info.GetReason())
			}
			return info.GetReason()
		}
	}
	t.Errorf("%v has no ErrorInfo", err)
	return ""
}

func TestRefusals(t *testing.T) {
	n := newNode(t)
	n.PutConf(902, "lock: backup\n"+plain)
	n.PutConf(903, "template: 1\n"+plain)
	conn := n.Dial(t)
	containers, devices := agentv1.NewContainerServiceClient(conn), agentv1.NewDeviceServiceClient(conn)
	ctx := t.Context()
	patch := func(ctid int32, digest string, ops ...*agentv1.ConfOperation) error {
		_, err := containers.PatchConf(ctx, &agentv1.PatchConfRequest{Ctid: ctid, Digest: digest, Operations: ops})
		return err
	}
	restart := func(req *agentv1.RestartRequest) error {
		stream, err := containers.Restart(ctx, req)
		for err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	for _, tc := range []struct {
		name   string
		err    error
		code   codes.Code
		reason string
		text   string
	}{
		{"CTID too small", patch(99, "", setGPUs(0)), codes.InvalidArgument, "INVALID_FIELD",
			"ctid: 99 is not between 100 and 999999999"},
		{"no operation", patch(901, ""), codes.InvalidArgument, "INVALID_FIELD",
			"operations: 0 given; 1 to 64 are allowed"},
		{"an empty operation", patch(901, "", &agentv1.ConfOperation{}), codes.InvalidArgument, "INVALID_FIELD",
			"operations[0]: has no operation"},
		{"no mode", patch(901, "", &agentv1.ConfOperation{Operation: &agentv1.ConfOperation_SetPassthrough{
			SetPassthrough: &agentv1.SetPassthrough{}}}), codes.InvalidArgument, "INVALID_FIELD",
			"operations[0].set_passthrough.mode: must be RAW or NATIVE"},
		{"no digest", patch(901, "x", setGPUs(0)), codes.InvalidArgument, "INVALID_FIELD",
			`digest: "x" is no SHA-1 in lower-case hex`},
		{"a stale digest", patch(901, strings.Repeat("0", 40), setGPUs(0)), codes.Aborted, "DIGEST_MISMATCH", ""},
		{"no such container", patch(999, "", setGPUs(0)), codes.NotFound, "CONTAINER_NOT_FOUND", ""},
		{"a locked container", patch(902, "", setGPUs(0)), codes.FailedPrecondition, "CONTAINER_LOCKED", ""},
		{"no such GPU", patch(901, "", setGPUs(3)), codes.FailedPrecondition, "GPU_NOT_FOUND", "edit conf of CTID 901: no GPU 3; the node has 0, 1"},
		{"a hook", patch(901, "", &agentv1.ConfOperation{Operation: &agentv1.ConfOperation_SetLxcOption{
			SetLxcOption: &agentv1.SetLxcOption{Key: "lxc.hook.pre-start", Value: "/x"}}}),
			codes.FailedPrecondition, "LXC_OPTION_NOT_ALLOWED", ""},
		{"a property that Phoenix does not set", patch(901, "", &agentv1.ConfOperation{Operation: &agentv1.ConfOperation_SetProperty{
			SetProperty: &agentv1.SetProperty{Key: "rootfs", Value: "x"}}}), codes.InvalidArgument, "PROPERTY_NOT_ALLOWED", ""},
		{"restart of a template", restart(&agentv1.RestartRequest{Ctid: 903}), codes.FailedPrecondition, "CONTAINER_IS_TEMPLATE", ""},
		{"restart of another instance", restart(&agentv1.RestartRequest{Ctid: 901, Instance: "gone"}),
			codes.Aborted, "INSTANCE_CHANGED", "CTID 901 stopped since it was looked at"},
		{"restart with a negative timeout", restart(&agentv1.RestartRequest{Ctid: 901, Timeout: durationpb.New(-time.Second)}),
			codes.InvalidArgument, "INVALID_FIELD", "timeout: -1s is not between 0 s and 10m0s"},
		{"on behalf of somebody with an escape", second(containers.PatchConf(ctx, &agentv1.PatchConfRequest{Ctid: 901,
			Operations: []*agentv1.ConfOperation{setGPUs(0)}, OnBehalfOf: "ann\x1b[2J"})), codes.InvalidArgument, "INVALID_FIELD",
			"on_behalf_of: at most 256 bytes of printable characters are allowed"},
		{"on behalf of a long name", restart(&agentv1.RestartRequest{Ctid: 901, OnBehalfOf: strings.Repeat("n", 257)}),
			codes.InvalidArgument, "INVALID_FIELD", "on_behalf_of: at most 256 bytes of printable characters are allowed"},
		{"restore on behalf of two lines", second(containers.RestoreRevision(ctx, &agentv1.RestoreRevisionRequest{Ctid: 901, Revision: 1,
			OnBehalfOf: "ann\nroot"})), codes.InvalidArgument, "INVALID_FIELD", "on_behalf_of: at most 256 bytes of printable characters are allowed"},
		{"a long request_id", second(containers.RestoreRevision(ctx, &agentv1.RestoreRevisionRequest{Ctid: 901, Revision: 1,
			RequestId: strings.Repeat("r", 129)})), codes.InvalidArgument, "INVALID_FIELD", "request_id: at most 128 printable ASCII characters are allowed"},
		{"probe of a stopped container", second(containers.Probe(ctx, &agentv1.ProbeRequest{Ctid: 901})),
			codes.FailedPrecondition, "CONTAINER_NOT_RUNNING", "CTID 901: container does not run (stopped)"},
		{"no such revision", second(containers.GetRevision(ctx, &agentv1.GetRevisionRequest{Ctid: 901, Revision: 7})),
			codes.NotFound, "REVISION_NOT_FOUND", "CTID 901 has no revision 7"},
		{"no GPU to prepare", second(devices.PrepareDevices(ctx, &agentv1.PrepareDevicesRequest{})),
			codes.InvalidArgument, "INVALID_FIELD", "gpus: at least one is required"},
		{"a GPU that is not named", second(devices.PrepareDevices(ctx, &agentv1.PrepareDevicesRequest{Gpus: []*typev1.GpuSelector{{}}})),
			codes.InvalidArgument, "INVALID_FIELD", "gpus[0]: names no GPU; set index, uuid or pci_address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if status.Code(tc.err) != tc.code {
				t.Fatalf("got %v, want code %v", tc.err, tc.code)
			}
			if got := reason(t, tc.err); got != tc.reason {
				t.Errorf("reason %s, want %s", got, tc.reason)
			}
			if got := status.Convert(tc.err).Message(); tc.text != "" && got != tc.text {
				t.Errorf("message\n %s\nwant\n %s", got, tc.text)
			}
		})
	}
	if diff := cmp.Diff(plain, n.Conf(901)); diff != "" {
		t.Errorf("a refused call changed the conf:\n%s", diff)
	}
}

func second[T any](_ T, err error) error { return err }

func TestPatchRestartProbe(t *testing.T) {
	n := newNode(t)
	conn := n.Dial(t)
	containers := agentv1.NewContainerServiceClient(conn)
	ctx := t.Context()
	if err := n.Runtime.Start(ctx, 901); err != nil {
		t.Fatal(err)
	}
	patched, err := containers.PatchConf(ctx, &agentv1.PatchConfRequest{
		Ctid: 901, RequestId: "run-1", OnBehalfOf: "ann", Operations: []*agentv1.ConfOperation{setGPUs(1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !patched.GetChanged() || string(patched.GetBefore()) != plain || string(patched.GetAfter()) != n.Conf(901) {
		t.Errorf("patched: %v", patched)
	}
	list, err := containers.ListContainers(ctx, &agentv1.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c := list.GetContainers()[0]
	if !c.GetRestartPending() || len(c.GetConfigured().GetGpus()) != 1 || c.GetConfigured().GetGpus()[0].GetIndex() != 1 ||
		len(c.GetEffective().GetGpus()) != 0 || c.GetDigest() != patched.GetDigest() {
		t.Errorf("after the patch: %v", c)
	}

	stream, err := containers.Restart(ctx, &agentv1.RestartRequest{Ctid: 901, Instance: c.GetInstance()})
	if err != nil {
		t.Fatal(err)
	}
	var last *typev1.RestartProgress
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		last = resp.GetProgress()
	}
	if last.GetPhase() != typev1.RestartPhase_RESTART_PHASE_RUNNING || last.GetContainer().GetRestartPending() ||
		last.GetContainer().GetInstance() == c.GetInstance() {
		t.Errorf("last message of the restart: %v", last)
	}

	probed, err := containers.Probe(ctx, &agentv1.ProbeRequest{Ctid: 901})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]typev1.ProbeOutcome)
	for _, r := range probed.GetResults() {
		got[r.GetPath()] = r.GetOutcome()
	}
	want := map[string]typev1.ProbeOutcome{
		"/dev/nvidia0":          typev1.ProbeOutcome_PROBE_OUTCOME_ABSENT,
		"/dev/nvidia1":          typev1.ProbeOutcome_PROBE_OUTCOME_OPENED,
		"/dev/nvidia-modeset":   typev1.ProbeOutcome_PROBE_OUTCOME_ABSENT,
		"/dev/nvidia-uvm":       typev1.ProbeOutcome_PROBE_OUTCOME_OPENED,
		"/dev/nvidia-uvm-tools": typev1.ProbeOutcome_PROBE_OUTCOME_OPENED,
		"/dev/nvidiactl":        typev1.ProbeOutcome_PROBE_OUTCOME_OPENED,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("probe (-want +got):\n%s", diff)
	}

	devices, err := agentv1.NewDeviceServiceClient(conn).ListDevices(ctx, &agentv1.ListDevicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if gpus := devices.GetDevices().GetGpus(); len(gpus) != 2 || !slices.Equal(gpus[1].GetCtids(), []int32{901}) || len(gpus[0].GetCtids()) != 0 {
		t.Errorf("devices: %v", gpus)
	}

	revisions, err := containers.ListRevisions(ctx, &agentv1.ListRevisionsRequest{Ctid: 901})
	if err != nil {
		t.Fatal(err)
	}
	var ours *typev1.Revision
	for _, r := range revisions.GetRevisions() {
		if r.GetWho() == "tester" {
			ours = r
		}
	}
	if ours.GetWhy() != "patch for run-1" || ours.GetOnBehalfOf() != "ann" || ours.GetReplacedByDigest() != patched.GetDigest() {
		t.Errorf("revision: %v", ours)
	}
	if _, err := containers.RestoreRevision(ctx, &agentv1.RestoreRevisionRequest{Ctid: 901, Revision: ours.GetRevision()}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain, n.Conf(901)); diff != "" {
		t.Errorf("restored conf (-want +got):\n%s", diff)
	}
}

// Each revision says whose certificate it was and, beside that, who was named: a restore as well as a roll-back.
func TestOnBehalfOf(t *testing.T) {
	n := newNode(t)
	containers := agentv1.NewContainerServiceClient(n.Dial(t))
	ctx := t.Context()
	if err := n.Runtime.Start(ctx, 901); err != nil {
		t.Fatal(err)
	}
	patch := func(who string) {
		t.Helper()
		_, err := containers.PatchConf(ctx, &agentv1.PatchConfRequest{
			Ctid: 901, OnBehalfOf: who, Operations: []*agentv1.ConfOperation{setGPUs(1)},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	patch("")
	if _, err := containers.RestoreRevision(ctx, &agentv1.RestoreRevisionRequest{Ctid: 901, Revision: 1, OnBehalfOf: "J\u00f6rg (root)"}); err != nil {
		t.Fatal(err)
	}
	patch("cid")
	n.Runtime.RefuseStart(func(_ int32, conf string) error {
		if strings.Contains(conf, "nvidia") {
			return errors.New("no")
		}
		return nil
	})
	stream, err := containers.Restart(ctx, &agentv1.RestartRequest{Ctid: 901, OnBehalfOf: "dora", RequestId: "run-2"})
	for err == nil {
		_, err = stream.Recv()
	}
	if reason(t, err) != "START_ROLLED_BACK" {
		t.Errorf("restart: %v", err)
	}
	revisions, err := containers.ListRevisions(ctx, &agentv1.ListRevisionsRequest{Ctid: 901})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range slices.Backward(revisions.GetRevisions()) {
		if r.GetWho() != "Proxmox" { // a stop of the fake node
			got = append(got, r.GetOnBehalfOf()+" ("+r.GetWho()+"): "+r.GetWhy())
		}
	}
	want := []string{
		" (tester): patch",
		"J\u00f6rg (root) (tester): restore revision 1",
		"cid (tester): patch",
		"dora (tester): roll-back: the container did not start (restart for run-2)",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("revisions (-want +got):\n%s", diff)
	}
}

// What a container was started with is told only if it is asked for, and stays when the conf changes.
func TestEffectiveEntries(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain+"lxc.environment: A=\xff\n")
	containers := agentv1.NewContainerServiceClient(n.Dial(t))
	get := func(include bool) []*typev1.ConfEntry {
		t.Helper()
		c, err := containers.GetContainer(t.Context(), &agentv1.GetContainerRequest{Ctid: 901, IncludeEffectiveEntries: include})
		if err != nil {
			t.Fatal(err)
		}
		return c.GetEffectiveEntries()
	}
	if got := get(true); got != nil {
		t.Errorf("of a stopped container: %v", got)
	}
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	if got := get(false); got != nil {
		t.Errorf("without being asked for: %v", got)
	}
	n.PutConf(901, "unprivileged: 1\nlxc.environment: A=\xff\n")
	want := []*typev1.ConfEntry{
		{Key: "lxc.uts.name", Value: "trainer"},
		{Key: "lxc.environment", Value: "A=\ufffd", Line: 2},
	}
	if diff := cmp.Diff(want, get(true), protocmp.Transform()); diff != "" {
		t.Errorf("effective entries (-want +got):\n%s", diff)
	}
}

// A watcher must not wait for ever, nor be told of a node as it was, where nothing can be observed.
func TestWatchEventsWithoutProxmoxFileSystem(t *testing.T) {
	n := newNode(t)
	if err := os.Remove(filepath.Join(n.Dir, "etc/pve/local")); err != nil {
		t.Fatal(err)
	}
	stream, err := agentv1.NewNodeServiceClient(n.Dial(t)).WatchEvents(t.Context(), &agentv1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); reason(t, err) != "CONF_FS_UNAVAILABLE" {
		t.Errorf("got %v, want CONF_FS_UNAVAILABLE", err)
	}
}

// The device nodes are made by PrepareDevices; a conf that gives one that is missing would make an empty file of it.
func TestPatchConfRefusesAMissingDeviceNode(t *testing.T) {
	n := newNode(t)
	n.RemoveNode("nvidia1")
	_, err := agentv1.NewContainerServiceClient(n.Dial(t)).PatchConf(t.Context(), &agentv1.PatchConfRequest{
		Ctid: 901, Operations: []*agentv1.ConfOperation{setGPUs(1)},
	})
	if reason(t, err) != "DEVICE_NODE_MISSING" {
		t.Errorf("got %v, want DEVICE_NODE_MISSING", err)
	}
}

// A dry run needs neither the lock nor the device nodes, and says what the real call would write.
func TestPatchConfDryRun(t *testing.T) {
	n := newNode(t)
	resp, err := agentv1.NewContainerServiceClient(n.Dial(t)).PatchConf(t.Context(), &agentv1.PatchConfRequest{
		Ctid: 901, DryRun: true, Operations: []*agentv1.ConfOperation{setGPUs(0)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.GetChanged() || !strings.Contains(string(resp.GetAfter()), "lxc.mount.entry: /dev/nvidia0 ") || resp.GetRevision() != 0 {
		t.Errorf("dry run: %v", resp)
	}
	if diff := cmp.Diff(plain, n.Conf(901)); diff != "" {
		t.Errorf("the dry run wrote:\n%s", diff)
	}
}

func TestPrepareDevicesMakesMissingNodes(t *testing.T) {
	n := newNode(t)
	n.RemoveNode("nvidia-uvm")
	n.RemoveNode("nvidia1")
	devices := agentv1.NewDeviceServiceClient(n.Dial(t))
	req := &agentv1.PrepareDevicesRequest{Gpus: []*typev1.GpuSelector{gpu(1)}}
	resp, err := devices.PrepareDevices(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/dev/nvidia-uvm", "/dev/nvidia1"}, resp.GetCreatedPaths()); diff != "" {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	if resp, err = devices.PrepareDevices(t.Context(), req); err != nil || len(resp.GetCreatedPaths()) != 0 {
		t.Errorf("a second call: %v, %v; want nothing created", resp.GetCreatedPaths(), err)
	}
}

func TestWatchEvents(t *testing.T) {
	n := newNode(t)
	stream, err := agentv1.NewNodeServiceClient(n.Dial(t)).WatchEvents(t.Context(), &agentv1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func() *agentv1.WatchEventsResponse {
		t.Helper()
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	if e := next(); e.GetContainer().GetCtid() != 901 {
		t.Errorf("first event %v, want CTID 901", e)
	}
	if e := next(); e.GetDevices().GetNode() != "pve1" {
		t.Errorf("second event %v, want the devices", e)
	}
	if e := next(); e.GetSynced() == nil {
		t.Errorf("third event %v, want synced", e)
	}
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	if e := next(); e.GetContainer().GetState() != typev1.ContainerState_CONTAINER_STATE_RUNNING {
		t.Errorf("event after the start: %v", e)
	}
	n.RemoveNode("nvidia1")
	if c := next().GetDeviceChange(); c.GetKind() != agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_NODE_LOST || c.GetPath() != "/dev/nvidia1" {
		t.Errorf("event after a device node vanished: %v", c)
	}
	if e := next(); len(e.GetDevices().GetProblems()) != 1 {
		t.Errorf("event after that: %v, want the devices", e)
	}
	n.Stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || reason(t, err) != "SHUTTING_DOWN" {
		t.Errorf("end of the agent: %v, want Unavailable with SHUTTING_DOWN", err)
	}
}

// A virtual machine takes a card from whoever has it when it starts, so the node tells whose conf names one.
func TestVMsThatTakeGPUs(t *testing.T) {
	n := newNode(t)
	for name, conf := range map[string]string{
		"300.conf": "cores: 8\nhostpci0: 0000:01:00,pcie=1\n",
		"301.conf": "hostpci0: 02:00.0;01:00.0\n[before]\nhostpci1: 02:00\n",
		"302.conf": "hostpci0: mapping=cards,pcie=1\nhostpci1: 0000:c1:00.0\n",
		"303.conf": "cores: 2\n[before]\nhostpci0: 02:00\n",
	} {
		if err := os.WriteFile(filepath.Join(n.Dir, "etc/pve/nodes/pve1/qemu-server", name), []byte(conf), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(n.Dir, "etc/pve/nodes/pve1/qemu-server/304.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	resp, err := agentv1.NewDeviceServiceClient(n.Dial(t)).ListDevices(t.Context(), &agentv1.ListDevicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]int32{}
	for _, g := range resp.GetDevices().GetGpus() {
		got[g.GetPciAddress()] = g.GetVms()
	}
	if diff := cmp.Diff(map[string][]int32{"0000:01:00.0": {300, 301}, "0000:02:00.0": {301}}, got); diff != "" {
		t.Errorf("VMs by GPU (-want +got):\n%s", diff)
	}
	problems := resp.GetDevices().GetProblems()
	if len(problems) != 2 || problems[0] != `VM 302 takes PCI devices by the resource mapping "cards"; which ones is unknown here.` ||
		!strings.HasPrefix(problems[1], "Which PCI devices VM 304 takes is unknown: read ") {
		t.Errorf("problems %q", problems)
	}
}

// A node restarts so many containers at a time; a caller that leaves before its turn leaves its container alone.
func TestRestartsAtATime(t *testing.T) {
	n := agenttest.New(t, agenttest.Options{})
	n.Runtime.IgnoreShutdown(true)
	client := agentv1.NewContainerServiceClient(n.Dial(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const most = 16
	for i := range int32(most + 1) {
		n.PutConf(901+i, plain)
		if err := n.Runtime.Start(t.Context(), 901+i); err != nil {
			t.Fatal(err)
		}
	}
	restart := func(ctid int32) agentv1.ContainerService_RestartClient {
		t.Helper()
		stream, err := client.Restart(ctx, &agentv1.RestartRequest{Ctid: ctid, Timeout: durationpb.New(10 * time.Second), NoForce: true})
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	begin := time.Now()
	for i := range int32(most) {
		stream := restart(901 + i)
		for { // until it holds a place for sure
			resp, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if resp.GetProgress().GetPhase() == typev1.RestartPhase_RESTART_PHASE_SHUTTING_DOWN {
				break
			}
		}
	}
	last := restart(901 + most)
	resp, err := last.Recv()
	if err == nil && resp.GetProgress().GetMessage() == "" { // it waits for its turn at the container first
		resp, err = last.Recv()
	}
	if time.Since(begin) > 9*time.Second {
		t.Skip("this machine is too slow: the first restart may be over")
	}
	if want := "16 restarts are under way on this node"; err != nil || resp.GetProgress().GetMessage() != want {
		t.Errorf("got %v, %v; want %s", resp, err, want)
	}
	cancel()
	n.Stop() // waits for those under way
	if slices.Contains(n.Runtime.Calls(), fmt.Sprintf("shutdown %d", 901+most)) {
		t.Error("the container was stopped although its caller had left")
	}
}
