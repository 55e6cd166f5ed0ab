package gpu

import (
	"context"
	"fmt"
)

// LoadDriver loads the module nvidia, and says whether it had to. The error wraps [ErrDriverNotLoaded].
func (s *Scanner) LoadDriver(ctx context.Context) (loaded bool, err error) {
	s.preparing.Lock()
	defer s.preparing.Unlock()
	inv, err := s.scan(ctx)
	if err != nil {
		return false, fmt.Errorf("load the driver: %w", err)
	}
	if inv.DriverVersion != "" && inv.Majors[NVIDIA] != 0 {
		return false, nil
	}
	if err := s.load(ctx, NVIDIA); err != nil {
		return false, fmt.Errorf("%w: %w", ErrDriverNotLoaded, err)
	}
	return true, nil
}
