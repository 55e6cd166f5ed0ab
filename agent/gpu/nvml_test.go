package gpu_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/nvml"
	"phoenix.internal/agent/nvml/nvmltest"
)

// told is what NVML says about newGPUHost, after h.mig: the second GPU has the MIG devices.
const told = `driver 580.105.08
gpu ` + uuidA + ` 0000:01:00.0 1 81559 70 NVIDIA H100 80GB HBM3
mig 1 1
migdevice 0 MIG-00000000-0000-0000-0000-000000000001 1 0 9856 1c.3g.40gb
migdevice 1 MIG-00000000-0000-0000-0000-000000000002 1 2 9856 1c.3g.40gb
migdevice 4 MIG-00000000-0000-0000-0000-000000000003 13 0 9856 1g.10gb
process C 4711 512
process G 815 -1
gpu ` + uuidB + ` 0000:81:00.0 0 16311 70 NVIDIA GeForce RTX 5060 Ti
link 0 1
`

// withNVML returns a scanner of the host that asks the real helper and a stand-in for NVML that tells text, and the
// path of that.
func (h *host) withNVML(text string) (s *gpu.Scanner, library string) {
	h.t.Helper()
	library = nvmltest.Library(h.t, text)
	s = h.scanner()
	s.NVML = &nvml.Client{Program: nvmltest.Helper(h.t), Library: library}
	h.t.Cleanup(s.NVML.Close)
	return s, library
}

func TestNVML(t *testing.T) {
	const smi = "#!/bin/sh\necho 00000000:01:00.0, 1; echo 00000000:81:00.0, 2\n"
	for _, test := range []struct {
		name, text string
		change     func(h *host)
		want       func(inv *gpu.Inventory) // from what a scan without NVML gives
	}{
		{"everything", told, func(*host) {}, func(inv *gpu.Inventory) {
			a, b := &inv.GPUs[0], &inv.GPUs[1]
			a.MemoryMiB, b.MemoryMiB = 81559, 16311
			a.NVLinkPeers, b.NVLinkPeers = []string{"0000:81:00.0"}, []string{"0000:01:00.0"}
			a.Processes = []gpu.Process{{PID: 815}, {PID: 4711, UsedMiB: 512}}
			for i, m := range []gpu.MIGDevice{
				{Index: 0, UUID: "MIG-00000000-0000-0000-0000-000000000001", Profile: "1c.3g.40gb", MemoryMiB: 9856},
				{Index: 1, UUID: "MIG-00000000-0000-0000-0000-000000000002", Profile: "1c.3g.40gb", MemoryMiB: 9856},
				{Index: 4, UUID: "MIG-00000000-0000-0000-0000-000000000003", Profile: "1g.10gb", MemoryMiB: 9856},
			} {
				m.Instance, m.Nodes = a.MIG[i].Instance, a.MIG[i].Nodes
				a.MIG[i] = m
			}
			a.Sources["memory_mib"], a.Sources["nvlink_peers"], a.Sources["processes"], a.Sources["mig_devices"] = "nvml", "nvml", "nvml", "nvml"
			b.Sources["memory_mib"], b.Sources["nvlink_peers"] = "nvml", "nvml"
		}},
		{"a GPU that /proc does not know well yet", told, func(h *host) {
			h.information("0000:81:00.0", "Model: \t\t ????\nGPU UUID: \t GPU-????????-????-????-????-????????????\nDevice Minor: \t 0\n")
		}, func(inv *gpu.Inventory) {
			inv.GPUs = inv.GPUs[1:]
			b := &inv.GPUs[0]
			b.UUID, b.Model, b.MemoryMiB, b.NVLinkPeers = uuidB, "NVIDIA GeForce RTX 5060 Ti", 16311, []string{"0000:01:00.0"}
			for _, field := range []string{"uuid", "model", "memory_mib", "nvlink_peers"} {
				b.Sources[field] = "nvml"
			}
		}},
		{"a MIG device that /proc does not list, MIG mode about to change, a reset due", "gpu " + uuidB + " 0000:81:00.0 0 81559 0 H100\n" +
			"mig 1 0\nmigdevice 3 MIG-00000000-0000-0000-0000-000000000001 2 0 9856 1g.10gb\nrecovery 1\n", func(*host) {}, func(inv *gpu.Inventory) {
			inv.GPUs = inv.GPUs[1:]
			b := &inv.GPUs[0]
			b.MemoryMiB, b.MIGEnabled = 81559, true
			b.MIG = []gpu.MIGDevice{{Index: 3, UUID: "MIG-00000000-0000-0000-0000-000000000001", Instance: gpu.Instance{GPU: 2}, Profile: "1g.10gb", MemoryMiB: 9856}}
			b.Sources["memory_mib"], b.Sources["mig_enabled"], b.Sources["mig_devices"] = "nvml", "nvml", "nvml"
			inv.Problems = append(inv.Problems, "GPU 0000:81:00.0: the driver asks for: a reset of the GPU.", "GPU 0000:81:00.0: its MIG mode changes at its next reset.")
		}},
		{"a lost GPU", "gpu " + uuidA + " 0000:01:00.0 1 1 1 A\ncode 15\ngpu " + uuidB + " 0000:81:00.0 0 16311 0 B\n", func(*host) {}, func(inv *gpu.Inventory) {
			inv.GPUs[1].MemoryMiB = 16311
			inv.GPUs[1].Sources["memory_mib"] = "nvml"
			inv.Problems = append(inv.Problems, "GPU 0000:01:00.0: NVML says: GPU is lost (code 15).")
		}},
		{"another card than /proc says", "gpu " + uuidB + " 0000:01:00.0 1 1 1 A\n", func(*host) {}, func(inv *gpu.Inventory) {
			inv.Problems = append(inv.Problems, "GPU 0000:01:00.0 is "+uuidA+", but NVML says that it is "+uuidB+".")
		}},
		{"a card that is not the driver's", told, func(h *host) {
			h.remove("sys/bus/pci/devices/0000:81:00.0")
			h.remove("proc/driver/nvidia/gpus/0000:81:00.0")
			h.pci("0000:81:00.0", "vfio-pci")
		}, func(inv *gpu.Inventory) { inv.GPUs = inv.GPUs[1:] }},
		{"a version mismatch, in which nvidia-smi would not do better", "init 18", func(*host) {}, func(*gpu.Inventory) {}},
		{"a library that crashes", "init segfault", func(*host) {}, func(*gpu.Inventory) {}},
		{"no library: nvidia-smi tells the memory", "init 12", func(*host) {}, func(inv *gpu.Inventory) {
			inv.GPUs[0].MemoryMiB, inv.GPUs[1].MemoryMiB = 1, 2
			inv.GPUs[0].Sources["memory_mib"], inv.GPUs[1].Sources["memory_mib"] = "nvidia-smi", "nvidia-smi"
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			h.mig()
			test.change(h)
			want := h.scan()
			h.file("nvidia-smi", smi)
			test.want(want)
			s, _ := h.withNVML(test.text)
			got, err := s.Scan(t.Context())
			h.must(err)
			if len(want.GPUs) < len(got.GPUs) { // the row is about the second alone
				got.GPUs = got.GPUs[1:]
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("NVML tells\n%sinventory (-want +got):\n%s", test.text, diff)
			}
		})
	}
}

// What NVML told is for all scans, and only changes of the hardware have a scan wait for a new answer.
func TestNVMLIsAskedSeldom(t *testing.T) {
	h := newGPUHost(t)
	h.file("phoenix-nvml", "#!/bin/sh\necho >>"+h.root+"/starts\nwhile read r; do echo >>"+h.root+`/asked; echo '{"report":{"gpus":[]}}'; done`+"\n")
	s := h.scanner()
	s.NVML = &nvml.Client{Program: filepath.Join(h.root, "phoenix-nvml")}
	defer s.NVML.Close()
	count := func(name string) int {
		b, err := os.ReadFile(filepath.Join(h.root, name))
		h.must(err)
		return len(b)
	}
	begin := time.Now()
	for range 100 {
		_, err := s.Scan(t.Context())
		h.must(err)
	}
	if most := 1 + int(time.Since(begin)/(5*time.Second)); count("asked") > most || count("starts") != 1 {
		t.Errorf("100 scans: asked %d times of %d helpers, want at most %d of 1", count("asked"), count("starts"), most)
	}
	asked := count("asked")
	h.mig()
	_, err := s.Scan(t.Context())
	h.must(err)
	if got := count("asked"); got != asked+1 && time.Since(begin) < 5*time.Second || count("starts") != 1 {
		t.Errorf("after the GPU was divided: asked %d times more, want once", got-asked)
	}
	asked = count("asked")
	h.file("proc/driver/nvidia/version", closedVersion)
	_, err = s.Scan(t.Context())
	h.must(err)
	if count("asked") == asked || count("starts") != 2 {
		t.Errorf("another driver: asked %d times more, %d helpers so far, want once and 2", count("asked")-asked, count("starts"))
	}
}

// Without a GPU that the driver serves nothing is asked or started.
func TestNVMLWithoutGPUs(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(h *host)
	}{
		{"no driver", func(h *host) { h.remove("proc/driver") }},
		{"no GPU", func(h *host) { h.remove("sys/bus"); h.remove("proc/driver/nvidia/gpus") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			test.change(h)
			h.file("phoenix-nvml", "#!/bin/sh\necho >>"+h.root+"/starts\n")
			s := h.scanner()
			s.NVML = &nvml.Client{Program: filepath.Join(h.root, "phoenix-nvml")}
			defer s.NVML.Close()
			_, err := s.Scan(t.Context())
			h.must(err)
			if _, err := os.Stat(filepath.Join(h.root, "starts")); !os.IsNotExist(err) {
				t.Errorf("the helper was started, or not: %v", err)
			}
		})
	}
}

// A library that hangs holds up neither the agent nor what the other sources tell.
func TestNVMLDoesNotHoldUpScans(t *testing.T) {
	h := newGPUHost(t)
	s, _ := h.withNVML("init hang")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	got, err := s.Scan(ctx)
	h.must(err)
	if diff := cmp.Diff(h.scan(), got); diff != "" {
		t.Errorf("inventory (-want +got):\n%s", diff)
	}
}

// Who uses a GPU, and what is wrong with it, is not told from an old answer.
func TestNVMLStale(t *testing.T) {
	inv := &gpu.Inventory{GPUs: []gpu.GPU{{PCIAddress: "0000:01:00.0", Driver: gpu.NVIDIA}}}
	gpu.Merge(inv, &nvml.Report{GPUs: []nvml.GPU{
		{PCIAddress: "0000:01:00.0", Code: 16, MemoryMiB: 16311, Processes: []nvml.Process{{PID: 4711}}},
	}}, false)
	want := &gpu.Inventory{GPUs: []gpu.GPU{
		{PCIAddress: "0000:01:00.0", Driver: gpu.NVIDIA, MemoryMiB: 16311, Sources: map[string]string{"memory_mib": "nvml"}},
	}}
	if diff := cmp.Diff(want, inv); diff != "" {
		t.Errorf("inventory (-want +got):\n%s", diff)
	}
}
