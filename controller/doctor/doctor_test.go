package doctor_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/doctor"
)

func devicePaths(minors ...int) []string {
	paths := []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}
	for _, m := range minors {
		paths = append(paths, fmt.Sprintf("/dev/nvidia%d", m))
	}
	return append(paths, "/dev/nvidiactl")
}

// healthy is 901 on pve1, unprivileged and running with GPU 1, of two, in whose place minor 0 stands.
func healthy() doctor.Facts {
	node := func(path string, major, minor int) doctor.DeviceNode {
		return doctor.DeviceNode{Path: path, Major: major, Minor: minor, Mode: 0o666, State: doctor.NodeOK}
	}
	given := doctor.Passthrough{GPUs: []doctor.Given{{Index: 1, Minor: 0}}, Mode: "raw", Devices: devicePaths(0)}
	effective := doctor.Passthrough{GPUs: given.GPUs, Devices: given.Devices}
	f := doctor.Facts{
		CTID: 901, Fleet: "the fleet file", On: []string{"pve1"},
		Wish: &doctor.Wish{Name: "trainer", Mode: "raw", Driver: true, GPUs: []doctor.Want{{
			Text: "GPU 1", Index: 1, Was: &doctor.AppliedGPU{UUID: "GPU-b", PCI: "0000:41:00.0"},
		}}},
		Node: &doctor.Node{
			Name: "pve1", Quorate: true, Loaded: "580.105.08", Disk: "580.105.08", Library: "580.105.08",
			GPUs: []doctor.GPU{
				{Index: 0, UUID: "GPU-a", PCI: "0000:01:00.0", Minor: 1, Driver: "nvidia", Nodes: []doctor.DeviceNode{node("/dev/nvidia1", 195, 1)}},
				{Index: 1, UUID: "GPU-b", PCI: "0000:41:00.0", Minor: 0, Driver: "nvidia", Nodes: []doctor.DeviceNode{node("/dev/nvidia0", 195, 0)}},
			},
			Shared: []doctor.DeviceNode{
				{Path: "/dev/nvidia-modeset", Major: 195, Minor: 254, State: doctor.NodeMissing}, // for graphics only
				node("/dev/nvidia-uvm", 511, 0), node("/dev/nvidia-uvm-tools", 511, 1), node("/dev/nvidiactl", 195, 255),
			},
		},
		Container: &doctor.Container{
			Node: "pve1", Hostname: "ct901", State: "running", Unprivileged: true, Configured: given, Effective: &effective,
		},
		Probe:  &doctor.Probe{},
		Driver: &doctor.UserDriver{Libc: "glibc", State: "installed", Version: "580.105.08"},
		Check:  &doctor.DriverCheck{Version: "580.105.08", UUIDs: []string{"GPU-b"}, CUDA: "ran"},
	}
	for i, path := range devicePaths(0) {
		gpu := -1
		if i == 2 {
			gpu = 1
		}
		f.Probe.Results = append(f.Probe.Results, doctor.Probed{Path: path, GPU: gpu, Expected: true, Outcome: "opened"})
	}
	f.Probe.Results = append(f.Probe.Results, doctor.Probed{Path: "/dev/nvidia1", GPU: 0, Outcome: "absent", Errno: "ENOENT", Major: -1, Minor: -1})
	return f
}

// stopped makes the container one that does not run.
func stopped(f *doctor.Facts) {
	f.Container.State, f.Container.Effective, f.Probe, f.Driver, f.Check = "stopped", nil, nil, nil, nil
}

// problem adds one to the conf's.
func problem(kind, advice string) func(*doctor.Facts) {
	return func(f *doctor.Facts) {
		f.Container.Problems = append(f.Container.Problems, doctor.Problem{Kind: kind, Message: "what the agent says", Line: 7, Advice: advice})
	}
}

// both makes one change of several.
func both(changes ...func(*doctor.Facts)) func(*doctor.Facts) {
	return func(f *doctor.Facts) {
		for _, change := range changes {
			change(f)
		}
	}
}

func privileged(f *doctor.Facts) { f.Container.Unprivileged = false }

// without makes the conf and the container ones that have no NVIDIA device.
func without(f *doctor.Facts) {
	f.Container.Configured, f.Container.Effective = doctor.Passthrough{}, &doctor.Passthrough{}
}

// noWish makes the fleet file assign nothing.
func noWish(f *doctor.Facts) { f.Wish.GPUs = nil }

// opens makes an open inside end so; the devices are those of devicePaths(0), then that of the other GPU.
func opens(device int, outcome, errno string) func(*doctor.Facts) {
	return func(f *doctor.Facts) { f.Probe.Results[device].Outcome, f.Probe.Results[device].Errno = outcome, errno }
}

func xid(number int, class string) func(*doctor.Facts) {
	return func(f *doctor.Facts) {
		f.Node.GPUs[1].Health = doctor.Fitness{Fault: true, Errors: []doctor.XID{{Number: number, Class: class, Message: "words of the driver", Advice: "Do this."}}}
	}
}

// instance makes the assignment the MIG device 2/0 of GPU 1, which is there.
func instance(f *doctor.Facts) {
	mig := &doctor.Instance{GI: 2}
	f.Wish.GPUs[0] = doctor.Want{Text: "MIG device 1:0", Index: 1, MIG: mig}
	f.Node.GPUs[1].MIG = true
	f.Node.GPUs[1].Devices = []doctor.MIGDevice{{Instance: *mig, UUID: "MIG-a"}}
	f.Container.Configured.GPUs[0].MIG = mig
}

// faults are the ways in which a container can be kept from its GPUs, one row each at least.
var faults = []struct {
	name   string
	change func(*doctor.Facts)
	fault  doctor.Fault
	link   doctor.Kind
	kind   doctor.Severity
	proof  string // part of it
	remedy string // part of it
}{
	{"its node does not answer", func(f *doctor.Facts) {
		f.On, f.Node, f.Container, f.Away = nil, nil, nil, []doctor.Away{{Node: "pve1", Message: "connection refused"}}
	}, doctor.AgentAway, doctor.Agent, doctor.Fatal, "connection refused", "on pve1: systemctl status phoenix-agent"},
	{"nobody has it", func(f *doctor.Facts) { f.On, f.Node, f.Container = nil, nil, nil },
		doctor.NoContainer, doctor.Agent, doctor.Fatal, "all nodes answered", "pct create 901"},
	{"another node that could not have it does not answer", func(f *doctor.Facts) {
		f.On, f.Node, f.Container, f.Away, f.Wish.Node = nil, nil, nil, []doctor.Away{{Node: "pve9", Message: "x"}}, "pve1"
	}, doctor.NoContainer, doctor.Agent, doctor.Fatal, "all nodes answered", "pct create 901"},
	{"two nodes have it", func(f *doctor.Facts) { f.On = []string{"pve1", "pve2"} },
		doctor.SeveralNodes, doctor.Agent, doctor.Fatal, "pve1 and on pve2", "remove all of them but one"},
	{"it is on another node", func(f *doctor.Facts) { f.Wish.Node = "pve2" },
		doctor.WrongNode, doctor.Agent, doctor.Fatal, "the fleet file says pve2", "pct migrate 901 pve2 --restart"},
	{"no quorum", func(f *doctor.Facts) { f.Node.Quorate = false },
		doctor.NoQuorum, doctor.Agent, doctor.Warning, "read-only", "pvecm status"},

	{"no card at all", func(f *doctor.Facts) { f.Node.GPUs, f.Wish.GPUs[0].Was = nil, nil },
		doctor.NoCard, doctor.Card, doctor.Fatal, "no VGA or 3D controller", "phoenix-cli devices"},
	{"the card was taken out", func(f *doctor.Facts) { f.Node.GPUs = f.Node.GPUs[:1] },
		doctor.CardGone, doctor.Card, doctor.Fatal, "has no 0000:41:00.0", "lspci -d 10de:"},

	{"its card is given to a VM", func(f *doctor.Facts) { f.Node.GPUs[1].Driver, f.Node.GPUs[1].Index = "vfio-pci", -1 },
		doctor.BoundVFIO, doctor.Driver, doctor.Fatal, "/sys/bus/pci/devices/0000:41:00.0/driver is vfio-pci", "grep hostpci"},
	{"a card is given to a VM, and nothing tells that it was this", func(f *doctor.Facts) {
		f.Node.GPUs[0].Driver, f.Node.GPUs[0].Index, f.Node.GPUs[1].Index, f.Wish.GPUs[0].Was = "vfio-pci", -1, 0, nil
	}, doctor.BoundVFIO, doctor.Driver, doctor.Fatal, "0000:01:00.0/driver is vfio-pci", "unbind"},
	{"its card is given to a VM, so that its index is another card's now", func(f *doctor.Facts) {
		f.Node.GPUs[1].Driver, f.Node.GPUs[1].Index = "vfio-pci", -1
		f.Node.GPUs = append(f.Node.GPUs, doctor.GPU{Index: 1, UUID: "GPU-c", PCI: "0000:81:00.0", Minor: 2, Driver: "nvidia"})
	}, doctor.BoundVFIO, doctor.Driver, doctor.Fatal, "0000:41:00.0/driver is vfio-pci", "unbind"},
	{"nouveau has its card", func(f *doctor.Facts) { f.Node.GPUs[1].Driver, f.Node.GPUs[1].Index, f.Node.Loaded = "nouveau", -1, "" },
		doctor.BoundNouveau, doctor.Driver, doctor.Fatal, "is nouveau", "blacklist nouveau"},
	{"another driver has its card", func(f *doctor.Facts) { f.Node.GPUs[1].Driver, f.Node.GPUs[1].Index = "other", -1 },
		doctor.BoundOther, doctor.Driver, doctor.Fatal, "0000:41:00.0/driver is not nvidia", "drivers/nvidia/bind"},
	{"no driver has its card", func(f *doctor.Facts) { f.Node.GPUs[1].Driver, f.Node.GPUs[1].Index = "none", -1 },
		doctor.Unbound, doctor.Driver, doctor.Fatal, "0000:41:00.0/driver does not exist", "drivers/nvidia/bind"},
	{"the driver leaves it out", func(f *doctor.Facts) { f.Node.GPUs[1].Index = -1 },
		doctor.Excluded, doctor.Driver, doctor.Fatal, "GPU Excluded: Yes", "NVreg_ExcludedGpus"},
	{"the module is not loaded", func(f *doctor.Facts) {
		f.Node.Loaded = ""
		for i := range f.Node.GPUs {
			f.Node.GPUs[i].Driver, f.Node.GPUs[i].Index = "none", -1
		}
	}, doctor.ModuleNotLoaded, doctor.Driver, doctor.Fatal, "/proc/driver/nvidia/version does not exist", "modprobe nvidia"},
	{"the next boot loads another module", func(f *doctor.Facts) { f.Node.Disk = "590.10.01" },
		doctor.UpgradePending, doctor.Driver, doctor.Warning, "modinfo says 590.10.01", "reboot"},
	{"the node's libraries, which the container has, are newer than its module", func(f *doctor.Facts) { f.Node.Library, f.Wish.DriverMode = "590.10.01", "host" },
		doctor.HostLibraries, doctor.Driver, doctor.Fatal, "libnvidia-ml.so.1 is 590.10.01", "reboot"},
	{"the node's libraries are newer than its module", func(f *doctor.Facts) { f.Node.Library = "590.10.01" },
		doctor.HostLibraries, doctor.Driver, doctor.Warning, "libnvidia-ml.so.1 is 590.10.01", "reboot"},

	{"it fell off the bus", xid(79, "reboot"), doctor.OffBus, doctor.Health, doctor.Fatal, "Xid (PCI:0000:41:00) 79", "power off"},
	{"it needs a reset", xid(95, "reset"), doctor.NeedsReset, doctor.Health, doctor.Fatal, "words of the driver", "phoenix-cli health ack pve1 0000:41:00.0"},
	{"it needs a reboot", xid(140, "reboot"), doctor.NeedsReboot, doctor.Health, doctor.Fatal, "140", "health ack"},
	{"it needs a repair", xid(54, "support"), doctor.Defective, doctor.Health, doctor.Fatal, "54", "Do this."},
	{"the driver does not list it", func(f *doctor.Facts) { f.Node.GPUs[1].UUID, f.Node.GPUs[1].Minor, f.Node.GPUs[1].Nodes = "", -1, nil },
		doctor.NotListed, doctor.Health, doctor.Fatal, "/proc/driver/nvidia/gpus/0000:41:00.0 does not exist", "dmesg"},
	{"it had an error that is to be watched", both(xid(92, "watch"), func(f *doctor.Facts) { f.Node.GPUs[1].Health.Fault, f.Node.GPUs[1].Health.Warning = false, true }),
		doctor.GPUWarning, doctor.Health, doctor.Warning, "92", "Do this."},

	{"uvm is not loaded", both(stopped, func(f *doctor.Facts) {
		for i := 1; i <= 2; i++ {
			f.Node.Shared[i].Major, f.Node.Shared[i].State = -1, doctor.NodeMissing
		}
	}), doctor.UVMNotLoaded, doctor.Nodes, doctor.Fatal, "/proc/devices of pve1 has no nvidia-uvm", "nvidia-modprobe -u -c 0"},
	{"a node is missing", both(stopped, func(f *doctor.Facts) { f.Node.GPUs[1].Nodes[0].State = doctor.NodeMissing }),
		doctor.NodeGone, doctor.Nodes, doctor.Fatal, "no /dev/nvidia0", "nvidia-modprobe -c 0"},
	{"a node is missing that the container has", func(f *doctor.Facts) { f.Node.Shared[3].State = doctor.NodeMissing },
		doctor.NodeGone, doctor.Nodes, doctor.Warning, "no /dev/nvidiactl", "nvidia-modprobe -c 255"},
	{"graphics lacks nvidia-modeset", func(f *doctor.Facts) {
		f.Wish.Capabilities = []string{"compute", "graphics"}
		f.Container.Configured.Devices = append(f.Container.Configured.Devices, "/dev/nvidia-modeset")
	},
		doctor.NodeGone, doctor.Nodes, doctor.Fatal, "no /dev/nvidia-modeset", "nvidia-modprobe -m"},
	{"a node is stale", both(stopped, func(f *doctor.Facts) { f.Node.Shared[1].State = doctor.NodeStale }),
		doctor.StaleNode, doctor.Nodes, doctor.Fatal, "511:0", "nvidia-modprobe -u -c 0"},
	{"a file is where a node is to be", both(stopped, func(f *doctor.Facts) { f.Node.Shared[1].State = doctor.NodeNotADevice }),
		doctor.NoDevice, doctor.Nodes, doctor.Fatal, "no character device", "nvidia-modprobe -u -c 0"},
	{"a node is for root alone", func(f *doctor.Facts) { f.Node.GPUs[1].Nodes[0].Mode = 0o600 },
		doctor.NodeMode, doctor.Nodes, doctor.Fatal, "mode 0600", "chmod 666 /dev/nvidia0"},

	{"a divided card is assigned whole", func(f *doctor.Facts) { f.Node.GPUs[1].MIG = true },
		doctor.MIGWhole, doctor.MIG, doctor.Fatal, "list MIG devices", "assign one of its MIG devices"},
	{"the card is not divided any more", both(instance, func(f *doctor.Facts) { f.Node.GPUs[1].MIG, f.Node.GPUs[1].Devices = false, nil }),
		doctor.MIGOff, doctor.MIG, doctor.Fatal, "list no MIG device", "nvidia-smi -i 1 -mig 1"},
	{"the MIG device is gone", both(instance, func(f *doctor.Facts) { f.Node.GPUs[1].Devices[0].GI = 9 }),
		doctor.MIGGone, doctor.MIG, doctor.Fatal, "do not list it", "nvidia-smi mig -i 1 -cgi"},

	{"the fleet file does not name it", both(without, func(f *doctor.Facts) { f.Wish = nil }),
		doctor.NotInFleet, doctor.Assignment, doctor.Fatal, "no entry 901", "phoenix-cli apply 901"},
	{"nobody manages it", func(f *doctor.Facts) { f.Wish = nil },
		doctor.Unmanaged, doctor.Assignment, doctor.Warning, "no entry 901", "conf show 901"},
	{"the index is another card's", func(f *doctor.Facts) { f.Node.GPUs[0].Index, f.Node.GPUs[1].Index = 1, 0 },
		doctor.GPUMoved, doctor.Assignment, doctor.Fatal, "it was GPU-b in 0000:41:00.0; now it is GPU-a", "--accept-moved"},
	{"an index beyond the last", func(f *doctor.Facts) { f.Wish.GPUs[0] = doctor.Want{Text: "GPU 7", Index: 7} },
		doctor.NoSuchGPU, doctor.Assignment, doctor.Fatal, "GPU 0 (0000:01:00.0), GPU 1 (0000:41:00.0)", "gpu_assignment"},

	{"somebody has it for himself", func(f *doctor.Facts) {
		f.Wish.Errors = []string{"GPU 1 of node pve1 is CTID 900's alone (gpu_policy exclusive)"}
	},
		doctor.NotAssignable, doctor.Assignment, doctor.Fatal, "the fleet file assigns GPU 1", "gpu_policy"},

	{"it cannot be observed", problem("unreadable", "look at it"), doctor.Unreadable, doctor.Conf, doctor.Fatal, "line 7", "look at it"},
	{"both modes give it", both(stopped, problem("mode_conflict", "")), doctor.ModeConflict, doctor.Conf, doctor.Fatal, "line 7", "phoenix-cli apply 901"},
	{"the lines are at the end of the file", both(without, problem("entry_in_snapshot", "apply again then")),
		doctor.OnlyInSnapshot, doctor.Conf, doctor.Fatal, "line 7", "phoenix-cli apply 901"},
	{"the lines are pending", both(without, problem("entry_in_pending", "remove the lines")),
		doctor.OnlyInPending, doctor.Conf, doctor.Fatal, "line 7", "phoenix-cli apply 901"},
	{"the lines have no effect", both(without, problem("no_effect", "")), doctor.WithoutEffect, doctor.Conf, doctor.Fatal, "line 7", "phoenix-cli apply 901"},
	{"a node is missing that an apply makes", both(without, func(f *doctor.Facts) { f.Node.GPUs[1].Nodes[0].State = doctor.NodeMissing }),
		doctor.NotGiven, doctor.Conf, doctor.Fatal, "gives no NVIDIA device", "phoenix-cli apply 901"},
	{"nobody has applied", without, doctor.NotGiven, doctor.Conf, doctor.Fatal, "gives no NVIDIA device", "phoenix-cli apply 901"},
	{"it has one more than assigned", func(f *doctor.Facts) {
		f.Container.Configured.GPUs = append(f.Container.Configured.GPUs, doctor.Given{Index: 0, Minor: 1})
	}, doctor.GivesMore, doctor.Conf, doctor.Fatal, "901.conf of pve1 gives", "phoenix-cli apply 901"},
	{"a clone has the original's GPUs", both(noWish, func(f *doctor.Facts) { f.Wish.CloneFrom = 900 }),
		doctor.ClonedEntries, doctor.Conf, doctor.Fatal, "/dev/nvidia0", "phoenix-cli apply 901"},
	{"it has the device of a card that is gone", func(f *doctor.Facts) {
		f.Container.Configured.GPUs = append(f.Container.Configured.GPUs, doctor.Given{Index: -1, Minor: 5})
	}, doctor.GivesGone, doctor.Conf, doctor.Warning, "901.conf", "phoenix-cli apply 901"},
	{"it has only shared devices, and is to have none", both(noWish, opens(2, "absent", "ENOENT"), func(f *doctor.Facts) { f.Container.Configured.GPUs = nil }),
		doctor.GivesShared, doctor.Conf, doctor.Warning, "/dev/nvidiactl", "phoenix-cli apply 901"},
	{"the other mode", func(f *doctor.Facts) { f.Container.Configured.Mode = "native" },
		doctor.OtherMode, doctor.Conf, doctor.Warning, "native mode, the fleet file says raw", "phoenix-cli apply 901"},
	{"graphics was asked for later", func(f *doctor.Facts) {
		f.Wish.Capabilities, f.Container.Configured.Capabilities = []string{"compute", "graphics"}, []string{"compute"}
	}, doctor.LacksUse, doctor.Conf, doctor.Fatal, "devices for compute", "phoenix-cli apply 901"},
	{"graphics was asked for before", func(f *doctor.Facts) {
		f.Wish.Capabilities, f.Container.Configured.Capabilities = []string{"compute"}, []string{"compute", "graphics"}
	}, doctor.MoreUses, doctor.Conf, doctor.Warning, "devices for compute, graphics", "phoenix-cli apply 901"},
	{"another host's major", both(privileged, problem("wrong_major", "")), doctor.WrongMajor, doctor.Conf, doctor.Fatal, "line 7", "phoenix-cli apply 901"},
	{"another host's major, unprivileged", problem("wrong_major", ""), doctor.WrongMajor, doctor.Conf, doctor.Warning, "line 7", "phoenix-cli apply 901"},
	{"a wildcard", both(privileged, problem("wildcard_rule", "")), doctor.Wildcard, doctor.Conf, doctor.Fatal, "line 7", "phoenix-cli apply 901"},
	{"a wildcard, unprivileged", problem("wildcard_rule", ""), doctor.Wildcard, doctor.Conf, doctor.Warning, "line 7", "phoenix-cli apply 901"},
	{"a rule too many", both(privileged, problem("mount_missing", "")), doctor.RuleAlone, doctor.Conf, doctor.Fatal, "line 7", "phoenix-cli apply 901"},
	{"a rule too few", both(privileged, problem("rule_missing", "")), doctor.RuleMissing, doctor.Conf, doctor.Fatal, "line 7", "phoenix-cli apply 901"},
	{"no nvidia-uvm", problem("control_device_not_given", ""), doctor.ControlMissing, doctor.Conf, doctor.Fatal, "901.conf", "phoenix-cli apply 901"},
	{"a device that the node lacks keeps it from starting", both(stopped, problem("device_gone", "")),
		doctor.DeviceGone, doctor.Conf, doctor.Fatal, "line 7", "phoenix-cli apply 901"},
	{"a line that keeps it from starting", both(stopped, problem("invalid_line", "correct the line")),
		doctor.InvalidLine, doctor.Conf, doctor.Fatal, "line 7", "correct the line"},
	{"twice", problem("duplicate_entry", ""), doctor.Duplicate, doctor.Conf, doctor.Warning, "line 7", "phoenix-cli apply 901"},
	{"a line without effect", problem("no_effect", ""), doctor.NoEffect, doctor.Conf, doctor.Warning, "line 7", "phoenix-cli apply 901"},
	{"a hidden line", problem("hidden_line", "find out who wrote it"), doctor.HiddenLine, doctor.Conf, doctor.Warning, "line 7", "find out who"},
	{"an old snapshot", problem("entry_in_snapshot", "apply again then"), doctor.SnapshotEntries, doctor.Conf, doctor.Warning, "line 7", "apply again then"},
	{"pending entries", problem("entry_in_pending", "remove the lines"), doctor.PendingEntries, doctor.Conf, doctor.Warning, "line 7", "remove the lines"},
	{"privileged", both(privileged, problem("privileged", "make it unprivileged")), doctor.Privileged, doctor.Conf, doctor.Warning, "line 7", "make it unprivileged"},

	{"a template", both(stopped, func(f *doctor.Facts) { f.Container.Template = true }), doctor.Template, doctor.Running, doctor.Fatal, "template: 1", "pct clone 901"},
	{"locked while down", both(stopped, func(f *doctor.Facts) { f.Container.Lock = "backup" }), doctor.Locked, doctor.Running, doctor.Fatal, "lock: backup", "pct unlock 901"},
	{"stopped", stopped, doctor.Stopped, doctor.Running, doctor.Fatal, "LXC of pve1 says stopped", "phoenix-cli apply --start 901"},
	{"frozen", func(f *doctor.Facts) { f.Container.State = "frozen" }, doctor.Frozen, doctor.Running, doctor.Fatal, "frozen", "lxc-unfreeze -n 901"},
	{"starting", func(f *doctor.Facts) { f.Container.State = "starting" }, doctor.InTransition, doctor.Running, doctor.Fatal, "starting", "again"},
	{"locked while it runs", func(f *doctor.Facts) { f.Container.Lock = "backup" }, doctor.LockedRunning, doctor.Running, doctor.Warning, "lock: backup", "pct unlock 901"},
	{"applied, not restarted", func(f *doctor.Facts) { f.Container.RestartPending, f.Container.Effective = true, &doctor.Passthrough{} },
		doctor.RestartPending, doctor.Running, doctor.Fatal, "it has no NVIDIA device; its conf gives /dev/nvidia-uvm", "phoenix-cli restart 901"},

	{"a MIG device by a UUID that is gone", both(instance, func(f *doctor.Facts) {
		f.Wish.GPUs[0] = doctor.Want{Text: "MIG-z", MIGUUID: "MIG-z", Index: -1, PCI: "0000:41:00.0", MIG: &doctor.Instance{GI: -1, CI: -1}}
	}), doctor.MIGGone, doctor.MIG, doctor.Fatal, "do not list it", "nvidia-smi mig -i 1 -cgi"},
	{"a card by a UUID that no node has", func(f *doctor.Facts) { f.Wish.GPUs[0] = doctor.Want{Text: "GPU-z", UUID: "GPU-z", Index: -1} },
		doctor.NoSuchGPU, doctor.Assignment, doctor.Fatal, "GPU 1 (0000:41:00.0)", "gpu_assignment"},
	{"a card by its UUID that is on vfio now", func(f *doctor.Facts) {
		f.Wish.GPUs[0] = doctor.Want{Text: "GPU-b", UUID: "GPU-b", Index: -1, Was: &doctor.AppliedGPU{UUID: "GPU-b", PCI: "0000:41:00.0"}}
		f.Node.GPUs[1].Driver, f.Node.GPUs[1].Index, f.Node.GPUs[1].UUID = "vfio-pci", -1, ""
	}, doctor.BoundVFIO, doctor.Driver, doctor.Fatal, "0000:41:00.0/driver is vfio-pci", "grep hostpci"},

	{"nothing can be run inside", func(f *doctor.Facts) { f.Probe = &doctor.Probe{Err: "lxc-attach says no"} },
		doctor.ProbeFailed, doctor.Devices, doctor.Fatal, "lxc-attach says no", "lxc-attach -n 901"},
	{"the other GPU opens", opens(4, "opened", ""), doctor.Leak, doctor.Devices, doctor.Fatal, "/dev/nvidia1 inside: opened", "allows too much"},
	{"another MIG device opens", both(instance, func(f *doctor.Facts) {
		f.Probe.Results = append(f.Probe.Results, doctor.Probed{Path: "/dev/nvidia-caps/nvidia-cap30", GPU: 1, MIG: &doctor.Instance{GI: 3, CI: -1}, Outcome: "opened"})
	}), doctor.Leak, doctor.Devices, doctor.Fatal, "nvidia-cap30 inside: opened", "allows too much"},
	{"no driver answers", opens(2, "no driver", "ENXIO"), doctor.NoDriver, doctor.Devices, doctor.Fatal, "no driver (ENXIO)", "dmesg"},
	{"EPERM", opens(0, "denied", "EPERM"), doctor.Denied, doctor.Devices, doctor.Fatal, "/dev/nvidia-uvm inside: denied (EPERM)", "phoenix-cli apply 901"},
	{"EPERM of a device that the conf gives besides", func(f *doctor.Facts) {
		f.Probe.Results = append(f.Probe.Results, doctor.Probed{Path: "/dev/nvidia-modeset", GPU: -1, Expected: true, Outcome: "denied", Errno: "EPERM"})
	}, doctor.Denied, doctor.Devices, doctor.Fatal, "/dev/nvidia-modeset inside", "phoenix-cli apply 901"},
	{"EACCES", opens(2, "no permission", "EACCES"), doctor.NoPermission, doctor.Devices, doctor.Fatal, "EACCES", "chmod 666 /dev/nvidia0"},
	{"ENOENT", opens(2, "absent", "ENOENT"), doctor.Absent, doctor.Devices, doctor.Fatal, "ENOENT", "phoenix-cli restart 901"},
	{"a ghost", both(opens(0, "not a device", ""), problem("ghost_file", ""), func(f *doctor.Facts) { f.Container.RestartPending = true }),
		doctor.Ghost, doctor.Devices, doctor.Fatal, "/dev/nvidia-uvm inside: not a device", "phoenix-cli restart 901"},
	{"the module was loaded anew", both(opens(0, "wrong number", ""), func(f *doctor.Facts) {
		f.Container.RestartPending, f.Probe.Results[0].Major = true, 510
	}), doctor.OldNumbers, doctor.Devices, doctor.Fatal, "it is 510:0 inside", "phoenix-cli restart 901"},
	{"the driver hangs", opens(2, "timeout", ""), doctor.Hangs, doctor.Devices, doctor.Fatal, "timeout", "dmesg"},
	{"EIO", opens(2, "failed", "EIO"), doctor.OpenFailed, doctor.Devices, doctor.Fatal, "EIO", "dmesg"},

	{"Docker that would change the cgroup", func(f *doctor.Facts) {
		f.Docker.Config = "[nvidia-container-cli]\n#no-cgroups = true\nno-cgroups = false # default\n"
	}, doctor.DockerCgroups, doctor.Devices, doctor.Warning, "no no-cgroups = true", "nvidia-ctk config"},
	{"Docker with the spec of an older driver", func(f *doctor.Facts) {
		f.Docker.CDI = "    - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.148.08\n      hostPath: /usr/lib/libcuda.so.1\n"
	}, doctor.StaleCDI, doctor.Devices, doctor.Warning, "libraries of 570.148.08", "nvidia-ctk cdi generate"},

	{"Alpine", func(f *doctor.Facts) { f.Driver.Libc = "musl" }, doctor.Musl, doctor.UserSpace, doctor.Fatal, "musl", "glibc"},
	{"no C library", func(f *doctor.Facts) { f.Driver = &doctor.UserDriver{Libc: "none", State: "none"} },
		doctor.NoLibc, doctor.UserSpace, doctor.Fatal, "no loader", "glibc"},
	{"the distribution's driver", func(f *doctor.Facts) { f.Driver.Packages = []string{"libnvidia-compute-580"} },
		doctor.Packaged, doctor.UserSpace, doctor.Warning, "libnvidia-compute-580", "apt-get purge libnvidia-compute-580"},
	{"no driver inside", func(f *doctor.Facts) { f.Driver = &doctor.UserDriver{Libc: "glibc", State: "none"} },
		doctor.NoUserSpace, doctor.UserSpace, doctor.Fatal, "no libnvidia-ml.so", "installs 580.105.08"},
	{"another version inside", func(f *doctor.Facts) { f.Driver.Version = "580.95.05" },
		doctor.VersionMismatch, doctor.UserSpace, doctor.Fatal, "libnvidia-ml.so.580.95.05", "installs 580.105.08"},
	{"another version that Phoenix did not install", func(f *doctor.Facts) { f.Driver.Version, f.Wish.Driver = "580.95.05", false },
		doctor.VersionMismatch, doctor.UserSpace, doctor.Fatal, "libnvidia-ml.so.580.95.05", "give it the feature nvidia"},
	{"half an installation", func(f *doctor.Facts) { f.Driver.State, f.Driver.Broken = "incomplete", []string{"libcuda.so.1"} },
		doctor.Incomplete, doctor.UserSpace, doctor.Fatal, "libcuda.so.1", "phoenix-cli apply 901"},

	{"nvidia-smi fails", func(f *doctor.Facts) {
		f.Check = &doctor.DriverCheck{SMIError: "nvidia-smi -L: status 9: no driver"}
	},
		doctor.SMIFails, doctor.SMI, doctor.Fatal, "status 9", "--verify"},
	{"nvidia-smi misses it", func(f *doctor.Facts) { f.Check.UUIDs, f.Check.Missing = nil, []string{"GPU-b"} },
		doctor.SMIMissing, doctor.SMI, doctor.Fatal, "lists none", "phoenix-cli probe 901"},
	{"nvidia-smi lists more", func(f *doctor.Facts) {
		f.Check.UUIDs, f.Check.Unexpected = []string{"GPU-a", "GPU-b"}, []string{"GPU-a"}
	},
		doctor.SMIMore, doctor.SMI, doctor.Fatal, "GPU-a, GPU-b", "allows too much"},
	{"cuInit fails", func(f *doctor.Facts) { f.Check.CUDAResult = 999 },
		doctor.CUDAFails, doctor.CUDA, doctor.Fatal, "999 (CUDA_ERROR_UNKNOWN)", "nvidia-uvm must open"},
}

// Each fault is told as what it is: it stands first, and nothing that is broken besides.
func TestFaults(t *testing.T) {
	for _, tt := range faults {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy()
			tt.change(&f)
			d := doctor.Examine(f)
			if len(d.Findings) == 0 {
				t.Fatal("nothing was found")
			}
			got := d.Findings[0]
			if got.Fault != tt.fault || got.Link != tt.link || got.Severity != tt.kind {
				t.Errorf("found first %s (%s, %s), want %s (%s, %s): %s", got.Fault, got.Link, got.Severity, tt.fault, tt.link, tt.kind, got.Message)
			}
			if !strings.Contains(got.Proof, tt.proof) || !strings.Contains(got.Remedy, tt.remedy) || got.Message == "" {
				t.Errorf("%s\nproof %q, want %q in it\nremedy %q, want %q in it", got.Message, got.Proof, tt.proof, got.Remedy, tt.remedy)
			}
			_, broken := d.Cause()
			if broken != (tt.kind == doctor.Fatal) {
				t.Errorf("broken is %v: %v", broken, d.Findings)
			}
			for _, l := range d.Links {
				switch {
				case l.Kind == tt.link && broken:
					if l.State != doctor.Broken {
						t.Errorf("link %s is %s", l.Kind, l.State)
					}
				case l.State == doctor.Broken:
					t.Errorf("link %s is broken too: %s", l.Kind, l.Proof)
				}
			}
		})
	}
}

// On what is as it should be there is nothing to find, and every link says what it saw.
func TestHealthy(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*doctor.Facts)
		notOK  map[doctor.Kind]doctor.State // those that are not OK
	}{
		{"a whole GPU", func(*doctor.Facts) {}, map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable}},
		{"a MIG device", instance, nil},
		{"native", func(f *doctor.Facts) { f.Wish.Mode, f.Container.Configured.Mode = "native", "native" }, map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable}},
		{"a sandbox has no driver", both(opens(2, "no driver", "ENXIO"), func(f *doctor.Facts) { f.Node.Sandbox = true }),
			map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable}},
		{"an application's error", both(xid(31, "application"), func(f *doctor.Facts) { f.Node.GPUs[1].Health.Fault = false }),
			map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable}},
		{"another's card is on vfio", func(f *doctor.Facts) {
			f.Node.GPUs = append(f.Node.GPUs, doctor.GPU{Index: -1, PCI: "0000:81:00.0", Minor: -1, Driver: "vfio-pci"})
		}, map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable}},
		{"its card's DRM node is not there", func(f *doctor.Facts) {
			f.Probe.Results = append(f.Probe.Results, doctor.Probed{Path: "/dev/dri/card1", GPU: 1, Outcome: "absent", Errno: "ENOENT"})
		}, map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable}},
		{"Docker that leaves the cgroup alone", func(f *doctor.Facts) {
			f.Docker = doctor.Docker{Config: "x = 1\n[nvidia-container-cli]\nno-cgroups = true\n", CDI: "/usr/lib/libcuda.so.580.105.08\n"}
		}, map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable}},
		{"Docker with CDI", func(f *doctor.Facts) { f.Docker.Config = "[nvidia-container-runtime]\n  mode = \"cdi\"\n" },
			map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable}},
		{"Docker in a privileged container", func(f *doctor.Facts) { f.Docker.Config, f.Container.Unprivileged = "[nvidia-container-cli]\n", false },
			map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable}},
		{"no driver is asked for", func(f *doctor.Facts) {
			f.Wish.Driver, f.Driver, f.Check = false, &doctor.UserDriver{Libc: "none", State: "none"}, nil
		}, map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable, doctor.UserSpace: doctor.NotApplicable, doctor.SMI: doctor.NotApplicable, doctor.CUDA: doctor.NotApplicable}},
		{"an agent that does not know the driver", func(f *doctor.Facts) { f.Driver, f.Check = nil, nil },
			map[doctor.Kind]doctor.State{doctor.MIG: doctor.NotApplicable, doctor.UserSpace: doctor.NotExamined, doctor.SMI: doctor.NotExamined, doctor.CUDA: doctor.NotExamined}},
		{"no GPU is assigned", both(noWish, without, opens(2, "absent", "ENOENT")), map[doctor.Kind]doctor.State{
			doctor.Card: doctor.NotApplicable, doctor.Driver: doctor.NotApplicable, doctor.Health: doctor.NotApplicable, doctor.Nodes: doctor.NotApplicable,
			doctor.MIG: doctor.NotApplicable, doctor.UserSpace: doctor.NotApplicable, doctor.SMI: doctor.NotApplicable, doctor.CUDA: doctor.NotApplicable,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := healthy()
			tt.change(&f)
			d := doctor.Examine(f)
			if len(d.Findings) > 0 {
				t.Errorf("found %+v", d.Findings)
			}
			notOK := map[doctor.Kind]doctor.State{}
			for _, l := range d.Links {
				if l.State != doctor.OK {
					notOK[l.Kind] = l.State
				}
				if l.Proof == "" {
					t.Errorf("link %s has no proof", l.Kind)
				}
			}
			if tt.notOK == nil {
				tt.notOK = map[doctor.Kind]doctor.State{}
			}
			if diff := cmp.Diff(tt.notOK, notOK); diff != "" {
				t.Errorf("links that are not ok (-want +got):\n%s", diff)
			}
		})
	}
}

// Every fault has a row above and one in docs/doctor.md, with its link and whether it is broken, a warning, or either.
func TestEveryFault(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			name, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			known[name] = true
		}
		return true
	})
	if len(known) < 25 {
		t.Fatalf("only %d faults", len(known))
	}
	links, kinds := map[string]string{}, map[string]map[string]bool{}
	for _, tt := range faults {
		name := string(tt.fault)
		links[name] = string(tt.link)
		if kinds[name] == nil {
			kinds[name] = map[string]bool{}
		}
		kinds[name][string(tt.kind)] = true
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(known)), slices.Sorted(maps.Keys(links))); diff != "" {
		t.Errorf("faults (-that there are +that rows show):\n%s", diff)
	}
	b, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z -]+) \\| ([a-z ]+) \\| .").FindAllStringSubmatch(string(b), -1) {
		documented[m[1]] = m[2]
		for kind := range kinds[m[1]] {
			if !strings.Contains(m[3], kind) {
				t.Errorf("docs/doctor.md says that %s is %s; a row shows that it may be %s", m[1], m[3], kind)
			}
		}
	}
	if diff := cmp.Diff(links, documented); diff != "" {
		t.Errorf("faults and their links (-rows +docs/doctor.md):\n%s", diff)
	}
}
