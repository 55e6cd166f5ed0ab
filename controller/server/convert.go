package server

import (
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
	"phoenix.internal/controller/store"
)

// convert converts every element.
func convert[From, To any](from []From, one func(From) To) []To {
	if from == nil {
		return nil
	}
	to := make([]To, len(from))
	for i, f := range from {
		to[i] = one(f)
	}
	return to
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func nodeError(n *node.Node, err error) *typev1.NodeError {
	return &typev1.NodeError{Node: n.Name(), Address: n.Address(), Message: messageOf(err)}
}

// messageOf returns the text of err without the name of the node, which stands beside it.
func messageOf(err error) string {
	if e, ok := errors.AsType[*node.Error](err); ok {
		return e.Message
	}
	return err.Error()
}

func findingProto(f fleet.Finding) *controllerv1.Finding {
	severity := controllerv1.Severity_SEVERITY_ERROR
	if f.Severity == fleet.Warning {
		severity = controllerv1.Severity_SEVERITY_WARNING
	}
	return &controllerv1.Finding{
		Severity: severity, Line: int32(f.Line), Column: int32(f.Column), Ctid: f.CTID, Key: f.Key,
		Message: f.Message, Text: f.String(),
	}
}

func modeProto(mode string) typev1.PassthroughMode {
	switch mode {
	case fleet.ModeRaw:
		return typev1.PassthroughMode_PASSTHROUGH_MODE_RAW
	case fleet.ModeNative:
		return typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE
	}
	return typev1.PassthroughMode_PASSTHROUGH_MODE_UNSPECIFIED
}

func namedIndexes(selectors []fleet.Selector) (indexes []int32) {
	for _, s := range selectors {
		if s.Kind == fleet.ByIndex {
			indexes = append(indexes, int32(s.Index))
		}
	}
	return indexes
}

func indexes(refs []observed.Ref) []int32 {
	return convert(observed.Indexes(refs), func(i int) int32 { return int32(i) })
}

var policies = map[string]controllerv1.GpuPolicy{
	fleet.PolicyShared:    controllerv1.GpuPolicy_GPU_POLICY_SHARED,
	fleet.PolicyExclusive: controllerv1.GpuPolicy_GPU_POLICY_EXCLUSIVE,
}

var driverModes = map[string]controllerv1.DriverMode{
	fleet.DriverInstall: controllerv1.DriverMode_DRIVER_MODE_INSTALL,
	fleet.DriverHost:    controllerv1.DriverMode_DRIVER_MODE_HOST,
	fleet.DriverNone:    controllerv1.DriverMode_DRIVER_MODE_NONE,
}

func refProto(r observed.Ref) *controllerv1.AssignedGpu {
	p := &controllerv1.AssignedGpu{Index: int32(r.Index), Uuid: r.UUID, PciAddress: r.PCIAddress}
	if r.IsMIG {
		p.Mig = &controllerv1.AssignedMig{
			Index: int32(r.MIG.Index), Uuid: r.MIG.UUID, Profile: r.MIG.Profile,
			GpuInstanceId: int32(r.MIG.GPUInstance), ComputeInstanceId: int32(r.MIG.ComputeInstance),
		}
	}
	return p
}

func fleetContainerProto(c fleet.Container) *controllerv1.FleetContainer {
	p := &controllerv1.FleetContainer{
		Ctid: c.CTID, Name: c.Name, Node: c.Node, Mode: modeProto(c.Mode),
		CloneFromCtid: c.CloneFrom, Dependencies: c.Dependencies, Features: c.Features,
		GpuIndexes: namedIndexes(c.GPUs), GpuAssignment: fleet.Text(c.GPUs), GpuPolicy: policies[c.Policy], GpuCapabilities: node.Capabilities(c.Capabilities),
		DriverMode: driverModes[c.DriverMode],
	}
	if c.HealthCheck != nil {
		p.HealthCheck = c.HealthCheck.Command
	}
	return p
}

// The kinds have the same numbers on both sides, which TestKinds shows.
func kindProto(k plan.Kind) controllerv1.StepKind { return controllerv1.StepKind(k) }

func planProto(p *plan.Plan) *controllerv1.Plan {
	return &controllerv1.Plan{
		Containers: convert(p.Containers, containerPlanProto), FleetSha256: p.FleetSHA256, Warnings: p.Warnings,
	}
}

func containerPlanProto(c plan.Container) *controllerv1.ContainerPlan {
	return &controllerv1.ContainerPlan{
		Ctid: c.CTID, Name: c.Name, Node: c.Node, After: c.After, Errors: c.Errors, Notes: c.Notes,
		Steps: convert(c.Steps, func(s plan.Step) *controllerv1.PlannedStep {
			return &controllerv1.PlannedStep{Kind: kindProto(s.Kind), Feature: s.Feature, Reason: s.Reason}
		}),
		ConfiguredGpuIndexes: indexes(c.Configured), DesiredGpuIndexes: indexes(c.Desired),
		GpuAssignment: c.Assignment, ConfiguredGpus: convert(c.Configured, refProto), DesiredGpus: convert(c.Desired, refProto),
	}
}

var runStates = map[store.RunState]controllerv1.RunState{
	store.RunRunning:     controllerv1.RunState_RUN_STATE_RUNNING,
	store.RunSucceeded:   controllerv1.RunState_RUN_STATE_SUCCEEDED,
	store.RunFailed:      controllerv1.RunState_RUN_STATE_FAILED,
	store.RunCanceled:    controllerv1.RunState_RUN_STATE_CANCELED,
	store.RunInterrupted: controllerv1.RunState_RUN_STATE_INTERRUPTED,
}

var stepStates = map[store.StepState]controllerv1.StepState{
	store.StepPending:   controllerv1.StepState_STEP_STATE_PENDING,
	store.StepRunning:   controllerv1.StepState_STEP_STATE_RUNNING,
	store.StepSucceeded: controllerv1.StepState_STEP_STATE_SUCCEEDED,
	store.StepFailed:    controllerv1.StepState_STEP_STATE_FAILED,
	store.StepSkipped:   controllerv1.StepState_STEP_STATE_SKIPPED,
	store.StepUnchanged: controllerv1.StepState_STEP_STATE_UNCHANGED,
}

func runProto(r store.Run) *controllerv1.Run {
	return &controllerv1.Run{
		Run: r.ID, State: runStates[r.State], CreateTime: timestamp(r.Created), EndTime: timestamp(r.Ended), Who: r.Who,
		FleetSha256: r.FleetSHA256, Containers: convert(r.Containers, containerRunProto),
		Resumptions: int32(r.Resumptions), Warnings: r.Warnings,
	}
}

func containerRunProto(c store.Container) *controllerv1.ContainerRun {
	return &controllerv1.ContainerRun{
		Ctid: c.CTID, Name: c.Name, Node: c.Node, State: stepStates[c.State], Steps: convert(c.Steps, stepProto),
		Error: c.Error, ErrorReason: c.Reason, Notes: c.Notes,
	}
}

func stepProto(s store.Step) *controllerv1.Step {
	return &controllerv1.Step{
		Kind: kindProto(s.Kind), Feature: s.Feature, State: stepStates[s.State], StartTime: timestamp(s.Started),
		EndTime: timestamp(s.Ended), Message: s.Message,
	}
}

func eventProto(e engine.Event) *controllerv1.RunEvent {
	p := &controllerv1.RunEvent{
		Time: timestamp(e.Time), Ctid: e.CTID, ContainerState: stepStates[e.ContainerState], StepIndex: int32(e.StepIndex),
		Error: e.Error,
	}
	if e.Step != nil {
		p.Step = stepProto(*e.Step)
	}
	return p
}
