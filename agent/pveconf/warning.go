package pveconf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Warning is something about a line that a person should know.
type Warning struct {
	Line int // from 1
	Kind WarningKind
	Text string // one sentence
}

// WarningKind says what a warning is about.
type WarningKind int

// The kinds of warnings: first those that Proxmox prints too.
const (
	WarningInvalid   WarningKind = iota // Proxmox ignores the line and drops it when it next writes the conf
	WarningValue                        // Proxmox keeps the line but objects to its key or value
	WarningHidden                       // LXC reads other lines here than Proxmox: there is a CR or a NUL within
	WarningLost                         // Proxmox drops or damages the line without a word
	WarningMisplaced                    // the line stands in another section than it seems
	WarningStart                        // Proxmox reads the line, and then cannot start the container
	WarningFatal                        // Proxmox's parser or writer dies on the conf for this line
)

// Printed says whether Proxmox warns of this itself, on stderr or in syslog, each time it reads the conf.
func (k WarningKind) Printed() bool {
	return k == WarningInvalid || k == WarningValue
}

// Warnings returns what a person should know about the lines of all sections, by line. It reports what Proxmox
// reports, and what Proxmox and LXC do to the conf without a word.
func (f *File) Warnings() []Warning {
	var all []Warning
	for i, l := range f.lines {
		all = append(all, l.warnings(i+1)...)
	}
	all = append(all, f.lost(0, f.mainEnd())...)
	ranges := f.sectionRanges()
	for i, r := range ranges {
		again := slices.IndexFunc(ranges[i+1:], func(o sectionRange) bool {
			return o.header.section == r.header.section && o.header.value == r.header.value
		})
		if again < 0 {
			all = append(all, f.lost(r.from, r.to)...)
			all = append(all, f.replacing(r)...)
		} else if slices.ContainsFunc(f.lines[r.from:r.to], line.counts) {
			all = append(all, Warning{r.from, WarningLost, fmt.Sprintf(
				"[%s] begins again on line %d; Proxmox reads only that, and drops what stands here", r.header.value, ranges[i+1+again].from)})
		}
	}
	all = append(all, f.misplaced()...)
	if _, err := f.Canonical(); err != nil {
		if fatal, ok := errors.AsType[*FatalError](err); ok {
			all = append(all, Warning{fatal.Line, WarningFatal, err.Error()})
		}
	}
	slices.SortStableFunc(all, func(a, b Warning) int { return cmp.Compare(a.Line, b.Line) })
	return all
}

// warnings are about the line by itself.
func (l line) warnings(number int) []Warning {
	var all []Warning
	add := func(kind WarningKind, text string) { all = append(all, Warning{number, kind, text}) }
	switch {
	case l.warning == "":
	case l.kind == kindInvalid || l.kind == kindRawRefused || l.kind == kindDropped:
		add(WarningInvalid, l.warning)
	default:
		add(WarningValue, l.warning)
	}
	switch l.kind {
	case kindComment, kindDescription:
		if unescaped := unescape(l.value); decodeUTF8(unescaped) != unescaped {
			add(WarningLost, "the comment holds bytes that are not UTF-8; Proxmox replaces them when it next writes the conf")
		}
	case kindDropped:
		if l.warning == "" {
			add(WarningLost, "Proxmox takes this line for the state of a snapshot, and drops it when it next writes the conf")
		}
	case kindProperty:
		if l.key == "snapstate" && !strings.HasPrefix(l.text, "snapstate:") {
			add(WarningLost, "Proxmox takes this line for the state of a snapshot, and writes it back as that")
		}
		if items, err := deviceFormat.split(l.value); l.warning == "" && baseOf(l.key) == "dev" && err == nil {
			if _, ok := items.find("path"); !ok {
				add(WarningStart, l.key+" has no path; the container does not start")
			}
		}
	}
	if at := strings.IndexAny(l.value, "\r\x00"); at >= 0 && (l.kind == kindRaw || l.kind == kindProperty) { // else LXC does not see it
		add(WarningHidden, fmt.Sprintf("the value of %s holds the control character %#x, where LXC ends the line", l.key, l.value[at]))
	}
	return all
}

// counts says whether Proxmox reads anything from the line into the section it stands in.
func (l line) counts() bool {
	switch l.kind {
	case kindComment, kindRaw, kindDescription, kindBlankDescription, kindProperty:
		return true
	}
	return false
}

// lost are the lines of a section that a later line overrides.
func (f *File) lost(from, to int) []Warning {
	var all []Warning
	last := map[string]int{}
	for i := to - 1; i >= from; i-- {
		l := f.lines[i]
		key := l.key
		if l.kind == kindRaw && key == runtimeKey {
			key = "env" // which a line "env:" sets anew
		} else if l.kind != kindProperty {
			continue
		}
		if by := last[key]; by > 0 {
			all = append(all, Warning{i + 1, WarningLost, fmt.Sprintf("line %d sets %s anew; Proxmox drops this line when it next writes the conf", by, key)})
		} else if l.kind == kindProperty {
			last[key] = i + 1
		}
	}
	return all
}

// replacing is about raw lines in the section of pending changes.
func (f *File) replacing(r sectionRange) []Warning {
	if r.header.section != sectionPending {
		return nil
	}
	i := slices.IndexFunc(f.lines[r.from:r.to], func(l line) bool { return l.kind == kindRaw && l.key != runtimeKey })
	if i < 0 {
		return nil
	}
	return []Warning{{r.from + i + 1, WarningLost,
		"raw lines in [pve:pending] replace all raw lines of the main section when the container stops"}}
}

// misplaced are the first lines below what looks like a header to people only.
func (f *File) misplaced() []Warning {
	var all []Warning
	section, header := "the main section", 0
	for i, l := range f.lines {
		switch {
		case l.kind == kindHeader:
			section, header = "["+l.value+"]", 0
		case l.kind == kindInvalid && strings.HasPrefix(trim(strings.TrimPrefix(l.text, byteOrderMark)), "["):
			header = i + 1
		case header > 0 && l.counts():
			all = append(all, Warning{i + 1, WarningMisplaced, fmt.Sprintf(
				"line %d is no header for Proxmox; what stands below it belongs to %s", header, section)})
			header = 0
		}
	}
	return all
}
