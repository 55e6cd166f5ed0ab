package doctor

// Facts are what is known about one container.
type Facts struct {
	CTID      int32
	Fleet     string       // what to call the fleet file
	Wish      *Wish        // what the fleet file says; nil if it does not name the container
	Away      []Away       // nodes that did not answer, by name
	On        []string     // nodes that have a container with this CTID, by name
	Node      *Node        // the node that is meant; nil if none that answers has it
	Container *Container   // on that node
	Probe     *Probe       // nil: not tried
	Driver    *UserDriver  // nil: not tried
	Check     *DriverCheck // nil: not tried
	Docker    Docker
}

// A Docker is what Docker in the container is told about GPUs: the texts of [DockerConfig] and [CDISpec], empty if there is
// no such file.
type Docker struct {
	Config, CDI string
}

// An Away is a node that did not answer.
type Away struct {
	Node, Message string
}

// A Wish is what the fleet file says about one container.
type Wish struct {
	Name         string
	Node         string   // that must have it; empty if any may
	GPUs         []Want   // none: it is to have no GPU
	Errors       []string // why the node cannot give them, in the words of the planning
	Mode         string   // "raw" or "native"
	Capabilities []string // "compute", "graphics", "fabric"; none: compute
	CloneFrom    int32    // 0 if none
	Driver       bool     // whether it is to have NVIDIA's user-space driver
	DriverMode   string   // "install", "host" or "none"
}

// A Want is one GPU, or MIG device, that is assigned. It is named by the first of MIGUUID, UUID, PCI and Index that is set.
type Want struct {
	Text    string // as people call it: "GPU 1"
	MIGUUID string // or its beginning
	UUID    string // or its beginning
	PCI     string
	Index   int         // as nvidia-smi counts; -1: not named by it
	MIG     *Instance   // nil: the whole GPU; -1/-1 if the node has no such MIG device
	Was     *AppliedGPU // what it was when it was last applied; nil if that is not known
}

// An AppliedGPU is the card that was meant when the assignment was last applied.
type AppliedGPU struct {
	UUID, PCI string
}

// An Instance is a MIG device of a GPU.
type Instance struct {
	GI, CI int
}

// A Node is one node with its GPUs and its driver.
type Node struct {
	Name    string
	Sandbox bool // no driver stands behind its device nodes
	Quorate bool
	Loaded  string       // version of the kernel module; empty if it is not loaded
	Disk    string       // version that the next boot loads; empty if unknown
	Library string       // version of the node's own libraries; empty if there are none, or unknown
	GPUs    []GPU        // by PCI address, those bound elsewhere included
	Shared  []DeviceNode // those that GPUs share
	Fabric  []DeviceNode // of an NVLink fabric
}

// A GPU is one card.
type GPU struct {
	Index    int    // -1 if it is not bound to nvidia
	UUID     string // empty if unknown
	PCI      string
	Minor    int    // -1 if unknown
	Driver   string // "nvidia", "vfio-pci", "nouveau", "none", "other"
	Nodes    []DeviceNode
	Graphics []DeviceNode // DRM nodes
	MIG      bool         // it is divided
	Devices  []MIGDevice
	Health   Fitness
}

// A MIGDevice is one compute instance of a card.
type MIGDevice struct {
	Instance
	UUID  string
	Nodes []DeviceNode
}

// A Fitness is what the kernel's log has told about a card.
type Fitness struct {
	Fault   bool // not fit for new work
	Warning bool
	Errors  []XID
}

// An XID is one kind of error of a card.
type XID struct {
	Number  int
	Class   string // "reset", "reboot", ...
	Message string
	Advice  string
}

// A DeviceNode is a file in the node's /dev.
type DeviceNode struct {
	Path         string
	Major, Minor int // that it must have; Major -1 if its module is not loaded
	Mode         int // permission bits
	State        NodeState
}

// A NodeState is what is at the place of a device node.
type NodeState string

// The states of a device node.
const (
	NodeOK         NodeState = "ok"
	NodeMissing    NodeState = "missing"
	NodeStale      NodeState = "stale" // numbers of an earlier load of the module
	NodeNotADevice NodeState = "not a device"
)

// A Container is one container as its agent sees it.
type Container struct {
	Node, Hostname string
	State          string // "running", "stopped", ...; "" if it could not be found out
	Lock           string
	Template       bool
	Unprivileged   bool
	Configured     Passthrough
	Effective      *Passthrough // nil if it does not run
	RestartPending bool
	Problems       []Problem
}

// A Passthrough is what gives a container its GPUs.
type Passthrough struct {
	GPUs         []Given
	Mode         string   // "raw", "native", "mixed", ""
	Devices      []string // paths
	Capabilities []string // for which some device of their own is given
}

// A Given is a GPU, or MIG device, that a conf or a container has.
type Given struct {
	Index, Minor int // -1 if the card is gone
	MIG          *Instance
}

// A Problem is something wrong that the agent found in the conf or the running container.
type Problem struct {
	Kind    string // name of the ProblemKind without prefix, lower case: "wrong_major"
	Message string
	Line    int
	Advice  string
}

// A Probe is what opening the devices inside gave.
type Probe struct {
	Err     string // why there is no result
	Results []Probed
}

// A Probed is one device.
type Probed struct {
	Path         string
	GPU          int       // index; -1 for one that GPUs share
	MIG          *Instance // capability node of this MIG device; CI is -1 for that of its GPU instance
	Expected     bool
	Outcome      string // "opened", "no driver", "denied", ...
	Errno        string
	Major, Minor int
}

// A UserDriver is the user-space driver in the container.
type UserDriver struct {
	Err      string // why it is not known
	Libc     string // "glibc", "musl", "none"
	State    string // "none", "installed", "incomplete"
	Version  string
	Broken   []string // sonames
	Packages []string
}

// A DriverCheck is what using the driver gave.
type DriverCheck struct {
	Err                        string
	Version                    string // that nvidia-smi reports
	UUIDs, Missing, Unexpected []string
	SMIError                   string // what is wrong with nvidia-smi itself
	CUDA                       string // "ran", "no library", "not run"
	CUDAResult                 int
}
