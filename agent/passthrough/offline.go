package passthrough

import (
	"slices"
	"strconv"

	"phoenix.internal/agent/pveconf"
)

// Offline is [Of] without a node: it returns what the main section of f gives and what is wrong with it as
// far as the conf itself tells. Every device that the conf names counts as there, so no problem is a device
// that is gone or a major that changed. GPUs have the index -1 and no UUID, majors that the kernel gives out
// at run time are -1.
func Offline(f *pveconf.File) (Passthrough, []Problem) {
	return Of(f, presumed(f))
}

// presumed returns the inventory of a node that has what the main section of f names, and the devices that
// every node with an NVIDIA driver has.
func presumed(f *pveconf.File) Inventory {
	inv := Inventory{
		Nodes: []Node{
			{Path: "/dev/nvidiactl", Major: nvidiaMajor, Minor: 255, Present: true, GPU: -1, Needed: true},
			{Path: "/dev/nvidia-uvm", Major: -1, Minor: 0, Present: true, GPU: -1, Needed: true},
			{Path: "/dev/nvidia-uvm-tools", Major: -1, Minor: 1, Present: true, GPU: -1, Needed: true},
			{Path: "/dev/nvidia-modeset", Major: nvidiaMajor, Minor: 254, Present: true, GPU: -1, Use: Graphics},
		},
		Majors:  map[string]int{"nvidia": nvidiaMajor},
		offline: true,
	}
	add := func(path string) {
		minor := gpuMinor(path)
		if minor < 0 || slices.ContainsFunc(inv.GPUs, func(g GPU) bool { return g.Minor == minor }) {
			return
		}
		inv.GPUs = append(inv.GPUs, GPU{Index: -1, Minor: minor})
		inv.Nodes = append(inv.Nodes, Node{Path: "/dev/nvidia" + strconv.Itoa(minor), Major: nvidiaMajor, Minor: minor, Present: true, GPU: minor})
	}
	c := read(f, inv, nil)
	for _, m := range c.mounts {
		add(m.source)
	}
	for _, d := range c.devices {
		add(d.path)
	}
	return inv
}
