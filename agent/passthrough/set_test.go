package passthrough_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

var update = flag.Bool("update", false, "rewrite the files after in testdata/set")

// node2 has two GPUs whose minors are swapped against their order on the PCI bus, and every device node.
var node2 = passthrough.Inventory{
	GPUs: []passthrough.GPU{{Index: 0, UUID: "GPU-b", Minor: 1}, {Index: 1, UUID: "GPU-a", Minor: 0}},
	Nodes: []passthrough.Node{
		{Path: "/dev/nvidia-modeset", Major: 195, Minor: 254, Present: true, GPU: -1, Use: passthrough.Graphics},
		{Path: "/dev/nvidia-uvm", Major: 511, Minor: 0, Present: true, GPU: -1, Needed: true},
		{Path: "/dev/nvidia-uvm-tools", Major: 511, Minor: 1, Present: true, GPU: -1, Needed: true},
		{Path: "/dev/nvidia0", Major: 195, Minor: 0, Present: true, GPU: 0},
		{Path: "/dev/nvidia1", Major: 195, Minor: 1, Present: true, GPU: 1},
		{Path: "/dev/nvidiactl", Major: 195, Minor: 255, Present: true, GPU: -1, Needed: true},
	},
	Majors: map[string]int{"mem": 1, "nvidia": 195, "drm": 226, "nvidia-caps": 236, "aux": 243, "nvidia-uvm": 511},
}

// whole wants the whole GPUs of the minors.
func whole(minors []int) passthrough.Want {
	var want passthrough.Want
	for _, m := range minors {
		want.GPUs = append(want.GPUs, passthrough.GPU{Minor: m})
	}
	return want
}

// A setCase is one file of testdata/set: a comment with "minors: 0 1" and "mode: raw", and the confs before
// and after.
type setCase struct {
	comment       string
	minors        []int
	mode          passthrough.Mode
	before, after string
}

func readCase(t testing.TB, path string) setCase {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c := setCase{mode: -1}
	var ok bool
	if c.comment, c.before, ok = strings.Cut(string(b), "-- before --\n"); !ok {
		t.Fatalf("%s has no before", path)
	}
	if c.before, c.after, ok = strings.Cut(c.before, "-- after --\n"); !ok {
		t.Fatalf("%s has no after", path)
	}
	for line := range strings.SplitSeq(c.comment, "\n") {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "minors":
			for _, s := range strings.Fields(value) {
				n, err := strconv.Atoi(s)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				c.minors = append(c.minors, n)
			}
		case "mode":
			for _, m := range []passthrough.Mode{passthrough.ModeNone, passthrough.ModeRaw, passthrough.ModeNative} {
				if m.String() == strings.TrimSpace(value) {
					c.mode = m
				}
			}
		}
	}
	if c.mode < 0 {
		t.Fatalf("%s: no mode", path)
	}
	return c
}

// TestSet edits the confs of testdata/set on node2. Each after is reviewed as code.
func TestSet(t *testing.T) {
	paths, err := filepath.Glob("testdata/set/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases in testdata/set: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			c := readCase(t, path)
			f := pveconf.Parse([]byte(c.before))
			if err := passthrough.Set(f, node2, whole(c.minors), c.mode); err != nil {
				t.Fatal(err)
			}
			got := string(f.Bytes())
			if *update {
				if err := os.WriteFile(path, []byte(c.comment+"-- before --\n"+c.before+"-- after --\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(c.after, got); diff != "" {
				t.Errorf("Set %v %v of\n%s(-want +got):\n%s", c.minors, c.mode, c.before, diff)
			}
		})
	}
}

func TestSetCutOff(t *testing.T) {
	for _, tt := range []struct{ name, conf, key string }{
		{"every rule", "memory: 512\nlxc.cgroup2.devices.allow:\x00\n", "lxc.cgroup2.devices.allow"},
		{"one rule", "lxc.cgroup2.devices.deny: c 195:0 rwm\x00\n", "lxc.cgroup2.devices.deny"},
		{"every mount", "unprivileged: 1\nlxc.mount.entry: \x00 x\n", "lxc.mount.entry"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := pveconf.Parse([]byte(tt.conf))
			err := passthrough.Set(f, node2, whole([]int{0}), passthrough.ModeRaw)
			if e, ok := errors.AsType[*passthrough.CutOffError](err); !ok || e.Key != tt.key {
				t.Errorf("Set of %q: %v, want a CutOffError for %s", tt.conf, err, tt.key)
			}
			if got := string(f.Bytes()); got != tt.conf {
				t.Errorf("Set of %q wrote %q", tt.conf, got)
			}
			if err := passthrough.Set(f, node2, whole([]int{0}), passthrough.ModeNative); err != nil {
				t.Errorf("Set of %q in native mode: %v", tt.conf, err)
			}
		})
	}
}
