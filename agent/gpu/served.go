package gpu

import (
	"context"
	"fmt"
)

// Look returns what /proc, /sys and /dev tell: as Scan, but it starts nothing and wakes no GPU, so it may be called often.
func (s *Scanner) Look(ctx context.Context) (*Inventory, error) {
	inv, err := s.scan(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at GPUs: %w", err)
	}
	return inv, nil
}

// Served lists the PCI addresses of the GPUs that the nvidia driver serves now.
func (s *Scanner) Served(ctx context.Context) ([]string, error) {
	inv, err := s.Look(ctx)
	if err != nil {
		return nil, err
	}
	var addresses []string
	for _, g := range inv.GPUs {
		if g.Served() {
			addresses = append(addresses, g.PCIAddress)
		}
	}
	return addresses, nil
}

// Served says whether the nvidia driver has the GPU and has not lost it.
func (g GPU) Served() bool { return g.Driver == NVIDIA && g.Minor >= 0 }
