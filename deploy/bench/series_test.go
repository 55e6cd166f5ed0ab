package bench_test

import (
	"math"
	"testing"
	"time"

	"phoenix.internal/deploy/bench"
)

func TestPercentile(t *testing.T) {
	hundred := bench.Series{{}}
	for i := range 100 {
		hundred[0] = append(hundred[0], time.Duration(100-i))
	}
	for name, c := range map[string]struct {
		series bench.Series
		p      float64
		want   time.Duration
	}{
		"nothing":                  {nil, 50, 0},
		"one":                      {bench.Series{{7}}, 90, 7},
		"middle of three":          {bench.Series{{3}, {1}, {2}}, 50, 2},
		"lower middle of four":     {bench.Series{{4, 3}, {2, 1}}, 50, 2},
		"rounds that were sat out": {bench.Series{{}, {5}, nil}, 50, 5},
		"smallest":                 {hundred, 0, 1},
		"50 of 100":                {hundred, 50, 50},
		"90 of 100":                {hundred, 90, 90},
		"99 of 100":                {hundred, 99, 99},
		"largest":                  {hundred, 100, 100},
	} {
		if got := c.series.Percentile(c.p); got != c.want {
			t.Errorf("%s: percentile %v of %v is %d, want %d", name, c.p, c.series, got, c.want)
		}
	}
}

func TestRatio(t *testing.T) {
	for name, c := range map[string]struct {
		series, base bench.Series
		want         float64
	}{
		"the same":                        {bench.Series{{5}}, bench.Series{{5}}, 1},
		"of the same round":               {bench.Series{{20}, {200}, {2000}}, bench.Series{{10}, {100}, {1000}}, 2},
		"median of the rounds":            {bench.Series{{10}, {20}, {90}}, bench.Series{{10}, {10}, {10}}, 2},
		"median within a round":           {bench.Series{{1, 30, 99}}, bench.Series{{10, 1, 99}}, 3},
		"only rounds of both":             {bench.Series{{10}, {}, {40}}, bench.Series{nil, {1}, {10}}, 4},
		"a contestant that stopped early": {bench.Series{{50}}, bench.Series{{10}, {10}, {10}}, 5},
	} {
		if got := c.series.Ratio(c.base); got != c.want {
			t.Errorf("%s: ratio of %v to %v is %v, want %v", name, c.series, c.base, got, c.want)
		}
	}
	if got := (bench.Series{{1}, {}}).Ratio(bench.Series{{}, {1}}); !math.IsNaN(got) {
		t.Errorf("without a round of both the ratio is %v, want NaN", got)
	}
}
