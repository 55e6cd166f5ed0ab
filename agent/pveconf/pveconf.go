// Package pveconf reads and edits one Proxmox VE container conf (/etc/pve/lxc/<CTID>.conf) as lines.
//
// It reads a conf exactly as Proxmox's own parser does (PVE::LXC::Config, parse_pct_config of
// pve-container 6.1.10), keeps every byte that it is not asked to change, and puts what it adds where
// Proxmox's writer would. The package is pure: it opens no file.
package pveconf

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"slices"
	"strings"
)

// A File is one conf as lines. It is not safe for concurrent use.
type File struct {
	lines []line
}

// An Entry is one line of a conf as Proxmox reads it.
type Entry struct {
	Key   string
	Value string // without surrounding white space; booleans and integers as Proxmox normalises them
	Line  int    // from 1, in the file as it is now
}

// A Section is what Proxmox reads of [pve:pending] or of one snapshot.
type Section struct {
	Name        string  // as in the header, without brackets; "pve:pending" for the pending section
	Line        int     // of the header; 0 if there is no such section
	Description string  // decoded comments
	Properties  []Entry // by line; of equal keys only the last; in the pending section also "delete"
	Raw         []Entry // lxc.* lines in order
}

// Parse reads a conf. It never fails: what Proxmox would not understand is kept, and reported by
// [File.Warnings].
func Parse(b []byte) *File {
	const room = 16 // for the lines that an edit adds
	f := &File{lines: make([]line, 0, bytes.Count(b, []byte("\n"))+room)}
	section := sectionMain
	for s := string(b); s != ""; {
		text, rest, found := strings.Cut(s, "\n")
		l := classify(text, section)
		l.lf = found
		if l.kind == kindHeader {
			section = l.section
			if l.value == "pending" {
				section = sectionPending // parse_pct_config tells by this name where "delete" is allowed
			}
		}
		f.lines = append(f.lines, l)
		s = rest
	}
	return f
}

// Split cuts a conf before its first section header: main is the main section, sections is all the rest.
func Split(b []byte) (main, sections []byte) {
	for at := 0; at < len(b); {
		text, _, found := bytes.Cut(b[at:], []byte("\n"))
		if len(text) > 0 && text[0] == '[' {
			if _, ok := header(string(text)); ok {
				return b[:at], b[at:]
			}
		}
		if at += len(text); found {
			at++
		}
	}
	return b, nil
}

// Bytes returns the conf. Parse(b).Bytes() equals b for every b.
func (f *File) Bytes() []byte {
	b := make([]byte, 0, f.size())
	for i := range f.lines {
		b = append(b, f.lines[i].text...)
		if f.lines[i].lf {
			b = append(b, '\n')
		}
	}
	return b
}

// size returns the length of the conf in bytes, at most one too great.
func (f *File) size() int {
	n := 0
	for i := range f.lines {
		n += len(f.lines[i].text) + 1
	}
	return n
}

// Digest returns Proxmox's digest of the conf: the SHA-1 of its bytes in lower-case hex.
func (f *File) Digest() string {
	sum := sha1.Sum(f.Bytes())
	return hex.EncodeToString(sum[:])
}

// Property returns the value of key in the main section, where the last of several lines is in force.
func (f *File) Property(key string) (value string, ok bool) {
	for i := f.mainEnd() - 1; i >= 0; i-- {
		if l := &f.lines[i]; l.kind == kindProperty && l.key == key {
			return l.value, true
		}
	}
	return "", false
}

// Properties returns the properties of the main section by line; of equal keys only the last.
func (f *File) Properties() []Entry {
	return f.properties(0, f.mainEnd())
}

// Raw returns the lxc.* lines of the main section in order, however they are written ("key: value" or
// "key = value"), without those that Proxmox refuses.
func (f *File) Raw() []Entry {
	return f.raw(0, f.mainEnd())
}

// Description returns the decoded description (the GUI's notes) of the main section: all its comment
// lines, wherever they stand, each followed by a line feed.
func (f *File) Description() string {
	return f.description(0, f.mainEnd())
}

// Pending returns what Proxmox reads of [pve:pending]. If the section occurs twice, only the second
// counts; if it does not occur, Line is 0.
func (f *File) Pending() Section {
	pending := Section{Name: pendingName}
	for _, r := range f.sectionRanges() {
		if r.header.section == sectionPending {
			pending = f.section(r)
		}
	}
	return pending
}

// Snapshots returns the snapshot sections in the order of the file. Of several of the same name only
// the last counts for Proxmox, and only that is returned.
func (f *File) Snapshots() []Section {
	var snapshots []Section
	for _, r := range f.sectionRanges() {
		if r.header.section != sectionSnapshot {
			continue
		}
		s := f.section(r)
		snapshots = slices.DeleteFunc(snapshots, func(o Section) bool { return o.Name == s.Name })
		snapshots = append(snapshots, s)
	}
	return snapshots
}

// mainEnd returns the number of lines of the main section.
func (f *File) mainEnd() int {
	for i := range f.lines {
		if f.lines[i].kind == kindHeader {
			return i
		}
	}
	return len(f.lines)
}

// A sectionRange is a section's lines [from, to) below its header.
type sectionRange struct {
	header   line
	from, to int
}

// sectionRanges returns all sections but the main one.
func (f *File) sectionRanges() []sectionRange {
	var ranges []sectionRange
	for i, l := range f.lines {
		if l.kind != kindHeader {
			continue
		}
		if n := len(ranges); n > 0 {
			ranges[n-1].to = i
		}
		ranges = append(ranges, sectionRange{header: l, from: i + 1, to: len(f.lines)})
	}
	return ranges
}

func (f *File) section(r sectionRange) Section {
	return Section{
		Name:        r.header.value,
		Line:        r.from,
		Description: f.description(r.from, r.to),
		Properties:  f.properties(r.from, r.to),
		Raw:         f.raw(r.from, r.to),
	}
}

func (f *File) properties(from, to int) []Entry {
	last := map[string]int{}
	for i := from; i < to; i++ {
		if l := f.lines[i]; l.kind == kindProperty {
			last[l.key] = i
		}
	}
	var entries []Entry
	for i := from; i < to; i++ {
		if l := f.lines[i]; l.kind == kindProperty && last[l.key] == i {
			entries = append(entries, Entry{l.key, l.value, i + 1})
		}
	}
	return entries
}

func (f *File) raw(from, to int) []Entry {
	var entries []Entry
	for i := from; i < to; i++ {
		if l := f.lines[i]; l.kind == kindRaw {
			entries = append(entries, Entry{l.key, l.value, i + 1})
		}
	}
	return entries
}

func (f *File) description(from, to int) string {
	var b strings.Builder
	fallback := ""
	for i := from; i < to; i++ {
		l := &f.lines[i]
		switch {
		case l.kind == kindComment:
			b.WriteString(decodeText(l.value))
			b.WriteByte('\n')
		case l.kind == kindDescription:
			b.WriteString(decodeText(l.value))
		case l.kind == kindBlankDescription:
			fallback = l.value
		}
	}
	// Perl takes "" and "0" for false: neither replaces what was there (parse_pct_config).
	if s := b.String(); s != "" && s != "0" {
		return s
	}
	return fallback
}
