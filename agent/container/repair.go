package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// A Place is where a recorded GPU is now.
type Place struct {
	PCIAddress string
	MIG        *gpu.Instance // nil: the whole GPU
}

// A Repaired is what [Manager.Repair] did.
type Repaired struct {
	Was, Now Applied // the record; equal if it was right already
	Revision int64   // holds the conf as it was; 0 if it was right already
}

// A ChangedError says that a conf gives something else than what was last applied.
type ChangedError struct{ CTID int32 }

func (e *ChangedError) Error() string {
	return fmt.Sprintf("the conf of CTID %d gives something else than what was last applied, so it is left as it is; apply again", e.CTID)
}

// ErrNoRecord says that nothing was ever applied to a container.
var ErrNoRecord = errors.New("nothing was ever applied")

// Repair gives a container what its record says, in the numbers that this has now; places are where the record's GPUs are,
// one for each. The record keeps what the assignment meant, and when and by whom it was made. A conf that is right is not
// touched, and needs neither a lock nor a quorum.
//
// Besides the errors of [confstore.Store.Edit] there are [ErrNoRecord], [*ChangedError], a [*GPUNotFoundError] for a place
// where nothing is, and those of [passthrough.Set].
func (m *Manager) Repair(ctx context.Context, ctid int32, places []Place, by confstore.Author) (Repaired, error) {
	unlock, err := m.locks.Lock(ctx, ctid)
	if err != nil {
		return Repaired{}, err
	}
	defer unlock()
	was := m.applied(ctid)
	if was == nil || len(was.GPUs) != len(places) {
		return Repaired{}, ErrNoRecord
	}
	gpus, err := m.GPUs.Scan(ctx)
	if err != nil {
		return Repaired{}, err
	}
	found, err := findPlaces(gpus, places)
	if err != nil {
		return Repaired{}, err
	}
	now := was.at(found)
	edit := func(f *pveconf.File) error {
		inv := was.known(InventoryOf(gpus))
		edited := pveconf.Parse(f.Bytes())
		if err := passthrough.Set(edited, inv, now.want(found), modeOf(now.Mode)); err != nil {
			return err
		}
		if !bytes.Equal(edited.Bytes(), f.Bytes()) && !was.is(f, inv) {
			return &ChangedError{CTID: ctid}
		}
		now.Devices, now.Rules = givenBy(edited, inv)
		*f = *edited
		return nil
	}
	res, err := m.Confs.Preview(ctid, "", edit)
	if err == nil && res.Changed {
		res, err = m.write(ctx, ctid, func(record func(confstore.Result) error) (confstore.Result, error) {
			return m.Confs.Edit(ctx, ctid, "", by, edit, record)
		})
	}
	if e, ok := errors.AsType[*ChangedError](err); ok {
		return Repaired{}, e
	}
	if err != nil {
		return Repaired{}, err
	}
	if !reflect.DeepEqual(now, *was) {
		err = m.recordApplied(ctid, &now)
	}
	return Repaired{Was: *was, Now: now, Revision: res.Revision}, err
}

func findPlaces(gpus *gpu.Inventory, places []Place) ([]Resolved, error) {
	var found []Resolved
	for _, p := range places {
		r, ok := Selector{PCIAddress: p.PCIAddress}.find(gpus)
		if ok && p.MIG != nil {
			i := slices.IndexFunc(r.GPU.MIG, func(m gpu.MIGDevice) bool { return m.Instance == *p.MIG })
			if ok = i >= 0; ok {
				r.MIG = &r.GPU.MIG[i]
			}
		}
		if !ok || r.GPU.Driver != gpu.NVIDIA || r.GPU.Minor < 0 {
			return nil, &GPUNotFoundError{GPU: p.PCIAddress, Lost: ok}
		}
		found = append(found, r)
	}
	return found, nil
}

// at is the record with its GPUs where they are now. Their indexes stay: they tell what the assignment meant.
func (a Applied) at(found []Resolved) Applied {
	a.GPUs = slices.Clone(a.GPUs)
	for i, r := range found {
		g := &a.GPUs[i]
		g.PCIAddress = r.GPU.PCIAddress
		if r.MIG == nil {
			continue
		}
		mig := *g.MIG
		if in := r.MIG.Instance; r.MIG.UUID != "" || mig.GPUInstance != in.GPU || mig.ComputeInstance != in.Compute {
			mig = AppliedMIG{UUID: r.MIG.UUID, GPUInstance: in.GPU, ComputeInstance: in.Compute, Profile: mig.Profile}
		}
		if r.MIG.Profile != "" {
			mig.Profile = r.MIG.Profile
		}
		g.MIG = &mig
	}
	return a
}

func (a Applied) want(found []Resolved) passthrough.Want {
	w := passthrough.Want{Graphics: a.Graphics, Fabric: a.Fabric}
	for _, r := range found {
		w.GPUs = append(w.GPUs, passthroughGPU(r))
	}
	return w
}

func modeOf(name string) passthrough.Mode {
	if name == passthrough.ModeNative.String() {
		return passthrough.ModeNative
	}
	return passthrough.ModeRaw
}

// is says whether a conf gives what the record says, in the numbers of that time.
func (a Applied) is(f *pveconf.File, inv passthrough.Inventory) bool {
	configured, _ := passthrough.Of(f, inv)
	devices, rules := givenBy(f, inv)
	same := func(x, y AppliedDevice) bool { return x.Path == y.Path } // the conf has no other name of them
	return configured.Mode.String() == a.Mode && slices.EqualFunc(devices, a.Devices, same) && slices.Equal(rules, a.Rules)
}

// known adds to what the node has the devices that it had under other numbers when the record was made: entries with
// these are NVIDIA's although something else may have the numbers now.
func (a Applied) known(inv passthrough.Inventory) passthrough.Inventory {
	const noCard = 1 << 16 // no GPU has this minor
	inv.Majors = maps.Clone(inv.Majors)
	for _, d := range a.Devices {
		maps.DeleteFunc(inv.Majors, func(driver string, major int) bool { return major == d.Major && !strings.HasPrefix(driver, "nvidia") })
		if !slices.ContainsFunc(inv.Nodes, func(n passthrough.Node) bool { return n.Path == d.Path }) {
			inv.Nodes = append(slices.Clone(inv.Nodes), passthrough.Node{
				Path: d.Path, Major: d.Major, Minor: d.Minor, GPU: noCard, Use: passthrough.Graphics,
			})
		}
	}
	return inv
}

// givenBy returns the devices and rules that a conf gives, as [Applied] has them.
func givenBy(f *pveconf.File, inv passthrough.Inventory) (devices []AppliedDevice, rules []string) {
	p, _ := passthrough.Of(f, inv)
	for _, d := range p.Devices {
		devices = append(devices, AppliedDevice(d))
	}
	for _, r := range p.Rules {
		rules = append(rules, r.String())
	}
	slices.Sort(rules)
	return devices, rules
}
