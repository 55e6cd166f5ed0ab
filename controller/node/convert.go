package node

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"phoenix.internal/controller/observed"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// Observed converts what the agent of a node reports.
func Observed(name string, d *typev1.NodeDevices, containers []*typev1.Container, vms []int32) observed.Node {
	o := observed.Node{Name: name, DriverVersion: d.GetDriverVersion(), GPUs: gpus(d.GetGpus()), VMs: vms}
	for _, c := range containers {
		o.Containers = append(o.Containers, Container(c))
	}
	return o
}

// Container converts a container as an agent reports it.
func Container(c *typev1.Container) observed.Container {
	o := observed.Container{
		CTID:           c.GetCtid(),
		Hostname:       c.GetHostname(),
		State:          observed.State(lower(c.GetState().String(), "CONTAINER_STATE_")),
		Lock:           c.GetLock(),
		Template:       c.GetTemplate(),
		Unprivileged:   c.GetUnprivileged(),
		Digest:         c.GetDigest(),
		Configured:     passthrough(c.GetConfigured()),
		Applied:        applied(c.GetApplied()),
		RestartPending: c.GetRestartPending(),
		Instance:       c.GetInstance(),
	}
	if c.GetEffective() != nil {
		e := passthrough(c.GetEffective())
		o.Effective = &e
	}
	for _, p := range c.GetProblems() {
		o.Problems = append(o.Problems, observed.Problem{
			Kind:    lower(p.GetKind().String(), "PROBLEM_KIND_"),
			Message: p.GetMessage(),
			Line:    int(p.GetLine()),
			Advice:  p.GetAdvice(),
		})
	}
	return o
}

func passthrough(p *typev1.Passthrough) observed.Passthrough {
	o := observed.Passthrough{Mode: mode(p.GetMode()), Capabilities: capabilities(p.GetCapabilities())}
	for _, g := range p.GetGpus() {
		r := observed.Ref{Index: int(g.GetIndex()), UUID: g.GetUuid()}
		if g.GpuInstanceId != nil {
			r.IsMIG = true
			r.MIG = observed.MIGDevice{
				Index: -1, UUID: g.GetMigUuid(), GPUInstance: int(g.GetGpuInstanceId()), ComputeInstance: int(g.GetComputeInstanceId()),
			}
		}
		o.GPUs = append(o.GPUs, r)
	}
	for _, d := range p.GetDevices() {
		o.Devices = append(o.Devices, d.GetPath())
	}
	return o
}

func applied(a *typev1.Applied) *observed.Applied {
	if a == nil {
		return nil
	}
	o := &observed.Applied{Assignment: a.GetAssignment(), Mode: mode(a.GetMode()), Capabilities: capabilities(a.GetCapabilities())}
	for _, g := range a.GetGpus() {
		r := observed.Ref{Index: int(g.GetIndex()), UUID: g.GetUuid(), PCIAddress: g.GetPciAddress()}
		if g.GpuInstanceId != nil {
			r.IsMIG = true
			r.MIG = observed.MIGDevice{
				Index: -1, UUID: g.GetMigUuid(), GPUInstance: int(g.GetGpuInstanceId()), ComputeInstance: int(g.GetComputeInstanceId()),
				Profile: g.GetProfile(),
			}
		}
		o.GPUs = append(o.GPUs, r)
	}
	return o
}

func mode(m typev1.PassthroughMode) observed.Mode {
	switch m {
	case typev1.PassthroughMode_PASSTHROUGH_MODE_RAW:
		return observed.ModeRaw
	case typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE:
		return observed.ModeNative
	case typev1.PassthroughMode_PASSTHROUGH_MODE_MIXED:
		return observed.ModeMixed
	}
	return observed.ModeNone
}

func capabilities(in []typev1.GpuCapability) (words []string) {
	for _, c := range in {
		words = append(words, lower(c.String(), capabilityPrefix))
	}
	return words
}

const capabilityPrefix = "GPU_CAPABILITY_"

// Capabilities converts capabilities as the fleet file has them.
func Capabilities(words []string) (out []typev1.GpuCapability) {
	for _, word := range words {
		out = append(out, typev1.GpuCapability(typev1.GpuCapability_value[capabilityPrefix+strings.ToUpper(word)]))
	}
	return out
}

func gpus(in []*typev1.Gpu) []observed.GPU {
	var out []observed.GPU
	for _, g := range in {
		o := observed.GPU{
			Index:       int(g.GetIndex()),
			UUID:        g.GetUuid(),
			PCIAddress:  g.GetPciAddress(),
			Minor:       -1,
			Model:       g.GetModel(),
			Driver:      "other",
			NUMANode:    int(g.GetNumaNode()),
			NVLinkPeers: g.GetNvlinkPeers(),
			MIGEnabled:  g.GetMigEnabled(),
			Fault:       fault(g.GetHealth()),
			VMs:         g.GetVms(),
		}
		if g.Minor != nil {
			o.Minor = int(g.GetMinor())
		}
		switch g.GetDriver() {
		case typev1.GpuDriver_GPU_DRIVER_NONE:
			o.Driver = "none"
		case typev1.GpuDriver_GPU_DRIVER_NVIDIA:
			o.Driver = "nvidia"
		case typev1.GpuDriver_GPU_DRIVER_VFIO_PCI:
			o.Driver = "vfio-pci"
		case typev1.GpuDriver_GPU_DRIVER_NOUVEAU:
			o.Driver = "nouveau"
		}
		for _, m := range g.GetMigDevices() {
			o.MIG = append(o.MIG, observed.MIGDevice{
				Index: int(m.GetIndex()), UUID: m.GetUuid(), Profile: m.GetProfile(),
				GPUInstance: int(m.GetGpuInstanceId()), ComputeInstance: int(m.GetComputeInstanceId()),
			})
		}
		out = append(out, o)
	}
	return out
}

// fault says why a GPU is not fit for new work: its latest error. Empty if it is.
func fault(h *typev1.GpuHealth) string {
	if h.GetState() != typev1.GpuHealthState_GPU_HEALTH_STATE_FAULT {
		return ""
	}
	text := "it is faulty"
	for _, e := range h.GetErrors() {
		if e.GetClass() >= typev1.GpuErrorClass_GPU_ERROR_CLASS_RESET {
			text = fmt.Sprintf("XID %d, %s: %s", e.GetXid(), e.GetMessage(), e.GetAdvice())
		}
	}
	return text
}

// setPassthrough makes the request that gives a container exactly these GPUs.
func setPassthrough(p Patch) *agentv1.PatchConfRequest {
	mode := typev1.PassthroughMode_PASSTHROUGH_MODE_RAW
	if p.Mode == observed.ModeNative {
		mode = typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE
	}
	return &agentv1.PatchConfRequest{
		Ctid: p.CTID,
		Operations: []*agentv1.ConfOperation{{Operation: &agentv1.ConfOperation_SetPassthrough{
			SetPassthrough: &agentv1.SetPassthrough{
				Gpus: selectors(p.GPUs), Mode: mode, Capabilities: Capabilities(p.Capabilities), Assignment: p.Assignment,
			},
		}}},
		Digest:     p.Digest,
		DryRun:     p.DryRun,
		RequestId:  p.RequestID,
		OnBehalfOf: OnBehalfOf(p.Who),
	}
}

// OnBehalfOf returns an identity as agents take it: a name with characters that cannot be printed, or a very long one,
// must not keep its owner from working.
func OnBehalfOf(who string) string {
	const most = 256 // bytes
	who = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(who, "?"))
	for len(who) > most {
		_, size := utf8.DecodeLastRuneInString(who)
		who = who[:len(who)-size]
	}
	return who
}

// selectors names GPUs to an agent, by UUID where that is known: it stays what it is while indexes may change.
func selectors(refs []observed.Ref) []*typev1.GpuSelector {
	var out []*typev1.GpuSelector
	for _, r := range refs {
		switch {
		case r.IsMIG:
			out = append(out, &typev1.GpuSelector{Gpu: &typev1.GpuSelector_Uuid{Uuid: r.MIG.UUID}})
		case r.UUID != "":
			out = append(out, &typev1.GpuSelector{Gpu: &typev1.GpuSelector_Uuid{Uuid: r.UUID}})
		default:
			out = append(out, &typev1.GpuSelector{Gpu: &typev1.GpuSelector_Index{Index: int32(r.Index)}})
		}
	}
	return out
}

// Probes returns the results of a probe.
func Probes(in []*typev1.ProbeResult) []Probed {
	var out []Probed
	for _, r := range in {
		p := Probed{
			Path:     r.GetPath(),
			GPU:      int(r.GetGpuIndex()),
			Expected: r.GetExpected(),
			Outcome:  Outcome(lower(r.GetOutcome().String(), "PROBE_OUTCOME_")),
			Errno:    r.GetErrno(),
			Message:  r.GetMessage(),
		}
		if r.GpuInstanceId != nil {
			p.IsMIG, p.GPUInstance, p.ComputeInstance = true, int(r.GetGpuInstanceId()), -1
		}
		if r.ComputeInstanceId != nil {
			p.ComputeInstance = int(r.GetComputeInstanceId())
		}
		out = append(out, p)
	}
	return out
}

func lower(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }
