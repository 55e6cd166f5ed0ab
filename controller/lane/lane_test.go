package lane_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phoenix.internal/controller/lane"
)

// A job enters with key and group after delay, stays for a second, and notes when it was in.
type job struct {
	name  string
	delay time.Duration
	key   int32
	group string
	width int
}

func TestEnter(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name string
		jobs []job
		want []string // "<second of entry> <job>", by time, then name
	}{
		{"one at a time per key, first come first", []job{
			{"a", 0, 901, "pve1", 4}, {"c", 2 * ms, 901, "pve1", 4}, {"b", 1 * ms, 901, "pve1", 4},
		}, []string{"0 a", "1 b", "2 c"}},
		{"keys in parallel", []job{
			{"a", 0, 901, "pve1", 4}, {"b", 0, 902, "pve1", 4}, {"c", 0, 903, "pve2", 4},
		}, []string{"0 a", "0 b", "0 c"}},
		{"bounded per group, first come first", []job{
			{"a", 0, 901, "pve1", 2}, {"b", 1 * ms, 902, "pve1", 2}, {"c", 2 * ms, 903, "pve1", 2},
			{"d", 3 * ms, 904, "pve1", 2}, {"other node", 4 * ms, 905, "pve2", 2},
		}, []string{"0 a", "0 b", "0 other node", "1 c", "1 d"}},
		{"a larger width does not overtake", []job{
			{"a", 0, 901, "pve1", 1}, {"b", 1 * ms, 902, "pve1", 1}, {"wide", 2 * ms, 903, "pve1", 4},
		}, []string{"0 a", "1 b", "1 wide"}},
		{"who waits for a key takes no place in the group", []job{
			{"a", 0, 901, "pve1", 2}, {"again", 1 * ms, 901, "pve1", 2}, {"b", 2 * ms, 902, "pve1", 2},
		}, []string{"0 a", "0 b", "1 again"}},
		{"a width of zero is one", []job{
			{"a", 0, 901, "pve1", 0}, {"b", 1 * ms, 902, "pve1", 0},
		}, []string{"0 a", "1 b"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lanes lane.Lanes
				var mu sync.Mutex
				var got []string
				var wg sync.WaitGroup
				begin := time.Now()
				for _, j := range test.jobs {
					wg.Go(func() {
						time.Sleep(j.delay)
						leave, err := lanes.Queue(j.key, j.group, j.width).Enter(t.Context())
						if err != nil {
							t.Errorf("%s: %v", j.name, err)
							return
						}
						mu.Lock()
						got = append(got, string('0'+rune(time.Since(begin)/time.Second))+" "+j.name)
						mu.Unlock()
						time.Sleep(time.Second)
						leave()
						leave() // harmless
					})
				}
				wg.Wait()
				slices.Sort(got)
				if !slices.Equal(got, test.want) {
					t.Errorf("entries %q, want %q", got, test.want)
				}
			})
		})
	}
}

// One who gives up, in either queue, leaves no hole: those behind it enter.
func TestEnterCanceled(t *testing.T) {
	cause := errors.New("canceled by root")
	tests := []struct {
		name  string
		key   int32 // of the one who gives up
		group string
		want  string
	}{
		{"in the key's queue", 901, "pve1", "wait for CTID 901: canceled by root"},
		{"in the group's queue", 902, "pve1", "wait for a place on node pve1: canceled by root"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var lanes lane.Lanes
				leave, err := lanes.Queue(901, "pve1", 1).Enter(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancelCause(t.Context())
				var gaveUp error
				var wg sync.WaitGroup
				wg.Go(func() { _, gaveUp = lanes.Queue(test.key, test.group, 1).Enter(ctx) })
				synctest.Wait()
				entered := false
				wg.Go(func() {
					last, err := lanes.Queue(test.key, test.group, 1).Enter(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					entered = true
					last()
				})
				synctest.Wait()
				cancel(cause)
				synctest.Wait()
				if gaveUp == nil || gaveUp.Error() != test.want || !errors.Is(gaveUp, cause) {
					t.Errorf("Enter = %v, want %s", gaveUp, test.want)
				}
				if entered {
					t.Error("the one behind entered although the first is still in")
				}
				leave()
				wg.Wait()
				if !entered {
					t.Error("the one behind did not enter")
				}
			})
		})
	}
}

func TestEnterAfterCancel(t *testing.T) {
	var lanes lane.Lanes
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lanes.Queue(901, "pve1", 1).Enter(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Enter = %v, want context.Canceled", err)
	}
}

// The place in the line is taken by Queue, whoever calls Enter first.
func TestQueueOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lanes lane.Lanes
		var tickets []*lane.Ticket
		for key := range int32(5) {
			tickets = append(tickets, lanes.Queue(901+key, "pve1", 1))
		}
		var got []int
		var wg sync.WaitGroup
		for i, ticket := range slices.Backward(tickets) {
			wg.Go(func() {
				leave, err := ticket.Enter(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				got = append(got, i) // one at a time
				time.Sleep(time.Second)
				leave()
			})
			synctest.Wait()
		}
		wg.Wait()
		if want := []int{0, 1, 2, 3, 4}; !slices.Equal(got, want) {
			t.Errorf("entered in the order %v, want %v", got, want)
		}
	})
}
