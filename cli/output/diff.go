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
