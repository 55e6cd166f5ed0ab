package gpu_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
	"phoenix.internal/agent/gpu"
)

// want is what a scan of newGPUHost gives.
func want() *gpu.Inventory {
	return &gpu.Inventory{
		DriverVersion:    "580.105.08",
		OpenKernelModule: true,
		Majors:           map[string]int{"mem": 1, "nvidia": 195, "nvidiactl": 195, "nvidia-caps": 234, "nvidia-caps-imex-channels": 235, "nvidia-uvm": 511},
		GPUs: []gpu.GPU{
			{Index: 0, UUID: uuidA, PCIAddress: "0000:01:00.0", Minor: 1, Model: "NVIDIA GeForce RTX 5060 Ti", Driver: "nvidia", NUMANode: 1,
				Nodes: []gpu.DeviceNode{{Path: "/dev/nvidia1", Major: 195, Minor: 1, Mode: 0o666}}},
			{Index: 1, UUID: uuidB, PCIAddress: "0000:81:00.0", Minor: 0, Model: "NVIDIA GeForce RTX 5060 Ti", Driver: "nvidia", NUMANode: 1,
				Nodes: []gpu.DeviceNode{{Path: "/dev/nvidia0", Major: 195, Minor: 0, Mode: 0o666}}},
		},
		Shared: []gpu.DeviceNode{
			{Path: "/dev/nvidia-modeset", Major: 195, Minor: 254, Mode: 0o666},
			{Path: "/dev/nvidia-uvm", Major: 511, Minor: 0, Mode: 0o666},
			{Path: "/dev/nvidia-uvm-tools", Major: 511, Minor: 1, Mode: 0o666},
			{Path: "/dev/nvidiactl", Major: 195, Minor: 255, Mode: 0o666},
		},
		Fabric: []gpu.DeviceNode{{Path: "/dev/nvidia-caps-imex-channels/channel0", Major: 235, State: gpu.Missing}},
	}
}

// anySource leaves the sources out of a comparison; TestSources has them.
var anySource = cmpopts.IgnoreFields(gpu.GPU{}, "Sources")

func TestScan(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(h *host)
		want   func(inv *gpu.Inventory)
	}{
		{"minors swapped against PCI order", func(*host) {}, func(*gpu.Inventory) {}},
		{"closed module with a version of two parts", func(h *host) {
			h.file("proc/driver/nvidia/version", closedVersion)
		}, func(inv *gpu.Inventory) {
			inv.DriverVersion, inv.OpenKernelModule = "535.161", false
		}},
		{"version with a suffix, from /sys", func(h *host) {
			h.remove("proc/driver/nvidia/version")
			h.file("sys/module/nvidia/version", "570.148.08-grid\n")
		}, func(inv *gpu.Inventory) {
			inv.DriverVersion, inv.OpenKernelModule = "570.148.08", false
		}},
		{"other devices on the bus", func(h *host) {
			h.pci("0000:01:00.1", "snd_hda_intel")
			h.file("sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")
			h.pci("0000:05:00.0", "amdgpu")
			h.file("sys/bus/pci/devices/0000:05:00.0/vendor", "0x1002\n")
		}, func(*gpu.Inventory) {}},
		{"first GPU on vfio-pci: the other is index 0", func(h *host) {
			h.remove("sys/bus/pci/devices/0000:01:00.0")
			h.remove("proc/driver/nvidia/gpus/0000:01:00.0")
			h.pci("0000:01:00.0", "vfio-pci")
		}, func(inv *gpu.Inventory) {
			inv.GPUs[0] = gpu.GPU{Index: -1, PCIAddress: "0000:01:00.0", Minor: -1, Driver: "vfio-pci", NUMANode: 1}
			inv.GPUs[1].Index = 0
		}},
		{"first GPU without a driver, NUMA node unknown", func(h *host) {
			h.remove("sys/bus/pci/devices/0000:01:00.0")
			h.remove("proc/driver/nvidia/gpus/0000:01:00.0")
			h.pci("0000:01:00.0", "")
			h.file("sys/bus/pci/devices/0000:01:00.0/numa_node", "-1\n")
		}, func(inv *gpu.Inventory) {
			inv.GPUs[0] = gpu.GPU{Index: -1, PCIAddress: "0000:01:00.0", Minor: -1, Driver: "none", NUMANode: -1}
			inv.GPUs[1].Index = 0
		}},
		{"first GPU fell off the bus: the other keeps its index", func(h *host) {
			h.remove("proc/driver/nvidia/gpus/0000:01:00.0")
		}, func(inv *gpu.Inventory) {
			inv.GPUs[0] = gpu.GPU{Index: 0, PCIAddress: "0000:01:00.0", Minor: -1, Driver: "nvidia", NUMANode: 1}
			inv.Problems = []string{"GPU 0000:01:00.0 is bound to nvidia, but the driver does not list it: it did not initialise or fell off the bus (see the kernel's log)."}
		}},
		{"excluded GPU has no index", func(h *host) {
			h.information("0000:01:00.0", "GPU UUID: "+uuidA+"\nDevice Minor: 1\nGPU Excluded: Yes\n")
		}, func(inv *gpu.Inventory) {
			inv.GPUs[0].Index, inv.GPUs[0].Model = -1, ""
			inv.GPUs[1].Index = 0
			inv.Problems = []string{"GPU 0000:01:00.0 is excluded from use by the driver's parameter NVreg_ExcludedGpus."}
		}},
		{"known to the driver, not on the bus", func(h *host) {
			h.remove("sys/bus")
		}, func(inv *gpu.Inventory) {
			inv.GPUs[0].NUMANode, inv.GPUs[1].NUMANode = -1, -1
		}},
		{"GPU that was never initialised", func(h *host) {
			h.information("0000:81:00.0", "Model: \t\t Unknown\nGPU UUID: \t GPU-????????-????-????-????-????????????\nVideo BIOS: \t ??.??.??.??.??\nDevice Minor: \t 0\n")
		}, func(inv *gpu.Inventory) {
			inv.GPUs[1].UUID, inv.GPUs[1].Model = "", "Unknown"
		}},
		{"information of an old driver: no UUID, no minor, unknown keys, CRLF", func(h *host) {
			h.information("0000:81:00.0", "Card Type: \t Tesla\r\nModel: \t Tesla K80\r\n: \r\nGPU UUID\r\nIRQ")
		}, func(inv *gpu.Inventory) {
			inv.GPUs[1] = gpu.GPU{Index: 1, PCIAddress: "0000:81:00.0", Minor: -1, Model: "Tesla K80", Driver: "nvidia", NUMANode: 1}
		}},
		{"empty information", func(h *host) {
			h.information("0000:81:00.0", "")
		}, func(inv *gpu.Inventory) {
			inv.GPUs[1] = gpu.GPU{Index: 1, PCIAddress: "0000:81:00.0", Minor: -1, Driver: "nvidia", NUMANode: 1}
		}},
		{"UUID in upper case, minor out of range", func(h *host) {
			h.information("0000:81:00.0", information("GPU-AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE", "255"))
		}, func(inv *gpu.Inventory) {
			inv.GPUs[1].Minor, inv.GPUs[1].Nodes = -1, nil
		}},
		{"two GPUs with one minor", func(h *host) {
			h.information("0000:81:00.0", information(uuidB, "1"))
		}, func(inv *gpu.Inventory) {
			inv.GPUs[1].Minor, inv.GPUs[1].Nodes = 1, inv.GPUs[0].Nodes
			inv.Problems = []string{"GPUs 0000:01:00.0 and 0000:81:00.0 have the same minor number 1."}
		}},
		{"driver before the 550 branch", func(h *host) {
			h.file("proc/devices", "Character devices:\n195 nvidia-frontend\n243 nvidia-uvm\n")
			h.remove("dev/nvidia-uvm")
			h.remove("dev/nvidia-uvm-tools")
			h.node("nvidia-uvm", 243, 0)
			h.node("nvidia-uvm-tools", 243, 1)
		}, func(inv *gpu.Inventory) {
			inv.Majors = map[string]int{"nvidia": 195, "nvidia-frontend": 195, "nvidia-uvm": 243}
			inv.Fabric = nil
			inv.Shared[1].Major, inv.Shared[2].Major = 243, 243
		}},
		{"nodes that are no devices", func(h *host) {
			h.remove("dev/nvidia0")
			h.remove("dev/nvidia1")
			h.remove("dev/nvidiactl")
			h.file("dev/nvidia0", "")
			h.must(os.Symlink("nvidia-uvm", filepath.Join(h.root, "dev/nvidia1")))
			h.must(os.Mkdir(filepath.Join(h.root, "dev/nvidiactl"), 0o700))
		}, func(inv *gpu.Inventory) {
			inv.GPUs[0].Nodes[0].State, inv.GPUs[0].Nodes[0].Mode = gpu.NotADevice, 0o777
			inv.GPUs[1].Nodes[0].State, inv.GPUs[1].Nodes[0].Mode = gpu.NotADevice, 0o755
			inv.Shared[3].State, inv.Shared[3].Mode = gpu.NotADevice, 0o700
			inv.Problems = []string{
				"/dev/nvidia1 is not a character device.",
				"/dev/nvidia0 is not a character device.",
				"/dev/nvidiactl is not a character device.",
			}
		}},
		{"nvidia-modeset is not needed", func(h *host) {
			h.remove("dev/nvidia-modeset")
		}, func(inv *gpu.Inventory) {
			inv.Shared[0].State, inv.Shared[0].Mode = gpu.Missing, 0
		}},
		{"driver not loaded", func(h *host) {
			h.file("proc/devices", "Character devices:\n  1 mem\n\nBlock devices:\n195 nvidia\n")
			h.remove("proc/driver")
			h.remove("dev")
			h.remove("sys")
			h.pci("0000:01:00.0", "nouveau")
		}, func(inv *gpu.Inventory) {
			*inv = gpu.Inventory{
				Majors: map[string]int{"mem": 1},
				GPUs:   []gpu.GPU{{Index: -1, PCIAddress: "0000:01:00.0", Minor: -1, Driver: "nouveau", NUMANode: 1}},
				Shared: []gpu.DeviceNode{
					{Path: "/dev/nvidia-modeset", Major: 195, Minor: 254, State: gpu.Missing},
					{Path: "/dev/nvidia-uvm", Major: -1, Minor: 0, State: gpu.Missing},
					{Path: "/dev/nvidia-uvm-tools", Major: -1, Minor: 1, State: gpu.Missing},
					{Path: "/dev/nvidiactl", Major: 195, Minor: 255, State: gpu.Missing},
				},
				Problems: []string{"The nvidia driver is not loaded."},
			}
		}},
		{"no GPU at all", func(h *host) {
			h.file("proc/devices", "Character devices:\n  1 mem\n")
			h.remove("proc/driver")
			h.remove("dev")
			h.remove("sys")
		}, func(inv *gpu.Inventory) {
			*inv = gpu.Inventory{Majors: map[string]int{"mem": 1}}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			test.change(h)
			want := want()
			test.want(want)
			if diff := cmp.Diff(want, h.scan(), anySource); diff != "" {
				t.Errorf("inventory (-want +got):\n%s", diff)
			}
		})
	}
}

func TestScanOrder(t *testing.T) {
	h := newHost(t)
	for _, address := range []string{"10000:01:00.0", "0000:81:00.0", "0000:0a:00.0", "0001:01:00.0"} {
		h.pci(address, "nvidia")
	}
	var got []string
	for _, gpu := range h.scan().GPUs {
		got = append(got, gpu.PCIAddress)
	}
	want := []string{"0000:0a:00.0", "0000:81:00.0", "0001:01:00.0", "10000:01:00.0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of the GPUs (-want +got):\n%s", diff)
	}
}

func TestScanErrors(t *testing.T) {
	h := newHost(t)
	h.remove("proc/devices")
	if _, err := h.scanner().Scan(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("scan without /proc/devices: %v, want a missing file", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newHost(t).scanner().Scan(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("scan after cancellation: %v, want context.Canceled", err)
	}
}

// Failure 3: c 243:* rwm hard-coded for nvidia-uvm.
func TestFailure03MajorIsTheKernels(t *testing.T) {
	for _, test := range []struct {
		name, devices string
		want          int
	}{
		{"of one kernel", "Character devices:\n195 nvidia\n243 nvidia-uvm\n", 243},
		{"of another", "Character devices:\n195 nvidia\n511 nvidia-uvm\n", 511},
		{"longer names first", "Character devices:\n195 nvidia\n240 nvidia-uvm-tools\n241 xnvidia-uvm\n242 nvidia-uvm2\n238 nvidia-uvm\n", 238},
		{"block device of that name", "Character devices:\n195 nvidia\n238 nvidia-uvm\n\nBlock devices:\n243 nvidia-uvm\n", 238},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			h.file("proc/devices", test.devices)
			inv := h.scan()
			if got := inv.Shared[1]; got.Path != "/dev/nvidia-uvm" || got.Major != test.want {
				t.Errorf("%q: %s has major %d, want /dev/nvidia-uvm with %d", test.devices, got.Path, got.Major, test.want)
			}
		})
	}
}

// Failure 10: after a reboot or an upgrade /dev/nvidia-uvm is missing until something uses CUDA, and
// majors have changed.
func TestFailure10AfterReboot(t *testing.T) {
	for _, test := range []struct {
		name     string
		change   func(h *host)
		problems []string
		created  []string
	}{
		{"nvidia-uvm loaded but without nodes", func(h *host) {
			h.remove("dev/nvidia-uvm")
			h.remove("dev/nvidia-uvm-tools")
		}, []string{
			"Device node /dev/nvidia-uvm is missing.",
			"Device node /dev/nvidia-uvm-tools is missing.",
		}, []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}},
		{"nvidia-uvm not loaded", func(h *host) {
			h.remove("dev/nvidia-uvm")
			h.remove("dev/nvidia-uvm-tools")
			h.file("proc/devices", "Character devices:\n195 nvidia\n")
			h.file("modprobe", "#!/bin/sh\n[ \"$*\" = nvidia-uvm ] && echo 511 nvidia-uvm >>"+h.root+"/proc/devices\n")
		}, []string{
			"The module nvidia-uvm is not loaded, so CUDA does not work.",
			"Device node /dev/nvidia-uvm is missing.",
			"Device node /dev/nvidia-uvm-tools is missing.",
		}, []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}},
		{"major changed", func(h *host) {
			h.file("proc/devices", "Character devices:\n195 nvidia\n509 nvidia-uvm\n")
		}, []string{
			"Device node /dev/nvidia-uvm is stale: its numbers are not 509:0.",
			"Device node /dev/nvidia-uvm-tools is stale: its numbers are not 509:1.",
		}, []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}},
		{"no node at all", func(h *host) {
			h.remove("dev")
			h.must(os.Mkdir(filepath.Join(h.root, "dev"), 0o755))
		}, []string{
			"Device node /dev/nvidia1 is missing.",
			"Device node /dev/nvidia0 is missing.",
			"Device node /dev/nvidia-uvm is missing.",
			"Device node /dev/nvidia-uvm-tools is missing.",
			"Device node /dev/nvidiactl is missing.",
		}, []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			test.change(h)
			if diff := cmp.Diff(test.problems, h.scan().Problems); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			created, err := h.scanner().Prepare(t.Context(), minors(0, 1))
			if diff := cmp.Diff(test.created, created); err != nil || diff != "" {
				t.Errorf("prepare: %v, created (-want +got):\n%s", err, diff)
			}
			inv := h.scan()
			if len(inv.Problems) != 0 {
				t.Errorf("problems after prepare: %q, want none", inv.Problems)
			}
			for _, n := range inv.Shared[1:3] {
				var st unix.Stat_t
				h.must(unix.Stat(filepath.Join(h.root, n.Path), &st))
				if got, want := int(unix.Major(st.Rdev)), inv.Majors["nvidia-uvm"]; got != want || st.Mode != unix.S_IFCHR|0o666 {
					t.Errorf("%s has major %d and mode %o, want %d and %o", n.Path, got, st.Mode, want, unix.S_IFCHR|0o666)
				}
			}
			if created, err := h.scanner().Prepare(t.Context(), minors(0, 1)); err != nil || created != nil {
				t.Errorf("second prepare: %q, %v, want nothing created", created, err)
			}
		})
	}
}
