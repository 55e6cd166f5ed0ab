package passthrough_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

var modes = []passthrough.Mode{passthrough.ModeRaw, passthrough.ModeNative}

// seeds are the befores of testdata/set and some lines that no person writes.
func seeds(f *testing.F) []string {
	f.Helper()
	paths, err := filepath.Glob("testdata/set/*.txt")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds in testdata/set: %v", err)
	}
	var confs []string
	for _, p := range paths {
		confs = append(confs, readCase(f, p).before)
	}
	// What Proxmox itself wrote.
	paths, err = filepath.Glob("../pveconf/testdata/pve/real-*.rewritten.conf")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no confs of Proxmox's own: %v", err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		confs = append(confs, string(b))
	}
	return append(confs,
		"",
		"[snap]\n",
		"lxc.cgroup2.devices.allow: c 195:1 rwm\nlxc.cgroup2.devices.deny: c 195:1 rwm\n",
		"lxc.cgroup2.devices.allow:\nlxc.cgroup2.devices.allow: a\nlxc.cgroup2.devices.deny: a\n",
		"lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file\nlxc.mount.entry:\n",
		"lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file\rlxc.hook.start = /x\n",
		"dev0: /dev/fuse\ndev0: /dev/nvidia0\n[pve:pending]\ndev1: /dev/fuse\ndelete: dev2\n",
		"dev3: /dev/nvidia0, mode=0666\ndev4: path=/dev//nvidia1,gid=44\n",
		"lxc.mount.entry: \"/dev/nvidia1 ./dev/nvidia1 none rbind,create=file\"\n",
		"lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,create=file\nlxc.cgroup2.devices.allow: c 499:* rwm\n",
	)
}

func minorsOf(bits uint8) []int {
	var minors []int
	for i := range 2 {
		if bits>>i&1 == 1 {
			minors = append(minors, i)
		}
	}
	return minors
}

// FuzzSet holds the laws of Set on any conf.
func FuzzSet(f *testing.F) {
	for _, conf := range seeds(f) {
		for bits := range uint8(4) {
			f.Add(conf, bits, bits%2 == 0)
		}
	}
	f.Fuzz(checkSet)
}

// FuzzSetLines makes confs of lines that have something to do with each other.
func FuzzSetLines(f *testing.F) {
	f.Add([]byte{}, uint8(3), false)
	for i := range lines {
		f.Add([]byte{byte(i), byte(i * 7), byte(i * 11), byte(i * 13), byte(i)}, uint8(i), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, picks []byte, bits uint8, native bool) {
		checkSet(t, confOf(picks), bits, native)
		checkSetAndBack(t, confOf(picks), bits, native, bits>>2, bits>>4&1 == 1)
	})
}

// confOf makes a conf of one of lines for each pick, at most 40.
func confOf(picks []byte) string {
	var b strings.Builder
	for _, p := range picks[:min(len(picks), 40)] {
		b.WriteString(lines[int(p)%len(lines)] + "\n")
	}
	return b.String()
}

var lines = []string{
	"", "# notes", "arch: amd64", "memory: 512", "unprivileged: 1", "lxc.idmap: u 0 100000 65536", "lxc.autodev: 0", "tags: gpu",
	"[snap]", "[pve:pending]", "delete: dev0,dev1", "lxc.apparmor.profile: unconfined", "lxc.mount.entry : /dev/nvidia0 dev/nvidia0 none bind",
	"lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
	"lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,create=file",
	"lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file",
	"lxc.mount.entry: /dev/nvidia1 /dev/nvidia1 none bind,optional,create=file",
	"lxc.mount.entry: /dev/nvidia1 dev/nvidia0 none bind,optional,create=file",
	"lxc.mount.entry: /dev/nvidia10 dev/nvidia10 none bind,optional,create=file",
	"lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file",
	"lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file",
	"lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file",
	"lxc.mount.entry: /dev/nvidia-modeset dev/nvidia-modeset none bind,create=file",
	"lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir",
	"lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir",
	"lxc.mount.entry:",
	"lxc.cgroup2.devices.allow: c 195:* rwm", "lxc.cgroup2.devices.allow: c 195:0 rwm", "lxc.cgroup2.devices.allow = c 195:1 rw",
	"lxc.cgroup2.devices.allow: c 195:1 rwm", "lxc.cgroup2.devices.allow: c 195:255 rwm", "lxc.cgroup2.devices.allow: c 511:0 rwm",
	"lxc.cgroup2.devices.allow: c 511:1 rwm", "lxc.cgroup2.devices.allow: c 511:* rwm", "lxc.cgroup2.devices.allow: c 510:0 rwm",
	"lxc.cgroup2.devices.allow: c 243:* rwm", "lxc.cgroup2.devices.allow: c 236:1 r", "lxc.cgroup2.devices.allow: c *:* rwm",
	"lxc.cgroup2.devices.allow: c *:1 rw", "lxc.cgroup2.devices.allow: a", "lxc.cgroup2.devices.allow:", "lxc.cgroup2.devices.allow: b 195:0 rwm",
	"lxc.cgroup2.devices.allow: /dev/nvidia-uvm rwm", "lxc.cgroup2.devices.allow: /dev/nvidia1 rw", "lxc.cgroup2.devices.allow: c 195:0-3 rwm",
	"lxc.cgroup2.devices.deny: a", "lxc.cgroup2.devices.deny:", "lxc.cgroup2.devices.deny: c 195:1 rwm", "lxc.cgroup2.devices.deny: c 195:* rwm",
	"lxc.cgroup2.devices.deny: c 511:0 rwm", "lxc.cgroup.devices.allow: c 195:0 rwm", "lxc.cgroup.devices.allow: c 510:* rwm",
	"dev0: /dev/nvidia0,mode=0666", "dev1: /dev/nvidia1", "dev2: path=/dev/nvidiactl,gid=44", "dev3: /dev/nvidia-uvm,deny-write=1",
	"dev256: /dev/nvidia1,mode=0666", "dev007: /dev/nvidia-caps/nvidia-cap1", "dev9: /dev/char/195:1,mode=0666", "dev10: /dev/nvidiactl/", "dev11: /dev/nvidia-caps",
	"lxc.mount.entry: /dev dev none rbind,create=dir", "lxc.mount.entry: /dev/char/195:0 dev/nvidia0 none bind,create=file", "lxc.mount.entry: /dev/nvidia* dev none bind,optional,create=file",
	"lxc.mount.entry: /dev/nvidiactl /var/lib/lxc/101/rootfs/dev/nvidiactl none bind,create=file", "lxc.mount.entry: /dev/nvidia0/ dev/nvidia0 none bind,optional,create=file",
	"lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,ro,nodev,create=file", "lxc.cgroup2.devices.allow: a 195:1 rwm", "lxc.cgroup2.devices.allow: c 0303:0 rwm # GPU",
	"lxc.environment: A=\x00B", "lxc.cgroup2.devices.allow:\x00", "lxc.mount.entry: \x00 x", "lxc.cgroup2.devices.deny: c 195:0 rwm\x00", "lxc.environment: LANG=C\rlxc.hook.start = /x", "lxc.idmap:", "mp0: /dev,mp=/host", "lxc.cgroup2.devices.allow: /dev/nvidia7 rwm",
	"lxc.cgroup2.devices.deny: 10:200 rwm", "lxc.hook.mount: /usr/share/lxc/hooks/nvidia", "unprivileged: maybe", "lxc.autodev: 1",
	"dev4: /dev/nvidia-uvm-tools, mode=0666", "dev5: /dev/nvidia0", "dev6: /dev/fuse", "dev0: /dev/kvm", "dev7: /dev/nvidia7", "dev8: mode=0666",
}

// checkSet checks the laws of one Set on node2.
func checkSet(t *testing.T, before string, bits uint8, native bool) {
	minors, mode := minorsOf(bits), modes[0]
	if native {
		mode = modes[1]
	}
	conf := pveconf.Parse([]byte(before))
	err := passthrough.Set(conf, node2, whole(minors), mode)
	after := string(conf.Bytes())
	if _, ok := errors.AsType[*passthrough.CutOffError](err); ok && after == before && strings.Contains(before, "\x00") {
		return
	}
	if err != nil {
		t.Fatalf("Set of %q: %v", before, err)
	}

	again := pveconf.Parse([]byte(after))
	if err := passthrough.Set(again, node2, whole(minors), mode); err != nil {
		t.Fatalf("Set of %q: %v", after, err)
	}
	if diff := cmp.Diff(after, string(again.Bytes())); diff != "" {
		t.Errorf("Set %v %v of %q again changes it (-once +twice):\n%s", minors, mode, before, diff)
	}

	// Proxmox's next rewrite changes nothing of ours.
	if canonical(before) && !canonical(after) {
		t.Errorf("Set %v %v of %q takes its canonical form: %q", minors, mode, before, after)
	}

	got, problems := passthrough.Of(pveconf.Parse([]byte(after)), node2)
	var gotMinors []int
	for _, g := range got.GPUs {
		gotMinors = append(gotMinors, g.Minor)
	}
	slices.Sort(gotMinors)
	if len(minors) == 0 {
		mode = passthrough.ModeNone
	}
	if !slices.Equal(gotMinors, minors) || got.Mode != mode {
		t.Errorf("Set %v %v of %q gives the minors %v, %v", minors, mode, before, gotMinors, got.Mode)
	}
	for _, p := range problems {
		if p.Advice == "" {
			t.Errorf("Set %v %v of %q leaves %+v in %q", minors, mode, before, p, after)
		}
	}

	if diff := cmp.Diff(sections(before), sections(after)); diff != "" {
		t.Errorf("Set %v %v of %q changes a section (-want +got):\n%s", minors, mode, before, diff)
	}

	// What may not be an NVIDIA entry stays in its order; what is new is a line of ours.
	if diff := cmp.Diff(strangers(before), strangers(after)); diff != "" {
		t.Errorf("Set %v %v of %q changes lines of others (-want +got):\n%s", minors, mode, before, diff)
	}
	rest := split(before)
	for _, line := range split(after) {
		if ours(line) {
			continue
		}
		i := slices.Index(rest, line)
		if i < 0 {
			t.Fatalf("Set %v %v of %q adds the line %q", minors, mode, before, line)
		}
		rest = rest[i+1:]
	}
}

// sections returns what begins with the first header.
func sections(conf string) string {
	_, sections := pveconf.Split([]byte(conf))
	return string(sections)
}

func canonical(conf string) bool {
	b, err := pveconf.Parse([]byte(conf)).Canonical()
	return err == nil && string(b) == conf
}

// strangers returns the lines that are certainly no NVIDIA entries.
func strangers(conf string) []string {
	return slices.DeleteFunc(strings.Split(strings.TrimSuffix(conf, "\n"), "\n"), func(line string) bool {
		return line == "" || strings.Contains(line, "nvidia") || strings.Contains(line, ".devices.allow") || strings.HasPrefix(line, "dev")
	})
}

// split splits as LXC does, at CR and LF.
func split(conf string) []string {
	return strings.FieldsFunc(conf, func(r rune) bool { return r == '\r' || r == '\n' })
}

// ours says whether a line is one that Set writes for node2.
func ours(line string) bool {
	for _, n := range node2.Nodes {
		name := strings.TrimPrefix(n.Path, "/")
		if line == "lxc.mount.entry: /"+name+" "+name+" none bind,optional,create=file" ||
			strings.HasPrefix(line, "dev") && strings.HasSuffix(line, ": /"+name+",mode=0666") {
			return true
		}
	}
	return slices.Contains([]string{
		"lxc.cgroup2.devices.allow: c 195:0 rwm", "lxc.cgroup2.devices.allow: c 195:1 rwm", "lxc.cgroup2.devices.allow: c 195:255 rwm",
		"lxc.cgroup2.devices.allow: c 511:0 rwm", "lxc.cgroup2.devices.allow: c 511:1 rwm",
	}, line)
}

// FuzzSetAndBack holds the law that setting something else and then the first again gives the first bytes.
func FuzzSetAndBack(f *testing.F) {
	for _, conf := range seeds(f) {
		f.Add(conf, uint8(1), false, uint8(2), false)
		f.Add(conf, uint8(3), false, uint8(3), true)
		f.Add(conf, uint8(3), true, uint8(0), true)
	}
	f.Fuzz(checkSetAndBack)
}

func checkSetAndBack(t *testing.T, base string, bits uint8, native bool, otherBits uint8, otherNative bool) {
	conf := pveconf.Parse([]byte(base))
	cutOff := false
	step := func(bits uint8, native bool) string {
		mode := modes[0]
		if native {
			mode = modes[1]
		}
		err := passthrough.Set(conf, node2, whole(minorsOf(bits)), mode)
		if _, ok := errors.AsType[*passthrough.CutOffError](err); ok {
			cutOff = true
		} else if err != nil {
			t.Fatalf("Set of %q: %v", conf.Bytes(), err)
		}
		return string(conf.Bytes())
	}
	// So that the first form is ours: a rule of an old major shows only where nvidia-uvm is given.
	step(1, false)
	step(0, false)
	first := step(bits, native)
	other := step(otherBits, otherNative)
	back := step(bits, native)
	if cutOff {
		return // checkSet has that
	}
	if diff := cmp.Diff(first, back); diff != "" {
		t.Errorf("%q became %q, then %q, and then (-want +got):\n%s", base, first, other, diff)
	}
}
