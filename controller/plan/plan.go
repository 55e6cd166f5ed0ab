// Package plan computes the ordered steps that bring each container from the observed to the desired state. It is
// pure: no RPC, no clock, no randomness.
package plan

import "phoenix.internal/controller/observed"

// A Plan is what an apply would do.
type Plan struct {
	FleetSHA256 string
	Containers  []Container // in an order in which they can be carried out
	Warnings    []string
}

// A Container is the plan for one CTID.
type Container struct {
	CTID   int32
	Name   string
	Node   string   // empty if no node has it
	Steps  []Step   // empty if nothing is to be done
	After  []int32  // CTIDs whose plans must succeed first, ascending; only CTIDs of this plan
	Errors []string // why it cannot be planned; Steps is then empty
	Notes  []string

	Assignment   string         // text of its gpu_assignment; "none" for none
	Configured   []observed.Ref // by its conf
	Desired      []observed.Ref // it is to have
	Mode         string         // "raw" or "native"
	Capabilities []string       // of the GPUs it is to have
	Driver       Driver         // it is to have; zero unless a step is to bring it
	Digest       string         // of the conf it was planned against
	Instance     string         // of the container it was planned against; empty if it does not run
}

// A Kind is what a step does. The order of the constants is the order within a container.
type Kind int

// The kinds of steps.
const (
	CheckDevices Kind = iota + 1
	PatchConf
	Restart
	VerifyDevices
	InstallDriver
	VerifyDriver
	Feature
	HealthCheck
)

// A Step is one idempotent action on one CTID.
type Step struct {
	Kind    Kind
	Feature string // name of the feature; empty for other kinds
	Reason  string // why, or what exactly: "add GPU 1, remove GPU 0"
}
