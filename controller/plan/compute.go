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

	AcceptMoved bool // take indexes for the GPUs that they mean now
	// Chosen is, by CTID, what an earlier plan of the same run has assigned: what it picked is picked again.
	Chosen map[int32][]observed.Ref
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
	assigned, drivers := assign(f, there, opts), withDriver(f)
	for _, s := range order(f, selected) {
		c := container(f, s.desired, there, assigned[s.desired.CTID], drivers[s.desired.CTID], opts)
		for _, w := range assigned[c.CTID].Warnings {
			p.Warnings = append(p.Warnings, "CTID "+itoa(c.CTID)+": "+w)
		}
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
func Verification(instance, mode string, gpus []observed.Ref) string {
	if len(gpus) == 0 {
		return instance + " none none"
	}
	var keys []string
	for _, r := range gpus {
		keys = append(keys, r.Key())
	}
	return instance + " " + mode + " " + strings.Join(keys, ",")
}

// DevicesVerified tells whether what is stored shows that the devices were verified as key says; see [Verification].
func DevicesVerified(stored, key string) bool {
	return stored == key || strings.HasPrefix(stored, key+driverMark)
}

// driverMark stands in what is stored between the key of the devices and what was verified of the driver.
const driverMark = " driver "

// DriverVerification returns what is stored once the driver of a container was verified too: devices is what
// [Verification] returns, version that of its node.
func DriverVerification(devices, version, driverMode string) string {
	return devices + driverMark + version + " " + driverMode
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

func itoa(ctid int32) string { return strconv.Itoa(int(ctid)) }
