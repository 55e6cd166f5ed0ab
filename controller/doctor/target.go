package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// A target is one assigned GPU and what it means on the node now.
type target struct {
	want Want
	gpu  *GPU // nil: the node has no such GPU now
}

// targets finds the assigned GPUs on the node.
func targets(f Facts) []target {
	var out []target
	for _, want := range wants(f) {
		t := target{want: want}
		if i := slices.IndexFunc(f.Node.GPUs, want.is); i >= 0 {
			t.gpu = &f.Node.GPUs[i]
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
	case w.MIGUUID != "":
		return slices.ContainsFunc(g.Devices, func(d MIGDevice) bool { return strings.HasPrefix(d.UUID, w.MIGUUID) }) || w.PCI != "" && g.PCI == w.PCI
	case w.UUID != "":
		return strings.HasPrefix(g.UUID, w.UUID)
	case w.PCI != "":
		return g.PCI == w.PCI
	}
	return w.Index >= 0 && g.Index == w.Index
}

func sameInstance(a, b *Instance) bool { return a == b || a != nil && b != nil && *a == *b }

// moved reports whether the name now means another card than when it was applied.
func (t target) moved() bool {
	return t.gpu != nil && t.want.Was != nil && t.want.Was.UUID != "" && t.gpu.UUID != "" && t.want.Was.UUID != t.gpu.UUID
}

// address is the slot in which the card is looked for: where it was when it was applied, if it is not there now or another
// has its name. Empty if unknown.
func (t target) address() string {
	switch {
	case t.want.Was != nil && (t.gpu == nil || t.moved()):
		return t.want.Was.PCI
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

// UUIDs are those of the GPUs and MIG devices that nvidia-smi is to list inside; nil if there are none, or if one is not
// known.
func (f *Facts) UUIDs() []string {
	if f.Node == nil || f.Container == nil {
		return nil
	}
	var out []string
	for _, t := range targets(*f) {
		uuid := ""
		switch m := t.instance(); {
		case m != nil:
			uuid = m.UUID
		case t.gpu != nil && t.want.MIG == nil:
			uuid = t.gpu.UUID
		}
		if uuid == "" {
			return nil
		}
		out = append(out, uuid)
	}
	return out
}

// WorthVerifying reports whether there is a driver inside that could be used.
func (f *Facts) WorthVerifying() bool {
	return f.Driver != nil && f.Driver.State == "installed" && f.Driver.Version == f.Node.Loaded && !(f.Wish != nil && f.Wish.DriverMode == "none")
}

func texts(ts []target) string {
	var out []string
	for _, t := range ts {
		out = append(out, t.want.Text)
	}
	return strings.Join(out, ", ")
}
