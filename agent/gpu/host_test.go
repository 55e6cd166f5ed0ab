package gpu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"phoenix.internal/agent/gpu"
)

// devices is /proc/devices of a host with a 580 driver, cut to what matters: names that are prefixes
// of each other, and a block section with the same numbers.
const devices = `Character devices:
  1 mem
195 nvidia
195 nvidiactl
234 nvidia-caps
235 nvidia-caps-imex-channels
511 nvidia-uvm

Block devices:
  7 loop
195 nvidia
238 nvidia-uvm
`

const openVersion = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  Release Build  (dvs-builder@U22-I3-AE18-23-3)  Wed Oct 29 23:15:11 UTC 2025\n" +
	"GCC version:  gcc version 14.2.0 (Debian 14.2.0-19)\n"

const closedVersion = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161  Sat Feb 17 22:55:48 UTC 2024\n" +
	"GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"

const (
	uuidA = "GPU-11111111-2222-3333-4444-555555555555"
	uuidB = "GPU-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
)

// host is a node's /proc, /sys and /dev in a temporary directory.
type host struct {
	t    *testing.T
	root string
}

func newHost(t *testing.T) *host {
	h := &host{t, t.TempDir()}
	h.file("proc/devices", devices)
	for _, dir := range []string{"dev", "sys"} {
		h.must(os.Mkdir(filepath.Join(h.root, dir), 0o755))
	}
	return h
}

// newGPUHost returns a host with a loaded driver, two GPUs whose minors are swapped against the order
// of their PCI addresses, and all device nodes.
func newGPUHost(t *testing.T) *host {
	h := newHost(t)
	h.file("proc/driver/nvidia/version", openVersion)
	h.pci("0000:01:00.0", "nvidia")
	h.pci("0000:81:00.0", "nvidia")
	h.information("0000:01:00.0", information(uuidA, "1"))
	h.information("0000:81:00.0", information(uuidB, "0"))
	h.node("nvidia0", 195, 0)
	h.node("nvidia1", 195, 1)
	h.node("nvidiactl", 195, 255)
	h.node("nvidia-modeset", 195, 254)
	h.node("nvidia-uvm", 511, 0)
	h.node("nvidia-uvm-tools", 511, 1)
	return h
}

func information(uuid, minor string) string {
	return "Model: \t\t NVIDIA GeForce RTX 5060 Ti\n" +
		"IRQ:   \t\t 163\n" +
		"GPU UUID: \t " + uuid + "\n" +
		"Video BIOS: \t 98.06.39.00.8e\n" +
		"Bus Type: \t PCIe\n" +
		"DMA Size: \t 52 bits\n" +
		"Bus Location: \t 0000:01:00.0\n" +
		"Device Minor: \t " + minor + "\n" +
		"GPU Firmware: \t 580.105.08\n" +
		"GPU Excluded:\t No\n"
}

func (h *host) scanner() *gpu.Scanner {
	return &gpu.Scanner{
		Sys:      filepath.Join(h.root, "sys"),
		Proc:     filepath.Join(h.root, "proc"),
		Dev:      filepath.Join(h.root, "dev"),
		SMI:      filepath.Join(h.root, "nvidia-smi"),
		Modprobe: filepath.Join(h.root, "modprobe"),
	}
}

func (h *host) scan() *gpu.Inventory {
	h.t.Helper()
	inv, err := h.scanner().Scan(h.t.Context())
	h.must(err)
	return inv
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) file(path, content string) {
	h.t.Helper()
	path = filepath.Join(h.root, path)
	h.must(os.MkdirAll(filepath.Dir(path), 0o755))
	h.must(os.WriteFile(path, []byte(content), 0o755))
}

func (h *host) remove(path string) {
	h.t.Helper()
	h.must(os.RemoveAll(filepath.Join(h.root, path)))
}

// pci adds an NVIDIA 3D controller, bound to a driver or, if that is empty, to none.
func (h *host) pci(address, driver string) {
	h.t.Helper()
	dir := "sys/bus/pci/devices/" + address + "/"
	h.file(dir+"vendor", "0x10de\n")
	h.file(dir+"class", "0x030200\n")
	h.file(dir+"numa_node", "1\n")
	if driver != "" {
		h.must(os.Symlink("../../../../bus/pci/drivers/"+driver, filepath.Join(h.root, dir, "driver")))
	}
}

func (h *host) information(address, text string) {
	h.t.Helper()
	h.file("proc/driver/nvidia/gpus/"+address+"/information", text)
}

// node makes a device node, mode 0666. Where that is not allowed the test is skipped.
func (h *host) node(name string, major, minor uint32) {
	h.t.Helper()
	path := filepath.Join(h.root, "dev", name)
	h.must(os.MkdirAll(filepath.Dir(path), 0o755))
	if err := unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(major, minor))); err != nil {
		h.t.Skipf("mknod %s: %v: device nodes need root", path, err)
	}
	h.must(os.Chmod(path, 0o666))
}

// minors is whole GPUs.
func minors(all ...int) gpu.Want {
	var want gpu.Want
	for _, m := range all {
		want.GPUs = append(want.GPUs, gpu.Ref{Minor: m})
	}
	return want
}

// capability lays out an access right of MIG or of the fabric.
func (h *host) capability(path string, minor, mode int) {
	h.t.Helper()
	h.file("proc/driver/"+path, fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: %d\nDeviceFileModify: 1\n", minor, mode))
}

// mig divides the GPU of minor 1 into a GPU instance 1 with compute instances 0 and 2, and a GPU instance 13 with one.
func (h *host) mig() {
	h.t.Helper()
	const dir = "nvidia/capabilities/"
	h.capability(dir+"mig/config", 1, 0o400)
	h.capability(dir+"mig/monitor", 2, 0o444)
	h.capability(dir+"gpu1/mig/gi1/access", 147, 0o444)
	h.capability(dir+"gpu1/mig/gi1/ci0/access", 148, 0o444)
	h.capability(dir+"gpu1/mig/gi1/ci2/access", 150, 0o444)
	h.capability(dir+"gpu1/mig/gi13/access", 255, 0o444)
	h.capability(dir+"gpu1/mig/gi13/ci0/access", 256, 0o444)
	h.capability(dir+"gpu1/mig/gi2/access", 156, 0o444) // without a compute instance
	h.must(os.MkdirAll(filepath.Join(h.root, "proc/driver", dir, "gpu0/mig"), 0o755))
}
