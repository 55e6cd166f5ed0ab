package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
)

// find returns what a selector names on the node. It tells what is wrong with it, and then returns false.
func (c *claim) find(s fleet.Selector) ([]observed.Ref, bool) {
	switch s.Kind {
	case fleet.All:
		return c.all()
	case fleet.ByMIGUUID:
		return c.byMIGUUID(s)
	}
	g := c.gpu(s)
	switch {
	case g == nil:
		return nil, false
	case unusable(*g) != "":
		c.errorf("%s of node %s %s; bind it to nvidia, or assign another", s, c.node.Name, unusable(*g))
		return nil, false
	case s.Kind == fleet.ByMIGIndex:
		return c.byMIGIndex(s, *g)
	case g.MIGEnabled:
		c.errorf("GPU %d of node %s is split by MIG, so it can be given by its MIG devices only: %s", g.Index, c.node.Name, migDevices(*g))
		return nil, false
	}
	whole := g.Refs()
	return whole, c.stayed(s, whole[0])
}

// gpu returns the GPU that a selector names, or in which it names a MIG device.
func (c *claim) gpu(s fleet.Selector) *observed.GPU {
	var matches []*observed.GPU
	for i := range c.node.GPUs {
		g := &c.node.GPUs[i]
		switch s.Kind {
		case fleet.ByUUID:
			if strings.HasPrefix(g.UUID, s.ID) {
				matches = append(matches, g)
			}
		case fleet.ByAddress:
			if g.PCIAddress == s.ID {
				matches = append(matches, g)
			}
		default:
			if g.Index == s.Index {
				matches = append(matches, g)
			}
		}
	}
	switch {
	case len(matches) == 1:
		return matches[0]
	case len(matches) > 1:
		var uuids []string
		for _, g := range matches {
			uuids = append(uuids, fmt.Sprintf("%s (GPU %d)", g.UUID, g.Index))
		}
		c.errorf("%s is how the UUIDs of several GPUs of node %s begin: %s; write more of it", s.ID, c.node.Name, commas(uuids))
		return nil
	}
	var has []string
	elsewhere := ""
	for _, g := range c.node.GPUs {
		switch {
		case g.Index < 0:
			elsewhere += "; " + g.PCIAddress + " " + unusable(g)
		case s.Kind == fleet.ByUUID && g.UUID == "":
			has = append(has, fmt.Sprintf("GPU %d, whose UUID is not known yet", g.Index))
		case s.Kind == fleet.ByUUID:
			has = append(has, fmt.Sprintf("%s (GPU %d)", g.UUID, g.Index))
		case s.Kind == fleet.ByAddress:
			has = append(has, fmt.Sprintf("%s (GPU %d)", g.PCIAddress, g.Index))
		default:
			has = append(has, strconv.Itoa(g.Index))
		}
	}
	what := s.ID
	if what == "" {
		what = "GPU " + strconv.Itoa(s.Index)
	}
	c.errorf("node %s has no %s; it has %s%s", c.node.Name, what, commas(has), elsewhere)
	return nil
}

// all returns everything that the node can give, and tells what is left out.
func (c *claim) all() ([]observed.Ref, bool) {
	ok := true
	for _, g := range c.node.GPUs {
		why := unusable(g)
		switch {
		case why == "":
		case c.exclusive():
			c.errorf("\"all\" includes %s, which %s", g.PCIAddress, why)
			ok = false
		default:
			c.Warnings = append(c.Warnings, fmt.Sprintf("\"all\" is without %s of node %s, which %s", g.PCIAddress, c.node.Name, why))
		}
	}
	refs := c.givable()
	if len(refs) == 0 && ok {
		c.errorf("node %s has no GPU that could be given", c.node.Name)
		ok = false
	}
	return refs, ok
}

func (c *claim) byMIGUUID(s fleet.Selector) ([]observed.Ref, bool) {
	var matches []observed.Ref
	var has []string
	for _, g := range c.node.GPUs {
		for _, r := range g.Refs() {
			if !r.IsMIG {
				continue
			}
			has = append(has, fmt.Sprintf("%s (%s)", r.MIG.UUID, r))
			if strings.HasPrefix(r.MIG.UUID, s.ID) {
				matches = append(matches, r)
			}
		}
	}
	switch len(matches) {
	case 1:
		return matches, true
	case 0:
		c.errorf("node %s has no MIG device %s; it has %s", c.node.Name, s.ID, commas(has))
	default:
		var uuids []string
		for _, r := range matches {
			uuids = append(uuids, fmt.Sprintf("%s (%s)", r.MIG.UUID, r))
		}
		c.errorf("%s is how the UUIDs of several MIG devices of node %s begin: %s; write more of it", s.ID, c.node.Name, commas(uuids))
	}
	return nil, false
}

func (c *claim) byMIGIndex(s fleet.Selector, g observed.GPU) ([]observed.Ref, bool) {
	refs := g.Refs()
	i := slices.IndexFunc(refs, func(r observed.Ref) bool { return r.IsMIG && r.MIG.Index == s.MIG })
	switch {
	case !g.MIGEnabled:
		c.errorf("GPU %d of node %s is not split by MIG, so it has no MIG device %d", g.Index, c.node.Name, s.MIG)
		return nil, false
	case i < 0:
		c.errorf("GPU %d of node %s has no MIG device %d; it has %s", g.Index, c.node.Name, s.MIG, migDevices(g))
		return nil, false
	}
	return refs[i : i+1], c.stayed(s, refs[i])
}

// migDevices lists the MIG devices of a GPU as they are written in an assignment.
func migDevices(g observed.GPU) string {
	var all []string
	for _, m := range g.MIG {
		all = append(all, fmt.Sprintf("%d:%d (%s)", g.Index, m.Index, m.Profile))
	}
	return commas(all)
}

// stayed reports whether an index means the GPU that it meant when it was last applied. If not, it tells so, and it is an
// error until somebody accepts it.
func (c *claim) stayed(s fleet.Selector, now observed.Ref) bool {
	was, ok := recorded(c.found.Applied, s)
	if !ok || was.UUID == "" || now.UUID == "" || was.UUID == now.UUID {
		return true
	}
	where := "is gone"
	if i := slices.IndexFunc(c.node.GPUs, func(g observed.GPU) bool { return g.UUID == was.UUID }); i >= 0 {
		where = fmt.Sprintf("is GPU %d", c.node.GPUs[i].Index)
		if c.node.GPUs[i].Index < 0 {
			where = unusable(c.node.GPUs[i])
		}
	}
	moved := fmt.Sprintf("GPU %d of node %s was %s when it was last applied, which now %s; now it is %s", s.Index, c.node.Name, was.UUID, where, now.UUID)
	c.Moved = append(c.Moved, moved)
	if c.opts.AcceptMoved {
		return true
	}
	c.errorf("%s: write the UUID of the one that is meant into gpu_assignment, or accept the new one with apply --accept-moved", moved)
	return false
}

// recorded returns what an index meant when it was last applied. A record of an assignment that did not name the index
// says nothing about it.
func recorded(a *observed.Applied, s fleet.Selector) (observed.Ref, bool) {
	if a == nil {
		return observed.Ref{}, false
	}
	before, err := fleet.Assignment(a.Assignment)
	named := func(b fleet.Selector) bool { return b.Kind == s.Kind && b.Index == s.Index && b.MIG == s.MIG }
	if err != nil || !slices.ContainsFunc(before, named) {
		return observed.Ref{}, false
	}
	i := slices.IndexFunc(a.GPUs, func(r observed.Ref) bool {
		return r.Index == s.Index && r.IsMIG == (s.Kind == fleet.ByMIGIndex)
	})
	if i < 0 {
		return observed.Ref{}, false
	}
	return a.GPUs[i], true
}
