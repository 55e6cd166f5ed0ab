package doctor

import (
	"fmt"
	"slices"
	"strings"
)

const noGPU = "no GPU is assigned"

// agent: a node that answers has the container, once.
func (e *examination) agent() string {
	away := slices.Clone(e.Away)
	if e.Wish != nil && e.Wish.Node != "" {
		away = slices.DeleteFunc(away, func(a Away) bool { return a.Node != e.Wish.Node })
	}
	switch {
	case len(e.On) == 0 && len(away) > 0:
		var names, messages []string
		for _, a := range away {
			names, messages = append(names, a.Node), append(messages, a.Node+": "+a.Message)
		}
		e.broken(AgentAway, strings.Join(messages, "; "), "on "+names[0]+": systemctl status phoenix-agent",
			"no node that answers has the container, and %s did not answer", strings.Join(names, ", "))
		return ""
	case len(e.On) == 0:
		remedy := "take it out of the fleet file, or create it: pct create " + fmt.Sprint(e.CTID)
		if e.Wish == nil {
			remedy = "see phoenix-cli containers for the CTIDs that there are"
		}
		e.broken(NoContainer, "all nodes answered, and none has a conf of this CTID", remedy, "no node has CTID %d", e.CTID)
		return ""
	case len(e.On) > 1:
		e.broken(SeveralNodes, "there is a conf on "+strings.Join(e.On, " and on "), "remove all of them but one (pct destroy, on the node where it is wrong)",
			"CTID %d is on several nodes: %s", e.CTID, strings.Join(e.On, ", "))
		return ""
	case e.Wish != nil && e.Wish.Node != "" && e.Wish.Node != e.Node.Name:
		e.broken(WrongNode, fmt.Sprintf("its conf is on %s; %s says %s", e.Node.Name, e.Fleet, e.Wish.Node),
			fmt.Sprintf("on %s: pct migrate %d %s --restart; or correct node in the fleet file", e.Node.Name, e.CTID, e.Wish.Node),
			"the container is on node %s and is to be on %s", e.Node.Name, e.Wish.Node)
		return ""
	}
	if !e.Node.Quorate {
		e.warn(NoQuorum, "/etc/pve of "+e.Node.Name+" is read-only", e.on("pvecm status, and bring the other nodes of the cluster back"),
			"node %s has no quorum: no conf can be changed, no container started", e.Node.Name)
	}
	return fmt.Sprintf("the agent of %s answers, and has the container", e.Node.Name)
}

// card: every assigned card is on the PCI bus.
func (e *examination) card() string {
	if len(e.targets) == 0 {
		return e.notApplicable(noGPU)
	}
	pci := "/sys/bus/pci/devices of " + e.Node.Name
	var found []string
	for _, t := range e.targets {
		g := e.Node.at(t.address())
		switch {
		case g != nil:
			found = append(found, g.PCI)
		case t.address() != "":
			e.broken(CardGone, fmt.Sprintf("%s has no %s", pci, t.address()),
				e.on("lspci -d 10de: shows what is there; see to the card and its slot, then reboot; or assign another GPU"),
				"the card of %s, %s, is not on the PCI bus any more", t.want.Text, t.address())
		case len(e.Node.GPUs) == 0:
			e.broken(NoCard, pci+" has no VGA or 3D controller of NVIDIA", "assign no GPU, or move the container to a node that has one (phoenix-cli devices)",
				"node %s has no NVIDIA card", e.Node.Name)
			return ""
		}
	}
	if len(found) == 0 {
		return fmt.Sprintf("%s has %d NVIDIA cards", pci, len(e.Node.GPUs))
	}
	return fmt.Sprintf("%s has %s", pci, strings.Join(found, ", "))
}

// driver: every assigned card is bound to nvidia, and the module is loaded.
func (e *examination) driver() string {
	if len(e.targets) == 0 {
		return e.notApplicable(noGPU)
	}
	for _, t := range e.targets {
		if g := e.Node.at(t.address()); g != nil {
			e.binding(t, *g)
		} else if t.gpu == nil && t.address() == "" {
			// It has no name that stays with it, so it may be any of those that are not counted now.
			for _, g := range e.Node.GPUs {
				if g.Index < 0 {
					e.binding(t, g)
				}
			}
		}
	}
	if e.Node.Loaded == "" && len(e.found) == 0 {
		e.broken(ModuleNotLoaded, "/proc/driver/nvidia/version does not exist on "+e.Node.Name,
			e.on("modprobe nvidia (dmesg says why if it fails; if there is no such module, install the driver of the node)"),
			"the nvidia kernel module is not loaded on %s", e.Node.Name)
	}
	e.versions()
	return fmt.Sprintf("/sys/bus/pci: bound to nvidia; module %s is loaded", e.Node.Loaded)
}

// binding reports a card that is bound to another driver than nvidia.
func (e *examination) binding(t target, g GPU) {
	proof := fmt.Sprintf("/sys/bus/pci/devices/%s/driver", g.PCI)
	lost := fmt.Sprintf("%s cannot be given: the card %s", t.want.Text, g.PCI)
	switch g.Driver {
	case "nvidia":
		if g.Index < 0 {
			e.broken(Excluded, fmt.Sprintf("/proc/driver/nvidia/gpus/%s/information says GPU Excluded: Yes", g.PCI),
				e.on("take the card out of NVreg_ExcludedGpus in /etc/modprobe.d, then reboot"), "%s is excluded from use by a parameter of the driver", lost)
		}
	case "vfio-pci":
		e.broken(BoundVFIO, proof+" is vfio-pci", e.on("stop the VM that has it (grep hostpci /etc/pve/qemu-server/*.conf), then: %s", rebind(g.PCI)),
			"%s is bound to vfio-pci, for a virtual machine", lost)
	case "nouveau":
		e.broken(BoundNouveau, proof+" is nouveau", e.on("echo blacklist nouveau >/etc/modprobe.d/blacklist-nouveau.conf; update-initramfs -u; reboot"),
			"%s is bound to nouveau", lost)
	case "none":
		if e.Node.Loaded == "" {
			return // that is why
		}
		e.broken(Unbound, proof+" does not exist", e.on("echo %s >/sys/bus/pci/drivers/nvidia/bind (dmesg says why if it fails)", g.PCI),
			"%s is bound to no driver", lost)
	default:
		e.broken(BoundOther, proof+" is not nvidia", e.on("%s", rebind(g.PCI)), "%s is bound to another driver than nvidia", lost)
	}
}

func rebind(pci string) string {
	return fmt.Sprintf("echo %[1]s >/sys/bus/pci/devices/%[1]s/driver/unbind; echo %[1]s >/sys/bus/pci/drivers/nvidia/bind", pci)
}

// versions tells of an upgrade of the node's driver that is not in force yet.
func (e *examination) versions() {
	n := e.Node
	if n.Loaded == "" {
		return
	}
	if n.Disk != "" && n.Disk != n.Loaded {
		e.warn(UpgradePending, fmt.Sprintf("modinfo says %s, /proc/driver/nvidia/version %s", n.Disk, n.Loaded),
			e.on("reboot when it suits, then phoenix-cli apply: the containers then need %s", n.Disk),
			"the next boot of %s loads driver %s instead of %s", n.Name, n.Disk, n.Loaded)
	}
	if n.Library != "" && n.Library != n.Loaded {
		say := e.warn
		if e.Wish != nil && e.Wish.DriverMode == "host" && len(e.targets) > 0 {
			say = e.broken // the container has those libraries
		}
		say(HostLibraries, fmt.Sprintf("libnvidia-ml.so.1 is %s, the loaded module %s", n.Library, n.Loaded),
			e.on("reboot, which loads the module of the libraries; or install the libraries of %s again", n.Loaded),
			"nvidia-smi does not work on %s itself: its libraries are %s, the loaded module is %s", n.Name, n.Library, n.Loaded)
	}
}

// health: the driver lists every assigned card, and none has a fault.
func (e *examination) health() string {
	if len(e.targets) == 0 {
		return e.notApplicable(noGPU)
	}
	for _, t := range e.targets {
		if t.gpu != nil && !t.moved() {
			e.fit(*t.gpu)
		}
	}
	return "/proc/driver/nvidia/gpus lists them; the kernel's log tells of no fault"
}

// fit reports what is wrong with a card that is bound to nvidia.
func (e *examination) fit(g GPU) {
	for _, x := range g.Health.Errors {
		proof := fmt.Sprintf("kernel log of %s: Xid (PCI:%s) %d: %s", e.Node.Name, strings.TrimSuffix(g.PCI, ".0"), x.Number, x.Message)
		ack := fmt.Sprintf("%s Then phoenix-cli health ack %s %s.", x.Advice, e.Node.Name, g.PCI)
		switch {
		case g.Health.Fault && x.Number == 79:
			e.broken(OffBus, proof, e.on("reboot, better power off and on; if it comes again, see to slot, power and cooling"), "%s has fallen off the bus", g)
		case g.Health.Fault && x.Class == "reset":
			e.broken(NeedsReset, proof, ack, "%s needs a reset after XID %d", g, x.Number)
		case g.Health.Fault && x.Class == "reboot":
			e.broken(NeedsReboot, proof, ack, "%s needs a reboot of %s after XID %d", g, e.Node.Name, x.Number)
		case g.Health.Fault && x.Class == "support":
			e.broken(Defective, proof, ack, "%s needs a repair after XID %d", g, x.Number)
		case g.Health.Warning && x.Class != "application" && x.Class != "informational":
			e.warn(GPUWarning, proof, ack, "%s had XID %d", g, x.Number)
		}
	}
	if !g.listed() && !slices.ContainsFunc(e.found, func(f Finding) bool { return f.Severity == Fatal }) {
		e.broken(NotListed, fmt.Sprintf("/sys/bus/pci/devices/%s is bound to nvidia, and /proc/driver/nvidia/gpus/%[1]s does not exist", g.PCI),
			e.on("dmesg | grep -E 'NVRM|fallen off': then reboot, better power off and on"), "the driver does not list %s: it did not initialise or fell off the bus", g)
	}
}

// shared are the devices that every use of a GPU needs besides its own.
var shared = []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"}

// needed are the node's device nodes that the assigned GPUs need for what the fleet file says they are used for.
func (e *examination) needed() []DeviceNode {
	var out []DeviceNode
	add := func(nodes ...DeviceNode) {
		for _, n := range nodes {
			if !slices.ContainsFunc(out, func(o DeviceNode) bool { return o.Path == n.Path }) {
				out = append(out, n)
			}
		}
	}
	graphics := e.Wish != nil && slices.Contains(e.Wish.Capabilities, "graphics")
	for _, t := range e.targets {
		if t.gpu == nil || t.moved() {
			continue
		}
		add(t.nodes()...)
		if graphics {
			add(t.gpu.Graphics...)
		}
	}
	for _, n := range e.Node.Shared {
		if slices.Contains(shared, n.Path) || graphics && n.Path == "/dev/nvidia-modeset" {
			add(n)
		}
	}
	if e.Wish != nil && slices.Contains(e.Wish.Capabilities, "fabric") {
		add(e.Node.Fabric...)
	}
	return out
}

// nodes: the device nodes are there, with the right numbers.
func (e *examination) nodes() string {
	if len(e.targets) == 0 {
		return e.notApplicable(noGPU)
	}
	var paths []string
	for _, n := range e.needed() {
		if slices.Contains(e.Container.Configured.Devices, n.Path) { // the apply that gives the others makes them
			paths = append(paths, n.Path)
			e.node(n)
		}
	}
	if len(paths) == 0 {
		return e.notExamined("its conf gives none of them")
	}
	return fmt.Sprintf("on %s, with the numbers of /proc/devices: %s", e.Node.Name, strings.Join(paths, ", "))
}

// node reports what is wrong with one device node. The running container may have its device all the same: then only its
// next start suffers.
func (e *examination) node(n DeviceNode) {
	say := e.broken
	if e.Container.Effective != nil && slices.Contains(e.Container.Effective.Devices, n.Path) {
		say = e.warn
	}
	create := e.on("%s; then phoenix-cli restart %d", makeNode(n), e.CTID)
	numbers := fmt.Sprintf("%d:%d", n.Major, n.Minor)
	switch {
	case n.Major < 0 && strings.HasPrefix(n.Path, "/dev/nvidia-uvm"):
		if !slices.ContainsFunc(e.found, func(f Finding) bool { return f.Fault == UVMNotLoaded }) {
			say(UVMNotLoaded, "/proc/devices of "+e.Node.Name+" has no nvidia-uvm", create,
				"the module nvidia-uvm is not loaded on %s: CUDA does not work", e.Node.Name)
		}
	case n.State == NodeMissing:
		say(NodeGone, "there is no "+n.Path+" on "+e.Node.Name, create, "device node %s is missing on %s", n.Path, e.Node.Name)
	case n.State == NodeStale:
		say(StaleNode, fmt.Sprintf("%s has other numbers than %s of /proc/devices", n.Path, numbers), create,
			"device node %s of %s is left from an earlier load of the driver", n.Path, e.Node.Name)
	case n.State == NodeNotADevice:
		say(NoDevice, n.Path+" is no character device", create, "%s of %s is no device", n.Path, e.Node.Name)
	case n.Mode&0o666 != 0o666 && e.Container.Unprivileged && e.Container.Configured.Mode != "native" && strings.HasPrefix(n.Path, "/dev/nvidia") && !strings.HasPrefix(n.Path, "/dev/nvidia-caps"):
		e.broken(NodeMode, fmt.Sprintf("%s has mode %04o", n.Path, n.Mode),
			e.on("chmod 666 %s, and remove NVreg_DeviceFileMode from /etc/modprobe.d", n.Path), "only root of %s may open %s", e.Node.Name, n.Path)
	}
}

// makeNode is the command that makes a device node, or makes it anew.
func makeNode(n DeviceNode) string {
	switch {
	case strings.HasPrefix(n.Path, "/dev/nvidia-uvm"):
		return "nvidia-modprobe -u -c 0"
	case n.Path == "/dev/nvidia-modeset":
		return "nvidia-modprobe -m"
	case strings.HasPrefix(n.Path, "/dev/dri/"):
		return "modprobe nvidia-drm"
	case strings.HasPrefix(n.Path, "/dev/nvidia-caps"):
		return fmt.Sprintf("mknod -m 444 %s c %d %d", n.Path, n.Major, n.Minor)
	}
	return fmt.Sprintf("nvidia-modprobe -c %d", n.Minor)
}

// mig: the cards are divided as assigned.
func (e *examination) mig() string {
	var devices []string
	for _, t := range e.targets {
		if t.gpu == nil || t.moved() {
			continue
		}
		proof := fmt.Sprintf("/proc/driver/nvidia/capabilities and nvidia-smi -L of %s", e.Node.Name)
		switch {
		case t.want.MIG == nil && t.gpu.MIG:
			e.broken(MIGWhole, proof+" list MIG devices of it", fmt.Sprintf("assign one of its MIG devices (phoenix-cli devices); or on %s: nvidia-smi -i %d -mig 0", e.Node.Name, t.gpu.Index),
				"%s is assigned whole and divided by MIG: CUDA can use its MIG devices only", t.gpu)
		case t.want.MIG != nil && !t.gpu.MIG:
			e.broken(MIGOff, proof+" list no MIG device of it", e.on("nvidia-smi -i %d -mig 1, then create the instance (nvidia-smi mig -cgi PROFILE -C)", t.gpu.Index),
				"%s is a MIG device, and %s is not divided any more", t.want.Text, t.gpu)
		case t.want.MIG != nil && t.instance() == nil:
			e.broken(MIGGone, proof+" do not list it", e.on("nvidia-smi mig -i %d -cgi PROFILE -C; or assign one that is there (phoenix-cli devices)", t.gpu.Index),
				"%s is a MIG device that %s does not have", t.want.Text, t.gpu)
		case t.want.MIG != nil:
			devices = append(devices, t.want.Text)
		}
	}
	if len(devices) == 0 {
		return e.notApplicable("no MIG device is assigned")
	}
	return "the driver has " + strings.Join(devices, ", ")
}
