// Package confaudit tells what in a container's conf would worry the node's root who was handed it: lines that
// are hidden, that run programs on the node, that give the container the node's files, devices or rights, or
// that do not do what they look like. It judges every section, for pending changes come into force at the
// next stop and a snapshot at a rollback. The package is pure, and changes nothing: what a finding is about
// stays as it is.
package confaudit

import (
	"cmp"
	"slices"
	"strconv"

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
	var all []Finding
	for _, w := range f.Warnings() {
		switch w.Kind {
		case pveconf.WarningHidden:
			all = append(all, Finding{w.Line, sectionOf(f, w.Line), HiddenLineEnd, Danger, w.Text, "remove the line; find out who wrote it"})
		case pveconf.WarningInvalid:
			all = append(all, Finding{w.Line, sectionOf(f, w.Line), DroppedLine, Warning, w.Text, "correct the line or remove it"})
		}
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(a.Line, b.Line) })
	return all
}

// sectionOf returns the name of the section that a line stands in.
func sectionOf(f *pveconf.File, line int) string {
	name, header := "", 0
	for _, s := range append(f.Snapshots(), f.Pending()) {
		if header < s.Line && s.Line <= line {
			name, header = s.Name, s.Line
		}
	}
	return name
}
