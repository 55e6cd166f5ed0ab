// Package fleet reads the fleet file, phoenix_lxc_configs.json: the desired state of every container. Everything that
// is wrong with a file becomes a [Finding] with its exact position.
package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"
)

// The ways to give devices to a container.
const (
	ModeRaw    = "raw"
	ModeNative = "native"
)

// The policies: whether other containers, and virtual machines, may have the same GPUs.
const (
	PolicyShared    = "shared"
	PolicyExclusive = "exclusive"
)

// The ways in which a container gets its user-space driver.
const (
	DriverInstall = "install" // installed in it, in the version of its node
	DriverHost    = "host"    // the node's own libraries, bound into it
	DriverNone    = "none"    // left to others
)

// The sets of devices that belong to a GPU.
const (
	CapabilityCompute  = "compute"
	CapabilityGraphics = "graphics"
	CapabilityFabric   = "fabric"
)

// A Fleet is what one fleet file says.
type Fleet struct {
	Path          string      // as given to Parse
	SHA256        string      // of the file's bytes, lower-case hex
	Mode          string      // default of the containers: ModeRaw or ModeNative
	Policy        string      // default of the containers: PolicyShared or PolicyExclusive
	DriverMode    string      // default of the containers: DriverInstall, DriverHost or DriverNone
	DriverVersion string      // nvidia_driver_version; empty if not given
	Runfile       string      // nvidia_runfile_url: URL or absolute path of DriverVersion's installer; empty if not given
	RunfileSHA256 string      // of that installer, lower-case hex; empty if not given
	Containers    []Container // by CTID; without those that have an error
}

// A Container is the desired state of one container.
type Container struct {
	CTID         int32
	Name         string
	Node         string       // the node that must have it; empty if any may
	GPUs         []Selector   // as Assignment returns them; nil for none
	Mode         string       // ModeRaw or ModeNative
	Policy       string       // PolicyShared or PolicyExclusive
	Capabilities []string     // in the order of the constants; never empty
	DriverMode   string       // DriverInstall, DriverHost or DriverNone
	CloneFrom    int32        // 0 if none
	Dependencies []int32      // in the order of the file, each once
	Features     []string     // in the order of the file, each once
	HealthCheck  *HealthCheck // nil if none is declared
	Line         int          // of its key, from 1
}

// A HealthCheck is a command that shows that a container does its work. It runs in the container with `sh -c`.
type HealthCheck struct {
	Command  string
	Retries  int           // how often it is tried in all
	Interval time.Duration // between two tries
	Timeout  time.Duration // of one try
}

// What a health check uses where the file is silent.
const (
	defaultRetries  = 3
	defaultInterval = 5 * time.Second
	defaultTimeout  = 30 * time.Second
)

// The limits of a fleet file.
const (
	MaxBytes      = 8 << 20
	MaxContainers = 20_000
	maxDepth      = 64
	maxValues     = 1_000_000
	maxGPU        = 255
)

// Parse reads a fleet file. The name is only for the findings. The findings are in the order of the file. The fleet is
// never nil: if there are errors it holds what could be read, and must not be planned with.
func Parse(name string, b []byte) (*Fleet, []Finding) {
	sum := sha256.Sum256(b)
	f := &Fleet{Path: name, SHA256: hex.EncodeToString(sum[:]), Mode: ModeRaw, Policy: PolicyShared, DriverMode: DriverInstall}
	r := &report{file: name, text: b}
	if root := decode(b, r); root != nil {
		f.read(root, r)
	}
	return f, r.findings()
}

// Container returns the container with this CTID, or nil.
func (f *Fleet) Container(ctid int32) *Container {
	i, ok := slices.BinarySearchFunc(f.Containers, ctid, func(c Container, ctid int32) int { return int(c.CTID - ctid) })
	if !ok {
		return nil
	}
	return &f.Containers[i]
}

// Valid tells whether no finding is an error.
func Valid(findings []Finding) bool {
	return !slices.ContainsFunc(findings, func(f Finding) bool { return f.Severity == Error })
}
