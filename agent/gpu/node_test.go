package gpu_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"phoenix.internal/agent/gpu"
)

func TestPrepare(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(h *host)
		minors  []int
		created []string
		modes   map[string]uint32
	}{
		{"only the GPUs asked for", func(h *host) {
			h.remove("dev/nvidia0")
			h.remove("dev/nvidia1")
		}, []int{1}, []string{"/dev/nvidia1"}, map[string]uint32{"nvidia1": 0o666}},
		{"things that are no devices give way", func(h *host) {
			h.remove("dev/nvidia0")
			h.file("dev/nvidia0", "")
			h.remove("dev/nvidia-uvm")
			h.must(os.Symlink("nvidia-uvm-tools", filepath.Join(h.root, "dev/nvidia-uvm")))
		}, []int{0, 0}, []string{"/dev/nvidia-uvm", "/dev/nvidia0"}, map[string]uint32{"nvidia0": 0o666, "nvidia-uvm": 0o666}},
		{"a mode that is not the driver's", func(h *host) {
			h.must(os.Chmod(filepath.Join(h.root, "dev/nvidia0"), 0o600))
		}, []int{0, 1}, []string{"/dev/nvidia0"}, map[string]uint32{"nvidia0": 0o666}},
		{"mode and owner of the driver's parameters, but not for uvm", func(h *host) {
			h.file("proc/driver/nvidia/params", "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n")
			h.remove("dev/nvidia-uvm")
		}, []int{0}, []string{"/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidiactl"},
			map[string]uint32{"nvidia0": 0o660, "nvidia1": 0o666, "nvidiactl": 0o660, "nvidia-uvm": 0o666}},
		{"ModifyDeviceFiles=0 leaves right nodes alone, but not uvm's", func(h *host) {
			h.file("proc/driver/nvidia/params", "DeviceFileMode: 432\nModifyDeviceFiles: 0\n")
			h.must(os.Chmod(filepath.Join(h.root, "dev/nvidia0"), 0o600))
			h.must(os.Chmod(filepath.Join(h.root, "dev/nvidia-uvm"), 0o600))
		}, []int{0}, []string{"/dev/nvidia-uvm"}, map[string]uint32{"nvidia0": 0o600, "nvidia-uvm": 0o666}},
		{"left over from a prepare that was cut short", func(h *host) {
			h.remove("dev/nvidia0")
			h.file("dev/.phoenix.nvidia0", "")
		}, []int{0}, []string{"/dev/nvidia0"}, map[string]uint32{"nvidia0": 0o666}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			test.change(h)
			created, err := h.scanner().Prepare(t.Context(), minors(test.minors...))
			if diff := cmp.Diff(test.created, created); err != nil || diff != "" {
				t.Errorf("prepare %v: %v, created (-want +got):\n%s", test.minors, err, diff)
			}
			for name, want := range test.modes {
				var st unix.Stat_t
				h.must(unix.Lstat(filepath.Join(h.root, "dev", name), &st))
				if st.Mode != unix.S_IFCHR|want {
					t.Errorf("%s has mode %o, want %o", name, st.Mode, unix.S_IFCHR|want)
				}
			}
			left, err := filepath.Glob(filepath.Join(h.root, "dev/.phoenix*"))
			if err != nil || left != nil {
				t.Errorf("left behind: %q, %v", left, err)
			}
		})
	}
}

func TestPrepareLinks(t *testing.T) {
	h := newGPUHost(t)
	h.remove("dev/nvidia-uvm")
	h.must(os.Mkdir(filepath.Join(h.root, "dev/char"), 0o755))
	if _, err := h.scanner().Prepare(t.Context(), minors(0)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(filepath.Join(h.root, "dev/char/511:0")); err != nil || got != "../nvidia-uvm" {
		t.Errorf("/dev/char/511:0 is %q, %v, want a link to ../nvidia-uvm", got, err)
	}
}

func TestPrepareErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(h *host)
		minors []int
		path   string // of the NodeError; empty: ErrDriverNotLoaded
		text   string
	}{
		{"no such GPU", func(*host) {}, []int{0, 2}, "/dev/nvidia2",
			"device node /dev/nvidia2: no GPU that is bound to nvidia has this minor number"},
		{"unknown minor", func(*host) {}, []int{-1}, "/dev/nvidia-1",
			"device node /dev/nvidia-1: no GPU that is bound to nvidia has this minor number"},
		{"ModifyDeviceFiles=0", func(h *host) {
			h.file("proc/driver/nvidia/params", "ModifyDeviceFiles: 0\n")
			h.remove("dev/nvidia1")
		}, []int{1}, "/dev/nvidia1",
			"device node /dev/nvidia1: it is missing, and the driver's parameter NVreg_ModifyDeviceFiles=0 forbids making it"},
		{"driver not loaded", func(h *host) {
			h.remove("proc/driver/nvidia/version")
		}, []int{0}, "", "prepare device nodes: nvidia: driver not loaded"},
		{"driver without majors", func(h *host) {
			h.file("proc/devices", "Character devices:\n  1 mem\n")
		}, []int{0}, "", "prepare device nodes: nvidia: driver not loaded"},
		{"nvidia-uvm cannot be loaded", func(h *host) {
			h.file("proc/devices", "Character devices:\n195 nvidia\n")
			h.file("modprobe", "#!/bin/sh\necho modprobe: FATAL: Module nvidia-uvm not found >&2; exit 1\n")
		}, []int{0}, "", `prepare device nodes: nvidia-uvm: driver not loaded: modprobe nvidia-uvm: exit status 1: "modprobe: FATAL: Module nvidia-uvm not found"`},
		{"nvidia-uvm loaded without a major", func(h *host) {
			h.file("proc/devices", "Character devices:\n195 nvidia\n")
			h.file("modprobe", "#!/bin/sh\n")
		}, []int{0}, "", "prepare device nodes: nvidia-uvm: driver not loaded"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			test.change(h)
			created, err := h.scanner().Prepare(t.Context(), minors(test.minors...))
			if err == nil || err.Error() != test.text || created != nil {
				t.Errorf("prepare %v: %q, %v, want %s", test.minors, created, err, test.text)
			}
			if test.path == "" {
				if !errors.Is(err, gpu.ErrDriverNotLoaded) {
					t.Errorf("%v is no ErrDriverNotLoaded", err)
				}
				return
			}
			if e, ok := errors.AsType[*gpu.NodeError](err); !ok || e.Path != test.path {
				t.Errorf("%v is no NodeError of %s", err, test.path)
			}
		})
	}
}

// A directory cannot be replaced by a node: what was made before it is told.
func TestPrepareStopsHalfWay(t *testing.T) {
	h := newGPUHost(t)
	h.remove("dev/nvidia-uvm")
	h.remove("dev/nvidia0")
	h.must(os.Mkdir(filepath.Join(h.root, "dev/nvidia0"), 0o755))
	created, err := h.scanner().Prepare(t.Context(), minors(0))
	if e, ok := errors.AsType[*gpu.NodeError](err); !ok || e.Path != "/dev/nvidia0" {
		t.Errorf("prepare: %v, want a NodeError of /dev/nvidia0", err)
	}
	if diff := cmp.Diff([]string{"/dev/nvidia-uvm"}, created); diff != "" {
		t.Errorf("created (-want +got):\n%s", diff)
	}
}
