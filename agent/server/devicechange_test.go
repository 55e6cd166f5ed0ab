package server

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func TestDeviceChanges(t *testing.T) {
	minor := int32(0)
	node := func(path string, state typev1.DeviceNodeState) *typev1.DeviceNode {
		return &typev1.DeviceNode{Path: path, State: state}
	}
	const ok, missing = typev1.DeviceNodeState_DEVICE_NODE_STATE_OK, typev1.DeviceNodeState_DEVICE_NODE_STATE_MISSING
	base := &typev1.NodeDevices{
		DriverVersion: "580.105.08",
		SharedNodes:   []*typev1.DeviceNode{node("/dev/nvidia-uvm", ok), node("/dev/nvidia-modeset", missing)},
		Gpus: []*typev1.Gpu{
			{PciAddress: "0000:01:00.0", Driver: typev1.GpuDriver_GPU_DRIVER_NVIDIA, Minor: &minor, DeviceNodes: []*typev1.DeviceNode{node("/dev/nvidia0", ok)}},
			{PciAddress: "0000:02:00.0", Driver: typev1.GpuDriver_GPU_DRIVER_NVIDIA, Minor: proto.Int32(1), DeviceNodes: []*typev1.DeviceNode{node("/dev/nvidia1", ok)},
				MigEnabled: true, MigDevices: []*typev1.MigDevice{{Uuid: "MIG-1", GpuInstanceId: 1}}},
		},
	}
	for _, tt := range []struct {
		name   string
		change func(d *typev1.NodeDevices)
		want   []string
	}{
		{"nothing that counts", func(d *typev1.NodeDevices) {
			d.Gpus[0].Ctids = []int32{901}
			d.Gpus[1].MigDevices[0].Uuid = ""
			d.Gpus[1].MigDevices[0].Ctids = []int32{902}
		}, nil},
		{"a GPU fell off the bus: its device node is not there to be lost", func(d *typev1.NodeDevices) {
			d.Gpus[0].Minor, d.Gpus[0].DeviceNodes = nil, nil
		}, []string{"GPU_LOST 0000:01:00.0"}},
		{"a GPU was unplugged", func(d *typev1.NodeDevices) { d.Gpus = d.Gpus[1:] }, []string{"GPU_REMOVED 0000:01:00.0"}},
		{"a GPU was plugged in", func(d *typev1.NodeDevices) {
			d.Gpus = append(d.Gpus, &typev1.Gpu{PciAddress: "0000:03:00.0", DeviceNodes: []*typev1.DeviceNode{node("/dev/nvidia2", ok)}})
		}, []string{"GPU_ADDED 0000:03:00.0"}},
		{"bound to vfio-pci", func(d *typev1.NodeDevices) {
			d.Gpus[0].Driver, d.Gpus[0].Minor, d.Gpus[0].DeviceNodes = typev1.GpuDriver_GPU_DRIVER_VFIO_PCI, nil, nil
		}, []string{"GPU_REBOUND 0000:01:00.0"}},
		{"the driver was unloaded, and what follows from it", func(d *typev1.NodeDevices) {
			d.DriverVersion = ""
			for _, g := range d.GetGpus() {
				g.Driver, g.Minor, g.DeviceNodes, g.MigDevices = typev1.GpuDriver_GPU_DRIVER_NONE, nil, nil, nil
			}
			d.SharedNodes[0].State = missing
		}, []string{"DRIVER_UNLOADED"}},
		{"the driver was replaced", func(d *typev1.NodeDevices) { d.DriverVersion = "590.44.01" }, []string{"DRIVER_REPLACED"}},
		{"MIG was reconfigured", func(d *typev1.NodeDevices) { d.Gpus[1].MigDevices[0].Uuid = "MIG-2" }, []string{"MIG_CHANGED 0000:02:00.0"}},
		{"MIG was switched off", func(d *typev1.NodeDevices) { d.Gpus[1].MigEnabled, d.Gpus[1].MigDevices = false, nil }, []string{"MIG_CHANGED 0000:02:00.0"}},
		{"a node vanished, and another appeared", func(d *typev1.NodeDevices) {
			d.SharedNodes[0].State, d.SharedNodes[1].State = missing, ok
		}, []string{"NODE_LOST /dev/nvidia-uvm", "NODE_FOUND /dev/nvidia-modeset"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := proto.CloneOf(base)
			tt.change(now)
			var got []string
			for _, c := range deviceChanges(base, now) {
				s := c.GetKind().String()[len("DEVICE_CHANGE_KIND_"):]
				if about := c.GetPciAddress() + c.GetPath(); about != "" {
					s += " " + about
				}
				got = append(got, s)
				if c.GetMessage() == "" {
					t.Errorf("%s has no message", s)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWithoutProcesses(t *testing.T) {
	devices := &typev1.NodeDevices{Gpus: []*typev1.Gpu{{Uuid: "GPU-1", Processes: []*typev1.GpuProcess{{Pid: 7}}}}}
	if got := withoutProcesses(devices); len(got.GetGpus()[0].GetProcesses()) != 0 || got.GetGpus()[0].GetUuid() != "GPU-1" || len(devices.GetGpus()[0].GetProcesses()) != 1 {
		t.Errorf("got %v; the original is %v", got, devices)
	}
}
