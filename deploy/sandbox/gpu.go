package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A GPU is made up: files in /proc and /sys and a device node with no driver behind it.
type GPU struct {
	PCI       string `json:"pci"`
	UUID      string `json:"uuid"`
	Minor     int    `json:"minor"`
	Model     string `json:"model"`
	MemoryMiB int    `json:"memory_mib"`
	NUMANode  int    `json:"numa_node"`
}

// Majors are the device majors of a node's made-up NVIDIA drivers.
type Majors struct {
	NVIDIA int `json:"nvidia"`
	UVM    int `json:"nvidia_uvm"`
	Caps   int `json:"nvidia_caps"`
}

const defaultDriver = "580.105.08"

// makeGPUs makes up the GPUs of node n, from 1. If reversed, the minors run against the PCI order, as
// on machines where the driver probed them so.
func makeGPUs(n, count int, reversed bool) []GPU {
	gpus := make([]GPU, count)
	for i := range gpus {
		minor := i
		if reversed {
			minor = count - 1 - i
		}
		sum := sha256.Sum256(fmt.Appendf(nil, "phoenix sandbox node %d gpu %d", n, i))
		u := hex.EncodeToString(sum[:16])
		gpus[i] = GPU{
			PCI:       fmt.Sprintf("0000:%02x:00.0", 1+0x40*(i%4)+i/4),
			UUID:      fmt.Sprintf("GPU-%s-%s-%s-%s-%s", u[:8], u[8:12], u[12:16], u[16:20], u[20:]),
			Minor:     minor,
			Model:     "NVIDIA GeForce RTX 5060 Ti",
			MemoryMiB: 16311,
			NUMANode:  i % 2,
		}
	}
	return gpus
}

// chooseMajors picks majors that no driver of this machine has, so that opening a made-up node gives
// ENXIO. The uvm major differs from node to node, as it does between real hosts.
func chooseMajors(n int) (Majors, error) {
	taken, err := takenMajors("/proc/devices")
	if err != nil {
		return Majors{}, err
	}
	free := func(candidates ...int) (int, error) {
		for _, m := range candidates {
			if !slices.Contains(taken, m) {
				taken = append(taken, m)
				return m, nil
			}
		}
		return 0, fmt.Errorf("no free device major among %v", candidates)
	}
	var m Majors
	if m.NVIDIA, err = free(195, 196, 197, 60, 61, 62, 63); err != nil { // 60 to 63: experimental use
		return m, err
	}
	uvm := []int{511, 510, 509, 508, 507, 506, 505, 504, 503, 502}
	if n%2 == 0 {
		uvm = uvm[3:]
	}
	if m.UVM, err = free(uvm...); err != nil {
		return m, err
	}
	m.Caps, err = free(501, 500, 499, 498, 497, 496)
	return m, err
}

func takenMajors(path string) ([]int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var majors []int
	character, _, _ := strings.Cut(string(b), "Block devices:")
	for line := range strings.Lines(character) {
		if fields := strings.Fields(line); len(fields) == 2 {
			if m, err := strconv.Atoi(fields[0]); err == nil {
				majors = append(majors, m)
			}
		}
	}
	return majors, nil
}
