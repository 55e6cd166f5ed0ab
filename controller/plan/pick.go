package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"phoenix.internal/controller/observed"
)

// pick picks what is still missing: MIG devices that nobody has, and the GPUs that are shared least, near to each other
// and to those that the container has. What a virtual machine would take comes last.
func (c *claim) pick() {
	if len(c.Errors) > 0 {
		return // it would only take from others what it cannot have
	}
	for _, profile := range c.profiles {
		var free []observed.Ref
		for _, r := range c.givable() {
			if r.IsMIG && r.MIG.Profile == profile && len(c.book.at(c.node, r).all()) == 0 && c.against(r) == "" {
				free = append(free, r)
			}
		}
		if len(free) == 0 {
			c.errorf("node %s has no free MIG device %s; it has %s", c.node.Name, profile, commas(c.taken(c.givable())))
			continue
		}
		c.have(slices.MinFunc(free, func(a, b observed.Ref) int { return cmp.Compare(len(c.card(a).VMs), len(c.card(b).VMs)) }))
	}
	if c.picks == 0 {
		return
	}
	var candidates []candidate
	for _, g := range c.node.GPUs {
		if g.MIGEnabled || unusable(g) != "" || !c.can(g.Refs()[0]) {
			continue
		}
		p := c.book.at(c.node, g.Refs()[0])
		candidates = append(candidates, candidate{g, g.Refs()[0], len(p.unmanaged) + len(p.managed)})
	}
	if len(candidates) < c.picks {
		c.errorf("node %s has %s left to pick from, and %d are to be picked%s", c.node.Name, gpuCount(len(candidates)), c.picks, c.whyNot())
		return
	}
	for _, picked := range best(candidates, c.picks, c.own()) {
		c.have(picked.ref)
	}
}

// taken lists the MIG devices of the node with those who have them.
func (c *claim) taken(refs []observed.Ref) (all []string) {
	for _, r := range refs {
		if !r.IsMIG {
			continue
		}
		who := "free"
		switch holders := c.book.at(c.node, r).all(); {
		case len(holders) > 0:
			who = "CTID " + itoa(holders[0])
		case c.unfit(r) != "":
			who = "faulty"
		case c.against(r) != "":
			who = vmNames(c.card(r).VMs)
		}
		all = append(all, fmt.Sprintf("%d:%d (%s, %s)", r.Index, r.MIG.Index, r.MIG.Profile, who))
	}
	return all
}

// whyNot tells what keeps the other GPUs of the node from being picked.
func (c *claim) whyNot() string {
	var why strings.Builder
	for _, g := range c.node.GPUs {
		switch {
		case unusable(g) != "":
			fmt.Fprintf(&why, "; %s %s", g.PCIAddress, unusable(g))
		case g.MIGEnabled:
			fmt.Fprintf(&why, "; GPU %d is split by MIG", g.Index)
		case c.against(g.Refs()[0]) != "":
			why.WriteString("; " + c.against(g.Refs()[0]))
		}
	}
	return why.String()
}

func gpuCount(n int) string {
	switch n {
	case 0:
		return "no GPU"
	case 1:
		return "1 GPU"
	}
	return fmt.Sprintf("%d GPUs", n)
}

// own are the GPUs of the node that the container has already.
func (c *claim) own() (gpus []observed.GPU) {
	for _, g := range c.node.GPUs {
		if slices.ContainsFunc(g.Refs(), func(r observed.Ref) bool { return observed.Has(c.GPUs, r) }) {
			gpus = append(gpus, g)
		}
	}
	return gpus
}

// A candidate is a GPU that could be picked.
type candidate struct {
	gpu     observed.GPU
	ref     observed.Ref
	sharers int // how many containers have it
}

// best picks n of the candidates, which are in the order of their PCI addresses. It grows a set from each of those that
// are best alone and takes the best of them.
func best(candidates []candidate, n int, own []observed.GPU) []candidate {
	alone := func(c candidate) score { return score{vms: len(c.gpu.VMs), sharers: c.sharers} }
	least := alone(slices.MinFunc(candidates, func(a, b candidate) int { return alone(a).compare(alone(b)) }))
	var picked []candidate
	var worth score
	for _, seed := range candidates {
		if alone(seed) != least {
			continue
		}
		set, s := grow(seed, candidates, n, own)
		if picked == nil || s.compare(worth) < 0 {
			picked, worth = set, s
		}
	}
	return picked
}

// A score tells how good a set of GPUs is: fewer virtual machines that would take them first, then fewer containers that
// share them, then more pairs that NVLink connects, then more on the same NUMA node.
type score struct{ vms, sharers, links, neighbours int }

func (s score) compare(other score) int {
	return cmp.Or(cmp.Compare(s.vms, other.vms), cmp.Compare(s.sharers, other.sharers), cmp.Compare(other.links, s.links), cmp.Compare(other.neighbours, s.neighbours))
}

func grow(seed candidate, candidates []candidate, n int, own []observed.GPU) (set []candidate, total score) {
	near := slices.Clone(own)
	add := func(c candidate, s score) {
		set = append(set, c)
		near = append(near, c.gpu)
		total = score{total.vms + s.vms, total.sharers + s.sharers, total.links + s.links, total.neighbours + s.neighbours}
	}
	worth := func(c candidate) score {
		s := score{vms: len(c.gpu.VMs), sharers: c.sharers}
		for _, g := range near {
			if slices.Contains(c.gpu.NVLinkPeers, g.PCIAddress) {
				s.links++
			}
			if c.gpu.NUMANode >= 0 && c.gpu.NUMANode == g.NUMANode {
				s.neighbours++
			}
		}
		return s
	}
	add(seed, worth(seed))
	for len(set) < n {
		var next *candidate
		var least score
		for i := range candidates {
			c := &candidates[i]
			if slices.ContainsFunc(set, func(in candidate) bool { return in.ref == c.ref }) {
				continue
			}
			if s := worth(*c); next == nil || s.compare(least) < 0 {
				next, least = c, s
			}
		}
		add(*next, least)
	}
	return set, total
}
