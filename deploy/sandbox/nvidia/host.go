// Package nvidia makes up the NVIDIA GPUs and the driver of a pretend host: everything that the driver would
// show in /proc, /sys and /dev, the tools that come with it, and the answers of its library. All of it is made
// from one value, a Host, so that it always agrees; the facts are those of reference/nvidia-passthrough.md,
// chapters 1 to 6.
package nvidia

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
)

// A Host is the GPUs of a host and its driver at one moment. Device nodes are not part of it: they are files
// that stay or go by themselves, as on a real host.
type Host struct {
	Driver     string   `json:"driver"`      // version of the kernel module that is loaded, or was; "": no driver is installed
	OnDisk     string   `json:"on_disk"`     // version that the next boot loads
	Libraries  string   `json:"libraries"`   // version of the host's libraries and of nvidia-smi
	CUDA       string   `json:"cuda"`        // version that the library tells, "13.0"
	Closed     bool     `json:"closed"`      // whether the kernel module is of the closed flavour
	Modules    []string `json:"modules"`     // that are loaded, by their names in /sys/module: "nvidia_uvm"
	UVMAtBoot  bool     `json:"uvm_at_boot"` // whether a boot loads nvidia_uvm; else its first user does
	LeaveNodes bool     `json:"leave_nodes"` // the driver's parameter NVreg_ModifyDeviceFiles is 0
	Fabric     bool     `json:"fabric"`      // NVSwitches join the cards: there are the rights to manage them, and an IMEX channel
	Majors     Majors   `json:"majors"`
	GPUs       []GPU    `json:"gpus"` // in the order of their PCI addresses
}

// Majors are the device majors of the drivers. All but NVIDIA and DRM are other numbers after each boot.
type Majors struct {
	NVIDIA int `json:"nvidia"`
	UVM    int `json:"nvidia_uvm"`
	Caps   int `json:"nvidia_caps"`
	IMEX   int `json:"nvidia_caps_imex_channels"`
	NVLink int `json:"nvidia_nvlink"`
	DRM    int `json:"drm"`
}

// A GPU is one card.
type GPU struct {
	PCI       string    `json:"pci"` // "0000:01:00.0"
	UUID      string    `json:"uuid"`
	Minor     int       `json:"minor"`
	Card      int       `json:"card"` // X of /dev/dri/cardX; /dev/dri/renderDY has 128 for the first card and so on
	Model     string    `json:"model"`
	DeviceID  string    `json:"device_id"` // of PCI, "0x2d04"
	Class     string    `json:"class"`     // of PCI: "0x030000" VGA, "0x030200" 3D
	MemoryMiB int       `json:"memory_mib"`
	UsedMiB   int       `json:"used_mib"`
	NUMANode  int       `json:"numa_node"`
	Bound     string    `json:"bound"` // driver: "nvidia", "vfio-pci", "nouveau", "" none
	Fault     Fault     `json:"fault,omitempty"`
	MIG       MIG       `json:"mig"`
	Processes []Process `json:"processes,omitempty"`
	Peers     []string  `json:"nvlink_peers,omitempty"` // PCI addresses
}

// A Fault is what became of a card.
type Fault string

// The faults of a card.
const (
	Healthy       Fault = ""
	Lost          Fault = "lost"          // fell off the bus while in use: /proc and /sys have it still; the library and the kernel's log tell
	Gone          Fault = "gone"          // the driver is bound to it and does not list it any more
	Removed       Fault = "removed"       // not even on the PCI bus
	Uninitialised Fault = "uninitialised" // listed, with question marks for what only an initialised card tells
	Excluded      Fault = "excluded"      // listed as excluded by the driver's parameter
)

// MIG is the partitioning of a card.
type MIG struct {
	Capable bool        `json:"capable"`
	Current bool        `json:"current"`
	Pending bool        `json:"pending"`
	Devices []MIGDevice `json:"devices,omitempty"` // in the order in which nvidia-smi counts them
}

// A MIGDevice is one compute instance.
type MIGDevice struct {
	UUID      string `json:"uuid"` // "MIG-..."
	GI        int    `json:"gi"`
	CI        int    `json:"ci"`
	Profile   string `json:"profile"` // "1g.10gb"
	MemoryMiB int    `json:"memory_mib"`
}

// A Process uses a GPU.
type Process struct {
	PID     int `json:"pid"`
	UsedMiB int `json:"used_mib"`
}

// The kernel modules of the driver, each with those that it needs.
var modules = map[string][]string{
	"nvidia":         nil,
	"nvidia_modeset": {"nvidia"},
	"nvidia_drm":     {"nvidia", "nvidia_modeset"},
	"nvidia_uvm":     {"nvidia"},
}

// Loaded says whether a kernel module is loaded, by its name in /sys/module.
func (h *Host) Loaded(module string) bool { return slices.Contains(h.Modules, module) }

// Load loads a module of the driver and those it needs, as modprobe does. It is an error if the host has no
// driver.
func (h *Host) Load(module string) error {
	needs, ok := modules[module]
	if !ok || h.Driver == "" {
		return fmt.Errorf("no module %s is installed", module)
	}
	for _, m := range append(slices.Clone(needs), module) {
		if !h.Loaded(m) {
			h.Modules = append(h.Modules, m)
		}
	}
	return nil
}

// Unload removes a module. It is an error if another needs it, or a process uses a GPU.
func (h *Host) Unload(module string) error {
	for _, m := range h.Modules {
		if slices.Contains(modules[m], module) {
			return fmt.Errorf("module %s is in use by %s", module, m)
		}
	}
	if module == "nvidia" && slices.ContainsFunc(h.GPUs, func(g GPU) bool { return len(g.Processes) > 0 }) {
		return fmt.Errorf("module %s is in use", module)
	}
	h.Modules = slices.DeleteFunc(h.Modules, func(m string) bool { return m == module })
	return nil
}

// Boot is what a boot makes of the host: the driver on disk is loaded, nvidia_uvm only with UVMAtBoot; MIG is off, as the
// generation of the H100 forgets it; nobody uses a GPU; a card that fell off the bus is back; one that was given to vfio-pci
// stays there. The majors are the caller's to choose.
func (h *Host) Boot() {
	h.Driver, h.Modules = h.OnDisk, nil
	if h.Driver != "" {
		_ = h.Load("nvidia_drm") // the driver is there
		if h.UVMAtBoot {
			_ = h.Load("nvidia_uvm")
		}
	}
	for i := range h.GPUs {
		g := &h.GPUs[i]
		g.MIG.Current, g.MIG.Pending, g.MIG.Devices = false, false, nil
		g.Processes, g.UsedMiB = nil, 0
		if g.Fault == Lost || g.Fault == Gone || g.Fault == Removed {
			g.Fault = Healthy
		}
	}
}

// GPU finds a card by its position on the PCI bus, from 0.
func (h *Host) GPU(i int) (*GPU, error) {
	if i < 0 || i >= len(h.GPUs) {
		return nil, fmt.Errorf("no GPU %d; there are %d", i, len(h.GPUs))
	}
	return &h.GPUs[i], nil
}

// SetDriver changes the version of everything that an upgrade and a reload of the modules change.
func (h *Host) SetDriver(version string) { h.Driver, h.OnDisk, h.Libraries = version, version, version }

// listed are the cards that /proc/driver/nvidia/gpus has.
func (h *Host) listed() []GPU {
	if !h.Loaded("nvidia") {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(h.GPUs), func(g GPU) bool { return g.Bound != "nvidia" || g.Fault == Gone || g.Fault == Removed })
}

// usable are the cards that the library counts, in its order. A lost card keeps its number.
func (h *Host) usable() []GPU {
	if !h.Loaded("nvidia") {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(h.GPUs), func(g GPU) bool { return g.Bound != "nvidia" || g.Fault == Removed || g.Fault == Excluded })
}

// madeUpUUID is the same for the same words.
func madeUpUUID(format string, args ...any) string {
	sum := sha256.Sum256(fmt.Appendf(nil, format, args...))
	return formatUUID(sum[:16])
}

// newUUID is another each time.
func newUUID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return formatUUID(b)
}

func formatUUID(b []byte) string {
	u := hex.EncodeToString(b)
	return u[:8] + "-" + u[8:12] + "-" + u[12:16] + "-" + u[16:20] + "-" + u[20:]
}
