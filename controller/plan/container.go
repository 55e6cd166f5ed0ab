package plan

import (
	"fmt"
	"slices"
	"strings"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
)

// container plans one container by itself.
func container(desired fleet.Container, o census, opts Options) Container {
	c := Container{CTID: desired.CTID, Name: desired.Name, Desired: desired.GPUs, Mode: desired.Mode}
	found, node, err := o.locate(desired)
	if err != nil {
		c.Errors = []string{err.Error()}
		return c
	}
	c.Node, c.Digest, c.Instance, c.Configured = node.Name, found.Digest, found.Instance, found.Configured.GPUs
	running := found.State != observed.StateStopped && !found.Template
	s := sequence{
		desired: desired, found: found, node: node, opts: opts,
		verified: o.Verified[desired.CTID],
		running:  running,
		will:     running || opts.Start && !found.Template && len(desired.GPUs) > 0,
	}
	c.Steps, c.Errors, c.Notes = s.plan()
	return c
}

// A sequence is the steps for one container in the making.
type sequence struct {
	desired  fleet.Container
	found    *observed.Container
	node     *observed.Node
	opts     Options
	verified string // what is stored of its last verification

	running bool // now
	will    bool // it runs, or is to be started
}

func (s *sequence) plan() (steps []Step, errors, notes []string) {
	if i := slices.IndexFunc(s.found.Problems, func(p observed.Problem) bool { return p.Kind == "unreadable" }); i >= 0 {
		return nil, []string{sentence(s.found.Problems[i])}, nil
	}
	errors = s.gpuErrors()
	patch := s.patchReasons()
	restart := s.restartReason(len(patch) > 0)
	verify := s.verifyReason(restart != "")
	if len(s.desired.GPUs) > 0 && (len(patch) > 0 || restart != "" || verify != "") {
		steps = append(steps, Step{Kind: CheckDevices, Reason: gpuWord(s.desired.GPUs) + " on node " + s.node.Name})
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
	features, notes := s.features()
	steps = append(steps, features...)
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

// gpuErrors says why the node cannot give the assignment.
func (s *sequence) gpuErrors() (errors []string) {
	if len(s.desired.GPUs) == 0 {
		return nil
	}
	if s.node.DriverVersion == "" {
		return []string{fmt.Sprintf("node %s has not loaded the nvidia driver, so it cannot give %s; load it with modprobe nvidia", s.node.Name, gpuWord(s.desired.GPUs))}
	}
	var has []int
	elsewhere := ""
	for _, g := range s.node.GPUs {
		if g.Index >= 0 {
			has = append(has, g.Index)
		} else {
			elsewhere += "; " + g.PCIAddress + " is bound to " + driverName(g.Driver)
		}
	}
	slices.Sort(has)
	for _, index := range s.desired.GPUs {
		i := slices.IndexFunc(s.node.GPUs, func(g observed.GPU) bool { return g.Index == index })
		switch {
		case i < 0:
			errors = append(errors, fmt.Sprintf("node %s has no GPU %d; it has %s%s", s.node.Name, index, join(has), elsewhere))
		case s.node.GPUs[i].Driver != "nvidia":
			errors = append(errors, fmt.Sprintf("GPU %d of node %s is bound to %s; bind it to nvidia, or assign another", index, s.node.Name, driverName(s.node.GPUs[i].Driver)))
		}
	}
	return errors
}

func driverName(driver string) string {
	switch driver {
	case "", "none":
		return "no driver"
	case "other":
		return "another driver"
	}
	return driver
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

// shared are the devices that every assignment gives besides those of the GPUs themselves.
var shared = []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"}

// hasDesired tells whether the running container has just the devices that the assignment gives.
func (s *sequence) hasDesired() bool {
	e := s.found.Effective
	if len(s.desired.GPUs) == 0 {
		return len(e.Devices) == 0
	}
	missing := func(path string) bool { return !slices.Contains(e.Devices, path) }
	return equal(e.GPUs, s.desired.GPUs) && len(e.Devices) == len(s.desired.GPUs)+len(shared) && !slices.ContainsFunc(shared, missing)
}

// patchReasons says in what the conf differs from the assignment.
func (s *sequence) patchReasons() (reasons []string) {
	configured := s.found.Configured
	for _, gpu := range s.desired.GPUs {
		if !slices.Contains(configured.GPUs, gpu) {
			reasons = append(reasons, fmt.Sprintf("add GPU %d", gpu))
		}
	}
	for _, gpu := range slices.Compact(slices.Clone(configured.GPUs)) {
		switch {
		case gpu < 0:
			reasons = append(reasons, "remove a GPU that is gone")
		case !slices.Contains(s.desired.GPUs, gpu):
			reasons = append(reasons, fmt.Sprintf("remove GPU %d", gpu))
		}
	}
	switch {
	case len(s.desired.GPUs) == 0:
		if len(configured.GPUs) == 0 && len(configured.Devices) > 0 {
			reasons = append(reasons, "remove "+strings.Join(configured.Devices, ", "))
		}
	case configured.Mode != observed.ModeNone && string(configured.Mode) != s.desired.Mode:
		reasons = append(reasons, fmt.Sprintf("change mode from %s to %s", configured.Mode, s.desired.Mode))
	}
	for _, p := range s.found.Problems {
		// What goes away with the GPUs is nothing to mend.
		goes := len(s.desired.GPUs) == 0 && p.Kind == "control_device_not_given"
		if mendable(p) && !goes {
			reasons = append(reasons, "mend: "+at(p))
		}
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
	e, configured := s.found.Effective, s.found.Configured
	switch {
	case e == nil && (patched || s.found.RestartPending):
		return "what it has cannot be read, so only a restart makes sure"
	case e == nil:
		return ""
	case !equal(e.GPUs, s.desired.GPUs) && !equal(configured.GPUs, s.desired.GPUs):
		return fmt.Sprintf("effective GPUs %s; desired %s", join(e.GPUs), join(s.desired.GPUs))
	case !equal(e.GPUs, s.desired.GPUs):
		return fmt.Sprintf("effective GPUs %s; configured %s: restart pending", join(e.GPUs), join(s.desired.GPUs))
	case len(s.desired.GPUs) == 0 && len(e.Devices) > 0 && (patched || s.found.RestartPending):
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
	what := gpuWord(s.desired.GPUs) + " and no other"
	if len(s.desired.GPUs) == 0 {
		what = "no GPU"
	}
	switch {
	case restart:
		return what + ", after the restart"
	case len(s.desired.GPUs) == 0 && len(s.node.GPUs) == 0:
		return ""
	case s.verified != Verification(s.found.Instance, s.desired.Mode, s.desired.GPUs):
		return what + ": not verified since its start"
	case s.opts.Verify:
		return what + ", as asked"
	}
	return ""
}

// features returns the steps of the features that have a script, and notes on the others.
func (s *sequence) features() (steps []Step, notes []string) {
	for _, name := range s.desired.Features {
		switch {
		case name == "nvidia":
			notes = append(notes, "feature nvidia: driver installation is not managed yet")
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
	wants := len(s.desired.GPUs) > 0 || len(steps) > 0 || s.desired.HealthCheck != nil
	switch {
	case s.found.Template && wants:
		notes = append(notes, "it is a template: never started")
	case !s.will && wants:
		notes = append(notes, "it is stopped, and stays so: nothing in it is verified; apply --start starts containers that have GPUs")
	}
	notes = append(notes, s.shiftNotes()...)
	if !s.found.Unprivileged && len(s.desired.GPUs) > 0 {
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
		counted := func(g observed.GPU) bool { return slices.Contains(s.desired.GPUs, g.Index) }
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

func gpuWord(gpus []int) string {
	if len(gpus) == 1 {
		return "GPU " + join(gpus)
	}
	return "GPUs " + join(gpus)
}

// equal compares GPUs as sets: both are ascending, and a GPU that is gone may stand there for each of its devices.
func equal(a, b []int) bool {
	return slices.Equal(slices.Compact(slices.Clone(a)), slices.Compact(slices.Clone(b)))
}

func firstLine(s string) string {
	if line, _, more := strings.Cut(strings.TrimSpace(s), "\n"); more {
		return line + " ..."
	}
	return strings.TrimSpace(s)
}
