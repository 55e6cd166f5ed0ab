package observed

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Ref names a GPU of a node, or one MIG device of it. It is comparable.
type Ref struct {
	Index      int    // of the GPU as nvidia-smi counts; -1 if no GPU of the node is this one any more
	UUID       string // of the GPU; empty if unknown
	PCIAddress string // of the GPU; empty if unknown

	IsMIG bool
	MIG   MIGDevice // zero for a whole GPU
}

// Key tells refs of one node apart: as long as it stays the same, so does the piece of hardware. UUIDs are not always
// known; numbers stand for them then.
func (r Ref) Key() string {
	key := r.UUID
	switch {
	case r.MIG.UUID != "":
		return r.MIG.UUID
	case key == "":
		key = strconv.Itoa(r.Index)
	}
	if r.IsMIG {
		key += fmt.Sprintf("/%d/%d", r.MIG.GPUInstance, r.MIG.ComputeInstance)
	}
	return key
}

// Same tells whether two refs of one node name the same. All that are gone are taken for one.
func (r Ref) Same(other Ref) bool {
	switch {
	case r.Index < 0 || other.Index < 0:
		return r.Index < 0 && other.Index < 0
	case r.MIG.UUID != "" && other.MIG.UUID != "":
		return r.MIG.UUID == other.MIG.UUID
	}
	return r.sameGPU(other) && r.samePart(other)
}

func (r Ref) sameGPU(other Ref) bool {
	if r.UUID != "" && other.UUID != "" {
		return r.UUID == other.UUID
	}
	return r.Index == other.Index
}

func (r Ref) samePart(other Ref) bool {
	return r.IsMIG == other.IsMIG && r.MIG.GPUInstance == other.MIG.GPUInstance && r.MIG.ComputeInstance == other.MIG.ComputeInstance
}

// String returns the ref as people read it: "GPU 0", "GPU 0 MIG 1 (1g.10gb)".
func (r Ref) String() string {
	switch {
	case r.Index < 0:
		return "a GPU that is gone"
	case !r.IsMIG:
		return "GPU " + strconv.Itoa(r.Index)
	}
	s := fmt.Sprintf("GPU %d MIG %d", r.Index, r.MIG.Index)
	if r.MIG.Index < 0 {
		s = fmt.Sprintf("GPU %d MIG instance %d/%d", r.Index, r.MIG.GPUInstance, r.MIG.ComputeInstance)
	}
	if r.MIG.Profile != "" {
		s += " (" + r.MIG.Profile + ")"
	}
	return s
}

// short returns the ref as an element of a list.
func (r Ref) short() string {
	if r.Index < 0 {
		return "one that is gone"
	}
	return strings.TrimPrefix(r.String(), "GPU ")
}

// List writes refs for people: "0, 1 MIG 0 (1g.10gb)", or "none".
func List(refs []Ref) string {
	if len(refs) == 0 {
		return "none"
	}
	var parts []string
	for _, r := range refs {
		parts = append(parts, r.short())
	}
	return strings.Join(parts, ", ")
}

// Names writes refs for people with their noun: "GPU 0", "GPUs 0, 1", or "no GPU".
func Names(refs []Ref) string {
	switch len(refs) {
	case 0:
		return "no GPU"
	case 1:
		return "GPU " + List(refs)
	}
	return "GPUs " + List(refs)
}

// Has tells whether one of the refs is the same as r.
func Has(refs []Ref, r Ref) bool { return slices.ContainsFunc(refs, r.Same) }

// Equal compares refs as sets.
func Equal(a, b []Ref) bool {
	lacks := func(in []Ref) func(Ref) bool { return func(r Ref) bool { return !Has(in, r) } }
	return !slices.ContainsFunc(a, lacks(b)) && !slices.ContainsFunc(b, lacks(a))
}

// Sort puts refs in the order of the node's GPUs.
func Sort(refs []Ref) {
	slices.SortStableFunc(refs, func(a, b Ref) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.MIG.Index, b.MIG.Index),
			cmp.Compare(a.MIG.GPUInstance, b.MIG.GPUInstance), cmp.Compare(a.MIG.ComputeInstance, b.MIG.ComputeInstance))
	})
}

// Indexes returns the indexes of the GPUs, each once and ascending; a GPU that is gone has none.
func Indexes(refs []Ref) []int {
	var indexes []int
	for _, r := range refs {
		if r.Index >= 0 {
			indexes = append(indexes, r.Index)
		}
	}
	slices.Sort(indexes)
	return slices.Compact(indexes)
}

// Full returns refs with all that the node knows of them now. A MIG device that was made anew in the same place has another
// UUID, and is taken for the same.
func (n *Node) Full(refs []Ref) []Ref {
	full := slices.Clone(refs)
	for i, r := range full {
		if r.Index < 0 {
			continue
		}
		for _, g := range n.GPUs {
			if !g.Ref().sameGPU(r) {
				continue
			}
			all := append(g.Refs(), g.Ref())
			j := slices.IndexFunc(all, r.Same)
			if j < 0 {
				j = slices.IndexFunc(all, r.samePart)
			}
			if j >= 0 {
				full[i] = all[j]
			}
		}
	}
	return full
}
