package pveconf

import (
	"fmt"
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

const (
	WarningInvalid WarningKind = iota // Proxmox ignores the line and drops it when it next writes the conf
	WarningValue                      // Proxmox keeps the line but objects to its key or value
	WarningHidden                     // LXC reads other lines here than Proxmox: there is a CR or a NUL within
)

// Warnings returns what is wrong with single lines, in all sections, by line.
func (f *File) Warnings() []Warning {
	var warnings []Warning
	for i, l := range f.lines {
		if l.warning != "" {
			w := Warning{Line: i + 1, Kind: WarningValue, Text: l.warning}
			if l.kind == kindInvalid || l.kind == kindRawRefused || l.kind == kindDropped {
				w.Kind = WarningInvalid
			}
			warnings = append(warnings, w)
		}
		if l.kind != kindRaw && l.kind != kindProperty {
			continue // Proxmox passes nothing else on to LXC
		}
		if at := strings.IndexAny(l.value, "\r\x00"); at >= 0 {
			warnings = append(warnings, Warning{
				Line: i + 1,
				Kind: WarningHidden,
				Text: fmt.Sprintf("the value of %s holds the control character %#x, where LXC ends the line", l.key, l.value[at]),
			})
		}
	}
	return warnings
}
