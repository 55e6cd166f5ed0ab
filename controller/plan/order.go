package plan

import (
	"container/heap"
	"maps"
	"slices"

	"phoenix.internal/controller/fleet"
)

type ordered struct {
	desired fleet.Container
	after   []int32 // ascending
	cyclic  bool
}

// order returns the selected containers so that each stands after those it waits for; of those that could stand next
// the lowest CTID does. Containers of a cycle, which a fleet without errors has not, come last.
func order(f *fleet.Fleet, selected map[int32]bool) []ordered {
	waits := map[int32][]int32{} // for whom a container waits
	waiters := map[int32][]int32{}
	left := map[int32]int{} // how many of those have not been placed
	ready := &ctids{}
	for _, ctid := range slices.Sorted(maps.Keys(selected)) {
		waits[ctid] = after(f, ctid, selected)
		left[ctid] = len(waits[ctid])
		for _, w := range waits[ctid] {
			waiters[w] = append(waiters[w], ctid)
		}
		if left[ctid] == 0 {
			heap.Push(ready, ctid)
		}
	}
	var all []ordered
	place := func(ctid int32, cyclic bool) {
		all = append(all, ordered{*f.Container(ctid), waits[ctid], cyclic})
		delete(left, ctid)
	}
	for ready.Len() > 0 {
		ctid := heap.Pop(ready).(int32)
		place(ctid, false)
		for _, w := range waiters[ctid] {
			if left[w]--; left[w] == 0 {
				heap.Push(ready, w)
			}
		}
	}
	for _, ctid := range slices.Sorted(maps.Keys(left)) {
		place(ctid, true)
	}
	return all
}

// after returns the selected containers for which one waits, ascending. Where it waits for one that is not selected,
// it waits for those that that one waits for.
func after(f *fleet.Fleet, ctid int32, selected map[int32]bool) []int32 {
	var found []int32
	seen := map[int32]bool{ctid: true}
	for next := []int32{ctid}; len(next) > 0; next = next[1:] {
		c := f.Container(next[0])
		for _, to := range append(slices.Clone(c.Dependencies), c.CloneFrom) {
			switch {
			case seen[to] || f.Container(to) == nil:
				continue
			case selected[to]:
				found = append(found, to)
			default:
				next = append(next, to)
			}
			seen[to] = true
		}
	}
	slices.Sort(found)
	return found
}

// ctids is a heap.
type ctids []int32

func (h ctids) Len() int           { return len(h) }
func (h ctids) Less(i, j int) bool { return h[i] < h[j] }
func (h ctids) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *ctids) Push(x any)        { *h = append(*h, x.(int32)) }
func (h *ctids) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}
