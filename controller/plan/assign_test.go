package plan_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

func uuid(i int) string { return fmt.Sprintf("GPU-%d%d000000-0000-0000-0000-000000000000", i%2, i) }

// gpuOf is a GPU of a node of many: 0 and 1, 2 and 3, ... are linked, and half of them are on each NUMA node.
func gpuOf(i, of int) observed.GPU {
	return observed.GPU{
		Index: i, UUID: uuid(i), PCIAddress: address(i), Minor: i, Driver: "nvidia", NUMANode: i * 2 / of, NVLinkPeers: []string{address(i ^ 1)},
	}
}

func address(i int) string { return fmt.Sprintf("0000:%02x:00.0", i+1) }

// migNode is pve1 with four GPUs, of which the last is split into three MIG devices, and these containers.
func migNode(containers ...observed.Container) observed.Node {
	n := observed.Node{Name: "pve1", DriverVersion: "580.76.05", Containers: containers}
	for i := range 4 {
		n.GPUs = append(n.GPUs, gpuOf(i, 4))
	}
	n.GPUs[3].MIGEnabled = true
	for i, profile := range []string{"2g.20gb", "1g.10gb", "1g.10gb"} {
		n.GPUs[3].MIG = append(n.GPUs[3].MIG, observed.MIGDevice{
			Index: i, UUID: fmt.Sprintf("MIG-%d0000000-0000-0000-0000-000000000000", i), GPUInstance: i + 1, Profile: profile,
		})
	}
	return n
}

// has is a stopped container with what the indexes and, by index:device, MIG devices of migNode are.
func has(ctid int32, words ...string) observed.Container {
	n := migNode()
	c := observed.Container{CTID: ctid, State: observed.StateStopped, Unprivileged: true}
	for _, word := range words {
		var gpu, mig int
		if _, err := fmt.Sscanf(word, "%d:%d", &gpu, &mig); err == nil {
			c.Configured.GPUs = append(c.Configured.GPUs, n.GPUs[gpu].Refs()[mig])
			continue
		}
		fmt.Sscan(word, &gpu)
		c.Configured.GPUs = append(c.Configured.GPUs, n.GPUs[gpu].Ref())
	}
	return c
}

// assigned writes an assignment as a person would: what it comes to, then errors and warnings, one a line.
func assigned(a plan.Assigned) []string {
	lines := []string{observed.List(a.GPUs)}
	for _, e := range a.Errors {
		lines = append(lines, "ERROR: "+e)
	}
	for _, w := range a.Warnings {
		lines = append(lines, "warning: "+w)
	}
	return lines
}

func TestAssign(t *testing.T) {
	vfio := func(n observed.Node) observed.Node {
		n.GPUs[1] = observed.GPU{Index: -1, PCIAddress: address(1), Driver: "vfio-pci"}
		return n
	}
	faulty := func(n observed.Node, gpu int) observed.Node {
		n.GPUs[gpu].Fault = "XID 79, fallen off the bus: reboot the node"
		return n
	}
	withVMs := func(n observed.Node, gpu int, vms ...int32) observed.Node {
		n.GPUs[gpu].VMs = vms
		return n
	}
	for _, tt := range []struct {
		name  string
		fleet string // members of 901; or the whole of lxc_configs if it has its number
		node  observed.Node
		want  []string
	}{
		{"UUID", `"gpu_assignment": "` + uuid(2) + `"`, migNode(has(901)), []string{"2"}},
		{"beginning of a UUID", `"gpu_assignment": "GPU-12"`, migNode(has(901)), []string{"none", "ERROR: node pve1 has no GPU-12; it has " +
			uuid(0) + " (GPU 0), " + uuid(1) + " (GPU 1), " + uuid(2) + " (GPU 2), " + uuid(3) + " (GPU 3)"}},
		{"beginning of several", `"gpu_assignment": "GPU-0"`, migNode(has(901)), []string{"none",
			"ERROR: GPU-0 is how the UUIDs of several GPUs of node pve1 begin: " + uuid(0) + " (GPU 0), " + uuid(2) + " (GPU 2); write more of it"}},
		{"beginning that is unique", `"gpu_assignment": "GPU-02"`, migNode(has(901)), []string{"2"}},
		{"PCI address", `"gpu_assignment": "02:00.0"`, migNode(has(901)), []string{"1"}},
		{"no such slot", `"gpu_assignment": "09:00.0"`, vfio(migNode(has(901))), []string{"none",
			"ERROR: node pve1 has no 0000:09:00.0; it has 0000:01:00.0 (GPU 0), 0000:03:00.0 (GPU 2), 0000:04:00.0 (GPU 3); 0000:02:00.0 is bound to vfio-pci"}},
		{"slot of a GPU on vfio-pci", `"gpu_assignment": "02:00.0"`, vfio(migNode(has(901))), []string{"none",
			"ERROR: 0000:02:00.0 of node pve1 is bound to vfio-pci; bind it to nvidia, or assign another"}},
		{"the same in two ways", `"gpu_assignment": "1,02:00.0"`, migNode(has(901)), []string{"1",
			"ERROR: GPU 1 and 0000:02:00.0 are the same, GPU 1 of node pve1; write one of them"}},
		{"MIG by index", `"gpu_assignment": "3:1"`, migNode(has(901)), []string{"3 MIG 1 (1g.10gb)"}},
		{"MIG by UUID", `"gpu_assignment": "MIG-1"`, migNode(has(901)), []string{"3 MIG 1 (1g.10gb)"}},
		{"MIG that is not there", `"gpu_assignment": "3:7"`, migNode(has(901)), []string{"none",
			"ERROR: GPU 3 of node pve1 has no MIG device 7; it has 3:0 (2g.20gb), 3:1 (1g.10gb), 3:2 (1g.10gb)"}},
		{"MIG of a GPU that is not split", `"gpu_assignment": "0:1"`, migNode(has(901)), []string{"none",
			"ERROR: GPU 0 of node pve1 is not split by MIG, so it has no MIG device 1"}},
		{"whole GPU that is split", `"gpu_assignment": "3"`, migNode(has(901)), []string{"none",
			"ERROR: GPU 3 of node pve1 is split by MIG, so it can be given by its MIG devices only: 3:0 (2g.20gb), 3:1 (1g.10gb), 3:2 (1g.10gb)"}},
		{"profile", `"gpu_assignment": "1g.10gb"`, migNode(has(901)), []string{"3 MIG 1 (1g.10gb)"}},
		{"profile, and the first is taken", `"gpu_assignment": "1g.10gb"`, migNode(has(901), has(950, "3:1")), []string{"3 MIG 2 (1g.10gb)"}},
		{"profile twice", `"gpu_assignment": "1g.10gb,1g.10gb"`, migNode(has(901)), []string{"3 MIG 1 (1g.10gb), 3 MIG 2 (1g.10gb)"}},
		{"profile once too often", `"gpu_assignment": "2g.20gb"`, migNode(has(901), has(950, "3:0")), []string{"none",
			"ERROR: node pve1 has no free MIG device 2g.20gb; it has 3:0 (2g.20gb, CTID 950), 3:1 (1g.10gb, free), 3:2 (1g.10gb, free)"}},
		{"profile is kept", `"gpu_assignment": "1g.10gb"`, migNode(has(901, "3:2")), []string{"3 MIG 2 (1g.10gb)"}},
		{"all", `"gpu_assignment": "all"`, migNode(has(901)), []string{"0, 1, 2, 3 MIG 0 (2g.20gb), 3 MIG 1 (1g.10gb), 3 MIG 2 (1g.10gb)"}},
		{"all but one", `"gpu_assignment": "all"`, vfio(migNode(has(901))), []string{"0, 2, 3 MIG 0 (2g.20gb), 3 MIG 1 (1g.10gb), 3 MIG 2 (1g.10gb)",
			`warning: "all" is without 0000:02:00.0 of node pve1, which is bound to vfio-pci`}},
		{"all but one, exclusive", `"gpu_assignment": "all", "gpu_policy": "exclusive"`, vfio(migNode(has(901))), []string{"none",
			`ERROR: "all" includes 0000:02:00.0, which is bound to vfio-pci`}},
		{"any", `"gpu_assignment": "any:1"`, migNode(has(901)), []string{"0"}},
		{"any: the one that is shared least", `"gpu_assignment": "any:1"`, migNode(has(901), has(950, "0"), has(951, "1")), []string{"2"}},
		{"any: linked ones", `"gpu_assignment": "any:2"`, migNode(has(901), has(950, "0")), []string{"1, 2"}},
		{"any: linked to one that is named", `"gpu_assignment": "1,any:1"`, migNode(has(901)), []string{"0, 1"}},
		{"any: kept", `"gpu_assignment": "any:1"`, migNode(has(901, "2"), has(950, "2")), []string{"2",
			"warning: GPU 2 of node pve1 is CTID 950's too, which is not in the fleet file"}},
		{"any: too many", `"gpu_assignment": "any:4"`, vfio(migNode(has(901))), []string{"none",
			"ERROR: node pve1 has 2 GPUs left to pick from, and 4 are to be picked; 0000:02:00.0 is bound to vfio-pci; GPU 3 is split by MIG"}},
		{"unmanaged container, shared", `"gpu_assignment": "0"`, migNode(has(901), has(950, "0")), []string{"0",
			"warning: GPU 0 of node pve1 is CTID 950's too, which is not in the fleet file"}},
		{"unmanaged container, exclusive", `"gpu_assignment": "0", "gpu_policy": "exclusive"`, migNode(has(901), has(950, "0")), []string{"none",
			"ERROR: GPU 0 of node pve1 cannot be exclusive: CTID 950, which is not in the fleet file, has it"}},
		{"after one that is exclusive", `"900": {"gpu_assignment": "0", "gpu_policy": "exclusive"}, "901": {"gpu_assignment": "0"}`,
			migNode(has(900), has(901)), []string{"none", "ERROR: GPU 0 of node pve1 is CTID 900's alone (gpu_policy exclusive)"}},
		{"exclusive after another", `"900": {"gpu_assignment": "0"}, "901": {"gpu_assignment": "0", "gpu_policy": "exclusive"}`,
			migNode(has(900), has(901)), []string{"none", "ERROR: GPU 0 of node pve1 cannot be exclusive: it is assigned to CTID 900 too"}},
		{"a pick makes way for an exclusive one", `"901": {"gpu_assignment": "any:1"}, "902": {"gpu_assignment": "0", "gpu_policy": "exclusive"}`,
			migNode(has(901, "0"), has(902)), []string{"1"}},
		{"an exclusive pick comes before a shared one", `"901": {"gpu_assignment": "any:3"}, "902": {"gpu_assignment": "any:1", "gpu_policy": "exclusive"}`,
			migNode(has(901), has(902)), []string{"none", "ERROR: node pve1 has 2 GPUs left to pick from, and 3 are to be picked; " +
				"GPU 0 of node pve1 is CTID 902's alone (gpu_policy exclusive); GPU 3 is split by MIG"}},
		{"not fit, and not had before", `"gpu_assignment": "0"`, faulty(migNode(has(901)), 0), []string{"none",
			"ERROR: GPU 0 of node pve1 is given to no container anew: XID 79, fallen off the bus: reboot the node"}},
		{"not fit, and had before", `"gpu_assignment": "0"`, faulty(migNode(has(901, "0")), 0), []string{"0"}},
		{"a VM's too", `"gpu_assignment": "0"`, withVMs(migNode(has(901)), 0, 300), []string{"0",
			"warning: GPU 0 of node pve1 is in the conf of VM 300 too (hostpci), whose start would take it from CTID 901"}},
		{"several VMs' too, exclusive", `"gpu_assignment": "0", "gpu_policy": "exclusive"`, withVMs(migNode(has(901, "0")), 0, 300, 301), []string{"none",
			"ERROR: GPU 0 of node pve1 cannot be exclusive: it is in the conf of VMs 300, 301 (hostpci), whose start would take it from CTID 901"}},
		{"a VM's too, its MIG devices told once", `"gpu_assignment": "3:0,3:1"`, withVMs(migNode(has(901)), 3, 300), []string{
			"3 MIG 0 (2g.20gb), 3 MIG 1 (1g.10gb)",
			"warning: GPU 3 of node pve1 is in the conf of VM 300 too (hostpci), whose start would take it from CTID 901"}},
		{"another GPU is a VM's", `"gpu_assignment": "0"`, withVMs(migNode(has(901)), 1, 300), []string{"0"}},
		{"a VM's: not picked while another is there", `"gpu_assignment": "any:1"`,
			withVMs(migNode(has(901), has(950, "1"), has(951, "2")), 0, 300), []string{"1",
				"warning: GPU 1 of node pve1 is CTID 950's too, which is not in the fleet file"}},
		{"a VM's: not picked, be it the linked one", `"gpu_assignment": "any:2"`, withVMs(migNode(has(901)), 1, 300), []string{"0, 2"}},
		{"a VM's: picked where no other is there", `"gpu_assignment": "any:3"`, withVMs(migNode(has(901)), 0, 300), []string{"0, 1, 2",
			"warning: GPU 0 of node pve1 is in the conf of VM 300 too (hostpci), whose start would take it from CTID 901"}},
		{"a VM's: never picked to be exclusive", `"gpu_assignment": "any:3", "gpu_policy": "exclusive"`, withVMs(migNode(has(901)), 0, 300), []string{"none",
			"ERROR: node pve1 has 2 GPUs left to pick from, and 3 are to be picked; GPU 0 of node pve1 cannot be exclusive: " +
				"it is in the conf of VM 300 (hostpci), whose start would take it from CTID 901; GPU 3 is split by MIG"}},
		{"a VM's, and picked before: kept", `"gpu_assignment": "any:1"`, withVMs(migNode(has(901, "1")), 1, 300), []string{"1",
			"warning: GPU 1 of node pve1 is in the conf of VM 300 too (hostpci), whose start would take it from CTID 901"}},
		{"a VM's, and picked before to be exclusive: another", `"gpu_assignment": "any:1", "gpu_policy": "exclusive"`,
			withVMs(migNode(has(901, "1")), 1, 300), []string{"0"}},
		{"profile of a VM's GPU, exclusive", `"gpu_assignment": "2g.20gb", "gpu_policy": "exclusive"`, withVMs(migNode(has(901)), 3, 300), []string{"none",
			"ERROR: node pve1 has no free MIG device 2g.20gb; it has 3:0 (2g.20gb, VM 300), 3:1 (1g.10gb, VM 300), 3:2 (1g.10gb, VM 300)"}},
		{"a running VM has it", `"gpu_assignment": "02:00.0"`, withVMs(vfio(migNode(has(901))), 1, 300), []string{"none",
			"ERROR: 0000:02:00.0 of node pve1 is bound to vfio-pci, for VM 300; bind it to nvidia, or assign another"}},
		{"not fit, and its profile", `"gpu_assignment": "2g.20gb"`, faulty(migNode(has(901)), 3), []string{"none",
			"ERROR: node pve1 has no free MIG device 2g.20gb; it has 3:0 (2g.20gb, faulty), 3:1 (1g.10gb, faulty), 3:2 (1g.10gb, faulty)"}},
		{"not fit, so not picked", `"gpu_assignment": "any:1"`, faulty(migNode(has(901)), 0), []string{"1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			containers := tt.fleet
			if !strings.Contains(containers, `"901"`) {
				containers = `"901": {` + containers + `}`
			}
			f := fleetOf(t, containers)
			got := plan.Assign(f, &observed.Fleet{Nodes: []observed.Node{tt.node}}, plan.Options{})
			if diff := cmp.Diff(tt.want, assigned(got[901])); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.fleet, diff)
			}
		})
	}
}

// An index that means another card than when it was applied changes nothing until somebody says which is meant.
func TestGPUMoved(t *testing.T) {
	c := has(901, "1")
	c.Applied = &observed.Applied{Assignment: "0", GPUs: []observed.Ref{{Index: 0, UUID: uuid(1), PCIAddress: address(1)}}}
	f := fleetOf(t, `"901": {"gpu_assignment": "0"}`)
	o := &observed.Fleet{Nodes: []observed.Node{migNode(c)}}
	moved := "GPU 0 of node pve1 was " + uuid(1) + " when it was last applied, which now is GPU 1; now it is " + uuid(0)
	p := plan.Compute(f, o, plan.Options{}).Containers[0]
	want := []string{
		"ERROR: " + moved + ": write the UUID of the one that is meant into gpu_assignment, or accept the new one with apply --accept-moved",
		"note: it is stopped, and stays so: nothing in it is verified; apply --start starts containers that have GPUs",
	}
	if got := text(p); !slices.Equal(got[:1], want[:1]) || len(p.Steps) > 0 {
		t.Errorf("plan %q; want %q", got, want)
	}
	if a := plan.Assign(f, o, plan.Options{})[901]; !slices.Equal(a.Moved, []string{moved}) {
		t.Errorf("moved: %q; want %q", a.Moved, moved)
	}
	accepted := text(plan.Compute(f, o, plan.Options{AcceptMoved: true}).Containers[0])
	wantSteps := []string{"check: GPU 0 on node pve1", "patch: add GPU 0, remove GPU 1, accept: " + moved}
	if !slices.Equal(accepted[:2], wantSteps) {
		t.Errorf("accepted: %q; want %q", accepted, wantSteps)
	}
	named := plan.Assign(fleetOf(t, `"901": {"gpu_assignment": "`+uuid(1)+`"}`), o, plan.Options{})[901]
	if diff := cmp.Diff([]string{"1"}, assigned(named)); diff != "" {
		t.Errorf("named by its UUID (-want +got):\n%s", diff)
	}
}

// TestAssignProperties takes made-up fleets of every kind of assignment: what is exclusive nobody else has, a GPU is there
// once, and what was applied stays what it is, whatever part of the fleet was applied first.
func TestAssignProperties(t *testing.T) {
	words := []string{"0", "1", "2", "3:0", "3:1", "any:1", "any:2", "1g.10gb", "2g.20gb", "all", "none", "any:1,1g.10gb", "0,any:1", "GPU-1"}
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 1))
		f := &fleet.Fleet{}
		n := migNode()
		for i := range int32(1 + r.IntN(6)) {
			selectors, err := fleet.Assignment(words[r.IntN(len(words))])
			if err != nil {
				t.Fatal(err)
			}
			f.Containers = append(f.Containers, fleet.Container{
				CTID: 900 + i, GPUs: selectors, Mode: fleet.ModeRaw, Capabilities: []string{fleet.CapabilityCompute},
				Policy: []string{fleet.PolicyShared, fleet.PolicyShared, fleet.PolicyExclusive}[r.IntN(3)],
			})
			n.Containers = append(n.Containers, has(900+i, [][]string{nil, nil, {"0"}, {"1", "2"}, {"3:1"}}[r.IntN(5)]...))
		}
		if r.IntN(3) == 0 {
			n.Containers = append(n.Containers, has(950, "1"))
		}
		o := &observed.Fleet{Nodes: []observed.Node{n}}
		first := plan.Assign(f, o, plan.Options{})
		if diff := cmp.Diff(first, plan.Assign(f, o, plan.Options{})); diff != "" {
			t.Fatalf("seed %d: assigned twice, it differs:\n%s", seed, diff)
		}
		holders := map[string][]int32{}
		for _, c := range f.Containers {
			for _, ref := range first[c.CTID].GPUs {
				holders[ref.Key()] = append(holders[ref.Key()], c.CTID)
			}
		}
		for key, ctids := range holders {
			for _, ctid := range ctids {
				if f.Container(ctid).Policy == fleet.PolicyExclusive && len(ctids) > 1 {
					t.Fatalf("seed %d: %s is exclusive to CTID %d and has %v", seed, key, ctid, ctids)
				}
			}
		}
		for _, share := range []int{2, 1} { // some of them, then all
			for i := range n.Containers {
				c := &n.Containers[i]
				a := plan.Assign(f, o, plan.Options{})[c.CTID]
				if len(a.Errors) > 0 || len(a.GPUs) == 0 || r.IntN(share) > 0 {
					continue
				}
				c.Configured.GPUs, c.Configured.Mode = a.GPUs, observed.ModeRaw
				c.Applied = &observed.Applied{Assignment: fleet.Text(f.Container(c.CTID).GPUs), GPUs: a.GPUs, Mode: observed.ModeRaw}
			}
			after := plan.Assign(f, o, plan.Options{})
			for _, c := range n.Containers {
				if c.Applied != nil && !observed.Equal(after[c.CTID].GPUs, c.Applied.GPUs) {
					t.Fatalf("seed %d: CTID %d was given %s, and is assigned %s %q\nfleet: %+v", seed, c.CTID,
						observed.List(c.Applied.GPUs), observed.List(after[c.CTID].GPUs), after[c.CTID].Errors, f.Containers)
				}
			}
		}
		// Others come to GPUs that would be picked: what was picked before is kept.
		o.Nodes[0].Containers = append(slices.Clone(n.Containers), has(960, "0", "1"), has(961, "0", "3:1"))
		after := plan.Assign(f, o, plan.Options{})
		for _, c := range n.Containers {
			if c.Applied != nil && f.Container(c.CTID).Policy == fleet.PolicyShared && !observed.Equal(after[c.CTID].GPUs, c.Applied.GPUs) {
				t.Fatalf("seed %d: CTID %d was given %s, and is assigned %s %q now that others have come\nfleet: %+v", seed, c.CTID,
					observed.List(c.Applied.GPUs), observed.List(after[c.CTID].GPUs), after[c.CTID].Errors, f.Containers)
			}
		}
		o.Nodes[0].Containers = n.Containers
		for _, c := range plan.Compute(f, o, plan.Options{}).Containers {
			if i := slices.IndexFunc(n.Containers, func(o observed.Container) bool { return o.CTID == c.CTID }); n.Containers[i].Applied != nil && len(c.Steps) > 0 {
				t.Fatalf("seed %d: CTID %d is as assigned and is to do %v", seed, c.CTID, c.Steps)
			}
		}
	}
}
