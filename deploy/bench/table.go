package bench

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
	"time"
)

// A Row is one contestant in one case.
type Row struct {
	Case       string
	Contestant string
	P50, P90   string  // with their unit; P90 may be empty
	Ratio      float64 // to the first contestant of the case, in the same round; 0: none
	Targets    []Target
}

// A Target is what a row shall reach.
type Target struct {
	Wanted string // "at most 1.5 times raw"
	Got    string // "1.62"
	Met    bool
}

// A Table is all that was measured.
type Table struct {
	Rows  []Row
	Notes []string // on the machine, its load, and what was left out
}

// Missed returns how many targets were not met.
func (t *Table) Missed() (n int) {
	for _, r := range t.Rows {
		for _, target := range r.Targets {
			if !target.Met {
				n++
			}
		}
	}
	return n
}

var header = []string{"case", "contestant", "p50", "p90", "ratio", "target", "result"}

func (r Row) cells() []string {
	ratio := ""
	if r.Ratio != 0 && !math.IsNaN(r.Ratio) {
		ratio = Number(r.Ratio)
	}
	var wanted, results []string
	for _, t := range r.Targets {
		word := "missed"
		if t.Met {
			word = "met"
		}
		wanted = append(wanted, t.Wanted)
		results = append(results, t.Got+" "+word)
	}
	return []string{r.Case, r.Contestant, r.P50, r.P90, ratio, strings.Join(wanted, "; "), strings.Join(results, "; ")}
}

// Text returns the table for a terminal.
func (t *Table) Text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.ToUpper(strings.Join(header, "\t")))
	last := ""
	for _, r := range t.Rows {
		cells := r.cells()
		if r.Case == last {
			cells[0] = ""
		}
		last = r.Case
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	w.Flush() // to a Builder, which takes everything
	var lines []string
	for line := range strings.Lines(b.String()) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	return strings.Join(append(lines, t.Notes...), "\n") + "\n"
}

// Markdown returns the table for a document, with the notes below it.
func (t *Table) Markdown() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(header)
	line([]string{"---", "---", "---:", "---:", "---:", "---", "---"})
	last := ""
	for _, r := range t.Rows {
		cells := r.cells()
		if r.Case == last {
			cells[0] = ""
		}
		last = r.Case
		for i := range cells {
			cells[i] = strings.ReplaceAll(cells[i], "|", `\|`)
		}
		line(cells)
	}
	if len(t.Notes) > 0 {
		fmt.Fprintf(&b, "\n%s\n", strings.Join(t.Notes, "\n"))
	}
	return b.String()
}

// The lines of a document between which the table stands.
const (
	Begin = "<!-- make bench-readme: begin -->"
	End   = "<!-- make bench-readme: end -->"
)

// Insert returns the document with what stands between its two marker lines replaced. The markers must be there once
// each, in order.
func Insert(document []byte, content string) ([]byte, error) {
	begin, end := []byte(Begin+"\n"), []byte(End+"\n")
	if bytes.Count(document, begin) != 1 || bytes.Count(document, end) != 1 {
		return nil, fmt.Errorf("the lines %q and %q must be there once each", Begin, End)
	}
	before, rest, _ := bytes.Cut(document, begin)
	_, after, ok := bytes.Cut(rest, end)
	if !ok {
		return nil, fmt.Errorf("the line %q stands before %q", End, Begin)
	}
	return bytes.Join([][]byte{before, begin, []byte(content), end, after}, nil), nil
}

// Milliseconds writes a duration with three digits.
func Milliseconds(d time.Duration) string {
	if d >= 10*time.Second {
		return Number(d.Seconds()) + " s"
	}
	return Number(float64(d)/float64(time.Millisecond)) + " ms"
}

// Number writes a number with three digits, or all of its whole part.
func Number(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	case x >= 0.1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.3f", x)
}
