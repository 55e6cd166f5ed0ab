package plan_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

// TestPlanIsCarriedOutOnce takes made-up fleets, carries the plan out on a model of them, and plans again: nothing must
// be left to do. On the way it holds what is true of every plan.
func TestPlanIsCarriedOutOnce(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 0))
		f, o := world(r)
		opts := plan.Options{Start: r.IntN(2) == 0}
		p := plan.Compute(f, o, opts)
		if diff := cmp.Diff(p, plan.Compute(f, o, opts)); diff != "" {
			t.Fatalf("seed %d: planned twice, it differs:\n%s", seed, diff)
		}
		if len(p.Containers) != len(f.Containers) {
			t.Fatalf("seed %d: %d containers are planned of %d", seed, len(p.Containers), len(f.Containers))
		}
		done := map[int32]bool{}
		for _, c := range p.Containers {
			checkInvariants(t, seed, c, find(o, c), done)
			carryOut(c, o)
			done[c.CTID] = true
		}
		for _, c := range plan.Compute(f, o, opts).Containers {
			if len(c.Steps) > 0 {
				t.Fatalf("seed %d: CTID %d is to do again: %v", seed, c.CTID, c.Steps)
			}
		}
	}
}

func checkInvariants(t *testing.T, seed uint64, c plan.Container, found *observed.Container, done map[int32]bool) {
	t.Helper()
	fail := func(what string) {
		t.Helper()
		t.Fatalf("seed %d: %s\nplan: %+v\nobserved: %+v", seed, what, c, found)
	}
	for _, before := range c.After {
		if !done[before] {
			fail(fmt.Sprintf("CTID %d comes after this", before))
		}
	}
	if len(c.Errors) > 0 {
		if len(c.Steps) > 0 {
			fail("errors and steps")
		}
		return
	}
	if !slices.IsSortedFunc(c.Steps, func(a, b plan.Step) int { return int(a.Kind - b.Kind) }) {
		fail("steps out of their order")
	}
	has := func(kind plan.Kind) bool {
		return slices.ContainsFunc(c.Steps, func(s plan.Step) bool { return s.Kind == kind })
	}
	for _, s := range c.Steps {
		if s.Reason == "" {
			fail("a step without a reason")
		}
	}
	switch {
	case found.Template && has(plan.Restart):
		fail("a template is started")
	case found.Effective != nil && !observed.Equal(found.Effective.GPUs, c.Desired) && !has(plan.Restart):
		fail("effective GPUs are wrong, and there is no restart")
	case !observed.Equal(found.Configured.GPUs, c.Desired) && !has(plan.PatchConf):
		fail("configured GPUs are wrong, and there is no patch")
	case has(plan.Restart) && !has(plan.VerifyDevices):
		fail("a restart without verifying")
	case len(c.Desired) > 0 && (has(plan.PatchConf) || has(plan.Restart)) && !has(plan.CheckDevices):
		fail("devices are given unchecked")
	}
}

// carryOut does to the model what the steps do to a fleet.
func carryOut(c plan.Container, o *observed.Fleet) {
	found := find(o, c)
	for _, s := range c.Steps {
		switch s.Kind {
		case plan.PatchConf:
			found.Configured = given(observed.Indexes(c.Desired)...)
			if len(c.Desired) > 0 {
				found.Configured.Mode = observed.Mode(c.Mode)
			}
			found.Problems = slices.DeleteFunc(found.Problems, func(p observed.Problem) bool { return p.Advice == "" })
			if found.Effective != nil {
				found.RestartPending = pending(found)
			}
		case plan.Restart:
			effective := found.Configured
			effective.Mode = observed.ModeNone
			found.State, found.Effective, found.RestartPending = observed.StateRunning, &effective, false
			found.Instance += "+"
			found.Problems = slices.DeleteFunc(found.Problems, func(p observed.Problem) bool { return p.Kind == "ghost_file" })
		case plan.VerifyDevices:
			o.Verified[c.CTID] = plan.Verification(found.Instance, c.Mode, c.Desired)
		}
	}
}

// pending is what an agent says: whether a restart would change what the container can use.
func pending(c *observed.Container) bool {
	return !slices.Equal(c.Effective.Devices, c.Configured.Devices)
}

func find(o *observed.Fleet, c plan.Container) *observed.Container {
	for n := range o.Nodes {
		for i := range o.Nodes[n].Containers {
			if o.Nodes[n].Name == c.Node && o.Nodes[n].Containers[i].CTID == c.CTID {
				return &o.Nodes[n].Containers[i]
			}
		}
	}
	return nil
}

// world makes up a fleet file and what is there.
func world(r *rand.Rand) (*fleet.Fleet, *observed.Fleet) {
	f := &fleet.Fleet{Mode: fleet.ModeRaw}
	o := &observed.Fleet{Verified: map[int32]string{}, Nodes: []observed.Node{node(), node()}}
	o.Nodes[1].Name = "pve2"
	gpus := func() []int { return [][]int{nil, nil, {0}, {1}, {0, 1}, {0, 1}, {0, 7}}[r.IntN(7)] }
	passthrough := func() observed.Passthrough {
		p := given(gpus()...)
		if len(p.GPUs) > 0 && r.IntN(3) == 0 {
			p.Mode = []observed.Mode{observed.ModeNative, observed.ModeMixed}[r.IntN(2)]
		}
		return p
	}
	kinds := []string{"wrong_major", "wildcard_rule", "duplicate_entry", "mode_conflict", "device_gone", "entry_in_snapshot", "entry_in_pending", "ghost_file"}
	advice := map[string]string{"entry_in_snapshot": "a", "entry_in_pending": "a", "ghost_file": "a"}
	for i := range int32(1 + r.IntN(8)) {
		desired := fleet.Container{
			CTID: 900 + i, GPUs: selectors(gpus()), Mode: []string{fleet.ModeRaw, fleet.ModeNative}[r.IntN(2)],
			Capabilities: []string{fleet.CapabilityCompute},
		}
		if i > 0 {
			desired.CloneFrom = 900 + r.Int32N(i)
			desired.Dependencies = []int32{900 + r.Int32N(i), 1002}
		}
		f.Containers = append(f.Containers, desired)
		if r.IntN(10) == 0 {
			continue // on no node
		}
		c := observed.Container{CTID: 900 + i, State: observed.StateStopped, Configured: passthrough(), Template: r.IntN(5) == 0}
		if r.IntN(10) == 0 {
			c.Lock = "backup"
		}
		if r.IntN(2) == 0 && !c.Template {
			effective := c.Configured
			if r.IntN(3) == 0 {
				effective = passthrough()
			}
			effective.Mode = observed.ModeNone
			c.State, c.Effective, c.Instance = observed.StateRunning, &effective, fmt.Sprint("boot:", i)
			c.RestartPending = pending(&c)
			if r.IntN(2) == 0 {
				o.Verified[c.CTID] = plan.Verification(c.Instance, desired.Mode, effective.GPUs)
			}
		}
		for range r.IntN(3) {
			kind := kinds[r.IntN(len(kinds))]
			c.Problems = append(c.Problems, observed.Problem{Kind: kind, Message: "m", Advice: advice[kind]})
		}
		n := r.IntN(2)
		o.Nodes[n].Containers = append(o.Nodes[n].Containers, c)
	}
	return f, o
}

// selectors name GPUs by index.
func selectors(indexes []int) (all []fleet.Selector) {
	for _, i := range indexes {
		all = append(all, fleet.Selector{Kind: fleet.ByIndex, Index: i})
	}
	return all
}

// BenchmarkCompute plans the largest fleet file there can be, with nothing to do.
func BenchmarkCompute(b *testing.B) {
	f := &fleet.Fleet{}
	n := node()
	for ctid := range int32(fleet.MaxContainers) {
		f.Containers = append(f.Containers, fleet.Container{CTID: 1000 + ctid, GPUs: selectors([]int{0}), Capabilities: []string{fleet.CapabilityCompute}, Mode: fleet.ModeRaw, CloneFrom: 999 + ctid})
		n.Containers = append(n.Containers, with(running(given(0), given(0)), func(c *observed.Container) { c.CTID = 1000 + ctid }))
	}
	o := verified(n)
	for b.Loop() {
		plan.Compute(f, o, plan.Options{})
	}
}
