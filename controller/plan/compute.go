package plan

import (
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
)

// Options say what is to be planned.
type Options struct {
	CTIDs   []int32         // only these; empty: all of the fleet file
	Start   bool            // start stopped containers that have an assignment
	Verify  bool            // verify devices also where nothing has changed
	Scripts map[string]bool // the features that have a script
}

// Compute returns the plan that brings what is observed to what the fleet file says. The same arguments give the same
// plan. The fleet must be without errors.
//
// A container that cannot be planned has Errors, and no steps; texts in Errors and Notes do not repeat the CTID.
func Compute(f *fleet.Fleet, o *observed.Fleet, opts Options) *Plan {
	p := &Plan{FleetSHA256: f.SHA256}
	selected, warnings := selection(f, opts.CTIDs)
	p.Warnings = warnings
	there := count(o)
	for _, s := range order(f, selected) {
		c := container(s.desired, there, opts)
		c.After = s.after
		if s.cyclic {
			c.Steps, c.Errors = nil, []string{"it waits for itself through clone_from_ctid or dependencies; validate the fleet file"}
		}
		c.Notes = append(c.Notes, dependencyNotes(s.desired, f, there)...)
		p.Containers = append(p.Containers, c)
	}
	p.Warnings = append(p.Warnings, driverWarnings(f, o, p)...)
	return p
}

// Verification returns what is stored of a container after its devices were verified: as long as it stays the same
// there is nothing to verify anew. The instance is that of [observed.Container].
func Verification(instance, mode string, gpus []int) string {
	if len(gpus) == 0 {
		mode = "none"
	}
	return instance + " " + mode + " " + strings.ReplaceAll(join(gpus), " ", "")
}

func selection(f *fleet.Fleet, ctids []int32) (selected map[int32]bool, warnings []string) {
	selected = map[int32]bool{}
	if len(ctids) == 0 {
		for _, c := range f.Containers {
			selected[c.CTID] = true
		}
		return selected, nil
	}
	for _, ctid := range slices.Sorted(slices.Values(ctids)) {
		switch {
		case selected[ctid]:
		case f.Container(ctid) == nil:
			warnings = append(warnings, "CTID "+itoa(ctid)+": it is not in the fleet file, so nothing is planned for it")
		default:
			selected[ctid] = true
		}
	}
	return selected, slices.Compact(warnings)
}

// dependencyNotes tells of dependencies that nothing waits for.
func dependencyNotes(c fleet.Container, f *fleet.Fleet, o census) (notes []string) {
	for _, ctid := range c.Dependencies {
		if f.Container(ctid) != nil {
			continue
		}
		what := "is not in the fleet file"
		if node := o.vmNode(ctid); node != "" {
			what = "is a VM on node " + node
		} else if len(o.found[ctid]) == 0 {
			what += ", and no node that answers has it"
		}
		notes = append(notes, "dependency "+itoa(ctid)+" "+what+": nothing waits for it")
	}
	return notes
}

// driverWarnings tells of nodes whose driver is not the one that the fleet file names. Nodes without an assignment do
// not matter.
func driverWarnings(f *fleet.Fleet, o *observed.Fleet, p *Plan) (warnings []string) {
	if f.DriverVersion == "" {
		return nil
	}
	for _, n := range o.Nodes {
		used := slices.ContainsFunc(p.Containers, func(c Container) bool { return c.Node == n.Name && len(c.Desired) > 0 })
		if used && n.DriverVersion != "" && n.DriverVersion != f.DriverVersion {
			warnings = append(warnings, "node "+n.Name+" runs driver "+n.DriverVersion+"; the fleet file says "+f.DriverVersion)
		}
	}
	return warnings
}

// join writes GPU indexes for people: "0, 1". A GPU that is gone has no index.
func join(gpus []int) string {
	if len(gpus) == 0 {
		return "none"
	}
	var parts []string
	for _, gpu := range gpus {
		if gpu < 0 {
			parts = append(parts, "one that is gone")
			continue
		}
		parts = append(parts, strconv.Itoa(gpu))
	}
	return strings.Join(parts, ", ")
}

func itoa(ctid int32) string { return strconv.Itoa(int(ctid)) }
