package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/probe"
	"phoenix.internal/agent/pveconf"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func containerOf(node string, c *container.Container) *typev1.Container {
	out := &typev1.Container{
		Ctid:           c.CTID,
		Node:           node,
		Hostname:       text(c.Hostname),
		State:          stateOf(c.Running.State),
		Lock:           text(c.Lock),
		Template:       c.Template,
		Unprivileged:   c.Unprivileged,
		Digest:         c.Digest,
		Configured:     passthroughOf(c.Configured),
		RestartPending: c.RestartPending,
		Instance:       c.Running.Instance,
		InitPid:        int32(c.Running.InitPID),
	}
	if c.Effective != nil {
		out.Effective = passthroughOf(*c.Effective)
	}
	if !c.Running.StartTime.IsZero() {
		out.StartTime = timestamppb.New(c.Running.StartTime)
	}
	for _, p := range c.Problems {
		out.Problems = append(out.Problems, &typev1.Problem{
			Kind: problemKindOf(p.Kind), Message: text(p.Message), Line: int32(p.Line), Advice: text(p.Advice),
		})
	}
	return out
}

// text makes bytes of a conf fit for a string of protobuf, which must be UTF-8.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func stateOf(s lxcmon.State) typev1.ContainerState {
	switch s {
	case lxcmon.Stopped:
		return typev1.ContainerState_CONTAINER_STATE_STOPPED
	case lxcmon.Starting:
		return typev1.ContainerState_CONTAINER_STATE_STARTING
	case lxcmon.Running, lxcmon.Thawed:
		return typev1.ContainerState_CONTAINER_STATE_RUNNING
	case lxcmon.Stopping:
		return typev1.ContainerState_CONTAINER_STATE_STOPPING
	case lxcmon.Aborting:
		return typev1.ContainerState_CONTAINER_STATE_ABORTING
	case lxcmon.Freezing, lxcmon.Frozen:
		return typev1.ContainerState_CONTAINER_STATE_FROZEN
	}
	return typev1.ContainerState_CONTAINER_STATE_UNSPECIFIED
}

func passthroughOf(p passthrough.Passthrough) *typev1.Passthrough {
	out := &typev1.Passthrough{Mode: modeOf(p.Mode)}
	for _, g := range p.GPUs {
		out.Gpus = append(out.Gpus, &typev1.GpuRef{Index: int32(g.Index), Uuid: g.UUID, Minor: int32(g.Minor)})
	}
	for _, d := range p.Devices {
		out.Devices = append(out.Devices, &typev1.Device{Path: text(d.Path), Major: int32(d.Major), Minor: int32(d.Minor)})
	}
	return out
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

// problemKinds must be complete both ways; a test holds that.
var problemKinds = map[passthrough.Kind]typev1.ProblemKind{
	passthrough.DeviceGone:            typev1.ProblemKind_PROBLEM_KIND_DEVICE_GONE,
	passthrough.WrongMajor:            typev1.ProblemKind_PROBLEM_KIND_WRONG_MAJOR,
	passthrough.ControlDeviceNotGiven: typev1.ProblemKind_PROBLEM_KIND_CONTROL_DEVICE_NOT_GIVEN,
	passthrough.RuleMissing:           typev1.ProblemKind_PROBLEM_KIND_RULE_MISSING,
	passthrough.MountMissing:          typev1.ProblemKind_PROBLEM_KIND_MOUNT_MISSING,
	passthrough.WildcardRule:          typev1.ProblemKind_PROBLEM_KIND_WILDCARD_RULE,
	passthrough.DuplicateEntry:        typev1.ProblemKind_PROBLEM_KIND_DUPLICATE_ENTRY,
	passthrough.EntryInSnapshot:       typev1.ProblemKind_PROBLEM_KIND_ENTRY_IN_SNAPSHOT,
	passthrough.EntryInPending:        typev1.ProblemKind_PROBLEM_KIND_ENTRY_IN_PENDING,
	passthrough.InvalidLine:           typev1.ProblemKind_PROBLEM_KIND_INVALID_LINE,
	passthrough.NoEffect:              typev1.ProblemKind_PROBLEM_KIND_NO_EFFECT,
	passthrough.ModeConflict:          typev1.ProblemKind_PROBLEM_KIND_MODE_CONFLICT,
	passthrough.GhostFile:             typev1.ProblemKind_PROBLEM_KIND_GHOST_FILE,
	passthrough.HiddenLine:            typev1.ProblemKind_PROBLEM_KIND_HIDDEN_LINE,
	passthrough.Unreadable:            typev1.ProblemKind_PROBLEM_KIND_UNREADABLE,
	passthrough.Privileged:            typev1.ProblemKind_PROBLEM_KIND_PRIVILEGED,
}

func problemKindOf(k passthrough.Kind) typev1.ProblemKind { return problemKinds[k] }

func devicesOf(node string, inv *gpu.Inventory, containers []container.Container) *typev1.NodeDevices {
	out := &typev1.NodeDevices{
		Node:             node,
		DriverVersion:    inv.DriverVersion,
		OpenKernelModule: inv.OpenKernelModule,
		Problems:         inv.Problems,
	}
	for name, major := range inv.Majors {
		if name == "nvidia" || strings.HasPrefix(name, "nvidia-") {
			out.Majors = append(out.Majors, &typev1.DeviceNumber{Name: name, Major: int32(major)})
		}
	}
	slices.SortFunc(out.Majors, func(a, b *typev1.DeviceNumber) int { return strings.Compare(a.GetName(), b.GetName()) })
	for _, n := range inv.Shared {
		out.SharedNodes = append(out.SharedNodes, deviceNodeOf(n))
	}
	for _, g := range inv.GPUs {
		pb := &typev1.Gpu{
			Index: int32(g.Index), Uuid: g.UUID, PciAddress: g.PCIAddress, Model: text(g.Model),
			Driver: driverOf(g.Driver), NumaNode: int32(g.NUMANode),
		}
		if g.Minor >= 0 {
			minor := int32(g.Minor)
			pb.Minor = &minor
		}
		if g.MemoryMiB > 0 {
			pb.MemoryMib = &g.MemoryMiB
		}
		for _, n := range g.Nodes {
			pb.DeviceNodes = append(pb.DeviceNodes, deviceNodeOf(n))
		}
		for _, c := range containers {
			if g.Minor >= 0 && slices.ContainsFunc(c.Configured.GPUs, func(h passthrough.GPU) bool { return h.Minor == g.Minor }) {
				pb.Ctids = append(pb.Ctids, c.CTID)
			}
		}
		out.Gpus = append(out.Gpus, pb)
	}
	return out
}

func driverOf(name string) typev1.GpuDriver {
	switch name {
	case gpu.NVIDIA:
		return typev1.GpuDriver_GPU_DRIVER_NVIDIA
	case "vfio-pci":
		return typev1.GpuDriver_GPU_DRIVER_VFIO_PCI
	case "nouveau":
		return typev1.GpuDriver_GPU_DRIVER_NOUVEAU
	case "none", "":
		return typev1.GpuDriver_GPU_DRIVER_NONE
	}
	return typev1.GpuDriver_GPU_DRIVER_OTHER
}

// errNotUsable says that a device node is not right although it was just prepared.
var errNotUsable = errors.New("still missing or stale after it was made; is something else managing /dev?")

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

func sortNodes(nodes []*typev1.DeviceNode) {
	slices.SortFunc(nodes, func(a, b *typev1.DeviceNode) int { return strings.Compare(a.GetPath(), b.GetPath()) })
}

func entriesOf(entries []pveconf.Entry) []*typev1.ConfEntry {
	out := make([]*typev1.ConfEntry, 0, len(entries))
	for _, e := range entries {
		out = append(out, &typev1.ConfEntry{Key: text(e.Key), Value: text(e.Value), Line: int32(e.Line)})
	}
	return out
}

func revisionOf(r confstore.Revision) *typev1.Revision {
	return &typev1.Revision{
		Revision: r.Number, CreateTime: timestamppb.New(r.Time), Who: text(r.Who), OnBehalfOf: text(r.OnBehalfOf), Why: text(r.Why),
		Digest: r.Digest, ReplacedByDigest: r.ReplacedBy,
	}
}

func phaseOf(p container.Phase) typev1.RestartPhase {
	switch p {
	case container.Waiting:
		return typev1.RestartPhase_RESTART_PHASE_WAITING
	case container.ShuttingDown:
		return typev1.RestartPhase_RESTART_PHASE_SHUTTING_DOWN
	case container.Forcing:
		return typev1.RestartPhase_RESTART_PHASE_FORCING
	case container.Starting:
		return typev1.RestartPhase_RESTART_PHASE_STARTING
	case container.RollingBack:
		return typev1.RestartPhase_RESTART_PHASE_ROLLING_BACK
	}
	return typev1.RestartPhase_RESTART_PHASE_UNSPECIFIED
}

func selectorsOf(field string, gpus []*typev1.GpuSelector) ([]container.Selector, error) {
	const most = 64
	if len(gpus) > most {
		return nil, invalid(field, "%d given; at most %d are allowed", len(gpus), most)
	}
	out := make([]container.Selector, 0, len(gpus))
	for i, g := range gpus {
		at := field + fmt.Sprintf("[%d]", i)
		switch s := g.GetGpu().(type) {
		case *typev1.GpuSelector_Index:
			if s.Index < 0 {
				return nil, invalid(at+".index", "%d is negative", s.Index)
			}
			index := int(s.Index)
			out = append(out, container.Selector{Index: &index})
		case *typev1.GpuSelector_Uuid:
			if s.Uuid == "" {
				return nil, invalid(at+".uuid", "is empty")
			}
			out = append(out, container.Selector{UUID: s.Uuid})
		case *typev1.GpuSelector_PciAddress:
			if s.PciAddress == "" {
				return nil, invalid(at+".pci_address", "is empty")
			}
			out = append(out, container.Selector{PCIAddress: s.PciAddress})
		default:
			return nil, invalid(at, "names no GPU; set index, uuid or pci_address")
		}
	}
	return out, nil
}

func operationOf(field string, op *agentv1.ConfOperation) (container.Operation, error) {
	switch op := op.GetOperation().(type) {
	case *agentv1.ConfOperation_SetPassthrough:
		gpus, err := selectorsOf(field+".set_passthrough.gpus", op.SetPassthrough.GetGpus())
		if err != nil {
			return nil, err
		}
		switch op.SetPassthrough.GetMode() {
		case typev1.PassthroughMode_PASSTHROUGH_MODE_RAW:
			return container.SetPassthrough{GPUs: gpus, Mode: passthrough.ModeRaw}, nil
		case typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE:
			return container.SetPassthrough{GPUs: gpus, Mode: passthrough.ModeNative}, nil
		}
		return nil, invalid(field+".set_passthrough.mode", "must be RAW or NATIVE")
	case *agentv1.ConfOperation_SetProperty:
		return container.SetProperty{Key: op.SetProperty.GetKey(), Value: op.SetProperty.GetValue()}, nil
	case *agentv1.ConfOperation_UnsetProperty:
		return container.UnsetProperty{Key: op.UnsetProperty.GetKey()}, nil
	case *agentv1.ConfOperation_SetLxcOption:
		return container.SetOption{Key: op.SetLxcOption.GetKey(), Value: op.SetLxcOption.GetValue()}, nil
	}
	return nil, invalid(field, "has no operation")
}

func probeResultOf(r probe.Result, d container.ProbeDevice) *typev1.ProbeResult {
	return &typev1.ProbeResult{
		Path: r.Path, GpuIndex: int32(d.GPUIndex), Expected: d.Expected, Outcome: outcomeOf(r.Outcome),
		Errno: r.Errno, Major: int32(r.Major), Minor: int32(r.Minor), Message: r.Explain(d.Expected).String(),
	}
}

func outcomeOf(o probe.Outcome) typev1.ProbeOutcome {
	switch o {
	case probe.Opened:
		return typev1.ProbeOutcome_PROBE_OUTCOME_OPENED
	case probe.NoDriver:
		return typev1.ProbeOutcome_PROBE_OUTCOME_NO_DRIVER
	case probe.Denied:
		return typev1.ProbeOutcome_PROBE_OUTCOME_DENIED
	case probe.NoPermission:
		return typev1.ProbeOutcome_PROBE_OUTCOME_NO_PERMISSION
	case probe.Absent:
		return typev1.ProbeOutcome_PROBE_OUTCOME_ABSENT
	case probe.NotADevice:
		return typev1.ProbeOutcome_PROBE_OUTCOME_NOT_A_DEVICE
	case probe.WrongNumber:
		return typev1.ProbeOutcome_PROBE_OUTCOME_WRONG_NUMBER
	case probe.Timeout:
		return typev1.ProbeOutcome_PROBE_OUTCOME_TIMEOUT
	}
	return typev1.ProbeOutcome_PROBE_OUTCOME_FAILED
}
