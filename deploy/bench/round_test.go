package bench_test

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/deploy/bench"
)

// A measuring is one run of the bench.
type measuring struct {
	rounds int
	small  bool // only see that it works
	table  bench.Table

	begun, busy int // rounds
}

// A contestant does the work of a case in one way.
type contestant struct {
	name   string
	run    func() []time.Duration // one round: how long each piece of the work took
	rounds int                    // in which it takes part; 0: all
	series bench.Series
}

// A goal is a target for a contestant: at most so many times what another takes, with the words of the issue.
type goal struct {
	contestant, base string
	atMost           float64 // below 1: so many times faster
}

// measure lets the contestants take turns, the first of which is what the others are compared with, and adds the case to
// the table.
func (m *measuring) measure(t *testing.T, name string, rounds int, contestants []*contestant, goals ...goal) {
	t.Helper()
	byName := map[string]*contestant{}
	for round := range rounds {
		m.gate(t)
		for _, c := range contestants {
			byName[c.name] = c
			var took []time.Duration
			if c.rounds == 0 || round < c.rounds {
				took = c.run()
			}
			c.series = append(c.series, took)
		}
	}
	for _, c := range contestants {
		row := bench.Row{
			Case: name, Contestant: c.name, Ratio: c.series.Ratio(contestants[0].series),
			P50: bench.Milliseconds(c.series.Percentile(50)), P90: bench.Milliseconds(c.series.Percentile(90)),
		}
		for _, g := range goals {
			if g.contestant == c.name && byName[g.base] != nil {
				row.Targets = append(row.Targets, g.judge(c.series.Ratio(byName[g.base].series)))
			}
		}
		m.add(row)
	}
}

func (g goal) judge(ratio float64) bench.Target {
	if g.atMost < 1 {
		return bench.Target{
			Wanted: fmt.Sprintf("≥ %.0f times faster than %s", 1/g.atMost, g.base), Got: bench.Number(1 / ratio), Met: ratio <= g.atMost,
		}
	}
	return bench.Target{Wanted: fmt.Sprintf("≤ %v × %s", g.atMost, g.base), Got: bench.Number(ratio), Met: ratio <= g.atMost}
}

func (m *measuring) add(row bench.Row) {
	m.table.Rows = append(m.table.Rows, row)
	if !m.small {
		p90 := ""
		if row.P90 != "" {
			p90 = ", p90 " + row.P90
		}
		ratio := ""
		if row.Ratio != 0 && !math.IsNaN(row.Ratio) {
			ratio = ", " + bench.Number(row.Ratio) + " ×"
		}
		fmt.Fprintf(os.Stderr, "%s: %s: %s%s%s\n", row.Case, row.Contestant, row.P50, p90, ratio)
	}
}

// Nothing else should use the machine when a round begins: at most this part of it, or as little as it does within some
// time.
const (
	idle         = 0.25
	idlePatience = 3 * time.Second
	idleWindow   = 100 * time.Millisecond
)

// gate waits for an idle machine.
func (m *measuring) gate(t *testing.T) {
	t.Helper()
	if m.small {
		return
	}
	m.begun++
	for until := time.Now().Add(idlePatience); ; {
		beforeBusy, before := cpuTime(t)
		<-time.After(idleWindow)
		afterBusy, after := cpuTime(t)
		if float64(afterBusy-beforeBusy) <= idle*float64(after-before) {
			return
		}
		if time.Now().After(until) {
			m.busy++
			return
		}
	}
}

// cpuTime is how long the CPUs have been busy, and how long there at all, in clock ticks.
func cpuTime(t *testing.T) (busy, all int64) {
	t.Helper()
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	var user, nice, system, idle, iowait, irq, softirq, steal int64
	if _, err := fmt.Sscanf(line, "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal); err != nil {
		t.Fatalf("/proc/stat: %q: %v", line, err)
	}
	busy = user + nice + system + irq + softirq + steal
	return busy, busy + idle + iowait
}

// loadAverage is that of the last minute.
func loadAverage(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}

// machine tells what the bench ran on.
func machine(t *testing.T) string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	return "Linux " + unix.ByteSliceToString(name.Release[:])
}

// addCount adds a row with a number of calls that shall be at most so many.
func (m *measuring) addCount(name, what string, n, most int) {
	wanted := fmt.Sprint(most)
	if most > 0 {
		wanted = "≤ " + wanted
	}
	m.add(bench.Row{Case: name, Contestant: what, P50: fmt.Sprint(n), Targets: []bench.Target{{Wanted: wanted, Got: fmt.Sprint(n), Met: n <= most}}})
}

// noteOnce adds a note, once if several cases have it.
func (m *measuring) noteOnce(text string) {
	if !slices.Contains(m.table.Notes, text) {
		m.table.Notes = append(m.table.Notes, text)
	}
}
