package server

import (
	"slices"
	"strings"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/doctor"
	"phoenix.internal/controller/engine"
)

func doctorNode(name string, n *typev1.Node, d *typev1.NodeDevices) *doctor.Node {
	out := &doctor.Node{
		Name: name, Sandbox: engine.Sandbox(n.GetPveVersion()), Quorate: n.GetQuorate(), Loaded: d.GetDriverVersion(),
		Shared: convert(d.GetSharedNodes(), doctorDeviceNode), Fabric: convert(d.GetFabricNodes(), doctorDeviceNode),
	}
	for _, g := range d.GetGpus() {
		out.GPUs = append(out.GPUs, doctorGPU(g))
	}
	return out
}

func doctorGPU(g *typev1.Gpu) doctor.GPU {
	out := doctor.GPU{
		Index: int(g.GetIndex()), UUID: g.GetUuid(), PCI: g.GetPciAddress(), Minor: -1, Driver: doctorWord(g.GetDriver().String(), "GPU_DRIVER_"),
		Nodes: convert(g.GetDeviceNodes(), doctorDeviceNode), Graphics: convert(g.GetGraphicsNodes(), doctorDeviceNode), MIG: g.GetMigEnabled(),
	}
	if out.Driver == "vfio pci" {
		out.Driver = "vfio-pci"
	}
	if g.Minor != nil {
		out.Minor = int(g.GetMinor())
	}
	for _, m := range g.GetMigDevices() {
		out.Devices = append(out.Devices, doctor.MIGDevice{
			Instance: doctor.Instance{GI: int(m.GetGpuInstanceId()), CI: int(m.GetComputeInstanceId())},
			UUID:     m.GetUuid(), Nodes: convert(m.GetDeviceNodes(), doctorDeviceNode),
		})
	}
	h := g.GetHealth()
	out.Health.Fault = h.GetState() == typev1.GpuHealthState_GPU_HEALTH_STATE_FAULT
	out.Health.Warning = h.GetState() == typev1.GpuHealthState_GPU_HEALTH_STATE_WARNING
	errs := slices.Clone(h.GetErrors())
	slices.SortStableFunc(errs, func(a, b *typev1.GpuError) int { return int(b.GetClass()) - int(a.GetClass()) })
	for _, e := range errs {
		out.Health.Errors = append(out.Health.Errors, doctor.XID{
			Number: int(e.GetXid()), Class: doctorWord(e.GetClass().String(), "GPU_ERROR_CLASS_"), Message: e.GetMessage(), Advice: e.GetAdvice(),
		})
	}
	return out
}

func doctorDeviceNode(n *typev1.DeviceNode) doctor.DeviceNode {
	return doctor.DeviceNode{
		Path: n.GetPath(), Major: int(n.GetMajor()), Minor: int(n.GetMinor()), Mode: int(n.GetMode()),
		State: doctor.NodeState(doctorWord(n.GetState().String(), "DEVICE_NODE_STATE_")),
	}
}

// doctorWord is the name of an enum's value as the doctor knows it: PROBE_OUTCOME_NOT_A_DEVICE is "not a device".
func doctorWord(name, prefix string) string {
	word := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, prefix), "_", " "))
	if word == "unspecified" {
		return ""
	}
	return word
}

func doctorContainer(c *typev1.Container) *doctor.Container {
	out := &doctor.Container{
		Node: c.GetNode(), Hostname: c.GetHostname(), State: doctorWord(c.GetState().String(), "CONTAINER_STATE_"), Lock: c.GetLock(),
		Template: c.GetTemplate(), Unprivileged: c.GetUnprivileged(), Configured: doctorPassthrough(c.GetConfigured()),
		RestartPending: c.GetRestartPending(),
	}
	if c.GetEffective() != nil {
		e := doctorPassthrough(c.GetEffective())
		out.Effective = &e
	}
	for _, p := range c.GetProblems() {
		out.Problems = append(out.Problems, doctor.Problem{
			Kind: strings.ToLower(strings.TrimPrefix(p.GetKind().String(), "PROBLEM_KIND_")), Message: p.GetMessage(), Line: int(p.GetLine()), Advice: p.GetAdvice(),
		})
	}
	return out
}

func doctorPassthrough(p *typev1.Passthrough) doctor.Passthrough {
	var out doctor.Passthrough
	for _, g := range p.GetGpus() {
		out.GPUs = append(out.GPUs, doctor.Given{Index: int(g.GetIndex()), Minor: int(g.GetMinor()), MIG: doctorInstance(g.GpuInstanceId, g.ComputeInstanceId)})
	}
	if p.GetMode() != typev1.PassthroughMode_PASSTHROUGH_MODE_UNSPECIFIED {
		out.Mode = doctorWord(p.GetMode().String(), "PASSTHROUGH_MODE_")
	}
	out.Devices = convert(p.GetDevices(), (*typev1.Device).GetPath)
	out.Capabilities = convert(p.GetCapabilities(), func(c typev1.GpuCapability) string { return doctorWord(c.String(), "GPU_CAPABILITY_") })
	return out
}

// doctorInstance is nil for a whole GPU. The CI of a GPU instance's own node is -1.
func doctorInstance(gi, ci *int32) *doctor.Instance {
	if gi == nil {
		return nil
	}
	i := &doctor.Instance{GI: int(*gi), CI: -1}
	if ci != nil {
		i.CI = int(*ci)
	}
	return i
}

func doctorProbe(resp *agentv1.ProbeResponse, err error) *doctor.Probe {
	if err != nil {
		return &doctor.Probe{Err: err.Error()}
	}
	p := &doctor.Probe{}
	for _, r := range resp.GetResults() {
		p.Results = append(p.Results, doctor.Probed{
			Path: r.GetPath(), GPU: int(r.GetGpuIndex()), MIG: doctorInstance(r.GpuInstanceId, r.ComputeInstanceId), Expected: r.GetExpected(),
			Outcome: doctorWord(r.GetOutcome().String(), "PROBE_OUTCOME_"), Errno: r.GetErrno(), Major: int(r.GetMajor()), Minor: int(r.GetMinor()),
		})
	}
	return p
}

func doctorUserDriver(d *typev1.ContainerDriver, err error) *doctor.UserDriver {
	if err != nil {
		return &doctor.UserDriver{Err: err.Error()}
	}
	return &doctor.UserDriver{
		Libc: doctorWord(d.GetLibc().String(), "LIBC_"), State: doctorWord(d.GetState().String(), "DRIVER_STATE_"),
		Version: d.GetVersion(), Broken: d.GetBrokenSonames(), Packages: d.GetPackages(),
	}
}

func doctorCheck(c *typev1.DriverCheck, err error) *doctor.DriverCheck {
	if err != nil {
		return &doctor.DriverCheck{Err: err.Error()}
	}
	return &doctor.DriverCheck{
		Version: c.GetSmiVersion(), UUIDs: c.GetUuids(), Missing: c.GetMissingUuids(), Unexpected: c.GetUnexpectedUuids(), SMIError: c.GetSmiError(),
		CUDA: doctorWord(c.GetCuda().String(), "CUDA_CHECK_"), CUDAResult: int(c.GetCudaResult()),
	}
}

var doctorStates = map[doctor.State]controllerv1.DoctorLinkState{
	doctor.OK:            controllerv1.DoctorLinkState_DOCTOR_LINK_STATE_OK,
	doctor.Broken:        controllerv1.DoctorLinkState_DOCTOR_LINK_STATE_BROKEN,
	doctor.NotReached:    controllerv1.DoctorLinkState_DOCTOR_LINK_STATE_NOT_REACHED,
	doctor.NotApplicable: controllerv1.DoctorLinkState_DOCTOR_LINK_STATE_NOT_APPLICABLE,
	doctor.NotExamined:   controllerv1.DoctorLinkState_DOCTOR_LINK_STATE_NOT_EXAMINED,
}

func diagnosisProto(d doctor.Diagnosis) *controllerv1.Diagnosis {
	_, broken := d.Cause()
	return &controllerv1.Diagnosis{
		Ctid: d.CTID, Name: d.Name, Node: d.Node, Healthy: !broken, Stopped: d.Stopped,
		Links: convert(d.Links, func(l doctor.Link) *controllerv1.DoctorLink {
			return &controllerv1.DoctorLink{Link: string(l.Kind), State: doctorStates[l.State], Proof: l.Proof}
		}),
		Findings: convert(d.Findings, doctorFindingProto),
	}
}

func doctorFindingProto(f doctor.Finding) *controllerv1.DoctorFinding {
	severity := controllerv1.Severity_SEVERITY_ERROR
	if f.Severity == doctor.Warning {
		severity = controllerv1.Severity_SEVERITY_WARNING
	}
	return &controllerv1.DoctorFinding{
		Fault: string(f.Fault), Severity: severity, Link: string(f.Link), Message: f.Message, Proof: f.Proof, Remedy: f.Remedy,
	}
}
