package ctlock_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phoenix.internal/agent/ctlock"
)

func mustLock(t *testing.T, l *ctlock.Locks, ctid int32) (unlock func()) {
	t.Helper()
	unlock, err := l.Lock(t.Context(), ctid)
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

func TestOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ctlock.Locks
		var order []int // guarded by the lock under test
		unlock := mustLock(t, &l, 901)
		for i := range 20 {
			go func() {
				unlock, err := l.Lock(t.Context(), 901)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, i)
				unlock()
			}()
			synctest.Wait() // until it waits
		}
		unlock()
		synctest.Wait()
		want := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}
		if !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}

func TestOtherCTIDsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ctlock.Locks
		defer mustLock(t, &l, 901)()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		unlock, err := l.Lock(ctx, 902)
		if err != nil {
			t.Fatalf("CTID 902 waits for 901: %v", err)
		}
		unlock()
	})
}

func TestContextEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		ctx  func(context.Context) (context.Context, context.CancelFunc)
		want error
		text string
	}{
		{
			name: "deadline",
			ctx: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeout(ctx, time.Minute)
			},
			want: context.DeadlineExceeded,
			text: "wait for other changes to CTID 901: context deadline exceeded",
		},
		{
			name: "already cancelled",
			ctx: func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(ctx)
				cancel()
				return ctx, cancel
			},
			want: context.Canceled,
			text: "wait for other changes to CTID 901: context canceled",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l ctlock.Locks
				unlock := mustLock(t, &l, 901)
				ctx, cancel := test.ctx(t.Context())
				defer cancel()
				_, err := l.Lock(ctx, 901)
				if !errors.Is(err, test.want) || err.Error() != test.text {
					t.Errorf("error %v, want %s", err, test.text)
				}
				unlock()
				mustLock(t, &l, 901)()
			})
		})
	}
}

// One that gives up in the middle of the queue does not hold up those behind it.
func TestLeaveTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ctlock.Locks
		unlock := mustLock(t, &l, 901)
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		wait := func(name string, ctx context.Context) {
			unlock, err := l.Lock(ctx, 901)
			if err != nil {
				return
			}
			got = append(got, name)
			unlock()
		}
		go wait("first", t.Context())
		synctest.Wait()
		go wait("gives up", ctx)
		synctest.Wait()
		go wait("last", t.Context())
		synctest.Wait()
		cancel()
		synctest.Wait()
		unlock()
		synctest.Wait()
		if want := []string{"first", "last"}; !slices.Equal(got, want) {
			t.Errorf("locked by %v, want %v", got, want)
		}
	})
}

// A context that ends in the very moment in which the lock becomes free loses no lock.
func TestEndAndUnlockAtOnce(t *testing.T) {
	var l ctlock.Locks
	for range 2000 {
		unlock := mustLock(t, &l, 901)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if unlock, err := l.Lock(ctx, 901); err == nil {
				unlock()
			}
		})
		wg.Go(cancel)
		wg.Go(unlock)
		wg.Wait()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	unlock, err := l.Lock(ctx, 901)
	if err != nil {
		t.Fatalf("the lock was lost: %v", err)
	}
	unlock()
}

func TestSecondUnlockDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ctlock.Locks
		first := mustLock(t, &l, 901)
		first()
		second := mustLock(t, &l, 901)
		first()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Lock(ctx, 901); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v: the second unlock took the lock from its new holder", err)
		}
		second()
	})
}

func TestMutualExclusion(t *testing.T) {
	var l ctlock.Locks
	counts := make(map[int32]*int)
	for ctid := int32(100); ctid < 104; ctid++ {
		counts[ctid] = new(int)
	}
	var wg sync.WaitGroup
	for i := range 400 {
		ctid := 100 + int32(i%4)
		wg.Go(func() {
			unlock, err := l.Lock(t.Context(), ctid)
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			*counts[ctid]++ // the race detector watches
		})
	}
	wg.Wait()
	for ctid, n := range counts {
		if *n != 100 {
			t.Errorf("CTID %d: %d changes, want 100", ctid, *n)
		}
	}
}

// Locks keeps nothing about CTIDs that are not locked.
func TestNoLeak(t *testing.T) {
	var l ctlock.Locks
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for ctid := int32(100); ctid < 100_100; ctid++ {
		mustLock(t, &l, ctid)()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 256<<10 {
		t.Errorf("100000 CTIDs that were locked once hold %d bytes", grown)
	}
	runtime.KeepAlive(&l)
}
