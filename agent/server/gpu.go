package server

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/passthrough"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func devicesOf(node string, inv *gpu.Inventory, containers []container.Container) *typev1.NodeDevices {
	out := &typev1.NodeDevices{
		Node:             node,
		DriverVersion:    inv.DriverVersion,
		OpenKernelModule: inv.OpenKernelModule,
		SharedNodes:      deviceNodesOf(inv.Shared),
		FabricNodes:      deviceNodesOf(inv.Fabric),
		Problems:         inv.Problems,
	}
	for name, major := range inv.Majors {
		if name == "nvidia" || strings.HasPrefix(name, "nvidia-") {
			out.Majors = append(out.Majors, &typev1.DeviceNumber{Name: name, Major: int32(major)})
		}
	}
	slices.SortFunc(out.Majors, func(a, b *typev1.DeviceNumber) int { return strings.Compare(a.GetName(), b.GetName()) })
	for _, g := range inv.GPUs {
		out.Gpus = append(out.Gpus, gpuOf(g, containers))
	}
	return out
}

// addVMs adds which GPUs the virtual machines take, and where that is unknown.
func addVMs(devices *typev1.NodeDevices, vms []container.VM) {
	devices.Problems = slices.Clip(devices.GetProblems()) // they are the inventory's
	for _, vm := range vms {
		if vm.Err != nil {
			devices.Problems = append(devices.Problems, fmt.Sprintf("Which PCI devices VM %d takes is unknown: %s.", vm.VMID, text(vm.Err.Error())))
		}
		for _, name := range vm.PCI.Mappings {
			devices.Problems = append(devices.Problems, fmt.Sprintf("VM %d takes PCI devices by the resource mapping %q; which ones is unknown here.",
				vm.VMID, text(name)))
		}
		for _, g := range devices.GetGpus() {
			if vm.PCI.Takes(g.GetPciAddress()) {
				g.Vms = append(g.Vms, vm.VMID)
			}
		}
	}
}

func gpuOf(g gpu.GPU, containers []container.Container) *typev1.Gpu {
	out := &typev1.Gpu{
		Index: int32(g.Index), Uuid: g.UUID, PciAddress: g.PCIAddress, Model: text(g.Model),
		Driver: driverOf(g.Driver), NumaNode: int32(g.NUMANode),
		DeviceNodes: deviceNodesOf(g.Nodes), GraphicsNodes: deviceNodesOf(g.Graphics),
		MigEnabled: g.MIGEnabled, NvlinkPeers: g.NVLinkPeers,
	}
	if g.Minor >= 0 {
		minor := int32(g.Minor)
		out.Minor = &minor
	}
	if g.MemoryMiB > 0 {
		out.MemoryMib = &g.MemoryMiB
	}
	for _, m := range g.MIG {
		out.MigDevices = append(out.MigDevices, migDeviceOf(g, m, containers))
	}
	out.Ctids = ctidsWith(containers, func(h passthrough.GPU) bool { return g.Minor >= 0 && h.Minor == g.Minor && h.MIG == nil })
	for _, p := range g.Processes {
		out.Processes = append(out.Processes, &typev1.GpuProcess{Pid: int32(p.PID), Ctid: ctidOf(p.PID), UsedMib: p.UsedMiB})
	}
	for field, source := range g.Sources {
		out.Sources = append(out.Sources, &typev1.ValueSource{Field: field, Source: source})
	}
	slices.SortFunc(out.Sources, func(a, b *typev1.ValueSource) int { return strings.Compare(a.GetField(), b.GetField()) })
	return out
}

func migDeviceOf(g gpu.GPU, m gpu.MIGDevice, containers []container.Container) *typev1.MigDevice {
	out := &typev1.MigDevice{
		Index: int32(m.Index), Uuid: m.UUID, GpuInstanceId: int32(m.Instance.GPU), ComputeInstanceId: int32(m.Instance.Compute),
		Profile: text(m.Profile), DeviceNodes: deviceNodesOf(m.Nodes),
	}
	if m.MemoryMiB > 0 {
		out.MemoryMib = &m.MemoryMiB
	}
	out.Ctids = ctidsWith(containers, func(h passthrough.GPU) bool {
		return h.Minor == g.Minor && h.MIG != nil && h.MIG.GPUInstance == m.Instance.GPU && h.MIG.ComputeInstance == m.Instance.Compute
	})
	return out
}

// ctidsWith returns the containers whose conf gives them such a GPU.
func ctidsWith(containers []container.Container, is func(passthrough.GPU) bool) []int32 {
	var ctids []int32
	for _, c := range containers {
		if slices.ContainsFunc(c.Configured.GPUs, is) {
			ctids = append(ctids, c.CTID)
		}
	}
	return ctids
}

// ctidOf returns the container that a process runs in; 0 if it is in none or has ended.
func ctidOf(pid int) int32 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return 0
	}
	return lxcmon.ContainerOf(b)
}

func driverOf(name string) typev1.GpuDriver {
	switch name {
	case gpu.NVIDIA:
		return typev1.GpuDriver_GPU_DRIVER_NVIDIA
	case "vfio-pci":
		return typev1.GpuDriver_GPU_DRIVER_VFIO_PCI
	case "nouveau":
		return typev1.GpuDriver_GPU_DRIVER_NOUVEAU
	case gpu.None:
		return typev1.GpuDriver_GPU_DRIVER_NONE
	}
	return typev1.GpuDriver_GPU_DRIVER_OTHER
}

func deviceNodesOf(nodes []gpu.DeviceNode) []*typev1.DeviceNode {
	var out []*typev1.DeviceNode
	for _, n := range nodes {
		out = append(out, deviceNodeOf(n))
	}
	return out
}

func deviceNodeOf(n gpu.DeviceNode) *typev1.DeviceNode {
	out := &typev1.DeviceNode{Path: n.Path, Major: int32(n.Major), Minor: int32(n.Minor), Mode: int32(n.Mode.Perm())}
	switch n.State {
	case gpu.OK:
		out.State = typev1.DeviceNodeState_DEVICE_NODE_STATE_OK
	case gpu.Missing:
		out.State = typev1.DeviceNodeState_DEVICE_NODE_STATE_MISSING
	case gpu.Stale:
		out.State = typev1.DeviceNodeState_DEVICE_NODE_STATE_STALE
	case gpu.NotADevice:
		out.State = typev1.DeviceNodeState_DEVICE_NODE_STATE_NOT_A_DEVICE
	}
	return out
}

func passthroughOf(p passthrough.Passthrough) *typev1.Passthrough {
	out := &typev1.Passthrough{Mode: modeOf(p.Mode)}
	for _, g := range p.GPUs {
		ref := &typev1.GpuRef{Index: int32(g.Index), Uuid: g.UUID, Minor: int32(g.Minor)}
		if g.MIG != nil {
			gi, ci := int32(g.MIG.GPUInstance), int32(g.MIG.ComputeInstance)
			ref.MigUuid, ref.GpuInstanceId, ref.ComputeInstanceId = g.MIG.UUID, &gi, &ci
		}
		out.Gpus = append(out.Gpus, ref)
	}
	for _, d := range p.Devices {
		out.Devices = append(out.Devices, &typev1.Device{Path: text(d.Path), Major: int32(d.Major), Minor: int32(d.Minor)})
	}
	out.Capabilities = capabilitiesOf(len(p.GPUs) > 0, p.Graphics, p.Fabric)
	return out
}

func capabilitiesOf(compute, graphics, fabric bool) []typev1.GpuCapability {
	var all []typev1.GpuCapability
	if compute {
		all = append(all, typev1.GpuCapability_GPU_CAPABILITY_COMPUTE)
	}
	if graphics {
		all = append(all, typev1.GpuCapability_GPU_CAPABILITY_GRAPHICS)
	}
	if fabric {
		all = append(all, typev1.GpuCapability_GPU_CAPABILITY_FABRIC)
	}
	return all
}

// usesOf reads the capabilities of a request.
func usesOf(field string, capabilities []typev1.GpuCapability) (graphics, fabric bool, err error) {
	for i, c := range capabilities {
		switch c {
		case typev1.GpuCapability_GPU_CAPABILITY_COMPUTE:
		case typev1.GpuCapability_GPU_CAPABILITY_GRAPHICS:
			graphics = true
		case typev1.GpuCapability_GPU_CAPABILITY_FABRIC:
			fabric = true
		default:
			return false, false, invalid(field+"["+strconv.Itoa(i)+"]", "must be COMPUTE, GRAPHICS or FABRIC")
		}
	}
	return graphics, fabric, nil
}

func modeOf(m passthrough.Mode) typev1.PassthroughMode {
	switch m {
	case passthrough.ModeRaw:
		return typev1.PassthroughMode_PASSTHROUGH_MODE_RAW
	case passthrough.ModeNative:
		return typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE
	case passthrough.ModeMixed:
		return typev1.PassthroughMode_PASSTHROUGH_MODE_MIXED
	}
	return typev1.PassthroughMode_PASSTHROUGH_MODE_UNSPECIFIED
}

func appliedOf(a *container.Applied) *typev1.Applied {
	if a == nil {
		return nil
	}
	out := &typev1.Applied{
		Assignment: text(a.Assignment), Capabilities: capabilitiesOf(len(a.GPUs) > 0, a.Graphics, a.Fabric),
		Time: timestamppb.New(a.Time), Who: text(a.Who), OnBehalfOf: text(a.OnBehalfOf),
	}
	if len(a.GPUs) > 0 {
		for _, m := range []passthrough.Mode{passthrough.ModeRaw, passthrough.ModeNative} {
			if m.String() == a.Mode {
				out.Mode = modeOf(m)
			}
		}
	}
	for _, g := range a.GPUs {
		pb := &typev1.AppliedGpu{Index: int32(g.Index), Uuid: text(g.UUID), PciAddress: text(g.PCIAddress)}
		if m := g.MIG; m != nil {
			gi, ci := int32(m.GPUInstance), int32(m.ComputeInstance)
			pb.MigUuid, pb.Profile, pb.GpuInstanceId, pb.ComputeInstanceId = text(m.UUID), text(m.Profile), &gi, &ci
		}
		out.Gpus = append(out.Gpus, pb)
	}
	return out
}
