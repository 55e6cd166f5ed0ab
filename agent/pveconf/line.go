package pveconf

import "strings"

// A line is one line of a conf, classified. Its text never holds a line feed.
type line struct {
	text    string
	key     string
	value   string // of a header: the name in brackets; of a comment: what follows "#"
	warning string // what Proxmox's parser says about it; empty if nothing
	kind    kind
	section section // of a header: what begins here
	number  bool    // of a property: Proxmox made a number of its value
	lf      bool    // whether a line feed follows; false at most for the last line
}

type kind uint8

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
type section uint8

const (
	sectionMain section = iota
	sectionPending
	sectionSnapshot
)

const byteOrderMark = "\ufeff"

const pendingName = "pve:pending"

// white is Perl's \s for bytes: tab, LF, VT, FF, CR and blank.
const white = "\t\n\v\f\r "

func isWhite(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// trim is strings.Trim(s, white), faster.
func trim(s string) string {
	for s != "" && isWhite(s[0]) {
		s = s[1:]
	}
	for s != "" && isWhite(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

// classify reads one line as parse_pct_config does, its tests in the same order; their expressions stand
// beside them. in is the section the line stands in; only a few keys depend on it.
func classify(text string, in section) line {
	l := line{text: text}
	if text == "" || isWhite(text[0]) && trim(text) == "" {
		return l
	}
	switch text[0] {
	case '[':
		if name, ok := header(text); ok {
			l.kind, l.value, l.section = kindHeader, name, sectionSnapshot
			if name == pendingName {
				l.section = sectionPending
			}
			return l
		}
	case '#':
		l.kind, l.value = kindComment, text[1:]
		return l
	case 'l':
		if key, value, ok := raw(text); ok {
			l.kind, l.key, l.value = kindRaw, key, trim(value)
			if ok, l.warning = rawKey(key); !ok {
				l.kind = kindRawRefused
			}
			return l
		}
	}
	if state, ok := snapstate(text); ok {
		l.kind = kindDropped
		if in != sectionMain {
			l.kind = kindProperty
		}
		l.key, l.value = "snapstate", state
		return l
	}
	if key, value, ok := propertyLine(text); ok {
		return classifyProperty(l, key, value, in)
	}
	l.kind, l.warning = kindInvalid, "Proxmox cannot read this line"+cause(text)+" and drops it when it next writes the conf"
	return l
}

// cause says what makes an invalid line one, where a person would wonder.
func cause(text string) string {
	key, value, colon := strings.Cut(text, ":")
	property, _, equals := strings.Cut(text, "=")
	reads := func(text string) bool {
		_, _, isRaw := raw(text)
		_, _, isProperty := propertyLine(text)
		return isRaw || isProperty
	}
	switch {
	case strings.HasPrefix(text, byteOrderMark):
		return ", for the byte order mark it begins with,"
	case isWhite(text[0]):
		return ", for the blank it begins with,"
	case colon && isWhite(text[max(0, len(key)-1)]) && reads(trim(key)+":"+value):
		return ", for the blank before the colon,"
	case colon && reads(strings.ToLower(key)+":"+value):
		return ", for the capital letters in its key,"
	case equals && !colon && typeOf(trim(property)) != typeUnknown:
		return `, for the "=" in the place of a colon,`
	}
	return ""
}

// header matches /^\[pve:pending\]\s*$/i and /^\[([a-z][a-z0-9_\-]+)\]\s*$/i.
func header(text string) (name string, ok bool) {
	name, rest, ok := strings.Cut(text[1:], "]")
	if !ok || trim(rest) != "" {
		return "", false
	}
	if strings.EqualFold(name, pendingName) {
		return pendingName, true
	}
	return name, isSectionName(name)
}

// raw matches /^(lxc\.[a-z0-9_\-\.]+)(:|\s*=)(.*)$/.
func raw(text string) (key, value string, ok bool) {
	const prefix = "lxc."
	if !strings.HasPrefix(text, prefix) {
		return "", "", false
	}
	end := len(prefix)
	for end < len(text) && isRawKeyByte(text[end]) {
		end++
	}
	key, value = text[:end], text[end:]
	if value != "" && value[0] != ':' {
		for value != "" && isWhite(value[0]) {
			value = value[1:]
		}
		if value != "" && value[0] != '=' {
			return "", "", false
		}
	}
	if value == "" || len(key) == len(prefix) {
		return "", "", false
	}
	return key, value[1:], true
}

func isRawKeyByte(c byte) bool {
	return 'a' <= c && c <= 'z' || isDigit(c) || c == '_' || c == '-' || c == '.'
}

// snapstate matches /snapstate:\s*(prepare|delete)\s*$/, which is anchored only at the end: it takes
// the value of any other property as well, but for a description, for which Proxmox looks first.
func snapstate(text string) (state string, ok bool) {
	rest := trim(text)
	for _, state := range []string{"prepare", "delete"} {
		if rest, ok := strings.CutSuffix(rest, state); ok && strings.HasSuffix(trim(rest), "snapstate:") {
			return state, !strings.HasPrefix(text, "description:")
		}
	}
	return "", false
}

// propertyLine matches /^([a-z][a-z_]*\d*):(.+)$/.
func propertyLine(text string) (key, value string, ok bool) {
	end := 0
	for end < len(text) && ('a' <= text[end] && text[end] <= 'z' || text[end] == '_' && end > 0) {
		end++
	}
	if end == 0 {
		return "", "", false
	}
	for end < len(text) && isDigit(text[end]) {
		end++
	}
	if end+1 >= len(text) || text[end] != ':' {
		return "", "", false
	}
	return text[:end], text[end+1:], true
}

func classifyProperty(l line, key, value string, in section) line {
	trimmed := trim(value)
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
			l.value = normal
			t := typeOf(key)
			l.number = t == typeBoolean || t == typeInteger
		}
	}
	return l
}
