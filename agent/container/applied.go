package container

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/statefile"
)

// Applied is a passthrough as it was set through the agent. It tells later what an index meant then, and what is to be
// there after a boot. With the roll-back of a conf the record that went with it comes back; a revision that is restored
// brings none, as nobody knows what an index meant to it.
type Applied struct {
	Assignment string       `json:"assignment,omitempty"` // in the words of the fleet file
	GPUs       []AppliedGPU `json:"gpus"`
	Mode       string       `json:"mode"` // "raw" or "native"
	Graphics   bool         `json:"graphics,omitempty"`
	Fabric     bool         `json:"fabric,omitempty"`
	Time       time.Time    `json:"time"`
	Who        string       `json:"who"`
	OnBehalfOf string       `json:"on_behalf_of,omitempty"`
	// Devices and Rules are what the conf then gave, in numbers of that boot.
	Devices []AppliedDevice `json:"devices,omitempty"` // by path
	Rules   []string        `json:"rules,omitempty"`   // of the device cgroup, sorted: "c 195:0 rwm"
}

// An AppliedDevice is a device node as it was then.
type AppliedDevice struct {
	Path  string `json:"path"`
	Major int    `json:"major"`
	Minor int    `json:"minor"`
}

// An AppliedGPU is a GPU, or a MIG device of it, as it was then.
type AppliedGPU struct {
	Index      int         `json:"index"`
	UUID       string      `json:"uuid,omitempty"`
	PCIAddress string      `json:"pci_address"`
	MIG        *AppliedMIG `json:"mig,omitempty"` // nil: the whole GPU
}

// An AppliedMIG is a MIG device as it was then.
type AppliedMIG struct {
	UUID            string `json:"uuid,omitempty"`
	GPUInstance     int    `json:"gpu_instance"`
	ComputeInstance int    `json:"compute_instance"`
	Profile         string `json:"profile,omitempty"`
}

func (op SetPassthrough) applied(gpus []Resolved) *Applied {
	a := &Applied{Assignment: op.Assignment, Mode: op.Mode.String(), Graphics: op.Graphics, Fabric: op.Fabric, GPUs: []AppliedGPU{}}
	for _, r := range gpus {
		g := AppliedGPU{Index: r.GPU.Index, UUID: r.GPU.UUID, PCIAddress: r.GPU.PCIAddress}
		if m := r.MIG; m != nil {
			g.MIG = &AppliedMIG{UUID: m.UUID, GPUInstance: m.Instance.GPU, ComputeInstance: m.Instance.Compute, Profile: m.Profile}
		}
		a.GPUs = append(a.GPUs, g)
	}
	return a
}

// appliedKind is the folder of the records in the state directory.
const appliedKind = "applied"

// LoadApplied returns the records in a state directory by CTID. One that cannot be read is left out and is among the
// errors.
func LoadApplied(stateDir string) (map[int32]Applied, error) {
	names, err := filepath.Glob(filepath.Join(stateDir, appliedKind, "*.json"))
	if err != nil {
		return nil, err
	}
	all := map[int32]Applied{}
	var errs []error
	for _, name := range names {
		ctid, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(name), ".json"), 10, 32)
		if err != nil {
			continue // none of ours
		}
		var a Applied
		if err := statefile.Load(name, &a); err == nil {
			all[int32(ctid)] = a
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}

// records are the records of all containers, as they are on disk.
type records struct {
	mu  sync.Mutex
	all map[int32]Applied // nil: not read yet. The values are never changed.
}

func (m *Manager) loadAppliedLocked() {
	if m.records.all != nil {
		return
	}
	var err error
	if m.records.all, err = LoadApplied(m.StateDir); err != nil {
		// What is lost is what an index meant, until the next apply.
		m.Log.Error("record of what was applied is damaged", "err", err)
	}
	if m.records.all == nil {
		m.records.all = map[int32]Applied{}
	}
}

// applied returns what was last applied to a container; nil: nothing ever was.
func (m *Manager) applied(ctid int32) *Applied {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	m.loadAppliedLocked()
	if a, ok := m.records.all[ctid]; ok {
		return &a
	}
	return nil
}

// recordApplied replaces the record of a container; nil removes it.
func (m *Manager) recordApplied(ctid int32, a *Applied) error {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	return m.recordAppliedLocked(ctid, a)
}

func (m *Manager) recordAppliedLocked(ctid int32, a *Applied) error {
	m.loadAppliedLocked()
	if a == nil {
		if err := m.drop(appliedKind, ctid); err != nil {
			return err
		}
		delete(m.records.all, ctid)
		return nil
	}
	if err := m.save(appliedKind, ctid, a); err != nil {
		return err
	}
	m.records.all[ctid] = *a
	return nil
}

// forgetApplied removes the records of containers that this node does not have any more: another container may get the
// number.
func (m *Manager) forgetApplied(ctids []int32) {
	m.records.mu.Lock()
	defer m.records.mu.Unlock()
	m.loadAppliedLocked()
	for ctid := range m.records.all {
		if slices.Contains(ctids, ctid) {
			continue
		}
		// Since the containers were listed this one may have been made, and its passthrough been set. Under the lock it
		// cannot be recorded after this look.
		if _, err := m.Confs.Read(ctid); !errors.Is(err, confstore.ErrNotFound) {
			continue
		}
		if err := m.recordAppliedLocked(ctid, nil); err != nil {
			m.Log.Warn("record of a container that is gone stays", "ctid", ctid, "err", err)
		}
	}
}

// withRecord edits a conf and keeps the record of what *set is then, if it is not nil: before the conf is changed, so that
// the record is never older than the conf.
func (m *Manager) withRecord(ctid int32, by confstore.Author, set **Applied,
	edit func(record func(confstore.Result) error) (confstore.Result, error), record func(confstore.Result) error) (confstore.Result, error) {
	earlier := m.applied(ctid)
	saved := false
	save := func() error {
		if *set == nil || saved {
			return nil
		}
		(*set).Time, (*set).Who, (*set).OnBehalfOf = time.Now().UTC(), by.Who, by.OnBehalfOf
		saved = true
		return m.recordApplied(ctid, *set)
	}
	res, err := edit(func(res confstore.Result) error {
		if err := record(res); err != nil {
			return err
		}
		return save()
	})
	switch {
	case err == nil:
		return res, save() // nothing had to change
	case saved && !confstore.MayHaveWritten(err):
		return res, errors.Join(err, m.recordApplied(ctid, earlier))
	}
	return res, err
}
