package terminal

import (
	"fmt"
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"

	"phoenix.internal/cli/output"
)

// A Line is one line of a board: fixed text, cut at the width of the terminal before it is coloured.
type Line []Segment

// A Segment is a piece of a line.
type Segment struct {
	Text  string
	Color output.Color
}

// A Board is a block of lines at the bottom of a terminal that is drawn again and again in place. It is not safe for
// concurrent use.
type Board struct {
	w     io.Writer
	paint output.Paint
	size  func() (columns, rows int)
	drawn int // lines on the terminal now
}

// NewBoard returns a board on a terminal. size is asked before each drawing, since windows change.
func NewBoard(w io.Writer, p output.Paint, size func() (columns, rows int)) *Board {
	return &Board{w: w, paint: p, size: size}
}

// eraseBelow erases from the cursor to the end of the terminal (ED).
const eraseBelow = "\x1b[J"

// Draw replaces what the board shows. Lines beyond the height of the terminal are left out, the first ones kept: a
// cursor cannot go back to a line that has scrolled away.
func (b *Board) Draw(lines []Line) error {
	columns, rows := b.size()
	hidden := 0
	if limit := max(rows-2, 1); len(lines) > limit {
		hidden = len(lines) - limit
		lines = append(lines[:limit:limit], Line{{Text: fmt.Sprintf("… and %d more", hidden), Color: output.Faint}})
	}
	var s strings.Builder
	if b.drawn > 0 {
		s.WriteString(text.CursorUp.Sprintn(b.drawn) + "\r" + eraseBelow)
	}
	for _, line := range lines {
		left := columns
		for _, seg := range line {
			shown := output.Fit(output.Clean(seg.Text), left)
			left -= output.Width(shown)
			s.WriteString(b.paint.Text(seg.Color, shown))
		}
		s.WriteString(text.EraseLine.Sprint() + "\r\n")
	}
	b.drawn = len(lines)
	_, err := io.WriteString(b.w, s.String())
	return err
}

// Leave leaves what was drawn where it is: the next drawing begins below it.
func (b *Board) Leave() { b.drawn = 0 }
