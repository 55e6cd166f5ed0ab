package passthrough_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// nodeMIG has a whole GPU of minor 0 and one of minor 1 that MIG divides, both with DRM nodes, beside another vendor's card
// with /dev/dri/card0 and renderD128, and a fabric.
var nodeMIG = passthrough.Inventory{
	GPUs: []passthrough.GPU{{Index: 1, UUID: "GPU-a", Minor: 0}, {Index: 0, UUID: "GPU-b", Minor: 1}},
	MIG: []passthrough.MIGDevice{
		{MIG: passthrough.MIG{UUID: "MIG-1", GPUInstance: 1, ComputeInstance: 0}, Minor: 1, Nodes: [2]string{"/dev/nvidia-caps/nvidia-cap147", "/dev/nvidia-caps/nvidia-cap148"}},
		{MIG: passthrough.MIG{UUID: "MIG-2", GPUInstance: 1, ComputeInstance: 2}, Minor: 1, Nodes: [2]string{"/dev/nvidia-caps/nvidia-cap147", "/dev/nvidia-caps/nvidia-cap150"}},
		{MIG: passthrough.MIG{UUID: "MIG-3", GPUInstance: 13, ComputeInstance: 0}, Minor: 1, Nodes: [2]string{"/dev/nvidia-caps/nvidia-cap255", "/dev/nvidia-caps/nvidia-cap256"}},
	},
	Nodes: slices.Concat(node2.Nodes, []passthrough.Node{
		{Path: "/dev/dri/card1", Major: 226, Minor: 1, Present: true, GPU: 0, Use: passthrough.Graphics},
		{Path: "/dev/dri/renderD129", Major: 226, Minor: 129, Present: true, GPU: 0, Use: passthrough.Graphics},
		{Path: "/dev/dri/card2", Major: 226, Minor: 2, Present: true, GPU: 1, Use: passthrough.Graphics},
		{Path: "/dev/dri/renderD130", Major: 226, Minor: 130, Present: true, GPU: 1, Use: passthrough.Graphics},
		{Path: "/dev/nvidia-caps/nvidia-cap147", Major: 236, Minor: 147, Present: true, GPU: 1, Use: passthrough.Instance},
		{Path: "/dev/nvidia-caps/nvidia-cap148", Major: 236, Minor: 148, Present: true, GPU: 1, Use: passthrough.Instance},
		{Path: "/dev/nvidia-caps/nvidia-cap150", Major: 236, Minor: 150, Present: true, GPU: 1, Use: passthrough.Instance},
		{Path: "/dev/nvidia-caps/nvidia-cap255", Major: 236, Minor: 255, Present: true, GPU: 1, Use: passthrough.Instance},
		{Path: "/dev/nvidia-caps/nvidia-cap256", Major: 236, Minor: 256, Present: true, GPU: 1, Use: passthrough.Instance},
		{Path: "/dev/nvidia-caps-imex-channels/channel0", Major: 237, Minor: 0, Present: true, GPU: -1, Use: passthrough.Fabric},
		{Path: "/dev/nvidia-caps/nvidia-cap1", Major: 236, Minor: 1, Present: true, GPU: -1, Use: passthrough.Management},
	}),
	Majors: map[string]int{"mem": 1, "nvidia": 195, "drm": 226, "nvidia-caps": 236, "nvidia-caps-imex-channels": 237, "aux": 243, "nvidia-uvm": 511},
}

// gpuWhole, mig1 to mig3 are what nodeMIG has; the index and the UUID do not count in a Want.
var (
	gpuWhole = passthrough.GPU{Index: 1, UUID: "GPU-a", Minor: 0}
	mig1     = passthrough.GPU{Index: 0, UUID: "GPU-b", Minor: 1, MIG: &nodeMIG.MIG[0].MIG}
	mig2     = passthrough.GPU{Index: 0, UUID: "GPU-b", Minor: 1, MIG: &nodeMIG.MIG[1].MIG}
	mig3     = passthrough.GPU{Index: 0, UUID: "GPU-b", Minor: 1, MIG: &nodeMIG.MIG[2].MIG}
)

func wants(gpus ...passthrough.GPU) passthrough.Want { return passthrough.Want{GPUs: gpus} }

// Exactly the devices that are asked for are given, and they are all there is in the conf.
func TestSetGives(t *testing.T) {
	common := []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"}
	for _, tt := range []struct {
		name    string
		want    passthrough.Want
		devices []string
		gpus    []passthrough.GPU
	}{
		{"a whole GPU", wants(gpuWhole), []string{"/dev/nvidia0"}, []passthrough.GPU{gpuWhole}},
		{"a MIG device", wants(mig1), []string{"/dev/nvidia-caps/nvidia-cap147", "/dev/nvidia-caps/nvidia-cap148", "/dev/nvidia1"}, []passthrough.GPU{mig1}},
		{"two of one GPU instance", wants(mig2, mig1),
			[]string{"/dev/nvidia-caps/nvidia-cap147", "/dev/nvidia-caps/nvidia-cap148", "/dev/nvidia-caps/nvidia-cap150", "/dev/nvidia1"}, []passthrough.GPU{mig1, mig2}},
		{"a MIG device beside a whole GPU", wants(gpuWhole, mig3),
			[]string{"/dev/nvidia-caps/nvidia-cap255", "/dev/nvidia-caps/nvidia-cap256", "/dev/nvidia0", "/dev/nvidia1"}, []passthrough.GPU{mig3, gpuWhole}},
		{"graphics of the one card, not of the others", passthrough.Want{GPUs: []passthrough.GPU{gpuWhole}, Graphics: true},
			[]string{"/dev/dri/card1", "/dev/dri/renderD129", "/dev/nvidia-modeset", "/dev/nvidia0"}, []passthrough.GPU{gpuWhole}},
		{"graphics of a MIG device's card", passthrough.Want{GPUs: []passthrough.GPU{mig3}, Graphics: true},
			[]string{"/dev/dri/card2", "/dev/dri/renderD130", "/dev/nvidia-caps/nvidia-cap255", "/dev/nvidia-caps/nvidia-cap256", "/dev/nvidia-modeset", "/dev/nvidia1"}, []passthrough.GPU{mig3}},
		{"fabric", passthrough.Want{GPUs: []passthrough.GPU{gpuWhole}, Fabric: true},
			[]string{"/dev/nvidia-caps-imex-channels/channel0", "/dev/nvidia0"}, []passthrough.GPU{gpuWhole}},
	} {
		for _, mode := range modes {
			t.Run(tt.name+", "+mode.String(), func(t *testing.T) {
				const before = "dev3: /dev/dri/renderD128,mode=0660\nunprivileged: 1\nlxc.mount.entry: /dev/dri/card0 dev/dri/card0 none bind,optional,create=file\nlxc.cgroup2.devices.allow: c 226:0 rwm\n"
				f := pveconf.Parse([]byte(before))
				if err := passthrough.Set(f, nodeMIG, tt.want, mode); err != nil {
					t.Fatal(err)
				}
				got, problems := passthrough.Of(f, nodeMIG)
				var devices []string
				for _, d := range got.Devices {
					devices = append(devices, d.Path)
				}
				want := slices.Sorted(slices.Values(slices.Concat(tt.devices, common)))
				if diff := cmp.Diff(want, devices); diff != "" {
					t.Errorf("devices (-want +got):\n%s\n%s", diff, f.Bytes())
				}
				if diff := cmp.Diff(tt.gpus, got.GPUs); diff != "" {
					t.Errorf("GPUs (-want +got):\n%s", diff)
				}
				if got.Graphics != tt.want.Graphics || got.Fabric != tt.want.Fabric || problems != nil {
					t.Errorf("graphics %v, fabric %v, problems %+v of\n%s", got.Graphics, got.Fabric, problems, f.Bytes())
				}
				// As many rules as devices, beside the stranger's.
				if n := strings.Count(string(f.Bytes()), "devices.allow"); mode == passthrough.ModeRaw && n != len(want)+1 {
					t.Errorf("%d rules for %d devices:\n%s", n-1, len(want), f.Bytes())
				}
				if err := passthrough.Set(f, nodeMIG, passthrough.Want{}, passthrough.ModeNone); err != nil || string(f.Bytes()) != before {
					t.Errorf("then nothing: %v\n%s", err, f.Bytes())
				}
			})
		}
	}
}

// From 0,1 to 1 to none to MIG and back, in both modes and between them, ends byte for byte where it began.
func TestThereAndBack(t *testing.T) {
	gpu1Whole := passthrough.GPU{Minor: 1}
	way := []struct {
		want passthrough.Want
		mode passthrough.Mode
	}{
		{wants(gpuWhole, gpu1Whole), passthrough.ModeRaw},
		{wants(gpu1Whole), passthrough.ModeRaw},
		{passthrough.Want{}, passthrough.ModeNone},
		{wants(mig1), passthrough.ModeRaw},
		{wants(mig1, mig2, gpuWhole), passthrough.ModeNative},
		{passthrough.Want{GPUs: []passthrough.GPU{mig3, gpuWhole}, Graphics: true, Fabric: true}, passthrough.ModeNative},
		{passthrough.Want{GPUs: []passthrough.GPU{mig3}, Graphics: true}, passthrough.ModeRaw},
		{wants(gpu1Whole), passthrough.ModeNative},
		{wants(gpuWhole, gpu1Whole), passthrough.ModeNative},
	}
	for _, conf := range []string{
		"",
		"arch: amd64\nhostname: a\nmemory: 512\n",
		"#notes\narch: amd64\ndev1: /dev/fuse\ndev4: /dev/dri/renderD128,gid=104\nmemory: 512\nunprivileged: 1\nlxc.mount.entry: /srv srv none bind 0 0\nlxc.cgroup2.devices.allow: c 10:200 rwm\n\n[snap]\narch: amd64\ndev0: /dev/nvidia0\n",
	} {
		for first := range way {
			f := pveconf.Parse([]byte(conf))
			set := func(i int) string {
				if err := passthrough.Set(f, nodeMIG, way[i].want, way[i].mode); err != nil {
					t.Fatalf("Set %+v of %q: %v", way[i], f.Bytes(), err)
				}
				return string(f.Bytes())
			}
			began := set(first)
			for i := range way {
				now := set((first + i) % len(way))
				if back := set(first); back != began {
					t.Errorf("%+v of %q, then %+v: %q; and back: %q, want %q", way[first], conf, way[(first+i)%len(way)], now, back, began)
				}
				set((first + i) % len(way))
			}
			if back := set(first); back != began {
				t.Errorf("%+v of %q, then all the others, and back: %q, want %q", way[first], conf, back, began)
			}
			set(2)
			if none := string(f.Bytes()); none != conf {
				t.Errorf("%q, then nothing: %q", conf, none)
			}
		}
	}
}

// Another vendor's card is not ours, in whatever form it stands, and a folder of DRM nodes is nobody's alone.
func TestSetSparesOtherCards(t *testing.T) {
	const others = "lxc.cgroup2.devices.allow: c 226:* rwm\nlxc.cgroup2.devices.allow: c 226:128 rwm\n" +
		"lxc.mount.entry: /dev/dri/renderD128 dev/dri/renderD128 none bind,optional,create=file\n" +
		"lxc.mount.entry: /dev/dri/renderD128 dev/dri/renderD129 none bind,optional,create=file\n" +
		"lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n"
	const ours = "lxc.cgroup2.devices.allow: c 226:129 rwm\nlxc.mount.entry: /dev/dri/renderD129 dev/gpu none bind,create=file\nlxc.cgroup2.devices.allow: /dev/dri/card2 rwm\n"
	f := pveconf.Parse([]byte("dev0: /dev/dri/renderD128,gid=104\ndev1: /dev/dri/renderD130,gid=104\ndev2: /dev/char/226:1\nunprivileged: 1\n" + others + ours))
	if err := passthrough.Set(f, nodeMIG, passthrough.Want{}, passthrough.ModeNone); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("dev0: /dev/dri/renderD128,gid=104\nunprivileged: 1\n"+others, string(f.Bytes())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFolderOfCards(t *testing.T) {
	const folder = "unprivileged: 1\nlxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n"
	graphics := passthrough.Want{GPUs: []passthrough.GPU{gpuWhole}, Graphics: true}
	f := pveconf.Parse([]byte(folder))
	got, problems := passthrough.Of(f, nodeMIG)
	var paths []string
	for _, d := range got.Devices {
		paths = append(paths, d.Path)
	}
	if diff := cmp.Diff([]string{"/dev/dri/card1", "/dev/dri/card2", "/dev/dri/renderD129", "/dev/dri/renderD130"}, paths); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	// What Set could not take away is no use that a plan would try to mend for ever.
	if got.Graphics || got.Mode != passthrough.ModeNone || got.GPUs != nil {
		t.Errorf("graphics %v, mode %v, GPUs %v", got.Graphics, got.Mode, got.GPUs)
	}
	if diff := cmp.Diff([]finding{{passthrough.WildcardRule, 2, false}}, findings(problems)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	err := passthrough.Set(f, nodeMIG, graphics, passthrough.ModeNative)
	if e, ok := errors.AsType[*passthrough.FolderError](err); !ok || e.Folder != "/dev/dri" || string(f.Bytes()) != folder {
		t.Errorf("native: %v, want a FolderError; %q", err, f.Bytes())
	}
	if err := passthrough.Set(f, nodeMIG, graphics, passthrough.ModeRaw); err != nil {
		t.Errorf("raw: %v", err)
	}
	f = pveconf.Parse([]byte("dev0: /dev/dri/renderD129,mode=0666\n" + folder))
	_, problems = passthrough.Of(f, nodeMIG)
	if !slices.Contains(findings(problems), finding{passthrough.ModeConflict, 3, false}) {
		t.Errorf("problems of a devN in the folder: %+v", problems)
	}
}

func TestProblemsOfMIG(t *testing.T) {
	const (
		user    = "unprivileged: 1\n"
		control = "lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,create=file\nlxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,create=file\n" +
			"lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,create=file\n" // lines 2 to 4
		nvidia1 = "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,create=file\n"
		caps    = "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,create=dir\n"
		cap147  = "lxc.mount.entry: /dev/nvidia-caps/nvidia-cap147 dev/nvidia-caps/nvidia-cap147 none bind,create=file\n"
		cap150  = "lxc.mount.entry: /dev/nvidia-caps/nvidia-cap150 dev/nvidia-caps/nvidia-cap150 none bind,create=file\n"
	)
	for _, tt := range []struct {
		name string
		conf string
		gpus []passthrough.GPU
		want []finding
	}{
		{"right", user + control + nvidia1 + cap147 + cap150, []passthrough.GPU{mig2}, nil},
		{"the GPU alone is the whole GPU", user + control + nvidia1, []passthrough.GPU{{Index: 0, UUID: "GPU-b", Minor: 1}}, []finding{{passthrough.MIGWhole, 0, false}}},
		{"the folder is every MIG device", user + control + nvidia1 + caps, []passthrough.GPU{mig1, mig2, mig3}, []finding{{passthrough.WildcardRule, 0, true}}},
		{"the right to divide GPUs", user + control + nvidia1 + cap147 + cap150 + "dev0: /dev/nvidia-caps/nvidia-cap1,mode=0666\n",
			[]passthrough.GPU{mig2}, []finding{{passthrough.WildcardRule, 0, true}}},
		{"half of a MIG device", user + control + nvidia1 + cap147, nil, []finding{{passthrough.ControlDeviceNotGiven, 0, true}}},
		{"without its GPU", user + control + cap147 + cap150, nil, []finding{{passthrough.ControlDeviceNotGiven, 0, true}, {passthrough.ControlDeviceNotGiven, 0, true}}},
		{"one that went with a reconfiguration", user + control + nvidia1 + cap147 + cap150 + "lxc.mount.entry: /dev/nvidia-caps/nvidia-cap21 dev/nvidia-caps/nvidia-cap21 none bind,create=file\n",
			[]passthrough.GPU{mig2}, []finding{{passthrough.DeviceGone, 8, true}}},
		{"a rule of nvidia-caps' old major", user + control + nvidia1 + cap147 + cap150 + "lxc.cgroup2.devices.allow: c 235:150 rwm\nlxc.cgroup2.devices.allow: c 235:151 rwm\n",
			[]passthrough.GPU{mig2}, []finding{{passthrough.WrongMajor, 8, true}}},
		{"graphics in part", user + control + nvidia1 + cap147 + cap150 + "dev0: /dev/dri/card2,mode=0666\ndev1: /dev/nvidia-modeset,mode=0666\n",
			[]passthrough.GPU{mig2}, []finding{{passthrough.ControlDeviceNotGiven, 0, true}}},
		{"another NVIDIA card's DRM node", user + control + nvidia1 + cap147 + cap150 + "dev0: /dev/dri/card2,mode=0666\ndev1: /dev/nvidia-modeset,mode=0666\ndev2: /dev/dri/renderD130,mode=0666\ndev3: /dev/dri/renderD129,mode=0666\n",
			[]passthrough.GPU{mig2}, []finding{{passthrough.ControlDeviceNotGiven, 0, true}}},
		{"a rule for every card, in a privileged container", "lxc.cgroup2.devices.allow: c 226:* rwm\n", nil, []finding{{passthrough.WildcardRule, 1, false}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, problems := passthrough.Of(pveconf.Parse([]byte(tt.conf)), nodeMIG)
			if diff := cmp.Diff(tt.gpus, got.GPUs); diff != "" {
				t.Errorf("GPUs (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, findings(problems)); diff != "" {
				t.Errorf("problems (-want +got):\n%s\n%+v", diff, problems)
			}
		})
	}
}

func TestSetMIGErrors(t *testing.T) {
	lacking := passthrough.GPU{Minor: 1, MIG: &passthrough.MIG{GPUInstance: 2}}
	err := passthrough.Set(pveconf.Parse(nil), nodeMIG, wants(lacking), passthrough.ModeRaw)
	if e, ok := errors.AsType[*passthrough.GPUError](err); !ok || e.MIG == nil || e.Error() != "the GPU with minor 1 has no MIG device of GPU instance 2 and compute instance 0" {
		t.Errorf("a MIG device that is not there: %v", err)
	}
	for _, w := range []passthrough.Want{{GPUs: []passthrough.GPU{{Minor: 0}}, Graphics: true}, {GPUs: []passthrough.GPU{{Minor: 0}}, Fabric: true}} {
		err := passthrough.Set(pveconf.Parse(nil), node2, w, passthrough.ModeRaw)
		if _, ok := errors.AsType[*passthrough.NodeError](err); !ok {
			t.Errorf("%+v on a node without: %v, want a NodeError", w, err)
		}
	}
}

// FuzzSetMore holds the laws of Set on a node with MIG, DRM nodes and a fabric.
func FuzzSetMore(f *testing.F) {
	for i := range len(lines) + len(moreLines) {
		f.Add([]byte{byte(i), byte(i * 7), byte(i * 11), byte(i * 13), byte(i)}, uint8(i), uint8(i*5), i%2 == 0, i%3 == 0)
	}
	f.Fuzz(func(t *testing.T, picks []byte, bits, otherBits uint8, native, otherNative bool) {
		all := slices.Concat(lines, moreLines)
		var b strings.Builder
		for _, p := range picks[:min(len(picks), 40)] {
			b.WriteString(all[int(p)%len(all)] + "\n")
		}
		checkSetMore(t, b.String(), wantOf(bits), modeOf(native), wantOf(otherBits), modeOf(otherNative))
	})
}

func modeOf(native bool) passthrough.Mode {
	if native {
		return passthrough.ModeNative
	}
	return passthrough.ModeRaw
}

// wantOf makes a Want for nodeMIG of bits. The GPU that MIG divides is given whole or in parts.
func wantOf(bits uint8) passthrough.Want {
	var w passthrough.Want
	for i, g := range []passthrough.GPU{gpuWhole, mig1, mig2, mig3} {
		if bits>>i&1 == 1 {
			w.GPUs = append(w.GPUs, g)
		}
	}
	if bits&0b1110 == 0 && bits>>6&1 == 1 {
		w.GPUs = append(w.GPUs, passthrough.GPU{Minor: 1})
	}
	w.Graphics, w.Fabric = bits>>4&1 == 1, bits>>5&1 == 1
	return w
}

var moreLines = []string{
	"lxc.mount.entry: /dev/dri/renderD128 dev/dri/renderD128 none bind,optional,create=file", "lxc.cgroup2.devices.allow: c 226:128 rwm",
	"lxc.mount.entry: /dev/dri/renderD129 dev/dri/renderD129 none bind,optional,create=file", "lxc.cgroup2.devices.allow: c 226:129 rwm",
	"lxc.mount.entry: /dev/dri/renderD128 dev/dri/renderD129 none bind,optional,create=file", "lxc.cgroup2.devices.allow: c 226:* rwm",
	"lxc.mount.entry: /dev/nvidia-caps/nvidia-cap147 dev/nvidia-caps/nvidia-cap147 none bind,optional,create=file", "lxc.cgroup2.devices.allow: c 236:147 rwm",
	"lxc.cgroup2.devices.allow: c 235:148 rwm", "lxc.cgroup2.devices.allow: c 236:* rwm", "lxc.cgroup2.devices.deny: c 236:147 rwm", "lxc.cgroup2.devices.deny: c 226:129 rwm",
	"dev12: /dev/dri/renderD128,gid=104", "dev13: /dev/dri/renderD130,gid=104", "dev14: /dev/nvidia-caps/nvidia-cap148,mode=0666", "dev15: /dev/char/226:129,mode=0666",
	"lxc.mount.entry: /dev/nvidia-caps-imex-channels dev/nvidia-caps-imex-channels none bind,optional,create=dir", "lxc.cgroup2.devices.allow: /dev/dri/card2 rwm",
	"lxc.cgroup2.devices.allow: /dev/dri/card0 rwm",
}

// checkSetMore checks what checkSet and checkSetAndBack do.
func checkSetMore(t *testing.T, before string, w passthrough.Want, mode passthrough.Mode, other passthrough.Want, otherMode passthrough.Mode) {
	refused := false
	f := pveconf.Parse([]byte(before))
	set := func(w passthrough.Want, mode passthrough.Mode) string {
		was := string(f.Bytes())
		err := passthrough.Set(f, nodeMIG, w, mode)
		_, cutOff := errors.AsType[*passthrough.CutOffError](err)
		_, folder := errors.AsType[*passthrough.FolderError](err)
		switch {
		case cutOff && strings.Contains(before, "\x00"), folder && strings.Contains(before, "/dev/dri dev/dri"):
			refused = true
			if string(f.Bytes()) != was {
				t.Errorf("a refused Set of %q wrote %q", was, f.Bytes())
			}
		case err != nil:
			t.Fatalf("Set %+v %v of %q: %v", w, mode, was, err)
		}
		return string(f.Bytes())
	}
	// Every rule of an old major shows where its device is given.
	set(wantOf(0b111111), passthrough.ModeRaw)
	set(passthrough.Want{}, passthrough.ModeNone)
	first := set(w, mode)
	if refused {
		return
	}
	if again := set(w, mode); again != first {
		t.Errorf("Set %+v %v of %q again: %q, then %q", w, mode, before, first, again)
	}
	if canonical(before) && !canonical(first) {
		t.Errorf("Set %+v %v of %q takes its canonical form: %q", w, mode, before, first)
	}
	got, problems := passthrough.Of(f, nodeMIG)
	minors := func(gpus []passthrough.GPU) []string {
		var all []string
		for _, g := range gpus {
			s := string(rune('0' + g.Minor))
			if g.MIG != nil {
				s += g.MIG.UUID
			}
			all = append(all, s)
		}
		slices.Sort(all)
		return all
	}
	some := len(w.GPUs) > 0
	if !slices.Equal(minors(got.GPUs), minors(w.GPUs)) || got.Graphics != (some && w.Graphics) || got.Fabric != (some && w.Fabric) {
		t.Errorf("Set %+v %v of %q gives %+v", w, mode, before, got)
	}
	for _, p := range problems {
		if p.Advice == "" {
			t.Errorf("Set %+v %v of %q leaves %+v in %q", w, mode, before, p, first)
		}
	}
	if diff := cmp.Diff(sections(before), sections(first)); diff != "" {
		t.Errorf("Set %+v %v of %q changes a section (-want +got):\n%s", w, mode, before, diff)
	}
	notOurs := func(conf string) []string {
		return slices.DeleteFunc(strangers(conf), func(line string) bool {
			return strings.Contains(line, "/dev/dri/") && !strings.Contains(line, ": /dev/dri/renderD128 ")
		})
	}
	if diff := cmp.Diff(notOurs(before), notOurs(first)); diff != "" {
		t.Errorf("Set %+v %v of %q changes lines of others (-want +got):\n%s", w, mode, before, diff)
	}
	then := set(other, otherMode)
	if back := set(w, mode); back != first && !refused {
		t.Errorf("%q became %q, then %q, and then %q", before, first, then, back)
	}
}
