// Package bench makes a table of measurements: percentiles, ratios within a round, targets and whether they are met, as
// text and in README.md. Pure; the measuring is in its test, TestBench, which `make bench` runs in full: it needs the
// pretend hosts of deploy/sandbox and the fake nodes of agent/agenttest, and those are for tests.
package bench

import (
	"math"
	"slices"
	"time"
)

// A Series is what one contestant took, by round. A round may hold several measurements, or none if the contestant sat it
// out.
type Series [][]time.Duration

// Percentile returns the p-th percentile, 0 to 100, of all measurements: the smallest one that at least p percent of them
// do not exceed. Without measurements it is 0.
func (s Series) Percentile(p float64) time.Duration { return percentile(slices.Concat(s...), p) }

// Ratio returns the median, over the rounds in which both took part, of how many times longer s took than base: of each
// the median of the round. So what disturbs the machine for longer than a round disturbs both. NaN without such a round.
func (s Series) Ratio(base Series) float64 {
	var ratios []float64
	for i := range min(len(s), len(base)) {
		if len(s[i]) > 0 && len(base[i]) > 0 {
			ratios = append(ratios, float64(percentile(s[i], 50))/float64(percentile(base[i], 50)))
		}
	}
	if len(ratios) == 0 {
		return math.NaN()
	}
	return percentile(ratios, 50)
}

func percentile[T time.Duration | float64](values []T, p float64) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(p/100*float64(len(sorted))))-1)]
}
