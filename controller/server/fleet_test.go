package server_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/client"
	"phoenix.internal/controller/nodetest"
)

// fleetFile makes a fleet file of "CTID": {...} elements.
func fleetFile(containers ...string) string {
	return `{"lxc_configs": {` + strings.Join(containers, ",\n") + "}}"
}

// want is a container of a fleet file with an assignment, and more keys.
func want(ctid int, gpus, more string) string {
	if more != "" {
		more = ", " + more
	}
	return fmt.Sprintf(`"%d": {"name": "c%d", "gpu_assignment": %q%s}`, ctid, ctid, gpus, more)
}

func wantReason(t *testing.T, what string, err error, code codes.Code, reason errorv1.Reason, metadata map[string]string) {
	t.Helper()
	gotReason, gotMetadata := client.Reason(err)
	if status.Code(err) != code || gotReason != reason || !maps.Equal(gotMetadata, metadata) {
		t.Errorf("%s: got %v, reason %v %v\nwant %v, %v %v", what, err, gotReason, gotMetadata, code, reason, metadata)
	}
}

func TestValidateFleet(t *testing.T) {
	f := start(t, fleetFile(want(901, "0", "")))
	tests := []struct {
		name       string
		req        *controllerv1.ValidateFleetRequest
		valid      bool
		containers int
		findings   []string // their beginnings
	}{
		{"the controller's own", &controllerv1.ValidateFleetRequest{}, true, 1, nil},
		{"content", &controllerv1.ValidateFleetRequest{Name: "x.json", Content: []byte(fleetFile(want(901, "zero", "")))}, false, 0,
			[]string{"x.json:1:60: containers 901: gpu_assignment: "}},
		{"content without a name", &controllerv1.ValidateFleetRequest{Content: []byte("{")}, false, 0, []string{"fleet file:1:"}},
		{"empty content", &controllerv1.ValidateFleetRequest{Name: "x.json"}, false, 0, []string{"x.json: the file is empty"}},
		{"warning", &controllerv1.ValidateFleetRequest{Name: "x.json", Content: []byte(fleetFile(want(901, "0", `"colour": "red"`)))}, true, 1,
			[]string{"x.json:1:65: warning: containers 901: unknown key"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := f.Fleet.ValidateFleet(t.Context(), tt.req)
			if err != nil {
				t.Fatal(err)
			}
			if resp.GetValid() != tt.valid || len(resp.GetContainers()) != tt.containers || len(resp.GetFindings()) != len(tt.findings) {
				t.Fatalf("got valid %t, %d containers, findings %v", resp.GetValid(), len(resp.GetContainers()), resp.GetFindings())
			}
			for i, want := range tt.findings {
				if got := resp.GetFindings()[i].GetText(); !strings.HasPrefix(got, want) {
					t.Errorf("finding %d: got %q, want %q...", i, got, want)
				}
			}
		})
	}
}

func TestFleetFileIsReadAnew(t *testing.T) {
	f := start(t, fleetFile(want(901, "0", "")))
	first, err := f.Fleet.GetFleet(t.Context(), &controllerv1.GetFleetRequest{})
	if err != nil {
		t.Fatal(err)
	}
	write(t, f.fleet, fleetFile(want(901, "0", ""), want(902, "1", "")))
	second, err := f.Fleet.GetFleet(t.Context(), &controllerv1.GetFleetRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(first.GetContainers()) != 1 || len(second.GetContainers()) != 2 || first.GetSha256() == second.GetSha256() || second.GetPath() != f.fleet {
		t.Errorf("first %v\nsecond %v", first, second)
	}
}

func TestFleetErrors(t *testing.T) {
	for name, f := range map[string]struct {
		file   string
		code   codes.Code
		reason errorv1.Reason
	}{
		"missing file": {"", codes.FailedPrecondition, errorv1.Reason_REASON_FLEET_UNREADABLE},
		"bad file":     {"{", codes.FailedPrecondition, errorv1.Reason_REASON_FLEET_INVALID},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, f.file)
			metadata := map[string]string{"path": c.fleet}
			_, err := c.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{})
			wantReason(t, "GetStatus", err, f.code, f.reason, metadata)
			_, err = c.Runs.Plan(t.Context(), &controllerv1.PlanRequest{})
			wantReason(t, "Plan", err, f.code, f.reason, metadata)
			apply, err := c.Runs.Apply(t.Context(), &controllerv1.ApplyRequest{})
			if err == nil {
				_, err = apply.Recv()
			}
			wantReason(t, "Apply", err, f.code, f.reason, metadata)
		})
	}
	c := start(t, fleetFile(want(901, "0", "")))
	metadata := map[string]string{"path": c.fleet, "ctid": "902"}
	_, err := c.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{Ctids: []int32{901, 902}})
	wantReason(t, "GetStatus", err, codes.NotFound, errorv1.Reason_REASON_NOT_IN_FLEET, metadata)
	_, err = c.Runs.Plan(t.Context(), &controllerv1.PlanRequest{Ctids: []int32{902}})
	wantReason(t, "Plan", err, codes.NotFound, errorv1.Reason_REASON_NOT_IN_FLEET, metadata)
}

// The name stands in every finding.
func TestValidateLongName(t *testing.T) {
	c := start(t, "")
	_, err := c.Fleet.ValidateFleet(t.Context(), &controllerv1.ValidateFleetRequest{Name: strings.Repeat("n", 4097), Content: []byte("{")})
	wantReason(t, "ValidateFleet", err, codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "name"})
}

// A judgement is what GetStatus says about a container, as text.
type judgement struct {
	State string
	Drift []string
	Probe string // its error
}

func judgements(resp *controllerv1.GetStatusResponse) map[int32]judgement {
	all := map[int32]judgement{}
	for _, c := range resp.GetContainers() {
		all[c.GetDesired().GetCtid()] = judgement{
			strings.TrimPrefix(c.GetState().String(), "SYNC_STATE_"), c.GetDrift(), c.GetProbeError(),
		}
	}
	return all
}

func TestGetStatus(t *testing.T) {
	pve1, pve2 := &nodetest.Agent{Name: "pve1", GPUs: 2}, &nodetest.Agent{Name: "pve2", GPUs: 2}
	pve1.Add(901, true, 0, 1)
	pve1.Add(902, true, 0)
	pve1.Add(903, true)
	pve1.Change(903, func(c *typev1.Container) {
		c.Configured = &typev1.Passthrough{Gpus: []*typev1.GpuRef{{Index: 1}}, Mode: typev1.PassthroughMode_PASSTHROUGH_MODE_RAW}
		c.RestartPending = true
	})
	pve1.Add(905, false, 1)
	pve1.Add(906, true)
	pve2.Add(906, true)
	pve1.Add(907, true)
	pve2.Add(908, true, 0)
	pve2.Change(908, func(c *typev1.Container) {
		c.Configured.Mode = typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE
		c.Problems = []*typev1.Problem{
			{Message: "rule for a major that is gone"},
			{Message: "a line that does nothing", Advice: "remove it"},
			{Kind: typev1.ProblemKind_PROBLEM_KIND_PRIVILEGED, Message: "a privileged container"},
		}
	})
	pve2.Add(909, true, 0, 1)
	pve2.Add(910, false, 0)
	pve2.Change(910, func(c *typev1.Container) { c.Configured.Gpus = nil })
	pve2.Add(950, false, 1)
	pve2.Add(951, true)
	f := start(t, fleetFile(want(901, "0,1", ""), want(902, "0,1", ""), want(903, "1", ""), want(904, "0", ""), want(905, "1", ""),
		want(906, "none", ""), want(907, "none", `"node": "pve2"`), want(908, "0", ""), want(909, "1", ""), want(910, "none", ""),
		want(911, "0", `"node": "pve3"`)), pve1, pve2)

	conf := map[int32]judgement{
		901: {State: "IN_SYNC"},
		902: {State: "DRIFT", Drift: []string{"its conf gives GPU 0; the fleet file assigns GPUs 0, 1"}},
		903: {State: "DRIFT", Drift: []string{"a restart is pending: it has no GPU; its conf gives GPU 1"}},
		904: {State: "MISSING", Drift: []string{"no node has it; create it, or take it out of the fleet file"}},
		905: {State: "IN_SYNC"},
		906: {State: "DRIFT", Drift: []string{"nodes pve1, pve2 all have a container with this CTID; shown is that of pve1"}},
		907: {State: "DRIFT", Drift: []string{"it is on node pve1; the fleet file wants it on pve2"}},
		908: {State: "DRIFT", Drift: []string{
			"its conf gives the devices in native mode; the fleet file says raw",
			"its conf: rule for a major that is gone",
		}},
		909: {State: "DRIFT", Drift: []string{"its conf gives GPUs 0, 1; the fleet file assigns GPU 1"}},
		910: {State: "DRIFT", Drift: []string{
			"its conf gives /dev/nvidia0, /dev/nvidia-uvm, /dev/nvidia-uvm-tools, /dev/nvidiactl; the fleet file assigns no GPU",
		}},
		911: {State: "MISSING", Drift: []string{"the fleet file puts it on node pve3, which is not configured; configured: pve1, pve2"}},
	}
	resp, err := f.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(conf, judgements(resp)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if calls := slices.Concat(pve1.Calls(), pve2.Calls()); len(calls) > 0 {
		t.Errorf("calls %q; want none", calls)
	}
	if len(resp.GetUnmanaged()) != 1 || resp.GetUnmanaged()[0].GetCtid() != 950 || resp.GetUnmanaged()[0].GetNode() != "pve2" {
		t.Errorf("unmanaged: got %v, want CTID 950 of pve2", resp.GetUnmanaged())
	}

	pve2.Probed = func(c *typev1.Container) []*typev1.ProbeResult {
		if c.GetCtid() != 908 {
			return []*typev1.ProbeResult{{Path: "/dev/nvidia0", GpuIndex: 0, Outcome: typev1.ProbeOutcome_PROBE_OUTCOME_OPENED}}
		}
		return nil
	}
	probed := maps.Clone(conf)
	add := func(ctid int32, probe string, drift ...string) {
		probed[ctid] = judgement{conf[ctid].State, slices.Concat(conf[ctid].Drift, drift), probe}
	}
	add(905, "it is stopped")
	add(910, "it is stopped")
	add(908, "",
		"/dev/nvidiactl was not probed: the node does not know it; look at phoenix-cli devices",
		"/dev/nvidia-uvm was not probed: the node does not know it; look at phoenix-cli devices",
		"/dev/nvidia-uvm-tools was not probed: the node does not know it; look at phoenix-cli devices",
		"GPU 0 was not probed: the node has no device for it; look at phoenix-cli devices")
	add(909, "",
		"/dev/nvidiactl was not probed: the node does not know it; look at phoenix-cli devices",
		"/dev/nvidia-uvm was not probed: the node does not know it; look at phoenix-cli devices",
		"/dev/nvidia-uvm-tools was not probed: the node does not know it; look at phoenix-cli devices",
		"GPU 1 was not probed: the node has no device for it; look at phoenix-cli devices")
	resp, err = f.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{Probe: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(probed, judgements(resp)); diff != "" {
		t.Errorf("with probe, -want +got:\n%s", diff)
	}
	if n := len(resp.GetContainers()[0].GetProbe()); n != 5 {
		t.Errorf("CTID 901 has %d probe results, want 5", n)
	}

	resp, err = f.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{Ctids: []int32{905, 901, 905}})
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(judgements(resp))); len(resp.GetContainers()) != 2 || !slices.Equal(got, []int32{901, 905}) {
		t.Errorf("CTIDs 905, 901, 905: got %v", got)
	}
}

func TestGetStatusWithNodeDown(t *testing.T) {
	pve1, pve2 := &nodetest.Agent{Name: "pve1", GPUs: 1}, &nodetest.Agent{Name: "pve2", GPUs: 1}
	pve1.Add(901, true, 0)
	pve2.Add(902, true)
	f := start(t, fleetFile(want(901, "0", ""), want(902, "0", ""), want(903, "0", `"node": "pve1"`), want(904, "0", `"node": "pve2"`)), pve1, pve2)
	pve2.Stop()
	resp, err := f.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{Probe: true})
	if err != nil {
		t.Fatal(err)
	}
	want := map[int32]judgement{
		901: {State: "IN_SYNC"},
		902: {State: "UNKNOWN", Drift: []string{"no node that answers has it; pve2 did not answer"}},
		903: {State: "MISSING", Drift: []string{"no node has it; create it, or take it out of the fleet file"}},
		904: {State: "UNKNOWN", Drift: []string{"no node that answers has it; pve2 did not answer"}},
	}
	if diff := cmp.Diff(want, judgements(resp)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if u := resp.GetUnreachable(); len(u) != 1 || u[0].GetNode() != "pve2" || !strings.Contains(u[0].GetMessage(), "is phoenix-agent running?") {
		t.Errorf("unreachable: got %v, want pve2 with advice", u)
	}
}

// A device that no driver answers for is good enough in a sandbox only.
func TestProbeWithoutDriver(t *testing.T) {
	noDriver := func(c *typev1.Container) []*typev1.ProbeResult {
		var results []*typev1.ProbeResult
		for i, d := range c.GetEffective().GetDevices() {
			gpu := int32(-1)
			if i == 0 {
				gpu = 0
			}
			results = append(results, &typev1.ProbeResult{
				Path: d.GetPath(), GpuIndex: gpu, Expected: true, Outcome: typev1.ProbeOutcome_PROBE_OUTCOME_NO_DRIVER, Errno: "ENXIO",
			})
		}
		return results
	}
	real := &nodetest.Agent{Name: "pve1", GPUs: 1, PVEVersion: "9.1.2", Probed: noDriver}
	sandbox := &nodetest.Agent{Name: "pve2", GPUs: 1, PVEVersion: "9.1.2-sandbox", Probed: noDriver}
	real.Add(901, true, 0)
	sandbox.Add(902, true, 0)
	f := start(t, fleetFile(want(901, "0", ""), want(902, "0", "")), real, sandbox)
	resp, err := f.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{Probe: true})
	if err != nil {
		t.Fatal(err)
	}
	want := map[int32]judgement{
		901: {State: "DRIFT", Drift: []string{
			"/dev/nvidia0: no driver (ENXIO)", "/dev/nvidia-uvm: no driver (ENXIO)", "/dev/nvidia-uvm-tools: no driver (ENXIO)",
			"/dev/nvidiactl: no driver (ENXIO)",
		}},
		902: {State: "IN_SYNC"},
	}
	if diff := cmp.Diff(want, judgements(resp)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
