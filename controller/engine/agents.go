package engine

import (
	"context"

	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
)

// Agents are the agents of the fleet.
type Agents interface {
	// Observe asks every node. It does not fail: a node that cannot be asked is in the result with its error.
	Observe(ctx context.Context) *observed.Fleet
	// Agent returns the agent of the node with this name.
	Agent(name string) (Agent, error)
}

// An Agent looks and acts on one node. *[node.Node] is one; its methods say what each does and how it fails.
type Agent interface {
	PVEVersion(ctx context.Context) (string, error)
	Container(ctx context.Context, ctid int32) (observed.Container, error)
	Prepare(ctx context.Context, gpus []observed.Ref, capabilities []string) (created []string, err error)
	Patch(ctx context.Context, p node.Patch) (node.Patched, error)
	Restart(ctx context.Context, r node.Restart, progress func(phase, message string)) (observed.Container, error)
	Probe(ctx context.Context, ctid int32, instance string) (results []node.Probed, probed string, err error)
	Driver(ctx context.Context, ctid int32) (node.UserDriver, error)
	FetchInstaller(ctx context.Context, i node.Installer, progress func(message string)) error
	InstallDriver(ctx context.Context, i node.Install, progress func(message string)) (installed bool, err error)
	VerifyDriver(ctx context.Context, ctid int32, instance string, uuids []string) (node.DriverCheck, error)
	Run(ctx context.Context, c node.Command) (node.Exit, error)
}

// Nodes returns the agents of f.
func Nodes(f *node.Fleet) Agents { return nodes{f} }

type nodes struct{ *node.Fleet }

func (n nodes) Agent(name string) (Agent, error) { return n.Fleet.Node(name) }
