// Package storetest holds the tests that every implementation of [store.Store] passes.
package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/plan"
	"phoenix.internal/controller/store"
)

// Run tests the stores that open returns, each of them empty.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	tests := []struct {
		name string
		fn   func(*testing.T, store.Store)
	}{
		{"a run comes back as it was saved", testSaveRun},
		{"a container replaces the one before", testSaveContainer},
		{"runs by prefix", testPrefix},
		{"runs newest first", testRuns},
		{"running ones oldest first", testRunning},
		{"the oldest ended runs are dropped", testKeep},
		{"verification keys", testVerified},
		{"what is returned is the caller's own", testCopies},
		{"concurrent writers", testConcurrent},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := open(t)
			test.fn(t, s)
			if err := s.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
		})
	}
}

// Sample is a run with every field set.
func Sample(id string) store.Run {
	at := time.Date(2026, 11, 23, 15, 4, 5, 678_000_000, time.UTC)
	return store.Run{
		ID: id, State: store.RunRunning, Created: at, Ended: at.Add(time.Minute), Who: "root@pve1", FleetSHA256: "abc",
		Options: store.Options{CTIDs: []int32{901, 902}, Start: true, Verify: true, RestartTimeout: 30 * time.Second, ParallelPerNode: 2},
		Containers: []store.Container{
			{CTID: 902, Name: "b", Node: "pve1", State: store.StepRunning, Notes: []string{"note"}, Steps: []store.Step{
				{Kind: plan.PatchConf, Reason: "add GPU 1", State: store.StepSucceeded, Started: at, Ended: at.Add(time.Second), Message: "patched"},
				{Kind: plan.Feature, Feature: "docker", State: store.StepPending},
			}},
			{CTID: 901, Name: "a", Node: "pve2", State: store.StepSkipped, After: []int32{902}, Error: "CTID 902 failed", Reason: "GPU_NOT_FOUND"},
		},
		Resumptions: 1, Warnings: []string{"warning"}, Canceled: true,
	}
}

func testSaveRun(t *testing.T, s store.Store) {
	want := Sample("r1")
	must(t, s.SaveRun(want))
	expect(t, s, "r1", want)

	want.State = store.RunFailed
	want.Containers = want.Containers[:1]
	must(t, s.SaveRun(want))
	expect(t, s, "r1", want)
}

func testSaveContainer(t *testing.T, s store.Store) {
	want := Sample("r1")
	must(t, s.SaveRun(want))
	want.Containers[1] = store.Container{CTID: 901, Name: "a", State: store.StepSucceeded}
	must(t, s.SaveContainer("r1", want.Containers[1]))
	expect(t, s, "r1", want)

	for name, err := range map[string]error{
		"another container": s.SaveContainer("r1", store.Container{CTID: 903}),
		"the beginning":     s.SaveContainer("r1", store.Container{CTID: 90}),
		"another run":       s.SaveContainer("r2", store.Container{CTID: 901}),
	} {
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: SaveContainer = %v, want ErrNotFound", name, err)
		}
	}
	expect(t, s, "r1", want)
}

func testPrefix(t *testing.T, s store.Store) {
	for _, id := range []string{"2026-a", "2026-ab", "2027-c"} {
		must(t, s.SaveRun(store.Run{ID: id, State: store.RunSucceeded}))
	}
	for prefix, want := range map[string]string{"2026-a": "2026-a", "2026-ab": "2026-ab", "2027": "2027-c"} {
		r, err := s.Run(prefix)
		if err != nil || r.ID != want {
			t.Errorf("Run(%q) = %q, %v, want %q", prefix, r.ID, err, want)
		}
	}
	for _, prefix := range []string{"", "x", "2026-abc", "3"} {
		if _, err := s.Run(prefix); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Run(%q) = %v, want ErrNotFound", prefix, err)
		}
	}
	_, err := s.Run("2026")
	e, ok := errors.AsType[*store.AmbiguousError](err)
	if !ok || !slices.Equal(e.IDs, []string{"2026-a", "2026-ab"}) {
		t.Errorf(`Run("2026") = %v, want an AmbiguousError of 2026-a and 2026-ab`, err)
	}
}

func testRuns(t *testing.T, s store.Store) {
	for _, id := range []string{"2", "1", "3"} {
		must(t, s.SaveRun(Sample(id)))
	}
	for limit, want := range map[int][]string{0: {"3", "2", "1"}, 2: {"3", "2"}, 9: {"3", "2", "1"}} {
		runs, err := s.Runs(limit)
		if got := ids(runs); err != nil || !slices.Equal(got, want) {
			t.Errorf("Runs(%d) = %q, %v, want %q", limit, got, err, want)
		}
		if len(runs) > 0 && len(runs[0].Containers) != 2 {
			t.Errorf("Runs(%d) gives %d containers, want 2", limit, len(runs[0].Containers))
		}
	}
}

func testRunning(t *testing.T, s store.Store) {
	for id, state := range map[string]store.RunState{
		"1": store.RunSucceeded, "2": store.RunRunning, "3": store.RunInterrupted, "4": store.RunRunning, "5": store.RunCanceled, "6": store.RunFailed,
	} {
		must(t, s.SaveRun(store.Run{ID: id, State: state, Containers: []store.Container{{CTID: 901}}}))
	}
	runs, err := s.Running()
	if got := ids(runs); err != nil || !slices.Equal(got, []string{"2", "4"}) {
		t.Fatalf("Running() = %q, %v, want 2 and 4", got, err)
	}
	if len(runs[0].Containers) != 1 {
		t.Errorf("Running() gives %d containers, want 1", len(runs[0].Containers))
	}
}

func testKeep(t *testing.T, s store.Store) {
	if testing.Short() {
		t.Skip("a thousand commits")
	}
	// The oldest one still runs, so it stays.
	must(t, s.SaveRun(store.Run{ID: "0000", State: store.RunRunning, Containers: []store.Container{{CTID: 901}}}))
	for i := 1; i <= store.Keep+1; i++ {
		must(t, s.SaveRun(store.Run{ID: fmt.Sprintf("%04d", i), State: store.RunSucceeded, Containers: []store.Container{{CTID: 901}}}))
	}
	runs, err := s.Runs(0)
	must(t, err)
	if len(runs) != store.Keep || runs[0].ID != "1001" || runs[store.Keep-2].ID != "0003" || runs[store.Keep-1].ID != "0000" {
		t.Errorf("%d runs are kept, from %s to %s and %s; want 1000, from 1001 to 0003 and 0000",
			len(runs), runs[0].ID, runs[len(runs)-2].ID, runs[len(runs)-1].ID)
	}
	if err := s.SaveContainer("0001", store.Container{CTID: 901}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("SaveContainer of a dropped run = %v, want ErrNotFound", err)
	}
}

func testVerified(t *testing.T, s store.Store) {
	got, err := s.Verified()
	if err != nil || len(got) != 0 {
		t.Errorf("Verified() of an empty store = %v, %v", got, err)
	}
	must(t, s.SetVerified(901, "old"))
	must(t, s.SetVerified(999_999_999, "k2"))
	must(t, s.SetVerified(901, "k1"))
	got, err = s.Verified()
	if diff := cmp.Diff(map[int32]string{901: "k1", 999_999_999: "k2"}, got); err != nil || diff != "" {
		t.Errorf("Verified(): %v, -want +got:\n%s", err, diff)
	}
}

func testCopies(t *testing.T, s store.Store) {
	given := Sample("r1")
	must(t, s.SaveRun(given))
	given.Containers[0].Steps[0].Message = "changed by the caller"
	got, err := s.Run("r1")
	must(t, err)
	got.Containers[0].Steps[0].Message = "changed by the reader"
	expect(t, s, "r1", Sample("r1"))
}

func testConcurrent(t *testing.T, s store.Store) {
	const n = 8
	r := store.Run{ID: "r1", State: store.RunRunning}
	want := r
	for i := range int32(n) {
		r.Containers = append(r.Containers, store.Container{CTID: 900 + i, State: store.StepPending})
		want.Containers = append(want.Containers, store.Container{CTID: 900 + i, State: store.StepSucceeded})
	}
	must(t, s.SaveRun(r))
	var wg sync.WaitGroup
	for i := range int32(n) {
		wg.Go(func() {
			if err := s.SaveContainer("r1", store.Container{CTID: 900 + i, State: store.StepSucceeded}); err != nil {
				t.Error(err)
			}
			if _, err := s.Run("r1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	expect(t, s, "r1", want)
}

func expect(t *testing.T, s store.Store, id string, want store.Run) {
	t.Helper()
	got, err := s.Run(id)
	if err != nil {
		t.Fatalf("Run(%q) = %v", id, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Run(%q), -want +got:\n%s", id, diff)
	}
}

func ids(runs []store.Run) []string {
	var ids []string
	for _, r := range runs {
		ids = append(ids, r.ID)
	}
	return ids
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
