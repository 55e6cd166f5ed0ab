package passthrough

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
)

// A Problem is something wrong with a container's conf or devices.
type Problem struct {
	Kind    Kind
	Message string // one sentence
	Line    int    // of the conf, from 1; 0 if it is about no single line
	Advice  string // what a person is to do; empty if Set mends it
}

// Kind classifies problems. The values are those of phoenix.type.v1.ProblemKind.
type Kind int

// The kinds of problems.
const (
	DeviceGone            Kind = iota + 1 // an entry gives a device that the node does not have
	WrongMajor                            // a rule names a major that the driver no longer has
	ControlDeviceNotGiven                 // a GPU is given, but not what every use of it needs
	RuleMissing                           // a device that the device rules do not allow
	MountMissing                          // a rule for a device that is not given
	WildcardRule                          // more is given than any assignment means: a rule for every device of a major, for example
	DuplicateEntry                        // the same device twice
	EntryInSnapshot                       // an entry in a snapshot section
	EntryInPending                        // an entry in [pve:pending]
	InvalidLine                           // a line that Proxmox cannot read
	NoEffect                              // an entry without effect
	ModeConflict                          // the same path by raw lines and by devN
	GhostFile                             // an empty file in a device's place in the running container
	HiddenLine                            // a line end or NUL within a value
	Unreadable                            // the conf could not be read
	Privileged                            // GPUs in a privileged container
	MIGWhole                              // a GPU that MIG divides, whole
)

func (c *conf) problems() []Problem {
	var all []Problem
	all = append(all, c.lineProblems()...)
	all = append(all, c.mountProblems()...)
	all = append(all, c.deviceProblems()...)
	all = append(all, c.ruleProblems()...)
	all = append(all, c.missingProblems()...)
	all = append(all, c.sectionProblems()...)
	slices.SortStableFunc(all, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return all
}

// lineProblems are the lines that Proxmox, or LXC, does not read as they look.
func (c *conf) lineProblems() []Problem {
	var all []Problem
	for _, w := range c.file.Warnings() {
		switch w.Kind {
		case pveconf.WarningInvalid:
			all = append(all, Problem{InvalidLine, w.Text, w.Line, "correct the line or remove it"})
		case pveconf.WarningHidden:
			all = append(all, Problem{HiddenLine, w.Text, w.Line, "remove the line; find out who wrote it"})
		}
	}
	for _, e := range c.file.Properties() {
		if !isDevice(e.Key) {
			continue
		}
		ours := func(d device) bool { return d.line == e.Line } // deviceProblems has it
		if _, err := pveconf.ParseDevice(e.Value); err != nil && !slices.ContainsFunc(c.devices, ours) {
			all = append(all, Problem{InvalidLine, fmt.Sprintf("%s: %v; the container does not start", e.Key, err), e.Line, "correct the line or remove it"})
		}
	}
	for _, e := range c.unreadable {
		all = append(all, Problem{InvalidLine, fmt.Sprintf("LXC cannot read the device rule %q and does not start the container", LXCValue(e.Value)), e.Line, "correct the line or remove it"})
	}
	for _, o := range c.others {
		all = append(all, Problem{o.kind, o.message, o.line, o.advice})
	}
	return all
}

func (c *conf) mountProblems() []Problem {
	var all []Problem
	seen := map[string]int{}
	missing := map[string]Problem{} // by source
	for _, m := range c.mounts {
		if key := c.conflict(m); key != "" {
			all = append(all, Problem{ModeConflict,
				fmt.Sprintf("%s is made by this mount entry and by %s: the container does not start", m.target, key), m.line, ""})
		}
		if m.noEffect != "" {
			all = append(all, Problem{NoEffect, fmt.Sprintf("the mount entry of %s has no effect: %s", m.source, m.noEffect), m.line, ""})
			continue
		}
		if first, ok := seen[m.target]; ok {
			all = append(all, Problem{DuplicateEntry, fmt.Sprintf("%s is mounted by line %d already", m.target, first), m.line, ""})
			continue
		}
		seen[m.target] = m.line
		all = append(all, c.gone(m.source, m.line)...)
		if m.rootfs {
			all = append(all, Problem{NoEffect,
				fmt.Sprintf("the target of the mount entry of %s names a container by its number: in every other, a clone too, LXC ignores it", m.source), m.line, ""})
		}
		p, ok := missing[m.source]
		if !ok {
			p = c.ruleMissing(m.source)
			missing[m.source] = p
		}
		if p.Kind != 0 {
			p.Line = m.line
			all = append(all, p)
		}
	}
	return all
}

// conflict returns the key of the devN that is to make what m makes before it, or "".
func (c *conf) conflict(m mount) string {
	for _, d := range c.devices {
		under := m.noEffect == "" && strings.HasPrefix(d.path, m.target+"/")
		if d.broken == "" && (under || m.makes && d.path == m.target) {
			return d.key
		}
	}
	return ""
}

// gone reports a device that the node lacks.
func (c *conf) gone(path string, line int) []Problem {
	n, ok := c.inv.node(path)
	switch {
	case ok && !n.Present:
		return []Problem{{DeviceGone, fmt.Sprintf("the node has no usable %s now", path), line, ""}}
	case !ok && (gpuLikePath.MatchString(path) || !c.inv.offline && strings.HasPrefix(path, "/dev/nvidia-caps/")):
		return []Problem{{DeviceGone, fmt.Sprintf("the node has no %s", path), line, ""}}
	}
	return nil
}

// ruleMissing returns the problem of a mounted device that the device rules do not let the container open, or
// none; its line is not set.
func (c *conf) ruleMissing(path string) Problem {
	n, ok := c.inv.node(path)
	if !ok || n.Major < 0 || c.program.opens('c', n.Major, n.Minor) {
		return Problem{}
	}
	if c.ruleOf(n) >= 0 || !c.program.opensWith(Rule{'c', n.Major, n.Minor, "rwm"}) {
		return Problem{Kind: RuleMissing, Message: fmt.Sprintf("a %s line denies %s", denyKey, path), Advice: "remove that line"}
	}
	return Problem{Kind: RuleMissing, Message: fmt.Sprintf("no rule allows %s (%d:%d)", path, n.Major, n.Minor)}
}

func (c *conf) deviceProblems() []Problem {
	var all []Problem
	seen := map[string]string{}
	autodevOff := false
	for _, e := range c.raw {
		if e.Key == "lxc.autodev" {
			autodevOff = LXCValue(e.Value) == "0"
		}
	}
	for _, d := range c.devices {
		if d.broken != "" {
			all = append(all, Problem{InvalidLine, fmt.Sprintf("%s: %s; the container does not start", d.key, d.broken), d.line, ""})
			continue
		}
		if first, ok := seen[d.path]; ok {
			all = append(all, Problem{DuplicateEntry, fmt.Sprintf("%s is given by %s already", d.path, first), d.line, ""})
			continue
		}
		seen[d.path] = d.key
		all = append(all, c.gone(d.source, d.line)...)
		if d.rootOnly && !d.denyWrite {
			all = append(all, Problem{RuleMissing, fmt.Sprintf("%s gives %s without a mode, so with 0660: only the container's root can open it", d.key, d.path), d.line, ""})
		}
		if d.denyWrite {
			all = append(all, Problem{RuleMissing, fmt.Sprintf("%s denies writing to %s, which every use of it needs", d.key, d.path), d.line, ""})
		}
		if autodevOff {
			all = append(all, Problem{NoEffect, fmt.Sprintf("lxc.autodev: 0 switches %s off", d.key), d.line, "remove the line lxc.autodev: 0"})
		}
	}
	return all
}

func (c *conf) ruleProblems() []Problem {
	var all []Problem
	seen := map[Rule][]rule{} // by numbers
	given := c.allGiven()
	for _, r := range c.rules {
		numbers := Rule{Major: r.rule.Major, Minor: r.rule.Minor}
		switch first := slices.IndexFunc(seen[numbers], func(o rule) bool { return o.covers(r) }); {
		case r.noEffect != "":
			all = append(all, Problem{NoEffect, fmt.Sprintf("the rule %q has no effect: %s", r.text, r.noEffect), r.line, ""})
			continue
		case r.stale:
			all = append(all, Problem{WrongMajor, fmt.Sprintf("the rule %q is for a major that no NVIDIA driver has%s", r.text, c.uvmMajor()), r.line, ""})
			continue
		case first >= 0:
			all = append(all, Problem{DuplicateEntry, fmt.Sprintf("the rule %q says what line %d says already", r.text, seen[numbers][first].line), r.line, ""})
			continue
		case r.path == "" && r.rule.Minor < 0:
			all = append(all, Problem{WildcardRule, fmt.Sprintf("the rule %q allows every device of %s", r.text, c.driverOf(r.rule.Major)), r.line, ""})
		case r.path != "" && len(c.gone(r.path, r.line)) > 0:
			all = append(all, Problem{DeviceGone, fmt.Sprintf("the node has no usable %s now, and with the rule %q the container does not start", r.path, r.text), r.line, ""})
		case !given.has(r):
			all = append(all, Problem{MountMissing, fmt.Sprintf("the rule %q is for a device that the conf does not give", r.text), r.line, ""})
		}
		seen[numbers] = append(seen[numbers], r)
	}
	for _, e := range c.broad {
		all = append(all, Problem{WildcardRule, fmt.Sprintf("the rule %q allows NVIDIA devices among all others", e.Value), e.Line,
			"replace it by one rule for each device that the container needs"})
	}
	for _, e := range c.drm {
		all = append(all, Problem{WildcardRule, fmt.Sprintf("the rule %q allows the DRM nodes of every card, NVIDIA's among them", e.Value), e.Line,
			"replace it by one rule for each device that the container needs"})
	}
	for _, e := range c.strange {
		all = append(all, Problem{WrongMajor, fmt.Sprintf("the rule %q is for another driver%s", e.Value, c.uvmMajor()), e.Line,
			"remove it if it was meant for nvidia-uvm"})
	}
	return all
}

// covers says whether o allows at least what r allows, by numbers written in the same way.
func (o rule) covers(r rule) bool {
	return o.path == r.path && o.rule.Major == r.rule.Major && o.rule.Minor == r.rule.Minor &&
		strings.Trim(r.rule.Access, o.rule.Access) == ""
}

// given are the devices that entries give.
type given struct {
	paths   map[string]bool
	numbers map[[2]int]bool // major and minor
	unknown bool            // some device whose major the inventory does not have: a capability node, offline nvidia-uvm
}

func (c *conf) allGiven() given {
	g := given{map[string]bool{}, map[[2]int]bool{}, false}
	add := func(path string) {
		g.paths[path] = true
		if n, ok := c.inv.node(path); ok && n.Major >= 0 {
			g.numbers[[2]int{n.Major, n.Minor}] = true
		} else if ok && c.inv.offline {
			g.unknown = true
		} else if minor := gpuMinor(path); minor >= 0 {
			g.numbers[[2]int{nvidiaMajor, minor}] = true
		} else if strings.HasPrefix(path, "/dev/nvidia-caps") {
			g.unknown = true
		}
	}
	for _, m := range c.mounts {
		if m.noEffect == "" {
			add(m.source)
		}
	}
	for _, d := range c.devices {
		if d.broken == "" {
			add(d.source)
		}
	}
	return g
}

// has says whether some entry gives a device of the rule's numbers or path. For a rule that may be for a
// device of unknown numbers the judgement stays open.
func (g given) has(r rule) bool {
	if r.path != "" {
		return g.paths[r.path]
	}
	return g.numbers[[2]int{r.rule.Major, r.rule.Minor}] || g.unknown && r.rule.Major != nvidiaMajor
}

// driverOf names the driver of a major for a message.
func (c *conf) driverOf(major int) string {
	if name := c.inv.driver(major); name != "" {
		return "the driver " + name
	}
	return "its major"
}

func (c *conf) uvmMajor() string {
	if major, ok := c.inv.Majors["nvidia-uvm"]; ok {
		return "; nvidia-uvm has " + strconv.Itoa(major)
	}
	return ""
}

// missingProblems are about what is given as a whole.
func (c *conf) missingProblems() []Problem {
	p := c.passthrough()
	all := c.folderProblems()
	all = append(all, c.partProblems(p)...)
	if len(p.GPUs) == 0 {
		return all
	}
	for _, g := range p.GPUs {
		if g.MIG == nil && slices.ContainsFunc(c.inv.MIG, func(m MIGDevice) bool { return m.Minor == g.Minor }) {
			all = append(all, Problem{MIGWhole, fmt.Sprintf("GPU %d is divided by MIG and given whole: CUDA can use its MIG devices only", g.Index), 0,
				"assign a MIG device of it, or switch MIG off"})
		}
	}
	for _, n := range c.inv.Nodes {
		if n.Needed && !slices.ContainsFunc(p.Devices, func(d Device) bool { return d.Path == n.Path }) {
			all = append(all, Problem{ControlDeviceNotGiven, fmt.Sprintf("a GPU is given without %s", n.Path), 0, ""})
		}
	}
	if !c.mapped {
		all = append(all, Problem{Privileged, "a privileged container has GPUs: its root is root on the node", 0,
			"make it unprivileged: back it up and restore it with --unprivileged 1"})
	}
	return all
}

// folderProblems are about folders that bring NVIDIA's devices among others.
func (c *conf) folderProblems() []Problem {
	var all []Problem
	given := c.allGiven().paths
	for _, m := range c.folders {
		var paths []string
		for _, n := range m.nodes {
			if !given[n.Path] {
				paths = append(paths, n.Path)
			}
		}
		if paths != nil {
			all = append(all, Problem{WildcardRule, fmt.Sprintf("the mount entry of %s brings %s of NVIDIA's cards along", m.source, strings.Join(paths, ", ")), m.line,
				"replace the line by one for each device that the container needs"})
		}
		for _, d := range c.devices {
			if d.broken == "" && strings.HasPrefix(d.path, m.target+"/") {
				all = append(all, Problem{ModeConflict, fmt.Sprintf("%s is to make %s in a folder that this mount entry brings: the container does not start", d.key, d.path), m.line,
					"remove the line"})
			}
		}
	}
	return all
}

// partProblems are about devices that are given without those they are of no use without, and those that nobody is given.
func (c *conf) partProblems(p Passthrough) []Problem {
	var all []Problem
	given := c.allGiven().paths
	missing := func(format string, args ...any) {
		all = append(all, Problem{ControlDeviceNotGiven, fmt.Sprintf(format, args...), 0, ""})
	}
	whole := map[string]bool{} // capability nodes of a MIG device that is given
	has := map[int]bool{}      // GPUs by minor
	for _, g := range p.GPUs {
		has[g.Minor] = true
		if paths, err := c.inv.nodesOf(g); err == nil && g.MIG != nil {
			whole[paths[1]], whole[paths[2]] = true, true
		}
	}
	for _, n := range c.inv.Nodes {
		comes := slices.ContainsFunc(p.Devices, func(d Device) bool { return d.Path == n.Path }) // with a folder too
		switch {
		case n.Use == Management && n.Present && comes:
			all = append(all, Problem{WildcardRule, n.Path + " is given, the right to divide GPUs, watch them or manage a fabric, which no assignment means", 0, ""})
		case n.Use == Instance && given[n.Path] && !whole[n.Path]:
			missing("%s is given without the rest of a MIG device", n.Path)
		case n.Use == Graphics && n.GPU >= 0 && given[n.Path] && len(p.GPUs) > 0 && !has[n.GPU]:
			missing("%s is given without the GPU that it belongs to", n.Path)
		case n.Use == Graphics && p.Graphics && len(p.GPUs) > 0 && !given[n.Path] && (n.GPU < 0 || has[n.GPU]):
			missing("graphics is given without %s", n.Path)
		}
	}
	return all
}

// sectionProblems are the NVIDIA entries outside the main section, one problem for each section.
func (c *conf) sectionProblems() []Problem {
	var all []Problem
	for _, s := range c.file.Snapshots() {
		if lines := c.entries(s); lines != nil {
			all = append(all, Problem{EntryInSnapshot,
				fmt.Sprintf("snapshot %s holds NVIDIA entries (%s), which have no effect now", s.Name, list(lines)), lines[0],
				"after a rollback to " + s.Name + " they are in force: apply again then"})
		}
	}
	return append(all, c.pendingProblems()...)
}

func (c *conf) pendingProblems() []Problem {
	const advice = "remove the lines from [pve:pending]"
	pending := c.file.Pending()
	var all []Problem
	if raw := pending.Raw; len(raw) > 0 && len(c.raw) > 0 {
		all = append(all, Problem{EntryInPending, fmt.Sprintf("raw lines in [pve:pending] (from line %d on) replace all raw lines above when the container stops",
			raw[0].Line), raw[0].Line, advice})
	} else if lines := c.entries(pveconf.Section{Raw: raw}); lines != nil {
		all = append(all, Problem{EntryInPending, fmt.Sprintf("[pve:pending] holds NVIDIA entries (%s), which have no effect before the container stops",
			list(lines)), lines[0], advice})
	}
	for _, e := range pending.Properties {
		keys := []string{e.Key}
		if e.Key == "delete" {
			keys = pveconf.DeleteKeys(e.Value)
		}
		for _, d := range c.devices {
			if slices.Contains(keys, d.key) {
				all = append(all, Problem{EntryInPending, fmt.Sprintf("[pve:pending] changes %s, which gives %s, when the container stops", d.key, d.path), e.Line, advice})
			}
		}
		if lines := c.entries(pveconf.Section{Properties: []pveconf.Entry{e}}); lines != nil {
			all = append(all, Problem{EntryInPending, fmt.Sprintf("%s in [pve:pending] gives an NVIDIA device when the container stops", e.Key), e.Line, advice})
		}
	}
	return all
}

// entries returns the lines of a section's NVIDIA entries.
func (c *conf) entries(s pveconf.Section) []int {
	section := &conf{inv: c.inv, want: c.want}
	section.readEntries(s.Properties, s.Raw)
	var lines []int
	for _, m := range section.mounts {
		lines = append(lines, m.line)
	}
	for _, d := range section.devices {
		lines = append(lines, d.line)
	}
	for _, r := range section.rules {
		lines = append(lines, r.line)
	}
	slices.Sort(lines)
	return lines
}

// list writes line numbers for a message.
func list(lines []int) string {
	numbers := make([]string, len(lines))
	for i, n := range lines {
		numbers[i] = strconv.Itoa(n)
	}
	if len(numbers) == 1 {
		return "line " + numbers[0]
	}
	return "lines " + strings.Join(numbers, ", ")
}
