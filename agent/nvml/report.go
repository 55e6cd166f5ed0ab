// Package nvml asks NVIDIA's management library about the GPUs of the node. The library belongs to the driver and is
// loaded by a process of its own, phoenix-nvml: it needs cgo, and when it crashes or waits for a broken GPU for ever,
// that is not the agent's crash and wait.
//
// The helper reads requests from its standard input, a line each, and answers each with a line: an [Answer] in JSON.
// It ends when its input ends. Between two requests it has the library shut down: a process that holds it open keeps
// everybody from resetting a GPU, changing its MIG mode, giving it to vfio-pci and unloading the driver. For the same
// reason it waits for no events of the library; XID errors are in the kernel's log too.
package nvml

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Request is the line that asks for an [Answer].
const Request = "scan"

// An Answer is what the helper says: a report, or why there is none.
type Answer struct {
	Code   int     `json:"code,omitempty"` // what the library's initialisation returned; 0: it succeeded
	Report *Report `json:"report,omitempty"`
	Last   bool    `json:"last,omitempty"` // the helper ends, as the library did not let go of the driver
}

// A Report is what the library tells. What it does not support is absent.
type Report struct {
	DriverVersion string `json:"driver_version,omitempty"` // of the library's own driver, as "580.105.08"
	CUDAVersion   string `json:"cuda_version,omitempty"`   // the newest that the driver supports, as "13.0"
	GPUs          []GPU  `json:"gpus"`                     // by index
}

// A GPU is one GPU of a [Report].
type GPU struct {
	Index          int         `json:"index"`                 // nvidia-smi's number
	Code           int         `json:"code,omitempty"`        // the worst that a call about it returned: 15 lost, 16 reset required, 999 unknown; 0: none of these
	PCIAddress     string      `json:"pci_address,omitempty"` // dddd:bb:ss.f in lower case; empty: of a GPU that the library cannot open
	UUID           string      `json:"uuid,omitempty"`        // "GPU-" and a lower-case UUID
	Minor          *int        `json:"minor,omitempty"`       // M of /dev/nvidiaM
	Name           string      `json:"name,omitempty"`
	MemoryMiB      int64       `json:"memory_mib,omitempty"`
	MemoryUsedMiB  *int64      `json:"memory_used_mib,omitempty"`
	MIG            *MIGMode    `json:"mig,omitempty"`             // absent: the GPU cannot be divided
	MIGDevices     []MIGDevice `json:"mig_devices,omitempty"`     // by index
	NVLinkPeers    []string    `json:"nvlink_peers,omitempty"`    // PCI addresses in their order
	Processes      []Process   `json:"processes,omitempty"`       // by PID
	RecoveryAction *int        `json:"recovery_action,omitempty"` // NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: 0 none, 1 reset, 2 reboot, 3 drain P2P, 4 drain and reset, ...
}

// MIGMode says whether a GPU is divided by MIG, and whether it will be after its next reset.
type MIGMode struct {
	Current bool `json:"current"`
	Pending bool `json:"pending"`
}

// A MIGDevice is one compute instance of a divided GPU.
type MIGDevice struct {
	Index           int    `json:"index"` // nvidia-smi's number, the M of "0:M"
	UUID            string `json:"uuid"`  // "MIG-" and a lower-case UUID; before the 470 branch "MIG-GPU-<uuid>/<gi>/<ci>"
	GPUInstance     int    `json:"gpu_instance"`
	ComputeInstance int    `json:"compute_instance"`
	Profile         string `json:"profile,omitempty"` // as "1g.10gb"
	MemoryMiB       int64  `json:"memory_mib,omitempty"`
}

// A Process is a process that uses a GPU.
type Process struct {
	PID     int    `json:"pid"` // in the helper's namespace, which is the node's
	UsedMiB *int64 `json:"used_mib,omitempty"`
}

// What one node can have at most; more is nonsense.
const (
	maxGPUs       = 64
	maxMIGDevices = 64
	maxProcesses  = 1 << 14
	maxText       = 96
	maxPID        = 1 << 22
)

var (
	addressPattern = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
	uuidPattern    = regexp.MustCompile(`^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	migPattern     = regexp.MustCompile(`^MIG-([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|GPU-[0-9a-f-]{36}/\d{1,2}/\d{1,2})$`)
	profilePattern = regexp.MustCompile(`^(\dc\.)?\dg\.\d{1,4}gb([.+]\w{1,16})*$`)
	versionPattern = regexp.MustCompile(`^\d{1,5}(\.\d{1,5}){1,3}$`)
)

// clean takes out what cannot be true, as a broken library tells it: the rest of the report may be right. It says
// whether the report can be used at all.
func (r *Report) clean() bool {
	if len(r.GPUs) > maxGPUs {
		return false
	}
	r.DriverVersion = matching(versionPattern, r.DriverVersion)
	r.CUDAVersion = matching(versionPattern, r.CUDAVersion)
	seen := map[string]bool{}
	r.GPUs = slices.DeleteFunc(r.GPUs, func(g GPU) bool {
		twice := g.PCIAddress != "" && seen[g.PCIAddress]
		seen[g.PCIAddress] = true
		return twice || g.Index < 0 || g.Index >= maxGPUs
	})
	for i := range r.GPUs {
		if !r.GPUs[i].clean() {
			return false
		}
	}
	slices.SortFunc(r.GPUs, func(a, b GPU) int { return cmp.Compare(a.Index, b.Index) })
	return true
}

func (g *GPU) clean() bool {
	if len(g.MIGDevices) > maxMIGDevices || len(g.Processes) > maxProcesses || len(g.NVLinkPeers) > maxGPUs {
		return false
	}
	g.PCIAddress = matching(addressPattern, g.PCIAddress)
	g.UUID = matching(uuidPattern, lowerUUID(g.UUID))
	g.Name = printable(g.Name)
	g.MemoryMiB = max(g.MemoryMiB, 0)
	if g.Minor != nil && (*g.Minor < 0 || *g.Minor > 255) {
		g.Minor = nil
	}
	if g.MemoryUsedMiB != nil && *g.MemoryUsedMiB < 0 {
		g.MemoryUsedMiB = nil
	}
	g.NVLinkPeers = slices.DeleteFunc(g.NVLinkPeers, func(a string) bool { return !addressPattern.MatchString(a) })
	g.Processes = slices.DeleteFunc(g.Processes, func(p Process) bool { return p.PID <= 0 || p.PID > maxPID })
	g.MIGDevices = slices.DeleteFunc(g.MIGDevices, func(d MIGDevice) bool {
		return d.Index < 0 || d.GPUInstance < 0 || d.ComputeInstance < 0
	})
	for i := range g.MIGDevices {
		d := &g.MIGDevices[i]
		d.UUID = matching(migPattern, lowerUUID(d.UUID))
		d.Profile = matching(profilePattern, d.Profile)
		d.MemoryMiB = max(d.MemoryMiB, 0)
	}
	return true
}

// matching returns s if it matches, and else nothing.
func matching(pattern *regexp.Regexp, s string) string {
	if !pattern.MatchString(s) {
		return ""
	}
	return s
}

// lowerUUID puts all but the prefixes in lower case.
func lowerUUID(s string) string {
	prefix := ""
	for _, p := range []string{"MIG-", "GPU-"} {
		if rest, ok := strings.CutPrefix(s, p); ok {
			prefix, s = prefix+p, rest
		}
	}
	return prefix + strings.ToLower(s)
}

// printable returns s without what does not belong into a name.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return strings.TrimSpace(s)
}
