package nvidia

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"phoenix.internal/agent/nvml"
)

// phoenixNVML is phoenix-nvml with a library that answers what [NVMLFile] says at the moment.
func (t *Tools) phoenixNVML([]string) int {
	out := json.NewEncoder(t.Out)
	for requests := bufio.NewScanner(os.Stdin); requests.Scan(); {
		b, err := os.ReadFile(filepath.Join(t.Tree.Root, NVMLFile))
		var library NVML
		if err == nil {
			err = json.Unmarshal(b, &library)
		}
		if err == nil {
			err = out.Encode(library.answer())
		}
		if err != nil {
			fmt.Fprintf(t.Err, "phoenix-nvml: %v\n", err)
			return 1
		}
	}
	return 0
}

// answer is what phoenix-nvml makes of the library's answers.
func (n *NVML) answer() nvml.Answer {
	if n.ReturnCode != 0 {
		return nvml.Answer{Code: n.ReturnCode}
	}
	report := &nvml.Report{DriverVersion: n.DriverVersion, CUDAVersion: n.CUDA, GPUs: []nvml.GPU{}}
	for _, g := range n.GPUs {
		report.GPUs = append(report.GPUs, g.answer())
	}
	return nvml.Answer{Report: report}
}

func (g *NVMLGPU) answer() nvml.GPU {
	if g.ReturnCode != 0 {
		return nvml.GPU{Index: g.Index, Code: g.ReturnCode}
	}
	used := int64(g.UsedMiB)
	answer := nvml.GPU{
		Index: g.Index, PCIAddress: address(g.PCI), UUID: g.UUID, Minor: &g.Minor, Name: g.Name, MemoryMiB: int64(g.TotalMiB), MemoryUsedMiB: &used,
	}
	for _, p := range g.Peers {
		answer.NVLinkPeers = append(answer.NVLinkPeers, address(p))
	}
	for _, p := range g.Processes {
		used := int64(p.UsedMiB)
		answer.Processes = append(answer.Processes, nvml.Process{PID: p.PID, UsedMiB: &used})
	}
	if g.MIG != nil {
		answer.MIG = &nvml.MIGMode{Current: g.MIG.Current, Pending: g.MIG.Pending}
		for _, d := range g.MIG.Devices {
			answer.MIGDevices = append(answer.MIGDevices, nvml.MIGDevice{
				Index: d.Index, UUID: d.UUID, GPUInstance: d.GI, ComputeInstance: d.CI, Profile: d.Profile, MemoryMiB: int64(d.MemoryMiB),
			})
		}
	}
	return answer
}

// address is the kernel's form of what busID makes.
func address(busID string) string { return strings.ToLower(strings.TrimPrefix(busID, "0000")) }
