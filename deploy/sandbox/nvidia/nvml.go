package nvidia

import (
	"strconv"
	"strings"
)

// NVML is what the driver's library would answer, in the file [NVMLFile].
type NVML struct {
	ReturnCode    int       `json:"return_code"`    // of nvmlInit: 0, 9 driver not loaded, 18 library and module differ
	DriverVersion string    `json:"driver_version"` // of the loaded module
	Library       string    `json:"library_version"`
	CUDA          string    `json:"cuda_version"`
	GPUs          []NVMLGPU `json:"gpus"` // none unless ReturnCode is 0
}

// NVMLGPU is one card, by its index.
type NVMLGPU struct {
	ReturnCode int       `json:"return_code"` // of each call with the card's handle: 0, or 15 the GPU is lost
	Index      int       `json:"index"`
	UUID       string    `json:"uuid"`
	PCI        string    `json:"pci_bus_id"` // "00000000:01:00.0"
	Minor      int       `json:"minor"`
	Name       string    `json:"name"`
	TotalMiB   int       `json:"memory_total_mib"`
	UsedMiB    int       `json:"memory_used_mib"`
	MIG        *NVMLMIG  `json:"mig"` // null: the card cannot be partitioned
	Processes  []Process `json:"processes"`
	Peers      []string  `json:"nvlink_peers"` // in the form of pci_bus_id
}

// NVMLMIG is the partitioning of a card.
type NVMLMIG struct {
	Current bool            `json:"current"`
	Pending bool            `json:"pending"`
	Devices []NVMLMIGDevice `json:"devices"`
}

// NVMLMIGDevice is one MIG device, by its index on its card.
type NVMLMIGDevice struct {
	Index int `json:"index"`
	MIGDevice
}

// Codes of the library.
const (
	codeNotLoaded = 9
	codeLost      = 15
	codeMismatch  = 18
)

func (h *Host) nvml() NVML {
	answer := NVML{Library: h.Libraries, CUDA: h.CUDA, GPUs: []NVMLGPU{}}
	if !h.Loaded("nvidia") {
		answer.ReturnCode = codeNotLoaded
		return answer
	}
	answer.DriverVersion = h.Driver
	if h.Libraries != h.Driver {
		answer.ReturnCode = codeMismatch
		return answer
	}
	for i, g := range h.usable() {
		gpu := NVMLGPU{
			Index: i, UUID: g.UUID, PCI: busID(g.PCI), Minor: g.Minor, Name: g.Model, TotalMiB: g.MemoryMiB, UsedMiB: g.UsedMiB,
			Processes: append([]Process{}, g.Processes...), Peers: []string{},
		}
		if g.Fault == Lost || g.Fault == Gone {
			gpu.ReturnCode = codeLost
		}
		if g.MIG.Capable {
			gpu.MIG = &NVMLMIG{Current: g.MIG.Current, Pending: g.MIG.Pending, Devices: []NVMLMIGDevice{}}
			for j, d := range g.MIG.Devices {
				gpu.MIG.Devices = append(gpu.MIG.Devices, NVMLMIGDevice{j, d})
			}
		}
		for _, p := range g.Peers {
			gpu.Peers = append(gpu.Peers, busID(p))
		}
		answer.GPUs = append(answer.GPUs, gpu)
	}
	return answer
}

// busID is a PCI address as NVIDIA's library writes it: eight digits of domain, in capitals.
func busID(pci string) string { return "0000" + strings.ToUpper(pci) }

// find gives the card that -i names: an index, a UUID or a PCI address.
func (n *NVML) find(word string) *NVMLGPU {
	for i := range n.GPUs {
		g := &n.GPUs[i]
		if word == strconv.Itoa(g.Index) || strings.EqualFold(word, g.UUID) ||
			strings.EqualFold(strings.TrimPrefix(g.PCI, "0000"), strings.TrimPrefix(word, "0000")) ||
			strings.EqualFold(g.PCI, word) || strings.EqualFold(g.PCI, "0000"+word) {
			return g
		}
	}
	return nil
}
