package bootguard

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
)

// A slot is a MIG device as records name it. Its UUID is not part of that: the driver gives it a new one each time.
type slot struct {
	card     string // PCI address
	instance gpu.Instance
	profile  string // empty: unknown
}

func slotOf(card gpu.GPU, m *container.AppliedMIG) slot {
	return slot{card.PCIAddress, gpu.Instance{GPU: m.GPUInstance, Compute: m.ComputeInstance}, m.Profile}
}

// placed is where the device of a slot is now, or why there is none.
type placed struct {
	instance gpu.Instance
	err      error
}

// restoreMIG finds the MIG devices that records name, and makes those that are gone.
func (r *run) restoreMIG(ctx context.Context) {
	cards := map[string][]slot{}
	for _, record := range r.records {
		for _, recorded := range record.GPUs {
			card, err := find(r.inv, recorded)
			if err != nil || recorded.MIG == nil {
				continue // give tells
			}
			if s := slotOf(card, recorded.MIG); !slices.Contains(cards[card.PCIAddress], s) {
				cards[card.PCIAddress] = append(cards[card.PCIAddress], s)
			}
		}
	}
	for _, address := range slices.Sorted(maps.Keys(cards)) {
		slots := cards[address]
		// Large instances have the small numbers, and fit only where the small ones are not yet.
		slices.SortFunc(slots, func(a, b slot) int {
			return cmp.Or(cmp.Compare(a.instance.GPU, b.instance.GPU), cmp.Compare(a.instance.Compute, b.instance.Compute), cmp.Compare(a.profile, b.profile))
		})
		r.restoreCard(ctx, address, slots)
	}
	if len(cards) > 0 {
		if err := r.look(ctx); err != nil { // a change of the mode may have changed minors
			r.leave(err)
		}
	}
}

func (r *run) restoreCard(ctx context.Context, address string, slots []slot) {
	have := r.devices(address)
	var gone []slot
	for _, s := range slots {
		if slices.ContainsFunc(have, func(m gpu.MIGDevice) bool { return m.Instance == s.instance && fits(m, s) }) {
			r.mig[s] = placed{instance: s.instance}
		} else {
			gone = append(gone, s)
		}
	}
	if len(gone) == 0 {
		return
	}
	err := r.enable(ctx, address)
	for _, s := range gone {
		if err != nil {
			r.mig[s] = placed{err: err}
			continue
		}
		r.mig[s] = r.restoreSlot(ctx, s, have)
	}
}

// fits says whether a device can be that of a slot.
func fits(m gpu.MIGDevice, s slot) bool {
	return m.Profile == "" || s.profile == "" || m.Profile == s.profile
}

// devices are the MIG devices of a card as of the last look.
func (r *run) devices(address string) []gpu.MIGDevice {
	for _, card := range r.inv.GPUs {
		if card.PCIAddress == address {
			return card.MIG
		}
	}
	return nil
}

// enable switches MIG on.
func (r *run) enable(ctx context.Context, address string) error {
	card, err := find(r.inv, container.AppliedGPU{PCIAddress: address})
	if err != nil {
		return err
	}
	// Where nvidia-smi lacks the helper that makes nodes it needs those that are there.
	if err := r.prepare(ctx, gpu.Want{GPUs: []gpu.Ref{{Minor: card.Minor}}}); err != nil {
		return err
	}
	current, err := r.mode(ctx, address)
	if err != nil || current == "Enabled" {
		return err
	}
	if _, err := r.smi(ctx, "-i", address, "-mig", "1"); err != nil {
		return fmt.Errorf("switch MIG on for GPU %s: %w", address, err)
	}
	if current, err = r.mode(ctx, address); err != nil {
		return err
	}
	if current != "Enabled" {
		return fmt.Errorf("MIG is %s for GPU %s until its reset: nvidia-smi --gpu-reset -i %s", current, address, address)
	}
	r.Log.Info("MIG switched on", "gpu", address)
	return r.look(ctx)
}

func (r *run) mode(ctx context.Context, address string) (string, error) {
	out, err := r.smi(ctx, "-i", address, "--query-gpu=mig.mode.current", "--format=csv,noheader")
	if err != nil {
		return "", fmt.Errorf("ask for the MIG mode of GPU %s: %w", address, err)
	}
	mode := strings.TrimSpace(out)
	if mode != "Enabled" && mode != "Disabled" {
		return "", fmt.Errorf("GPU %s cannot be divided by MIG: its mode is %q", address, mode)
	}
	return mode, nil
}

// restoreSlot makes the device of a slot again, on a card that had these devices before the guard came. The driver chooses
// its numbers: mostly those it had.
func (r *run) restoreSlot(ctx context.Context, s slot, had []gpu.MIGDevice) placed {
	name := fmt.Sprintf("MIG device %d/%d (%s) of GPU %s", s.instance.GPU, s.instance.Compute, cmp.Or(s.profile, "unknown profile"), s.card)
	switch {
	case s.profile == "":
		return placed{err: fmt.Errorf("%s is gone, and without NVML its profile was not recorded: make it with nvidia-smi mig, and apply again", name)}
	case s.instance.Compute != 0 || strings.Contains(s.profile, "c."):
		return placed{err: fmt.Errorf("%s is gone, and only whole GPU instances are made again: make it with nvidia-smi mig, and apply again", name)}
	case slices.ContainsFunc(had, func(m gpu.MIGDevice) bool { return m.Instance.GPU == s.instance.GPU }):
		return placed{err: fmt.Errorf("%s is gone, and something else has its number: whoever divided the card anew is to apply again", name)}
	}
	before := r.devices(s.card)
	if _, err := r.smi(ctx, "mig", "-i", s.card, "-cgi", s.profile, "-C"); err != nil {
		return placed{err: fmt.Errorf("make %s again: %w", name, err)}
	}
	if err := r.look(ctx); err != nil {
		return placed{err: err}
	}
	for _, m := range r.devices(s.card) {
		if slices.ContainsFunc(before, func(b gpu.MIGDevice) bool { return b.Instance == m.Instance }) {
			continue
		}
		r.Log.Info("MIG device made", "gpu", s.card, "profile", s.profile, "gpu_instance", m.Instance.GPU, "was", s.instance.GPU)
		return placed{instance: m.Instance}
	}
	return placed{err: fmt.Errorf("make %s again: nvidia-smi made none", name)}
}
