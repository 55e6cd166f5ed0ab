package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// A target is one assigned GPU and what it means on the node now.
type target struct {
	want Want
	gpu  *GPU        // nil: the node has no such GPU now
	was  *AppliedGPU // what it was when it was applied; nil if that is not known
}

// targets finds the assigned GPUs on the node.
func targets(f Facts) []target {
	var out []target
	for _, want := range wants(f) {
		t := target{want: want}
		if i := slices.IndexFunc(f.Node.GPUs, func(g GPU) bool { return want.is(g) }); i >= 0 {
			t.gpu = &f.Node.GPUs[i]
		}
		if f.Container != nil && f.Container.Applied != nil {
			was := f.Container.Applied.GPUs
			if i := slices.IndexFunc(was, func(a AppliedGPU) bool { return want.was(a) }); i >= 0 {
				t.was = &was[i]
			}
		}
		out = append(out, t)
	}
	return out
}

// wants are the GPUs that the container is to have: those that the fleet file assigns, or, if it does not name the
// container, those that its conf gives.
func wants(f Facts) []Want {
	if f.Wish != nil {
		return f.Wish.GPUs
	}
	if f.Container == nil {
		return nil
	}
	var out []Want
	for _, g := range f.Container.Configured.GPUs {
		if g.Index >= 0 {
			out = append(out, Want{Text: fmt.Sprintf("GPU %d", g.Index), Index: g.Index, MIG: g.MIG})
		}
	}
	return out
}

func (w Want) is(g GPU) bool {
	switch {
	case w.UUID != "":
		return g.UUID == w.UUID
	case w.PCI != "":
		return g.PCI == w.PCI
	}
	return w.Index >= 0 && g.Index == w.Index
}

func (w Want) was(a AppliedGPU) bool {
	switch {
	case !sameInstance(w.MIG, a.MIG):
		return false
	case w.UUID != "":
		return a.UUID == w.UUID
	case w.PCI != "":
		return a.PCI == w.PCI
	}
	return a.Index == w.Index
}

func sameInstance(a, b *Instance) bool { return a == b || a != nil && b != nil && *a == *b }

// moved reports whether the name now means another card than when it was applied.
func (t target) moved() bool {
	return t.gpu != nil && t.was != nil && t.was.UUID != "" && t.gpu.UUID != "" && t.was.UUID != t.gpu.UUID
}

// address is the slot in which the card is looked for: where it was when it was applied, if it is not there now or another
// has its name. Empty if unknown.
func (t target) address() string {
	switch {
	case t.was != nil && (t.gpu == nil || t.moved()):
		return t.was.PCI
	case t.gpu != nil:
		return t.gpu.PCI
	}
	return t.want.PCI
}

// at finds the card in a slot.
func (n *Node) at(pci string) *GPU {
	i := slices.IndexFunc(n.GPUs, func(g GPU) bool { return pci != "" && g.PCI == pci })
	if i < 0 {
		return nil
	}
	return &n.GPUs[i]
}

// listed reports whether the driver knows the card: one that fell off the bus or did not initialise is bound to it all the
// same, but has neither UUID nor minor.
func (g GPU) listed() bool { return g.UUID != "" || g.Minor >= 0 }

func (g GPU) String() string {
	if g.Index < 0 {
		return "the card " + g.PCI
	}
	return fmt.Sprintf("GPU %d (%s)", g.Index, g.PCI)
}

// has reports whether a passthrough gives the target.
func (p Passthrough) has(t target) bool {
	return t.gpu != nil && slices.ContainsFunc(p.GPUs, func(g Given) bool { return t.isGiven(g) })
}

func (t target) isGiven(g Given) bool {
	return t.gpu != nil && g.Index == t.gpu.Index && sameInstance(g.MIG, t.want.MIG)
}

// instance finds the MIG device that is assigned; nil if the card has no such.
func (t target) instance() *MIGDevice {
	if t.gpu == nil || t.want.MIG == nil {
		return nil
	}
	i := slices.IndexFunc(t.gpu.Devices, func(d MIGDevice) bool { return d.Instance == *t.want.MIG })
	if i < 0 {
		return nil
	}
	return &t.gpu.Devices[i]
}

// nodes are the device nodes that the target needs for itself.
func (t target) nodes() []DeviceNode {
	var out []DeviceNode
	if t.gpu != nil {
		out = append(out, t.gpu.Nodes...)
	}
	if m := t.instance(); m != nil {
		out = append(out, m.Nodes...)
	}
	return out
}

func texts(ts []target) string {
	var out []string
	for _, t := range ts {
		out = append(out, t.want.Text)
	}
	return strings.Join(out, ", ")
}
