package server_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/testing/protocmp"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// An error in the kernel's log makes the GPU unfit for everybody who asks, until somebody has seen to it.
func TestGPUErrors(t *testing.T) {
	n := newNode(t)
	conn := n.Dial(t)
	devices := agentv1.NewDeviceServiceClient(conn)
	watch, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{Service: "gpu/0000:02:00.0"})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for {
			resp, err := watch.Recv()
			if err != nil {
				t.Fatalf("%v; want %v", err, want)
			}
			// Unknown until the agent has looked for the first time.
			if resp.GetStatus() != healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
				if resp.GetStatus() != want {
					t.Fatalf("health of the GPU: %v, want %v", resp.GetStatus(), want)
				}
				return
			}
		}
	}
	next(healthv1.HealthCheckResponse_SERVING)
	n.KernelSays("NVRM: Xid (PCI:0000:02:00): 95, pid=12, name=train, Uncontained: SM")
	next(healthv1.HealthCheckResponse_NOT_SERVING)

	resp, err := devices.ListDevices(t.Context(), &agentv1.ListDevicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := []*typev1.GpuHealth{
		{State: typev1.GpuHealthState_GPU_HEALTH_STATE_OK},
		{State: typev1.GpuHealthState_GPU_HEALTH_STATE_FAULT, Errors: []*typev1.GpuError{{
			Xid: 95, Class: typev1.GpuErrorClass_GPU_ERROR_CLASS_RESET, Count: 1, Pid: 12, Process: "train", Message: "Uncontained: SM",
			Advice: "Stop the containers that use the GPU and reset it: nvidia-smi --gpu-reset -i GPU.",
		}}},
	}
	var got []*typev1.GpuHealth
	for _, g := range resp.GetDevices().GetGpus() {
		got = append(got, g.GetHealth())
	}
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(&typev1.GpuError{}, "first_time", "last_time")); diff != "" {
		t.Errorf("health (-want +got):\n%s", diff)
	}

	ack, err := devices.AcknowledgeGpuErrors(t.Context(), &agentv1.AcknowledgeGpuErrorsRequest{PciAddress: "0000:02:00.0"})
	if err != nil || ack.GetForgotten() != 1 {
		t.Errorf("got %v, %v; want one kind of error forgotten", ack, err)
	}
	next(healthv1.HealthCheckResponse_SERVING)
	_, err = devices.AcknowledgeGpuErrors(t.Context(), &agentv1.AcknowledgeGpuErrorsRequest{})
	if got := reason(t, err); got != "INVALID_FIELD" {
		t.Errorf("without an address: reason %s, want INVALID_FIELD", got)
	}
}

// A card that was taken from the bus is not served from then on.
func TestHealthOfAGPUThatIsGone(t *testing.T) {
	n := newNode(t)
	watch, err := healthv1.NewHealthClient(n.Dial(t)).Watch(t.Context(), &healthv1.HealthCheckRequest{Service: "gpu/0000:02:00.0"})
	if err != nil {
		t.Fatal(err)
	}
	for was := healthv1.HealthCheckResponse_UNKNOWN; ; {
		resp, err := watch.Recv()
		if err != nil {
			t.Fatalf("%v; want NOT_SERVING after %v", err, was)
		}
		was = resp.GetStatus()
		switch was {
		case healthv1.HealthCheckResponse_SERVING:
			for _, dir := range []string{"sys/bus/pci/devices/0000:02:00.0", "proc/driver/nvidia/gpus/0000:02:00.0"} {
				if err := os.RemoveAll(filepath.Join(n.Dir, dir)); err != nil {
					t.Fatal(err)
				}
			}
		case healthv1.HealthCheckResponse_NOT_SERVING:
			return
		}
	}
}

func TestDriverHealth(t *testing.T) {
	health := healthv1.NewHealthClient(newNode(t).Dial(t))
	deadline := time.After(10 * time.Second)
	for {
		resp, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "driver"})
		if err == nil && resp.GetStatus() == healthv1.HealthCheckResponse_SERVING {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("health of the driver: %v, %v; want SERVING", resp.GetStatus(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
