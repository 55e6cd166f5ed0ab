package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// List returns every container with a conf on this node, by CTID, and the inventory it was judged against. It starts
// no process. A container that cannot be observed is listed with that as its problem, the state [Unknown], and what its
// conf says if that could be read.
func (m *Manager) List(ctx context.Context) ([]Container, *gpu.Inventory, error) {
	inv, err := m.GPUs.Scan(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctids, err := m.Confs.CTIDs()
	if err != nil {
		return nil, nil, err
	}
	m.forgetApplied(ctids)
	// Side by side, so that monitors which do not answer are waited for together.
	all := make([]*Container, len(ctids))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(observers)
	for i, ctid := range ctids {
		group.Go(func() error {
			c, _, err := m.observe(ctx, ctid, inv)
			if errors.Is(err, confstore.ErrNotFound) {
				return nil // destroyed or migrated since CTIDs listed it
			}
			if err != nil {
				c.CTID, c.Running = ctid, Running{State: Unknown}
				c.Problems = append([]passthrough.Problem{{
					Kind: passthrough.Unreadable, Message: err.Error(),
					Advice: fmt.Sprintf("look at the conf of CTID %d and at the agent's log", ctid),
				}}, c.Problems...)
			}
			all[i] = &c
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	list := make([]Container, 0, len(all))
	for _, c := range all {
		if c != nil {
			list = append(list, *c)
		}
	}
	return list, inv, nil
}

// observers is how many containers are observed at once.
const observers = 16

// Configured is [Manager.List] for who needs only CTID and Configured: it does not look at how containers run. One whose
// conf cannot be read is left out.
func (m *Manager) Configured(ctx context.Context) ([]Container, *gpu.Inventory, error) {
	inv, err := m.GPUs.Scan(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctids, err := m.Confs.CTIDs()
	if err != nil {
		return nil, nil, err
	}
	reduced := InventoryOf(inv)
	var list []Container
	for _, ctid := range ctids {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		b, err := m.Confs.Read(ctid)
		if err != nil {
			continue
		}
		configured, _ := passthrough.Of(pveconf.Parse(b), reduced)
		list = append(list, Container{CTID: ctid, Configured: configured})
	}
	return list, inv, nil
}

// Get returns one container and its conf.
func (m *Manager) Get(ctx context.Context, ctid int32) (Container, *pveconf.File, error) {
	inv, err := m.GPUs.Scan(ctx)
	if err != nil {
		return Container{}, nil, err
	}
	return m.observe(ctx, ctid, inv)
}

// Running returns how the container runs, without looking at its conf or devices. The error wraps confstore.ErrNotFound if
// this node has no such container, and is a [*NotRunningError] if it does not run.
func (m *Manager) Running(ctx context.Context, ctid int32) (Running, error) {
	if _, err := m.Confs.Read(ctid); err != nil {
		return Running{}, err
	}
	running, err := m.running(ctx, ctid, nil)
	if err != nil {
		return Running{}, err
	}
	if running.State != lxcmon.Running {
		return Running{}, &NotRunningError{CTID: ctid, State: running.State}
	}
	return running, nil
}

func (m *Manager) observe(ctx context.Context, ctid int32, gpus *gpu.Inventory) (Container, *pveconf.File, error) {
	b, err := m.Confs.Read(ctid)
	if err != nil {
		return Container{}, nil, err
	}
	conf := pveconf.Parse(b)
	inv := InventoryOf(gpus)
	configured, problems := passthrough.Of(conf, inv)
	c := Container{
		CTID:         ctid,
		Template:     isTrue(conf, "template"),
		Unprivileged: unprivileged(conf),
		Digest:       conf.Digest(),
		Configured:   configured,
		Problems:     problems,
		Applied:      m.applied(ctid),
	}
	c.Hostname, _ = conf.Property("hostname")
	c.Lock = lockOf(conf)
	paths := make(map[string]bool)
	for _, n := range inv.Nodes {
		paths[n.Path] = true
	}
	for _, d := range configured.Devices {
		paths[d.Path] = true
	}
	c.Running, err = m.running(ctx, ctid, slices.Sorted(maps.Keys(paths)))
	if err != nil {
		return c, nil, err
	}
	if c.Running.State != lxcmon.Running && c.Running.State != lxcmon.Frozen {
		return c, conf, nil
	}
	effective := effectiveOf(c.Running, inv)
	c.Effective = &effective
	c.Problems = append(ghosts(c, inv), c.Problems...) // they are about no line
	c.RestartPending = restartPending(conf, c, inv)
	return c, conf, nil
}

// effectiveOf tells what a running container really has: the devices of the node that stand in its /dev under their
// numbers and that its device rules allow.
func effectiveOf(r Running, inv passthrough.Inventory) passthrough.Passthrough {
	var p passthrough.Passthrough
	var paths []string
	for _, n := range inv.Nodes {
		if !has(r, n) {
			continue
		}
		p.Devices = append(p.Devices, passthrough.Device{Path: n.Path, Major: n.Major, Minor: n.Minor})
		paths = append(paths, n.Path)
		p.Graphics = p.Graphics || n.Use == passthrough.Graphics
		p.Fabric = p.Fabric || n.Use == passthrough.Fabric
	}
	p.GPUs = inv.Given(paths)
	return p
}

// ghosts are the devices that the conf gives and in whose place the container has something else. What stands at the path
// of a device that is not given is the container's own affair.
func ghosts(c Container, inv passthrough.Inventory) []passthrough.Problem {
	var problems []passthrough.Problem
	for _, d := range c.Configured.Devices {
		if c.Running.Found[d.Path].Kind != Other {
			continue
		}
		p := passthrough.Problem{
			Kind:    passthrough.GhostFile,
			Message: fmt.Sprintf("%s in the running container is no device: its source was missing when the container started", d.Path),
		}
		if !slices.ContainsFunc(inv.Nodes, func(n passthrough.Node) bool { return n.Path == d.Path && n.Present }) {
			p.Advice = "restart the container once the device node exists on the host"
		}
		problems = append(problems, p)
	}
	return problems
}

// has says whether the running container can use the device node n.
func has(r Running, n passthrough.Node) bool {
	found := r.Found[n.Path]
	return found.Kind == CharDevice && found.Major == n.Major && found.Minor == n.Minor &&
		passthrough.Allowed(r.Rules, r.UserNS, n.Major, n.Minor)
}

// restartPending says whether a restart would change which of the node's devices the container can use. A device that the
// conf gives but whose node is missing on the host is left out: a restart would not bring it.
func restartPending(conf *pveconf.File, c Container, inv passthrough.Inventory) bool {
	given := make(map[string]bool, len(c.Configured.Devices))
	for _, d := range c.Configured.Devices {
		given[d.Path] = true
	}
	rules := passthrough.RuleLines(conf, inv)
	for _, n := range inv.Nodes {
		wantAllowed := passthrough.Allowed(rules, c.Unprivileged, n.Major, n.Minor)
		want := given[n.Path] && wantAllowed
		if want && !n.Present {
			continue
		}
		if want != has(c.Running, n) {
			return true
		}
		// A privileged container may make the node itself, so a rule alone gives it the device.
		if !c.Unprivileged && n.Major >= 0 && wantAllowed != passthrough.Allowed(c.Running.Rules, c.Running.UserNS, n.Major, n.Minor) {
			return true
		}
	}
	return false
}

// unprivileged says whether the container's root is not the host's: LXC.pm, update_lxc_config, treats a raw lxc.idmap
// like `unprivileged: 1`.
func unprivileged(conf *pveconf.File) bool {
	return isTrue(conf, "unprivileged") ||
		slices.ContainsFunc(conf.Raw(), func(e pveconf.Entry) bool { return e.Key == "lxc.idmap" && e.Value != "" })
}

// lockOf returns the value of `lock:`; empty if not locked, which "0" is too for Perl.
func lockOf(conf *pveconf.File) string {
	lock, _ := conf.Property("lock")
	if lock == "0" {
		return ""
	}
	return lock
}

// isTrue reads a boolean as Proxmox's parser normalises it.
func isTrue(conf *pveconf.File, key string) bool {
	v, _ := conf.Property(key)
	switch v {
	case "1", "on", "yes", "true":
		return true
	}
	return false
}

// InventoryOf reduces what the node has to what judging and editing a conf needs.
func InventoryOf(gpus *gpu.Inventory) passthrough.Inventory {
	inv := passthrough.Inventory{Majors: gpus.Majors}
	seen := map[string]bool{} // the node of a GPU instance is that of all its compute instances
	add := func(use passthrough.Use, minor int, nodes ...gpu.DeviceNode) {
		for _, n := range nodes {
			if seen[n.Path] {
				continue
			}
			seen[n.Path] = true
			inv.Nodes = append(inv.Nodes, passthrough.Node{
				Path: n.Path, Major: n.Major, Minor: n.Minor, Present: n.State == gpu.OK, GPU: minor, Needed: needed(n.Path), Use: use,
			})
		}
	}
	for _, g := range gpus.GPUs {
		if g.Minor < 0 || g.Driver != gpu.NVIDIA {
			continue
		}
		inv.GPUs = append(inv.GPUs, passthrough.GPU{Index: g.Index, UUID: g.UUID, Minor: g.Minor})
		add(passthrough.Compute, g.Minor, g.Nodes...)
		add(passthrough.Graphics, g.Minor, g.Graphics...)
		for _, m := range g.MIG {
			if len(m.Nodes) != 2 {
				continue // /proc does not know it
			}
			inv.MIG = append(inv.MIG, passthrough.MIGDevice{
				MIG:   passthrough.MIG{UUID: m.UUID, GPUInstance: m.Instance.GPU, ComputeInstance: m.Instance.Compute},
				Minor: g.Minor, Nodes: [2]string{m.Nodes[0].Path, m.Nodes[1].Path},
			})
			add(passthrough.Instance, g.Minor, m.Nodes...)
		}
	}
	for _, n := range gpus.Shared {
		use := passthrough.Compute
		if n.Path == "/dev/nvidia-modeset" {
			use = passthrough.Graphics
		}
		add(use, -1, n)
	}
	add(passthrough.Fabric, -1, gpus.Fabric...)
	add(passthrough.Management, -1, gpus.Management...)
	slices.SortFunc(inv.Nodes, func(a, b passthrough.Node) int { return strings.Compare(a.Path, b.Path) })
	return inv
}

// A ProbeDevice is a device worth opening in a container: one that the node has or that the conf gives.
type ProbeDevice struct {
	Path         string
	Major, Minor int
	GPUIndex     int  // -1 for a device that GPUs share
	Expected     bool // the conf gives it
	// Instance is that of a capability node of MIG, else nil. Its compute instance is -1 where the node is of the whole
	// GPU instance.
	Instance *gpu.Instance
}

// Capability says whether it is a capability node of NVIDIA's driver, which nobody can write to.
func (d ProbeDevice) Capability() bool { return strings.HasPrefix(d.Path, "/dev/nvidia-caps/") }

// Devices returns the container and every NVIDIA device of the node and of its conf, by path.
func (m *Manager) Devices(ctx context.Context, ctid int32) (Container, []ProbeDevice, error) {
	gpus, err := m.GPUs.Scan(ctx)
	if err != nil {
		return Container{}, nil, err
	}
	c, _, err := m.observe(ctx, ctid, gpus)
	if err != nil {
		return Container{}, nil, err
	}
	inv := InventoryOf(gpus)
	byPath := make(map[string]ProbeDevice, len(inv.Nodes))
	for _, n := range inv.Nodes {
		if !n.Present && (n.Use == passthrough.Fabric || n.Use == passthrough.Management) {
			continue // most nodes have no such device
		}
		d := ProbeDevice{Path: n.Path, Major: n.Major, Minor: n.Minor, GPUIndex: -1, Instance: instanceOf(inv, n.Path)}
		if i := slices.IndexFunc(inv.GPUs, func(g passthrough.GPU) bool { return n.GPU >= 0 && g.Minor == n.GPU }); i >= 0 {
			d.GPUIndex = inv.GPUs[i].Index
		}
		byPath[n.Path] = d
	}
	for _, given := range c.Configured.Devices {
		d, ok := byPath[given.Path]
		if !ok {
			d = ProbeDevice{Path: given.Path, Major: given.Major, Minor: given.Minor, GPUIndex: -1}
		}
		d.Expected = true
		byPath[given.Path] = d
	}
	devices := slices.SortedFunc(maps.Values(byPath), func(a, b ProbeDevice) int { return strings.Compare(a.Path, b.Path) })
	return c, devices, nil
}

// instanceOf returns what a capability node of MIG is of, as ProbeDevice.Instance.
func instanceOf(inv passthrough.Inventory, path string) *gpu.Instance {
	for _, m := range inv.MIG {
		switch path {
		case m.Nodes[0]:
			return &gpu.Instance{GPU: m.GPUInstance, Compute: -1}
		case m.Nodes[1]:
			return &gpu.Instance{GPU: m.GPUInstance, Compute: m.ComputeInstance}
		}
	}
	return nil
}

// needed says whether every use of a GPU needs this shared device: CUDA needs nvidia-uvm and its tools, everything needs
// nvidiactl; nvidia-modeset is for graphics only.
func needed(path string) bool {
	return path == "/dev/nvidiactl" || path == "/dev/nvidia-uvm" || path == "/dev/nvidia-uvm-tools"
}
