package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/deploy/sandbox/sandboxtest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// TestMIGOnRealContainers gives MIG devices to an unprivileged and a privileged container in both modes, and opens every
// device in them: exactly what is assigned can be reached. Changes of the assignment end byte for byte where they began.
func TestMIGOnRealContainers(t *testing.T) {
	t.Parallel()
	w := newNodes(t, sandboxtest.Options{Shapes: []string{"mig"}})
	n := w.nodes[0]
	tlsConfig, err := w.ClientTLS(n.Name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+n.AgentAddress(), grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	devices, containers := agentv1.NewDeviceServiceClient(conn), agentv1.NewContainerServiceClient(conn)

	listed, err := devices.ListDevices(t.Context(), &agentv1.ListDevicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	gpu := listed.GetDevices().GetGpus()[0]
	migs := gpu.GetMigDevices()
	if !gpu.GetMigEnabled() || len(migs) != 3 || migs[0].GetUuid() == "" {
		t.Fatalf("the first GPU: %v", gpu)
	}
	first, second := migs[0], migs[1]
	uuid := func(s string) *typev1.GpuSelector {
		return &typev1.GpuSelector{Gpu: &typev1.GpuSelector_Uuid{Uuid: s}}
	}
	whole := &typev1.GpuSelector{Gpu: &typev1.GpuSelector_Index{Index: 1}}

	privileged := conf(902)
	privileged = privileged[:len(privileged)-len("unprivileged: 1\n")]
	for ctid, before := range map[int32]string{901: conf(901), 902: privileged} {
		startWith(n, ctid, before)
		before = n.Conf(ctid) // as Proxmox has rewritten it
		for _, step := range []struct {
			name  string
			gpus  []*typev1.GpuSelector
			mode  typev1.PassthroughMode
			nodes []*typev1.DeviceNode // capability nodes that can be reached
			more  []string
		}{
			{"one, raw", []*typev1.GpuSelector{uuid(first.GetUuid())}, typev1.PassthroughMode_PASSTHROUGH_MODE_RAW, first.GetDeviceNodes(), []string{"/dev/nvidia0"}},
			{"another, native", []*typev1.GpuSelector{uuid(second.GetUuid())}, typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE, second.GetDeviceNodes(), []string{"/dev/nvidia0"}},
			{"both and a whole GPU, native", []*typev1.GpuSelector{uuid(second.GetUuid()), whole, uuid(first.GetUuid())}, typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE,
				slices.Concat(first.GetDeviceNodes(), second.GetDeviceNodes()), []string{"/dev/nvidia0", "/dev/nvidia1"}},
			{"the whole GPU alone, raw", []*typev1.GpuSelector{whole}, typev1.PassthroughMode_PASSTHROUGH_MODE_RAW, nil, []string{"/dev/nvidia1"}},
		} {
			at := fmt.Sprintf("CTID %d, %s", ctid, step.name)
			if _, err := devices.PrepareDevices(t.Context(), &agentv1.PrepareDevicesRequest{Gpus: step.gpus}); err != nil {
				t.Fatalf("%s: %v", at, err)
			}
			if _, err := containers.PatchConf(t.Context(), &agentv1.PatchConfRequest{Ctid: ctid, Operations: []*agentv1.ConfOperation{{
				Operation: &agentv1.ConfOperation_SetPassthrough{SetPassthrough: &agentv1.SetPassthrough{Gpus: step.gpus, Mode: step.mode}},
			}}}); err != nil {
				t.Fatalf("%s: %v", at, err)
			}
			stream, err := containers.Restart(t.Context(), &agentv1.RestartRequest{Ctid: ctid, Timeout: durationpb.New(10 * time.Second)})
			if err != nil {
				t.Fatal(err)
			}
			var c *typev1.Container
			for c == nil {
				resp, err := stream.Recv()
				if err != nil {
					t.Fatalf("%s: %v", at, err)
				}
				c = resp.GetProgress().GetContainer()
			}
			if len(c.GetEffective().GetGpus()) != len(step.gpus) || c.GetRestartPending() || len(c.GetApplied().GetGpus()) != len(step.gpus) {
				t.Errorf("%s: effective %v, restart pending %v, applied %v", at, c.GetEffective().GetGpus(), c.GetRestartPending(), c.GetApplied())
			}
			want := slices.Concat(step.more, []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"})
			for _, d := range step.nodes {
				want = append(want, d.GetPath())
			}
			probed, err := containers.Probe(t.Context(), &agentv1.ProbeRequest{Ctid: ctid})
			if err != nil {
				t.Fatalf("%s: %v", at, err)
			}
			for _, r := range probed.GetResults() {
				// No driver answers in the sandbox: this is as far as one gets.
				open := r.GetOutcome() == typev1.ProbeOutcome_PROBE_OUTCOME_NO_DRIVER
				if given := slices.Contains(want, r.GetPath()); open != given || r.GetExpected() != given {
					t.Errorf("%s: %s is given %v; the probe says %v, expected %v", at, r.GetPath(), given, r.GetOutcome(), r.GetExpected())
				}
			}
			for _, path := range want {
				if !slices.ContainsFunc(probed.GetResults(), func(r *typev1.ProbeResult) bool { return r.GetPath() == path }) {
					t.Errorf("%s: %s is not probed", at, path)
				}
			}
		}
		if _, err := containers.PatchConf(t.Context(), &agentv1.PatchConfRequest{Ctid: ctid, Operations: []*agentv1.ConfOperation{{
			Operation: &agentv1.ConfOperation_SetPassthrough{SetPassthrough: &agentv1.SetPassthrough{Mode: typev1.PassthroughMode_PASSTHROUGH_MODE_RAW}},
		}}}); err != nil {
			t.Fatal(err)
		}
		if got := n.Conf(ctid); got != before {
			t.Errorf("CTID %d: in the end the conf is\n%s, want\n%s", ctid, got, before)
		}
	}
}
