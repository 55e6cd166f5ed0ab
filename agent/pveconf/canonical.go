package pveconf

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// runtimeKey is the raw key whose lines Proxmox keeps joined with NUL in the property env.
const runtimeKey = "lxc.environment.runtime"

// Canonical returns what Proxmox's writer makes of the conf (write_pct_config), as it does at every stop
// of the container and at every pct set. It returns a [*FatalError] where Proxmox's parser or writer dies.
func (f *File) Canonical() ([]byte, error) {
	m, err := f.meaning()
	if err != nil {
		return nil, err
	}
	return m.write()
}

// ApplyPending does what Proxmox does to the conf when the container stops: the changes in [pve:pending]
// are moved to the main section, and the file is written canonically. Raw lines in [pve:pending] replace
// all raw lines of the main section, as they do in Proxmox. Volumes of removed mount points do not become
// unusedN: that needs the storage. It returns a [*FatalError], and changes nothing, where Proxmox dies.
func (f *File) ApplyPending() error {
	m, err := f.meaning()
	if err != nil {
		return err
	}
	if m.pending != nil {
		m.main.apply(m.pending)
		m.pending = nil
	}
	b, err := m.write()
	if err != nil {
		return err
	}
	*f = *Parse(b)
	return nil
}

// A FatalError says that Proxmox's parser or writer dies on a conf. Where the parser dies, pct and the GUI can do
// nothing with the container; where the writer dies, they cannot change it, and its stop fails.
type FatalError struct {
	Line    int    // on which the cause stands, from 1
	Writing bool   // the parser reads the conf, only the writer dies
	Reason  string // Perl's, without the place in Proxmox's source
}

func (e *FatalError) Error() string {
	does := "read"
	if e.Writing {
		does = "write"
	}
	return fmt.Sprintf("Proxmox cannot %s this conf, for line %d: %s", does, e.Line, e.Reason)
}

// notReference is the error of a property whose name Proxmox uses in memory for a list or a table.
func notReference(p property, writing bool, want string) *FatalError {
	text, more := p.text, ""
	if len(text) > 32 {
		text, more = text[:32], "..." // as Perl shortens it
	}
	return &FatalError{
		Line:    p.line,
		Writing: writing,
		Reason:  fmt.Sprintf(`Can't use string ("%s"%s) as %s ref while "strict refs" in use`, text, more, want),
	}
}

// A meaning is a conf as Proxmox's parser holds it in memory.
type meaning struct {
	size      int // of the conf in bytes
	main      *body
	pending   *body // nil if there is none
	snapshots map[string]*body
}

// A body is the content of one section.
type body struct {
	description string
	properties  map[string]property // without description; with env
	raw         []Entry             // without lxc.environment.runtime
}

// A property is the value of a property in Proxmox's memory.
type property struct {
	text   string
	number bool // check_type made a number of it
	line   int  // from 1
}

// meaning returns a [*FatalError] where Proxmox's parser dies.
func (f *File) meaning() (*meaning, error) {
	main, err := f.body(0, f.mainEnd())
	if err != nil {
		return nil, err
	}
	m := &meaning{size: f.size(), main: main, snapshots: map[string]*body{}}
	for _, r := range f.sectionRanges() {
		if p, ok := main.properties["snapshots"]; ok && r.header.section == sectionSnapshot {
			return nil, notReference(p, false, "a HASH")
		}
		b, err := f.body(r.from, r.to)
		if err != nil {
			return nil, err
		}
		if r.header.section == sectionPending {
			m.pending = b
		} else {
			m.snapshots[r.header.value] = b
		}
	}
	return m, nil
}

func (f *File) body(from, to int) (*body, error) {
	b := &body{description: f.description(from, to), properties: map[string]property{}}
	for i := range to - from {
		l := &f.lines[from+i]
		switch {
		case l.kind == kindRaw && l.key == runtimeKey:
			p := property{text: l.value, line: from + i + 1}
			if env, ok := b.properties["env"]; ok {
				p.text = env.text + "\x00" + l.value
			}
			b.properties["env"] = p
		case l.kind == kindRaw:
			if p, ok := b.properties["lxc"]; ok {
				return nil, notReference(p, false, "an ARRAY")
			}
			if b.raw == nil {
				b.raw = make([]Entry, 0, to-from-i)
			}
			b.raw = append(b.raw, Entry{Key: l.key, Value: l.value, Line: from + i + 1})
		case l.kind == kindProperty:
			b.properties[l.key] = property{text: l.value, number: l.number, line: from + i + 1}
			if l.key == "lxc" {
				b.raw = nil
			}
		}
	}
	return b, nil
}

var deleteSeparators = regexp.MustCompile(`[,;\t-\r ]+`)

// DeleteKeys returns the keys that the value of "delete" in [pve:pending] names (PVE::AbstractConfig,
// parse_pending_delete), without the "!" that asks for force.
func DeleteKeys(value string) []string {
	var keys []string
	for _, key := range deleteSeparators.Split(value, -1) {
		if key = strings.TrimPrefix(key, "!"); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// apply moves the changes of pending to b.
func (b *body) apply(pending *body) {
	for _, key := range DeleteKeys(pending.properties["delete"].text) {
		delete(b.properties, key)
		switch key {
		case "description":
			b.description = ""
		case "lxc":
			b.raw = nil
		}
	}
	for key, value := range pending.properties {
		if key != "delete" {
			b.properties[key] = value
		}
	}
	if pending.description != "" {
		b.description = pending.description
	}
	if pending.raw != nil {
		b.raw = pending.raw
	}
}

func (b *body) empty() bool {
	return b == nil || b.description == "" && len(b.properties) == 0 && len(b.raw) == 0
}

// write returns a [*FatalError] where Proxmox's writer dies.
func (m *meaning) write() ([]byte, error) {
	m.main.dropUsed()
	out, err := m.main.append(make([]byte, 0, m.size))
	if err != nil {
		return nil, err
	}
	if p, ok := m.main.properties["pending"]; ok && m.pending == nil {
		return nil, notReference(p, true, "a HASH")
	}
	if !m.pending.empty() {
		out = append(out, "\n["+pendingName+"]\n"...)
		if out, err = m.pending.append(out); err != nil {
			return nil, err
		}
	}
	if p, ok := m.main.properties["snapshots"]; ok {
		return nil, notReference(p, true, "a HASH")
	}
	for _, name := range slices.Sorted(maps.Keys(m.snapshots)) {
		out = append(out, "\n["+name+"]\n"...)
		if out, err = m.snapshots[name].append(out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// dropUsed removes each unusedN whose volume is in use. A mount point that Proxmox cannot read uses none.
func (b *body) dropUsed() {
	used := map[string]bool{}
	for key, p := range b.properties {
		if key != "rootfs" && (baseOf(key) != "mp" || typeOf(key) == typeUnknown) {
			continue
		}
		// A path of the node is no volume, and "0" is false for Perl.
		if v, ok := volume(key, p.text); ok && !strings.HasPrefix(v, "/") && v != "0" {
			used[v] = true
		}
	}
	maps.DeleteFunc(b.properties, func(key string, p property) bool {
		return strings.HasPrefix(key, "unused") && used[p.text]
	})
}

// append adds the section as Proxmox writes it.
func (b *body) append(out []byte) ([]byte, error) {
	// Perl's split drops empty fields at the end, and takes "0" for false.
	if d := strings.TrimRight(b.description, "\n"); d != "" && b.description != "0" {
		for text := range strings.SplitSeq(d, "\n") {
			out = append(out, '#')
			out = appendEncoded(out, text)
			out = append(out, '\n')
		}
	}
	for _, key := range slices.Sorted(maps.Keys(b.properties)) {
		switch key {
		case "digest", "pending", "snapshots", "snapname", "env", "lxc":
			continue
		}
		out = appendLine(out, key, b.properties[key].text)
	}
	if env := strings.TrimRight(b.properties["env"].text, "\x00"); env != "" {
		for v := range strings.SplitSeq(env, "\x00") {
			out = appendLine(out, runtimeKey, v)
		}
	}
	if p, ok := b.properties["lxc"]; ok && p.text != "0" {
		return nil, notReference(p, true, "an ARRAY")
	}
	for _, e := range b.raw {
		out = appendLine(out, e.Key, e.Value)
	}
	return out, nil
}

func appendLine(out []byte, key, value string) []byte {
	out = append(out, key...)
	out = append(out, ": "...)
	out = append(out, value...)
	return append(out, '\n')
}
