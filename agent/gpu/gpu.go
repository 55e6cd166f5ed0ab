// Package gpu finds the NVIDIA GPUs of the node, their device nodes and the majors that the kernel
// gave their drivers, and makes device nodes that are missing. It reads /proc, /sys and /dev; what is
// not there comes from NVML, the driver's library, or of it the size of memory from nvidia-smi.
package gpu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"phoenix.internal/agent/nvml"
)

// A Scanner finds the GPUs of one node. Its methods may be called at the same time. The zero value
// is ready.
type Scanner struct {
	Sys, Proc, Dev string // roots of the trees to read; empty: /sys, /proc and /dev
	SMI            string // nvidia-smi; empty: /usr/bin/nvidia-smi
	Modprobe       string // modprobe; empty: /sbin/modprobe

	NVML *nvml.Client // nil: not asked

	preparing sync.Mutex // held by Prepare

	mu       sync.Mutex
	memory   *smiAnswer[map[string]int64]       // of the latest driver version and set of GPUs
	migNames *smiAnswer[map[string][]MIGDevice] // of the latest division of GPUs
	library  *library                           // likewise, and of their MIG devices
}

// An Inventory is what a node has of GPUs at one moment.
type Inventory struct {
	DriverVersion    string         // of the loaded nvidia module, as "580.105.08"; empty: not loaded
	OpenKernelModule bool           // whether it is of the open flavour
	Majors           map[string]int // of character devices by their driver's name in /proc/devices; "nvidia" also where it is called nvidia-frontend
	GPUs             []GPU          // in the order of their PCI addresses
	Shared           []DeviceNode   // nvidia-modeset, nvidia-uvm, nvidia-uvm-tools, nvidiactl; none without driver and GPUs
	Fabric           []DeviceNode   // IMEX channels, by path; none where the driver has no major for them
	Management       []DeviceNode   // capability nodes that let a process divide GPUs by MIG, watch others or manage a fabric; never given
	Problems         []string       // one sentence each
}

// A GPU is one NVIDIA GPU, whatever driver it is bound to.
type GPU struct {
	Index      int    // position among the usable GPUs bound to nvidia, nvidia-smi's number; -1 if it is not one of them
	UUID       string // "GPU-" and a lower-case UUID; empty until the driver has initialised it once
	PCIAddress string // dddd:bb:ss.f in lower case
	Minor      int    // M of /dev/nvidiaM; -1: unknown
	Model      string // empty: unknown
	MemoryMiB  int64  // 0: unknown
	Driver     string // the kernel's name of the driver: "nvidia", "vfio-pci", "nouveau", ...; "none" without
	NUMANode   int    // -1: one node only, or unknown
	Nodes      []DeviceNode

	MIGEnabled  bool         // divided by MIG; that a GPU could be divided but is not, only NVML tells
	MIG         []MIGDevice  // by instance
	Graphics    []DeviceNode // DRM nodes of this card, by path; none without nvidia-drm
	NVLinkPeers []string     // PCI addresses in their order; only NVML tells
	Processes   []Process    // by PID; only NVML tells
	// Sources tells where values come from, by the names of the fields of phoenix.type.v1.Gpu.
	Sources map[string]string
}

// A MIGDevice is one compute instance of a GPU that is divided by MIG.
type MIGDevice struct {
	Index     int    // the M of nvidia-smi's "0:M"; -1: unknown
	UUID      string // "MIG-" and a lower-case UUID; empty: unknown
	Instance  Instance
	Profile   string       // as "1g.10gb"; empty: unknown
	MemoryMiB int64        // 0: unknown
	Nodes     []DeviceNode // the capability nodes of the GPU instance and of the compute instance
}

// An Instance is the numbers of a MIG device on its GPU.
type Instance struct {
	GPU     int // of the GPU instance
	Compute int // of the compute instance within that
}

// A Process is a process of the node that uses a GPU.
type Process struct {
	PID     int
	UsedMiB int64 // 0: unknown
}

// The sources of values.
const (
	fromNVML  = "nvml"
	fromProc  = "proc"
	fromSysfs = "sysfs"
	fromSMI   = "nvidia-smi"
)

// NVIDIA is the driver under which a container can use a GPU, and None stands for no driver.
const (
	NVIDIA = "nvidia"
	None   = "none"
)

// Scan looks at the node. It reads files; what NVML told last is in memory, and it is asked meanwhile.
// Only after a change of the driver's version, the set of GPUs or their MIG devices that is waited for,
// at most five seconds; likewise nvidia-smi, which is called then if there is no NVML.
func (s *Scanner) Scan(ctx context.Context) (*Inventory, error) {
	inv, err := s.scan(ctx)
	if err != nil {
		return nil, fmt.Errorf("scan GPUs: %w", err)
	}
	if !s.addNVML(ctx, inv) {
		s.addMemory(ctx, inv)
		s.addMIGNames(ctx, inv)
	}
	return inv, nil
}

func (s *Scanner) scan(ctx context.Context) (*Inventory, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	inv := &Inventory{}
	var err error
	if inv.Majors, err = s.majors(); err != nil {
		return nil, err
	}
	if inv.DriverVersion, inv.OpenKernelModule, err = s.version(); err != nil {
		return nil, err
	}
	if err := s.addGPUs(inv); err != nil {
		return nil, err
	}
	s.addNodes(inv)
	s.addGraphics(inv)
	s.addMIG(inv)
	s.addFabric(inv)
	inv.Problems = problems(inv)
	return inv, nil
}

func (s *Scanner) majors() (map[string]int, error) {
	b, err := os.ReadFile(filepath.Join(s.proc(), "devices"))
	if err != nil {
		return nil, err
	}
	return parseDevices(b), nil
}

// version returns the version of the loaded module, and whether it is of the open flavour.
func (s *Scanner) version() (version string, open bool, err error) {
	b, err := readIfExists(filepath.Join(s.proc(), "driver/nvidia/version"))
	if err != nil {
		return "", false, err
	}
	version, open = parseVersion(b)
	if version != "" {
		return version, open, nil
	}
	b, err = readIfExists(filepath.Join(s.sys(), "module/nvidia/version"))
	if err != nil {
		return "", false, err
	}
	return firstVersion(string(b)), open, nil
}

// addGPUs adds the GPUs that are on the PCI bus or known to the driver.
func (s *Scanner) addGPUs(inv *Inventory) error {
	byAddress := map[string]*GPU{}
	pci := filepath.Join(s.sys(), "bus/pci/devices")
	names, err := list(pci)
	if err != nil {
		return err
	}
	for _, name := range names {
		address, ok := parseAddress(name)
		if !ok || !isGPU(filepath.Join(pci, name)) {
			continue
		}
		byAddress[address] = readPCI(filepath.Join(pci, name), address)
	}

	known := filepath.Join(s.proc(), "driver/nvidia/gpus")
	if names, err = list(known); err != nil {
		return err
	}
	excluded := map[string]bool{}
	for _, name := range names {
		address, ok := parseAddress(name)
		if !ok {
			continue
		}
		gpu := byAddress[address]
		if gpu == nil {
			gpu = &GPU{PCIAddress: address, Minor: -1, Driver: NVIDIA, NUMANode: -1}
			gpu.from(fromProc, "pci_address", "driver")
			byAddress[address] = gpu
		}
		b, err := readIfExists(filepath.Join(known, name, "information"))
		if err != nil {
			inv.Problems = append(inv.Problems, fmt.Sprintf("GPU %s: %v", address, err))
			continue
		}
		info := parseInformation(b)
		gpu.Model, gpu.UUID, gpu.Minor = info.model, info.uuid, info.minor
		for field, known := range map[string]bool{"model": info.model != "", "uuid": info.uuid != "", "minor": info.minor >= 0} {
			if known {
				gpu.from(fromProc, field)
			}
		}
		excluded[address] = info.excluded
	}

	for _, gpu := range byAddress {
		inv.GPUs = append(inv.GPUs, *gpu)
	}
	slices.SortFunc(inv.GPUs, func(a, b GPU) int { return compareAddresses(a.PCIAddress, b.PCIAddress) })
	index := 0
	for i := range inv.GPUs {
		gpu := &inv.GPUs[i]
		gpu.Index = -1
		// A GPU that the driver lost keeps its number, so that the ones after it keep theirs.
		if gpu.Driver == NVIDIA && !excluded[gpu.PCIAddress] {
			gpu.Index = index
			index++
			gpu.from(fromProc, "index")
		}
		if excluded[gpu.PCIAddress] {
			inv.Problems = append(inv.Problems, fmt.Sprintf("GPU %s is excluded from use by the driver's parameter NVreg_ExcludedGpus.", gpu.PCIAddress))
		} else if _, err := os.Stat(filepath.Join(known, gpu.PCIAddress)); gpu.Driver == NVIDIA && err != nil {
			inv.Problems = append(inv.Problems, fmt.Sprintf("GPU %s is bound to nvidia, but the driver does not list it: it did not initialise or fell off the bus (see the kernel's log).", gpu.PCIAddress))
		}
	}
	return nil
}

// from notes where values come from.
func (g *GPU) from(source string, fields ...string) {
	if g.Sources == nil {
		g.Sources = map[string]string{}
	}
	for _, f := range fields {
		g.Sources[f] = source
	}
}

// isGPU says whether a PCI device is an NVIDIA VGA or 3D controller.
func isGPU(dir string) bool {
	class := readLine(dir, "class")
	return readLine(dir, "vendor") == "0x10de" && (strings.HasPrefix(class, "0x0300") || strings.HasPrefix(class, "0x0302"))
}

func readPCI(dir, address string) *GPU {
	gpu := &GPU{PCIAddress: address, Minor: -1, Driver: None, NUMANode: -1}
	gpu.from(fromSysfs, "pci_address", "driver")
	if link, err := os.Readlink(filepath.Join(dir, "driver")); err == nil {
		gpu.Driver = filepath.Base(link)
	}
	if node, err := strconv.Atoi(readLine(dir, "numa_node")); err == nil && node >= 0 {
		gpu.NUMANode = node
		gpu.from(fromSysfs, "numa_node")
	}
	return gpu
}

// problems says what is wrong with the nodes and the driver, after what is known already.
func problems(inv *Inventory) []string {
	all := inv.Problems
	bound := 0
	minors := map[int]string{}
	for _, gpu := range inv.GPUs {
		if gpu.Driver != NVIDIA {
			continue
		}
		bound++
		if other, ok := minors[gpu.Minor]; ok && gpu.Minor >= 0 {
			all = append(all, fmt.Sprintf("GPUs %s and %s have the same minor number %d.", other, gpu.PCIAddress, gpu.Minor))
		}
		minors[gpu.Minor] = gpu.PCIAddress
		for _, n := range gpu.Nodes {
			all = n.addProblem(all)
		}
		for _, m := range gpu.MIG {
			for _, n := range m.Nodes {
				if n.State != Missing { // NVIDIA's libraries make it at its first use, and Prepare
					all = n.addProblem(all)
				}
			}
		}
	}
	switch {
	case inv.DriverVersion == "" && len(inv.GPUs) > 0:
		all = append(all, "The nvidia driver is not loaded.")
	case inv.DriverVersion != "" && inv.Majors[uvmDriver] == 0:
		all = append(all, "The module nvidia-uvm is not loaded, so CUDA does not work.")
	}
	for _, n := range inv.Shared {
		if bound > 0 && (n.Path != "/dev/nvidia-modeset" || n.State != Missing) {
			all = n.addProblem(all)
		}
	}
	return all
}

func (s *Scanner) proc() string { return or(s.Proc, "/proc") }
func (s *Scanner) sys() string  { return or(s.Sys, "/sys") }
func (s *Scanner) dev() string  { return or(s.Dev, "/dev") }

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// list returns the names in a directory, none if it does not exist.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func readIfExists(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// readLine returns the only line of a file of sysfs, empty if it cannot be read.
func readLine(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
