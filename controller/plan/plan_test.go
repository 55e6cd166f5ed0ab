package plan_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

// fleetOf parses the containers of a fleet file.
func fleetOf(t *testing.T, containers string) *fleet.Fleet {
	t.Helper()
	f, findings := fleet.Parse("f.json", []byte(`{"lxc_configs": {`+containers+`}}`))
	if !fleet.Valid(findings) {
		t.Fatalf("fleet %s: %v", containers, findings)
	}
	return f
}

// node is pve1 with GPUs 0 and 1 and these containers.
func node(containers ...observed.Container) observed.Node {
	return observed.Node{
		Name:          "pve1",
		DriverVersion: "580.76.05",
		GPUs: []observed.GPU{
			{Index: 0, PCIAddress: "0000:01:00.0", Minor: 0, Driver: "nvidia", NUMANode: -1},
			{Index: 1, PCIAddress: "0000:02:00.0", Minor: 1, Driver: "nvidia", NUMANode: -1},
		},
		Containers: containers,
	}
}

// verified is one node on which everything that runs was verified as it is.
func verified(n observed.Node) *observed.Fleet {
	o := &observed.Fleet{Nodes: []observed.Node{n}, Verified: map[int32]string{}}
	for _, c := range n.Containers {
		if c.Effective != nil {
			o.Verified[c.CTID] = plan.Verification(c.Instance, "raw", c.Effective.GPUs)
		}
	}
	return o
}

// refs are the GPUs with these indexes.
func refs(indexes ...int) (all []observed.Ref) {
	for _, i := range indexes {
		all = append(all, observed.Ref{Index: i})
	}
	return all
}

// given is a passthrough in raw mode.
func given(gpus ...int) observed.Passthrough {
	p := observed.Passthrough{GPUs: refs(gpus...)}
	if len(gpus) > 0 {
		p.Mode = observed.ModeRaw
		p.Devices = []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}
		for _, gpu := range gpus {
			p.Devices = append(p.Devices, fmt.Sprintf("/dev/nvidia%d", gpu))
		}
		p.Devices = append(p.Devices, "/dev/nvidiactl")
		slices.Sort(p.Devices)
	}
	return p
}

// running is container 901 as it runs, unprivileged, with these GPUs by its conf and in effect. What is in effect has no
// mode: a device is a device.
func running(configured, effective observed.Passthrough) observed.Container {
	effective.Mode = observed.ModeNone
	return observed.Container{
		CTID: 901, State: observed.StateRunning, Unprivileged: true, Digest: "d901", Instance: "boot:1:1",
		Configured: configured, Effective: &effective,
		RestartPending: !observed.Equal(configured.GPUs, effective.GPUs),
	}
}

func stopped(configured observed.Passthrough) observed.Container {
	return observed.Container{CTID: 901, State: observed.StateStopped, Unprivileged: true, Digest: "d901", Configured: configured}
}

// with returns c after a change.
func with(c observed.Container, change func(*observed.Container)) observed.Container {
	change(&c)
	return c
}

// withIn returns n after a change of its container.
func withIn(n observed.Node, change func(*observed.Container)) observed.Node {
	change(&n.Containers[0])
	return n
}

// text writes the plan of one container as a person would: its steps, errors and notes, one a line.
func text(c plan.Container) []string {
	var lines []string
	kinds := map[plan.Kind]string{
		plan.CheckDevices: "check", plan.PatchConf: "patch", plan.Restart: "restart", plan.VerifyDevices: "verify",
		plan.InstallDriver: "install driver", plan.VerifyDriver: "verify driver",
		plan.Feature: "feature", plan.HealthCheck: "health",
	}
	for _, s := range c.Steps {
		kind := kinds[s.Kind]
		if s.Feature != "" {
			kind += " " + s.Feature
		}
		lines = append(lines, kind+": "+s.Reason)
	}
	for _, e := range c.Errors {
		lines = append(lines, "ERROR: "+e)
	}
	for _, n := range c.Notes {
		lines = append(lines, "note: "+n)
	}
	return lines
}

type row struct {
	name  string
	fleet string // members of container 901
	node  observed.Node
	opts  plan.Options
	want  []string
}

func (r row) run(t *testing.T) {
	t.Run(r.name, func(t *testing.T) {
		p := plan.Compute(fleetOf(t, `"901": {`+r.fleet+`}`), verified(r.node), r.opts)
		if len(p.Containers) != 1 {
			t.Fatalf("%d containers in the plan", len(p.Containers))
		}
		if diff := cmp.Diff(r.want, text(p.Containers[0])); diff != "" {
			t.Errorf("plan of %s (-want +got):\n%s", r.fleet, diff)
		}
	})
}

func TestGPUs(t *testing.T) {
	for _, r := range []row{
		{
			name:  "as it should be: nothing to do",
			fleet: `"gpu_assignment": "0,1"`,
			node:  node(running(given(0, 1), given(0, 1))),
		},
		{
			name:  "none, and has none",
			fleet: `"gpu_assignment": "none"`,
			node:  node(running(given(), given())),
		},
		{
			name:  "first time",
			fleet: `"gpu_assignment": "0,1"`,
			node:  node(running(given(), given())),
			want: []string{
				"check: GPUs 0, 1 on node pve1",
				"patch: add GPU 0, add GPU 1",
				"restart: effective GPUs none; desired 0, 1",
				"verify: GPUs 0, 1 and no other, after the restart",
			},
		},
		{
			name:  "exchanged",
			fleet: `"gpu_assignment": "1"`,
			node:  node(running(given(0), given(0))),
			want: []string{
				"check: GPU 1 on node pve1",
				"patch: add GPU 1, remove GPU 0",
				"restart: effective GPUs 0; desired 1",
				"verify: GPU 1 and no other, after the restart",
			},
		},
		{
			name:  "all taken away",
			fleet: `"gpu_assignment": "none"`,
			node:  node(running(given(0, 1), given(0, 1))),
			want: []string{
				"patch: remove GPU 0, remove GPU 1",
				"restart: effective GPUs 0, 1; desired none",
				"verify: no GPU, after the restart",
			},
		},
		{
			name:  "the conf was changed by somebody else, and what runs is right: no restart",
			fleet: `"gpu_assignment": "0"`,
			node:  node(running(given(0, 1), given(0))),
			want: []string{
				"check: GPU 0 on node pve1",
				"patch: remove GPU 1",
			},
		},
		{
			name:  "a GPU that is gone",
			fleet: `"gpu_assignment": "0"`,
			node:  node(running(given(-1, 0), given(-1, 0))),
			want: []string{
				"check: GPU 0 on node pve1",
				"patch: remove a GPU that is gone",
				"restart: effective GPUs one that is gone, 0; desired 0",
				"verify: GPU 0 and no other, after the restart",
			},
		},
		{
			name:  "shared devices are left of what was",
			fleet: `"gpu_assignment": "none"`,
			node: node(running(
				observed.Passthrough{Mode: observed.ModeRaw, Devices: []string{"/dev/nvidia-uvm", "/dev/nvidiactl"}},
				observed.Passthrough{Mode: observed.ModeRaw, Devices: []string{"/dev/nvidia-uvm", "/dev/nvidiactl"}})),
			want: []string{
				"patch: remove /dev/nvidia-uvm, /dev/nvidiactl",
				"restart: it still has /dev/nvidia-uvm, /dev/nvidiactl",
				"verify: no GPU, after the restart",
			},
		},
		{
			name:  "asked to verify",
			fleet: `"gpu_assignment": "1"`,
			node:  node(running(given(1), given(1))),
			opts:  plan.Options{Verify: true},
			want: []string{
				"check: GPU 1 on node pve1",
				"verify: GPU 1 and no other, as asked",
			},
		},
		{
			name:  "no GPU, on a node without: nothing to verify",
			fleet: `"gpu_assignment": "none"`,
			node:  observed.Node{Name: "pve1", Containers: []observed.Container{running(given(), given())}},
			opts:  plan.Options{Verify: true},
		},
	} {
		r.run(t)
	}
}

func TestVerificationIsRemembered(t *testing.T) {
	f := fleetOf(t, `"901": {"gpu_assignment": "0,1"}`)
	for _, tt := range []struct {
		name, stored string
		want         []string
	}{
		{"of this start", "boot:1:1 raw 0,1", nil},
		{"none", "", []string{"check: GPUs 0, 1 on node pve1", "verify: GPUs 0, 1 and no other: not verified since its start"}},
		{"of an earlier start", "boot:0:1 raw 0,1", []string{"check: GPUs 0, 1 on node pve1", "verify: GPUs 0, 1 and no other: not verified since its start"}},
		{"of other GPUs", "boot:1:1 raw 0", []string{"check: GPUs 0, 1 on node pve1", "verify: GPUs 0, 1 and no other: not verified since its start"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := &observed.Fleet{
				Nodes:    []observed.Node{node(running(given(0, 1), given(0, 1)))},
				Verified: map[int32]string{901: tt.stored},
			}
			if diff := cmp.Diff(tt.want, text(plan.Compute(f, o, plan.Options{}).Containers[0])); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
	if got := plan.Verification("boot:1:1", "native", nil); got != "boot:1:1 none none" {
		t.Errorf("Verification without GPUs = %q", got)
	}
}

func TestMode(t *testing.T) {
	native := observed.Passthrough{GPUs: refs(0), Mode: observed.ModeNative}
	mixed := observed.Passthrough{GPUs: refs(0), Mode: observed.ModeMixed}
	for _, r := range []row{
		{
			name:  "from raw to native: the devices stay the same, so nothing is restarted",
			fleet: `"gpu_assignment": "0", "passthrough_mode": "native"`,
			node:  node(running(given(0), given(0))),
			want: []string{
				"check: GPU 0 on node pve1",
				"patch: change mode from raw to native",
				"verify: GPU 0 and no other: not verified since its start",
			},
		},
		{
			name:  "from mixed to raw, and another GPU",
			fleet: `"gpu_assignment": "0,1"`,
			node:  node(running(mixed, mixed)),
			want: []string{
				"check: GPUs 0, 1 on node pve1",
				"patch: add GPU 1, change mode from mixed to raw",
				"restart: effective GPUs 0; desired 0, 1",
				"verify: GPUs 0, 1 and no other, after the restart",
			},
		},
		{
			name:  "native, and the first time",
			fleet: `"gpu_assignment": "0", "passthrough_mode": "native"`,
			node:  node(stopped(given())),
			want: []string{
				"check: GPU 0 on node pve1",
				"patch: add GPU 0",
				"note: it is stopped, and stays so: nothing in it is verified; apply --start starts containers that have GPUs",
			},
		},
		{
			name:  "no GPU has no mode",
			fleet: `"passthrough_mode": "native"`,
			node:  node(running(native, native)),
			want: []string{
				"patch: remove GPU 0",
				"restart: effective GPUs 0; desired none",
				"verify: no GPU, after the restart",
			},
		},
	} {
		r.run(t)
	}
}

func TestProblems(t *testing.T) {
	problem := func(kind, message string, line int, advice string) observed.Node {
		return node(with(running(given(0), given(0)), func(c *observed.Container) {
			c.Problems = []observed.Problem{{Kind: kind, Message: message, Line: line, Advice: advice}}
		}))
	}
	inEffect := func(kind, message string, line int) observed.Node {
		n := problem(kind, message, line, "")
		e := n.Containers[0].Effective
		e.Devices = slices.DeleteFunc(e.Devices, func(path string) bool { return path == "/dev/nvidia-uvm" })
		return n
	}
	patched := func(message string) []string {
		return []string{
			"check: GPU 0 on node pve1",
			"patch: mend: " + message,
			"restart: the running container has it too: " + message,
			"verify: GPU 0 and no other, after the restart",
		}
	}
	for _, r := range []row{
		{name: "wrong major", node: inEffect("wrong_major", "the rule allows major 243, the driver has 511", 12), want: patched("the rule allows major 243, the driver has 511 (line 12)")},
		{
			name: "wildcard rule: gives nothing to an unprivileged container",
			node: problem("wildcard_rule", "the rule allows every GPU", 9, ""),
			want: []string{"check: GPU 0 on node pve1", "patch: mend: the rule allows every GPU (line 9)"},
		},
		{
			name: "a rule that only a person can mend: told",
			node: problem("wildcard_rule", "the rule allows NVIDIA devices among all others", 9, "replace it by one rule for each device"),
			want: []string{"note: the rule allows NVIDIA devices among all others (line 9): replace it by one rule for each device"},
		},
		{name: "control device not given", node: inEffect("control_device_not_given", "/dev/nvidia-uvm is not given", 0), want: patched("/dev/nvidia-uvm is not given")},
		{name: "rule missing", node: inEffect("rule_missing", "no rule allows /dev/nvidia0", 4), want: patched("no rule allows /dev/nvidia0 (line 4)")},
		{
			name: "mount missing: gives nothing to an unprivileged container",
			node: problem("mount_missing", "/dev/nvidia1 is allowed but not mounted", 4, ""),
			want: []string{"check: GPU 0 on node pve1", "patch: mend: /dev/nvidia1 is allowed but not mounted (line 4)"},
		},
		{
			name: "an entry without effect goes",
			node: problem("no_effect", "the rule is for cgroup v1", 4, ""),
			want: []string{"check: GPU 0 on node pve1", "patch: mend: the rule is for cgroup v1 (line 4)"},
		},
		{name: "device gone", node: inEffect("device_gone", "/dev/nvidia7 is not on the node", 4), want: patched("/dev/nvidia7 is not on the node (line 4)")},
		{
			name: "duplicate entry: mended without a restart",
			node: problem("duplicate_entry", "/dev/nvidia0 is given twice", 6, ""),
			want: []string{"check: GPU 0 on node pve1", "patch: mend: /dev/nvidia0 is given twice (line 6)"},
		},
		{
			name: "mode conflict: mended without a restart",
			node: problem("mode_conflict", "/dev/nvidia0 is given by dev0 and by a raw line", 6, ""),
			want: []string{"check: GPU 0 on node pve1", "patch: mend: /dev/nvidia0 is given by dev0 and by a raw line (line 6)"},
		},
		{
			name: "ghost file that a restart would not mend: told",
			node: problem("ghost_file", "/dev/nvidia-modeset is no device", 0, "restart the container once it exists on the host"),
			want: []string{"note: /dev/nvidia-modeset is no device: restart the container once it exists on the host"},
		},
		{
			name: "ghost file that a restart mends",
			node: node(with(running(given(0), given(0)), func(c *observed.Container) {
				c.RestartPending = true
				c.Problems = []observed.Problem{{Kind: "ghost_file", Message: "/dev/nvidia-uvm is no device", Advice: "restart the container once it exists on the host"}}
			})),
			want: []string{
				"check: GPU 0 on node pve1",
				"restart: the running container has it too: /dev/nvidia-uvm is no device",
				"verify: GPU 0 and no other, after the restart",
			},
		},
		{
			name: "entry that the restart would bring into force",
			node: node(with(running(given(), given()), func(c *observed.Container) {
				c.Problems = []observed.Problem{{Kind: "entry_in_pending", Message: "raw lines in [pve:pending] replace all raw lines above when the container stops", Line: 20, Advice: "remove the lines from [pve:pending]"}}
			})),
			want: []string{
				"ERROR: a restart would bring this into force: raw lines in [pve:pending] replace all raw lines above when the container stops (line 20): remove the lines from [pve:pending]",
			},
		},
		{
			name: "entry in a snapshot: told, not touched",
			node: problem("entry_in_snapshot", "an entry for /dev/nvidia1 stands in snapshot s1", 30, "it comes back with a rollback"),
			want: []string{"note: an entry for /dev/nvidia1 stands in snapshot s1 (line 30): it comes back with a rollback"},
		},
		{
			name: "unreadable: not planned",
			node: problem("unreadable", "the conf cannot be read: input/output error", 0, ""),
			want: []string{"ERROR: the conf cannot be read: input/output error"},
		},
		{
			name: "a kind that this version does not know, and no apply mends",
			node: problem("something_new", "news", 1, "ask"),
			want: []string{"note: news (line 1): ask"},
		},
		{
			name: "a kind that this version does not know, and an apply mends",
			node: problem("something_new", "news", 1, ""),
			want: []string{"check: GPU 0 on node pve1", "patch: mend: news (line 1)"},
		},
	} {
		r.fleet = `"gpu_assignment": "0"`
		r.run(t)
	}
}

// The conf was edited while the container ran on: what the edit brought is mended before it comes into force.
func TestProblemsThatAreNotInForce(t *testing.T) {
	edited := func(c observed.Container, kind, message string) observed.Node {
		return node(with(c, func(c *observed.Container) {
			c.RestartPending = true
			c.Problems = []observed.Problem{{Kind: kind, Message: message, Line: 9}}
		}))
	}
	privileged := with(running(given(0), given(0)), func(c *observed.Container) { c.Unprivileged = false })
	controlDevice := observed.Passthrough{Mode: observed.ModeRaw, Devices: []string{"/dev/nvidiactl"}}
	for _, r := range []row{
		{
			name:  "a rule for a major that is gone",
			fleet: `"gpu_assignment": "0"`,
			node:  edited(running(given(0), given(0)), "wrong_major", "the rule is for major 243"),
			want:  []string{"check: GPU 0 on node pve1", "patch: mend: the rule is for major 243 (line 9)"},
		},
		{
			name:  "a rule for a major that is gone, which changes nothing that could be pending",
			fleet: `"gpu_assignment": "0"`,
			node: withIn(edited(running(given(0), given(0)), "wrong_major", "the rule is for major 243"), func(c *observed.Container) {
				c.RestartPending = false
			}),
			want: []string{"check: GPU 0 on node pve1", "patch: mend: the rule is for major 243 (line 9)"},
		},
		{
			name:  "a rule for a major that is gone, where no GPU is assigned",
			fleet: `"gpu_assignment": "none"`,
			node:  edited(running(given(), given()), "wrong_major", "the rule is for major 243"),
			want:  []string{"patch: mend: the rule is for major 243 (line 9)"},
		},
		{
			name:  "a GPU that it never had",
			fleet: `"gpu_assignment": "none"`,
			node:  edited(running(given(1), given()), "rule_missing", "no rule allows /dev/nvidia1"),
			want:  []string{"patch: remove GPU 1, mend: no rule allows /dev/nvidia1 (line 9)"},
		},
		{
			name:  "a shared device that it never had",
			fleet: `"gpu_assignment": "none"`,
			node:  edited(running(controlDevice, given()), "rule_missing", "no rule allows /dev/nvidiactl"),
			want:  []string{"patch: remove /dev/nvidiactl, mend: no rule allows /dev/nvidiactl (line 9)"},
		},
		{
			name:  "a wildcard rule that a privileged container has not",
			fleet: `"gpu_assignment": "0"`,
			node:  edited(privileged, "wildcard_rule", "the rule allows every GPU"),
			want: []string{
				"check: GPU 0 on node pve1",
				"patch: mend: the rule allows every GPU (line 9)",
				"note: it is privileged: with GPUs it is no security boundary",
			},
		},
		{
			name:  "a device that it lacks besides",
			fleet: `"gpu_assignment": "0"`,
			node: withIn(edited(running(given(0), given(0)), "duplicate_entry", "/dev/nvidia0 is given twice"), func(c *observed.Container) {
				c.Effective.Devices = []string{"/dev/nvidia0", "/dev/nvidiactl"}
			}),
			want: []string{
				"check: GPU 0 on node pve1",
				"patch: mend: /dev/nvidia0 is given twice (line 9)",
				"restart: the conf has changed since it was started: restart pending",
				"verify: GPU 0 and no other, after the restart",
			},
		},
	} {
		r.run(t)
	}
}

// The same rules in a privileged container, which can make device nodes, give it devices.
func TestRulesOfPrivilegedContainers(t *testing.T) {
	for _, r := range []row{
		{
			name: "wildcard rule",
			node: node(with(running(given(0), given(0)), func(c *observed.Container) {
				c.Unprivileged = false
				c.Problems = []observed.Problem{{Kind: "wildcard_rule", Message: "the rule allows every GPU", Line: 9}}
			})),
			want: []string{
				"check: GPU 0 on node pve1",
				"patch: mend: the rule allows every GPU (line 9)",
				"restart: the running container has it too: the rule allows every GPU (line 9)",
				"verify: GPU 0 and no other, after the restart",
				"note: it is privileged: with GPUs it is no security boundary",
			},
		},
		{
			name: "rule without mount",
			node: node(with(running(given(0), given(0)), func(c *observed.Container) {
				c.Unprivileged = false
				c.Problems = []observed.Problem{{Kind: "mount_missing", Message: "the rule is for a device that the conf does not give", Line: 9}}
			})),
			want: []string{
				"check: GPU 0 on node pve1",
				"patch: mend: the rule is for a device that the conf does not give (line 9)",
				"restart: the running container has it too: the rule is for a device that the conf does not give (line 9)",
				"verify: GPU 0 and no other, after the restart",
				"note: it is privileged: with GPUs it is no security boundary",
			},
		},
	} {
		r.fleet = `"gpu_assignment": "0"`
		r.run(t)
	}
}

func TestGPUsThatCannotBeGiven(t *testing.T) {
	vfio := node(running(given(), given()))
	vfio.GPUs[1] = observed.GPU{Index: -1, PCIAddress: "0000:02:00.0", Driver: "vfio-pci"}
	bound := node(running(given(), given()))
	bound.GPUs[1].Driver = "vfio-pci"
	unloaded := node(running(given(), given()))
	unloaded.DriverVersion = ""
	first := node(running(given(0), given(0)))
	first.GPUs = []observed.GPU{
		{Index: -1, PCIAddress: "0000:01:00.0", Driver: "vfio-pci"},
		{Index: 0, PCIAddress: "0000:02:00.0", Driver: "nvidia"},
		{Index: -1, PCIAddress: "0000:03:00.0", Driver: "none"},
	}
	none := observed.Node{Name: "pve1", DriverVersion: "580.76.05", Containers: []observed.Container{running(given(), given())}}
	for _, r := range []row{
		{name: "no such GPU", fleet: `"gpu_assignment": "3"`, node: node(running(given(), given())), want: []string{"ERROR: node pve1 has no GPU 3; it has 0, 1"}},
		{name: "one of two", fleet: `"gpu_assignment": "0,2,3"`, node: node(running(given(), given())), want: []string{"ERROR: node pve1 has no GPU 2; it has 0, 1", "ERROR: node pve1 has no GPU 3; it has 0, 1"}},
		{name: "node without GPUs", fleet: `"gpu_assignment": "0"`, node: none, want: []string{"ERROR: node pve1 has no GPU 0; it has none"}},
		{name: "vfio-pci, so it has no index", fleet: `"gpu_assignment": "0,1"`, node: vfio, want: []string{"ERROR: node pve1 has no GPU 1; it has 0; 0000:02:00.0 is bound to vfio-pci"}},
		{name: "vfio-pci with an index", fleet: `"gpu_assignment": "0,1"`, node: bound, want: []string{"ERROR: GPU 1 of node pve1 is bound to vfio-pci; bind it to nvidia, or assign another"}},
		{name: "vfio-pci before an assigned one", fleet: `"gpu_assignment": "0"`, node: first, want: []string{"note: 0000:01:00.0 is bound to vfio-pci: the indexes of node pve1 count without it"}},
		{name: "driver not loaded", fleet: `"gpu_assignment": "0,1"`, node: unloaded, want: []string{"ERROR: node pve1 has not loaded the nvidia driver, so it cannot give GPUs 0, 1; load it with modprobe nvidia"}},
		{name: "driver not loaded, and nothing assigned", fleet: `"gpu_assignment": "none"`, node: unloaded, want: nil},
	} {
		r.run(t)
	}
}

func TestStates(t *testing.T) {
	set := func(c observed.Container, change func(*observed.Container)) observed.Node {
		return node(with(c, change))
	}
	for _, r := range []row{
		{
			name:  "stopped: patched, not started",
			fleet: `"gpu_assignment": "1", "health_check": {"command": "true"}`,
			node:  node(stopped(given(0))),
			want: []string{
				"check: GPU 1 on node pve1",
				"patch: add GPU 1, remove GPU 0",
				"note: it is stopped, and stays so: nothing in it is verified; apply --start starts containers that have GPUs",
			},
		},
		{
			name:  "stopped, started on demand",
			fleet: `"gpu_assignment": "1", "health_check": {"command": "true"}`,
			node:  node(stopped(given(1))),
			opts:  plan.Options{Start: true},
			want: []string{
				"check: GPU 1 on node pve1",
				"restart: start it: it is stopped",
				"verify: GPU 1 and no other, after the restart",
				"health: true: at most 3 tries, 5s apart",
			},
		},
		{
			name:  "stopped and without GPUs: not started on demand",
			fleet: `"gpu_assignment": "none"`,
			node:  node(stopped(given())),
			opts:  plan.Options{Start: true},
			want:  nil,
		},
		{
			name:  "template: patched, never started",
			fleet: `"gpu_assignment": "0"`,
			node:  set(stopped(given()), func(c *observed.Container) { c.Template = true }),
			opts:  plan.Options{Start: true},
			want: []string{
				"check: GPU 0 on node pve1",
				"patch: add GPU 0",
				"note: it is a template: never started",
			},
		},
		{
			name:  "locked, and something to change",
			fleet: `"gpu_assignment": "1"`,
			node:  set(running(given(0), given(0)), func(c *observed.Container) { c.Lock = "backup" }),
			want:  []string{"ERROR: its conf is locked (lock: backup): wait until that ends; if nothing is under way, run pct unlock 901"},
		},
		{
			name:  "locked, and nothing to change",
			fleet: `"gpu_assignment": "1"`,
			node:  set(running(given(1), given(1)), func(c *observed.Container) { c.Lock = "backup" }),
			want:  nil,
		},
		{
			name:  "locked, and only to be verified",
			fleet: `"gpu_assignment": "1"`,
			node:  set(running(given(1), given(1)), func(c *observed.Container) { c.Lock = "backup" }),
			opts:  plan.Options{Verify: true},
			want:  []string{"check: GPU 1 on node pve1", "verify: GPU 1 and no other, as asked"},
		},
		{
			name:  "stopping",
			fleet: `"gpu_assignment": "1"`,
			node:  set(running(given(0), given(0)), func(c *observed.Container) { c.State = "stopping" }),
			want:  []string{"ERROR: it is stopping; plan again when it is running or stopped"},
		},
		{
			name:  "starting, and waited for",
			fleet: `"gpu_assignment": "1"`,
			node: set(running(given(1), given(1)), func(c *observed.Container) {
				c.State, c.Instance, c.Effective = "starting", "", nil
			}),
			want: []string{"check: GPU 1 on node pve1", "verify: GPU 1 and no other: not verified since its start"},
		},
		{
			name:  "frozen",
			fleet: `"gpu_assignment": "1"`,
			node:  set(running(given(0), given(0)), func(c *observed.Container) { c.State = "frozen" }),
			want:  []string{"ERROR: it is frozen; run lxc-unfreeze -n 901 on node pve1"},
		},
		{
			name:  "frozen, and nothing to do",
			fleet: `"gpu_assignment": "1"`,
			node:  set(running(given(1), given(1)), func(c *observed.Container) { c.State = "frozen" }),
			want:  nil,
		},
		{
			name:  "privileged with GPUs",
			fleet: `"gpu_assignment": "1"`,
			node: set(running(given(1), given(1)), func(c *observed.Container) {
				c.Unprivileged = false
				c.Problems = []observed.Problem{{Kind: "privileged", Message: "said once, not twice"}}
			}),
			want: []string{"note: it is privileged: with GPUs it is no security boundary"},
		},
		{
			name:  "privileged without",
			fleet: `"gpu_assignment": "none"`,
			node:  set(running(given(), given()), func(c *observed.Container) { c.Unprivileged = false }),
			want:  nil,
		},
		{
			name:  "what runs cannot be read: restart only if one is pending",
			fleet: `"gpu_assignment": "1"`,
			node:  set(running(given(1), given(1)), func(c *observed.Container) { c.Effective, c.RestartPending = nil, true }),
			want: []string{
				"check: GPU 1 on node pve1",
				"restart: what it has cannot be read, so only a restart makes sure",
				"verify: GPU 1 and no other, after the restart",
			},
		},
	} {
		r.run(t)
	}
}

func TestFeatures(t *testing.T) {
	scripts := plan.Options{Scripts: map[string]bool{"docker": true, "vllm": true, "nvidia": true}}
	const declared = `"gpu_assignment": "0", "features": ["vllm", "nvidia", "trusted_ca", "docker"], "health_check": {"command": "curl -f localhost\nexit", "retries": 5, "interval": 2}`
	for _, r := range []row{
		{
			name: "with scripts, in the order of the file", fleet: declared, node: node(running(given(0), given(0))), opts: scripts,
			want: []string{
				"install driver: 580.76.05, which node pve1 has loaded, unless it is there",
				"verify driver: it works, and shows exactly what is assigned",
				"feature vllm: script vllm.sh, unless it has succeeded in there before",
				"feature docker: script docker.sh, unless it has succeeded in there before",
				"health: curl -f localhost ...: at most 5 tries, 2s apart",
				"note: feature trusted_ca has no script in features_dir: not managed",
			},
		},
		{
			name: "without scripts a plan costs nothing", fleet: `"gpu_assignment": "0", "features": ["vllm"]`, node: node(running(given(0), given(0))),
			want: []string{"note: feature vllm has no script in features_dir: not managed"},
		},
		{
			name: "stopped: nothing is run", fleet: `"features": ["vllm"], "health_check": {"command": "true"}`, node: node(stopped(given())), opts: scripts,
			want: []string{"note: it is stopped, and stays so: nothing in it is verified; apply --start starts containers that have GPUs"},
		},
	} {
		r.run(t)
	}
}

func TestWhereItIs(t *testing.T) {
	at := func(name string, ctids ...int32) observed.Node {
		n := observed.Node{Name: name}
		for _, ctid := range ctids {
			n.Containers = append(n.Containers, observed.Container{CTID: ctid, State: observed.StateStopped})
		}
		return n
	}
	vm := func(n observed.Node, ctid int32) observed.Node {
		n.VMs = []int32{ctid}
		return n
	}
	silent := func(name string) observed.Node {
		return observed.Node{Name: name, Err: errors.New("connection refused")}
	}
	for _, tt := range []struct {
		name  string
		pin   string
		nodes []observed.Node
		node  string
		want  []string
	}{
		{name: "found", nodes: []observed.Node{at("pve1", 900), at("pve2", 901)}, node: "pve2"},
		{name: "found although a node is silent", nodes: []observed.Node{silent("pve1"), at("pve2", 901)}, node: "pve2"},
		{name: "on several", nodes: []observed.Node{at("pve1", 901), at("pve2", 901)}, want: []string{`it is on several nodes: pve1, pve2; say which one is meant with "node" in the fleet file`}},
		{name: "on several, pinned", pin: "pve1", nodes: []observed.Node{at("pve1", 901), at("pve2", 901)}, node: "pve1"},
		{name: "on none", nodes: []observed.Node{at("pve1"), at("pve2")}, want: []string{"no node has it; asked: pve1, pve2; create it, or take it out of the fleet file"}},
		{name: "on none that answers", nodes: []observed.Node{at("pve1"), silent("pve2")}, want: []string{"no node that answers has it (pve1); could not be asked: pve2 (connection refused)"}},
		{name: "nobody answers", nodes: []observed.Node{silent("pve1"), silent("pve2")}, want: []string{"no node could be asked for it: pve1 (connection refused), pve2 (connection refused)"}},
		{name: "no nodes", want: []string{"no node is configured that could have it"}},
		{name: "a VM", nodes: []observed.Node{at("pve1"), vm(at("pve2"), 901)}, want: []string{"it is a VM on node pve2; Phoenix manages LXC containers, take it out of the fleet file"}},
		{name: "pinned elsewhere", pin: "pve1", nodes: []observed.Node{at("pve1"), at("pve2", 901)}, want: []string{`the fleet file puts it on node pve1, but it is on pve2; move it, or change "node"`}},
		{name: "pinned, and on none", pin: "pve1", nodes: []observed.Node{at("pve1"), at("pve2")}, want: []string{`node pve1 does not have it, where the fleet file puts it; create it, or change "node"`}},
		{name: "pinned, and a VM", pin: "pve1", nodes: []observed.Node{vm(at("pve1"), 901)}, want: []string{"it is a VM on node pve1; Phoenix manages LXC containers, take it out of the fleet file"}},
		{name: "pinned to a silent node", pin: "pve1", nodes: []observed.Node{silent("pve1"), at("pve2", 901)}, want: []string{"its node pve1 could not be asked: connection refused"}},
		{name: "pinned to no node", pin: "pve9", nodes: []observed.Node{at("pve1"), at("pve2")}, want: []string{"the fleet file puts it on node pve9, which is not configured; configured: pve1, pve2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			members := ""
			if tt.pin != "" {
				members = `"node": "` + tt.pin + `"`
			}
			p := plan.Compute(fleetOf(t, `"901": {`+members+`}`), &observed.Fleet{Nodes: tt.nodes}, plan.Options{})
			got := p.Containers[0]
			if got.Node != tt.node || !slices.Equal(got.Errors, tt.want) {
				t.Errorf("node %q, errors %q; want %q, %q", got.Node, got.Errors, tt.node, tt.want)
			}
		})
	}
}

func TestOrder(t *testing.T) {
	f := fleetOf(t, `
		"900": {"dependencies": ["905"]},
		"901": {"clone_from_ctid": "900"},
		"902": {"clone_from_ctid": "900", "dependencies": ["901", "1002"]},
		"903": {},
		"905": {}`)
	type place struct {
		CTID  int32
		After []int32
	}
	for _, tt := range []struct {
		name  string
		ctids []int32
		want  []place
	}{
		{"all", nil, []place{{903, nil}, {905, nil}, {900, []int32{905}}, {901, []int32{900}}, {902, []int32{900, 901}}}},
		{"some; what is between still counts", []int32{902, 905, 902}, []place{{905, nil}, {902, []int32{905}}}},
		{"one", []int32{902}, []place{{902, nil}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := plan.Compute(f, &observed.Fleet{}, plan.Options{CTIDs: tt.ctids})
			var got []place
			for _, c := range p.Containers {
				got = append(got, place{c.CTID, c.After})
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}

// A cycle does not come from a file without errors; a plan with one must still end.
func TestCycle(t *testing.T) {
	f := &fleet.Fleet{Containers: []fleet.Container{
		{CTID: 901, CloneFrom: 902}, {CTID: 902, CloneFrom: 901}, {CTID: 903}, {CTID: 904, Dependencies: []int32{904}},
	}}
	p := plan.Compute(f, &observed.Fleet{Nodes: []observed.Node{{Name: "pve1"}}}, plan.Options{})
	var got []int32
	for _, c := range p.Containers {
		got = append(got, c.CTID)
	}
	if want := []int32{903, 904, 901, 902}; !slices.Equal(got, want) {
		t.Errorf("order %v; want %v", got, want)
	}
	want := []string{"it waits for itself through clone_from_ctid or dependencies; validate the fleet file"}
	if got := p.Containers[3].Errors; !slices.Equal(got, want) {
		t.Errorf("errors of 902: %q; want %q", got, want)
	}
}

func TestWarnings(t *testing.T) {
	f, _ := fleet.Parse("f", []byte(`{"nvidia_driver_version": "580.76.05", "lxc_configs": {"901": {"gpu_assignment": "0"}}}`))
	n := node(running(given(0), given(0)))
	n.DriverVersion = "570.86.10"
	p := plan.Compute(f, verified(n), plan.Options{CTIDs: []int32{901, 950, 950}})
	want := []string{
		"CTID 950: it is not in the fleet file, so nothing is planned for it",
		"node pve1 runs driver 570.86.10; the fleet file says 580.76.05",
	}
	if diff := cmp.Diff(want, p.Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	n.DriverVersion = ""
	if p := plan.Compute(f, verified(n), plan.Options{}); len(p.Warnings) > 0 || len(p.Containers[0].Errors) != 1 {
		t.Errorf("without driver: warnings %q, errors %q; want the error alone", p.Warnings, p.Containers[0].Errors)
	}
}

// Everything but the steps, which the other tests have.
func TestWhatItWasPlannedAgainst(t *testing.T) {
	f := fleetOf(t, `"901": {"name": "vllm", "gpu_assignment": "1", "passthrough_mode": "native"}`)
	p := plan.Compute(f, verified(node(running(given(0), given(0)))), plan.Options{})
	want := &plan.Plan{
		FleetSHA256: f.SHA256,
		Containers: []plan.Container{{
			CTID: 901, Name: "vllm", Node: "pve1",
			Assignment: "1", Configured: []observed.Ref{{Index: 0, PCIAddress: "0000:01:00.0"}}, Capabilities: []string{"compute"},
			Desired: []observed.Ref{{Index: 1, PCIAddress: "0000:02:00.0"}}, Mode: "native", Digest: "d901", Instance: "boot:1:1",
		}},
	}
	if diff := cmp.Diff(want, p, cmpopts.IgnoreFields(plan.Container{}, "Steps")); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}
