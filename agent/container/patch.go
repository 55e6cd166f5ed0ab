package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// An Operation is one change of a conf: [SetPassthrough], [SetProperty], [UnsetProperty] or [SetOption]. There is none
// for a raw line: LXC's syntax is written by this program alone.
type Operation interface {
	edit(f *pveconf.File, e *editing) error
}

// editing is what operations may look at.
type editing struct {
	gpus    *gpu.Inventory
	options []string // allowed lxc.* options
	preview bool
	applied *Applied // of the last SetPassthrough
}

// A Selector names one GPU of the node or, by its UUID, one MIG device. Exactly one field is set; Index is a pointer because 0 is a GPU.
type Selector struct {
	Index      *int
	UUID       string
	PCIAddress string
}

func (s Selector) String() string {
	switch {
	case s.Index != nil:
		return fmt.Sprint(*s.Index)
	case s.UUID != "":
		return s.UUID
	}
	return s.PCIAddress
}

// A GPUNotFoundError says that the node has no such GPU.
type GPUNotFoundError struct {
	GPU       string
	Available []string // what it has, by index
	Lost      bool     // it is bound to nvidia, but the driver does not know it
}

func (e *GPUNotFoundError) Error() string {
	if e.Lost {
		return fmt.Sprintf("the driver does not know GPU %s, which is bound to it: it did not initialise or fell off the bus; see the kernel's log", e.GPU)
	}
	if len(e.Available) == 0 {
		return fmt.Sprintf("no GPU %s; the node has none that its nvidia driver can use", e.GPU)
	}
	return fmt.Sprintf("no GPU %s; the node has %s", e.GPU, strings.Join(e.Available, ", "))
}

// A GPUBoundError says that a GPU is there, but another driver has it.
type GPUBoundError struct {
	GPU    string
	Driver string // "vfio-pci", "nouveau", "none", ...
}

func (e *GPUBoundError) Error() string {
	return fmt.Sprintf("GPU %s is bound to %s, not to nvidia", e.GPU, e.Driver)
}

// A Resolved is a GPU of the node, or a MIG device of it.
type Resolved struct {
	GPU gpu.GPU
	MIG *gpu.MIGDevice // nil: the whole GPU
}

// Ref names it for [gpu.Scanner.Prepare].
func (r Resolved) Ref() gpu.Ref {
	ref := gpu.Ref{Minor: r.GPU.Minor}
	if r.MIG != nil {
		ref.MIG = &r.MIG.Instance
	}
	return ref
}

func (r Resolved) same(o Resolved) bool {
	return r.GPU.PCIAddress == o.GPU.PCIAddress && (r.MIG == nil) == (o.MIG == nil) && (r.MIG == nil || r.MIG.Instance == o.MIG.Instance)
}

// A WholeError says that a GPU and a MIG device of it are wanted for one container: it would have the device alone.
type WholeError struct{ GPU string }

func (e *WholeError) Error() string {
	return fmt.Sprintf("GPU %s is asked for whole and as a MIG device; a container can have only one of the two", e.GPU)
}

// Resolve finds the GPUs and MIG devices that selectors name, each once. The error is a [*GPUNotFoundError], a
// [*GPUBoundError], a [*WholeError] or gpu.ErrDriverNotLoaded.
func Resolve(inv *gpu.Inventory, selectors []Selector) ([]Resolved, error) {
	if len(selectors) > 0 && inv.DriverVersion == "" {
		return nil, gpu.ErrDriverNotLoaded
	}
	found := make([]Resolved, 0, len(selectors))
	for _, s := range selectors {
		r, ok := s.find(inv)
		if !ok {
			return nil, notFound(inv, s, false)
		}
		if r.GPU.Driver != gpu.NVIDIA {
			return nil, &GPUBoundError{GPU: s.String(), Driver: r.GPU.Driver}
		}
		if r.GPU.Minor < 0 {
			return nil, notFound(inv, s, true)
		}
		for _, f := range found {
			if f.GPU.PCIAddress == r.GPU.PCIAddress && (f.MIG == nil) != (r.MIG == nil) {
				return nil, &WholeError{GPU: fmt.Sprint(r.GPU.Index)}
			}
		}
		if !slices.ContainsFunc(found, r.same) {
			found = append(found, r)
		}
	}
	return found, nil
}

func (s Selector) find(inv *gpu.Inventory) (Resolved, bool) {
	for _, g := range inv.GPUs {
		switch {
		case s.Index != nil:
			if g.Index == *s.Index {
				return Resolved{GPU: g}, true
			}
		case s.UUID != "":
			if g.UUID == s.UUID {
				return Resolved{GPU: g}, true
			}
			if m := slices.IndexFunc(g.MIG, func(m gpu.MIGDevice) bool { return m.UUID == s.UUID }); m >= 0 {
				return Resolved{GPU: g, MIG: &g.MIG[m]}, true
			}
		case g.PCIAddress == s.PCIAddress:
			return Resolved{GPU: g}, true
		}
	}
	return Resolved{}, false
}

func notFound(inv *gpu.Inventory, s Selector, lost bool) *GPUNotFoundError {
	err := &GPUNotFoundError{GPU: s.String(), Lost: lost}
	for _, g := range inv.GPUs {
		if g.Index < 0 || g.Minor < 0 {
			continue
		}
		if !strings.HasPrefix(s.UUID, "MIG-") {
			err.Available = append(err.Available, fmt.Sprint(g.Index))
			continue
		}
		for _, m := range g.MIG {
			err.Available = append(err.Available, m.UUID)
		}
	}
	return err
}

// SetPassthrough makes the container's GPUs exactly the given ones.
type SetPassthrough struct {
	GPUs             []Selector
	Mode             passthrough.Mode
	Graphics, Fabric bool   // what they are for, besides computing
	Assignment       string // in the words of the fleet file, for the record
}

func (op SetPassthrough) edit(f *pveconf.File, e *editing) error {
	gpus, err := Resolve(e.gpus, op.GPUs)
	if err != nil {
		return err
	}
	want := passthrough.Want{Graphics: op.Graphics, Fabric: op.Fabric}
	for _, g := range gpus {
		want.GPUs = append(want.GPUs, passthroughGPU(g))
	}
	inv := InventoryOf(e.gpus)
	if e.preview {
		// The nodes will be made before the real edit; without them a preview would have to fail.
		for i := range inv.Nodes {
			inv.Nodes[i].Present = true
		}
	}
	if err := passthrough.Set(f, inv, want, op.Mode); err != nil {
		return err
	}
	e.applied = op.applied(gpus)
	e.applied.Devices, e.applied.Rules = givenBy(f, inv)
	return nil
}

func passthroughGPU(r Resolved) passthrough.GPU {
	g := passthrough.GPU{Index: r.GPU.Index, UUID: r.GPU.UUID, Minor: r.GPU.Minor}
	if r.MIG != nil {
		g.MIG = &passthrough.MIG{UUID: r.MIG.UUID, GPUInstance: r.MIG.Instance.GPU, ComputeInstance: r.MIG.Instance.Compute}
	}
	return g
}

// An OptionError says that an lxc.* option may not be set.
type OptionError struct{ Key, Value string }

func (e *OptionError) Error() string {
	return fmt.Sprintf("%s = %s is not in this agent's allowed_lxc_options", e.Key, e.Value)
}

// SetOption sets one lxc.* option, replacing every line of the main section with its key.
type SetOption struct{ Key, Value string }

// optionValues is the closed list: what may be allowed at all. Neither key can name a file or a command.
var optionValues = map[string][]string{
	"lxc.apparmor.profile": {"generated", "unconfined"},
	"lxc.mount.auto": {
		"sys:rw", "sys:ro", "sys:mixed", "proc:rw", "proc:mixed", "cgroup:rw", "cgroup:mixed",
	},
}

func (op SetOption) edit(f *pveconf.File, e *editing) error {
	if !slices.Contains(optionValues[op.Key], op.Value) || !slices.Contains(e.options, op.Key+"="+op.Value) {
		return &OptionError{Key: op.Key, Value: op.Value}
	}
	kept := false
	f.RemoveRaw(func(l pveconf.Entry) bool {
		if l.Key != op.Key {
			return false
		}
		if l.Value == op.Value && !kept {
			kept = true
			return false
		}
		return true
	})
	if kept {
		return nil
	}
	return f.AppendRaw(op.Key, op.Value)
}

// Patch applies operations to the conf of ctid in one write. A preview writes nothing and takes no lock. Besides the
// errors of [confstore.Store.Edit] there are those of [Resolve], [*OptionError], [*PropertyError] and
// [*passthrough.NodeError].
func (m *Manager) Patch(ctx context.Context, ctid int32, ifDigest string, preview bool, by confstore.Author, ops ...Operation) (confstore.Result, error) {
	if !preview {
		unlock, err := m.locks.Lock(ctx, ctid)
		if err != nil {
			return confstore.Result{}, err
		}
		defer unlock()
	}
	gpus, err := m.GPUs.Scan(ctx)
	if err != nil {
		return confstore.Result{}, err
	}
	var applied *Applied
	edit := func(f *pveconf.File) error {
		e := &editing{gpus: gpus, options: m.AllowedOptions, preview: preview}
		for _, op := range ops {
			if err := op.edit(f, e); err != nil {
				return err
			}
		}
		applied = e.applied
		return nil
	}
	if preview {
		return m.Confs.Preview(ctid, ifDigest, edit)
	}
	return m.write(ctx, ctid, func(record func(confstore.Result) error) (confstore.Result, error) {
		return m.withRecord(ctid, by, &applied, func(record func(confstore.Result) error) (confstore.Result, error) {
			return m.Confs.Edit(ctx, ctid, ifDigest, by, edit, record)
		}, record)
	})
}

// Restore makes the content of a revision the conf again.
func (m *Manager) Restore(ctx context.Context, ctid int32, revision int64, ifDigest string, by confstore.Author) (confstore.Result, error) {
	unlock, err := m.locks.Lock(ctx, ctid)
	if err != nil {
		return confstore.Result{}, err
	}
	defer unlock()
	return m.write(ctx, ctid, func(record func(confstore.Result) error) (confstore.Result, error) {
		return m.Confs.Restore(ctx, ctid, revision, ifDigest, by, record)
	})
}

// write edits a conf. That no start has proven the outcome yet is recorded before the conf is touched: an agent that is
// killed in between must not lose the way back.
func (m *Manager) write(ctx context.Context, ctid int32, edit func(record func(confstore.Result) error) (confstore.Result, error)) (confstore.Result, error) {
	instance := unknownInstance
	if running, err := m.Runtime.Observe(ctx, ctid, nil); err == nil {
		instance = running.Instance
	}
	earlier, had, err := m.unproven(ctid)
	if err != nil {
		return confstore.Result{}, err
	}
	recorded := false
	res, err := edit(func(res confstore.Result) error {
		recorded = true
		return m.recordUnproven(ctid, instance, res)
	})
	if err == nil || !recorded || confstore.MayHaveWritten(err) {
		return res, err
	}
	if had {
		return res, errors.Join(err, m.save("unproven", ctid, earlier))
	}
	return res, errors.Join(err, m.dropUnproven(ctid))
}
