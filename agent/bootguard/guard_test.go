package bootguard_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"phoenix.internal/agent/bootguard"
	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/nvml"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/deploy/sandbox/nvidia"
)

// toolFor in the environment makes this program one of the driver's tools of the host in that folder.
const toolFor = "PHOENIX_TEST_TOOL_FOR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(toolFor); dir != "" {
		tools := nvidia.Tools{Tree: treeIn(dir), Out: os.Stdout, Err: os.Stderr}
		os.Exit(tools.Main(os.Args[1], os.Args[2:]))
	}
	os.Exit(m.Run())
}

func treeIn(dir string) nvidia.Tree {
	return nvidia.Tree{Root: dir, State: filepath.Join(dir, "state.json")}
}

// A node is a made-up host with confs and a guard.
type node struct {
	t     *testing.T
	dir   string
	tree  nvidia.Tree
	guard *bootguard.Guard
	log   bytes.Buffer
}

func newNode(t *testing.T, shape string) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir()}
	n.tree = treeIn(n.dir)
	if err := unix.Mknod(filepath.Join(n.dir, "node"), unix.S_IFCHR, int(unix.Mkdev(1, 3))); err != nil {
		t.Skipf("mknod: %v: device nodes need root", err)
	}
	host, err := nvidia.Shape(shape, 1)
	n.must(err)
	host.Majors = nvidia.Majors{NVIDIA: 195, UVM: 511, Caps: 501, IMEX: 502, NVLink: 503, DRM: 226}
	n.must(n.tree.Create(host))
	n.must(n.tree.Boot())
	for _, tool := range []string{"nvidia-smi", "modprobe", "phoenix-nvml"} {
		script := fmt.Sprintf("#!/bin/sh\n%s='%s' exec '%s' %s \"$@\"\n", toolFor, n.dir, os.Args[0], tool)
		n.must(os.WriteFile(filepath.Join(n.dir, tool), []byte(script), 0o755))
	}
	n.must(os.MkdirAll(filepath.Join(n.dir, "pve/nodes/pve1/lxc"), 0o755))
	n.must(os.Symlink("nodes/pve1", filepath.Join(n.dir, "pve/local")))
	n.must(os.MkdirAll(filepath.Join(n.dir, "lock"), 0o755))
	n.boots("boot 1")
	n.newGuard()
	return n
}

// newGuard is the guard of another process.
func (n *node) newGuard() {
	log := slog.New(slog.NewTextHandler(&n.log, nil))
	library := &nvml.Client{Program: filepath.Join(n.dir, "phoenix-nvml")}
	n.t.Cleanup(func() { library.Close() })
	n.guard = &bootguard.Guard{
		Containers: &container.Manager{
			Confs: &confstore.Store{PVE: filepath.Join(n.dir, "pve"), LockDir: filepath.Join(n.dir, "lock"), RevisionDir: filepath.Join(n.dir, "revisions")},
			GPUs: &gpu.Scanner{
				Sys: filepath.Join(n.dir, "sys"), Proc: filepath.Join(n.dir, "proc"), Dev: filepath.Join(n.dir, "dev"),
				SMI: filepath.Join(n.dir, "nvidia-smi"), Modprobe: filepath.Join(n.dir, "modprobe"), NVML: library,
			},
			Runtime:  &container.Proxmox{},
			StateDir: filepath.Join(n.dir, "state"),
			Log:      log,
		},
		SMI: filepath.Join(n.dir, "nvidia-smi"), Proc: filepath.Join(n.dir, "proc"), PVEWait: time.Millisecond, Log: log,
	}
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) boots(id string) {
	n.t.Helper()
	n.must(os.MkdirAll(filepath.Join(n.dir, "proc/sys/kernel/random"), 0o755))
	n.must(os.WriteFile(filepath.Join(n.dir, "proc/sys/kernel/random/boot_id"), []byte(id+"\n"), 0o644))
}

const ctid = 99901 // no container of this machine

func (n *node) conf() string {
	n.t.Helper()
	b, err := os.ReadFile(n.confPath())
	n.must(err)
	return string(b)
}

func (n *node) confPath() string {
	return filepath.Join(n.dir, "pve/nodes/pve1/lxc", fmt.Sprint(ctid)+".conf")
}

const bare = "arch: amd64\nhostname: ct\nmemory: 512\nostype: debian\nrootfs: local:subvol-1-disk-0,size=1G\n"

// apply gives the container GPUs, as an agent does before the reboot.
func (n *node) apply(op container.SetPassthrough, want gpu.Want) {
	n.t.Helper()
	n.must(os.WriteFile(n.confPath(), []byte(bare), 0o640))
	_, err := n.guard.Containers.GPUs.Prepare(n.t.Context(), want)
	n.must(err)
	_, err = n.guard.Containers.Patch(n.t.Context(), ctid, "", false, confstore.Author{Who: "alice"}, op)
	n.must(err)
}

// reboot makes the host one that has booted: no device nodes, other majors, no MIG; fn may change more.
func (n *node) reboot(fn func(*nvidia.Host)) {
	n.t.Helper()
	n.must(os.RemoveAll(filepath.Join(n.dir, "dev")))
	n.must(n.tree.Change(func(h *nvidia.Host) error {
		h.UVMAtBoot = false
		h.Boot()
		h.Majors.UVM, h.Majors.Caps = 509, 508
		if fn != nil {
			fn(h)
		}
		return nil
	}))
	n.must(os.MkdirAll(filepath.Join(n.dir, "dev"), 0o755))
	n.boots("boot 2")
	n.newGuard()
}

var volatile = regexp.MustCompile(`^time=\S+ | took=\S+`)

// run is what the guard logs, without times and nodes' folders.
func (n *node) run() []string {
	n.t.Helper()
	n.log.Reset()
	n.must(n.guard.Run(n.t.Context()))
	var lines []string
	for line := range strings.Lines(n.log.String()) {
		line = volatile.ReplaceAllString(strings.TrimSpace(line), "")
		lines = append(lines, strings.ReplaceAll(line, n.dir, "DIR"))
	}
	return lines
}

// check runs the guard, compares what it logs, and sees that a second run changes nothing.
func (n *node) check(want ...string) {
	n.t.Helper()
	if diff := cmp.Diff(want, n.run()); diff != "" {
		n.t.Errorf("log (-want +got):\n%s", diff)
	}
	files := n.files()
	n.newGuard()
	again := n.run()
	if slices.ContainsFunc(again[:len(again)-1], func(l string) bool { return strings.HasPrefix(l, "level=INFO") }) {
		n.t.Errorf("the second run did something: %q", again)
	}
	if diff := cmp.Diff(files, n.files()); diff != "" {
		n.t.Errorf("the second run changed files (-want +got):\n%s", diff)
	}
}

// files are the confs, records and revisions.
func (n *node) files() map[string]string {
	n.t.Helper()
	all := map[string]string{}
	for _, dir := range []string{"pve", "state", "revisions"} {
		n.must(filepath.WalkDir(filepath.Join(n.dir, dir), func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			all[path] = string(b)
			return err
		}))
	}
	return all
}

func (n *node) record() container.Applied {
	n.t.Helper()
	all, err := container.LoadApplied(filepath.Join(n.dir, "state"))
	n.must(err)
	return all[ctid]
}

func give(mode passthrough.Mode, indexes ...int) container.SetPassthrough {
	op := container.SetPassthrough{Mode: mode, Assignment: "0"}
	for _, i := range indexes {
		op.GPUs = append(op.GPUs, container.Selector{Index: &i})
	}
	return op
}

// before is what a conf without GPUs becomes with GPU 0.
const before = bare + `lxc.cgroup2.devices.allow: c 195:0 rwm
lxc.cgroup2.devices.allow: c 195:255 rwm
lxc.cgroup2.devices.allow: c 511:0 rwm
lxc.cgroup2.devices.allow: c 511:1 rwm
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file
`

// after returns what a boot with another major of nvidia-uvm makes of it: rules that are new stand last.
func after(minor int) string {
	return bare + fmt.Sprintf(`lxc.cgroup2.devices.allow: c 195:%[1]d rwm
lxc.cgroup2.devices.allow: c 195:255 rwm
lxc.mount.entry: /dev/nvidia%[1]d dev/nvidia%[1]d none bind,optional,create=file
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file
lxc.cgroup2.devices.allow: c 509:0 rwm
lxc.cgroup2.devices.allow: c 509:1 rwm
`, minor)
}

func TestMajorsOfThisBoot(t *testing.T) {
	n := newNode(t, "plain")
	n.apply(give(passthrough.ModeRaw, 0), gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}})
	if diff := cmp.Diff(before, n.conf()); diff != "" {
		t.Fatalf("before the boot (-want +got):\n%s", diff)
	}
	was := n.record()
	n.reboot(nil)
	n.check(
		`level=INFO msg="device nodes made" paths="[/dev/nvidia-uvm /dev/nvidia-uvm-tools /dev/nvidia0 /dev/nvidiactl]"`,
		`level=INFO msg="conf repaired" ctid=99901 revision=2`,
		`level=INFO msg="boot guarded" containers=1 left_undone=0`,
	)
	if diff := cmp.Diff(after(0), n.conf()); diff != "" {
		t.Errorf("conf (-want +got):\n%s", diff)
	}
	if now := n.record(); now.Assignment != "0" || now.Who != "alice" || now.Time != was.Time || now.GPUs[0] != was.GPUs[0] {
		t.Errorf("record %+v, want what it was: %+v", now, was)
	}
	if !n.guard.Done() {
		t.Error("the boot is not marked as guarded")
	}
}

// The old major of nvidia-uvm may be another driver's now.
func TestOldMajorIsAnotherDrivers(t *testing.T) {
	n := newNode(t, "plain")
	n.apply(give(passthrough.ModeRaw, 0), gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}})
	n.reboot(nil)
	path := filepath.Join(n.dir, "proc/devices")
	b, err := os.ReadFile(path)
	n.must(err)
	n.must(os.WriteFile(path, []byte(strings.Replace(string(b), "Character devices:\n", "Character devices:\n511 rpmb\n", 1)), 0o644))
	n.run()
	if diff := cmp.Diff(after(0), n.conf()); diff != "" {
		t.Errorf("conf (-want +got):\n%s", diff)
	}
}

func TestMinorsOfThisBoot(t *testing.T) {
	n := newNode(t, "plain")
	n.apply(give(passthrough.ModeRaw, 0), gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}})
	n.reboot(func(h *nvidia.Host) { h.GPUs[0].Minor, h.GPUs[1].Minor = 1, 0 })
	n.run()
	if diff := cmp.Diff(after(1), n.conf()); diff != "" {
		t.Errorf("conf (-want +got):\n%s", diff)
	}
}

func TestConfThatSomebodyChangedStays(t *testing.T) {
	n := newNode(t, "plain")
	n.apply(give(passthrough.ModeRaw, 0), gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}})
	for name, edit := range map[string]func(string) string{
		"a GPU more": func(s string) string {
			return s + "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file\n"
		},
		"a wildcard":  func(s string) string { return s + "lxc.cgroup2.devices.allow: c 195:* rwm\n" },
		"another GPU": func(s string) string { return strings.ReplaceAll(s, "nvidia0", "nvidia1") },
		"no GPU":      func(string) string { return bare },
	} {
		t.Run(name, func(t *testing.T) {
			changed := edit(before)
			n.must(os.WriteFile(n.confPath(), []byte(changed), 0o640))
			n.reboot(nil)
			want := `level=WARN msg="left undone" ctid=99901 err="the conf of CTID 99901 gives something else than what was last applied, so it is left as it is; apply again"`
			if got := n.run(); !slices.Contains(got, want) {
				t.Errorf("log %q, want %q in it", got, want)
			}
			if got := n.conf(); got != changed {
				t.Errorf("conf:\n%s\nwant it as it was:\n%s", got, changed)
			}
		})
	}
}

// A boot forgets MIG devices, and H100s even that they were divided. The ones that are made have new UUIDs and, here, other
// numbers, and so other capability nodes.
func TestMIGDevicesComeBack(t *testing.T) {
	for _, tt := range []struct {
		mode         passthrough.Mode
		before, want string
	}{
		{passthrough.ModeNative,
			bare + "dev0: /dev/nvidia0,mode=0666\ndev1: /dev/nvidia-caps/nvidia-cap84,mode=0666\ndev2: /dev/nvidia-caps/nvidia-cap85,mode=0666\n" + devN(3),
			bare + "dev0: /dev/nvidia0,mode=0666\ndev1: /dev/nvidia-caps/nvidia-cap66,mode=0666\ndev2: /dev/nvidia-caps/nvidia-cap67,mode=0666\n" + devN(3)},
		{passthrough.ModeRaw,
			bare + rules("195:0", "501:84", "501:85", "195:255", "511:0", "511:1") +
				mounts("nvidia0", "nvidia-caps/nvidia-cap84", "nvidia-caps/nvidia-cap85", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"),
			bare + rules("195:0", "508:66", "508:67", "195:255") +
				mounts("nvidia0", "nvidia-caps/nvidia-cap66", "nvidia-caps/nvidia-cap67", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools") +
				rules("509:0", "509:1")},
	} {
		t.Run(tt.mode.String(), func(t *testing.T) {
			n := newNode(t, "mig")
			inv, err := n.guard.Containers.GPUs.Scan(t.Context())
			n.must(err)
			device := inv.GPUs[0].MIG[1] // 9/0, 1g.10gb
			n.apply(container.SetPassthrough{GPUs: []container.Selector{{UUID: device.UUID}}, Mode: tt.mode, Assignment: "1g.10gb"},
				gpu.Want{GPUs: []gpu.Ref{{Minor: 0, MIG: &device.Instance}}})
			if diff := cmp.Diff(tt.before, sorted(n.conf())); diff != "" {
				t.Fatalf("before the boot (-want +got):\n%s", diff)
			}
			n.reboot(nil)
			got := n.run()
			inv, err = n.guard.Containers.GPUs.Scan(t.Context())
			n.must(err)
			made := inv.GPUs[0].MIG[0]
			parent := inv.GPUs[0].UUID
			want := []string{
				`level=INFO msg="device nodes made" paths="[/dev/nvidia-uvm /dev/nvidia-uvm-tools /dev/nvidia0 /dev/nvidiactl]"`,
				`level=INFO msg="MIG switched on" gpu=0000:01:00.0`,
				`level=INFO msg="MIG device made" gpu=0000:01:00.0 profile=1g.10gb gpu_instance=7 was=9`,
				`level=INFO msg="conf repaired" ctid=99901 revision=2`,
				fmt.Sprintf(`level=INFO msg="MIG device is another one now" ctid=99901 was="%s, MIG device 9/0 of %s (0000:01:00.0)" is="%s, MIG device 7/0 of %[2]s (0000:01:00.0)"`,
					device.UUID, parent, made.UUID),
				`level=INFO msg="boot guarded" containers=1 left_undone=0`,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, sorted(n.conf())); diff != "" {
				t.Errorf("conf (-want +got):\n%s", diff)
			}
			mig := container.AppliedMIG{UUID: made.UUID, GPUInstance: 7, Profile: "1g.10gb"}
			if got := *n.record().GPUs[0].MIG; got != mig || made.UUID == device.UUID {
				t.Errorf("recorded %+v, want %+v, and another UUID than %s", got, mig, device.UUID)
			}
			for _, d := range made.Nodes {
				if d.State != gpu.OK {
					t.Errorf("%s is %v", d.Path, d.State)
				}
			}
			n.newGuard()
			if diff := cmp.Diff(want[5:], n.run()); diff != "" {
				t.Errorf("log of the second run (-want +got):\n%s", diff)
			}
		})
	}
}

// devN are the entries of what every use of a GPU needs, from this number on.
func devN(first int) string {
	var b strings.Builder
	for i, name := range []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"} {
		fmt.Fprintf(&b, "dev%d: /dev/%s,mode=0666\n", first+i, name)
	}
	return b.String()
}

func rules(numbers ...string) string {
	var b strings.Builder
	for _, n := range numbers {
		fmt.Fprintf(&b, "lxc.cgroup2.devices.allow: c %s rwm\n", n)
	}
	return b.String()
}

func mounts(names ...string) string {
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "lxc.mount.entry: /dev/%[1]s dev/%[1]s none bind,optional,create=file\n", n)
	}
	return b.String()
}

// sorted is a conf with its devN at the end.
func sorted(conf string) string {
	var devices, others string
	for line := range strings.Lines(conf) {
		if strings.HasPrefix(line, "dev") {
			devices += line
		} else {
			others += line
		}
	}
	return others + devices
}

func TestWhatCannotBeDone(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*nvidia.Host)
		want   string
	}{
		{"card is gone", func(h *nvidia.Host) { h.GPUs = h.GPUs[1:] }, "is not on this node any more"},
		{"card fell off the bus", func(h *nvidia.Host) { h.GPUs[0].Fault = nvidia.Gone }, "did not initialise or fell off the bus"},
		{"card is a virtual machine's", func(h *nvidia.Host) { h.GPUs[0].Bound = "vfio-pci" }, "bound to vfio-pci"},
		{"no driver any more", func(h *nvidia.Host) { h.SetDriver(""); h.Modules = nil }, "modprobe nvidia: exit status 1"},
		{"nodes may not be made", func(h *nvidia.Host) { h.LeaveNodes = true }, "NVreg_ModifyDeviceFiles=0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, "plain")
			n.apply(give(passthrough.ModeRaw, 0), gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}})
			n.reboot(tt.change)
			got := n.run()
			if i := slices.IndexFunc(got, func(l string) bool { return strings.Contains(l, "left undone") && strings.Contains(l, tt.want) }); i < 0 {
				t.Errorf("log %q, want a line with %q", got, tt.want)
			}
			if got := n.conf(); got != before {
				t.Errorf("conf changed:\n%s", got)
			}
		})
	}
}

// Proxmox's file system may take longer than the guard waits, as a quorum may. The agent does the rest.
func TestFileSystemNotMounted(t *testing.T) {
	n := newNode(t, "plain")
	n.apply(give(passthrough.ModeRaw, 0), gpu.Want{GPUs: []gpu.Ref{{Minor: 0}}})
	n.reboot(nil)
	local := filepath.Join(n.dir, "pve/local")
	n.must(os.Remove(local))
	got := n.run()
	if len(got) < 2 || !strings.Contains(strings.Join(got, "\n"), "device nodes made") || n.guard.Done() {
		t.Errorf("log %q, done %v; want the device nodes made, and the rest for later", got, n.guard.Done())
	}
	n.must(os.Symlink("nodes/pve1", local))
	n.check(
		`level=INFO msg="conf repaired" ctid=99901 revision=2`,
		`level=INFO msg="boot guarded" containers=1 left_undone=0`,
	)
	if !n.guard.Done() {
		t.Error("the boot is not marked as guarded")
	}
}

func TestDamagedRecord(t *testing.T) {
	n := newNode(t, "plain")
	n.must(os.MkdirAll(filepath.Join(n.dir, "state/applied"), 0o700))
	n.must(os.WriteFile(filepath.Join(n.dir, "state/applied/901.json"), []byte("{"), 0o600))
	if err := n.guard.Run(t.Context()); err == nil {
		t.Error("no error for a record that cannot be read")
	}
}
