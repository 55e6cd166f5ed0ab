package passthrough

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
)

// A GPUError says that the node has no GPU of a minor.
type GPUError struct {
	Minor int
	Have  []int // the minors it has
}

func (e *GPUError) Error() string {
	return fmt.Sprintf("the node has no /dev/nvidia%d; it has the minors %v", e.Minor, e.Have)
}

// A NodeError says that a device node that is to be given is not there.
type NodeError struct{ Path string }

func (e *NodeError) Error() string {
	return e.Path + " is missing on the node, or has not the driver's numbers"
}

// Set edits the main section of f to give exactly the GPUs of the minors, in mode, with the shared nodes
// that every use needs; without minors it takes every NVIDIA device away, and mode does not matter.
//
// Entries that are right stay byte for byte, every other NVIDIA entry goes, whoever wrote it; all other
// lines stay. Setting the same again changes nothing, and setting what a conf of our own form gave before
// brings back its bytes. On an error f is unchanged: a [*GPUError], a [*NodeError], or one about the mode.
func Set(f *pveconf.File, inv Inventory, minors []int, mode Mode) error {
	want, err := wanted(inv, minors)
	if err != nil {
		return err
	}
	if len(want) > 0 && mode != ModeRaw && mode != ModeNative {
		return fmt.Errorf("GPUs cannot be given in mode %v", mode)
	}
	c := read(f, inv, len(want) > 0)
	if len(want) == 0 {
		mode = ModeNone
	}
	if mode == ModeNative {
		if err := c.checkSlots(want); err != nil {
			return err
		}
	}
	keep := c.rightEntries(want, mode)
	f.RemoveProperties(func(e pveconf.Entry) bool { return !keep[e.Line] && isNVIDIADevice(e) })
	// Properties have gone, so the lines have other numbers now.
	c = read(f, inv, len(want) > 0)
	keep = c.rightEntries(want, mode)
	nvidia := map[int]bool{}
	for _, m := range c.mounts {
		nvidia[m.line] = true
	}
	for _, r := range c.rules {
		nvidia[r.line] = true
	}
	f.RemoveRaw(func(e pveconf.Entry) bool { return nvidia[e.Line] && !keep[e.Line] })
	switch mode {
	case ModeRaw:
		return addRaw(f, inv, want)
	case ModeNative:
		return addNative(f, want)
	}
	return nil
}

// rightEntries returns the lines of the entries that stay: for each wanted node the first that gives it as
// it should be.
func (c *conf) rightEntries(want []Node, mode Mode) map[int]bool {
	keep := map[int]bool{}
	for _, n := range want {
		switch mode {
		case ModeRaw:
			if m := slices.IndexFunc(c.mounts, func(m mount) bool { return m.gives(n) }); m >= 0 {
				keep[c.mounts[m].line] = true
			}
			if r := slices.IndexFunc(c.rules, func(r rule) bool { return r.allows(n) }); r >= 0 {
				keep[c.rules[r].line] = true
			}
		case ModeNative:
			if d := slices.IndexFunc(c.devices, func(d device) bool { return d.gives(n) }); d >= 0 {
				keep[c.devices[d].line] = true
			}
		}
	}
	return keep
}

func (m mount) gives(n Node) bool {
	return m.noEffect == "" && !m.hidden && m.source == n.Path && m.target == n.Path
}

func (r rule) allows(n Node) bool {
	return r.noEffect == "" && !r.hidden && (r.path == "" || r.path == n.Path) &&
		r.rule.Major >= 0 && r.rule.Minor >= 0 && r.rule.opens(n.Major, n.Minor)
}

func (d device) gives(n Node) bool { return !d.denyWrite && d.path == n.Path }

func isNVIDIADevice(e pveconf.Entry) bool {
	if !isDevice(e.Key) {
		return false
	}
	d, err := pveconf.ParseDevice(e.Value)
	return err == nil && nvidiaPath.MatchString(path.Clean(d.Path))
}

// addRaw adds the rules and mount entries that are missing, each in the order of want among those of its
// key, so that what was there before comes back when a node is taken away and given again.
func addRaw(f *pveconf.File, inv Inventory, want []Node) error {
	for i, n := range want {
		c := read(f, inv, true)
		if !slices.ContainsFunc(c.rules, func(r rule) bool { return r.allows(n) }) {
			before := 0
			for _, r := range slices.Backward(c.rules) {
				if slices.ContainsFunc(want[i+1:], r.allows) {
					before = r.line
				}
			}
			// By number, not by path: LXC refuses to start where the path of a rule is missing.
			if err := addLine(f, before, allowKey, Rule{'c', n.Major, n.Minor, "rwm"}.String()); err != nil {
				return err
			}
		}
	}
	for i, n := range want {
		c := read(f, inv, true)
		if !slices.ContainsFunc(c.mounts, func(m mount) bool { return m.gives(n) }) {
			before := 0
			for _, m := range slices.Backward(c.mounts) {
				if slices.ContainsFunc(want[i+1:], m.gives) {
					before = m.line
				}
			}
			// optional: a container must come up after a boot of the node on which the driver has not made
			// its nodes yet. Nobody would start it again, and it may serve more than its GPU. The price, an
			// empty file in the device's place, is paid openly: Set refuses a node that is missing now, and
			// the probe and the effective state look for a device, not for a file.
			value := n.Path + " " + strings.TrimPrefix(n.Path, "/") + " none bind,optional,create=file"
			if err := addLine(f, before, mountKey, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func addLine(f *pveconf.File, before int, key, value string) error {
	if before > 0 {
		return f.InsertRaw(before, key, value)
	}
	return f.AppendRaw(key, value)
}

// addNative adds the devN that are missing, at the lowest free numbers.
func addNative(f *pveconf.File, want []Node) error {
	c := read(f, Inventory{}, true)
	free := freeSlots(f)
	for _, n := range want {
		if slices.ContainsFunc(c.devices, func(d device) bool { return d.gives(n) }) {
			continue
		}
		if len(free) == 0 {
			return errNoSlot
		}
		// Proxmox's default mode 0660 would let only the container's root open the device.
		if err := f.Set(free[0], n.Path+",mode=0666"); err != nil {
			return err
		}
		free = free[1:]
	}
	return nil
}

// freeSlots returns the devN that neither the main section nor [pve:pending], which will be moved there,
// has an entry for.
func freeSlots(f *pveconf.File) []string {
	used := map[string]bool{}
	for _, e := range f.Properties() {
		used[e.Key] = true
	}
	for _, e := range f.Pending().Properties {
		used[e.Key] = true
		if e.Key == "delete" {
			for _, key := range pveconf.DeleteKeys(e.Value) {
				used[key] = true
			}
		}
	}
	var free []string
	for i := range 256 {
		if key := "dev" + strconv.Itoa(i); !used[key] {
			free = append(free, key)
		}
	}
	return free
}

// checkSlots says whether there will be a free devN for each missing node.
func (c *conf) checkSlots(want []Node) error {
	keep := c.rightEntries(want, ModeNative)
	if len(want)-len(keep) > len(freeSlots(c.file))+len(c.devices)-len(keep) {
		return errNoSlot
	}
	return nil
}

// wanted returns the nodes to give: those of the GPUs by minor, then the shared ones by their numbers.
func wanted(inv Inventory, minors []int) ([]Node, error) {
	if len(minors) == 0 {
		return nil, nil
	}
	var gpus, shared []Node
	for _, minor := range slices.Compact(slices.Sorted(slices.Values(minors))) {
		if _, ok := inv.gpu(minor); !ok {
			e := &GPUError{Minor: minor}
			for _, g := range inv.GPUs {
				e.Have = append(e.Have, g.Minor)
			}
			return nil, e
		}
		nodePath := "/dev/nvidia" + strconv.Itoa(minor)
		n, ok := inv.node(nodePath)
		if !ok {
			return nil, &NodeError{Path: nodePath}
		}
		gpus = append(gpus, n)
	}
	for _, n := range inv.Nodes {
		if n.Needed {
			shared = append(shared, n)
		}
	}
	if len(shared) == 0 {
		return nil, &NodeError{Path: "/dev/nvidiactl"}
	}
	slices.SortFunc(shared, func(a, b Node) int {
		return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor), strings.Compare(a.Path, b.Path))
	})
	want := append(gpus, shared...)
	for _, n := range want {
		if !n.Present || n.Major < 0 || n.Minor < 0 {
			return nil, &NodeError{Path: n.Path}
		}
	}
	return want, nil
}

var errNoSlot = errors.New("every devN from dev0 to dev255 is in use")
