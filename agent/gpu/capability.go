package gpu

import (
	"cmp"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The kernel's names of the drivers of capability nodes and of IMEX channels, and the folders of these in /dev.
const (
	capsDriver = "nvidia-caps"
	capsDir    = "nvidia-caps"
	imexDriver = "nvidia-caps-imex-channels"
	imexDir    = "nvidia-caps-imex-channels"
)

// maxMinor is the greatest minor number that the kernel allows.
const maxMinor = 1<<20 - 1

// A capability is an access right of the driver, which a device node stands for.
type capability struct {
	minor int
	rules params
}

func (c capability) name() string { return capsDir + "/nvidia-cap" + strconv.Itoa(c.minor) }

// parseCapability reads a file below /proc/driver/nvidia/capabilities.
func parseCapability(b []byte) (capability, bool) {
	c := capability{minor: -1, rules: params{modify: true, mode: 0o444}}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 31)
		if err != nil {
			continue
		}
		switch strings.TrimSpace(key) {
		case "DeviceFileMinor":
			if n <= maxMinor {
				c.minor = int(n)
			}
		case "DeviceFileMode":
			c.rules.mode = uint32(n) & 0o777
		case "DeviceFileModify":
			c.rules.modify = n != 0
		}
	}
	return c, c.minor >= 0
}

// capability reads one file of capabilities; there is none if it does not exist or cannot be read.
func (s *Scanner) capability(path ...string) (capability, bool) {
	b, err := readIfExists(filepath.Join(append([]string{s.proc()}, path...)...))
	if err != nil {
		return capability{}, false
	}
	return parseCapability(b)
}

var (
	gpuInstancePattern     = regexp.MustCompile(`^gi(0|[1-9][0-9]?)$`)
	computeInstancePattern = regexp.MustCompile(`^ci(0|[1-9][0-9]?)$`)
)

// An instanceNode is the capabilities of one MIG device.
type instanceNode struct {
	instance     Instance
	gpu, compute capability
}

// instances returns the MIG devices of the GPU of a minor, by instance. A GPU instance without a compute instance is no
// MIG device.
func (s *Scanner) instances(minor int) []instanceNode {
	dir := filepath.Join("driver/nvidia/capabilities", "gpu"+strconv.Itoa(minor), "mig")
	var all []instanceNode
	for gi, name := range s.numbered(dir, gpuInstancePattern) {
		access, ok := s.capability(dir, name, "access")
		if !ok {
			continue
		}
		for ci, inner := range s.numbered(filepath.Join(dir, name), computeInstancePattern) {
			if c, ok := s.capability(dir, name, inner, "access"); ok {
				all = append(all, instanceNode{Instance{gi, ci}, access, c})
			}
		}
	}
	slices.SortFunc(all, func(a, b instanceNode) int {
		return cmp.Or(cmp.Compare(a.instance.GPU, b.instance.GPU), cmp.Compare(a.instance.Compute, b.instance.Compute))
	})
	return all
}

// numbered returns the names in a directory of /proc that match, by their number. A directory that does not exist, or
// vanishes meanwhile as MIG is reconfigured, has none.
func (s *Scanner) numbered(dir string, pattern *regexp.Regexp) map[int]string {
	names, err := list(filepath.Join(s.proc(), dir))
	if err != nil {
		return nil
	}
	found := map[int]string{}
	for _, name := range names {
		if m := pattern.FindStringSubmatch(name); m != nil {
			n, _ := strconv.Atoi(m[1]) // at most two digits
			found[n] = name
		}
	}
	return found
}

// managementFiles are the rights to divide GPUs by MIG and to see what others do with them, and to manage an NVLink fabric.
// fabric-imex-mgmt is there on every node with a driver, so it does not tell of a fabric either.
var managementFiles = []string{
	"driver/nvidia/capabilities/mig/config",
	"driver/nvidia/capabilities/mig/monitor",
	"driver/nvidia/capabilities/fabric-imex-mgmt",
	"driver/nvidia-nvlink/capabilities/fabric-mgmt",
}

// addMIG adds the MIG devices of the GPUs and their capability nodes. Whether a GPU that is not divided could be, /proc
// does not tell: the folder for it is there either way.
func (s *Scanner) addMIG(inv *Inventory) {
	major := majorOf(inv, capsDriver)
	for _, path := range managementFiles {
		if c, ok := s.capability(path); ok {
			inv.Management = append(inv.Management, s.node(c.name(), major, c.minor))
		}
	}
	for i := range inv.GPUs {
		g := &inv.GPUs[i]
		if g.Driver != NVIDIA || g.Minor < 0 {
			continue
		}
		for _, in := range s.instances(g.Minor) {
			g.MIGEnabled = true
			g.MIG = append(g.MIG, MIGDevice{Index: -1, Instance: in.instance, Nodes: []DeviceNode{
				s.node(in.gpu.name(), major, in.gpu.minor), s.node(in.compute.name(), major, in.compute.minor),
			}})
		}
		if g.MIGEnabled {
			g.from(fromProc, "mig_enabled", "mig_devices")
		}
	}
}

var channelPattern = regexp.MustCompile(`^channel(0|[1-9][0-9]{0,6})$`)

// addFabric adds the IMEX channels. Of the many there can be those that somebody made count, or else the first, which
// NVIDIA's own tools make when they are asked for one.
func (s *Scanner) addFabric(inv *Inventory) {
	major := inv.Majors[imexDriver]
	if major <= 0 {
		return
	}
	names, err := list(filepath.Join(s.dev(), imexDir))
	if err != nil {
		names = nil
	}
	channels := map[int]bool{}
	for _, name := range names {
		if m := channelPattern.FindStringSubmatch(name); m != nil {
			if n, _ := strconv.Atoi(m[1]); n <= maxMinor { // at most seven digits
				channels[n] = true
			}
		}
	}
	if len(channels) == 0 {
		channels[0] = true
	}
	for n := range channels {
		inv.Fabric = append(inv.Fabric, s.node(imexDir+"/channel"+strconv.Itoa(n), major, n))
	}
	slices.SortFunc(inv.Fabric, func(a, b DeviceNode) int { return cmp.Compare(a.Path, b.Path) })
}

// capabilityRules returns how the capability nodes are to be made, by path.
func (s *Scanner) capabilityRules(inv *Inventory) map[string]params {
	rules := map[string]params{}
	add := func(c capability) { rules["/dev/"+c.name()] = c.rules }
	for _, g := range inv.GPUs {
		if g.Driver != NVIDIA || g.Minor < 0 {
			continue
		}
		for _, in := range s.instances(g.Minor) {
			add(in.gpu)
			add(in.compute)
		}
	}
	return rules
}

// majorOf returns a driver's major, -1 if it has none.
func majorOf(inv *Inventory, driver string) int {
	if major := inv.Majors[driver]; major > 0 {
		return major
	}
	return -1
}
