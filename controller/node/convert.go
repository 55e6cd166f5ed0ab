package node

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"phoenix.internal/controller/observed"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

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
	var o observed.Passthrough
	for _, g := range p.GetGpus() {
		o.GPUs = append(o.GPUs, int(g.GetIndex()))
	}
	switch p.GetMode() {
	case typev1.PassthroughMode_PASSTHROUGH_MODE_RAW:
		o.Mode = observed.ModeRaw
	case typev1.PassthroughMode_PASSTHROUGH_MODE_NATIVE:
		o.Mode = observed.ModeNative
	case typev1.PassthroughMode_PASSTHROUGH_MODE_MIXED:
		o.Mode = observed.ModeMixed
	}
	for _, d := range p.GetDevices() {
		o.Devices = append(o.Devices, d.GetPath())
	}
	return o
}

func gpus(in []*typev1.Gpu) []observed.GPU {
	var out []observed.GPU
	for _, g := range in {
		o := observed.GPU{
			Index:      int(g.GetIndex()),
			UUID:       g.GetUuid(),
			PCIAddress: g.GetPciAddress(),
			Minor:      -1,
			Model:      g.GetModel(),
			Driver:     "other",
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
		out = append(out, o)
	}
	return out
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
			SetPassthrough: &agentv1.SetPassthrough{Gpus: selectors(p.GPUs), Mode: mode},
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

func selectors(indexes []int) []*typev1.GpuSelector {
	var out []*typev1.GpuSelector
	for _, i := range indexes {
		out = append(out, &typev1.GpuSelector{Gpu: &typev1.GpuSelector_Index{Index: int32(i)}})
	}
	return out
}

// Probes returns the results of a probe.
func Probes(in []*typev1.ProbeResult) []Probed {
	var out []Probed
	for _, r := range in {
		out = append(out, Probed{
			Path:     r.GetPath(),
			GPU:      int(r.GetGpuIndex()),
			Expected: r.GetExpected(),
			Outcome:  Outcome(lower(r.GetOutcome().String(), "PROBE_OUTCOME_")),
			Errno:    r.GetErrno(),
			Message:  r.GetMessage(),
		})
	}
	return out
}

func lower(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }
