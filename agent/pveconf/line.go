package pveconf

import (
	"regexp"
	"strings"
)

// A line is one line of a conf, classified. Its text never holds a line feed.
type line struct {
	text    string
	lf      bool // whether a line feed follows; false at most for the last line
	kind    kind
	section section // of a header: what begins here
	key     string
	value   string // of a header: the name in brackets; of a comment: what follows "#"
	number  bool   // of a property: Proxmox made a number of its value
	warning string // what Proxmox's parser says about it; empty if nothing
}

type kind int

const (
	kindBlank            kind = iota
	kindHeader                // [pve:pending] or [snapshot]
	kindComment               // "#" in column 1: a line of the description
	kindRaw                   // an lxc.* line that Proxmox accepts
	kindRawRefused            // an lxc.* line that Proxmox ignores and later drops
	kindDescription           // "description: text": more of the description
	kindBlankDescription      // "description: " and nothing but blanks
	kindProperty              // key: value
	kindDropped               // read, but neither in force nor written back
	kindInvalid               // not understood, and dropped at the next rewrite
)

// section is the kind of section a line stands in.
type section int

const (
	sectionMain section = iota
	sectionPending
	sectionSnapshot
)

const byteOrderMark = "\ufeff"

const pendingName = "pve:pending"

// white is Perl's \s for bytes: tab, LF, VT, FF, CR and blank.
const white = "\t\n\v\f\r "

// The expressions of parse_pct_config. Go's \s lacks VT, which Perl's has; (?s) because a line holds no
// LF and Perl's dot takes every other byte. Bytes that are not UTF-8 match the dot one by one.
var (
	headerPattern   = regexp.MustCompile(`^\[([A-Za-z][A-Za-z0-9_-]+)\][\t-\r ]*$`)
	pendingPattern  = regexp.MustCompile(`^\[(?i:pve:pending)\][\t-\r ]*$`)
	rawPattern      = regexp.MustCompile(`(?s)^(lxc\.[a-z0-9_.-]+)(?::|[\t-\r ]*=)(.*)$`)
	propertyPattern = regexp.MustCompile(`(?s)^([a-z][a-z_]*[0-9]*):(.+)$`)
)

// classify reads one line as parse_pct_config does, its tests in the same order. in is the section the
// line stands in; only a few keys depend on it.
func classify(text string, in section) line {
	l := line{text: text}
	if strings.Trim(text, white) == "" {
		return l
	}
	if pendingPattern.MatchString(text) {
		l.kind, l.section, l.value = kindHeader, sectionPending, pendingName
		return l
	}
	if m := headerPattern.FindStringSubmatch(text); m != nil {
		l.kind, l.section, l.value = kindHeader, sectionSnapshot, m[1]
		return l
	}
	if comment, ok := strings.CutPrefix(text, "#"); ok {
		l.kind, l.value = kindComment, comment
		return l
	}
	if m := rawPattern.FindStringSubmatch(text); m != nil {
		l.kind, l.key, l.value = kindRaw, m[1], strings.Trim(m[2], white)
		if ok, warning := rawKey(l.key); !ok {
			l.kind, l.warning = kindRawRefused, warning
		} else {
			l.warning = warning
		}
		return l
	}
	if state, ok := snapstate(text); ok {
		l.kind = kindDropped
		if in != sectionMain {
			l.kind = kindProperty
		}
		l.key, l.value = "snapstate", state
		return l
	}
	if m := propertyPattern.FindStringSubmatch(text); m != nil {
		return classifyProperty(l, m[1], m[2], in)
	}
	l.kind, l.warning = kindInvalid, "Proxmox cannot read this line and drops it when it next writes the conf"
	if strings.HasPrefix(text, byteOrderMark) {
		l.warning = "Proxmox cannot read this line, for the byte order mark it begins with, and drops it when it next writes the conf"
	}
	return l
}

// snapstate matches /snapstate:\s*(prepare|delete)\s*$/, which is anchored only at the end: it takes
// the value of any other property as well.
func snapstate(text string) (state string, ok bool) {
	const key = "snapstate:"
	i := strings.LastIndex(text, key)
	if i < 0 || strings.HasPrefix(text, "description:") && strings.Trim(text[len("description:"):], white) != "" {
		return "", false
	}
	state = strings.Trim(text[i+len(key):], white)
	return state, state == "prepare" || state == "delete"
}

func classifyProperty(l line, key, value string, in section) line {
	trimmed := strings.Trim(value, white)
	blank := trimmed == ""
	if blank {
		trimmed = value[len(value)-1:] // the expression must match one character, and takes the last
	}
	l.kind, l.key, l.value = kindProperty, key, trimmed
	switch {
	case key == "description" && blank:
		l.kind = kindBlankDescription
	case key == "description":
		l.kind = kindDescription
	case key == "delete" && !blank:
		if in != sectionPending {
			l.kind, l.warning = kindDropped, `"delete" is only allowed in [pve:pending]`
		}
	case key == "snapstate" && in == sectionMain:
		l.kind, l.warning = kindDropped, "Proxmox does not know this property"
	default:
		normal, err := checkType(key, trimmed)
		if err != nil {
			l.warning = err.Error()
		} else {
			l.value, l.number = normal, booleans[key] || integers[key]
		}
	}
	return l
}
