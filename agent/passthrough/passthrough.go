// Package passthrough tells which NVIDIA devices a container's conf gives it, what is wrong with that, and
// edits a conf to give exactly a wanted set. It knows entries by what they mean to Proxmox and LXC, never
// by markers or by text. The package is pure.
package passthrough

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
)

// Mode is the way devices are given.
type Mode int

// The modes.
const (
	ModeNone   Mode = iota // no NVIDIA device is given
	ModeRaw                // lxc.mount.entry and lxc.cgroup2.devices.allow
	ModeNative             // devN
	ModeMixed              // both, for different devices or for the same one
)

func (m Mode) String() string {
	switch m {
	case ModeNone:
		return "none"
	case ModeRaw:
		return "raw"
	case ModeNative:
		return "native"
	case ModeMixed:
		return "mixed"
	}
	return "Mode(" + strconv.Itoa(int(m)) + ")"
}

// A GPU is one GPU of the node, or one MIG device of it.
type GPU struct {
	Index int    // nvidia-smi's number; -1 if no GPU of the node has this minor
	UUID  string // empty if unknown
	Minor int    // N of /dev/nvidiaN
	MIG   *MIG   // nil: the whole GPU
}

// MIG names a MIG device of a GPU.
type MIG struct {
	UUID                         string // empty if unknown
	GPUInstance, ComputeInstance int
}

// same says whether both have the same numbers.
func (m *MIG) same(o *MIG) bool {
	return m.GPUInstance == o.GPUInstance && m.ComputeInstance == o.ComputeInstance
}

// A MIGDevice is a MIG device that the node has.
type MIGDevice struct {
	MIG
	Minor int       // of its GPU
	Nodes [2]string // paths of the capability nodes of its GPU instance and its compute instance
}

// Use is what a device node is for.
type Use int

// The uses.
const (
	Compute    Use = iota // CUDA, and everything else
	Graphics              // nvidia-modeset and the DRM nodes of NVIDIA's cards
	Fabric                // NVLink between machines: IMEX channels
	Instance              // access to an instance of MIG
	Management            // of MIG or of a fabric; never given
)

// A Node is one device node that the node's NVIDIA driver has or should have.
type Node struct {
	Path         string // absolute
	Major, Minor int    // as the kernel's tables give them; negative if unknown
	Present      bool   // it is there with these numbers
	GPU          int    // minor of the GPU it belongs to; -1 if GPUs share it
	Needed       bool   // shared, and every use of a GPU needs it
	Use          Use
}

// Inventory is what the node has.
type Inventory struct {
	GPUs  []GPU // whole ones
	MIG   []MIGDevice
	Nodes []Node
	// Majors are the character device majors of /proc/devices by driver. With those of all drivers a rule
	// of an old nvidia-uvm major can be told from a rule for some other device.
	Majors map[string]int

	offline bool // what the node has is not known; see [Offline]
}

// A Device is one device as the container sees it.
type Device struct {
	Path         string // absolute, in the container
	Major, Minor int    // -1 if unknown
}

// Passthrough is what the main section of a conf gives.
type Passthrough struct {
	GPUs []GPU // by index, then minor, then instances
	Mode Mode
	// Graphics and Fabric say that an entry of its own gives some device for that use.
	Graphics, Fabric bool
	Devices          []Device // every NVIDIA device, by path
	Rules            []Rule   // the allow rules for NVIDIA devices in order; rules by path with the device's numbers
}

// nvidiaMajor is the one major that NVIDIA's driver has registered for good: GPUs, nvidiactl, nvidia-modeset.
const nvidiaMajor = 195

// maxGPUMinor is the greatest minor that is a GPU's; those above are of the driver's own devices.
const maxGPUMinor = 247

var (
	gpuPath    = regexp.MustCompile(`^/dev/nvidia(0|[1-9][0-9]{0,2})$`)
	nvidiaPath = regexp.MustCompile(`^/dev/(nvidia[0-9]+|nvidiactl|nvidia-[^/]+(/.*)?|nvidia[^/]*[*?[{][^/]*)$`)
	// The wildcards that people try; nothing expands them.
	wildPath    = regexp.MustCompile(`[*?[{]`)
	gpuLikePath = regexp.MustCompile(`^/dev/nvidia[0-9]+$`)
	linkPath    = regexp.MustCompile(`^/dev/char/(0|[1-9][0-9]{0,3}):(0|[1-9][0-9]{0,6})$`)
)

// gpuMinor returns N for the path /dev/nvidiaN and -1 for every other one.
func gpuMinor(path string) int {
	if m := gpuPath.FindStringSubmatch(path); m != nil {
		n, _ := strconv.Atoi(m[1]) // at most three digits
		return n
	}
	return -1
}

// resolve returns the NVIDIA device that a link in /dev/char stands for, else path.
func (inv Inventory) resolve(path string) string {
	m := linkPath.FindStringSubmatch(path)
	if m == nil {
		return path
	}
	major, _ := strconv.Atoi(m[1]) // of a few digits
	minor, _ := strconv.Atoi(m[2])
	for _, n := range inv.Nodes {
		if n.Major == major && n.Minor == minor {
			return n.Path
		}
	}
	if major == nvidiaMajor && minor <= maxGPUMinor {
		return "/dev/nvidia" + strconv.Itoa(minor)
	}
	return path
}

func (inv Inventory) node(path string) (Node, bool) {
	i := slices.IndexFunc(inv.Nodes, func(n Node) bool { return n.Path == path })
	if i < 0 {
		return Node{}, false
	}
	return inv.Nodes[i], true
}

// ours says whether a path is that of an NVIDIA device: by its name or, as a DRM node, by the card it belongs to.
func (inv Inventory) ours(path string) bool {
	if nvidiaPath.MatchString(path) {
		return true
	}
	_, ok := inv.node(path)
	return ok
}

func (inv Inventory) gpu(minor int) (GPU, bool) {
	i := slices.IndexFunc(inv.GPUs, func(g GPU) bool { return g.Minor == minor })
	if i < 0 {
		return GPU{Index: -1, Minor: minor}, false
	}
	return inv.GPUs[i], true
}

// driver returns the driver that has a major now, or "".
func (inv Inventory) driver(major int) string {
	if major == nvidiaMajor {
		return "nvidia"
	}
	var names []string
	for name, m := range inv.Majors {
		if m == major {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}

// graphics says whether these are the numbers of a DRM node of an NVIDIA card, or of any of their major if minor is
// negative.
func (inv Inventory) graphics(major, minor int) bool {
	return slices.ContainsFunc(inv.Nodes, func(n Node) bool {
		return n.Use == Graphics && n.GPU >= 0 && n.Major == major && (minor < 0 || n.Minor == minor)
	})
}

// hasOtherMajors says whether inv has majors of other drivers than NVIDIA's.
func (inv Inventory) hasOtherMajors() bool {
	for name := range inv.Majors {
		if !strings.HasPrefix(name, "nvidia") {
			return true
		}
	}
	return false
}

// Of returns what the main section of f gives and, by line, what is wrong with it. Problems with an empty
// advice are mended by [Set].
func Of(f *pveconf.File, inv Inventory) (Passthrough, []Problem) {
	c := read(f, inv, nil)
	return c.passthrough(), c.problems()
}

func (c *conf) passthrough() Passthrough {
	var p Passthrough
	devices, given := map[string]bool{}, map[string]bool{} // in the container; of the node
	add := func(path, source string) {
		d := Device{Path: path, Major: -1, Minor: -1}
		if n, ok := c.inv.node(source); ok {
			d.Major, d.Minor = n.Major, n.Minor
		}
		if !devices[path] {
			devices[path] = true
			p.Devices = append(p.Devices, d)
		}
		given[source] = true
	}
	for _, m := range c.mounts {
		if m.noEffect != "" {
			continue
		}
		if p.Mode == ModeNone {
			p.Mode = ModeRaw
		}
		below := false // the source is a directory
		for _, n := range c.inv.Nodes {
			if rest, ok := strings.CutPrefix(n.Path, m.source+"/"); ok {
				add(m.target+"/"+rest, n.Path)
				below = true
			}
		}
		if !below {
			add(m.target, m.source)
		}
	}
	for _, d := range c.devices {
		if d.broken != "" {
			continue
		}
		switch p.Mode {
		case ModeNone:
			p.Mode = ModeNative
		case ModeRaw:
			p.Mode = ModeMixed
		}
		add(d.path, d.source)
	}
	p.GPUs = c.inv.given(given)
	for _, n := range c.inv.Nodes {
		if given[n.Path] {
			p.Graphics = p.Graphics || n.Use == Graphics
			p.Fabric = p.Fabric || n.Use == Fabric
		}
	}
	for _, m := range c.folders {
		for _, n := range m.nodes {
			add(m.target+strings.TrimPrefix(n.Path, m.source), n.Path)
		}
	}
	for _, r := range c.rules {
		if r.noEffect == "" {
			p.Rules = append(p.Rules, r.rule)
		}
	}
	slices.SortFunc(p.Devices, func(a, b Device) int { return cmp.Compare(a.Path, b.Path) })
	return p
}

// Given returns the GPUs and MIG devices of which a container has the device nodes at these paths, as
// [Passthrough.GPUs]. The node of a GPU that MIG divides is the whole GPU's only where none of its capability nodes is
// there.
func (inv Inventory) Given(paths []string) []GPU {
	given := map[string]bool{}
	for _, p := range paths {
		given[p] = true
	}
	return inv.given(given)
}

func (inv Inventory) given(paths map[string]bool) []GPU {
	var gpus []GPU
	for p := range paths {
		minor := gpuMinor(p)
		if minor < 0 {
			continue
		}
		g, _ := inv.gpu(minor)
		if !slices.ContainsFunc(inv.Nodes, func(n Node) bool { return n.Use == Instance && n.GPU == minor && paths[n.Path] }) {
			gpus = append(gpus, g)
			continue
		}
		for _, m := range inv.MIG {
			if m.Minor == minor && paths[m.Nodes[0]] && paths[m.Nodes[1]] {
				g.MIG = &m.MIG
				gpus = append(gpus, g)
			}
		}
	}
	slices.SortFunc(gpus, func(a, b GPU) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Minor, b.Minor), compareMIG(a.MIG, b.MIG))
	})
	return gpus
}

func compareMIG(a, b *MIG) int {
	if a == nil || b == nil {
		return 0 // of one GPU either the whole is given, or MIG devices are
	}
	return cmp.Or(cmp.Compare(a.GPUInstance, b.GPUInstance), cmp.Compare(a.ComputeInstance, b.ComputeInstance))
}
