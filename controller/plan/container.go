package plan

import (
	"fmt"
	"slices"
	"strings"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
)

// container plans one container by itself.
func container(f *fleet.Fleet, desired fleet.Container, o census, assigned Assigned, wantsDriver bool, opts Options) Container {
	c := Container{
		CTID: desired.CTID, Name: desired.Name, Assignment: fleet.Text(desired.GPUs), Desired: assigned.GPUs, Mode: desired.Mode,
		Capabilities: desired.Capabilities,
	}
	found, node, err := o.locate(desired)
	if err != nil {
		c.Errors = []string{err.Error()}
		return c
	}
	c.Node, c.Digest, c.Instance, c.Configured = node.Name, found.Digest, found.Instance, node.Full(found.Configured.GPUs)
	running := found.State != observed.StateStopped && !found.Template
	s := sequence{
		desired: desired, assigned: assigned, found: found, node: node, opts: opts,
		configured:  c.Configured,
		verified:    o.Verified[desired.CTID],
		wantsDriver: wantsDriver,
		running:     running,
		will:        running || opts.Start && !found.Template && len(desired.GPUs) > 0,
	}
	c.Steps, c.Errors, c.Notes = s.plan()
	if slices.ContainsFunc(c.Steps, func(s Step) bool { return s.Kind == InstallDriver }) {
		c.Driver = driverOf(f, desired, node.DriverVersion)
	}
	return c
}

// A sequence is the steps for one container in the making.
type sequence struct {
	desired    fleet.Container
	assigned   Assigned // what the assignment comes to
	found      *observed.Container
	node       *observed.Node
	opts       Options
	configured []observed.Ref // in full
	verified   string         // what is stored of its last verification

	wantsDriver bool // by its features, or those of what it is cloned from

	running bool // now
	will    bool // it runs, or is to be started
}

func (s *sequence) plan() (steps []Step, errors, notes []string) {
	if i := slices.IndexFunc(s.found.Problems, func(p observed.Problem) bool { return p.Kind == "unreadable" }); i >= 0 {
		return nil, []string{sentence(s.found.Problems[i])}, nil
	}
	errors = slices.Clone(s.assigned.Errors)
	patch := s.patchReasons()
	restart := s.restartReason(len(patch) > 0)
	verify := s.verifyReason(restart != "")
	if len(s.assigned.GPUs) > 0 && (len(patch) > 0 || restart != "" || verify != "") {
		steps = append(steps, Step{Kind: CheckDevices, Reason: observed.Names(s.assigned.GPUs) + " on node " + s.node.Name})
	}
	if len(patch) > 0 {
		steps = append(steps, Step{Kind: PatchConf, Reason: strings.Join(patch, ", ")})
	}
	if restart != "" {
		steps = append(steps, Step{Kind: Restart, Reason: restart})
	}
	if verify != "" {
		steps = append(steps, Step{Kind: VerifyDevices, Reason: verify})
	}
	drivers, notes := s.driver(restart != "")
	features, featureNotes := s.features()
	steps, notes = slices.Concat(steps, drivers, features), append(notes, featureNotes...)
	if h := s.desired.HealthCheck; h != nil && s.will {
		steps = append(steps, Step{Kind: HealthCheck, Reason: fmt.Sprintf("%s: at most %d tries, %v apart", firstLine(h.Command), h.Retries, h.Interval)})
	}
	errors = append(errors, s.stateErrors(steps)...)
	notes = append(s.stateNotes(steps), notes...)
	if len(errors) > 0 {
		steps = nil
	}
	return steps, errors, notes
}

// told are the problems that no apply mends, whatever their advice.
var told = map[string]bool{
	"unreadable": true, "ghost_file": true, "privileged": true, "hidden_line": true,
	"entry_in_snapshot": true, "entry_in_pending": true,
}

// mendable tells whether setting the passthrough anew mends a problem: the agent then has no advice for a person.
func mendable(p observed.Problem) bool { return p.Advice == "" && !told[p.Kind] }

// inEffect tells whether the running container has a problem of its conf too. A rule alone gives nothing to an
// unprivileged container, which cannot make device nodes; a privileged one has it unless the conf has changed since it
// was started. Duplicates do no harm, and nothing runs with a conflict.
func (s *sequence) inEffect(p observed.Problem) bool {
	switch p.Kind {
	case "wrong_major", "control_device_not_given", "rule_missing", "device_gone":
		return !s.hasDesired()
	case "wildcard_rule", "mount_missing":
		return !s.found.Unprivileged && !s.found.RestartPending
	}
	return false
}

// shared are the devices that every use of CUDA needs besides those of the GPUs themselves.
var shared = []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"}

// capabilityNodes is how many capability nodes a MIG device has: one of the GPU instance, one of the compute instance.
const capabilityNodes = 2

// hasDesired tells whether the running container has just the devices that the assignment gives. Which devices come with
// other capabilities only the agent knows: then there is no telling.
func (s *sequence) hasDesired() bool {
	e, gpus := s.found.Effective, s.assigned.GPUs
	if len(gpus) == 0 {
		return len(e.Devices) == 0
	}
	count := len(shared) + len(observed.Indexes(gpus))
	for _, r := range gpus {
		if r.IsMIG {
			count += capabilityNodes
		}
	}
	missing := func(path string) bool { return !slices.Contains(e.Devices, path) }
	return slices.Equal(s.desired.Capabilities, computeOnly) && observed.Equal(e.GPUs, gpus) && len(e.Devices) == count &&
		!slices.ContainsFunc(shared, missing)
}

var computeOnly = []string{fleet.CapabilityCompute}

// capabilitiesOf returns those of a passthrough with GPUs; nil if there are none, or if they are not told.
func capabilitiesOf(p observed.Passthrough) []string {
	if len(p.GPUs) == 0 {
		return nil
	}
	return p.Capabilities
}

// patchReasons says in what the conf differs from the assignment.
func (s *sequence) patchReasons() (reasons []string) {
	configured, gpus := s.found.Configured, s.assigned.GPUs
	for _, r := range gpus {
		if !observed.Has(s.configured, r) {
			reasons = append(reasons, "add "+r.String())
		}
	}
	gone := false
	for _, r := range s.configured {
		switch {
		case r.Index < 0 && gone:
		case r.Index < 0:
			gone = true
			reasons = append(reasons, "remove a GPU that is gone")
		case !observed.Has(gpus, r):
			reasons = append(reasons, "remove "+r.String())
		}
	}
	has := capabilitiesOf(configured)
	switch {
	case len(gpus) == 0:
		if len(configured.GPUs) == 0 && len(configured.Devices) > 0 {
			reasons = append(reasons, "remove "+strings.Join(configured.Devices, ", "))
		}
	case configured.Mode != observed.ModeNone && string(configured.Mode) != s.desired.Mode:
		reasons = append(reasons, fmt.Sprintf("change mode from %s to %s", configured.Mode, s.desired.Mode))
	}
	if len(gpus) > 0 && has != nil && !slices.Equal(has, s.desired.Capabilities) {
		reasons = append(reasons, fmt.Sprintf("change capabilities from %s to %s", strings.Join(has, ", "), strings.Join(s.desired.Capabilities, ", ")))
	}
	reasons = append(reasons, s.recordReasons()...)
	for _, p := range s.found.Problems {
		// What goes away with the GPUs is nothing to mend.
		goes := len(gpus) == 0 && p.Kind == "control_device_not_given"
		if mendable(p) && !goes {
			reasons = append(reasons, "mend: "+at(p))
		}
	}
	return reasons
}

// recordReasons says why the agent's record is to be written anew although the conf is right: it tells what indexes and
// picks mean.
func (s *sequence) recordReasons() (reasons []string) {
	for _, moved := range s.assigned.Moved {
		reasons = append(reasons, "accept: "+moved)
	}
	a := s.found.Applied
	switch text := fleet.Text(s.desired.GPUs); {
	case a == nil || len(s.assigned.GPUs) == 0 || len(reasons) > 0:
	case a.Assignment != text:
		reasons = append(reasons, fmt.Sprintf("record the assignment %s", text))
	case !observed.Equal(s.node.Full(a.GPUs), s.assigned.GPUs):
		reasons = append(reasons, fmt.Sprintf("record %s", observed.Names(s.assigned.GPUs)))
	}
	return reasons
}

// restartReason says why a restart is needed, or "". What the running container has decides: that a patch is planned is
// no reason, only what it mends there.
func (s *sequence) restartReason(patched bool) string {
	if !s.running {
		if s.will {
			return "start it: it is stopped"
		}
		return ""
	}
	e, configured, gpus := s.found.Effective, s.found.Configured, s.assigned.GPUs
	switch {
	case e == nil && (patched || s.found.RestartPending):
		return "what it has cannot be read, so only a restart makes sure"
	case e == nil:
		return ""
	case !observed.Equal(e.GPUs, gpus) && !observed.Equal(configured.GPUs, gpus):
		return fmt.Sprintf("effective GPUs %s; desired %s", observed.List(s.node.Full(e.GPUs)), observed.List(gpus))
	case !observed.Equal(e.GPUs, gpus):
		return fmt.Sprintf("effective GPUs %s; configured %s: restart pending", observed.List(s.node.Full(e.GPUs)), observed.List(gpus))
	case capabilitiesOf(*e) != nil && !slices.Equal(e.Capabilities, s.desired.Capabilities):
		return fmt.Sprintf("effective capabilities %s; desired %s", strings.Join(e.Capabilities, ", "), strings.Join(s.desired.Capabilities, ", "))
	case len(s.assigned.GPUs) == 0 && len(e.Devices) > 0 && (patched || s.found.RestartPending):
		return "it still has " + strings.Join(e.Devices, ", ")
	}
	for _, p := range s.found.Problems {
		if mendable(p) && s.inEffect(p) || p.Kind == "ghost_file" && s.found.RestartPending {
			return "the running container has it too: " + at(p)
		}
	}
	// A patch may make the conf what runs already, so that nothing is pending any more.
	if s.found.RestartPending && !(patched && s.hasDesired()) {
		return "the conf has changed since it was started: restart pending"
	}
	return ""
}

// verifyReason says why devices are to be verified, or "".
func (s *sequence) verifyReason(restart bool) string {
	if !s.will {
		return ""
	}
	what := observed.Names(s.assigned.GPUs) + " and no other"
	if len(s.assigned.GPUs) == 0 {
		what = "no GPU"
	}
	switch {
	case restart:
		return what + ", after the restart"
	case len(s.assigned.GPUs) == 0 && len(s.node.GPUs) == 0:
		return ""
	case !DevicesVerified(s.verified, s.devices()):
		return what + ": not verified since its start"
	case s.opts.Verify:
		return what + ", as asked"
	}
	return ""
}

// devices returns what is stored when the devices are verified.
func (s *sequence) devices() string {
	return Verification(s.found.Instance, s.desired.Mode, s.assigned.GPUs)
}

// features returns the steps of the features that have a script, and notes on the others.
func (s *sequence) features() (steps []Step, notes []string) {
	for _, name := range s.desired.Features {
		switch {
		case name == nvidia: // is the driver
		case !s.opts.Scripts[name]:
			notes = append(notes, fmt.Sprintf("feature %s has no script in features_dir: not managed", name))
		case s.will:
			steps = append(steps, Step{Kind: Feature, Feature: name, Reason: "script " + name + ".sh, unless it has succeeded in there before"})
		}
	}
	return steps, notes
}

// stateErrors says why the steps cannot be taken in the container's state.
func (s *sequence) stateErrors(steps []Step) (errors []string) {
	changes := slices.ContainsFunc(steps, func(s Step) bool { return s.Kind == PatchConf || s.Kind == Restart })
	if lock := s.found.Lock; lock != "" && changes {
		errors = append(errors, fmt.Sprintf("its conf is locked (lock: %s): wait until that ends; if nothing is under way, run pct unlock %d", lock, s.desired.CTID))
	}
	if s.running && slices.ContainsFunc(steps, isRestart) {
		for _, p := range s.found.Problems {
			if p.Kind == "entry_in_pending" {
				errors = append(errors, "a restart would bring this into force: "+sentence(p))
			}
		}
	}
	switch s.found.State {
	case observed.StateRunning, observed.StateStopped, observed.StateStarting: // what is starting is waited for
	case "frozen":
		if len(steps) > 0 {
			errors = append(errors, fmt.Sprintf("it is frozen; run lxc-unfreeze -n %d on node %s", s.desired.CTID, s.node.Name))
		}
	default:
		if len(steps) > 0 {
			errors = append(errors, fmt.Sprintf("it is %s; plan again when it is running or stopped", s.found.State))
		}
	}
	return errors
}

func isRestart(s Step) bool { return s.Kind == Restart }

// stateNotes tells what is worth knowing about the container as it is.
func (s *sequence) stateNotes(steps []Step) (notes []string) {
	wants := len(s.assigned.GPUs) > 0 || len(steps) > 0 || s.desired.HealthCheck != nil
	switch {
	case s.found.Template && wants:
		notes = append(notes, "it is a template: never started")
	case !s.will && wants:
		notes = append(notes, "it is stopped, and stays so: nothing in it is verified; apply --start starts containers that have GPUs")
	}
	notes = append(notes, s.shiftNotes()...)
	if !s.found.Unprivileged && len(s.assigned.GPUs) > 0 {
		notes = append(notes, "it is privileged: with GPUs it is no security boundary")
	}
	restarts := slices.ContainsFunc(steps, isRestart)
	for _, p := range s.found.Problems {
		said := p.Kind == "privileged" || restarts && (p.Kind == "ghost_file" || p.Kind == "entry_in_pending" && s.running)
		if !mendable(p) && !said {
			notes = append(notes, sentence(p))
		}
	}
	return notes
}

// shiftNotes tells of GPUs that are not counted, because of which an assigned index may mean another GPU than it did
// before they were bound elsewhere.
func (s *sequence) shiftNotes() (notes []string) {
	for i, g := range s.node.GPUs {
		byIndex := func(d fleet.Selector) bool { return d.Kind == fleet.ByIndex || d.Kind == fleet.ByMIGIndex }
		counted := func(g observed.GPU) bool {
			return slices.ContainsFunc(s.desired.GPUs, func(d fleet.Selector) bool { return byIndex(d) && d.Index == g.Index })
		}
		if g.Index < 0 && slices.ContainsFunc(s.node.GPUs[i:], counted) {
			notes = append(notes, fmt.Sprintf("%s is bound to %s: the indexes of node %s count without it", g.PCIAddress, driverName(g.Driver), s.node.Name))
		}
	}
	return notes
}

// at is a problem in short: what, and in which line.
func at(p observed.Problem) string {
	if p.Line == 0 {
		return p.Message
	}
	return fmt.Sprintf("%s (line %d)", p.Message, p.Line)
}

func sentence(p observed.Problem) string {
	if p.Advice == "" {
		return at(p)
	}
	return at(p) + ": " + p.Advice
}

func firstLine(s string) string {
	if line, _, more := strings.Cut(strings.TrimSpace(s), "\n"); more {
		return line + " ..."
	}
	return strings.TrimSpace(s)
}
