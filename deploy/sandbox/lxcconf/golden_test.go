package lxcconf_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"phoenix.internal/agent/pveconf"
	"phoenix.internal/deploy/sandbox/lxcconf"
)

const recordings = "../../../agent/pveconf/testdata/pve"

// proxmox is the pretended machine on which Proxmox's own files were recorded.
var proxmox = lxcconf.Host{
	Include: func(name string) bool {
		ostype, kind, _ := strings.Cut(name, ".")
		return (kind == "common.conf" || kind == "userns.conf") &&
			slices.Contains([]string{"alpine", "archlinux", "debian", "ubuntu"}, ostype)
	},
	Device: func(path string) (lxcconf.Device, error) {
		if path == "/dev/sda" {
			return lxcconf.Device{Type: 'b', Major: 8}, nil
		}
		number, ok := map[string][2]uint32{
			"/dev/nvidia0": {195, 0}, "/dev/nvidia1": {195, 1}, "/dev/nvidiactl": {195, 255}, "/dev/nvidia-modeset": {195, 254},
			"/dev/nvidia-uvm": {511, 0}, "/dev/nvidia-uvm-tools": {511, 1},
			"/dev/nvidia-caps/nvidia-cap1": {236, 1}, "/dev/nvidia-caps/nvidia-cap2": {236, 2},
			"/dev/dri/card0": {226, 0}, "/dev/dri/renderD128": {226, 128}, "/dev/dri/renderD129": {226, 129},
			"/dev/kfd": {234, 0}, "/dev/net/tun": {10, 200}, "/dev/fuse": {10, 229}, "/dev/kvm": {10, 232},
			"/dev/ttyUSB0": {188, 0}, "/dev/ttyACM0": {166, 0}, "/dev/video0": {81, 0}, "/dev/null": {1, 3},
		}[path]
		if !ok {
			return lxcconf.Device{}, fmt.Errorf("Device %s does not exist", path)
		}
		return lxcconf.Device{Type: 'c', Major: number[0], Minor: number[1]}, nil
	},
	Network: &lxcconf.Network{MTU: 1500, MAC: "BC:24:11:00:00:00"},
	Memory:  true, CPU: true, CPUs: 8,
}

// A recording is one conf, and what Proxmox made of it.
type recording struct {
	name   string
	conf   []byte
	config []string // the lines of the LXC config; nil if Proxmox wrote none
	reason string   // with which Proxmox refused to make it
}

func readRecordings(t *testing.T) []recording {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(recordings, "*.parsed.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []recording
	for _, path := range paths {
		base := strings.TrimSuffix(path, ".parsed.json")
		r := recording{name: filepath.Base(base)}
		var parsed struct {
			Reason string `json:"lxc_error"`
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &parsed)
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		r.reason = parsed.Reason
		if r.conf, err = os.ReadFile(base + ".conf"); err != nil {
			t.Fatal(err)
		}
		config, err := os.ReadFile(base + ".lxc")
		if err == nil {
			r.config = lines(string(config))
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	if len(all) < 88 {
		t.Fatalf("%s holds %d recordings, want at least 88", recordings, len(all))
	}
	return all
}

// lines splits at LF alone: values may hold CR and other odd characters.
func lines(config string) []string {
	if config == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(config, "\n"), "\n")
}

// TestGoldens holds every line against what Proxmox itself generated, in order: a line of Proxmox that is
// not made must be listed in LeftOut, and there is no line that Proxmox does not make.
func TestGoldens(t *testing.T) {
	leftOut := newList(lxcconf.LeftOut)
	for _, r := range readRecordings(t) {
		t.Run(r.name, func(t *testing.T) {
			// Lines after this one that look as if listed are raw: all of them must be there.
			rootfs := slices.Index(r.config, "lxc.rootfs.path = /var/lib/lxc/101/rootfs")
			compare(t, r, proxmox, func(i int) bool { return i < rootfs && leftOut.has(r.config[i]) }, func(string) bool { return false })
		})
	}
	leftOut.checkUsed(t)
}

// TestGoldensRefused holds our refusals against Proxmox's.
func TestGoldensRefused(t *testing.T) {
	seen := 0
	for _, r := range readRecordings(t) {
		want, ok := reasons[r.name]
		if !ok {
			continue
		}
		seen++
		t.Run(r.name, func(t *testing.T) {
			got, err := lxcconf.Generate(101, pveconf.Parse(r.conf), proxmox)
			if err == nil || err.Error() != want {
				t.Errorf("conf:\n%s\ngot %q, error %v, want %s; Proxmox says %s", r.conf, got, err, want, r.reason)
			}
		})
	}
	if seen != len(reasons) {
		t.Errorf("%d of %d reasons belong to a recording", seen, len(reasons))
	}
}

// TestGoldensWithoutNetwork does the same for the machine that the sandbox is.
func TestGoldensWithoutNetwork(t *testing.T) {
	leftOut := newList(slices.Concat(lxcconf.LeftOut, lxcconf.WithoutNetwork))
	added := newList(lxcconf.AddedWithoutNetwork)
	host := proxmox
	host.Network = nil
	for _, r := range readRecordings(t) {
		t.Run(r.name, func(t *testing.T) {
			compare(t, r, host, func(i int) bool { return leftOut.has(r.config[i]) }, added.has)
		})
	}
	leftOut.checkUsed(t)
	added.checkUsed(t)
}

// compare walks Proxmox's lines and ours together. leftOut says whether we may lack a line of Proxmox, by
// its index, and added whether we may have a line that Proxmox lacks.
func compare(t *testing.T, r recording, host lxcconf.Host, leftOut func(i int) bool, added func(line string) bool) {
	t.Helper()
	conf := pveconf.Parse(r.conf)
	b, err := lxcconf.Generate(101, conf, host)
	if r.reason != "" {
		if err == nil {
			t.Fatalf("conf:\n%s\ngot an LXC config, but Proxmox refuses: %s", r.conf, r.reason)
		}
		return // TestGoldensRefused looks at the reason
	}
	if err != nil {
		t.Fatalf("conf:\n%s\n%v", r.conf, err)
	}
	if (b == nil) != (r.config == nil) {
		t.Fatalf("conf:\n%s\ngot %q, Proxmox has %q", r.conf, b, r.config)
	}
	want, got := r.config, lines(string(b))
	if choosesCPUs(conf) {
		want, got = countCPUs(t, want), countCPUs(t, got)
	}
	for i, line := range want {
		for len(got) > 0 && got[0] != line && added(got[0]) {
			got = got[1:]
		}
		if len(got) > 0 && got[0] == line {
			got = got[1:]
		} else if !leftOut(i) {
			t.Fatalf("conf:\n%s\nline %d of Proxmox's config is neither made nor listed:\n%s\nwhat follows of ours:\n%s",
				r.conf, i+1, line, strings.Join(got, "\n"))
		}
	}
	for _, line := range got {
		if !added(line) {
			t.Errorf("conf:\n%s\nProxmox does not make, and no list has:\n%s", r.conf, line)
		}
	}
}

// reasons are ours for the recorded confs that Proxmox refuses. Of several faults of one value Proxmox names
// all, in an order left to chance; we name the first.
var reasons = map[string]string{
	"nasty-dev-entries-broken":      `device entry "/dev/../etc/shadow": path "/dev/../etc/shadow" is not valid`,
	"nasty-ini-style-equals":        "missing 'arch' - internal error",
	"nasty-leading-spaces":          "missing 'arch' - internal error",
	"nasty-missing-arch-and-ostype": "missing 'arch' - internal error",
	"nasty-net-entries-broken":      `net1: format error: hwaddr: invalid value "ZZ:00"`,
	"nasty-only-empty-comments":     "missing 'arch' - internal error",
	"nasty-only-spaces-no-newline":  "missing 'arch' - internal error",
	"nasty-reserved-word-lxc":       `Proxmox cannot read this conf, for line 9: Can't use string ("yes") as an ARRAY ref while "strict refs" in use`,
	"nasty-snapshot-section-first":  "missing 'arch' - internal error",
	"nasty-utf8-bom":                "missing 'arch' - internal error",
}

// choosesCPUs says whether the last line may name CPUs that were chosen by chance.
func choosesCPUs(conf *pveconf.File) bool {
	_, ok := conf.Property("cores")
	return ok && !slices.ContainsFunc(conf.Raw(), func(e pveconf.Entry) bool { return e.Key == "lxc.cgroup2.cpuset.cpus" })
}

// countCPUs puts the number of the CPUs for their names in the last line, if that has names.
func countCPUs(t *testing.T, config []string) []string {
	t.Helper()
	const key = "lxc.cgroup2.cpuset.cpus = "
	last := len(config) - 1
	names, ok := strings.CutPrefix(config[last], key)
	if !ok {
		return config
	}
	n := 0
	for part := range strings.FieldsFuncSeq(names, func(r rune) bool { return r == ',' }) {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		end, err2 := strconv.Atoi(to)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatalf("%s: %v", config[last], err)
		}
		n += end - first + 1
	}
	return append(slices.Clone(config[:last]), fmt.Sprintf("%s%d of them", key, n))
}

// A list is a table of differences that notes which were met.
type list struct {
	differences []lxcconf.Difference
	met         map[string]bool // by prefix
}

func newList(differences []lxcconf.Difference) *list {
	return &list{differences: differences, met: map[string]bool{}}
}

func (l *list) has(line string) bool {
	for _, d := range l.differences {
		if strings.HasPrefix(line, d.Prefix) {
			l.met[d.Prefix] = true
			return true
		}
	}
	return false
}

// checkUsed fails for what is listed and stands in no recording.
func (l *list) checkUsed(t *testing.T) {
	t.Helper()
	for _, d := range l.differences {
		if !l.met[d.Prefix] {
			t.Errorf("%q is listed, but no recording has such a line", d.Prefix)
		}
	}
}

// TestReadme holds the tables for people against those of the program.
func TestReadme(t *testing.T) {
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range slices.Concat(lxcconf.LeftOut, lxcconf.WithoutNetwork, lxcconf.AddedWithoutNetwork) {
		if row := fmt.Sprintf("| `%s` | %s |\n", d.Prefix, d.Why); !strings.Contains(string(b), row) {
			t.Errorf("deploy/sandbox/README.md has no row\n%s", row)
		}
	}
}
