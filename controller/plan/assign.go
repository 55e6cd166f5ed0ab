package plan

import (
	"fmt"
	"slices"
	"strings"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
)

// An Assigned is what the gpu_assignment of one container comes to on the node that has it.
type Assigned struct {
	GPUs     []observed.Ref // as [observed.Sort] puts them; without those that have an error
	Errors   []string       // why the node cannot give the assignment
	Warnings []string       // of others who have the same GPUs, or would take them
	// Moved tells of indexes that mean another GPU than when they were last applied. Unless that was accepted, each is an
	// error too.
	Moved []string
}

// Assign resolves every gpu_assignment of a fleet file, whichever containers are to be planned: what is picked for one
// must not depend on that. Containers without an assignment, or that cannot be located, are left out.
//
// GPUs that are named come first, by CTID. Then what was picked before is kept, and last comes what is picked now, for
// containers with the policy exclusive before the others.
func Assign(f *fleet.Fleet, o *observed.Fleet, opts Options) map[int32]Assigned {
	return assign(f, count(o), opts)
}

func assign(f *fleet.Fleet, there census, opts Options) map[int32]Assigned {
	b := book{}
	var claims []*claim
	managed := map[*observed.Container]bool{}
	for i := range f.Containers {
		desired := &f.Containers[i]
		found, node, err := there.locate(*desired)
		if err != nil {
			continue
		}
		managed[found] = true
		if len(desired.GPUs) > 0 {
			claims = append(claims, &claim{desired: desired, found: found, node: node, opts: &opts, book: b})
		}
	}
	b.addUnmanaged(there, managed)
	for _, c := range claims {
		c.take()
	}
	slices.SortStableFunc(claims, func(a, b *claim) int {
		switch {
		case a.exclusive() == b.exclusive():
			return 0
		case a.exclusive():
			return -1
		}
		return 1
	})
	for _, c := range claims {
		c.keep()
	}
	for _, c := range claims {
		c.pick()
	}
	assigned := make(map[int32]Assigned, len(claims))
	for _, c := range claims {
		c.conflicts()
		observed.Sort(c.GPUs)
		assigned[c.desired.CTID] = c.Assigned
	}
	return assigned
}

// A book tells who has what. Containers of the fleet file have what they are assigned, the others what their confs give.
type book map[entry]*possession

type entry struct{ node, key string }

type possession struct {
	unmanaged []int32 // CTIDs that are not in the fleet file
	managed   []int32 // CTIDs that are
	exclusive bool    // then there is one, and it is managed
}

func (b book) at(n *observed.Node, r observed.Ref) *possession {
	at := entry{n.Name, r.Key()}
	if b[at] == nil {
		b[at] = &possession{}
	}
	return b[at]
}

func (p *possession) all() []int32 { return slices.Concat(p.unmanaged, p.managed) }

func (b book) addUnmanaged(there census, managed map[*observed.Container]bool) {
	for i := range there.Nodes {
		n := &there.Nodes[i]
		for j := range n.Containers {
			c := &n.Containers[j]
			if managed[c] {
				continue
			}
			gpus := c.Configured.GPUs
			if c.Effective != nil {
				gpus = slices.Concat(gpus, c.Effective.GPUs)
			}
			for _, r := range n.Full(gpus) {
				if p := b.at(n, r); !slices.Contains(p.unmanaged, c.CTID) {
					p.unmanaged = append(p.unmanaged, c.CTID)
				}
			}
		}
	}
}

// A claim is one container's assignment in the making.
type claim struct {
	desired *fleet.Container
	found   *observed.Container
	node    *observed.Node
	opts    *Options
	book    book

	Assigned
	picks    int      // GPUs that are still to be picked
	profiles []string // of MIG devices that are still to be picked
}

func (c *claim) exclusive() bool { return c.desired.Policy == fleet.PolicyExclusive }

func (c *claim) errorf(format string, args ...any) {
	c.Errors = append(c.Errors, fmt.Sprintf(format, args...))
}

// take resolves the selectors that name GPUs, and notes what is to be picked.
func (c *claim) take() {
	if c.node.DriverVersion == "" {
		c.errorf("node %s has not loaded the nvidia driver, so it cannot give %s; load it with modprobe nvidia", c.node.Name, wanted(c.desired.GPUs))
		return
	}
	by := map[string]fleet.Selector{}
	for _, s := range c.desired.GPUs {
		switch s.Kind {
		case fleet.Any:
			c.picks += s.Count
		case fleet.ByProfile:
			c.profiles = append(c.profiles, s.ID)
		default:
			refs, ok := c.find(s)
			for _, r := range refs {
				if first, twice := by[r.Key()]; twice {
					c.errorf("%s and %s are the same, %s of node %s; write one of them", first, s, r, c.node.Name)
					ok = false
				}
				by[r.Key()] = s
			}
			if ok && c.admit(refs) {
				c.have(refs...)
			}
		}
	}
}

// admit reports whether nobody stands against giving these GPUs to the container, and tells who does.
func (c *claim) admit(refs []observed.Ref) bool {
	ok := true
	for _, r := range refs {
		if why := c.against(r); why != "" {
			c.errorf("%s", why)
			ok = false
		}
	}
	return ok
}

// against says why the GPU may not be given to the container, which the policies and its health decide; "" if it may.
func (c *claim) against(r observed.Ref) string {
	p := c.book.at(c.node, r)
	switch {
	case observed.Has(c.GPUs, r):
	case p.exclusive:
		return fmt.Sprintf("%s of node %s is CTID %d's alone (gpu_policy exclusive)", r, c.node.Name, p.managed[0])
	case c.exclusive() && len(p.unmanaged) > 0:
		return fmt.Sprintf("%s of node %s cannot be exclusive: CTID %d, which is not in the fleet file, has it", r, c.node.Name, p.unmanaged[0])
	case c.exclusive() && len(p.managed) > 0:
		return fmt.Sprintf("%s of node %s cannot be exclusive: it is assigned to CTID %d too", r, c.node.Name, p.managed[0])
	case c.exclusive() && len(c.card(r).VMs) > 0:
		return fmt.Sprintf("%s of node %s cannot be exclusive: it is in the conf of %s (hostpci), whose start would take it from CTID %d",
			r, c.node.Name, vmNames(c.card(r).VMs), c.desired.CTID)
	}
	return c.unfit(r)
}

// card returns the GPU that the ref is of.
func (c *claim) card(r observed.Ref) observed.GPU {
	i := slices.IndexFunc(c.node.GPUs, func(g observed.GPU) bool { return slices.ContainsFunc(g.Refs(), r.Same) })
	if i < 0 {
		return observed.GPU{}
	}
	return c.node.GPUs[i]
}

func vmNames(vms []int32) string {
	if len(vms) == 1 {
		return "VM " + itoa(vms[0])
	}
	var all []string
	for _, vm := range vms {
		all = append(all, itoa(vm))
	}
	return "VMs " + strings.Join(all, ", ")
}

// unfit says why a GPU is not given anew; "" if it is fit, or the container has it already.
func (c *claim) unfit(r observed.Ref) string {
	fault := c.card(r).Fault
	if fault == "" || observed.Has(c.node.Full(c.found.Configured.GPUs), r) {
		return ""
	}
	return fmt.Sprintf("%s of node %s is given to no container anew: %s", r, c.node.Name, fault)
}

// have gives GPUs to the container.
func (c *claim) have(refs ...observed.Ref) {
	for _, r := range refs {
		c.GPUs = append(c.GPUs, r)
		p := c.book.at(c.node, r)
		p.managed = append(p.managed, c.desired.CTID)
		p.exclusive = c.exclusive()
	}
}

// keep picks what was picked before: by an earlier plan of the same run, by the agent's record, or, where there is none,
// what the conf gives.
func (c *claim) keep() {
	if c.picks == 0 && len(c.profiles) == 0 {
		return
	}
	var before []observed.Ref
	switch chosen, ok := c.opts.Chosen[c.desired.CTID]; {
	case ok:
		before = chosen
	case c.found.Applied != nil:
		before = c.found.Applied.GPUs
	default:
		before = c.found.Configured.GPUs
	}
	for _, r := range c.node.Full(before) {
		i := slices.Index(c.profiles, r.MIG.Profile)
		whole := !r.IsMIG
		switch {
		case !c.can(r), whole && c.picks == 0, !whole && i < 0:
		case whole:
			c.picks--
			c.have(r)
		default:
			c.profiles = slices.Delete(c.profiles, i, i+1)
			c.have(r)
		}
	}
}

// can tells whether a GPU that nobody has named may be picked for the container.
func (c *claim) can(r observed.Ref) bool {
	return !observed.Has(c.GPUs, r) && slices.ContainsFunc(c.givable(), r.Same) && c.against(r) == ""
}

// givable returns everything on the node that can be given, in the order of the PCI addresses.
func (c *claim) givable() (refs []observed.Ref) {
	for _, g := range c.node.GPUs {
		if unusable(g) == "" {
			refs = append(refs, g.Refs()...)
		}
	}
	return refs
}

// unusable says why a GPU cannot be given to any container; "" if it can.
func unusable(g observed.GPU) string {
	switch {
	case g.Driver == "vfio-pci" && len(g.VMs) > 0:
		return "is bound to vfio-pci, for " + vmNames(g.VMs)
	case g.Driver != "nvidia":
		return "is bound to " + driverName(g.Driver)
	case g.Index < 0:
		return "has no index"
	}
	return ""
}

// conflicts warns of those who have the same GPUs, or would take them, where the policy allows that.
func (c *claim) conflicts() {
	for _, r := range c.GPUs {
		for _, ctid := range c.book.at(c.node, r).unmanaged {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s of node %s is CTID %d's too, which is not in the fleet file", r, c.node.Name, ctid))
		}
	}
	for _, g := range c.own() {
		if len(g.VMs) > 0 {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s of node %s is in the conf of %s too (hostpci), whose start would take it from CTID %d",
				g.Ref(), c.node.Name, vmNames(g.VMs), c.desired.CTID))
		}
	}
}

// wanted writes selectors for people.
func wanted(selectors []fleet.Selector) string {
	var refs []observed.Ref
	for _, s := range selectors {
		if s.Kind != fleet.ByIndex {
			return fleet.Text(selectors)
		}
		refs = append(refs, observed.Ref{Index: s.Index})
	}
	return observed.Names(refs)
}

func driverName(driver string) string {
	switch driver {
	case "", "none":
		return "no driver"
	case "other":
		return "another driver"
	}
	return driver
}

// commas joins what a node has, in an error: "none" if that is nothing.
func commas(parts []string) string {
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}
