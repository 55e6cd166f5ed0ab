package nvidia

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Versions of the driver on made-up hosts, and of CUDA with it.
const (
	DefaultDriver = "580.105.08"
	otherDriver   = "570.148.08"
)

// shapes are the hosts that tests and people ask for by name. node is the number of the host, from 1: UUIDs
// differ from host to host.
var shapes = map[string]func(node int) Host{
	"plain": func(node int) Host { return Plain(node, 2, false) },
	"eight": eight,
	"mig": func(node int) Host {
		h := Plain(node, 2, false)
		for i := range h.GPUs {
			h.GPUs[i].makeH100()
		}
		h.GPUs[0].MIG = MIG{Capable: true, Current: true, Pending: true, Devices: []MIGDevice{
			{"MIG-" + madeUpUUID("phoenix sandbox node %d mig 0", node), 2, 0, "3g.40gb", 40448},
			{"MIG-" + madeUpUUID("phoenix sandbox node %d mig 1", node), 9, 0, "1g.10gb", 9984},
			{"MIG-" + madeUpUUID("phoenix sandbox node %d mig 2", node), 10, 0, "1g.10gb", 9984},
		}}
		return h
	},
	"fabric": func(node int) Host {
		h := Plain(node, 2, false)
		h.Fabric = true
		for i := range h.GPUs {
			h.GPUs[i].makeH100()
			h.GPUs[i].Peers = []string{h.GPUs[1-i].PCI}
		}
		return h
	},
	"vfio": func(node int) Host {
		h := Plain(node, 2, false)
		h.GPUs[1].Bound = "vfio-pci"
		return h
	},
	"off-bus": func(node int) Host {
		h := Plain(node, 2, false)
		h.GPUs[1].Fault = Gone
		return h
	},
	"uvm-missing": func(node int) Host {
		h := Plain(node, 2, false)
		h.UVMAtBoot = false
		_ = h.Unload("nvidia_uvm") // nothing needs it
		return h
	},
	"no-driver": func(node int) Host {
		h := Plain(node, 2, false)
		h.SetDriver("")
		h.Modules, h.CUDA = nil, ""
		for i := range h.GPUs {
			h.GPUs[i].Bound = ""
		}
		return h
	},
	"other-driver": func(node int) Host {
		h := Plain(node, 2, false)
		h.SetDriver(otherDriver)
		h.CUDA, h.Closed = "12.8", true
		return h
	},
}

// Shapes are the names that Shape knows, sorted.
func Shapes() []string { return slices.Sorted(maps.Keys(shapes)) }

// Shape makes up the host of this name; node is the host's number, from 1. It has no majors yet.
func Shape(name string, node int) (Host, error) {
	make, ok := shapes[name]
	if !ok {
		return Host{}, fmt.Errorf("no shape %q; there are %s", name, strings.Join(Shapes(), ", "))
	}
	return make(node), nil
}

// Plain makes up a host with healthy cards of one kind, at most 16. If reversed, the minors run against the
// PCI order, as on machines where the driver probed them so.
func Plain(node, gpus int, reversed bool) Host {
	h := Host{UVMAtBoot: true, CUDA: "13.0"}
	h.SetDriver(DefaultDriver)
	apart := 0x40 // buses
	if gpus > 4 {
		apart = 0x10
	}
	for i := range gpus {
		minor := i
		if reversed {
			minor = gpus - 1 - i
		}
		h.GPUs = append(h.GPUs, GPU{
			PCI:       fmt.Sprintf("0000:%02x:00.0", 1+apart*i),
			UUID:      "GPU-" + madeUpUUID("phoenix sandbox node %d gpu %d", node, i),
			Minor:     minor,
			Card:      1 + minor, // card0 is the one on the board
			Model:     "NVIDIA GeForce RTX 5060 Ti",
			DeviceID:  "0x2d04",
			Class:     "0x030000",
			MemoryMiB: 16311,
			NUMANode:  i % 2,
			Bound:     "nvidia",
		})
	}
	h.Boot()
	return h
}

// eight has pairs of cards with a bridge, four cards on each NUMA node, and minors in an order that is neither the
// bus's nor its reverse.
func eight(node int) Host {
	h := Plain(node, 8, false)
	minors := []int{3, 2, 0, 1, 7, 6, 4, 5}
	for i := range h.GPUs {
		g := &h.GPUs[i]
		g.Minor, g.Card = minors[i], 1+minors[i]
		g.Model, g.DeviceID, g.MemoryMiB = "NVIDIA RTX A6000", "0x2230", 49140
		g.NUMANode = i / 4
		g.Peers = []string{h.GPUs[i^1].PCI}
	}
	return h
}

func (g *GPU) makeH100() {
	g.Model, g.DeviceID, g.Class, g.MemoryMiB = "NVIDIA H100 80GB HBM3", "0x2330", "0x030200", 81559
	g.MIG.Capable = true
}
