package nvidia

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
)

// An entry is a file of the tree, a link if it has a target, or an empty folder if its mode says so.
type entry struct {
	content string
	mode    fs.FileMode
	target  string
}

// The folders that hold nothing but what entries gives; below them everything else is removed.
var ownDirs = []string{
	"proc/driver/nvidia", "proc/driver/nvidia-caps", "proc/driver/nvidia-nvlink", "sys/bus/pci/devices", "sys/bus/pci/drivers",
	"sys/module/nvidia", "sys/module/nvidia_uvm", "sys/module/nvidia_modeset", "sys/module/nvidia_drm",
}

// entries are the files in /proc and /sys, by their path below the root, but for /proc/devices.
func (h *Host) entries() map[string]entry {
	all := map[string]entry{}
	file := func(path, content string) { all[path] = entry{content: content, mode: 0o444} }
	for _, m := range h.Modules {
		file("sys/module/"+m+"/version", h.Driver+"\n")
		file("sys/module/"+m+"/initstate", "live\n")
		file("sys/module/"+m+"/refcnt", fmt.Sprintf("%d\n", h.users(m)))
	}
	for _, g := range h.GPUs {
		if g.Fault == Removed {
			continue
		}
		dir := "sys/bus/pci/devices/" + g.PCI + "/"
		file(dir+"vendor", "0x10de\n")
		file(dir+"device", g.DeviceID+"\n")
		file(dir+"class", g.Class+"\n")
		file(dir+"numa_node", fmt.Sprintf("%d\n", g.NUMANode))
		if g.Bound == "" {
			continue
		}
		all[dir+"driver"] = entry{target: "../../drivers/" + g.Bound}
		all["sys/bus/pci/drivers/"+g.Bound+"/"+g.PCI] = entry{target: "../../devices/" + g.PCI}
		if g.Bound == "nvidia" && h.Loaded("nvidia_drm") {
			file(fmt.Sprintf("%sdrm/card%d/dev", dir, g.Card), fmt.Sprintf("%d:%d\n", h.Majors.DRM, g.Card))
			file(fmt.Sprintf("%sdrm/renderD%d/dev", dir, g.render()), fmt.Sprintf("%d:%d\n", h.Majors.DRM, g.render()))
		}
	}
	if !h.Loaded("nvidia") {
		return all
	}
	proc := "proc/driver/nvidia/"
	file(proc+"version", h.versionFile())
	modify := 1
	if h.LeaveNodes {
		modify = 0
	}
	file(proc+"params", fmt.Sprintf("ModifyDeviceFiles: %d\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n", modify))
	file("proc/driver/nvidia-caps/nvlink-minors", fmt.Sprintf("fabric-mgmt %d\n", fabricMinor))
	file("proc/driver/nvidia-caps/mig-minors", migMinors())
	file("proc/driver/nvidia-caps/sys-minors", fmt.Sprintf("fabric-imex-mgmt %d\n", imexMinor))
	all[proc+"capabilities/mig/config"] = entry{content: capability(configMinor, 0o400), mode: 0o400}
	file(proc+"capabilities/mig/monitor", capability(monitorMinor, 0o444))
	// This one is there on any machine: it says nothing of a fabric.
	all[proc+"capabilities/fabric-imex-mgmt"] = entry{content: capability(imexMinor, 0o400), mode: 0o400}
	if h.Fabric {
		all["proc/driver/nvidia-nvlink/capabilities/fabric-mgmt"] = entry{content: capability(fabricMinor, 0o400), mode: 0o400}
	}
	for _, g := range h.listed() {
		file(proc+"gpus/"+g.PCI+"/information", g.informationFile())
		file(proc+"gpus/"+g.PCI+"/power", "Runtime D3 status:          Disabled by default\nVideo Memory:               Active\n")
		all[fmt.Sprintf("%scapabilities/gpu%d/mig", proc, g.Minor)] = entry{mode: fs.ModeDir | 0o755}
		for _, d := range g.MIG.Devices {
			gi := fmt.Sprintf("%scapabilities/gpu%d/mig/gi%d/", proc, g.Minor, d.GI)
			file(gi+"access", capability(giMinor(g.Minor, d.GI), 0o444))
			file(fmt.Sprintf("%sci%d/access", gi, d.CI), capability(ciMinor(g.Minor, d.GI, d.CI), 0o444))
		}
	}
	return all
}

// users is how many modules need a module.
func (h *Host) users(module string) int {
	n := 0
	for _, m := range h.Modules {
		if slices.Contains(modules[m], module) {
			n++
		}
	}
	return n
}

// render is the Y of /dev/dri/renderDY.
func (g GPU) render() int { return 127 + g.Card }

func capability(minor int, mode fs.FileMode) string {
	return fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: %d\nDeviceFileModify: 1\n", minor, mode)
}

// What the driver reserves minors of nvidia-caps for, one table after the other (open-kmod, nv-caps.c).
const (
	maxGPUs             = 32
	gpuInstances        = 15 // per GPU
	computeInstances    = 8  // per GPU instance
	minorsOfGPUInstance = 1 + computeInstances

	fabricMinor        = 0
	configMinor        = 1
	monitorMinor       = 2
	firstInstanceMinor = 3
	imexMinor          = firstInstanceMinor + maxGPUs*gpuInstances*minorsOfGPUInstance // 4323
)

func giMinor(gpu, gi int) int     { return firstInstanceMinor + (gpu*gpuInstances+gi)*minorsOfGPUInstance }
func ciMinor(gpu, gi, ci int) int { return giMinor(gpu, gi) + 1 + ci }

// CapabilityMinor is the minor of the node in /dev/nvidia-caps of a MIG device's compute instance.
func (g *GPU) CapabilityMinor(d MIGDevice) int { return ciMinor(g.Minor, d.GI, d.CI) }

// migMinors is /proc/driver/nvidia-caps/mig-minors.
var migMinors = sync.OnceValue(func() string {
	var b strings.Builder
	b.WriteString("config 1\nmonitor 2\n")
	for gpu := range maxGPUs {
		for gi := range gpuInstances {
			fmt.Fprintf(&b, "gpu%d/gi%d/access %d\n", gpu, gi, giMinor(gpu, gi))
			for ci := range computeInstances {
				fmt.Fprintf(&b, "gpu%d/gi%d/ci%d/access %d\n", gpu, gi, ci, ciMinor(gpu, gi, ci))
			}
		}
	}
	return b.String()
})

func (h *Host) versionFile() string {
	module := "NVIDIA UNIX Open Kernel Module for x86_64  " + h.Driver + "  Release Build  (dvs-builder@U22-I3-AF03-08-1)"
	if h.Closed {
		module = "NVIDIA UNIX x86_64 Kernel Module  " + h.Driver
	}
	return "NVRM version: " + module + "  Wed Oct 29 22:15:29 UTC 2025\n" +
		"GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)\n"
}

func (g GPU) informationFile() string {
	uuid, bios, excluded := g.UUID, "98.06.1f.00.4b", "No"
	switch g.Fault {
	case Uninitialised:
		uuid, bios = "GPU-????????-????-????-????-????????????", "??.??.??.??.??"
	case Excluded:
		excluded = "Yes"
	}
	return fmt.Sprintf(`Model: 		 %s
IRQ:   		 128
GPU UUID: 	 %s
Video BIOS: 	 %s
Bus Type: 	 PCIe
DMA Size: 	 47 bits
DMA Mask: 	 0x7fffffffffff
Bus Location: 	 %s
Device Minor: 	 %d
GPU Firmware: 	 N/A
GPU Excluded:	 %s
`, g.Model, uuid, bios, g.PCI, g.Minor, excluded)
}

// devices are the lines of the driver in /proc/devices, in the order of their majors.
func (h *Host) devices() []deviceLine {
	var lines []deviceLine
	if h.Loaded("nvidia") {
		for _, name := range []string{"nvidia", "nvidia-modeset", "nvidiactl"} {
			lines = append(lines, deviceLine{h.Majors.NVIDIA, name})
		}
		lines = append(lines, deviceLine{h.Majors.Caps, "nvidia-caps"}, deviceLine{h.Majors.IMEX, "nvidia-caps-imex-channels"},
			deviceLine{h.Majors.NVLink, "nvidia-nvlink"})
	}
	if h.Loaded("nvidia_uvm") {
		lines = append(lines, deviceLine{h.Majors.UVM, "nvidia-uvm"})
	}
	if h.Loaded("nvidia_drm") {
		lines = append(lines, deviceLine{h.Majors.DRM, "drm"})
	}
	return lines
}

type deviceLine struct {
	major int
	name  string
}

// devicesFile replaces the driver's lines in the text of a /proc/devices, and keeps those of other drivers.
func (h *Host) devicesFile(now string) string {
	if now == "" {
		now = "Character devices:\n  1 mem\n\nBlock devices:\n  7 loop\n"
	}
	character, block, _ := strings.Cut(now, "\nBlock devices:")
	var lines []deviceLine
	for line := range strings.Lines(character) {
		var d deviceLine
		if _, err := fmt.Sscan(line, &d.major, &d.name); err != nil {
			continue // the title
		}
		if !strings.HasPrefix(d.name, "nvidia") && (d.name != "drm" || d.major != h.Majors.DRM) {
			lines = append(lines, d)
		}
	}
	lines = append(lines, h.devices()...)
	slices.SortStableFunc(lines, func(a, b deviceLine) int { return a.major - b.major })
	var b strings.Builder
	b.WriteString("Character devices:\n")
	for _, d := range lines {
		fmt.Fprintf(&b, "%3d %s\n", d.major, d.name)
	}
	b.WriteString("\nBlock devices:" + block)
	return b.String()
}
