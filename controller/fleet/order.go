package fleet

import (
	"fmt"
	"slices"
	"strings"
)

// checkOrder warns of edges that lead out of the file and reports each cycle once. All is by CTID; containers that are
// part of a cycle, and those that come after one, cannot be planned, so the former are no longer good.
func checkOrder(all []declared, r *report) {
	at := make(map[int32]int, len(all))
	for i, d := range all {
		at[d.CTID] = i
	}
	for _, d := range all {
		for _, e := range d.edges {
			if _, ok := at[e.to]; ok {
				continue
			}
			if e.clone {
				r.warnf(e.at, "%d is not in this file, so nothing is known about what the clone brings along", e.to)
			} else {
				r.warnf(e.at, "%d is not in this file: a VM, or a container that is not managed; nothing waits for it", e.to)
			}
		}
	}
	for _, cycle := range cycles(all, at) {
		reportCycle(cycle, all, r)
		for _, i := range cycle {
			all[i].good = false
		}
	}
}

// cycles returns one cycle for each group of containers that wait for each other: the shortest through the lowest
// CTID, beginning with it.
func cycles(all []declared, at map[int32]int) [][]int {
	const most = 20 // more at once help nobody
	var found [][]int
	for _, group := range groups(all, at) {
		if len(group) > 1 && len(found) < most {
			found = append(found, cycleWithin(group, all, at))
		}
	}
	slices.SortFunc(found, func(a, b []int) int { return a[0] - b[0] })
	return found
}

// groups returns the strongly connected components (Tarjan): within one, each container waits for each.
func groups(all []declared, at map[int32]int) (found [][]int) {
	var (
		order   = make([]int, len(all)) // of the first visit, from 1
		lowest  = make([]int, len(all)) // order of the earliest that can be reached
		onStack = make([]bool, len(all))
		stack   []int
		visits  int
		visit   func(i int)
	)
	visit = func(i int) {
		visits++
		order[i], lowest[i] = visits, visits
		stack, onStack[i] = append(stack, i), true
		for _, e := range all[i].edges {
			j, ok := at[e.to]
			switch {
			case !ok:
			case order[j] == 0:
				visit(j)
				lowest[i] = min(lowest[i], lowest[j])
			case onStack[j]:
				lowest[i] = min(lowest[i], order[j])
			}
		}
		if lowest[i] != order[i] {
			return
		}
		base := len(stack) - 1
		for stack[base] != i {
			base--
		}
		group := slices.Clone(stack[base:])
		for _, j := range group {
			onStack[j] = false
		}
		stack = stack[:base]
		found = append(found, group)
	}
	for i := range all {
		if order[i] == 0 {
			visit(i)
		}
	}
	return found
}

// cycleWithin returns the shortest cycle through the lowest CTID of a group.
func cycleWithin(group []int, all []declared, at map[int32]int) []int {
	inGroup := make(map[int]bool, len(group))
	for _, i := range group {
		inGroup[i] = true
	}
	start := slices.Min(group)
	from := map[int]int{start: start}
	for queue := []int{start}; len(queue) > 0; queue = queue[1:] {
		i := queue[0]
		for _, e := range all[i].edges {
			j, ok := at[e.to]
			if ok && j == start {
				cycle := []int{i}
				for i != start {
					i = from[i]
					cycle = append(cycle, i)
				}
				slices.Reverse(cycle)
				return cycle
			}
			if _, seen := from[j]; ok && !seen && inGroup[j] {
				from[j] = i
				queue = append(queue, j)
			}
		}
	}
	panic("fleet: a group without a cycle")
}

func reportCycle(cycle []int, all []declared, r *report) {
	const most = 10
	var parts []string
	var first edge
	for n, i := range cycle {
		next := all[cycle[(n+1)%len(cycle)]].CTID
		e := all[i].edges[slices.IndexFunc(all[i].edges, func(e edge) bool { return e.to == next })]
		if n == 0 {
			first = e
		}
		how := "depends on"
		if e.clone {
			how = "is cloned from"
		}
		parts = append(parts, fmt.Sprintf("%d %s %d", all[i].CTID, how, next))
	}
	if len(parts) > most {
		left := len(parts) - most
		parts = slices.Concat(parts[:most-1], []string{fmt.Sprintf("(%d more)", left)}, parts[len(parts)-1:])
	}
	r.errorf(first.at, "cycle: %s; remove one of these", strings.Join(parts, ", "))
}
