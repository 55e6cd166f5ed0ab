package plan_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

// Failure 1: two writers of the conf; the second sees nothing to change and skips the restart.
func TestFailure01RestartFollowsFromTheEffectiveState(t *testing.T) {
	row{
		name:  "the conf is right already, what runs is not",
		fleet: `"gpu_assignment": "0,1"`,
		node:  node(running(given(0, 1), given(0))),
		want: []string{
			"check: GPUs 0, 1 on node pve1",
			"restart: effective GPUs 0; configured 0, 1: restart pending",
			"verify: GPUs 0, 1 and no other, after the restart",
		},
	}.run(t)
	row{
		name:  "the same GPUs, but the agent finds that the conf has changed",
		fleet: `"gpu_assignment": "0"`,
		node:  node(with(running(given(0), given(0)), func(c *observed.Container) { c.RestartPending = true })),
		want: []string{
			"check: GPU 0 on node pve1",
			"restart: the conf has changed since it was started: restart pending",
			"verify: GPU 0 and no other, after the restart",
		},
	}.run(t)
}

// Failure 5, its last part: an index that does not exist.
func TestFailure05IndexThatDoesNotExist(t *testing.T) {
	row{
		fleet: `"gpu_assignment": "3"`,
		node:  node(running(given(), given())),
		want:  []string{"ERROR: node pve1 has no GPU 3; it has 0, 1"},
	}.run(t)
}

// Failure 6: from "0,1" to "0" the entry of GPU 1 stays, and the container keeps it.
func TestFailure06GPUIsTakenAway(t *testing.T) {
	row{
		fleet: `"gpu_assignment": "0"`,
		node:  node(running(given(0, 1), given(0, 1))),
		want: []string{
			"check: GPU 0 on node pve1",
			"patch: remove GPU 1",
			"restart: effective GPUs 0, 1; desired 0",
			"verify: GPU 0 and no other, after the restart",
		},
	}.run(t)
}

// Failure 8: a missing device is skipped with a warning, and the failure shows up an hour later.
func TestFailure08MissingDeviceIsAnError(t *testing.T) {
	f := fleetOf(t, `"901": {"gpu_assignment": "0,2", "features": ["vllm"]}`)
	p := plan.Compute(f, verified(node(running(given(0), given(0)))), plan.Options{Scripts: map[string]bool{"vllm": true}})
	c := p.Containers[0]
	if len(c.Steps) > 0 || !slices.Equal(c.Errors, []string{"node pve1 has no GPU 2; it has 0, 1"}) {
		t.Errorf("steps %v, errors %q; want no steps, not even for GPU 0 and the feature, and the error", c.Steps, c.Errors)
	}
}

// Failure 11: a GPU is assigned to a container without a feature nvidia of its own.
func TestFailure11AssignmentWithoutFeature(t *testing.T) {
	f := fleetOf(t, `
		"901": {"gpu_assignment": "0,1", "features": ["nvidia"]},
		"903": {"gpu_assignment": "0,1", "features": ["docker"], "clone_from_ctid": "901"}`)
	clone := with(running(given(), given()), func(c *observed.Container) { c.CTID = 903 })
	p := plan.Compute(f, verified(node(running(given(0, 1), given(0, 1)), clone)), plan.Options{})
	want := []string{
		"check: GPUs 0, 1 on node pve1",
		"patch: add GPU 0, add GPU 1",
		"restart: effective GPUs none; desired 0, 1",
		"verify: GPUs 0, 1 and no other, after the restart",
		"install driver: 580.76.05, which node pve1 has loaded, unless it is there",
		"verify driver: it works, and shows exactly what is assigned",
		"note: feature docker has no script in features_dir: not managed",
	}
	if diff := cmp.Diff(want, text(p.Containers[1])); diff != "" {
		t.Errorf("plan of 903 (-want +got):\n%s", diff)
	}
	if want := []int32{901}; !slices.Equal(p.Containers[1].After, want) {
		t.Errorf("903 comes after %v; want %v", p.Containers[1].After, want)
	}
}

// Failure 12: a dependency that is a VM, or a container that no node has.
func TestFailure12DependencyThatIsNoContainer(t *testing.T) {
	n := node(running(given(), given()))
	n.VMs = []int32{1002}
	row{
		fleet: `"dependencies": ["1002", "950"]`,
		node:  n,
		want: []string{
			"note: dependency 1002 is a VM on node pve1: nothing waits for it",
			"note: dependency 950 is not in the fleet file, and no node that answers has it: nothing waits for it",
		},
	}.run(t)
}

// Failure 14: a container cloned from another, or rolled back to a snapshot, that brings old GPU entries with it.
func TestFailure14CloneBringsEntries(t *testing.T) {
	row{
		name:  "a clone that is to have none",
		fleet: `"gpu_assignment": "none"`,
		node:  node(stopped(given(0, 1))),
		want: []string{
			"patch: remove GPU 0, remove GPU 1",
			"note: it is stopped, and stays so: nothing in it is verified; apply --start starts containers that have GPUs",
		},
	}.run(t)
	row{
		name:  "a rollback to when it had another",
		fleet: `"gpu_assignment": "1"`,
		node:  node(running(given(0), given(0))),
		want: []string{
			"check: GPU 1 on node pve1",
			"patch: add GPU 1, remove GPU 0",
			"restart: effective GPUs 0; desired 1",
			"verify: GPU 1 and no other, after the restart",
		},
	}.run(t)
}
