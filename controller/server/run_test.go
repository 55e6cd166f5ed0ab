package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"

	"phoenix.internal/controller/nodetest"
	"phoenix.internal/controller/plan"
	"phoenix.internal/controller/server"
)

func TestKinds(t *testing.T) {
	names := map[plan.Kind]string{
		plan.CheckDevices: "CHECK_DEVICES", plan.PatchConf: "PATCH_CONF", plan.Restart: "RESTART", plan.VerifyDevices: "VERIFY_DEVICES",
		plan.InstallDriver: "INSTALL_DRIVER", plan.VerifyDriver: "VERIFY_DRIVER", plan.Feature: "FEATURE", plan.HealthCheck: "HEALTH_CHECK",
	}
	if got, want := len(names), len(controllerv1.StepKind_name)-1; got != want {
		t.Errorf("%d kinds, the API has %d", got, want)
	}
	for kind, name := range names {
		if got := server.KindProto(kind).String(); got != "STEP_KIND_"+name {
			t.Errorf("%v: got %s, want STEP_KIND_%s", kind, got, name)
		}
	}
}

func TestPlan(t *testing.T) {
	pve1, pve2 := &nodetest.Agent{Name: "pve1", GPUs: 2}, &nodetest.Agent{Name: "pve2", GPUs: 2}
	pve1.Add(901, true, 0)
	pve1.Add(902, false)
	f := start(t, fleetFile(want(901, "0,1", ""), want(902, "none", ""), want(903, "0", "")), pve1, pve2)
	pve2.Stop()
	resp, err := f.Runs.Plan(t.Context(), &controllerv1.PlanRequest{})
	if err != nil {
		t.Fatal(err)
	}
	p := resp.GetPlan()
	if len(p.GetContainers()) != 3 || len(p.GetFleetSha256()) != 64 || len(p.GetUnreachable()) != 1 || p.GetUnreachable()[0].GetNode() != "pve2" {
		t.Fatalf("got %v", p)
	}
	c := p.GetContainers()[0]
	var kinds []string
	for _, s := range c.GetSteps() {
		kinds = append(kinds, strings.TrimPrefix(s.GetKind().String(), "STEP_KIND_"))
	}
	if want := []string{"CHECK_DEVICES", "PATCH_CONF", "RESTART", "VERIFY_DEVICES"}; !slices.Equal(kinds, want) || c.GetNode() != "pve1" {
		t.Errorf("CTID 901: steps %q on %s, want %q on pve1", kinds, c.GetNode(), want)
	}
	if diff := cmp.Diff("memory: 512\ndevice: /dev/nvidia0\ndevice: /dev/nvidia-uvm\ndevice: /dev/nvidia-uvm-tools\ndevice: /dev/nvidiactl\n",
		string(c.GetConfBefore())); diff != "" {
		t.Errorf("before, -want +got:\n%s", diff)
	}
	if diff := cmp.Diff("memory: 512\ndevice: /dev/nvidia0\ndevice: /dev/nvidia1\ndevice: /dev/nvidia-uvm\ndevice: /dev/nvidia-uvm-tools\ndevice: /dev/nvidiactl\n",
		string(c.GetConfAfter())); diff != "" {
		t.Errorf("after, -want +got:\n%s", diff)
	}
	if c := p.GetContainers()[1]; len(c.GetSteps()) > 0 || len(c.GetConfAfter()) > 0 {
		t.Errorf("CTID 902: got %v, want nothing to do", c)
	}
	if c := p.GetContainers()[2]; len(c.GetErrors()) != 1 {
		t.Errorf("CTID 903: got %v, want an error", c)
	}
	if calls := pve1.Calls(); len(calls) > 0 {
		t.Errorf("a plan called %q", calls)
	}
}

// A conf that cannot be shown is a note, and the plan stands.
func TestPlanWithoutConf(t *testing.T) {
	pve1 := &nodetest.Agent{Name: "pve1", GPUs: 1, Fail: map[string]error{
		"PatchConf": nodetest.Failure(codes.FailedPrecondition, "CONTAINER_LOCKED", "it is locked: backup", nil),
	}}
	pve1.Add(901, true)
	f := start(t, fleetFile(want(901, "0", "")), pve1)
	resp, err := f.Runs.Plan(t.Context(), &controllerv1.PlanRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c := resp.GetPlan().GetContainers()[0]
	note := "the change of the conf cannot be shown: node pve1: it is locked: backup"
	if len(c.GetSteps()) != 4 || !slices.Contains(c.GetNotes(), note) {
		t.Errorf("got steps %v, notes %q; want 4 steps and %q", c.GetSteps(), c.GetNotes(), note)
	}
}

// A plan too large for one message loses confs, the last ones first, and says so.
func TestFit(t *testing.T) {
	const mib = 1 << 20
	p := &controllerv1.Plan{Warnings: []string{"one"}}
	for range 5 {
		p.Containers = append(p.Containers, &controllerv1.ContainerPlan{ConfBefore: make([]byte, mib/2), ConfAfter: make([]byte, mib/2)})
	}
	p.Containers = append(p.Containers, &controllerv1.ContainerPlan{Name: "nothing to do"})
	server.Fit(p)
	var with []bool
	for _, c := range p.GetContainers() {
		with = append(with, len(c.GetConfBefore()) > 0 && len(c.GetConfAfter()) > 0)
	}
	if want := []bool{true, true, true, false, false, false}; !slices.Equal(with, want) {
		t.Errorf("confs in %v, want %v", with, want)
	}
	warnings := []string{"one", "the changes of 2 confs do not fit into one answer and are left out; plan those CTIDs alone to see them"}
	if diff := cmp.Diff(warnings, p.GetWarnings()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if size := proto.Size(p); size > 4*mib {
		t.Errorf("%d bytes", size)
	}
}

// events reads a stream of Apply or WatchRun to its end: the runs, and the steps as "CTID KIND STATE".
func events[M interface {
	GetRun() *controllerv1.Run
	GetStep() *controllerv1.RunEvent
}](t *testing.T, recv func() (M, error)) (runs []*controllerv1.Run, steps []string) {
	t.Helper()
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return runs, steps
		}
		if err != nil {
			t.Fatal(err)
		}
		if run := m.GetRun(); run != nil {
			runs = append(runs, run)
		}
		if step := m.GetStep().GetStep(); step != nil {
			steps = append(steps, strings.TrimPrefix(step.GetKind().String(), "STEP_KIND_")+" "+strings.TrimPrefix(step.GetState().String(), "STEP_STATE_"))
		}
	}
}

func TestApply(t *testing.T) {
	pve1 := &nodetest.Agent{Name: "pve1", GPUs: 2}
	pve1.Add(901, true, 0)
	f := start(t, fleetFile(want(901, "1", "")), pve1)
	apply := func() ([]*controllerv1.Run, []string) {
		s, err := f.Runs.Apply(t.Context(), &controllerv1.ApplyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return events(t, s.Recv)
	}
	runs, steps := apply()
	if len(runs) != 2 || runs[0].GetState() != controllerv1.RunState_RUN_STATE_RUNNING || runs[1].GetState() != controllerv1.RunState_RUN_STATE_SUCCEEDED ||
		runs[0].GetRun() != runs[1].GetRun() || runs[0].GetWho() != "ann" || runs[1].GetEndTime() == nil {
		t.Fatalf("runs: %v\nwant one of ann that runs, then that has succeeded", runs)
	}
	var ended []string
	for _, s := range steps {
		if !strings.HasSuffix(s, " RUNNING") {
			ended = append(ended, s)
		}
	}
	if want := []string{"CHECK_DEVICES UNCHANGED", "PATCH_CONF SUCCEEDED", "RESTART SUCCEEDED", "VERIFY_DEVICES SUCCEEDED"}; !slices.Equal(ended, want) {
		t.Errorf("steps %q, want %q", ended, want)
	}
	if got, want := pve1.ActedFor(), []string{"PatchConf ann", "Restart ann"}; !slices.Equal(got, want) {
		t.Errorf("acted for %q, want %q", got, want)
	}
	if got, want := pve1.Calls(), []string{"PrepareDevices", "PatchConf 901", "Restart 901", "Probe 901"}; !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}

	again, _ := apply()
	if last := again[len(again)-1]; last.GetState() != controllerv1.RunState_RUN_STATE_SUCCEEDED {
		t.Errorf("second apply: %v", last)
	}
	if got := pve1.Calls(); len(got) != 4 {
		t.Errorf("the second apply called %q, want nothing", got[4:])
	}

	// Both are recorded.
	list, err := f.Runs.ListRuns(t.Context(), &controllerv1.ListRunsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if l := list.GetRuns(); len(l) != 2 || l[0].GetRun() != again[0].GetRun() || l[1].GetRun() != runs[0].GetRun() || len(l[1].GetContainers()) != 1 ||
		len(l[1].GetContainers()[0].GetSteps()) != 0 {
		t.Errorf("runs %v, want two, the newest first, without steps", l)
	}
	id := runs[0].GetRun()
	run, err := f.Runs.GetRun(t.Context(), &controllerv1.GetRunRequest{Run: id})
	if err != nil {
		t.Fatal(err)
	}
	if c := run.GetRun().GetContainers(); len(c) != 1 || len(c[0].GetSteps()) != 4 || c[0].GetState() != controllerv1.StepState_STEP_STATE_SUCCEEDED {
		t.Errorf("run %v, want one container with four steps", run)
	}
	watch, err := f.Runs.WatchRun(t.Context(), &controllerv1.WatchRunRequest{Run: id})
	if err != nil {
		t.Fatal(err)
	}
	watched, steps := events(t, watch.Recv)
	if len(watched) != 1 || len(steps) != 0 || watched[0].GetState() != controllerv1.RunState_RUN_STATE_SUCCEEDED {
		t.Errorf("watch of an ended run: %v %q, want it once", watched, steps)
	}
	if _, err := f.Runs.CancelRun(t.Context(), &controllerv1.CancelRunRequest{Run: id}); err != nil {
		t.Errorf("cancel of an ended run: %v", err)
	}
}

// A run goes on without its caller, can be watched, and keeps others away from its containers.
func TestApplyWithoutCaller(t *testing.T) {
	pve1 := &nodetest.Agent{Name: "pve1", GPUs: 1, Hold: make(chan struct{})}
	pve1.Add(901, true)
	f := start(t, fleetFile(want(901, "0", "")), pve1)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := f.Runs.Apply(ctx, &controllerv1.ApplyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	id := first.GetRun().GetRun()
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetStep().GetStep().GetKind() == controllerv1.StepKind_STEP_KIND_RESTART {
			break
		}
	}
	st, err := f.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if c := st.GetContainers()[0]; c.GetState() != controllerv1.SyncState_SYNC_STATE_IN_PROGRESS || c.GetRun() != id {
		t.Errorf("status while it runs: %v of run %q, want IN_PROGRESS of %q", c.GetState(), c.GetRun(), id)
	}
	other, err := f.Runs.Apply(t.Context(), &controllerv1.ApplyRequest{})
	if err == nil {
		_, err = other.Recv()
	}
	wantReason(t, "second apply", err, codes.FailedPrecondition, errorv1.Reason_REASON_RUN_IN_PROGRESS, map[string]string{"run": id, "ctid": "901"})

	cancel()
	for err == nil || status.Code(err) != codes.Canceled {
		_, err = s.Recv()
	}
	watch, err := f.Runs.WatchRun(t.Context(), &controllerv1.WatchRunRequest{Run: id})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := watch.Recv(); err != nil || m.GetRun().GetState() != controllerv1.RunState_RUN_STATE_RUNNING {
		t.Fatalf("watch: %v, %v; want the run as it runs", m, err)
	}
	close(pve1.Hold)
	runs, _ := events(t, watch.Recv)
	if len(runs) != 1 || runs[0].GetState() != controllerv1.RunState_RUN_STATE_SUCCEEDED {
		t.Errorf("after the caller left: %v, want it to have succeeded", runs)
	}
}

// A server that stops tells those who watch that the run is not over.
func TestStopWhileWatched(t *testing.T) {
	pve1 := &nodetest.Agent{Name: "pve1", GPUs: 1, Hold: make(chan struct{})}
	pve1.Add(901, true)
	f := start(t, fleetFile(want(901, "0", "")), pve1)
	s, err := f.Runs.Apply(t.Context(), &controllerv1.ApplyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	go f.stop()
	for err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "taken up again") {
		t.Errorf("got %v, want Unavailable that tells that the run is taken up again", err)
	}
	f.stop()
}

func TestRunErrors(t *testing.T) {
	f := start(t, fleetFile(want(901, "0", "")))
	apply := func(req *controllerv1.ApplyRequest) error {
		s, err := f.Runs.Apply(t.Context(), req)
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	invalid := func(what string, err error, field string) {
		t.Helper()
		wantReason(t, what, err, codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": field})
	}
	invalid("apply at once 65", apply(&controllerv1.ApplyRequest{ParallelPerNode: 65}), "parallel_per_node")
	invalid("apply at once -1", apply(&controllerv1.ApplyRequest{ParallelPerNode: -1}), "parallel_per_node")
	for _, d := range []*durationpb.Duration{{Seconds: -1}, {Seconds: 601}, {Seconds: 1, Nanos: -1}} {
		invalid("apply with "+d.String(), apply(&controllerv1.ApplyRequest{RestartTimeout: d}), "restart_timeout")
	}
	for _, ctids := range [][]int32{{99}, {901, -1}, {901, 1_000_000_000}} {
		what := fmt.Sprint(ctids)
		invalid("apply "+what, apply(&controllerv1.ApplyRequest{Ctids: ctids}), "ctids")
		_, err := f.Runs.Plan(t.Context(), &controllerv1.PlanRequest{Ctids: ctids})
		invalid("plan "+what, err, "ctids")
		_, err = f.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{Ctids: ctids})
		invalid("status "+what, err, "ctids")
	}
	for _, limit := range []int32{-1, 1001} {
		_, err := f.Runs.ListRuns(t.Context(), &controllerv1.ListRunsRequest{Limit: limit})
		invalid("list", err, "limit")
	}
	for run, want := range map[string]func(string, error){
		"":                         func(what string, err error) { t.Helper(); invalid(what, err, "run") },
		strings.Repeat("2", 1<<20): func(what string, err error) { t.Helper(); invalid(what[:20], err, "run") },
		"x": func(what string, err error) {
			t.Helper()
			wantReason(t, what, err, codes.NotFound, errorv1.Reason_REASON_RUN_NOT_FOUND, map[string]string{"run": "x"})
		},
	} {
		_, err := f.Runs.GetRun(t.Context(), &controllerv1.GetRunRequest{Run: run})
		want("GetRun "+run, err)
		_, err = f.Runs.CancelRun(t.Context(), &controllerv1.CancelRunRequest{Run: run})
		want("CancelRun "+run, err)
		s, err := f.Runs.WatchRun(t.Context(), &controllerv1.WatchRunRequest{Run: run})
		if err == nil {
			_, err = s.Recv()
		}
		want("WatchRun "+run, err)
	}
}
