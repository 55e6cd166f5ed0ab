package output

import (
	"io"
	"strings"

	"github.com/aymanbagabas/go-udiff"
)

// WriteDiff writes the unified diff of two texts, each line with a prefix before it; nothing if they are equal.
func WriteDiff(w io.Writer, p Paint, prefix, oldName, newName string, before, after []byte) error {
	diff := udiff.Unified(Clean(oldName), Clean(newName), string(before), string(after))
	var b strings.Builder
	for line := range strings.Lines(diff) {
		line = strings.TrimSuffix(line, "\n")
		b.WriteString(prefix)
		b.WriteString(p.paintLines(diffColor(line), line))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// CountDiff returns how many lines [WriteDiff] shows as removed and as added.
func CountDiff(before, after []byte) (removed, added int) {
	unified, err := udiff.ToUnifiedDiff("", "", string(before), udiff.Lines(string(before), string(after)), 0)
	if err != nil { // only for edits that another made
		panic(err)
	}
	for _, h := range unified.Hunks {
		for _, l := range h.Lines {
			switch l.Kind {
			case udiff.Delete:
				removed++
			case udiff.Insert:
				added++
			}
		}
	}
	return removed, added
}

func (p Paint) paintLines(c Color, line string) string {
	parts := strings.Split(line, "\t")
	for i, part := range parts {
		parts[i] = p.Text(c, part)
	}
	return strings.Join(parts, "\t")
}

func diffColor(line string) Color {
	switch {
	case strings.HasPrefix(line, "--- "), strings.HasPrefix(line, "+++ "):
		return Bold
	case strings.HasPrefix(line, "@@"):
		return Info
	case strings.HasPrefix(line, "+"):
		return Good
	case strings.HasPrefix(line, "-"):
		return Bad
	case strings.HasPrefix(line, `\`):
		return Faint
	default:
		return Plain
	}
}
