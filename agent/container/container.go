// Package container is one LXC container as its node sees it: observed without starting a process, edited by typed
// operations, restarted so that it is never left stopped.
package container

import (
	"context"
	"log/slog"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/ctlock"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/passthrough"
)

// A Manager observes and changes the containers of one node. All fields but AllowedOptions and StartPatience must be set. Its methods
// may be called concurrently; changes of one container wait for each other.
type Manager struct {
	Confs   *confstore.Store
	GPUs    *gpu.Scanner
	Runtime Runtime
	// StateDir is where unfinished restarts, edits that no start has proven, and what was last applied are recorded.
	StateDir string
	// AllowedOptions are the lxc.* options that SetOption may set, as key=value.
	AllowedOptions []string
	// StartPatience is how long a start that Proxmox refuses for the moment is tried again, for example because a backup
	// has locked the container; 0 means 2 min.
	StartPatience time.Duration
	Log           *slog.Logger

	locks      ctlock.Locks
	restarting restarts
	records    records
	slots      slots
}

// A Runtime runs the containers of a node. [Proxmox] is the real one.
type Runtime interface {
	// Observe tells how a container runs. paths are absolute paths in the container to look at.
	Observe(ctx context.Context, ctid int32, paths []string) (Running, error)
	// Start returns when the container runs.
	Start(ctx context.Context, ctid int32) error
	// Shutdown stops gracefully. If the container does not stop in time the error is pct.ErrStopTimeout
	// and it still runs.
	Shutdown(ctx context.Context, ctid int32, timeout time.Duration) error
	// Stop kills. Like Shutdown it returns after Proxmox has rewritten the conf.
	Stop(ctx context.Context, ctid int32) error
	// Started returns LXC's configuration as the container was started with it. The error wraps
	// lxcmon.ErrNotRunning if it does not run.
	Started(ctx context.Context, ctid int32) ([]Item, error)
}

// Running is how a container runs at one moment. Everything but State is zero if it does not run.
type Running struct {
	State    lxcmon.State
	InitPID  int
	Instance string // identity of this start; never comes back
	// StartTicks is when the init was started, since boot, as /proc tells it: with InitPID the identity of a process. 0 for
	// one that is not of this machine.
	StartTicks uint64
	StartTime  time.Time
	// UserNS says that the container's root is not the host's.
	UserNS bool
	// Rules are the device rules that the container was started with, in LXC's order.
	Rules []passthrough.RuleLine
	// Found is what stands at each path asked for, by path.
	Found map[string]File
}

// Unknown is the state of a container that could not be observed.
const Unknown lxcmon.State = -1

// A File is what stands at a path in a container.
type File struct {
	Kind         FileKind
	Major, Minor int // of a character device
}

// FileKind tells a device from what may stand in its place.
type FileKind int

// The kinds of files.
const (
	Absent FileKind = iota
	CharDevice
	Other
)

// A Container is one container, observed.
type Container struct {
	CTID         int32
	Hostname     string
	Lock         string // value of `lock:`; empty if not locked
	Template     bool
	Unprivileged bool
	Digest       string
	Running      Running

	Configured     passthrough.Passthrough
	Effective      *passthrough.Passthrough // nil if it does not run
	RestartPending bool
	Problems       []passthrough.Problem
	Applied        *Applied // what was last set through the agent; nil: nothing ever was
}
