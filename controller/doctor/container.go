package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// assignment: the fleet file assigns GPUs that the node has, and by the same names as when they were applied.
func (e *examination) assignment() string {
	if e.Wish == nil {
		if len(e.Container.Configured.Devices) == 0 {
			e.broken(NotInFleet, fmt.Sprintf("%s has no entry %d, and its conf gives no GPU", e.Fleet, e.CTID),
				fmt.Sprintf("add %d with its gpu_assignment to the fleet file, then %s", e.CTID, e.apply()), "the fleet file does not name CTID %d", e.CTID)
			return ""
		}
		e.warn(Unmanaged, fmt.Sprintf("%s has no entry %d, and its conf gives %s", e.Fleet, e.CTID, strings.Join(e.Container.Configured.Devices, ", ")),
			fmt.Sprintf("add %d to the fleet file, or remove the entries from its conf (phoenix-cli conf show %[1]d)", e.CTID),
			"nobody manages the GPUs of CTID %d: the fleet file does not name it", e.CTID)
		return "the fleet file does not name it; it is judged by what its conf gives"
	}
	for _, t := range e.targets {
		switch {
		case t.moved():
			e.broken(GPUMoved, fmt.Sprintf("when it was applied it was %s in %s; now it is %s in %s", t.want.Was.UUID, t.want.Was.PCI, t.gpu.UUID, t.gpu.PCI),
				fmt.Sprintf("name the card by its UUID in the fleet file, or phoenix-cli apply --accept-moved %d if the new one is meant", e.CTID),
				"%s is another card than when it was applied", t.want.Text)
		case t.gpu == nil:
			e.broken(NoSuchGPU, fmt.Sprintf("%s has %s", e.Node.Name, e.Node.list()), "correct gpu_assignment in the fleet file; phoenix-cli devices shows what there is",
				"node %s has no %s", e.Node.Name, t.want.Text)
		}
	}
	if len(e.found) == 0 && len(e.Wish.Errors) > 0 {
		e.broken(NotAssignable, fmt.Sprintf("%s assigns %s; %s has %s", e.Fleet, texts(e.targets), e.Node.Name, e.Node.list()),
			"correct gpu_assignment or gpu_policy in the fleet file; phoenix-cli devices shows what there is", "%s", strings.Join(e.Wish.Errors, "; "))
	}
	if len(e.targets) == 0 {
		return e.Fleet + " assigns it no GPU"
	}
	return fmt.Sprintf("%s assigns %s", e.Fleet, texts(e.targets))
}

// list names the GPUs of a node.
func (n *Node) list() string {
	var out []string
	for _, g := range n.GPUs {
		out = append(out, g.String())
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

// problem finds the first problem of a kind.
func (c *Container) problem(kinds ...string) *Problem {
	i := slices.IndexFunc(c.Problems, func(p Problem) bool { return slices.Contains(kinds, p.Kind) })
	if i < 0 {
		return nil
	}
	return &c.Problems[i]
}

// at proves a problem of a conf.
func (e *examination) at(p Problem) string {
	conf := fmt.Sprintf("/etc/pve/lxc/%d.conf of %s", e.CTID, e.Node.Name)
	if p.Line == 0 {
		return conf
	}
	return fmt.Sprintf("line %d of %s", p.Line, conf)
}

// remedy is what mends a problem of a conf.
func (e *examination) remedy(p Problem) string {
	if p.Advice == "" {
		return e.apply()
	}
	return fmt.Sprintf("%s (phoenix-cli conf show %d)", p.Advice, e.CTID)
}

// conf: the conf gives exactly what is assigned.
func (e *examination) conf() string {
	c := e.Container
	if p := c.problem("unreadable"); p != nil {
		e.broken(Unreadable, e.at(*p), e.remedy(*p), "the container cannot be observed: %s", p.Message)
		return ""
	}
	if p := c.problem("mode_conflict"); p != nil {
		e.broken(ModeConflict, e.at(*p), e.remedy(*p), "the container cannot start: %s", p.Message)
	}
	e.lacking()
	e.surplus()
	for _, p := range c.Problems {
		e.confProblem(p)
	}
	if e.Wish != nil && len(e.targets) > 0 && c.Configured.Mode != "" && c.Configured.Mode != e.Wish.Mode {
		e.warn(OtherMode, fmt.Sprintf("its conf gives them in %s mode, %s says %s", c.Configured.Mode, e.Fleet, e.Wish.Mode), e.apply(),
			"the devices are given in another mode than the fleet file says")
	}
	e.otherUses()
	if len(e.targets) == 0 {
		return "its conf gives no GPU"
	}
	return fmt.Sprintf("its conf gives %s", strings.Join(c.Configured.Devices, ", "))
}

// lacking reports assigned GPUs that the conf does not give, and why it may look as if it did.
func (e *examination) lacking() {
	c := e.Container
	var lacks []target
	for _, t := range e.targets {
		if t.gpu != nil && !t.moved() && !c.Configured.has(t) {
			lacks = append(lacks, t)
		}
	}
	if len(lacks) == 0 {
		return
	}
	none := len(c.Configured.Devices) == 0
	for _, reason := range []struct {
		kind   string
		fault  Fault
		format string
	}{
		{"entry_in_snapshot", OnlyInSnapshot, "its conf gives %s only in a snapshot's section, where it has no effect"},
		{"entry_in_pending", OnlyInPending, "its conf gives %s only in [pve:pending], where it has no effect until the container stops"},
		{"no_effect", WithoutEffect, "its conf does not give %s: a line for it has no effect"},
		{"hidden_line", WithoutEffect, "its conf does not give %s: a line for it is not read as it looks"},
		{"invalid_line", WithoutEffect, "its conf does not give %s: a line of it cannot be read"},
	} {
		if p := c.problem(reason.kind); p != nil && none {
			e.broken(reason.fault, e.at(*p)+": "+p.Message, e.apply(), reason.format, texts(lacks))
			return
		}
	}
	e.broken(NotGiven, fmt.Sprintf("/etc/pve/lxc/%d.conf of %s gives %s", e.CTID, e.Node.Name, orNothing(c.Configured.Devices)), e.apply(),
		"its conf does not give %s", texts(lacks))
}

// otherUses compares the uses for which there are devices with those that the fleet file names.
func (e *examination) otherUses() {
	given := e.Container.Configured.Capabilities
	if e.Wish == nil || len(e.targets) == 0 || len(given) == 0 || len(e.found) > 0 {
		return
	}
	for _, use := range e.Wish.Capabilities {
		if !slices.Contains(given, use) {
			e.broken(LacksUse, "its conf gives devices for "+strings.Join(given, ", "), e.apply(), "its conf gives no devices for %s", use)
		}
	}
	for _, use := range given {
		if !slices.Contains(e.Wish.Capabilities, use) {
			e.warn(MoreUses, fmt.Sprintf("its conf gives devices for %s; %s says %s", strings.Join(given, ", "), e.Fleet, strings.Join(e.Wish.Capabilities, ", ")), e.apply(),
				"its conf gives devices for %s, which is not asked for", use)
		}
	}
}

func orNothing(paths []string) string {
	if len(paths) == 0 {
		return "no NVIDIA device"
	}
	return strings.Join(paths, ", ")
}

// surplus reports what the conf gives beyond the assignment.
func (e *examination) surplus() {
	if e.Wish == nil {
		return
	}
	c := e.Container
	var gpus []string
	gone := false
	for _, g := range c.Configured.GPUs {
		switch {
		case g.Index < 0:
			gone = true
		case !slices.ContainsFunc(e.targets, func(t target) bool { return t.isGiven(g) }):
			gpus = append(gpus, fmt.Sprintf("GPU %d", g.Index))
		}
	}
	proof := fmt.Sprintf("/etc/pve/lxc/%d.conf of %s gives %s", e.CTID, e.Node.Name, strings.Join(c.Configured.Devices, ", "))
	switch {
	case len(gpus) > 0 && e.Wish.CloneFrom != 0 && len(e.targets) == 0:
		e.broken(ClonedEntries, proof, e.apply(), "its conf gives %s, which are not assigned: the entries came with the clone of %d", strings.Join(gpus, ", "), e.Wish.CloneFrom)
	case len(gpus) > 0:
		e.broken(GivesMore, proof, e.apply(), "its conf gives %s, which are not assigned", strings.Join(gpus, ", "))
	case gone:
		e.warn(GivesGone, proof, e.apply(), "its conf gives the device of a GPU that %s does not have", e.Node.Name)
	case len(e.targets) == 0 && len(c.Configured.Devices) > 0:
		e.warn(GivesShared, proof, e.apply(), "its conf gives NVIDIA devices, and no GPU is assigned")
	}
}

// confProblem reports a problem of the conf. Whether it keeps the container from its GPUs, or lets it have others, depends
// on the container: device rules are no use to an unprivileged one, and do it no harm, since Proxmox allows it all of
// them (userns.conf.d/01-pve.conf).
func (e *examination) confProblem(p Problem) {
	c := e.Container
	whenPrivileged := e.warn
	if !c.Unprivileged {
		whenPrivileged = e.broken
	}
	whenDown := e.warn
	if c.Effective == nil {
		whenDown = e.broken
	}
	proof, remedy := e.at(p), e.remedy(p)
	switch p.Kind {
	case "wrong_major":
		whenPrivileged(WrongMajor, proof, remedy, "%s", p.Message)
	case "wildcard_rule":
		whenPrivileged(Wildcard, proof, remedy, "%s", p.Message)
	case "mount_missing":
		whenPrivileged(RuleAlone, proof, remedy, "%s", p.Message)
	case "rule_missing":
		e.broken(RuleMissing, proof, remedy, "%s", p.Message)
	case "control_device_not_given":
		if len(e.targets) > 0 {
			e.broken(ControlMissing, proof, remedy, "%s", p.Message)
		}
	case "device_gone":
		whenDown(DeviceGone, proof, remedy, "%s", p.Message)
	case "invalid_line":
		whenDown(InvalidLine, proof, remedy, "%s", p.Message)
	case "duplicate_entry":
		e.warn(Duplicate, proof, remedy, "%s", p.Message)
	case "no_effect":
		e.warn(NoEffect, proof, remedy, "%s", p.Message)
	case "hidden_line":
		e.warn(HiddenLine, proof, remedy, "%s", p.Message)
	case "entry_in_snapshot":
		e.warn(SnapshotEntries, proof, remedy, "%s", p.Message)
	case "entry_in_pending":
		e.warn(PendingEntries, proof, remedy, "%s", p.Message)
	case "privileged":
		e.warn(Privileged, proof, remedy, "%s", p.Message)
	}
}

// running: the container runs, and was started with the conf that it has now.
func (e *examination) running() string {
	c := e.Container
	proof := fmt.Sprintf("LXC of %s says %s", e.Node.Name, c.State)
	switch {
	case c.Template:
		e.broken(Template, "its conf says template: 1", fmt.Sprintf("clone it: pct clone %d NEWID; a template never runs", e.CTID), "the container is a template")
		return ""
	case c.State == "stopped" && len(e.targets) == 0:
		return e.notApplicable("it is stopped, and is to have no GPU")
	case c.State == "stopped" && c.Lock != "":
		e.broken(Locked, "its conf says lock: "+c.Lock, fmt.Sprintf("wait for what holds it (a backup, a migration); if nothing does, on %s: pct unlock %d", e.Node.Name, e.CTID),
			"the container is stopped, and its lock keeps it from starting")
		return ""
	case c.State == "stopped":
		e.broken(Stopped, proof, fmt.Sprintf("phoenix-cli apply --start %d; or on %s: pct start %[1]d", e.CTID, e.Node.Name), "the container is stopped")
		return ""
	case c.State == "frozen":
		e.broken(Frozen, proof, e.on("lxc-unfreeze -n %d", e.CTID), "the container is frozen")
		return ""
	case c.State != "running":
		e.broken(InTransition, proof, "ask again in a minute", "the container is between states")
		return ""
	}
	if c.Lock != "" {
		e.warn(LockedRunning, "its conf says lock: "+c.Lock, fmt.Sprintf("wait for what holds it; if nothing does, on %s: pct unlock %d", e.Node.Name, e.CTID),
			"its lock keeps its conf from being changed and it from being restarted")
	}
	if c.RestartPending && !e.explainedInside() {
		var has []string
		if c.Effective != nil {
			has = c.Effective.Devices
		}
		e.broken(RestartPending, fmt.Sprintf("it has %s; its conf gives %s", orNothing(has), orNothing(c.Configured.Devices)),
			fmt.Sprintf("phoenix-cli restart %d", e.CTID), "the conf was changed after the container was started")
	}
	return "it runs, with what its conf gives"
}

// explainedInside reports whether what stands in the container's /dev tells better than a pending restart what is wrong.
func (e *examination) explainedInside() bool {
	if e.Container.problem("ghost_file") != nil {
		return true
	}
	return e.Probe != nil && slices.ContainsFunc(e.Probe.Results, func(p Probed) bool {
		return p.Expected && (p.Outcome == "not a device" || p.Outcome == "wrong number")
	})
}

// devices: every device that is needed opens inside, and no other GPU's.
func (e *examination) devices() string {
	switch {
	case e.Container.State != "running":
		return e.notExamined("the container does not run")
	case e.Probe == nil:
		return e.notExamined("nobody has opened the devices")
	case e.Probe.Err != "":
		e.broken(ProbeFailed, e.Probe.Err, fmt.Sprintf("on %s: lxc-attach -n %d -- /bin/true shows whether anything can be run in it", e.Node.Name, e.CTID),
			"nothing can be run inside to open the devices")
		return ""
	}
	e.docker()
	need := map[string]bool{}
	if len(e.targets) > 0 {
		for _, n := range e.needed() {
			need[n.Path] = true
		}
	}
	opened := 0
	for _, p := range e.Probe.Results {
		assigned := e.assigned(p)
		switch {
		case need[p.Path] || p.Expected && (assigned || p.GPU < 0 && len(e.targets) > 0):
			need[p.Path] = true
			if e.opened(p) {
				opened++
			}
		case p.GPU >= 0 && !assigned && reached(p):
			what := fmt.Sprintf("GPU %d is", p.GPU)
			if p.MIG != nil {
				what = fmt.Sprintf("a MIG device of GPU %d is", p.GPU)
			}
			e.broken(Leak, fmt.Sprintf("%s inside: %s", p.Path, p.Outcome), fmt.Sprintf("%s, which restarts it if need be; look for a rule that allows too much (phoenix-cli conf show %d)", e.apply(), e.CTID),
				"%s not assigned and can be opened inside", what)
		}
	}
	if len(e.targets) == 0 {
		return "no GPU can be opened inside"
	}
	return fmt.Sprintf("a process inside opened %d of %d devices, and no other GPU's", opened, len(need))
}

// assigned reports whether a device belongs to an assigned GPU or MIG device. The device of a card that is divided gives
// nothing by itself, and is part of each of its MIG devices.
func (e *examination) assigned(p Probed) bool {
	return slices.ContainsFunc(e.targets, func(t target) bool {
		switch {
		case t.gpu == nil || t.gpu.Index != p.GPU:
			return false
		case p.MIG == nil || t.want.MIG == nil:
			return true
		}
		return p.MIG.GI == t.want.MIG.GI && (p.MIG.CI < 0 || p.MIG.CI == t.want.MIG.CI)
	})
}

// reached reports whether the kernel let an open through.
func reached(p Probed) bool {
	return p.Outcome == "opened" || p.Outcome == "no driver" || p.Outcome == "timeout"
}

// opened reports what keeps a needed device from being opened.
func (e *examination) opened(p Probed) bool {
	proof := fmt.Sprintf("open of %s inside: %s", p.Path, p.Outcome)
	if p.Errno != "" {
		proof += " (" + p.Errno + ")"
	}
	restart := fmt.Sprintf("phoenix-cli restart %d", e.CTID)
	switch p.Outcome {
	case "opened":
		return true
	case "no driver":
		if e.Node.Sandbox {
			return true
		}
		e.broken(NoDriver, proof, e.on("nvidia-smi; dmesg | grep NVRM: the GPU or its driver is gone; reset it or reboot"), "no driver answers at %s", p.Path)
	case "denied":
		e.broken(Denied, proof, fmt.Sprintf("%s, then %s", e.apply(), restart), "the device cgroup of the container refuses %s", p.Path)
	case "no permission":
		e.broken(NoPermission, proof, e.on("chmod 666 %s; or mode=0666 in its devN entry", p.Path), "mode or owner of %s refuses the container's root", p.Path)
	case "absent":
		e.broken(Absent, proof, restart, "%s is not in the container", p.Path)
	case "not a device":
		e.broken(Ghost, proof, restart, "%s in the container is an ordinary file: the node lacked the device when the container started", p.Path)
	case "wrong number":
		e.broken(OldNumbers, fmt.Sprintf("%s; it is %d:%d inside", proof, p.Major, p.Minor), restart, "%s in the container has numbers that the driver had before it was loaded anew", p.Path)
	case "timeout":
		e.broken(Hangs, proof, e.on("dmesg | grep Xid; reset the GPU or reboot"), "%s does not answer: the driver or the GPU hangs", p.Path)
	default:
		e.broken(OpenFailed, proof, e.on("dmesg | tail: what the driver says about it"), "%s cannot be opened", p.Path)
	}
	return false
}
