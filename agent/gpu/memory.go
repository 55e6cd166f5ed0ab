package gpu

import "context"

// addMemory adds the memory sizes, if nvidia-smi tells, where NVML is not there.
func (s *Scanner) addMemory(ctx context.Context, inv *Inventory) {
	key := inv.key()
	if key == "" {
		return
	}
	sizes := askSMI(ctx, s, &s.memory, key, func(smi smi) map[string]int64 {
		out, err := smi.output(64<<10, "--query-gpu=pci.bus_id,memory.total", "--format=csv,noheader,nounits")
		if err != nil {
			return nil
		}
		return parseMemory(out)
	})
	for i := range inv.GPUs {
		if size, ok := sizes[inv.GPUs[i].PCIAddress]; ok {
			inv.GPUs[i].MemoryMiB = size
			inv.GPUs[i].from(fromSMI, "memory_mib")
		}
	}
}

// key tells apart drivers and sets of GPUs that the driver serves. It is empty if there is none.
func (inv *Inventory) key() string {
	key := inv.DriverVersion
	for _, gpu := range inv.GPUs {
		if gpu.Driver == NVIDIA {
			key += " " + gpu.PCIAddress + "=" + gpu.UUID
		}
	}
	if inv.DriverVersion == "" || key == inv.DriverVersion {
		return ""
	}
	return key
}
