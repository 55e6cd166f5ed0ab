// Package observed holds plain values: what the agents of a fleet reported, and when. It is the input of planning,
// so nothing in it performs I/O.
package observed

import "time"

// A Fleet is one observation of every configured node.
type Fleet struct {
	Nodes []Node // by name
	// Verified tells, by CTID, as what a container was last verified: what plan.Verification gives.
	Verified map[int32]string
}

// A Node is what one agent reported.
type Node struct {
	Name    string
	Address string // host and port
	// Err says why the node could not be asked; everything below is then zero.
	Err error
	At  time.Time

	DriverVersion string      // of the loaded kernel module; empty if none is loaded
	GPUs          []GPU       // by PCI address
	Containers    []Container // by CTID
	VMs           []int32     // CTIDs of virtual machines, ascending
}

// A GPU is one NVIDIA GPU of a node.
type GPU struct {
	Index      int // as nvidia-smi counts; -1 if not bound to the nvidia driver
	UUID       string
	PCIAddress string
	Minor      int // N of /dev/nvidiaN; -1 if unknown
	Model      string
	Driver     string // "nvidia", "vfio-pci", "nouveau", "none", "other"

	NUMANode    int         // -1 if unknown, or the node has only one
	NVLinkPeers []string    // PCI addresses of the GPUs that NVLink connects it to
	MIGEnabled  bool        // whether it can be given by its MIG devices only
	MIG         []MIGDevice // by index
	Fault       string      // why it is given to no container anew; empty if it is fit
	VMs         []int32     // virtual machines that would take it from containers at their start, ascending
}

// A MIGDevice is one compute instance of a GPU.
type MIGDevice struct {
	Index           int    // as nvidia-smi counts in its GPU; -1 if unknown
	UUID            string // empty if unknown
	GPUInstance     int
	ComputeInstance int    // in its GPU instance
	Profile         string // "1g.10gb"; empty if unknown
}

// Refs returns what the GPU can be given as: itself, or its MIG devices.
func (g GPU) Refs() []Ref {
	whole := g.Ref()
	if !g.MIGEnabled {
		return []Ref{whole}
	}
	var refs []Ref
	for _, m := range g.MIG {
		r := whole
		r.IsMIG, r.MIG = true, m
		refs = append(refs, r)
	}
	return refs
}

// Ref returns the GPU as a whole.
func (g GPU) Ref() Ref { return Ref{Index: g.Index, UUID: g.UUID, PCIAddress: g.PCIAddress} }

// A State is LXC's state of a container, in lower case.
type State string

// The states that planning tells apart.
const (
	StateStopped  State = "stopped"
	StateStarting State = "starting" // or down in the middle of a restart by its agent
	StateRunning  State = "running"
)

// A Mode is the way devices are given: "raw", "native", "mixed", or "" if there are none.
type Mode string

// The modes.
const (
	ModeNone   Mode = ""
	ModeRaw    Mode = "raw"
	ModeNative Mode = "native"
	ModeMixed  Mode = "mixed"
)

// A Container is one container as its agent sees it.
type Container struct {
	CTID           int32
	Hostname       string
	State          State
	Lock           string // value of `lock:`; empty if not locked
	Template       bool
	Unprivileged   bool
	Digest         string
	Configured     Passthrough
	Applied        *Applied     // nil if its agent has no record
	Effective      *Passthrough // nil if it does not run
	RestartPending bool
	Problems       []Problem
	Instance       string // identity of this start; empty if it does not run
}

// A Passthrough is what gives a container its GPUs.
type Passthrough struct {
	GPUs         []Ref    // by index
	Mode         Mode     // of a conf; what is in effect has none
	Capabilities []string // what comes with the GPUs; empty if that is not told
	Devices      []string // paths, sorted
}

// An Applied is the record that an agent keeps of what it was last told to give a container.
type Applied struct {
	Assignment   string // text of the gpu_assignment; empty if the caller told none
	GPUs         []Ref  // as they were then
	Mode         Mode
	Capabilities []string
}

// A Problem is something wrong that the agent found. If it has no Advice, setting the passthrough anew mends it.
type Problem struct {
	Kind    string // name of the ProblemKind without prefix, lower case: "wrong_major"
	Message string
	Line    int
	Advice  string
}
