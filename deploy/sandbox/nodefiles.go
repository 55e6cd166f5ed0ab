package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// writeFiles lays out what the namespaces of a node then show at its place: pve is /etc/pve, proc/driver
// is /proc/driver, and so on (namespace.go).
func (n *Node) writeFiles(dir, pct string) error {
	realDevices, err := os.ReadFile("/proc/devices")
	if err != nil {
		return err
	}
	files := map[string]string{
		"proc/devices":                                n.devicesFile(string(realDevices)),
		"proc/1/cgroup":                               "0::/init.scope\n",
		"proc/driver/nvidia/version":                  n.versionFile(),
		"proc/driver/nvidia/params":                   paramsFile,
		"proc/driver/nvidia/capabilities/mig/config":  "DeviceFileMinor: 1\nDeviceFileMode: 256\nDeviceFileModify: 1\n",
		"proc/driver/nvidia/capabilities/mig/monitor": "DeviceFileMinor: 2\nDeviceFileMode: 292\nDeviceFileModify: 1\n",
		"module/nvidia/version":                       n.Driver + "\n",
		"module/nvidia/initstate":                     "live\n",
		"module/nvidia_uvm/initstate":                 "live\n",
		"module/nvidia_modeset/initstate":             "live\n",
		"lxc-config/common.conf.d/01-pve.conf":        hooksConf,
		"lxc-config/userns.conf.d/01-pve.conf":        usernsConf,
		"etc/pve-release":                             "9.1-sandbox\n",
		"etc/hostname":                                n.Name + "\n",
		"etc/hosts":                                   fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", n.Address, n.Name),
		"pve/.members":                                fmt.Sprintf("{ \"nodename\": %q, \"version\": 0 }\n", n.Name),
		"pve/.vmlist":                                 "{ \"version\": 1, \"ids\": {} }\n",
		"pve/storage.cfg":                             "dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl,snippets\n",
		"run/pct-calls":                               "",
	}
	for _, gpu := range n.GPUs {
		files["proc/driver/nvidia/gpus/"+gpu.PCI+"/information"] = gpu.informationFile()
		device := "pci/devices/" + gpu.PCI + "/"
		files[device+"vendor"] = "0x10de\n"
		files[device+"device"] = "0x2d04\n"
		files[device+"class"] = "0x030000\n"
		files[device+"numa_node"] = fmt.Sprintf("%d\n", gpu.NUMANode)
	}
	for path, content := range files {
		if err := writeFile(filepath.Join(dir, path), content, 0o644); err != nil {
			return err
		}
	}
	programs := map[string]string{"bin/nvidia-smi": n.smiScript(), "bin/pveversion": pveversionScript}
	for path, content := range programs {
		if err := writeFile(filepath.Join(dir, path), content, 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(pct, filepath.Join(dir, "sbin/pct"), 0o755); err != nil {
		return err
	}
	for _, path := range []string{
		"pve/nodes/" + n.Name + "/lxc", "pve/nodes/" + n.Name + "/qemu-server", "pve/priv", "pve/ha",
		"pci/drivers/nvidia", "var-lib-lxc", "var-lib-phoenix", "etc-phoenix/tls", "run/lock/lxc", "run/pve", "run/sandbox",
	} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			return err
		}
	}
	links := map[string]string{
		"pve/local": "nodes/" + n.Name, "pve/lxc": "nodes/" + n.Name + "/lxc", "pve/qemu-server": "nodes/" + n.Name + "/qemu-server",
	}
	for _, gpu := range n.GPUs {
		links["pci/devices/"+gpu.PCI+"/driver"] = "../../drivers/nvidia"
	}
	for path, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, path)); err != nil {
			return err
		}
	}
	return nil
}

// paramsFile is the part of /proc/driver/nvidia/params that concerns device files.
const paramsFile = "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n"

// hooksConf adds the hooks that Proxmox adds to every container (pve-container's lxc-pve.conf).
const hooksConf = `lxc.hook.pre-start = /usr/sbin/pct sandbox-hook
lxc.hook.autodev = /usr/sbin/pct sandbox-hook
lxc.hook.post-stop = /usr/sbin/pct sandbox-hook
`

// usernsConf is what Proxmox adds to unprivileged containers (lxc-pve-userns.conf): every device is allowed.
const usernsConf = `lxc.cgroup2.devices.deny =
lxc.cgroup2.devices.allow =
lxc.cgroup2.devices.allow = a
`

const pveversionScript = "#!/bin/sh\necho 'pve-manager/9.1-sandbox/0123456789abcdef (running kernel: '$(uname -r)')'\n"

// devicesFile is /proc/devices with the drivers' majors among the character devices, in numeric order.
func (n *Node) devicesFile(machine string) string {
	type device struct {
		major int
		line  string
	}
	character, block, _ := strings.Cut(machine, "\nBlock devices:")
	var devices []device
	for line := range strings.Lines(character) {
		var d device
		if _, err := fmt.Sscan(line, &d.major); err == nil {
			d.line = strings.TrimRight(line, "\n")
			devices = append(devices, d)
		}
	}
	for _, d := range []struct {
		major int
		name  string
	}{
		{n.Majors.NVIDIA, "nvidia"}, {n.Majors.NVIDIA, "nvidia-modeset"}, {n.Majors.NVIDIA, "nvidiactl"},
		{n.Majors.Caps, "nvidia-caps"}, {n.Majors.UVM, "nvidia-uvm"},
	} {
		devices = append(devices, device{d.major, fmt.Sprintf("%3d %s", d.major, d.name)})
	}
	slices.SortStableFunc(devices, func(a, b device) int { return a.major - b.major })
	var out strings.Builder
	out.WriteString("Character devices:\n")
	for _, d := range devices {
		out.WriteString(d.line + "\n")
	}
	out.WriteString("\nBlock devices:" + block)
	return out.String()
}

func (n *Node) versionFile() string {
	return "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  " + n.Driver +
		"  Release Build  (dvs-builder@U22-I3-AF03-08-1)  Wed Oct 29 22:15:29 UTC 2025\n" +
		"GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)\n"
}

func (g GPU) informationFile() string {
	return fmt.Sprintf(`Model: 		 %s
IRQ:   		 128
GPU UUID: 	 %s
Video BIOS: 	 98.06.1f.00.4b
Bus Type: 	 PCIe
DMA Size: 	 47 bits
DMA Mask: 	 0x7fffffffffff
Bus Location: 	 %s
Device Minor: 	 %d
GPU Firmware: 	 N/A
GPU Excluded:	 No
`, g.Model, g.UUID, g.PCI, g.Minor)
}

// smiScript answers --query-gpu for the fields that there is something to say about, and -L, which is also what it says
// without arguments.
func (n *Node) smiScript() string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n# The sandbox's stand-in for nvidia-smi: it knows --query-gpu=... --format=csv[,noheader][,nounits] and -L.\n")
	b.WriteString("fields= header=1 units=1 list=\nfor a; do case $a in\n" +
		"--query-gpu=*) fields=${a#*=} ;;\n" +
		"--format=*) case $a in *noheader*) header= ;; esac; case $a in *nounits*) units= ;; esac ;;\n" +
		"-L|--list-gpus) list=1 ;;\n" +
		"*) echo \"the sandbox's nvidia-smi does not know $a\" >&2; exit 2 ;;\nesac; done\n")
	b.WriteString("gpu() { # index uuid pci name memory\n" +
		"if [ -n \"$list\" ]; then echo \"GPU $1: $4 (UUID: $2)\"; return; fi\n" +
		"out=; IFS=,; for f in $fields; do unset IFS; f=$(echo $f); case $f in\n" +
		"index) v=$1 ;; uuid|gpu_uuid) v=$2 ;; pci.bus_id|gpu_bus_id) v=$3 ;; name|gpu_name) v=$4 ;;\n" +
		"memory.total) v=$5; [ -z \"$units\" ] || v=\"$5 MiB\" ;; driver_version) v=" + n.Driver + " ;;\n" +
		"*) v='[N/A]' ;; esac; out=\"$out${out:+, }$v\"; done; echo \"$out\"; }\n")
	b.WriteString("[ -n \"$fields\" ] || list=1\n")
	b.WriteString("[ -n \"$list\" ] || [ -z \"$header\" ] || echo \"$fields\" | sed 's/,/, /g'\n")
	for i, gpu := range n.GPUs {
		fmt.Fprintf(&b, "gpu %d %s %s '%s' %d\n", i, gpu.UUID, "0000"+strings.ToUpper(gpu.PCI), gpu.Model, gpu.MemoryMiB)
	}
	return b.String()
}

func writeFile(path, content string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), mode)
}

func copyFile(from, to string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeFile(to, string(b), mode)
}
