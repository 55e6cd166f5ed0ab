//go:build cgo

package main

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	client "phoenix.internal/agent/nvml"
)

// scan loads the library, asks it everything, and lets go of it.
func scan(path string) client.Answer {
	var options []nvml.LibraryOption
	if path != "" {
		options = append(options, nvml.WithLibraryPath(path))
	}
	l := library{nvml.New(options...)}
	if ret := l.Init(); ret != nvml.SUCCESS {
		return client.Answer{Code: int(ret)}
	}
	defer l.Shutdown()
	return client.Answer{Report: l.report()}
}

type library struct {
	nvml.Interface
}

// has says whether the library has a function. Calling one that it lacks would end the process.
func (l library) has(function string) bool {
	return l.Extensions().LookupSymbol(function) == nil
}

func (l library) report() *client.Report {
	r := &client.Report{GPUs: []client.GPU{}}
	if version, ret := l.SystemGetDriverVersion(); ret == nvml.SUCCESS {
		r.DriverVersion = version
	}
	if l.has("nvmlSystemGetCudaDriverVersion_v2") {
		if v, ret := l.SystemGetCudaDriverVersion_v2(); ret == nvml.SUCCESS && v > 0 {
			r.CUDAVersion = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
		}
	}
	count, ret := l.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return r
	}
	devices := map[string]nvml.Device{} // by address
	for i := range count {
		g := client.GPU{Index: i}
		device, ret := l.DeviceGetHandleByIndex(i)
		if good(&g, ret) {
			l.describe(device, &g)
			devices[g.PCIAddress] = device
		}
		r.GPUs = append(r.GPUs, g)
	}
	if l.has("nvmlDeviceGetP2PStatus") {
		addPeers(r.GPUs, devices)
	}
	return r
}

// good says whether a call succeeded, and keeps the code if it tells that something is wrong with the GPU. That the GPU
// does not support the call, or the library does not have it, is an answer as well.
func good(g *client.GPU, ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_RESET_REQUIRED, nvml.ERROR_UNKNOWN:
		if g.Code == 0 {
			g.Code = int(ret)
		}
	}
	return ret == nvml.SUCCESS
}

func (l library) describe(device nvml.Device, g *client.GPU) {
	if pci, ret := device.GetPciInfo(); good(g, ret) {
		g.PCIAddress = fmt.Sprintf("%04x:%02x:%02x.0", pci.Domain, pci.Bus, pci.Device)
	}
	if uuid, ret := device.GetUUID(); good(g, ret) {
		g.UUID = uuid
	}
	if minor, ret := device.GetMinorNumber(); good(g, ret) {
		g.Minor = &minor
	}
	if name, ret := device.GetName(); good(g, ret) {
		g.Name = name
	}
	l.addMemory(device, g)
	if l.has("nvmlDeviceGetMigMode") {
		if current, pending, ret := device.GetMigMode(); good(g, ret) {
			g.MIG = &client.MIGMode{Current: current == nvml.DEVICE_MIG_ENABLE, Pending: pending == nvml.DEVICE_MIG_ENABLE}
		}
		if g.MIG != nil && g.MIG.Current {
			addMIGDevices(device, g)
		}
	}
	l.addProcesses(device, g)
	if l.has("nvmlDeviceGetFieldValues") {
		values := []nvml.FieldValue{{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
		if good(g, device.GetFieldValues(values)) && nvml.Return(values[0].NvmlReturn) == nvml.SUCCESS {
			// Whatever its type is, an integer of a few values.
			action := int(binary.LittleEndian.Uint16(values[0].Value[:]))
			g.RecoveryAction = &action
		}
	}
}

// addMemory asks for the memory as nvidia-smi shows it: what the driver reserves does not count as used.
func (l library) addMemory(device nvml.Device, g *client.GPU) {
	total, used, ok := uint64(0), uint64(0), false
	if l.has("nvmlDeviceGetMemoryInfo_v2") {
		if m, ret := device.GetMemoryInfo_v2(); good(g, ret) {
			total, used, ok = m.Total, m.Used, true
		}
	}
	if !ok {
		m, ret := device.GetMemoryInfo()
		if !good(g, ret) {
			return
		}
		total, used = m.Total, m.Used
	}
	g.MemoryMiB = int64(total >> 20)
	g.MemoryUsedMiB = mib(used)
}

// mib returns a size in MiB, or nothing for the library's "not available".
func mib(bytes uint64) *int64 {
	if bytes == 1<<64-1 {
		return nil
	}
	n := int64(bytes >> 20)
	return &n
}

func addMIGDevices(device nvml.Device, g *client.GPU) {
	count, ret := device.GetMaxMigDeviceCount()
	if !good(g, ret) {
		return
	}
	for i := range count {
		mig, ret := device.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS { // gaps are normal
			continue
		}
		gi, ret := mig.GetGpuInstanceId()
		if ret != nvml.SUCCESS {
			continue
		}
		ci, ret := mig.GetComputeInstanceId()
		if ret != nvml.SUCCESS {
			continue
		}
		d := client.MIGDevice{Index: i, GPUInstance: gi, ComputeInstance: ci}
		if uuid, ret := mig.GetUUID(); ret == nvml.SUCCESS {
			d.UUID = uuid
		}
		if name, ret := mig.GetName(); ret == nvml.SUCCESS {
			// "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
			if _, profile, ok := strings.Cut(name, " MIG "); ok {
				d.Profile = profile
			}
		}
		if a, ret := mig.GetAttributes(); ret == nvml.SUCCESS {
			d.MemoryMiB = int64(a.MemorySizeMB)
		}
		g.MIGDevices = append(g.MIGDevices, d)
	}
}

// addProcesses adds the processes of all kinds; one that is of several is one process.
func (l library) addProcesses(device nvml.Device, g *client.GPU) {
	byPID := map[int]client.Process{}
	for _, kind := range []struct {
		function string
		list     func() ([]nvml.ProcessInfo, nvml.Return)
	}{
		{"nvmlDeviceGetComputeRunningProcesses", device.GetComputeRunningProcesses},
		{"nvmlDeviceGetGraphicsRunningProcesses", device.GetGraphicsRunningProcesses},
		{"nvmlDeviceGetMPSComputeRunningProcesses", device.GetMPSComputeRunningProcesses},
	} {
		if !l.has(kind.function) && !l.has(kind.function+"_v3") && !l.has(kind.function+"_v2") {
			continue
		}
		processes, ret := kind.list()
		if !good(g, ret) {
			continue
		}
		for _, p := range processes {
			pid := int(p.Pid)
			known, ok := byPID[pid]
			used := mib(p.UsedGpuMemory)
			if !ok || known.UsedMiB == nil || used != nil && *used > *known.UsedMiB {
				byPID[pid] = client.Process{PID: pid, UsedMiB: used}
			}
		}
	}
	for _, pid := range slices.Sorted(maps.Keys(byPID)) {
		g.Processes = append(g.Processes, byPID[pid])
	}
}

// addPeers tells each GPU which others it reaches by NVLink, directly or through switches.
func addPeers(gpus []client.GPU, devices map[string]nvml.Device) {
	for i := range gpus {
		for j := range i {
			a, b := devices[gpus[i].PCIAddress], devices[gpus[j].PCIAddress]
			if a == nil || b == nil {
				continue
			}
			if status, ret := a.GetP2PStatus(b, nvml.P2P_CAPS_INDEX_NVLINK); ret == nvml.SUCCESS && status == nvml.P2P_STATUS_OK {
				gpus[i].NVLinkPeers = append(gpus[i].NVLinkPeers, gpus[j].PCIAddress)
				gpus[j].NVLinkPeers = append(gpus[j].NVLinkPeers, gpus[i].PCIAddress)
			}
		}
	}
	for i := range gpus {
		slices.SortFunc(gpus[i].NVLinkPeers, func(a, b string) int {
			return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
		})
	}
}
