// Package bootguard gives containers after a boot of the node the GPUs that they had before it, from the agent's own
// record of what was last applied: a boot forgets device nodes and MIG devices, and gives drivers other majors and cards
// other minors. It needs no controller.
package bootguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
)

// A Guard does the work of a boot. Containers and Log must be set.
type Guard struct {
	Containers *container.Manager
	SMI        string        // nvidia-smi; empty: /usr/bin/nvidia-smi
	Proc       string        // root of procfs; empty: /proc
	PVEWait    time.Duration // for Proxmox's file system and its quorum, for all containers together; 0: 2 min
	Log        *slog.Logger
}

// by is who changes confs here.
var by = confstore.Author{Who: "boot-guard", Why: "the device numbers of this boot"}

// Run makes the device nodes and the MIG devices that recorded containers need, and brings their confs and records up to the
// numbers that these have in this boot. It logs each thing that it did, and each that is left undone, and goes on with the
// rest. A conf that gives something else than its record says is somebody's work and stays as it is.
//
// A second run changes nothing. The error is about the records alone.
func (g *Guard) Run(ctx context.Context) error {
	begin := time.Now()
	records, err := container.LoadApplied(g.Containers.StateDir)
	maps.DeleteFunc(records, func(_ int32, a container.Applied) bool { return len(a.GPUs) == 0 })
	r := &run{Guard: g, records: records, mig: map[slot]placed{}, deadline: begin.Add(cmp.Or(g.PVEWait, 2*time.Minute))}
	r.work(ctx)
	if !r.later {
		err = errors.Join(err, g.mark())
	}
	g.Log.Info("boot guarded", "containers", len(r.records), "left_undone", r.left, "took", time.Since(begin).Round(time.Millisecond))
	return err
}

// A run is one call of Run.
type run struct {
	*Guard
	deadline time.Time                   // for waits for Proxmox's file system
	records  map[int32]container.Applied // those with GPUs, of containers that this node has
	inv      *gpu.Inventory              // as of the last look
	mig      map[slot]placed             // recorded MIG devices that are gone, or that have other numbers now
	left     int                         // things left undone
	later    bool                        // one of them only waits for Proxmox's file system
}

// leave reports something that could not be done; about are attributes.
func (r *run) leave(err error, about ...any) {
	r.left++
	r.later = r.later || waits(err)
	r.Log.Warn("left undone", append(about, "err", err)...)
}

func (r *run) work(ctx context.Context) {
	r.keepHere(ctx)
	if len(r.records) == 0 {
		return
	}
	if err := r.wake(ctx); err != nil {
		r.leave(err)
		return
	}
	r.restoreMIG(ctx)
	for _, ctid := range slices.Sorted(maps.Keys(r.records)) {
		r.give(ctx, ctid)
	}
}

// keepHere drops the records of containers that this node does not have, once Proxmox's file system tells.
func (r *run) keepHere(ctx context.Context) {
	if len(r.records) == 0 {
		return
	}
	ctids, err := await(ctx, r.deadline, r.Containers.Confs.CTIDs)
	if err != nil {
		r.leave(fmt.Errorf("look which containers are on this node: %w", err))
		return // their device nodes are worth making all the same
	}
	maps.DeleteFunc(r.records, func(ctid int32, _ container.Applied) bool { return !slices.Contains(ctids, ctid) })
}

// wake loads the driver and sees to it that every card has been initialised once, without which it has no UUID.
func (r *run) wake(ctx context.Context) error {
	loaded, err := r.Containers.GPUs.LoadDriver(ctx)
	if err != nil {
		return err
	}
	if loaded {
		r.Log.Info("module loaded", "module", "nvidia")
	}
	if err := r.look(ctx); err != nil {
		return err
	}
	var minors []gpu.Ref
	asleep := false
	for _, card := range r.inv.GPUs {
		if card.Served() {
			minors = append(minors, gpu.Ref{Minor: card.Minor})
			asleep = asleep || card.UUID == ""
		}
	}
	if !asleep {
		return nil
	}
	if err := r.prepare(ctx, gpu.Want{GPUs: minors}); err != nil { // nvidia-smi may lack the helper that makes nodes
		return err
	}
	if _, err := r.smi(ctx, "-L"); err != nil {
		r.leave(fmt.Errorf("initialise cards that have no UUID yet: %w", err))
	}
	return r.look(ctx)
}

func (r *run) look(ctx context.Context) error {
	inv, err := r.Containers.GPUs.Scan(ctx)
	if err == nil {
		r.inv = inv
	}
	return err
}

func (r *run) prepare(ctx context.Context, want gpu.Want) error {
	made, err := r.Containers.GPUs.Prepare(ctx, want)
	if len(made) > 0 {
		r.Log.Info("device nodes made", "paths", made)
	}
	return err
}

// give makes the device nodes of what is there of a container's GPUs. If all of it is there, its conf and its record get
// the numbers of this boot.
func (r *run) give(ctx context.Context, ctid int32) {
	record := r.records[ctid]
	want := gpu.Want{Graphics: record.Graphics, Fabric: record.Fabric}
	var places []container.Place
	for _, recorded := range record.GPUs {
		place, minor, err := r.place(recorded)
		if err != nil {
			r.leave(err, "ctid", ctid)
			continue
		}
		places = append(places, place)
		want.GPUs = append(want.GPUs, gpu.Ref{Minor: minor, MIG: place.MIG})
	}
	if err := r.prepare(ctx, want); err != nil {
		r.leave(err, "ctid", ctid)
		return
	}
	if len(places) < len(record.GPUs) {
		return
	}
	repaired, err := await(ctx, r.deadline, func() (container.Repaired, error) {
		return r.Containers.Repair(ctx, ctid, places, by)
	})
	if err != nil {
		r.leave(err, "ctid", ctid)
		return
	}
	if repaired.Revision != 0 {
		r.Log.Info("conf repaired", "ctid", ctid, "revision", repaired.Revision)
	}
	for i, now := range repaired.Now.GPUs {
		was := repaired.Was.GPUs[i]
		if was.MIG != nil && *was.MIG != *now.MIG {
			r.Log.Info("MIG device is another one now", "ctid", ctid, "was", describe(was), "is", describe(now))
		} else if was.PCIAddress != now.PCIAddress {
			r.Log.Info("GPU is in another slot now", "ctid", ctid, "was", describe(was), "is", describe(now))
		}
	}
}

// place tells where a recorded GPU is now, and its minor.
func (r *run) place(recorded container.AppliedGPU) (container.Place, int, error) {
	card, err := find(r.inv, recorded)
	if err != nil {
		return container.Place{}, 0, err
	}
	place := container.Place{PCIAddress: card.PCIAddress}
	if recorded.MIG != nil {
		now := r.mig[slotOf(card, recorded.MIG)]
		if now.err != nil {
			return container.Place{}, 0, now.err
		}
		place.MIG = &now.instance
	}
	return place, card.Minor, nil
}

// find returns the card that a record names: by its UUID, which stays with it wherever it is plugged in.
func find(inv *gpu.Inventory, recorded container.AppliedGPU) (gpu.GPU, error) {
	for _, card := range inv.GPUs {
		same := card.UUID == recorded.UUID
		if recorded.UUID == "" || card.UUID == "" {
			same = card.PCIAddress == recorded.PCIAddress
		}
		switch {
		case !same:
		case card.Driver != gpu.NVIDIA:
			return gpu.GPU{}, &container.GPUBoundError{GPU: describe(recorded), Driver: card.Driver}
		case card.Minor < 0:
			return gpu.GPU{}, &container.GPUNotFoundError{GPU: describe(recorded), Lost: true}
		case card.UUID == "" && recorded.UUID != "":
			return gpu.GPU{}, fmt.Errorf("the driver does not tell the UUID of the GPU at %s, so whether it is %s is not known", card.PCIAddress, describe(recorded))
		default:
			return card, nil
		}
	}
	return gpu.GPU{}, fmt.Errorf("GPU %s is not on this node any more", describe(recorded))
}

// describe names a recorded GPU for a person.
func describe(a container.AppliedGPU) string {
	name := cmp.Or(a.UUID, a.PCIAddress)
	if a.UUID != "" {
		name += " (" + a.PCIAddress + ")"
	}
	if a.MIG != nil {
		name = fmt.Sprintf("%s, MIG device %d/%d of %s", cmp.Or(a.MIG.UUID, cmp.Or(a.MIG.Profile, "unknown profile")), a.MIG.GPUInstance, a.MIG.ComputeInstance, name)
	}
	return name
}
