package pveconf

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxValue is the greatest length of a value that an edit writes, in bytes.
const MaxValue = 4096

// reserved are keys that Proxmox's parser and writer use in memory for something else: written as plain
// properties they are lost, reinterpreted, or kill the parser.
var reserved = set(`delete description digest env lxc pending snapname snapshots snapstate`)

// CheckValue says whether s may be the value of a line that we write: valid UTF-8 of at most [MaxValue]
// bytes without control characters and without surrounding blanks. LXC ends a line at CR as well as at
// LF and stops at NUL, so each of these could smuggle in a line that runs as root.
func CheckValue(s string) error {
	switch {
	case len(s) > MaxValue:
		return fmt.Errorf("value of %d bytes is longer than %d", len(s), MaxValue)
	case !utf8.ValidString(s):
		return fmt.Errorf("value %q is not UTF-8", s)
	case strings.Trim(s, " ") != s:
		return fmt.Errorf("value %q begins or ends with a blank", s)
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return fmt.Errorf("value %q has the control character %#x at byte %d", s, s[i], i)
		}
	}
	return nil
}

// Set gives a property of the main section a value. If the property has this value already, nothing
// changes. Otherwise the line in force is replaced where it stands and other lines of the key are
// removed; a new property goes to its place in Proxmox's order. It refuses keys that Proxmox does not
// know or uses itself, and values that Proxmox or [CheckValue] objects to.
func (f *File) Set(key, value string) error {
	if reserved[key] || typeOf(key) == typeUnknown {
		return fmt.Errorf("set %s: no property that can be set", key)
	}
	normal, err := checkType(key, value)
	if err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	if baseOf(key) == "dev" { // Proxmox objects to one without a path only when it starts the container
		if _, err := ParseDevice(value); err != nil {
			return fmt.Errorf("set %s: %w", key, err)
		}
	}
	l, err := newLine(kindProperty, key, normal)
	if err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	if old, ok := f.Property(key); ok {
		if old == normal {
			return nil
		}
		f.replace(key, l)
		return nil
	}
	f.insert(f.propertyPlace(key), l)
	return nil
}

// Unset removes a property from the main section and says whether it was there.
func (f *File) Unset(key string) bool {
	return f.remove(kindProperty, func(e Entry) bool { return e.Key == key }) > 0
}

// AppendRaw adds an lxc.* line after the last property or raw line of the main section, which is before
// every section header; one for lxc.environment.runtime goes where Proxmox writes those, before all other raw lines. It
// refuses keys that Proxmox ignores and values that [CheckValue] objects to.
func (f *File) AppendRaw(key, value string) error {
	l, err := newLine(kindRaw, key, value)
	if err != nil {
		return fmt.Errorf("add %s: %w", key, err)
	}
	if key == runtimeKey {
		if value == "" {
			return fmt.Errorf("add %s: Proxmox drops an empty one", key)
		}
		f.insert(f.runtimePlace(), l)
		return nil
	}
	f.insert(f.rawPlace(), l)
	return nil
}

// InsertRaw adds an lxc.* line before the given line of the file, counted from 1, which must be a raw line
// of the main section. It refuses what [File.AppendRaw] refuses.
func (f *File) InsertRaw(before int, key, value string) error {
	if before < 1 || before > f.mainEnd() || f.lines[before-1].kind != kindRaw {
		return fmt.Errorf("add %s: line %d is no raw line of the main section", key, before)
	}
	l, err := newLine(kindRaw, key, value)
	if err != nil {
		return fmt.Errorf("add %s: %w", key, err)
	}
	f.insert(before-1, l)
	return nil
}

// RemoveRaw removes the lxc.* lines of the main section for which match is true and returns how many.
func (f *File) RemoveRaw(match func(Entry) bool) int {
	return f.remove(kindRaw, match)
}

// RemoveProperties removes the property lines of the main section for which match is true, also those
// that a later line of the same key overrides, and returns how many.
func (f *File) RemoveProperties(match func(Entry) bool) int {
	return f.remove(kindProperty, match)
}

// newLine makes a line and reads it back: whatever key and value are, the line says what was meant or is
// not made.
func newLine(want kind, key, value string) (line, error) {
	if err := CheckValue(value); err != nil {
		return line{}, err
	}
	l := classify(key+": "+value, sectionMain)
	switch {
	case l.kind == kindRawRefused:
		return line{}, errors.New(l.warning)
	case l.kind != want || l.key != key || l.value != value:
		return line{}, fmt.Errorf("Proxmox would not read %q as a line of this key and value", l.text)
	}
	l.lf = true
	return l, nil
}

// replace puts l in the place of the last property line of key and removes the others.
func (f *File) replace(key string, l line) {
	lines, last := 0, 0
	for i := range f.mainEnd() {
		if old := &f.lines[i]; old.kind == kindProperty && old.key == key {
			lines, last = lines+1, i+1
		}
	}
	l.lf = f.lines[last-1].lf
	f.lines[last-1] = l
	if lines > 1 {
		f.remove(kindProperty, func(e Entry) bool { return e.Key == key && e.Line != last })
	}
}

// propertyPlace returns the index for a new property: after the property that precedes the first one with
// a greater key, so that a comment above that one stays with it, and never after a raw line.
func (f *File) propertyPlace(key string) int {
	end := f.mainEnd()
	raw := slices.IndexFunc(f.lines[:end], func(l line) bool { return l.kind == kindRaw || l.kind == kindRawRefused })
	if raw >= 0 {
		end = raw
	}
	place := -1
	for i, l := range f.lines[:end] {
		if l.kind != kindProperty {
			continue
		}
		if l.key > key {
			if place < 0 {
				place = i
			}
			break
		}
		place = i + 1
	}
	switch {
	case place >= 0:
		return place
	case raw >= 0:
		return raw
	}
	return f.contentEnd(end)
}

// rawPlace returns the index for a new raw line.
func (f *File) rawPlace() int {
	end := f.mainEnd()
	for i := end - 1; i >= 0; i-- {
		switch f.lines[i].kind {
		case kindBlank, kindComment, kindInvalid:
		default:
			return i + 1
		}
	}
	return f.contentEnd(end)
}

// runtimePlace returns the index for a new line of runtimeKey: after those that are there, and after a property
// env, which would replace it; otherwise after the properties that stand above the first raw line.
func (f *File) runtimePlace() int {
	end := f.mainEnd()
	first, last, property := -1, -1, -1
	for i := range end {
		switch l := &f.lines[i]; {
		case l.kind == kindRaw && l.key == runtimeKey, l.kind == kindProperty && l.key == "env":
			last = i
		case first < 0 && (l.kind == kindRaw || l.kind == kindRawRefused):
			first = i
		case first < 0 && l.kind == kindProperty:
			property = i
		}
	}
	switch {
	case last >= 0:
		return last + 1
	case first < 0:
		return f.rawPlace()
	case property >= 0:
		return property + 1
	}
	return first
}

// contentEnd returns the index after the last line before end that is not blank.
func (f *File) contentEnd(end int) int {
	for end > 0 && f.lines[end-1].kind == kindBlank {
		end--
	}
	return end
}

// insert adds a line. A file that does not end in a line feed still does not: else the line's removal would not bring
// back the bytes.
func (f *File) insert(at int, l line) {
	if at > 0 && at == len(f.lines) {
		l.lf, f.lines[at-1].lf = f.lines[at-1].lf, true
	}
	f.lines = slices.Insert(f.lines, at, l)
}

// remove removes lines of the main section and returns how many. Like insert it leaves the end of the file as it is.
func (f *File) remove(k kind, match func(Entry) bool) int {
	end, i := f.mainEnd(), 0
	before := len(f.lines)
	open := before > 0 && !f.lines[before-1].lf
	defer func() {
		if n := len(f.lines); n > 0 && open {
			f.lines[n-1].lf = false
		}
	}()
	f.lines = slices.DeleteFunc(f.lines, func(l line) bool {
		i++
		return i <= end && l.kind == k && match(Entry{l.key, l.value, i})
	})
	return before - len(f.lines)
}
