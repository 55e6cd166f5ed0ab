package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// The design's fifteen failures that must not come back, as a person would meet each: confs and a fleet file
// in, phoenix-cli, and a look from inside the containers.

// scripted are the lines that give a GPU by hand, as Phoenix itself would write them.
func scripted(n *sandboxtest.Node, minors ...int) []string {
	var rules, mounts []string
	give := func(major, minor int, name string) {
		rules = append(rules, fmt.Sprintf("lxc.cgroup2.devices.allow: c %d:%d rwm", major, minor))
		mounts = append(mounts, fmt.Sprintf("lxc.mount.entry: /dev/%[1]s dev/%[1]s none bind,optional,create=file", name))
	}
	for _, minor := range minors {
		give(n.Majors.NVIDIA, minor, fmt.Sprintf("nvidia%d", minor))
	}
	give(n.Majors.NVIDIA, 255, "nvidiactl")
	give(n.Majors.UVM, 0, "nvidia-uvm")
	give(n.Majors.UVM, 1, "nvidia-uvm-tools")
	return append(rules, mounts...)
}

// privileged makes an unprivileged container's conf that of a privileged one.
func privileged(conf string) string { return strings.Replace(conf, "unprivileged: 1\n", "", 1) }

// Another writer has patched the conf: there is nothing to change in it, and yet the container has to be
// restarted.
func TestFailure01_SecondWriterStillRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	patched := conf(901, scripted(n, 0)...)
	n.SetConf(901, patched)
	w.setFleet(`"901": {"gpu_assignment": "0"}`)

	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
	if got := n.Conf(901); got != patched {
		t.Errorf("conf is\n%s, want it as the other writer left it:\n%s", got, patched)
	}
	if got := n.PctCalls("shutdown", "stop", "start"); len(got) != 3 { // with the test's own start
		t.Errorf("calls of pct: %q, want one restart", got)
	}
}

// Lines at the end of the file stand in the snapshot's section: they have no effect, and the section stays
// as it is.
func TestFailure02_SnapshotSectionAtTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	snapshot := "\n[before]\n" + strings.Replace(conf(901, scripted(n, 0)...), "swap: 0\n", "snaptime: 1764000000\nswap: 0\n", 1)
	startWith(n, 901, conf(901)+snapshot)
	reaches(t, n, 901, "nvidia0=ENOENT nvidia1=ENOENT"+noControl)
	w.setFleet(`"901": {"gpu_assignment": "0"}`)

	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
	if got, want := n.Conf(901), conf(901, scripted(n, 0)...)+snapshot; got != want {
		t.Errorf("conf is\n%s, want\n%s", got, want)
	}
}

// The major of nvidia-uvm is another one on each node; that of some other host stands in the confs. (The
// containers are privileged: Proxmox gives unprivileged ones no device rules.)
func TestFailure03_HardCodedUVMMajor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{Nodes: 2})
	if w.nodes[0].Majors.UVM == w.nodes[1].Majors.UVM {
		t.Fatal("both nodes have the same major of nvidia-uvm")
	}
	for i, n := range w.nodes {
		ctid := int32(901 + i)
		startWith(n, ctid, privileged(strings.ReplaceAll(conf(ctid, scripted(n, 0)...), fmt.Sprintf("c %d:", n.Majors.UVM), "c 243:")))
		reaches(t, n, ctid, "nvidia0 nvidia1=ENOENT nvidiactl nvidia-uvm=EPERM nvidia-uvm-tools=EPERM")
	}
	w.setFleet(`"901": {"gpu_assignment": "0"}, "902": {"gpu_assignment": "0"}`)

	w.cli("apply")
	for i, n := range w.nodes {
		ctid := int32(901 + i)
		reaches(t, n, ctid, "nvidia0 nvidia1=ENOENT"+control)
		if strings.Contains(n.Conf(ctid), "243:") {
			t.Errorf("the conf of %d still has the other host's major:\n%s", ctid, n.Conf(ctid))
		}
	}
}

// A container with GPU 1 alone never has /dev/nvidia0; nobody waits for it.
func TestFailure04_OnlyGPU1(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	w.setFleet(`"901": {"gpu_assignment": "1"}`)

	w.cli("apply")
	reaches(t, n, 901, "nvidia0=ENOENT nvidia1"+control)
	w.inSync()
}

// Spellings of an assignment: what is clear is taken, what is not is refused with its place.
func TestFailure05_SpellingsOfAnAssignment(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	for _, tt := range []struct{ value, want string }{
		{`"0, 1"`, "nvidia0 nvidia1" + control},
		{`""`, "nvidia0=ENOENT nvidia1=ENOENT" + noControl},
		{`"1"`, "nvidia0=ENOENT nvidia1" + control},
		{`"none"`, "nvidia0=ENOENT nvidia1=ENOENT" + noControl},
		{`"1,0"`, "nvidia0 nvidia1" + control},
		{`null`, "nvidia0=ENOENT nvidia1=ENOENT" + noControl},
	} {
		w.setFleet(`"901": {"gpu_assignment": ` + tt.value + `}`)
		w.cli("apply")
		reaches(t, n, 901, tt.want)
	}
	before := n.Conf(901)
	n.ResetPctCalls()
	for _, tt := range []struct{ value, want string }{
		{`"0,"`, `:1:44: containers 901: gpu_assignment: "0," has a comma at the end`},
		{`"0,0"`, `:1:44: containers 901: gpu_assignment: GPU 0 appears twice in "0,0"; write "0"`},
		{`"7"`, `CTID 901: node pve1 has no GPU 7; it has 0, 1`},
	} {
		w.setFleet(`"901": {"gpu_assignment": ` + tt.value + `}`)
		for _, command := range []string{"plan", "apply"} {
			w.refused(1, tt.want, command)
		}
	}
	if got := n.Conf(901); got != before {
		t.Errorf("conf is\n%s, want it untouched:\n%s", got, before)
	}
	if calls := n.PctCalls(); len(calls) > 0 {
		t.Errorf("calls of pct: %q, want none", calls)
	}
}

// From "0,1" to "0": GPU 1 is gone from the conf and from the container.
func TestFailure06_FewerGPUs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	w.setFleet(`"901": {"gpu_assignment": "0,1"}`)
	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1"+control)

	w.setFleet(`"901": {"gpu_assignment": "0"}`)
	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
	if got, want := n.Conf(901), conf(901, scripted(n, 0)...); got != want {
		t.Errorf("conf is\n%s, want\n%s", got, want)
	}
}

// A privileged container may make device nodes. A wildcard rule would give it every GPU; a rule for each
// device does not.
func TestFailure07_WildcardRule(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, privileged(conf(901, append(scripted(n, 0), fmt.Sprintf("lxc.cgroup2.devices.allow: c %d:* rwm", n.Majors.NVIDIA))...)))
	makeNode := fmt.Sprintf("mknod /dev/nvidia1 c %d 1", n.Majors.NVIDIA)
	if _, stderr, code := n.Attach(901, makeNode); code != 0 {
		t.Fatalf("%s in the container: %s", makeNode, stderr)
	}
	reaches(t, n, 901, "nvidia0 nvidia1"+control)
	w.setFleet(`"901": {"gpu_assignment": "0"}`)

	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
	if _, stderr, code := n.Attach(901, makeNode); code == 0 {
		reaches(t, n, 901, "nvidia0 nvidia1=EPERM"+control)
	} else if !strings.Contains(stderr, "Operation not permitted") {
		t.Errorf("%s in the container: %s", makeNode, stderr)
	}
	w.inSync()
}

// A device that is missing is an error that names it, before anything is touched.
func TestFailure08_MissingDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{GPUs: 1})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	startWith(n, 902, conf(902))
	n.ResetPctCalls()
	w.setFleet(`"901": {"gpu_assignment": "0,1", "features": ["base_setup"]}, "902": {"gpu_assignment": "0"}`)

	w.refused(1, "CTID 901: node pve1 has no GPU 1; it has 0", "apply")
	if got := n.Conf(901); got != conf(901) {
		t.Errorf("conf of 901 is\n%s, want it untouched", got)
	}
	if calls := n.PctCalls(); len(calls) != 2 || strings.Contains(strings.Join(calls, " "), "901") {
		t.Errorf("calls of pct: %q, want a restart of 902 alone", calls)
	}
	reaches(t, n, 901, "nvidia0=ENOENT"+noControl)
	reaches(t, n, 902, "nvidia0"+control) // one failed container stops no other
	if _, _, code := n.Attach(901, "test -e /etc/phoenix/base_setup"); code == 0 {
		t.Error("the feature's script ran in 901, which has not got its GPUs")
	}
}

// The devices are not all there yet when the container runs. The feature's script waits for them, or it
// would fail.
func TestFailure09_InstallerBeforeTheDevices(t *testing.T) {
	t.Parallel()
	features := t.TempDir()
	const script = `#!/bin/sh
touch /root/installer
for device in nvidia0 nvidiactl nvidia-uvm; do
	why=$( (exec 3</dev/$device) 2>&1 )
	case $why in *"No such device or address") ;; *) echo "$device: $why" >&2; exit 1;; esac
done
`
	if err := os.WriteFile(filepath.Join(features, "installer.sh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, sandboxtest.Options{FeaturesDir: features})
	n := w.nodes[0]
	n.Add(901, conf(901))
	// At each boot /dev/nvidia-uvm is covered until the test lets it be seen.
	const init = `#!/bin/sh
trap 'exit 0' PWR TERM
[ ! -e /dev/nvidia-uvm ] || mount --bind /dev/null /dev/nvidia-uvm
while :; do sleep 86400 & wait $!; done
`
	if err := os.WriteFile(filepath.Join(w.Rootfs(n.Name, 901), "usr/sbin/init"), []byte(init), 0o755); err != nil {
		t.Fatal(err)
	}
	n.Must("pct", "start", "901")
	w.setFleet(`"901": {"gpu_assignment": "0", "features": ["installer"]}`)

	apply := w.start("apply")
	apply.await("verify devices: waiting: /dev/nvidia-uvm: wrong number")
	if _, _, code := n.Attach(901, "test -e /root/installer"); code == 0 {
		t.Error("the script ran before the devices were there")
	}
	if _, stderr, code := n.Attach(901, "umount /dev/nvidia-uvm"); code != 0 {
		t.Fatal(stderr)
	}
	if code := apply.wait(); code != 0 {
		t.Fatalf("apply: exit status %d\n%s", code, apply.output())
	}
	if _, _, code := n.Attach(901, "test -e /root/installer"); code != 0 {
		t.Error("the script did not run")
	}
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
}

// After a reboot of the host nvidia-uvm has another major, its node is missing until something makes it, and
// another one is stale.
func TestFailure10_AfterReboot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	startWith(n, 902, conf(902))
	w.setFleet(`"901": {"gpu_assignment": "0"}, "902": {"gpu_assignment": "1", "passthrough_mode": "native"}`)
	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)

	n.Must("pct", "stop", "901")
	n.Must("pct", "stop", "902")
	major := moveUVM(t, n)
	n.Must("rm", "/dev/nvidia-uvm") // and nvidia-uvm-tools keeps the old major
	n.Must("pct", "start", "901")
	if _, _, code := n.Run("pct", "start", "902"); code == 0 {
		t.Error("902 started without its native device: this test shows nothing")
	}

	w.cli("apply", "--start")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
	reaches(t, n, 902, "nvidia0=ENOENT nvidia1"+control)
	if rule := fmt.Sprintf("lxc.cgroup2.devices.allow: c %d:0 rwm\n", major); !strings.Contains(n.Conf(901), rule) {
		t.Errorf("conf is\n%s, want %s in it", n.Conf(901), rule)
	}
	w.inSync()
}

// moveUVM gives nvidia-uvm another major in the node's /proc/devices and returns that.
func moveUVM(t *testing.T, n *sandboxtest.Node) int {
	t.Helper()
	path := filepath.Join(n.Dir(), "proc", "devices") // bound over the node's: it has to stay the same file
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	major := n.Majors.UVM
	for strings.Contains(string(b), fmt.Sprintf("%3d ", major)) {
		major--
	}
	moved := strings.Replace(string(b), fmt.Sprintf("%3d nvidia-uvm\n", n.Majors.UVM), fmt.Sprintf("%3d nvidia-uvm\n", major), 1)
	if moved == string(b) {
		t.Fatalf("no nvidia-uvm in\n%s", b)
	}
	if err := os.WriteFile(path, []byte(moved), 0o644); err != nil {
		t.Fatal(err)
	}
	return major
}

// A container that was cloned from one with the driver has no nvidia feature of its own, and gets its GPU
// all the same.
func TestFailure11_NoNvidiaFeature(t *testing.T) {
	t.Parallel()
	fleet := filepath.Join(t.TempDir(), "phoenix_lxc_configs.json")
	if err := os.WriteFile(fleet, []byte(`{"lxc_configs": {
		"901": {"unprivileged": true, "gpu_assignment": "0", "features": ["nvidia"]},
		"911": {"unprivileged": true, "gpu_assignment": "1", "clone_from_ctid": "901", "features": ["vllm"]}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, sandboxtest.Options{Fleet: fleet})
	n := w.nodes[0]

	out := w.cli("apply")
	if want := ": driver " + n.Driver + " shows exactly what is assigned"; strings.Count(out, want) != 2 {
		t.Errorf("apply does not say %q of two containers:\n%s", want, out)
	}
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
	reaches(t, n, 911, "nvidia0=ENOENT nvidia1"+control)
}

// A dependency that is a VM, and one that no node has, are told and hinder nothing.
func TestFailure12_DependencyThatIsNoContainer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	vm := filepath.Join(n.Dir(), "pve", "nodes", n.Name, "qemu-server", "1001.conf")
	if err := os.WriteFile(vm, []byte("name: identity\nmemory: 512\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	w.setFleet(`"901": {"gpu_assignment": "0", "dependencies": ["1001", "1002"]}`)

	for _, tt := range []struct {
		command string
		want    []string
	}{
		{"validate", []string{"1001 is not in this file", "1002 is not in this file"}},
		{"plan", []string{
			"note: dependency 1001 is a VM on node pve1: nothing waits for it",
			"note: dependency 1002 is not in the fleet file, and no node that answers has it: nothing waits for it",
		}},
		{"apply", []string{"1 succeeded"}},
	} {
		got := w.cli(tt.command)
		for _, words := range tt.want {
			if !strings.Contains(got, words) {
				t.Errorf("%s does not say %q:\n%s", tt.command, words, got)
			}
		}
	}
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
}

// Two copies of an entry in different forms, one in a comment, and one for nvidia10 are not the entry of
// nvidia1.
func TestFailure13_CopiesCommentsAndPrefixes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	const comment = "#lxc.mount.entry /dev/nvidia1 dev/nvidia1 none bind,optional,create=file\n"
	startWith(n, 901, comment+conf(901,
		fmt.Sprintf("lxc.cgroup2.devices.allow = c %d:0 rwm", n.Majors.NVIDIA),
		fmt.Sprintf("lxc.cgroup2.devices.allow: c %d:0 rwm", n.Majors.NVIDIA),
		"lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
		"lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
		fmt.Sprintf("lxc.cgroup2.devices.allow: c %d:10 rwm", n.Majors.NVIDIA),
		"lxc.mount.entry: /dev/nvidia10 dev/nvidia10 none bind,optional,create=file",
	))
	w.setFleet(`"901": {"gpu_assignment": "0,1"}`)

	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1"+control)
	got := n.Conf(901)
	for part, want := range map[string]int{
		comment: 1, fmt.Sprintf("c %d:0 rwm", n.Majors.NVIDIA): 1, fmt.Sprintf("c %d:1 rwm", n.Majors.NVIDIA): 1,
		"/dev/nvidia0 ": 1, "/dev/nvidia1 ": 2, "/dev/nvidia10": 0, fmt.Sprintf("c %d:10 ", n.Majors.NVIDIA): 0,
	} {
		if strings.Count(got, part) != want {
			t.Errorf("%q stands %d times in the conf, want %d times:\n%s", part, strings.Count(got, part), want, got)
		}
	}
}

// A clone, and a container rolled back to a snapshot, bring the GPU entries of another time with them.
func TestFailure14_EntriesOfACloneOrSnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901, scripted(n, 0, 1)...))
	startWith(n, 911, strings.ReplaceAll(n.Conf(901), "ct901", "ct911")) // a clone
	startWith(n, 912, conf(912))
	const fleet = `"901": {"gpu_assignment": "0,1"}, "911": {"gpu_assignment": "1", "clone_from_ctid": "901"}, "912": {"gpu_assignment": "0"}`
	w.setFleet(fleet)
	w.cli("apply")
	reaches(t, n, 911, "nvidia0=ENOENT nvidia1"+control)
	reaches(t, n, 912, "nvidia0 nvidia1=ENOENT"+control)

	n.Must("pct", "stop", "912") // a roll-back puts the snapshot's section into the place of the conf
	n.SetConf(912, conf(912, scripted(n, 1)...))
	n.Must("pct", "start", "912")
	reaches(t, n, 912, "nvidia0=ENOENT nvidia1"+control)
	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1"+control)
	reaches(t, n, 911, "nvidia0=ENOENT nvidia1"+control)
	reaches(t, n, 912, "nvidia0 nvidia1=ENOENT"+control)
}

// The source of a bind was missing at the start: an empty file stands in the container in its place.
func TestFailure15_EmptyFileInPlaceOfTheDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	n.Must("rm", "/dev/nvidia0")
	startWith(n, 901, conf(901, scripted(n, 0)...))
	n.Must("mknod", "-m", "666", "/dev/nvidia0", "c", fmt.Sprint(n.Majors.NVIDIA), "0")
	reaches(t, n, 901, "nvidia0=file nvidia1=ENOENT"+control)
	w.setFleet(`"901": {"gpu_assignment": "0"}`)

	stdout, _, code := w.CLI("probe", "901")
	if code != 1 || !strings.Contains(stdout, "not a device") {
		t.Errorf("probe: exit status %d, want 1 and \"not a device\":\n%s", code, stdout)
	}
	w.refused(1, "", "status", "--exit-code")
	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
	w.inSync()
}
