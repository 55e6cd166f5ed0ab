package passthrough

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
)

// Want is what a container is to be given.
type Want struct {
	GPUs     []GPU // of which the minors and instances count; each one must stand there once only, or as MIG devices only
	Graphics bool  // nvidia-modeset too, and the DRM nodes of the cards
	Fabric   bool  // the nodes of an NVLink fabric too
}

// A GPUError says that the node has no GPU of a minor, or that this GPU has no such MIG device.
type GPUError struct {
	Minor int
	MIG   *MIG
	Have  []int // the minors it has
}

func (e *GPUError) Error() string {
	if e.MIG != nil {
		return fmt.Sprintf("the GPU with minor %d has no MIG device of GPU instance %d and compute instance %d", e.Minor, e.MIG.GPUInstance, e.MIG.ComputeInstance)
	}
	return fmt.Sprintf("the node has no GPU with minor %d; it has the minors %v", e.Minor, e.Have)
}

// A NodeError says that a device node that is to be given is not there.
type NodeError struct{ Path string }

func (e *NodeError) Error() string {
	return e.Path + " is missing on the node or does not have the driver's numbers"
}

// A CutOffError says that raw lines cannot take effect in a conf: one of its lines cancels those above it, and has a
// NUL, at which LXC stops reading.
type CutOffError struct{ Key string } // of that line

func (e *CutOffError) Error() string {
	return fmt.Sprintf("a %s line cancels all such lines above it and, with the NUL in it, hides all below it from LXC; remove that line", e.Key)
}

// A FolderError says that a mount entry brings a folder in which a devN is to make a device: the container would not
// start.
type FolderError struct {
	Path   string // of the device
	Folder string
}

func (e *FolderError) Error() string {
	return fmt.Sprintf("a mount entry brings the folder %s, in which no devN can make %s: the container would not start; remove that line, or give the devices raw", e.Folder, e.Path)
}

// ErrNoSlot says that every devN from dev0 to dev255 is in use.
var ErrNoSlot = errors.New("every devN from dev0 to dev255 is in use")

// Set edits the main section of f to give exactly what is wanted, in mode, with the shared nodes that every use
// of a GPU needs. Without GPUs it takes every NVIDIA device away, and mode does not matter. DRM nodes are NVIDIA's if the
// inventory has them; all others, and folders of them, are left alone.
//
// Entries that are right stay byte for byte, every other NVIDIA entry goes, whoever wrote it, and all other
// lines stay. (An NVIDIA entry with a NUL in it hides the lines below it from LXC: with it gone they are in
// force.) Setting the same again changes nothing; where an earlier Set on a conf without NVIDIA entries
// wrote what is there, setting something else, whatever and how often, and then the first again brings back its bytes:
// for that Set gives the devN that it wrote other numbers where the conf changes.
//
// On an error f is as before: a [*GPUError], a [*NodeError], [ErrNoSlot], a [*CutOffError], a [*FolderError], or one
// about the mode.
func Set(f *pveconf.File, inv Inventory, w Want, mode Mode) error {
	want, err := wanted(inv, w)
	switch {
	case err != nil:
		return err
	case len(want) == 0:
		mode = ModeNone
	case mode != ModeRaw && mode != ModeNative:
		return fmt.Errorf("GPUs cannot be given in mode %v", mode)
	}
	edited := pveconf.Parse(f.Bytes())
	removed := false
	for removeWrong(edited, inv, want, mode) > 0 {
		removed = true
		// A removed entry with a NUL hid the lines below it: in force now, they may cancel what was right before.
	}
	switch mode {
	case ModeRaw:
		err = addRaw(edited, inv, want)
	case ModeNative:
		err = addNative(edited, inv, want, removed)
	}
	if err != nil {
		return err
	}
	*f = *edited
	return nil
}

// wanted returns the nodes to give, in an order in which those that are always given stand last: the ones of the GPUs by
// minor, of MIG, of graphics, of the fabric, and then the shared ones by their numbers.
func wanted(inv Inventory, w Want) ([]Node, error) {
	if len(w.GPUs) == 0 {
		return nil, nil
	}
	var gpus, more []Node
	seen := map[string]bool{}
	add := func(nodes *[]Node, path string) error {
		n, ok := inv.node(path)
		if !ok || !n.Present || n.Major < 0 || n.Minor < 0 {
			return &NodeError{Path: path}
		}
		if !seen[path] {
			seen[path] = true
			*nodes = append(*nodes, n)
		}
		return nil
	}
	graphics := map[int]bool{} // by minor
	for _, g := range w.GPUs {
		paths, err := inv.nodesOf(g)
		if err != nil {
			return nil, err
		}
		graphics[g.Minor] = true
		if err := add(&gpus, paths[0]); err != nil {
			return nil, err
		}
		for _, p := range paths[1:] {
			if err := add(&more, p); err != nil {
				return nil, err
			}
		}
	}
	byNumber := func(a, b Node) int { return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor)) }
	slices.SortFunc(gpus, byNumber)
	slices.SortFunc(more, byNumber)
	var rest, shared []Node
	for _, n := range inv.Nodes {
		into := &rest
		switch {
		case n.Needed:
			into = &shared
		case n.Use == Graphics && w.Graphics && (n.GPU < 0 || graphics[n.GPU]):
		case n.Use == Fabric && w.Fabric:
		default:
			continue
		}
		if err := add(into, n.Path); err != nil {
			return nil, err
		}
	}
	if len(shared) == 0 {
		return nil, &NodeError{Path: "/dev/nvidiactl"}
	}
	for minor := range graphics {
		if w.Graphics && !slices.ContainsFunc(rest, func(n Node) bool { return n.Use == Graphics && n.GPU == minor }) {
			return nil, &NodeError{Path: "/dev/dri"}
		}
	}
	if w.Fabric && !slices.ContainsFunc(rest, func(n Node) bool { return n.Use == Fabric }) {
		return nil, &NodeError{Path: "/dev/nvidia-caps-imex-channels"}
	}
	slices.SortFunc(rest, func(a, b Node) int {
		return cmp.Or(cmp.Compare(a.Use, b.Use), byNumber(a, b))
	})
	slices.SortFunc(shared, byNumber)
	return slices.Concat(gpus, more, rest, shared), nil
}

// nodesOf returns the paths of what a GPU has for itself: its own node, of a MIG device then those of its instances.
func (inv Inventory) nodesOf(g GPU) ([]string, error) {
	if _, ok := inv.gpu(g.Minor); !ok {
		e := &GPUError{Minor: g.Minor}
		for _, g := range inv.GPUs {
			e.Have = append(e.Have, g.Minor)
		}
		slices.Sort(e.Have)
		return nil, e
	}
	own := "/dev/nvidia" + strconv.Itoa(g.Minor)
	if g.MIG == nil {
		return []string{own}, nil
	}
	for _, m := range inv.MIG {
		if m.Minor == g.Minor && m.same(g.MIG) {
			return []string{own, m.Nodes[0], m.Nodes[1]}, nil
		}
	}
	return nil, &GPUError{Minor: g.Minor, MIG: g.MIG}
}

// removeWrong removes every NVIDIA entry but, for each wanted node, the first one of each kind that gives it
// as it should be, and returns how many it removed.
func removeWrong(f *pveconf.File, inv Inventory, want []Node, mode Mode) int {
	c := read(f, inv, want)
	wrong := map[int]bool{} // raw lines
	for _, m := range c.mounts {
		wrong[m.line] = true
	}
	for _, r := range c.rules {
		wrong[r.line] = true
	}
	wrongDevice := map[string]bool{}
	for _, d := range c.devices {
		wrongDevice[d.key] = true
	}
	for _, n := range want {
		switch mode {
		case ModeRaw:
			if i := c.mountOf(n); i >= 0 {
				delete(wrong, c.mounts[i].line)
			}
			if i := c.ruleOf(n); i >= 0 {
				delete(wrong, c.rules[i].line)
			}
		case ModeNative:
			if i := c.deviceOf(n); i >= 0 {
				delete(wrongDevice, c.devices[i].key)
			}
		}
	}
	raw := f.RemoveRaw(func(e pveconf.Entry) bool { return wrong[e.Line] })
	// By key: an earlier line of the same key would come into force.
	return raw + f.RemoveProperties(func(e pveconf.Entry) bool { return wrongDevice[e.Key] })
}

// mountOf returns the index of the first mount that gives n as it should be, or -1.
func (c *conf) mountOf(n Node) int {
	return slices.IndexFunc(c.mounts, func(m mount) bool { return m.gives(n) })
}

// ruleOf returns the index of the first rule that allows n and nothing else, or -1.
func (c *conf) ruleOf(n Node) int {
	return slices.IndexFunc(c.rules, func(r rule) bool { return r.allows(n) })
}

// deviceOf returns the index of the first devN that gives n as it should be, or -1.
func (c *conf) deviceOf(n Node) int {
	return slices.IndexFunc(c.devices, func(d device) bool { return d.gives(n) })
}

func (m mount) gives(n Node) bool {
	return m.noEffect == "" && m.exact && !m.rootfs && m.source == n.Path && m.target == n.Path
}

func (r rule) allows(n Node) bool {
	return r.noEffect == "" && !r.hidden && (r.path == "" || r.path == n.Path) &&
		r.rule.Major >= 0 && r.rule.Minor >= 0 && r.rule.opens('c', n.Major, n.Minor)
}

func (d device) gives(n Node) bool {
	return d.broken == "" && !d.denyWrite && !d.rootOnly && d.path == n.Path
}

// addRaw adds the rules and the mount entries that are missing.
func addRaw(f *pveconf.File, inv Inventory, want []Node) error {
	c := read(f, inv, want)
	rules := make([]int, len(want)) // line by node; 0: missing
	mounts := make([]int, len(want))
	for i, n := range want {
		if at := c.ruleOf(n); at >= 0 {
			rules[i] = c.rules[at].line
		}
		if at := c.mountOf(n); at >= 0 {
			mounts[i] = c.mounts[at].line
		}
	}
	var added []addition
	for i, n := range want {
		if rules[i] > 0 {
			continue
		}
		// By number, not by path: where the path of a rule is missing, LXC does not start.
		r := Rule{'c', n.Major, n.Minor, "rwm"}
		before := first(rules[i+1:])
		if c.below.cancelled(r, before) {
			before = 0
		}
		if c.below.nul > 0 && c.below.cancelled(r, c.below.nul-1) {
			return &CutOffError{Key: c.below.nulKey}
		}
		added = append(added, addition{before, allowKey, r.String()})
	}
	for i, n := range want {
		if mounts[i] > 0 {
			continue
		}
		// optional: after a boot of the node the container must come up also if the driver has not made its
		// nodes yet. Nobody would start it again, and it may serve more than its GPU. The price is an empty
		// file in the device's place; so Set refuses a node that is missing now, and the agent looks for
		// devices in the container, never for files.
		value := n.Path + " " + strings.TrimPrefix(n.Path, "/") + " none bind,optional,create=file"
		before := first(mounts[i+1:])
		if c.below.mounts > before {
			before = 0
		}
		if c.below.nul > 0 && c.below.mounts >= c.below.nul {
			return &CutOffError{Key: mountKey}
		}
		added = append(added, addition{before, mountKey, value})
	}
	return insert(f, c.below.nul, added)
}

// An addition is a raw line that is to stand before the given line, or at the end if that is 0. A line stands
// before the first one that is there for one of the nodes after its own: so a node that is taken away and
// given again gets its old place. Where a line below that place would cancel it, it goes to the end.
type addition struct {
	before     int
	key, value string
}

// first returns the smallest of lines that is not 0, or 0.
func first(lines []int) int {
	least := 0
	for _, l := range lines {
		if l > 0 && (least == 0 || l < least) {
			least = l
		}
	}
	return least
}

// insert adds the lines in their order. LXC reads no further than the line nul, if that is not 0.
func insert(f *pveconf.File, nul int, added []addition) error {
	var placed []addition
	for _, a := range added {
		if a.before == 0 {
			a.before = nul
		}
		if a.before > 0 {
			placed = append(placed, a)
		} else if err := f.AppendRaw(a.key, a.value); err != nil {
			return err
		}
	}
	// From below, so that the numbers of the lines above stay true.
	slices.SortStableFunc(placed, func(a, b addition) int { return cmp.Compare(a.before, b.before) })
	for _, a := range slices.Backward(placed) {
		if err := f.InsertRaw(a.before, a.key, a.value); err != nil {
			return err
		}
	}
	return nil
}

// addNative adds the devN that are missing. Where the conf changes, those that Set wrote get the lowest free numbers in
// the order of want, so that what a conf says does not depend on what it said in between.
func addNative(f *pveconf.File, inv Inventory, want []Node, changed bool) error {
	c := read(f, inv, want)
	free, pending := freeDevices(f), pendingKeys(f)
	lines := map[string]int{} // by key
	for _, e := range f.Properties() {
		lines[e.Key]++
	}
	var place []Node           // what is to be written or may be moved
	now := map[string]string{} // key of what may be moved, by path
	for _, n := range want {
		for _, m := range c.folders {
			if strings.HasPrefix(n.Path, m.target+"/") {
				return &FolderError{Path: n.Path, Folder: m.target}
			}
		}
		i := c.deviceOf(n)
		if i < 0 {
			changed = true
			place = append(place, n)
			continue
		}
		key := c.devices[i].key
		if value, _ := f.Property(key); value == nativeValue(n) && lines[key] == 1 && slices.Contains(slots, key) && !slices.Contains(pending, key) {
			now[n.Path] = key
			free = append(free, key)
			place = append(place, n)
		}
	}
	if !changed {
		return nil
	}
	if len(free) < len(place) {
		return ErrNoSlot
	}
	slices.SortFunc(free, func(a, b string) int { return cmp.Compare(slices.Index(slots, a), slices.Index(slots, b)) })
	f.RemoveProperties(func(e pveconf.Entry) bool {
		i := slices.IndexFunc(place, func(n Node) bool { return now[n.Path] == e.Key })
		return i >= 0 && free[i] != e.Key
	})
	for i, n := range place {
		if now[n.Path] == free[i] {
			continue
		}
		if err := f.Set(free[i], nativeValue(n)); err != nil {
			return err
		}
	}
	return nil
}

// nativeValue is the value of a devN. Proxmox's default mode 0660 would let only the container's root open the device.
func nativeValue(n Node) string { return n.Path + ",mode=0666" }

// slots are the keys that Proxmox's schema knows, in their order.
var slots = func() []string {
	all := make([]string, 256)
	for i := range all {
		all[i] = "dev" + strconv.Itoa(i)
	}
	return all
}()

// freeDevices returns the devN that neither the main section nor [pve:pending], whose entries will move
// there, says anything about.
func freeDevices(f *pveconf.File) []string {
	used := map[string]bool{}
	for _, e := range f.Properties() {
		used[e.Key] = true
	}
	for _, key := range pendingKeys(f) {
		used[key] = true
	}
	return slices.DeleteFunc(slices.Clone(slots), func(key string) bool { return used[key] })
}

// pendingKeys returns the properties that [pve:pending] sets or deletes.
func pendingKeys(f *pveconf.File) []string {
	var keys []string
	for _, e := range f.Pending().Properties {
		if e.Key == "delete" {
			keys = append(keys, pveconf.DeleteKeys(e.Value)...)
		} else {
			keys = append(keys, e.Key)
		}
	}
	return keys
}
