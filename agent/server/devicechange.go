package server

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// deviceChanges names what has changed between two looks at the node: first the driver, then the GPUs, then the device
// nodes. What follows from the change before it is not told again: with the driver all GPUs and nodes go.
func deviceChanges(was, now *typev1.NodeDevices) []*agentv1.DeviceChange {
	var c changes
	switch before, after := was.GetDriverVersion(), now.GetDriverVersion(); {
	case before == after:
	case after == "":
		c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_DRIVER_UNLOADED, "", "", "The nvidia driver %s was unloaded.", before)
		return c
	case before == "":
		c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_DRIVER_LOADED, "", "", "The nvidia driver %s was loaded.", after)
		return c
	default:
		c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_DRIVER_REPLACED, "", "", "The nvidia driver %s was replaced by %s.", before, after)
	}
	for _, g := range was.GetGpus() {
		if gpuAt(now, g.GetPciAddress()) == nil {
			c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_GPU_REMOVED, g.GetPciAddress(), "", "GPU %s is gone from the PCI bus.", g.GetPciAddress())
		}
	}
	for _, g := range now.GetGpus() {
		c.addGPU(gpuAt(was, g.GetPciAddress()), g)
	}
	before := usableNodes(was)
	after := usableNodes(now)
	for _, n := range nodesOf(was) {
		if before[n.GetPath()] && !after[n.GetPath()] && hasNode(now, n.GetPath()) {
			c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_NODE_LOST, "", n.GetPath(), "Device node %s is not usable any more.", n.GetPath())
		}
	}
	for _, n := range nodesOf(now) {
		if after[n.GetPath()] && !before[n.GetPath()] && hasNode(was, n.GetPath()) {
			c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_NODE_FOUND, "", n.GetPath(), "Device node %s is usable.", n.GetPath())
		}
	}
	return c
}

type changes []*agentv1.DeviceChange

func (c *changes) add(kind agentv1.DeviceChangeKind, address, path, format string, args ...any) {
	*c = append(*c, &agentv1.DeviceChange{Kind: kind, PciAddress: address, Path: path, Message: fmt.Sprintf(format, args...)})
}

// addGPU names how one GPU changed; was is nil if it is new.
func (c *changes) addGPU(was, now *typev1.Gpu) {
	address := now.GetPciAddress()
	switch {
	case was == nil:
		c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_GPU_ADDED, address, "", "GPU %s appeared on the PCI bus.", address)
		return
	case was.GetDriver() != now.GetDriver():
		c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_GPU_REBOUND, address, "", "GPU %s was bound to %s, and is to %s now.", address, driverName(was.GetDriver()), driverName(now.GetDriver()))
		return
	case served(was) && !served(now):
		c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_GPU_LOST, address, "", "The driver does not know GPU %s any more: it fell off the bus or failed.", address)
		return
	case !served(was) && served(now):
		c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_GPU_FOUND, address, "", "The driver knows GPU %s again.", address)
	}
	if was.GetMigEnabled() != now.GetMigEnabled() || !slices.EqualFunc(was.GetMigDevices(), now.GetMigDevices(), sameMIG) {
		c.add(agentv1.DeviceChangeKind_DEVICE_CHANGE_KIND_MIG_CHANGED, address, "", "MIG of GPU %s was reconfigured: it has %d MIG devices.", address, len(now.GetMigDevices()))
	}
}

// sameMIG says whether two MIG devices are one; who has it does not matter. A UUID that was not known yet is no change.
func sameMIG(a, b *typev1.MigDevice) bool {
	return a.GetGpuInstanceId() == b.GetGpuInstanceId() && a.GetComputeInstanceId() == b.GetComputeInstanceId() &&
		(a.GetUuid() == b.GetUuid() || a.GetUuid() == "" || b.GetUuid() == "")
}

func served(g *typev1.Gpu) bool {
	return g.GetDriver() == typev1.GpuDriver_GPU_DRIVER_NVIDIA && g.Minor != nil
}

func driverName(d typev1.GpuDriver) string {
	switch d {
	case typev1.GpuDriver_GPU_DRIVER_NVIDIA:
		return "nvidia"
	case typev1.GpuDriver_GPU_DRIVER_VFIO_PCI:
		return "vfio-pci"
	case typev1.GpuDriver_GPU_DRIVER_NOUVEAU:
		return "nouveau"
	case typev1.GpuDriver_GPU_DRIVER_NONE:
		return "no driver"
	}
	return "another driver"
}

func gpuAt(d *typev1.NodeDevices, address string) *typev1.Gpu {
	for _, g := range d.GetGpus() {
		if g.GetPciAddress() == address {
			return g
		}
	}
	return nil
}

// nodesOf returns every device node, each once: MIG devices share that of their GPU instance.
func nodesOf(d *typev1.NodeDevices) []*typev1.DeviceNode {
	all := slices.Concat(d.GetSharedNodes(), d.GetFabricNodes())
	for _, g := range d.GetGpus() {
		all = slices.Concat(all, g.GetDeviceNodes(), g.GetGraphicsNodes())
		for _, m := range g.GetMigDevices() {
			all = append(all, m.GetDeviceNodes()...)
		}
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(n *typev1.DeviceNode) bool {
		again := seen[n.GetPath()]
		seen[n.GetPath()] = true
		return again
	})
}

// hasNode says whether there is, or should be, such a device node.
func hasNode(d *typev1.NodeDevices, path string) bool {
	return slices.ContainsFunc(nodesOf(d), func(n *typev1.DeviceNode) bool { return n.GetPath() == path })
}

func usableNodes(d *typev1.NodeDevices) map[string]bool {
	usable := map[string]bool{}
	for _, n := range nodesOf(d) {
		usable[n.GetPath()] = n.GetState() == typev1.DeviceNodeState_DEVICE_NODE_STATE_OK
	}
	return usable
}

// withoutProcesses is devices as watchers get them: a process that starts or takes memory is no change of the node.
func withoutProcesses(devices *typev1.NodeDevices) *typev1.NodeDevices {
	if !slices.ContainsFunc(devices.GetGpus(), func(g *typev1.Gpu) bool { return len(g.GetProcesses()) > 0 }) {
		return devices
	}
	out := proto.CloneOf(devices)
	for _, g := range out.GetGpus() {
		g.Processes = nil
	}
	return out
}
