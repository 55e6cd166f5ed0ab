package server

import (
	"slices"
	"strings"

	"phoenix.internal/controller/doctor"
	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

// doctorWish says what a container is to have; nil if the fleet file does not name it. found is the container as observed,
// nil if no node that answers has it.
func doctorWish(f *fleet.Fleet, ctid int32, found *observed.Container, assigned plan.Assigned) *doctor.Wish {
	c := f.Container(ctid)
	if c == nil {
		return nil
	}
	w := &doctor.Wish{
		Name: c.Name, Node: c.Node, Mode: c.Mode, Capabilities: c.Capabilities, CloneFrom: c.CloneFrom, Driver: wantsDriver(f, *c),
		DriverMode: c.DriverMode, Errors: assigned.Errors,
	}
	var record *observed.Applied
	if found != nil {
		record = found.Applied
	}
	rest := slices.Clone(assigned.GPUs)
	for _, s := range c.GPUs {
		want, named := doctorWant(s)
		if !named {
			continue
		}
		if i := slices.IndexFunc(rest, func(r observed.Ref) bool { return selects(s, r) }); i >= 0 {
			want.MIG = instanceOf(rest[i])
			rest = slices.Delete(rest, i, i+1)
		}
		want.Was = recorded(record, s)
		if want.Was != nil && s.Kind == fleet.ByMIGUUID && want.Index < 0 {
			want.PCI = want.Was.PCI // the MIG device is gone; its card need not be
		}
		w.GPUs = append(w.GPUs, want)
	}
	for _, r := range rest {
		w.GPUs = append(w.GPUs, doctor.Want{Text: r.String(), UUID: r.UUID, PCI: r.PCIAddress, Index: r.Index, MIG: instanceOf(r)})
	}
	w.GPUs = append(w.GPUs, unpicked(c.GPUs, len(rest), assigned, record)...)
	return w
}

// doctorWant is a GPU as it is named, whether the node has it or not; false if it is not named but picked.
func doctorWant(s fleet.Selector) (w doctor.Want, named bool) {
	w = doctor.Want{Text: s.String(), Index: -1}
	switch s.Kind {
	case fleet.ByIndex:
		w.Index = s.Index
	case fleet.ByMIGIndex:
		w.Index, w.MIG = s.Index, &doctor.Instance{GI: -1, CI: -1} // none, unless the node has it
	case fleet.ByUUID:
		w.UUID = s.ID
	case fleet.ByMIGUUID:
		w.MIGUUID, w.MIG = s.ID, &doctor.Instance{GI: -1, CI: -1}
	case fleet.ByAddress:
		w.PCI = s.ID
	default:
		return w, false
	}
	return w, true
}

// selects reports whether a selector names this GPU or MIG device.
func selects(s fleet.Selector, r observed.Ref) bool {
	switch s.Kind {
	case fleet.ByIndex:
		return !r.IsMIG && r.Index == s.Index
	case fleet.ByMIGIndex:
		return r.IsMIG && r.Index == s.Index && (r.MIG.Index == s.MIG || r.MIG.Index < 0)
	case fleet.ByUUID:
		return !r.IsMIG && strings.HasPrefix(r.UUID, s.ID)
	case fleet.ByMIGUUID:
		return r.IsMIG && strings.HasPrefix(r.MIG.UUID, s.ID)
	case fleet.ByAddress:
		return !r.IsMIG && r.PCIAddress == s.ID
	}
	return false
}

// recorded is what a selector meant when it was last applied; nil if the record does not say. One of an assignment that did
// not have the selector says nothing about it.
func recorded(record *observed.Applied, s fleet.Selector) *doctor.AppliedGPU {
	if record == nil {
		return nil
	}
	before, err := fleet.Assignment(record.Assignment)
	if err != nil || !slices.ContainsFunc(before, func(b fleet.Selector) bool {
		return b.Kind == s.Kind && b.Index == s.Index && b.MIG == s.MIG && b.ID == s.ID
	}) {
		return nil
	}
	i := slices.IndexFunc(record.GPUs, func(r observed.Ref) bool { return selects(s, r) })
	if i < 0 {
		return nil
	}
	return appliedGPU(record.GPUs[i])
}

func appliedGPU(r observed.Ref) *doctor.AppliedGPU {
	return &doctor.AppliedGPU{UUID: r.UUID, PCI: r.PCIAddress}
}

// unpicked are the GPUs that were to be picked and were not, because there are none: what was picked before tells what has
// become of it. picked is how many were.
func unpicked(selectors []fleet.Selector, picked int, assigned plan.Assigned, record *observed.Applied) (out []doctor.Want) {
	var free []observed.Ref // picked before
	if record != nil {
		for _, r := range record.GPUs {
			named := slices.ContainsFunc(selectors, func(s fleet.Selector) bool { return selects(s, r) })
			if !named && !slices.ContainsFunc(assigned.GPUs, func(a observed.Ref) bool { return a.UUID != "" && a.UUID == r.UUID }) {
				free = append(free, r)
			}
		}
	}
	for _, s := range selectors {
		count := 0
		switch s.Kind {
		case fleet.Any:
			count = s.Count
		case fleet.ByProfile:
			count = 1
		}
		for range count {
			if picked > 0 {
				picked--
				continue
			}
			want := doctor.Want{Text: s.String(), Index: -1}
			if len(free) > 0 {
				want.Was, want.PCI = appliedGPU(free[0]), free[0].PCIAddress
				if free[0].IsMIG {
					want.MIG = &doctor.Instance{GI: -1, CI: -1}
				}
				free = free[1:]
			}
			out = append(out, want)
		}
	}
	return out
}

func instanceOf(r observed.Ref) *doctor.Instance {
	if !r.IsMIG {
		return nil
	}
	return &doctor.Instance{GI: r.MIG.GPUInstance, CI: r.MIG.ComputeInstance}
}

// wantsDriver reports whether a container has the feature nvidia, itself or from what it is cloned from.
func wantsDriver(f *fleet.Fleet, c fleet.Container) bool {
	for range len(f.Containers) { // clone_from_ctid might go in a circle
		if slices.Contains(c.Features, "nvidia") {
			return true
		}
		from := f.Container(c.CloneFrom)
		if from == nil {
			return false
		}
		c = *from
	}
	return false
}
