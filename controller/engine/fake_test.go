package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
)

// fakeFleet is nodes that behave as agents do, as far as the engine can tell: a conf has a digest, a restart makes what
// is configured effective and the instance new, and a probe opens what is effective.
type fakeFleet struct {
	mu    sync.Mutex
	nodes map[string]*fakeNode
	// calls are the acts, in order: "pve1 patch 901 [0 1]". Looking is not acting.
	calls []string
	// before may fail or delay an act, named as in calls. It runs without the lock.
	before func(call string) error
	// after sees a patch that was made.
	after func(call string)
	// now and then, to see how many work at once
	working, most map[string]int
}

type fakeNode struct {
	fleet      *fakeFleet
	name       string
	gpus       []int
	pve        string
	err        error // why it cannot be reached
	containers map[int32]*fakeContainer
	cached     string // version of the driver whose installer it has
	uuids      bool   // whether its GPUs have UUIDs
}

type fakeContainer struct {
	observed.Container
	driver   string // version of its user-space driver
	starts   int
	instance int
	markers  map[string]string // SHA-256 by feature
	// outcome of opening a GPU's device that it has; default opened
	outcome func(gpu int) node.Outcome
	// leak is a GPU that it can open although nothing gives it
	leak    map[int]bool
	command func(script string) node.Exit // what a script or health check does; default: succeeds
}

func newFake(nodes ...string) *fakeFleet {
	f := &fakeFleet{nodes: map[string]*fakeNode{}, working: map[string]int{}, most: map[string]int{}}
	for _, name := range nodes {
		f.nodes[name] = &fakeNode{fleet: f, name: name, gpus: []int{0, 1}, pve: "9.1.2", containers: map[int32]*fakeContainer{}}
	}
	return f
}

// add makes a container that runs, if running, with what it is configured for.
func (f *fakeFleet) add(name string, ctid int32, running bool, gpus ...int) *fakeContainer {
	c := &fakeContainer{markers: map[string]string{}, leak: map[int]bool{}}
	c.CTID, c.State, c.Unprivileged = ctid, observed.StateStopped, true
	c.configure(refs(gpus...), observed.ModeRaw)
	f.nodes[name].containers[ctid] = c
	if running {
		c.startNow()
	}
	return c
}

// refs are the GPUs with these indexes.
func refs(indexes ...int) (all []observed.Ref) {
	for _, i := range indexes {
		all = append(all, observed.Ref{Index: i})
	}
	return all
}

func (c *fakeContainer) configure(gpus []observed.Ref, mode observed.Mode) {
	c.Configured = observed.Passthrough{GPUs: slices.Clone(gpus)}
	if len(gpus) > 0 {
		c.Configured.Mode = mode
		c.Configured.Devices = []string{"/dev/nvidiactl"}
	}
	c.Digest = fmt.Sprintf("digest of %v %s", observed.Indexes(gpus), mode)
	c.pending()
}

func (c *fakeContainer) startNow() {
	c.starts++
	c.instance++
	c.State = observed.StateRunning
	c.Instance = fmt.Sprintf("%d:%d", c.CTID, c.instance)
	effective := c.Configured
	c.Effective = &effective
	c.pending()
}

func (c *fakeContainer) stopNow() {
	c.State, c.Instance, c.Effective, c.RestartPending = observed.StateStopped, "", nil, false
}

func (c *fakeContainer) pending() {
	c.RestartPending = c.Effective != nil && (!observed.Equal(c.Effective.GPUs, c.Configured.GPUs) || c.Effective.Mode != c.Configured.Mode)
}

func (f *fakeFleet) Observe(context.Context) *observed.Fleet {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := &observed.Fleet{}
	for _, name := range []string{"pve1", "pve2"} {
		n := f.nodes[name]
		if n == nil {
			continue
		}
		on := observed.Node{Name: name, Address: name + ":7461", Err: n.err, At: time.Now()}
		if n.err == nil {
			on.DriverVersion = "580.76.05"
			for _, g := range n.gpus {
				gpu := observed.GPU{Index: g, Minor: g, Driver: "nvidia"}
				if n.uuids {
					gpu.UUID = fmt.Sprintf("GPU-%d", g)
				}
				on.GPUs = append(on.GPUs, gpu)
			}
			for _, c := range n.containers {
				on.Containers = append(on.Containers, c.Container)
			}
			slices.SortFunc(on.Containers, func(a, b observed.Container) int { return int(a.CTID - b.CTID) })
		}
		o.Nodes = append(o.Nodes, on)
	}
	return o
}

func (f *fakeFleet) Agent(name string) (engine.Agent, error) {
	n := f.nodes[name]
	if n == nil {
		return nil, &node.UnknownError{Name: name}
	}
	return n, nil
}

// act notes an act and asks the hook about it.
func (n *fakeNode) act(format string, args ...any) error {
	call := n.name + " " + fmt.Sprintf(format, args...)
	f := n.fleet
	f.mu.Lock()
	f.calls = append(f.calls, call)
	before, err := f.before, n.err
	f.working[n.name]++
	f.most[n.name] = max(f.most[n.name], f.working[n.name])
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.working[n.name]--
		f.mu.Unlock()
	}()
	if err != nil {
		return err
	}
	if before != nil {
		return before(call)
	}
	return nil
}

func (f *fakeFleet) acts() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (n *fakeNode) fail(reason node.Reason, message string) error {
	code := codes.FailedPrecondition
	switch reason {
	case node.DigestMismatch, node.InstanceChanged:
		code = codes.Aborted
	case node.Unreachable, node.ShuttingDown, node.NoQuorum, node.ConfLockTimeout:
		code = codes.Unavailable
	}
	return &node.Error{Node: n.name, Address: n.name + ":7461", Code: code, Reason: reason, Message: message}
}

// with calls fn with the container, under the lock.
func (n *fakeNode) with(ctid int32, fn func(*fakeContainer) error) error {
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	if n.err != nil {
		return n.err
	}
	c := n.containers[ctid]
	if c == nil {
		return n.fail(node.ContainerNotFound, fmt.Sprintf("no CTID %d", ctid))
	}
	return fn(c)
}

func (n *fakeNode) PVEVersion(context.Context) (string, error) { return n.pve, nil }

func (n *fakeNode) Container(_ context.Context, ctid int32) (got observed.Container, err error) {
	err = n.with(ctid, func(c *fakeContainer) error {
		got = c.Container
		return nil
	})
	return got, err
}

func (n *fakeNode) Prepare(_ context.Context, gpus []observed.Ref, _ []string) ([]string, error) {
	return nil, n.act("prepare %v", observed.Indexes(gpus))
}

func (n *fakeNode) Patch(_ context.Context, p node.Patch) (done node.Patched, err error) {
	if err := n.act("patch %d %v", p.CTID, observed.Indexes(p.GPUs)); err != nil {
		return done, err
	}
	err = n.with(p.CTID, func(c *fakeContainer) error {
		if p.Digest != "" && p.Digest != c.Digest {
			return n.fail(node.DigestMismatch, "the conf is another one")
		}
		old := c.Digest
		c.configure(p.GPUs, p.Mode)
		done = node.Patched{Changed: c.Digest != old, Digest: c.Digest, Revision: 1}
		return nil
	})
	if n.fleet.after != nil {
		n.fleet.after(fmt.Sprintf("%s patch %d %v", n.name, p.CTID, observed.Indexes(p.GPUs)))
	}
	return done, err
}

// Restart takes two seconds, and goes on when its caller has gone.
func (n *fakeNode) Restart(ctx context.Context, r node.Restart, progress func(phase, message string)) (got observed.Container, err error) {
	if err := n.act("restart %d", r.CTID); err != nil {
		return got, err
	}
	err = n.with(r.CTID, func(c *fakeContainer) error {
		if r.Instance != "" && r.Instance != c.Instance {
			return n.fail(node.InstanceChanged, "another instance runs")
		}
		c.State = "stopping"
		return nil
	})
	if err != nil {
		return got, err
	}
	progress("shutting_down", "")
	time.Sleep(time.Second)
	err = n.with(r.CTID, func(c *fakeContainer) error {
		c.stopNow()
		return nil
	})
	if err != nil {
		return got, err
	}
	progress("starting", "")
	time.Sleep(time.Second)
	err = n.with(r.CTID, func(c *fakeContainer) error {
		c.startNow()
		got = c.Container
		return nil
	})
	return got, errors.Join(err, ctx.Err())
}

func (n *fakeNode) Probe(_ context.Context, ctid int32, instance string) (results []node.Probed, probed string, err error) {
	if err := n.act("probe %d", ctid); err != nil {
		return nil, "", err
	}
	err = n.with(ctid, func(c *fakeContainer) error {
		switch {
		case c.Effective == nil:
			return n.fail(node.ContainerNotRunning, "it does not run")
		case instance != "" && instance != c.Instance:
			return n.fail(node.InstanceChanged, "another instance runs")
		}
		for _, g := range n.gpus {
			p := node.Probed{Path: fmt.Sprintf("/dev/nvidia%d", g), GPU: g, Expected: observed.Has(c.Effective.GPUs, observed.Ref{Index: g}), Outcome: node.Absent}
			switch {
			case p.Expected && c.outcome != nil:
				p.Outcome = c.outcome(g)
			case p.Expected, c.leak[g]:
				p.Outcome = node.Opened
			}
			results = append(results, p)
		}
		for _, path := range []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"} {
			p := node.Probed{Path: path, GPU: -1, Expected: len(c.Effective.GPUs) > 0, Outcome: node.Absent}
			switch {
			case p.Expected && c.outcome != nil:
				p.Outcome = c.outcome(-1)
			case p.Expected:
				p.Outcome = node.Opened
			}
			results = append(results, p)
		}
		probed = c.Instance
		return nil
	})
	return results, probed, err
}

func (n *fakeNode) Driver(_ context.Context, ctid int32) (d node.UserDriver, err error) {
	err = n.with(ctid, func(c *fakeContainer) error {
		d = node.UserDriver{Version: c.driver, Complete: c.driver != ""}
		return nil
	})
	return d, err
}

func (n *fakeNode) FetchInstaller(_ context.Context, i node.Installer, progress func(string)) error {
	if err := n.act("fetch %s %s", i.Version, i.Source); err != nil {
		return err
	}
	progress("download")
	n.fleet.mu.Lock()
	defer n.fleet.mu.Unlock()
	n.cached = i.Version
	return nil
}

func (n *fakeNode) InstallDriver(_ context.Context, i node.Install, _ func(string)) (installed bool, err error) {
	if err := n.act("install %d %s", i.CTID, i.Version); err != nil {
		return false, err
	}
	err = n.with(i.CTID, func(c *fakeContainer) error {
		if n.cached != i.Version {
			return n.fail(node.InstallerNotCached, "not in the cache")
		}
		installed = c.driver != i.Version
		c.driver = i.Version
		return nil
	})
	return installed, err
}

func (n *fakeNode) VerifyDriver(_ context.Context, ctid int32, _ string, uuids []string) (check node.DriverCheck, err error) {
	if err := n.act("verify driver %d %v", ctid, uuids); err != nil {
		return check, err
	}
	err = n.with(ctid, func(c *fakeContainer) error {
		check = node.DriverCheck{Version: c.driver, CUDA: true}
		return nil
	})
	return check, err
}

// Run understands the commands of package feature by their shape: markers by their path, scripts by their stdin.
func (n *fakeNode) Run(_ context.Context, cmd node.Command) (exit node.Exit, err error) {
	const markers = "/var/lib/phoenix/features/"
	marker := slices.IndexFunc(cmd.Argv, func(arg string) bool { return strings.HasPrefix(arg, markers) })
	switch {
	case marker < 0:
		script := string(cmd.Stdin)
		if script == "" {
			script = cmd.Argv[len(cmd.Argv)-1]
		}
		script, _, _ = strings.Cut(script, "\n")
		if err := n.act("run %d %s", cmd.CTID, script); err != nil {
			return exit, err
		}
		err = n.with(cmd.CTID, func(c *fakeContainer) error {
			if c.command != nil {
				exit = c.command(script)
			}
			return nil
		})
	case len(cmd.Argv) > marker+1:
		if err := n.act("mark %d %s", cmd.CTID, strings.TrimPrefix(cmd.Argv[marker], markers)); err != nil {
			return exit, err
		}
		err = n.with(cmd.CTID, func(c *fakeContainer) error {
			c.markers[cmd.Argv[marker]] = cmd.Argv[marker+1]
			return nil
		})
	default:
		err = n.with(cmd.CTID, func(c *fakeContainer) error {
			exit.Stdout = []byte(c.markers[cmd.Argv[marker]])
			return nil
		})
	}
	return exit, err
}
