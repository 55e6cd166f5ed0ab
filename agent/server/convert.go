package server

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
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
	out.Applied = appliedOf(c.Applied)
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
	passthrough.MIGWhole:              typev1.ProblemKind_PROBLEM_KIND_MIG_GPU_WHOLE,
}

func problemKindOf(k passthrough.Kind) typev1.ProblemKind { return problemKinds[k] }

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

// maxAssignment is how much of the fleet file's words is kept.
const maxAssignment = 1 << 10

func operationOf(field string, op *agentv1.ConfOperation) (container.Operation, error) {
	switch op := op.GetOperation().(type) {
	case *agentv1.ConfOperation_SetPassthrough:
		gpus, err := selectorsOf(field+".set_passthrough.gpus", op.SetPassthrough.GetGpus())
		if err != nil {
			return nil, err
		}
		set := container.SetPassthrough{GPUs: gpus, Assignment: op.SetPassthrough.GetAssignment()}
		if set.Graphics, set.Fabric, err = usesOf(field+".set_passthrough.capabilities", op.SetPassthrough.GetCapabilities()); err != nil {
			return nil, err
		}
		if n := len(set.Assignment); n > maxAssignment {
			return nil, invalid(field+".set_passthrough.assignment", "has %d bytes; at most %d are allowed", n, maxAssignment)
		}
		switch op.SetPassthrough.GetMode() {
		case typev1.PassthroughMode_PASSTHROUGH_MODE_RAW:
			set.Mode = passthrough.ModeRaw
		case typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE:
			set.Mode = passthrough.ModeNative
		default:
			return nil, invalid(field+".set_passthrough.mode", "must be RAW or NATIVE")
		}
		return set, nil
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
	out := &typev1.ProbeResult{
		Path: r.Path, GpuIndex: int32(d.GPUIndex), Expected: d.Expected, Outcome: outcomeOf(r.Outcome),
		Errno: r.Errno, Major: int32(r.Major), Minor: int32(r.Minor), Message: r.Explain(d.Expected).String(),
	}
	if in := d.Instance; in != nil {
		gi := int32(in.GPU)
		out.GpuInstanceId = &gi
		if ci := int32(in.Compute); ci >= 0 {
			out.ComputeInstanceId = &ci
		}
	}
	return out
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
