package gpu

import (
	"cmp"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// drmDriver is the module of the DRM nodes. It needs nvidia-modeset, which modprobe loads with it.
const drmDriver = "nvidia-drm"

var drmPattern = regexp.MustCompile(`^(card|renderD)[0-9]{1,4}$`)

// addGraphics adds the DRM nodes of NVIDIA's cards. Their numbers are in sysfs, not in /proc/devices, where all cards of
// the machine share one major.
func (s *Scanner) addGraphics(inv *Inventory) {
	for i := range inv.GPUs {
		g := &inv.GPUs[i]
		dir := filepath.Join(s.sys(), "bus/pci/devices", g.PCIAddress, "drm")
		names, err := list(dir)
		if err != nil || g.Driver != NVIDIA {
			continue
		}
		for _, name := range names {
			major, minor, ok := parseNumbers(readLine(filepath.Join(dir, name), "dev"))
			if ok && drmPattern.MatchString(name) {
				g.Graphics = append(g.Graphics, s.node("dri/"+name, major, minor))
			}
		}
		slices.SortFunc(g.Graphics, func(a, b DeviceNode) int { return cmp.Compare(a.Path, b.Path) })
		if len(g.Graphics) > 0 {
			g.from(fromSysfs, "graphics_nodes")
		}
	}
}

// parseNumbers reads a file dev of sysfs: "226:128".
func parseNumbers(s string) (major, minor int, ok bool) {
	first, second, _ := strings.Cut(s, ":")
	a, err := strconv.ParseUint(first, 10, 12)
	if err != nil {
		return 0, 0, false
	}
	b, err := strconv.ParseUint(second, 10, 20)
	return int(a), int(b), err == nil
}
