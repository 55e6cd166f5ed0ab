package output

import (
	"bufio"
	"io"
	"strings"

	"golang.org/x/text/width"
)

// A Table is rows of cells under a header, aligned by spaces.
type Table struct {
	paint  Paint
	header []string
	rows   [][]Cell
}

// A Cell is one field of a table. An empty text is shown as "-", so that the columns can be cut by spaces.
type Cell struct {
	Text  string
	Color Color
}

// NewTable returns a table without rows.
func NewTable(p Paint, header ...string) *Table {
	return &Table{paint: p, header: header}
}

// Row adds a row. Each cell is a string or a [Cell]; missing ones are empty.
func (t *Table) Row(cells ...any) {
	row := make([]Cell, len(t.header))
	for i, c := range cells {
		switch c := c.(type) {
		case Cell:
			row[i] = c
		case string:
			row[i] = Cell{Text: c}
		default:
			panic("output: a cell is a string or a Cell")
		}
	}
	for i := range row {
		if row[i].Text = Clean(row[i].Text); row[i].Text == "" {
			row[i].Text = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// Len returns the number of rows.
func (t *Table) Len() int { return len(t.rows) }

// Write writes the table: the header in capitals, two spaces between columns, no space at the end of a line.
func (t *Table) Write(w io.Writer) error {
	widths := make([]int, len(t.header))
	for i, h := range t.header {
		widths[i] = Width(h)
	}
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], Width(c.Text))
		}
	}
	b := bufio.NewWriter(w)
	head := make([]Cell, len(t.header))
	for i, h := range t.header {
		head[i] = Cell{Text: strings.ToUpper(h), Color: Bold}
	}
	for _, row := range append([][]Cell{head}, t.rows...) {
		for i, c := range row {
			b.WriteString(t.paint.Text(c.Color, c.Text))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-Width(c.Text)+2))
			}
		}
		b.WriteByte('\n')
	}
	return b.Flush()
}

// Width returns the number of columns that s takes on a terminal. It knows wide East Asian characters, and no escape
// sequences.
func Width(s string) int {
	n := 0
	for _, r := range s {
		n++
		if k := width.LookupRune(r).Kind(); k == width.EastAsianWide || k == width.EastAsianFullwidth {
			n++
		}
	}
	return n
}

// Fit returns s cut to at most columns, with "…" for what is missing.
func Fit(s string, columns int) string {
	if Width(s) <= columns {
		return s
	}
	if columns <= 0 {
		return ""
	}
	n := 0
	for i, r := range s {
		n += Width(string(r))
		if n > columns-1 {
			return s[:i] + "…"
		}
	}
	return s
}
