package gpu_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"phoenix.internal/agent/gpu"
)

func TestScanMIG(t *testing.T) {
	h := newGPUHost(t)
	h.mig()
	h.node("nvidia-caps/nvidia-cap147", 234, 147)
	h.node("nvidia-caps/nvidia-cap148", 233, 148)
	h.must(os.Chmod(filepath.Join(h.root, "dev/nvidia-caps/nvidia-cap147"), 0o444))
	inv := h.scan()
	caps := func(n string, minor int, mode os.FileMode, state gpu.NodeState) gpu.DeviceNode {
		return gpu.DeviceNode{Path: "/dev/nvidia-caps/nvidia-cap" + n, Major: 234, Minor: minor, Mode: mode, State: state}
	}
	gi1 := caps("147", 147, 0o444, gpu.OK)
	want := []gpu.MIGDevice{
		{Index: -1, Instance: gpu.Instance{GPU: 1, Compute: 0}, Nodes: []gpu.DeviceNode{gi1, caps("148", 148, 0o666, gpu.Stale)}},
		{Index: -1, Instance: gpu.Instance{GPU: 1, Compute: 2}, Nodes: []gpu.DeviceNode{gi1, caps("150", 150, 0, gpu.Missing)}},
		{Index: -1, Instance: gpu.Instance{GPU: 13, Compute: 0}, Nodes: []gpu.DeviceNode{caps("255", 255, 0, gpu.Missing), caps("256", 256, 0, gpu.Missing)}},
	}
	if diff := cmp.Diff(want, inv.GPUs[0].MIG); diff != "" || !inv.GPUs[0].MIGEnabled {
		t.Errorf("MIG enabled %v; MIG devices (-want +got):\n%s", inv.GPUs[0].MIGEnabled, diff)
	}
	if g := inv.GPUs[1]; g.MIGEnabled || g.MIG != nil {
		t.Errorf("the undivided GPU has MIG %v, %v", g.MIGEnabled, g.MIG)
	}
	// A missing node is made at its first use; a stale one is in the way.
	if diff := cmp.Diff([]string{"Device node /dev/nvidia-caps/nvidia-cap148 is stale: its numbers are not 234:148."}, inv.Problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestScanGraphics(t *testing.T) {
	h := newGPUHost(t)
	const drm = "sys/bus/pci/devices/0000:81:00.0/drm/"
	h.file(drm+"renderD129/dev", "226:129\n")
	h.file(drm+"card1/dev", "226:1\n")
	h.file(drm+"card1-DP-1/dev", "226:7\n")
	h.file(drm+"card2/dev", "no number\n")
	// Another vendor's card: not ours.
	h.pci("0000:00:02.0", "i915")
	h.file("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086\n")
	h.file("sys/bus/pci/devices/0000:00:02.0/drm/renderD128/dev", "226:128\n")
	h.node("dri/renderD129", 226, 129)
	h.node("dri/renderD128", 226, 128)
	inv := h.scan()
	want := []gpu.DeviceNode{
		{Path: "/dev/dri/card1", Major: 226, Minor: 1, State: gpu.Missing},
		{Path: "/dev/dri/renderD129", Major: 226, Minor: 129, Mode: 0o666},
	}
	if diff := cmp.Diff(want, inv.GPUs[1].Graphics); diff != "" || inv.GPUs[0].Graphics != nil {
		t.Errorf("first GPU %v; second GPU (-want +got):\n%s", inv.GPUs[0].Graphics, diff)
	}
}

// The rights to manage a fabric are no part of it; the one for IMEX is there on every node with a driver.
func TestScanFabric(t *testing.T) {
	h := newGPUHost(t)
	h.capability("nvidia/capabilities/fabric-imex-mgmt", 4323, 0o400)
	h.capability("nvidia-nvlink/capabilities/fabric-mgmt", 4322, 0o400)
	h.node("nvidia-caps-imex-channels/channel7", 235, 7)
	h.file("dev/nvidia-caps-imex-channels/other", "")
	h.file("dev/nvidia-caps-imex-channels/channel1048576", "") // one more than the kernel's greatest minor
	inv := h.scan()
	want := []gpu.DeviceNode{{Path: "/dev/nvidia-caps-imex-channels/channel7", Major: 235, Minor: 7, Mode: 0o666}}
	if diff := cmp.Diff(want, inv.Fabric); diff != "" {
		t.Errorf("fabric (-want +got):\n%s", diff)
	}
	want = []gpu.DeviceNode{
		{Path: "/dev/nvidia-caps/nvidia-cap4323", Major: 234, Minor: 4323, State: gpu.Missing},
		{Path: "/dev/nvidia-caps/nvidia-cap4322", Major: 234, Minor: 4322, State: gpu.Missing},
	}
	if diff := cmp.Diff(want, inv.Management); diff != "" {
		t.Errorf("management (-want +got):\n%s", diff)
	}
}

// Only what is asked for is made, with the mode that the driver wants, whatever the umask and the parameters for the
// nodes of the GPUs.
func TestPrepareMore(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	for _, test := range []struct {
		name    string
		want    gpu.Want
		created []string
		modes   map[string]uint32
	}{
		{"one MIG device", gpu.Want{GPUs: []gpu.Ref{{Minor: 1, MIG: &gpu.Instance{GPU: 1, Compute: 2}}}},
			[]string{"/dev/nvidia-caps/nvidia-cap147", "/dev/nvidia-caps/nvidia-cap150"},
			map[string]uint32{"nvidia-cap147": 0o444, "nvidia-cap150": 0o444}},
		{"two MIG devices of two GPU instances", gpu.Want{GPUs: []gpu.Ref{{Minor: 1, MIG: &gpu.Instance{GPU: 13}}, {Minor: 1, MIG: &gpu.Instance{GPU: 1}}}},
			[]string{"/dev/nvidia-caps/nvidia-cap147", "/dev/nvidia-caps/nvidia-cap148", "/dev/nvidia-caps/nvidia-cap255", "/dev/nvidia-caps/nvidia-cap256"},
			map[string]uint32{"nvidia-cap147": 0o444, "nvidia-cap148": 0o444, "nvidia-cap255": 0o444, "nvidia-cap256": 0o444}},
		{"fabric and a MIG device", gpu.Want{GPUs: []gpu.Ref{{Minor: 1, MIG: &gpu.Instance{GPU: 1, Compute: 2}}}, Fabric: true},
			[]string{"/dev/nvidia-caps-imex-channels/channel0", "/dev/nvidia-caps/nvidia-cap147", "/dev/nvidia-caps/nvidia-cap150"},
			map[string]uint32{"nvidia-cap147": 0o444, "nvidia-cap150": 0o444}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			h.mig()
			h.capability("nvidia/capabilities/fabric-imex-mgmt", 4323, 0o400)
			h.file("proc/driver/nvidia/params", "ModifyDeviceFiles: 0\n")
			h.must(os.Mkdir(filepath.Join(h.root, "dev/char"), 0o755))
			created, err := h.scanner().Prepare(t.Context(), test.want)
			if diff := cmp.Diff(test.created, created); err != nil || diff != "" {
				t.Fatalf("prepare: %v, created (-want +got):\n%s", err, diff)
			}
			modes := map[string]uint32{}
			entries, err := os.ReadDir(filepath.Join(h.root, "dev/nvidia-caps"))
			h.must(err)
			for _, e := range entries {
				var st unix.Stat_t
				h.must(unix.Lstat(filepath.Join(h.root, "dev/nvidia-caps", e.Name()), &st))
				modes[e.Name()] = st.Mode &^ unix.S_IFCHR
			}
			if diff := cmp.Diff(test.modes, modes); diff != "" {
				t.Errorf("modes in /dev/nvidia-caps (-want +got):\n%s", diff)
			}
			if st, err := os.Stat(filepath.Join(h.root, "dev/nvidia-caps")); err != nil || st.Mode().Perm() != 0o755 {
				t.Errorf("/dev/nvidia-caps: %v, %v, want mode 0755", st.Mode(), err)
			}
			for name := range test.modes {
				link := filepath.Join(h.root, "dev/char/234:"+name[len("nvidia-cap"):])
				if got, err := os.Readlink(link); err != nil || got != "../nvidia-caps/"+name {
					t.Errorf("%s is %q, %v", link, got, err)
				}
			}
			if created, err := h.scanner().Prepare(t.Context(), test.want); err != nil || created != nil {
				t.Errorf("second prepare: %q, %v, want nothing created", created, err)
			}
		})
	}
}

func TestPrepareGraphics(t *testing.T) {
	h := newGPUHost(t)
	h.remove("dev/nvidia-modeset")
	// Loading the module makes the kernel's nodes.
	h.file("modprobe", "#!/bin/sh\n[ \"$*\" = nvidia-drm ] || exit 1\ncd "+h.root+"\nmkdir -p sys/module/nvidia_drm sys/bus/pci/devices/0000:81:00.0/drm/renderD128 dev/dri\n"+
		"echo 226:128 >sys/bus/pci/devices/0000:81:00.0/drm/renderD128/dev\nmknod -m 660 dev/dri/renderD128 c 226 128\n")
	want := gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}, Graphics: true}
	created, err := h.scanner().Prepare(t.Context(), want)
	if diff := cmp.Diff([]string{"/dev/nvidia-modeset"}, created); err != nil || diff != "" {
		t.Fatalf("prepare: %v, created (-want +got):\n%s", err, diff)
	}
	// The module is loaded by now: it is not loaded again, and the kernel's node keeps its mode.
	h.remove("modprobe")
	if created, err := h.scanner().Prepare(t.Context(), want); err != nil || created != nil {
		t.Errorf("second prepare: %q, %v, want nothing created", created, err)
	}
	if st, err := os.Stat(filepath.Join(h.root, "dev/dri/renderD128")); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("/dev/dri/renderD128: %v, %v, want mode 0660", st.Mode(), err)
	}
}

func TestPrepareMoreErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(h *host)
		want   gpu.Want
		text   string
	}{
		{"no such MIG device", (*host).mig, gpu.Want{GPUs: []gpu.Ref{{Minor: 1, MIG: &gpu.Instance{GPU: 1, Compute: 1}}}},
			"device node /dev/nvidia1: the GPU has no MIG device of GPU instance 1 and compute instance 1"},
		{"nvidia-caps without a major", func(h *host) {
			h.mig()
			h.file("proc/devices", "Character devices:\n195 nvidia\n511 nvidia-uvm\n")
		}, gpu.Want{GPUs: []gpu.Ref{{Minor: 1, MIG: &gpu.Instance{GPU: 1}}}},
			"device node /dev/nvidia-caps/nvidia-cap147: it is missing, and its driver has no major"},
		{"no DRM nodes although nvidia-drm is loaded", func(h *host) {
			h.file("sys/module/nvidia_drm/initstate", "live\n")
		}, gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}, Graphics: true}, "device node /dev/dri: GPU 0000:81:00.0 has no DRM nodes, which graphics needs"},
		{"a DRM node is missing", func(h *host) {
			h.file("sys/module/nvidia_drm/initstate", "live\n")
			h.file("sys/bus/pci/devices/0000:81:00.0/drm/card1/dev", "226:1\n")
		}, gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}, Graphics: true},
			"device node /dev/dri/card1: it is missing; the kernel and udev make it when nvidia-drm is loaded"},
		{"no fabric, only the right to manage one", func(h *host) {
			h.file("proc/devices", "Character devices:\n195 nvidia\n234 nvidia-caps\n511 nvidia-uvm\n")
			h.capability("nvidia/capabilities/fabric-imex-mgmt", 4323, 0o400)
		}, gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}, Fabric: true}, "device node /dev/nvidia-caps-imex-channels: the driver knows of no fabric on this node"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			test.change(h)
			if created, err := h.scanner().Prepare(t.Context(), test.want); err == nil || err.Error() != test.text || created != nil {
				t.Errorf("prepare: %q, %v, want %s", created, err, test.text)
			}
		})
	}
}

func TestSources(t *testing.T) {
	h := newGPUHost(t)
	h.mig()
	h.information("0000:81:00.0", "Device Minor: 0\n")
	inv := h.scan()
	for i, want := range []map[string]string{
		{"pci_address": "sysfs", "driver": "sysfs", "numa_node": "sysfs", "index": "proc", "uuid": "proc", "minor": "proc", "model": "proc", "mig_enabled": "proc", "mig_devices": "proc"},
		{"pci_address": "sysfs", "driver": "sysfs", "numa_node": "sysfs", "index": "proc", "minor": "proc"},
	} {
		if diff := cmp.Diff(want, inv.GPUs[i].Sources); diff != "" {
			t.Errorf("GPU %d (-want +got):\n%s", i, diff)
		}
	}
}
