// Package output writes what commands have found: tables and diffs for people, JSON for programs.
//
// Nothing that a node or a container supplied reaches a terminal as it is: tables, diffs and [Clean] turn control
// characters into visible text, so that a hostname cannot move the cursor or change the clipboard.
package output

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/text"
)

// A Color is the meaning that a piece of text has for its reader; how it looks is decided here alone.
type Color text.Color

// The colours.
const (
	Plain = Color(text.Reset)
	Good  = Color(text.FgGreen)  // as it should be, or added
	Bad   = Color(text.FgRed)    // needs a person, or removed
	Warn  = Color(text.FgYellow) // differs, or under way
	Info  = Color(text.FgCyan)   // where one is
	Faint = Color(text.Faint)
	Bold  = Color(text.Bold)
)

// Whether to colour is decided by Paint, from our own settings, and not once more by the library from the environment.
func init() { text.EnableColors() }

// A Paint says whether text is coloured.
type Paint bool

// Text returns s, cleaned, in a colour.
func (p Paint) Text(c Color, s string) string {
	s = Clean(s)
	if !p || c == Plain || s == "" {
		return s
	}
	return text.Color(c).Sprint(s)
}

// Clean returns s with everything that is not printable text made visible: control characters, invalid UTF-8, and
// the characters that change the direction of text become Go escapes such as \x1b or \u202e. A backslash stays one, so
// the result is for reading, not for parsing.
func Clean(s string) string {
	if !strings.ContainsFunc(s, hidden) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1, r < 0x80 && hidden(r):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case hidden(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(s[i : i+size])
		}
		i += size
	}
	return b.String()
}

// CleanLines is [Clean] for text of several lines: line feeds and tabs stay what they are.
func CleanLines(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		text, end := strings.CutSuffix(line, "\n")
		for i, part := range strings.Split(text, "\t") {
			if i > 0 {
				b.WriteByte('\t')
			}
			b.WriteString(Clean(part))
		}
		if end {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func hidden(r rune) bool {
	return !unicode.IsPrint(r)
}
