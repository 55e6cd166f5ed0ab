package output

import (
	"io"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
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

// Write writes the table: the header in capitals, two spaces between columns, no space at the end of a line.
func (t *Table) Write(w io.Writer) error {
	tw := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	tw.SetStyle(style)
	tw.SuppressTrailingSpaces()
	head := make(table.Row, len(t.header))
	for i, h := range t.header {
		head[i] = t.paint.Text(Bold, h)
	}
	tw.AppendHeader(head)
	for _, row := range t.rows {
		cells := make(table.Row, len(row))
		for i, c := range row {
			cells[i] = t.paint.Text(c.Color, c.Text)
		}
		tw.AppendRow(cells)
	}
	_, err := io.WriteString(w, tw.Render()+"\n")
	return err
}

// Width is the number of columns that s takes on a terminal.
func Width(s string) int { return text.StringWidthWithoutEscSequences(s) }

// Fit returns s cut to at most columns, with "…" for what is missing.
func Fit(s string, columns int) string {
	if columns <= 0 {
		return ""
	}
	return text.Snip(s, columns, "…")
}
