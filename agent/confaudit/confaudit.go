// Package confaudit tells what in a container's conf would worry the node's root who was handed it: lines that
// are hidden, that run programs on the node, that give the container the node's files, devices or rights, or
// that do not do what they look like. It judges every section, for pending changes come into force at the
// next stop and a snapshot at a rollback. The package is pure, and changes nothing: what a finding is about
// stays as it is.
package confaudit

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// A Finding is one thing about one line.
type Finding struct {
	Line     int    // of the conf, from 1; 0 if it is about no single line
	Section  string // empty for the main section, else "pve:pending" or the snapshot's name
	Kind     Kind
	Severity Severity
	Message  string // one sentence
	Advice   string // one sentence
}

// Severity says how much a finding matters.
type Severity int

// The severities.
const (
	Note    Severity = iota // ordinary, but worth knowing in a conf of somebody else
	Warning                 // weakens the container's walls, or does not do what it says
	Danger                  // gives the node away to whoever wrote the line, or to the container's root
)

func (s Severity) String() string {
	switch s {
	case Note:
		return "note"
	case Warning:
		return "warning"
	case Danger:
		return "danger"
	}
	return "Severity(" + strconv.Itoa(int(s)) + ")"
}

// Findings returns what there is to say about f, by line.
func Findings(f *pveconf.File) []Finding {
	headers := headersOf(f)
	all := fileFindings(f, headers)
	main := newSection("", f.Properties(), f.Raw())
	all = append(all, main.findings()...)
	for _, s := range append(f.Snapshots(), f.Pending()) {
		properties := s.Properties
		if s.Name == pendingName {
			// Pending changes are made to the main section.
			properties = append(slices.DeleteFunc(f.Properties(), func(e pveconf.Entry) bool { return e.Key != "unprivileged" }), properties...)
		}
		section := newSection(s.Name, properties, s.Raw)
		section.inMain, section.header = main, s.Line
		for _, found := range section.findings() {
			if found.Line >= s.Line {
				all = append(all, found)
			}
		}
	}
	for i, found := range all {
		all[i].Message = printable(found.Message)
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(a.Line, b.Line) })
	return all
}

// maxMessage is the greatest length of a message in bytes, or a little more.
const maxMessage = 500

// printable returns a message as one that a terminal can be trusted with: what a conf says stands in it.
func printable(message string) string {
	var b strings.Builder
	for i, r := range message {
		switch {
		case b.Len() > maxMessage:
			return b.String() + "…"
		case r == utf8.RuneError && !strings.HasPrefix(message[i:], string(utf8.RuneError)):
			fmt.Fprintf(&b, `\x%02x`, message[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

const pendingName = "pve:pending"

// A header is the header of a section, of one that Proxmox forgets too.
type header struct {
	line int
	name string
	lost bool // a later section of the same name takes its place
}

func headersOf(f *pveconf.File) []header {
	var headers []header
	for i, text := range bytes.Split(f.Bytes(), []byte("\n")) {
		if !bytes.HasPrefix(text, []byte("[")) {
			continue
		}
		one := pveconf.Parse(text)
		name := ""
		if s := one.Snapshots(); len(s) > 0 {
			name = s[0].Name
		} else if one.Pending().Line > 0 {
			name = pendingName
		} else {
			continue
		}
		headers = append(headers, header{line: i + 1, name: name})
	}
	last := map[string]int{}
	for _, h := range headers {
		last[h.name] = h.line
	}
	for i, h := range headers {
		headers[i].lost = h.line != last[h.name]
	}
	return headers
}

// sectionOf returns the name of the section that a line stands in.
func sectionOf(headers []header, line int) string {
	i, _ := slices.BinarySearchFunc(headers, line+1, func(h header, line int) int { return cmp.Compare(h.line, line) })
	if i == 0 {
		return ""
	}
	return headers[i-1].name
}

// fileFindings are about the conf as Proxmox's parser sees it.
func fileFindings(f *pveconf.File, headers []header) []Finding {
	var all []Finding
	if _, err := f.Canonical(); err != nil {
		all = append(all, Finding{0, "", Unreadable, Warning, err.Error(), "correct the conf: until then Proxmox can do nothing with the container"})
	}
	for _, h := range headers {
		if h.lost {
			all = append(all, Finding{h.line, h.name, LostSection, Warning,
				fmt.Sprintf("there is another section [%s] below, and Proxmox forgets this one", h.name), "merge the two sections, or remove one"})
		}
	}
	text := bytes.Split(f.Bytes(), []byte("\n"))
	hidden := map[int]bool{}
	for _, w := range f.Warnings() {
		hidden[w.Line] = hidden[w.Line] || w.Kind == pveconf.WarningHidden
	}
	for _, w := range f.Warnings() {
		section := sectionOf(headers, w.Line)
		switch {
		case w.Kind == pveconf.WarningInvalid && strings.HasPrefix(strings.TrimLeft(string(text[w.Line-1]), " \t"), "["):
			all = append(all, Finding{w.Line, section, LostSection, Warning,
				"the line looks like the header of a section and is none: what stands below belongs to the section above", "correct the line, and what stands below it"})
		case w.Kind == pveconf.WarningInvalid:
			all = append(all, Finding{w.Line, section, DroppedLine, Warning, w.Text, "correct the line or remove it"})
		case w.Kind == pveconf.WarningValue && !told(text[w.Line-1]) && !hidden[w.Line]:
			all = append(all, Finding{w.Line, section, BadValue, Note, w.Text, "correct the line or remove it"})
		}
	}
	return all
}

// told says whether what Proxmox objects to in a line is told of with what it means: raw lines and devN.
func told(line []byte) bool {
	return bytes.HasPrefix(line, []byte("lxc.")) || bytes.HasPrefix(line, []byte("dev"))
}

// A section is one section under audit.
type section struct {
	name            string
	properties, raw []pveconf.Entry
	allowAll        bool     // the device rules allow everything
	mapped          bool     // the container's root is not the node's
	header          int      // its line; 0 for the main section
	inMain          *section // the main section; nil for the main section itself
	view            *pveconf.File
	lines           []int    // of the conf, by line of view
	keys            []string // by line of view
	found           []Finding
}

func newSection(name string, properties, raw []pveconf.Entry) *section {
	s := &section{name: name, properties: properties, raw: raw}
	// The section as a conf of its own, for what reads main sections only.
	var b strings.Builder
	entries := slices.Concat(properties, raw)
	slices.SortStableFunc(entries, func(a, b pveconf.Entry) int { return cmp.Compare(a.Line, b.Line) })
	for _, e := range entries {
		if e.Key == "delete" || e.Key == "snapstate" {
			continue // no properties of a main section
		}
		s.lines = append(s.lines, e.Line)
		s.keys = append(s.keys, e.Key)
		b.WriteString(e.Key + ": " + e.Value + "\n")
	}
	s.view = pveconf.Parse([]byte(b.String()))
	s.allowAll, s.mapped = passthrough.Unprivileged(s.view)
	return s
}

func (s *section) add(line int, kind Kind, severity Severity, advice, format string, args ...any) {
	s.found = append(s.found, Finding{line, s.name, kind, severity, fmt.Sprintf(format, args...), advice})
}

// unlessMapped is the severity of what is as bad as it looks only where the container's root is the node's.
func (s *section) unlessMapped(privileged, mapped Severity) Severity {
	if s.mapped {
		return mapped
	}
	return privileged
}

func (s *section) findings() []Finding {
	for _, e := range s.properties {
		s.checkText(e)
		s.checkProperty(e)
	}
	for _, e := range s.raw {
		s.checkText(e)
		s.checkRaw(e)
	}
	s.checkWhole()
	return s.found
}

// checkWhole judges what no single line tells.
func (s *section) checkWhole() {
	if s.name == pendingName && len(s.raw) > 0 {
		s.add(s.raw[0].Line, RawInPending, Warning, "move the line to the main section, or remove it",
			"at the next stop the raw lines in [pve:pending] take the place of all raw lines of the main section")
	}
	gpus := s.checkPassthrough()
	line := s.header
	for _, e := range s.properties {
		if e.Key == "unprivileged" {
			line = e.Line
		}
	}
	if !s.mapped && !gpus && len(s.lines) > 0 && s.name != pendingName && (s.inMain == nil || s.inMain.mapped) {
		s.add(line, Privileged, Note, "make it unprivileged unless it must be privileged: back it up and restore it with --unprivileged 1",
			"the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities")
	}
	if !s.allowAll && passthrough.AllowsAll(passthrough.RuleLines(s.view, passthrough.Inventory{}), false) {
		last := s.header
		for _, e := range s.raw {
			if e.Key == allowKey || e.Key == denyKey {
				last = e.Line
			}
		}
		s.add(last, WildcardRule, Danger, "remove the line, and allow the devices that are needed one by one",
			"up to this line the device rules of a privileged container allow every device of the node, its disks too")
	}
	if s.inMain == nil && len(s.properties) > 0 {
		var missing []string
		for _, key := range []string{"arch", "ostype", "rootfs"} {
			if !slices.ContainsFunc(s.properties, func(e pveconf.Entry) bool { return e.Key == key || e.Key == "lock" }) {
				missing = append(missing, key)
			}
		}
		if len(missing) > 0 {
			s.add(0, NoStart, Warning, "add what is missing", "without %s the container does not start", strings.Join(missing, ", "))
		}
	}
}

const setAnew = "set the passthrough with Phoenix, or remove the line"

// checkPassthrough reports what package passthrough finds that matters here too, and says whether GPUs are
// given.
func (s *section) checkPassthrough() (gpus bool) {
	p, problems := passthrough.Offline(s.view)
	for _, problem := range problems {
		line, key := s.header, ""
		if problem.Line > 0 {
			line = s.lines[problem.Line-1]
			key = s.keys[problem.Line-1]
		}
		advice := cmp.Or(problem.Advice, setAnew)
		switch problem.Kind {
		case passthrough.WildcardRule:
			s.checkWildcard(key, line, problem)
		case passthrough.Privileged:
			s.add(line, PrivilegedGPU, Warning, problem.Advice, "%s", problem.Message)
		case passthrough.InvalidLine, passthrough.ModeConflict:
			s.add(line, NoStart, Warning, advice, "%s", problem.Message)
		case passthrough.NoEffect:
			s.add(line, NoEffect, Note, advice, "%s", problem.Message)
		}
	}
	if s.inMain != nil && s.name != pendingName && len(p.GPUs) > 0 {
		s.add(s.header, Rollback, Note, "apply the passthrough again after a rollback", "a rollback to %s brings back the GPUs of its own time", s.name)
	}
	return len(p.GPUs) > 0
}

// checkWildcard judges what gives more NVIDIA devices than single ones. Binds of all of /dev and rules for
// every device are judged as what they are.
func (s *section) checkWildcard(key string, line int, problem passthrough.Problem) {
	advice := cmp.Or(problem.Advice, setAnew)
	switch {
	case key == allowKey && s.allowAll:
		s.add(line, WildcardRule, Note, advice, "%s; in this container the device rules allow everything anyway", problem.Message)
	case key == allowKey && problem.Advice == "", strings.HasPrefix(key, "lxc.hook."):
		s.add(line, WildcardRule, Warning, advice, "%s", problem.Message)
	}
}
