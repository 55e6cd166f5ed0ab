package bench_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/deploy/bench"
)

var table = bench.Table{
	Rows: []bench.Row{
		{Case: "apply", Contestant: "raw", P50: "10.0 ms", P90: "12.0 ms", Ratio: 1},
		{Case: "apply", Contestant: "a | b", P50: "20.0 ms", P90: "24.0 ms", Ratio: 2, Targets: []bench.Target{
			{Wanted: "≤ 1.5 raw", Got: "2.00"}, {Wanted: "≥ 50 times faster", Got: "60.0", Met: true},
		}},
		{Case: "calls", Contestant: "list", P50: "0", Ratio: math.NaN(), Targets: []bench.Target{{Wanted: "0", Got: "0", Met: true}}},
	},
	Notes: []string{"2 CPUs", "load 0.1"},
}

func TestText(t *testing.T) {
	const want = `CASE   CONTESTANT  P50      P90      RATIO  TARGET                        RESULT
apply  raw         10.0 ms  12.0 ms  1.00
       a | b       20.0 ms  24.0 ms  2.00   ≤ 1.5 raw; ≥ 50 times faster  2.00 missed; 60.0 met
calls  list        0                        0                             0 met
2 CPUs
load 0.1
`
	if diff := cmp.Diff(want, table.Text()); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	if got := table.Missed(); got != 1 {
		t.Errorf("%d targets missed, want 1", got)
	}
}

func TestMarkdown(t *testing.T) {
	const want = `| case | contestant | p50 | p90 | ratio | target | result |
| --- | --- | ---: | ---: | ---: | --- | --- |
| apply | raw | 10.0 ms | 12.0 ms | 1.00 |  |  |
|  | a \| b | 20.0 ms | 24.0 ms | 2.00 | ≤ 1.5 raw; ≥ 50 times faster | 2.00 missed; 60.0 met |
| calls | list | 0 |  |  | 0 | 0 met |

2 CPUs
load 0.1
`
	if diff := cmp.Diff(want, table.Markdown()); diff != "" {
		t.Errorf("Markdown (-want +got):\n%s", diff)
	}
}

func TestInsert(t *testing.T) {
	const begin, end = bench.Begin + "\n", bench.End + "\n"
	for name, c := range map[string]struct{ document, want string }{
		"replaces":               {"a\n" + begin + "old\n" + end + "b\n", "a\n" + begin + "new\n" + end + "b\n"},
		"into nothing":           {begin + end, begin + "new\n" + end},
		"no marker":              {"a\n", ""},
		"no end":                 {"a\n" + begin + "b\n", ""},
		"no begin":               {"a\n" + end + "b\n", ""},
		"twice":                  {begin + end + begin + end, ""},
		"the wrong way round":    {end + "a\n" + begin, ""},
		"a marker within a line": {"see " + begin + end + begin, ""},
	} {
		got, err := bench.Insert([]byte(c.document), "new\n")
		if (err == nil) != (c.want != "") || string(got) != c.want {
			t.Errorf("%s: %q becomes %q, %v; want %q", name, c.document, got, err, c.want)
		}
	}
	again, err := bench.Insert([]byte(begin+table.Markdown()+end), table.Markdown())
	if err != nil || strings.Count(string(again), "| apply |") != 1 {
		t.Errorf("the same table once more: %v\n%s", err, again)
	}
}

func TestMilliseconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                        "0.000 ms",
		12345 * time.Nanosecond:  "0.012 ms",
		200 * time.Microsecond:   "0.20 ms",
		5950 * time.Microsecond:  "5.95 ms",
		25 * time.Millisecond:    "25.0 ms",
		1234 * time.Millisecond:  "1234 ms",
		25800 * time.Millisecond: "25.8 s",
	} {
		if got := bench.Milliseconds(d); got != want {
			t.Errorf("%d ns is %q, want %q", d, got, want)
		}
	}
}
