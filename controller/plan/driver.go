package plan

import (
	"fmt"
	"slices"
	"strings"

	"phoenix.internal/controller/fleet"
)

// A Driver is the user-space driver that a container is to have.
type Driver struct {
	Version  string // that its node has loaded
	Source   string // URL or path of its installer; empty: where NVIDIA publishes it
	SHA256   string // of that installer; empty: what is published beside it
	Graphics bool   // the libraries for graphics too
}

// nvidia is the feature that says that a container is to have the driver.
const nvidia = "nvidia"

// withDriver returns the containers that have the feature nvidia, themselves or by what they are cloned from.
func withDriver(f *fleet.Fleet) map[int32]bool {
	known := make(map[int32]bool, len(f.Containers))
	for i := range f.Containers {
		var line []int32 // from the container to what decides
		has := false
		for c := &f.Containers[i]; c != nil && len(line) <= len(f.Containers); c = f.Container(c.CloneFrom) {
			decided, ok := known[c.CTID]
			line = append(line, c.CTID)
			if has = decided || slices.Contains(c.Features, nvidia); ok || has {
				break
			}
		}
		for _, ctid := range line {
			known[ctid] = has
		}
	}
	return known
}

// driverOf returns the driver that a container is to have on a node that has loaded this version.
func driverOf(f *fleet.Fleet, c fleet.Container, version string) Driver {
	d := Driver{Version: version, Graphics: slices.Contains(c.Capabilities, fleet.CapabilityGraphics)}
	switch {
	case f.DriverVersion == "" || f.DriverVersion == version:
		d.Source, d.SHA256 = f.Runfile, f.RunfileSHA256
	case strings.Contains(f.Runfile, f.DriverVersion):
		d.Source = strings.ReplaceAll(f.Runfile, f.DriverVersion, version)
	}
	return d
}

// driver returns the steps that bring the driver into the container, and a note if there are none for a reason of its own.
func (s *sequence) driver(restart bool) (steps []Step, notes []string) {
	if !s.wantsDriver {
		return nil, nil
	}
	switch {
	case len(s.assigned.GPUs) == 0 && slices.Contains(s.desired.Features, nvidia):
		return nil, []string{"feature nvidia: no GPU is assigned, so no driver is installed"}
	case len(s.assigned.GPUs) == 0:
		return nil, nil
	case s.desired.DriverMode == fleet.DriverNone:
		return nil, []string{"driver_mode none: the driver in it is left to others"}
	case s.desired.DriverMode == fleet.DriverHost:
		return nil, []string{"driver_mode host: the node's libraries are not bound by this version; the driver in it is left to others"}
	case !s.will:
		return nil, nil
	}
	version := s.node.DriverVersion
	if !restart && !s.opts.Verify && s.verified == DriverVerification(s.devices(), version, s.desired.DriverMode) {
		return nil, nil
	}
	return []Step{
		{Kind: InstallDriver, Reason: fmt.Sprintf("%s, which node %s has loaded, unless it is there", version, s.node.Name)},
		{Kind: VerifyDriver, Reason: "it works, and shows exactly what is assigned"},
	}, nil
}
