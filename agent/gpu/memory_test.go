package gpu_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"phoenix.internal/agent/gpu"
)

func memory(inv *gpu.Inventory) []int64 {
	var sizes []int64
	for _, gpu := range inv.GPUs {
		sizes = append(sizes, gpu.MemoryMiB)
	}
	return sizes
}

func TestMemory(t *testing.T) {
	for _, test := range []struct {
		name, smi string
		want      []int64
	}{
		{"as printed", "printf '00000000:01:00.0, 16311\\n00000000:81:00.0, 24564\\n'", []int64{16311, 24564}},
		{"other order, upper case", "printf '00000000:81:00.0, 24564\\n00000000:01:00.0, 16311\\n00000000:0A:00.0, 1\\n'", []int64{16311, 24564}},
		{"not available", "printf '00000000:01:00.0, [N/A]\\n00000000:81:00.0, [GPU is lost]\\n'", []int64{0, 0}},
		{"no GPU", "echo No devices were found; exit 6", []int64{0, 0}},
		{"numbers out of range", "printf '00000000:01:00.0, -5\\n00000000:81:00.0, 99999999999999999999\\n'", []int64{0, 0}},
		{"endless", "while :; do echo 00000000:01:00.0, 16311; done", []int64{0, 0}},
		{"binary", "head -c 1000 /dev/urandom", []int64{0, 0}},
		{"killed", "kill -9 $$", []int64{0, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newGPUHost(t)
			h.file("nvidia-smi", "#!/bin/sh\n"+test.smi+"\n")
			if diff := cmp.Diff(test.want, memory(h.scan())); diff != "" {
				t.Errorf("nvidia-smi does %q, sizes (-want +got):\n%s", test.smi, diff)
			}
		})
	}
}

func TestMemoryIsAskedOnce(t *testing.T) {
	h := newGPUHost(t)
	h.file("nvidia-smi", "#!/bin/sh\necho \"$@\" >>"+h.root+"/calls; echo 00000000:01:00.0, 16311\n")
	s := h.scanner()
	scan := func() []int64 {
		inv, err := s.Scan(t.Context())
		h.must(err)
		return memory(inv)
	}
	for range 3 {
		if diff := cmp.Diff([]int64{16311, 0}, scan()); diff != "" {
			t.Errorf("sizes (-want +got):\n%s", diff)
		}
	}
	h.file("proc/driver/nvidia/version", closedVersion)
	scan()
	scan()
	got, err := os.ReadFile(filepath.Join(h.root, "calls"))
	want := strings.Repeat("--query-gpu=pci.bus_id,memory.total --format=csv,noheader,nounits\n", 2)
	if err != nil || string(got) != want {
		t.Errorf("calls of nvidia-smi:\n%s%v, want one for each driver version:\n%s", got, err, want)
	}
}

// A broken GPU makes nvidia-smi wait for ever; a scan does not wait with it.
func TestMemoryDoesNotHoldUpScans(t *testing.T) {
	h := newGPUHost(t)
	fifo := filepath.Join(h.root, "fifo")
	h.must(unix.Mkfifo(fifo, 0o600))
	h.file("nvidia-smi", "#!/bin/sh\nread line <"+fifo+"\n")
	t.Cleanup(func() {
		f, err := os.OpenFile(fifo, os.O_RDWR, 0)
		h.must(err)
		defer f.Close()
		_, err = f.WriteString("end\n")
		h.must(err)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	inv, err := h.scanner().Scan(ctx)
	h.must(err)
	if diff := cmp.Diff([]int64{0, 0}, memory(inv)); diff != "" {
		t.Errorf("sizes (-want +got):\n%s", diff)
	}
}
