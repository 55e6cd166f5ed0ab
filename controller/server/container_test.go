package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/client"
	"phoenix.internal/controller/nodetest"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
	"phoenix.internal/controller/server"
)

func TestNodes(t *testing.T) {
	pve1, pve2, pve3 := &nodetest.Agent{Name: "pve1", GPUs: 1}, &nodetest.Agent{Name: "pve2", GPUs: 2}, &nodetest.Agent{Name: "pve3"}
	pve2.Add(902, true)
	pve1.Add(903, true)
	pve2.Add(901, false)
	f := start(t, "", pve2, pve1, pve3)
	pve3.Stop()
	down := func(what string, errs []*typev1.NodeError) {
		t.Helper()
		if len(errs) != 1 || errs[0].GetNode() != "pve3" || errs[0].GetAddress() == "" || errs[0].GetMessage() == "" {
			t.Errorf("%s: unreachable %v, want pve3 with address and message", what, errs)
		}
	}
	nodes, err := f.Nodes.ListNodes(t.Context(), &controllerv1.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	down("ListNodes", nodes.GetUnreachable())
	if n := nodes.GetNodes(); len(n) != 2 || n[0].GetName() != "pve1" || n[1].GetName() != "pve2" {
		t.Errorf("nodes %v, want pve1, pve2", n)
	}
	devices, err := f.Nodes.ListDevices(t.Context(), &controllerv1.ListDevicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	down("ListDevices", devices.GetUnreachable())
	if d := devices.GetNodes(); len(d) != 2 || len(d[0].GetGpus()) != 1 || len(d[1].GetGpus()) != 2 {
		t.Errorf("devices %v, want one GPU, then two", d)
	}
	devices, err = f.Nodes.ListDevices(t.Context(), &controllerv1.ListDevicesRequest{Node: "pve2"})
	if d := devices.GetNodes(); err != nil || len(d) != 1 || d[0].GetNode() != "pve2" || len(devices.GetUnreachable()) != 0 {
		t.Errorf("devices of pve2: %v, %v", devices, err)
	}
	containers, err := f.Containers.ListContainers(t.Context(), &controllerv1.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	down("ListContainers", containers.GetUnreachable())
	var ctids []int32
	for _, c := range containers.GetContainers() {
		ctids = append(ctids, c.GetCtid())
	}
	if want := []int32{901, 902, 903}; !slices.Equal(ctids, want) {
		t.Errorf("containers %v, want %v", ctids, want)
	}
	_, err = f.Nodes.ListDevices(t.Context(), &controllerv1.ListDevicesRequest{Node: "pve9"})
	wantReason(t, "ListDevices of pve9", err, codes.NotFound, errorv1.Reason_REASON_NODE_NOT_FOUND, map[string]string{"node": "pve9"})
	_, err = f.Containers.ListContainers(t.Context(), &controllerv1.ListContainersRequest{Node: "pve9"})
	wantReason(t, "ListContainers of pve9", err, codes.NotFound, errorv1.Reason_REASON_NODE_NOT_FOUND, map[string]string{"node": "pve9"})
}

func TestContainer(t *testing.T) {
	pve1, pve2 := &nodetest.Agent{Name: "pve1", GPUs: 1}, &nodetest.Agent{Name: "pve2", GPUs: 1}
	pve2.Add(901, true, 0)
	f := start(t, "", pve1, pve2)
	ctx := t.Context()

	got, err := f.Containers.GetContainer(ctx, &controllerv1.GetContainerRequest{Ctid: 901})
	if err != nil || got.GetContainer().GetNode() != "pve2" || !strings.HasPrefix(string(got.GetConf()), "memory: 512\n") {
		t.Errorf("GetContainer: %v, %v", got, err)
	}
	if got.GetEffectiveEntries() != nil {
		t.Errorf("GetContainer: effective entries that nobody asked for: %v", got.GetEffectiveEntries())
	}
	got, err = f.Containers.GetContainer(ctx, &controllerv1.GetContainerRequest{Ctid: 901, IncludeEffectiveEntries: true})
	if e := got.GetEffectiveEntries(); err != nil || len(e) != 1 || e[0].GetKey() != "lxc.uts.name" || e[0].GetValue() != "ct901" {
		t.Errorf("GetContainer with effective entries: %v, %v", e, err)
	}
	revisions, err := f.Containers.ListRevisions(ctx, &controllerv1.ListRevisionsRequest{Ctid: 901})
	if err != nil || len(revisions.GetRevisions()) != 1 {
		t.Errorf("ListRevisions: %v, %v", revisions, err)
	}
	revision, err := f.Containers.GetRevision(ctx, &controllerv1.GetRevisionRequest{Ctid: 901, Revision: 1})
	if err != nil || string(revision.GetConf()) != "memory: 256\n" || revision.GetRevision().GetWho() != "ann" {
		t.Errorf("GetRevision: %v, %v", revision, err)
	}
	_, err = f.Containers.GetRevision(ctx, &controllerv1.GetRevisionRequest{Ctid: 901, Revision: 2})
	wantReason(t, "GetRevision 2", err, codes.NotFound, errorv1.Reason_REASON_REVISION_NOT_FOUND, map[string]string{"revision": "2", "node": "pve2"})
	restored, err := f.Containers.RestoreRevision(ctx, &controllerv1.RestoreRevisionRequest{Ctid: 901, Revision: 1})
	if err != nil || !regexp.MustCompile(`^restored for controller [0-9a-f]{16}$`).MatchString(restored.GetDigest()) {
		t.Errorf("RestoreRevision: %v, %v; want the agent to get a request_id", restored, err)
	}
	probe, err := f.Containers.Probe(ctx, &controllerv1.ProbeRequest{Ctid: 901})
	if err != nil || probe.GetNode() != "pve2" || len(probe.GetResults()) != 4 {
		t.Errorf("Probe: %v, %v", probe, err)
	}
	restart, err := f.Containers.Restart(ctx, &controllerv1.RestartRequest{Ctid: 901, Timeout: durationpb.New(0)})
	if err != nil {
		t.Fatal(err)
	}
	var phases []typev1.RestartPhase
	for {
		m, err := restart.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		phases = append(phases, m.GetProgress().GetPhase())
	}
	if want := []typev1.RestartPhase{typev1.RestartPhase_RESTART_PHASE_SHUTTING_DOWN, typev1.RestartPhase_RESTART_PHASE_RUNNING}; !slices.Equal(phases, want) {
		t.Errorf("Restart: phases %v, want %v", phases, want)
	}
	if got, want := pve2.Calls(), []string{"RestoreRevision 901", "Probe 901", "Restart 901"}; !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
	// The agents see the controller's certificate; whose call it was they are told.
	if got, want := pve2.ActedFor(), []string{"RestoreRevision ann", "Restart ann"}; !slices.Equal(got, want) {
		t.Errorf("acted for %q, want %q", got, want)
	}
}

func TestAnswerLimit(t *testing.T) {
	pve1 := &nodetest.Agent{Name: "pve1", Probed: func(*typev1.Container) []*typev1.ProbeResult {
		return []*typev1.ProbeResult{{Message: strings.Repeat("x", 4<<20)}}
	}}
	pve1.Add(901, true)
	f := start(t, "", pve1)
	_, err := f.Containers.Probe(t.Context(), &controllerv1.ProbeRequest{Ctid: 901})
	wantReason(t, "answer of more than 4 MiB", err, codes.ResourceExhausted, errorv1.Reason_REASON_LIMIT_EXCEEDED,
		map[string]string{"limit": "bytes in the answer", "max": "4194304"})
}

// Each call that names a container fails alike if it is not there, and passes on what the agent says.
func TestContainerErrors(t *testing.T) {
	pve1, pve2 := &nodetest.Agent{Name: "pve1"}, &nodetest.Agent{Name: "pve2"}
	locked := nodetest.Failure(codes.FailedPrecondition, "CONTAINER_LOCKED", "CTID 901: locked: backup", map[string]string{"ctid": "901", "lock": "backup"})
	pve1.Fail = map[string]error{"ListRevisions": locked, "RestoreRevision": locked, "Restart": locked, "Probe": locked, "Exec": locked}
	pve1.Add(901, true)
	pve1.Add(902, true)
	pve2.Add(902, true)
	f := start(t, "", pve1, pve2)
	calls := map[string]func(ctx context.Context, ctid int32) error{
		"GetContainer": func(ctx context.Context, ctid int32) error {
			_, err := f.Containers.GetContainer(ctx, &controllerv1.GetContainerRequest{Ctid: ctid})
			return err
		},
		"ListRevisions": func(ctx context.Context, ctid int32) error {
			_, err := f.Containers.ListRevisions(ctx, &controllerv1.ListRevisionsRequest{Ctid: ctid})
			return err
		},
		"GetRevision": func(ctx context.Context, ctid int32) error {
			_, err := f.Containers.GetRevision(ctx, &controllerv1.GetRevisionRequest{Ctid: ctid})
			return err
		},
		"RestoreRevision": func(ctx context.Context, ctid int32) error {
			_, err := f.Containers.RestoreRevision(ctx, &controllerv1.RestoreRevisionRequest{Ctid: ctid})
			return err
		},
		"Probe": func(ctx context.Context, ctid int32) error {
			_, err := f.Containers.Probe(ctx, &controllerv1.ProbeRequest{Ctid: ctid})
			return err
		},
		"Restart": func(ctx context.Context, ctid int32) error {
			s, err := f.Containers.Restart(ctx, &controllerv1.RestartRequest{Ctid: ctid})
			for err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"Exec": func(ctx context.Context, ctid int32) error {
			s, err := f.Containers.Exec(ctx)
			if err == nil {
				err = s.Send(command(ctid))
			}
			for err == nil {
				_, err = s.Recv()
			}
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			for _, ctid := range []int32{-1, 0, 99, 1_000_000_000} {
				wantReason(t, "bad CTID", call(t.Context(), ctid), codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "ctid"})
			}
			wantReason(t, "no such CTID", call(t.Context(), 999), codes.NotFound, errorv1.Reason_REASON_CONTAINER_NOT_FOUND, map[string]string{"ctid": "999"})
			wantReason(t, "on both", call(t.Context(), 902), codes.FailedPrecondition, errorv1.Reason_REASON_CTID_ON_SEVERAL_NODES,
				map[string]string{"ctid": "902", "nodes": "pve1,pve2"})
			if pve1.Fail[name] == nil {
				return
			}
			err := call(t.Context(), 901)
			wantReason(t, "agent's error", err, codes.FailedPrecondition, errorv1.Reason_REASON_CONTAINER_LOCKED,
				map[string]string{"ctid": "901", "lock": "backup", "node": "pve1"})
			if got := status.Convert(err).Message(); got != "node pve1: CTID 901: locked: backup" {
				t.Errorf("message %q", got)
			}
		})
	}
	pve2.Stop()
	pve1.Stop()
	for name, call := range calls {
		err := call(t.Context(), 901)
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s with the nodes down: %v, want Unavailable", name, err)
		}
	}
}

// A container that has migrated since it was last seen is found by each call, and none of its stdin is lost on the way.
func TestMigrated(t *testing.T) {
	pve1, pve2 := &nodetest.Agent{Name: "pve1"}, &nodetest.Agent{Name: "pve2"}
	pve1.Add(901, true)
	f := start(t, "", pve1, pve2)
	where := func() string {
		t.Helper()
		probe, err := f.Containers.Probe(t.Context(), &controllerv1.ProbeRequest{Ctid: 901})
		if err != nil {
			t.Fatal(err)
		}
		return probe.GetNode()
	}
	if got := where(); got != "pve1" {
		t.Fatalf("probed on %s, want pve1", got)
	}
	pve1.Migrate(901, pve2)
	s, err := f.Containers.Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*controllerv1.ExecRequest{command(901), stdin([]byte("all ")), stdin([]byte("of it"))} {
		if err := s.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var echoed []byte
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatalf("%v after %q", err, echoed)
		}
		echoed = append(echoed, m.GetOutput().GetStdout()...)
		if m.GetOutput().GetExit() != nil {
			break
		}
	}
	if string(echoed) != "all of it" {
		t.Errorf("echoed %q, want all of it", echoed)
	}
	pve2.Migrate(901, pve1)
	if got := where(); got != "pve1" {
		t.Errorf("probed on %s, want pve1", got)
	}
	pve1.Migrate(901, pve2)
	pve1.Stop()
	nodes, err := f.Nodes.ListNodes(t.Context(), &controllerv1.ListNodesRequest{})
	if err != nil || len(nodes.GetUnreachable()) != 1 { // the controller knows now
		t.Fatalf("ListNodes: %v, %v", nodes, err)
	}
	if got := where(); got != "pve2" {
		t.Errorf("probed on %s although it was on a node that is away, want pve2", got)
	}
}

func command(ctid int32) *controllerv1.ExecRequest {
	return &controllerv1.ExecRequest{Input: &typev1.ExecInput{Input: &typev1.ExecInput_Start{
		Start: &typev1.ExecStart{Ctid: ctid, Argv: []string{"cat"}, Stdin: true},
	}}}
}

func stdin(b []byte) *controllerv1.ExecRequest {
	return &controllerv1.ExecRequest{Input: &typev1.ExecInput{Input: &typev1.ExecInput_Stdin{Stdin: b}}}
}

// More than the windows of both connections hold goes through, in both directions at once, to the last byte.
func TestExec(t *testing.T) {
	pve1 := &nodetest.Agent{Name: "pve1"}
	pve1.Add(901, true)
	f := start(t, "", pve1)
	s, err := f.Containers.Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const chunks, size = 512, 32 << 10
	chunk := func(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8)}, size/2) }
	sent := make(chan error, 1)
	go func() {
		err := s.Send(command(901))
		for i := 0; i < chunks && err == nil; i++ {
			err = s.Send(stdin(chunk(i)))
		}
		if err == nil {
			err = s.CloseSend()
		}
		sent <- err
	}()
	var started bool
	var out int
	var exit *typev1.ExecExit
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		started = started || m.GetOutput().GetStarted() != nil
		if b := m.GetOutput().GetStdout(); b != nil {
			if !bytes.Equal(b, chunk(out)) {
				t.Fatalf("chunk %d of the output is not that of the input", out)
			}
			out++
		}
		if e := m.GetOutput().GetExit(); e != nil {
			exit = e
		}
	}
	if err := <-sent; err != nil {
		t.Errorf("send: %v", err)
	}
	if !started || out != chunks || exit.GetCode() != 7 || !exit.GetOutputComplete() {
		t.Errorf("started %t, %d chunks, exit %v; want true, %d, status 7", started, out, exit, chunks)
	}
}

// The agent's stream ends when the caller goes away.
func TestExecCallerLeaves(t *testing.T) {
	ended := make(chan error, 1)
	pve1 := &nodetest.Agent{Name: "pve1", OnExec: func(s agentv1.ExecService_ExecServer) error {
		err := s.Send(&agentv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Started{Started: &typev1.ExecStarted{}}}})
		<-s.Context().Done()
		ended <- err
		return s.Context().Err()
	}}
	pve1.Add(901, true)
	f := start(t, "", pve1)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := f.Containers.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(command(901)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("agent: %v", err)
	}
}

// The agent may end the stream while the caller still has its side open.
func TestExecEndsBeforeStdin(t *testing.T) {
	pve1 := &nodetest.Agent{Name: "pve1", OnExec: func(s agentv1.ExecService_ExecServer) error {
		return s.Send(&agentv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Exit{Exit: &typev1.ExecExit{Code: 127}}}})
	}}
	pve1.Add(901, true)
	f := start(t, "", pve1)
	s, err := f.Containers.Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(command(901)); err != nil {
		t.Fatal(err)
	}
	m, err := s.Recv()
	if err != nil || m.GetOutput().GetExit().GetCode() != 127 {
		t.Fatalf("got %v, %v; want exit 127", m, err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after exit: %v, want the end", err)
	}
}

// Output that the caller does not read stays with the agent: the windows fill, and its Send waits.
func TestExecUnread(t *testing.T) {
	const size = 32 << 10
	sent := make(chan int, 1)
	pve1 := &nodetest.Agent{Name: "pve1", OnExec: func(s agentv1.ExecService_ExecServer) error {
		n := 0
		for s.Send(&agentv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Stdout{Stdout: make([]byte, size)}}}) == nil {
			n += size
		}
		sent <- n
		return s.Context().Err()
	}}
	pve1.Add(901, true)
	f := start(t, "", pve1)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // the agent runs as far as it can until then
	defer cancel()
	s, err := f.Containers.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(command(901)); err != nil {
		t.Fatal(err)
	}
	if n := <-sent; n < 128<<10 || n > 1<<20 {
		t.Errorf("the agent could send %d KiB, want 128 to 1024", n>>10)
	}
}

// A caller that sends nothing does not keep its stream.
func TestExecLateStart(t *testing.T) {
	server.SetStartWait(t, 20*time.Millisecond)
	f := start(t, "")
	s, err := f.Containers.Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Recv()
	wantReason(t, "nothing", err, codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "input.start"})
}

// Output that nobody reads is held within bounds. Agent and caller are in this process too: what they hold is measured
// without a controller between them, and the controller's share is the difference.
func TestExecUnreadMemory(t *testing.T) {
	const (
		streams = 63 // what an agent takes on one connection
		chunk   = 16<<10 - 64
		bound   = 256 << 10
	)
	var sent, waiting atomic.Int64
	pve1 := &nodetest.Agent{Name: "pve1", OnExec: func(s agentv1.ExecService_ExecServer) error {
		out := &agentv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Stdout{Stdout: zeros[:chunk]}}}
		for {
			waiting.Add(1)
			err := s.Send(out)
			waiting.Add(-1)
			if err != nil {
				return err
			}
			sent.Add(chunk)
		}
	}}
	pve1.Add(901, true)
	f := start(t, "", pve1)
	measure := func(call func(context.Context) error) (bytes, held int64) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		before := heldBytes()
		sent.Store(0)
		for range streams {
			if err := call(ctx); err != nil {
				t.Fatal(err)
			}
		}
		for still, last := 0, int64(0); still < 20; {
			time.Sleep(25 * time.Millisecond)
			if now := sent.Load(); now != last || waiting.Load() != streams {
				still, last = 0, now
				continue
			}
			still++
		}
		bytes, held = sent.Load(), heldBytes()-before
		cancel()
		for waiting.Load() > 0 {
			time.Sleep(5 * time.Millisecond)
		}
		return bytes, held
	}
	direct, err := client.Dial(f.agents[0], load(t, f.ca.Issue(t, pkitest.Leaf{Name: "direct", Purposes: []pki.Purpose{pki.Call}}), pki.Call).Client("pve1"))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close() //nolint:errcheck // nothing depends on it any more
	sentDirectly, heldOutside := measure(func(ctx context.Context) error {
		_, err := agentv1.NewExecServiceClient(direct).Exec(ctx)
		return err
	})
	sentThrough, heldInAll := measure(func(ctx context.Context) error {
		s, err := f.Containers.Exec(ctx)
		if err != nil {
			return err
		}
		return s.Send(command(901))
	})
	taken, held := (sentThrough-sentDirectly)/streams, (heldInAll-heldOutside)/streams
	t.Logf("for each stream: %d KiB taken by the controller, %d KiB held", taken>>10, held>>10)
	if taken < chunk {
		t.Errorf("%d bytes taken from the agent: this measures nothing", taken)
	}
	if taken > bound || held > bound {
		t.Errorf("%d KiB taken and %d KiB held for each stream, want at most %d", taken>>10, held>>10, bound>>10)
	}
}

var zeros [32 << 10]byte

// heldBytes returns what this process holds in heap and stacks.
func heldBytes() int64 {
	runtime.GC()
	runtime.GC() // what lies in pools survives one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func TestExecWithoutStart(t *testing.T) {
	f := start(t, "")
	field := map[string]string{"field": "input.start"}
	s, err := f.Containers.Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(stdin([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	_, err = s.Recv()
	wantReason(t, "stdin first", err, codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, field)
	s, err = f.Containers.Exec(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	_, err = s.Recv()
	wantReason(t, "nothing", err, codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, field)
}
