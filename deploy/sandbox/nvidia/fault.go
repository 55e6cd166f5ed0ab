package nvidia

import (
	"errors"
	"fmt"
)

// Lose lets a card, by its position on the bus, fall off it while the host runs: the kernel's log and the library tell.
func (t Tree) Lose(gpu int) error {
	var lost GPU
	err := t.Change(func(h *Host) error {
		g, err := h.GPU(gpu)
		if err != nil {
			return err
		}
		g.Fault, lost = Lost, *g
		return nil
	})
	if err != nil {
		return err
	}
	return t.Log(lostLine(lost))
}

// Bind gives a card to another driver, "vfio-pci", or back to "nvidia"; "" is none.
func (t Tree) Bind(gpu int, driver string) error {
	return t.Change(func(h *Host) error {
		g, err := h.GPU(gpu)
		if err != nil {
			return err
		}
		g.Bound = driver
		return nil
	})
}

// Upgrade installs another version of the driver: libraries and the module on disk change at once, the module that is
// loaded at the next boot or, with reload, now.
func (t Tree) Upgrade(version string, reload bool) error {
	if version == "" {
		return errors.New("an upgrade needs a version")
	}
	return t.Change(func(h *Host) error {
		h.OnDisk, h.Libraries = version, version
		if !reload {
			return nil
		}
		for _, g := range h.GPUs {
			if len(g.Processes) > 0 {
				return fmt.Errorf("GPU %s is in use: the module cannot be reloaded", g.PCI)
			}
		}
		h.Driver = version
		return nil
	})
}
