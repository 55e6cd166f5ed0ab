package bench_test

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"phoenix.internal/deploy/bench"
	"phoenix.internal/deploy/sandbox/sandboxtest"
)

var (
	full       = flag.Bool("full", false, "measure, for some minutes, and print the table; without it, only see that all can be measured")
	rounds     = flag.Int("rounds", 10, "rounds of each case, with -full")
	containers = flag.String("containers", "1,16", "how many containers to apply at once, ascending, with -full")
	readme     = flag.String("readme", "", "also write the table into this `FILE`, between its markers")
	profiles   = flag.String("profiles", "", "also write CPU profiles of agent, controller and phoenix-cli to this `DIR`; `go tool pprof` reads them")
)

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		os.Exit(work(os.Stdin, os.Stdout))
	}
	flag.Parse()
	os.Exit(sandboxtest.Main(m))
}

// TestBench measures Phoenix against what a person would use instead and against the physical limit, in rounds in which
// every contestant has its turn. Without -full it does so once and in small, to see that it can; nothing is asserted
// about speed.
func TestBench(t *testing.T) {
	m := &measuring{rounds: 1, small: !*full}
	counts := []int{1}
	if *full {
		m.rounds = *rounds
		counts = numbers(t, *containers)
	}
	before, began := loadAverage(t), time.Now()
	t.Run("sandbox", func(t *testing.T) {
		h := newHost(t)
		for i, n := range counts {
			h.setContainers(n)
			t.Run(fmt.Sprintf("apply %d", n), func(t *testing.T) { m.apply(t, h) })
			if i > 0 {
				continue
			}
			t.Run("apply gracefully", func(t *testing.T) { m.gracefully(t, h) })
			t.Run("pct", func(t *testing.T) { m.pctCalls(t, h) })
			t.Run("exec", func(t *testing.T) { m.exec(t, h) })
			t.Run("stream", func(t *testing.T) { m.stream(t, h) })
			t.Run("no-op", func(t *testing.T) { m.noop(t, h) })
		}
	})
	t.Run("rpc", m.rpc)
	if t.Failed() || m.small {
		return
	}
	m.table.Notes = append([]string{
		"Ratio: to the first contestant of the case in the same round, median of the rounds. Raw: a Go loop that replaces the " +
			"conf and runs lxc-stop -k, lxc-start and lxc-attach, for one container after the other.",
		fmt.Sprintf("%s, %d CPUs, %s; %d rounds in %v. Load before %s, after %s; %d of %d rounds began on a machine that was busy with something else.",
			machine(t), runtime.NumCPU(), runtime.Version(), m.rounds, time.Since(began).Round(time.Second), before, loadAverage(t), m.busy, m.begun),
	}, m.table.Notes...)
	fmt.Print(m.table.Text())
	if *readme != "" {
		writeReadme(t, *readme, m.table.Markdown())
	}
}

func writeReadme(t *testing.T, path, table string) {
	document, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if document, err = bench.Insert(document, table); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if err := os.WriteFile(path, document, 0o644); err != nil {
		t.Fatal(err)
	}
}

func numbers(t *testing.T, list string) (all []int) {
	for word := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(word)
		if err != nil {
			t.Fatalf("-containers %s: %v", list, err)
		}
		all = append(all, n)
	}
	return all
}
