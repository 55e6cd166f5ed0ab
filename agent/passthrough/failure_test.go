package passthrough_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// The tests here are named for the design's failures that must not come back.

// setTo sets the GPUs of minors in raw mode and returns the conf.
func setTo(t *testing.T, conf string, minors ...int) string {
	t.Helper()
	f := pveconf.Parse([]byte(conf))
	if err := passthrough.Set(f, node2, whole(minors), passthrough.ModeRaw); err != nil {
		t.Fatalf("Set %v of %q: %v", minors, conf, err)
	}
	return string(f.Bytes())
}

func given(conf string) []passthrough.GPU {
	p, _ := passthrough.Of(pveconf.Parse([]byte(conf)), node2)
	return p.GPUs
}

func TestFailure02_AppendedLinesLandInSnapshot(t *testing.T) {
	const main = "arch: amd64\nunprivileged: 1\n"
	const snapshot = `
[before_upgrade]
arch: amd64
lxc.cgroup2.devices.allow: c 195:* rwm
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
`
	p, problems := passthrough.Of(pveconf.Parse([]byte(main+snapshot)), node2)
	if diff := cmp.Diff(passthrough.Passthrough{}, p); diff != "" {
		t.Errorf("lines in a snapshot give something (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]finding{{passthrough.EntryInSnapshot, 6, false}}, findings(problems)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	after := setTo(t, main+snapshot, 0)
	if !strings.HasPrefix(after, main+"lxc.") || !strings.HasSuffix(after, "create=file\n"+snapshot) {
		t.Errorf("the entries do not stand before the snapshot, or it was changed:\n%s", after)
	}
	if diff := cmp.Diff([]passthrough.GPU{gpu0}, given(after)); diff != "" {
		t.Errorf("GPUs given (-want +got):\n%s", diff)
	}
}

func TestFailure03_HardCodedMajorOfUVM(t *testing.T) {
	for _, major := range []string{"243", "510", "238"} {
		inv := node2
		inv.Majors = map[string]int{"mem": 1, "nvidia": 195, "nvidia-uvm": 511}
		conf := setTo(t, "unprivileged: 1\n", 0)
		conf = strings.ReplaceAll(conf, "c 511:0 rwm", "c "+major+":* rwm")
		conf = strings.ReplaceAll(conf, "lxc.cgroup2.devices.allow: c 511:1 rwm\n", "")

		f := pveconf.Parse([]byte(conf))
		_, problems := passthrough.Of(f, inv)
		if diff := cmp.Diff([]finding{{passthrough.WrongMajor, 4, true}}, findings(problems)); diff != "" {
			t.Errorf("major %s: problems (-want +got):\n%s", major, diff)
		}
		if err := passthrough.Set(f, inv, whole([]int{0}), passthrough.ModeRaw); err != nil {
			t.Fatal(err)
		}
		after := string(f.Bytes())
		if strings.Contains(after, "c "+major+":") || !strings.Contains(after, "c 511:0 rwm\n") || !strings.Contains(after, "c 511:1 rwm\n") {
			t.Errorf("major %s: Set makes\n%s", major, after)
		}
	}
}

func TestFailure06_FromTwoGPUsToOne(t *testing.T) {
	one := setTo(t, "unprivileged: 1\n", 0)
	two := setTo(t, one, 0, 1)
	if strings.Count(two, "nvidia1 ") != 2 || strings.Count(two, "c 195:1 rwm") != 1 {
		t.Fatalf("two GPUs:\n%s", two)
	}
	if diff := cmp.Diff(one, setTo(t, two, 0)); diff != "" {
		t.Errorf("from two GPUs to one (-want +got):\n%s", diff)
	}
}

func TestFailure07_WildcardRuleGivesEveryGPU(t *testing.T) {
	const wildcard = "lxc.cgroup2.devices.allow: c 195:* rwm\n"
	_, problems := passthrough.Of(pveconf.Parse([]byte(wildcard)), node2)
	if diff := cmp.Diff([]finding{{passthrough.WildcardRule, 1, true}}, findings(problems)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	f := pveconf.Parse([]byte(setTo(t, wildcard, 0)))
	rules := passthrough.RuleLines(f, node2)
	if !passthrough.Allowed(rules, false, 195, 0) || passthrough.Allowed(rules, false, 195, 1) {
		t.Errorf("a privileged container with GPU 0 has the rules %v", rules)
	}
}

func TestFailure08_MissingDeviceIsAnError(t *testing.T) {
	const conf = "unprivileged: 1\n"
	for _, n := range node2.Nodes {
		if n.GPU != 0 && !n.Needed {
			continue
		}
		inv := node2
		inv.Nodes = slices.Clone(node2.Nodes)
		inv.Nodes[slices.Index(node2.Nodes, n)].Present = false
		f := pveconf.Parse([]byte(conf))
		err := passthrough.Set(f, inv, whole([]int{0}), passthrough.ModeRaw)
		if e, ok := errors.AsType[*passthrough.NodeError](err); !ok || e.Path != n.Path {
			t.Errorf("Set without %s: error %v, want a NodeError of this path", n.Path, err)
		}
		if got := string(f.Bytes()); got != conf {
			t.Errorf("Set without %s changed the conf to %q", n.Path, got)
		}
	}
	f := pveconf.Parse([]byte(conf))
	err := passthrough.Set(f, node2, whole([]int{0, 2}), passthrough.ModeNative)
	if e, ok := errors.AsType[*passthrough.GPUError](err); !ok || e.Minor != 2 || !slices.Equal(e.Have, []int{0, 1}) {
		t.Errorf("Set of a GPU that the node lacks: error %v", err)
	}
	if got := string(f.Bytes()); got != conf {
		t.Errorf("Set of a GPU that the node lacks changed the conf to %q", got)
	}
}

func TestFailure10_MajorChangedByDriverUpgrade(t *testing.T) {
	before := setTo(t, "arch: amd64\n", 0)
	inv := node2
	inv.Majors = map[string]int{"nvidia": 195, "nvidia-uvm": 509}
	inv.Nodes = slices.Clone(node2.Nodes)
	for i := range inv.Nodes {
		if inv.Nodes[i].Major == 511 {
			inv.Nodes[i].Major = 509
		}
	}
	f := pveconf.Parse([]byte(before))
	_, problems := passthrough.Of(f, inv)
	want := []finding{
		{passthrough.Privileged, 0, false},
		{passthrough.WrongMajor, 4, true}, {passthrough.WrongMajor, 5, true},
		{passthrough.RuleMissing, 8, true}, {passthrough.RuleMissing, 9, true},
	}
	if diff := cmp.Diff(want, findings(problems)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if err := passthrough.Set(f, inv, whole([]int{0}), passthrough.ModeRaw); err != nil {
		t.Fatal(err)
	}
	rules := passthrough.RuleLines(f, inv)
	if !passthrough.Allowed(rules, false, 509, 0) || !passthrough.Allowed(rules, false, 509, 1) || passthrough.Allowed(rules, false, 511, 0) {
		t.Errorf("rules after Set: %v", rules)
	}
}

func TestFailure13_EntryTakenForAnother(t *testing.T) {
	const (
		ten     = "lxc.mount.entry: /dev/nvidia10 dev/nvidia10 none bind,optional,create=file\n"
		comment = "#lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file\n"
		tools   = "lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file\n"
	)
	if got := given(comment + ten + tools); !slices.Equal(got, []passthrough.GPU{{Index: -1, Minor: 10}}) {
		t.Errorf("GPUs given by /dev/nvidia10 and a comment: %v", got)
	}
	after := setTo(t, comment+ten+tools, 1)
	if !strings.HasPrefix(after, comment) || strings.Contains(after, "nvidia10") {
		t.Errorf("the comment is gone, or GPU 10 is not:\n%s", after)
	}
	for _, line := range []string{"/dev/nvidia1 dev/nvidia1 ", "/dev/nvidia-uvm dev/nvidia-uvm ", tools} {
		if !strings.Contains(after[len(comment):], line) {
			t.Errorf("%q was taken to be there already:\n%s", line, after)
		}
	}
	twice := setTo(t, "arch: amd64\nlxc.mount.entry = /dev/nvidia1 dev/nvidia1 none bind,create=file\nlxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,create=file\n", 1)
	if n := strings.Count(twice, "/dev/nvidia1 "); n != 1 {
		t.Errorf("two copies in different forms became %d:\n%s", n, twice)
	}
}

func TestFailure14_CloneBringsOldEntries(t *testing.T) {
	const other = "lxc.mount.entry: /srv srv none bind,create=dir\n"
	clone := setTo(t, "arch: amd64\ndev3: /dev/nvidia7,mode=0666\n"+other, 0, 1)
	if diff := cmp.Diff("arch: amd64\n"+other, setTo(t, clone)); diff != "" {
		t.Errorf("a clone without GPUs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]passthrough.GPU{gpu1}, given(setTo(t, clone, 1))); diff != "" {
		t.Errorf("a clone with another GPU (-want +got):\n%s", diff)
	}
}

func TestSetRefused(t *testing.T) {
	for _, mode := range []passthrough.Mode{passthrough.ModeNone, passthrough.ModeMixed, 7} {
		f := pveconf.Parse(nil)
		if err := passthrough.Set(f, node2, whole([]int{0}), mode); err == nil || len(f.Bytes()) > 0 {
			t.Errorf("Set in mode %v: error %v, conf %q", mode, err, f.Bytes())
		}
	}
	var b strings.Builder
	for i := range 253 {
		fmt.Fprintf(&b, "dev%d: /dev/fuse\n", i)
	}
	full := pveconf.Parse([]byte(b.String()))
	if err := passthrough.Set(full, node2, whole([]int{0}), passthrough.ModeNative); !errors.Is(err, passthrough.ErrNoSlot) || string(full.Bytes()) != b.String() {
		t.Errorf("Set with three free devN: error %v, %d bytes before, %d after", err, b.Len(), len(full.Bytes()))
	}
	if err := passthrough.Set(pveconf.Parse(nil), passthrough.Inventory{GPUs: node2.GPUs, Nodes: node2.Nodes[3:5]}, whole([]int{0}), passthrough.ModeRaw); err == nil {
		t.Error("Set without any control device gave no error")
	}
}
