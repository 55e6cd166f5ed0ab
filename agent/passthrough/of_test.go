package passthrough_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

var (
	gpu0 = passthrough.GPU{Index: 1, UUID: "GPU-a", Minor: 0}
	gpu1 = passthrough.GPU{Index: 0, UUID: "GPU-b", Minor: 1}

	devNVIDIA0 = passthrough.Device{Path: "/dev/nvidia0", Major: 195, Minor: 0}
	devNVIDIA1 = passthrough.Device{Path: "/dev/nvidia1", Major: 195, Minor: 1}
	devControl = passthrough.Device{Path: "/dev/nvidiactl", Major: 195, Minor: 255}
	devUVM     = passthrough.Device{Path: "/dev/nvidia-uvm", Major: 511, Minor: 0}
	devTools   = passthrough.Device{Path: "/dev/nvidia-uvm-tools", Major: 511, Minor: 1}
)

func TestOf(t *testing.T) {
	const shared = `lxc.cgroup2.devices.allow: c 195:255 rwm
lxc.cgroup2.devices.allow: c 511:0 rwm
lxc.cgroup2.devices.allow: c 511:1 rwm
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file
`
	ruleControl := passthrough.Rule{Type: 'c', Major: 195, Minor: 255, Access: "rwm"}
	ruleUVM := passthrough.Rule{Type: 'c', Major: 511, Minor: 0, Access: "rwm"}
	ruleTools := passthrough.Rule{Type: 'c', Major: 511, Minor: 1, Access: "rwm"}
	for _, tt := range []struct {
		name string
		conf string
		want passthrough.Passthrough
	}{
		{"nothing", "arch: amd64\n", passthrough.Passthrough{}},
		{"raw", "unprivileged: 1\nlxc.cgroup2.devices.allow: c 195:1 rwm\nlxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file\n" + shared,
			passthrough.Passthrough{
				GPUs: []passthrough.GPU{gpu1}, Mode: passthrough.ModeRaw,
				Devices: []passthrough.Device{devUVM, devTools, devNVIDIA1, devControl},
				Rules:   []passthrough.Rule{{Type: 'c', Major: 195, Minor: 1, Access: "rwm"}, ruleControl, ruleUVM, ruleTools},
			}},
		{"native, in every form", "dev0: /dev/nvidia0,mode=0666\ndev9: mode=0600,path=/dev/nvidia1,uid=1000\ndev10: /dev/fuse\n",
			passthrough.Passthrough{
				GPUs: []passthrough.GPU{gpu1, gpu0}, Mode: passthrough.ModeNative,
				Devices: []passthrough.Device{devNVIDIA0, devNVIDIA1},
			}},
		{"mixed", "dev0: /dev/nvidia0\nlxc.mount.entry = /dev/nvidiactl dev/nvidiactl none rw,bind,create=file 0 0\n",
			passthrough.Passthrough{
				GPUs: []passthrough.GPU{gpu0}, Mode: passthrough.ModeMixed,
				Devices: []passthrough.Device{devNVIDIA0, devControl},
			}},
		{"GPUs by index", "dev0: /dev/nvidia0\ndev1: /dev/nvidia7\ndev2: /dev/nvidia1\n",
			passthrough.Passthrough{
				GPUs: []passthrough.GPU{{Index: -1, Minor: 7}, gpu1, gpu0}, Mode: passthrough.ModeNative,
				Devices: []passthrough.Device{devNVIDIA0, devNVIDIA1, {Path: "/dev/nvidia7", Major: -1, Minor: -1}},
			}},
		{"under another name in the container", "lxc.mount.entry: /dev/nvidia1 dev/nvidia0 none bind,create=file\n",
			passthrough.Passthrough{
				GPUs: []passthrough.GPU{gpu1}, Mode: passthrough.ModeRaw,
				Devices: []passthrough.Device{{Path: "/dev/nvidia0", Major: 195, Minor: 1}},
			}},
		{"only rules", "lxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: /dev/nvidia-uvm rw\nlxc.cgroup2.devices.allow: c 10:200 rwm\n",
			passthrough.Passthrough{Rules: []passthrough.Rule{
				{Type: 'c', Major: 195, Minor: -1, Access: "rwm"}, {Type: 'c', Major: 511, Minor: 0, Access: "rw"},
			}}},
		{"no effect: absolute target, not bound, commented out, in a snapshot",
			"#dev0: /dev/nvidia0\nlxc.mount.entry: /dev/nvidia0 /dev/nvidia0 none bind,create=file\nlxc.mount.entry: /dev/nvidia1 dev/nvidia1 none create=file\n[sn]\ndev0: /dev/nvidia0\n",
			passthrough.Passthrough{}},
		{"target below the root file system is as good as a relative one",
			"lxc.mount.entry: /dev/nvidia0 /var/lib/lxc/101/rootfs/dev/nvidia0 none bind,create=file\n",
			passthrough.Passthrough{GPUs: []passthrough.GPU{gpu0}, Mode: passthrough.ModeRaw, Devices: []passthrough.Device{devNVIDIA0}}},
		{"a directory", "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir\n",
			passthrough.Passthrough{Mode: passthrough.ModeRaw, Devices: []passthrough.Device{{Path: "/dev/nvidia-caps", Major: -1, Minor: -1}}}},
		{"neither a part of a path nor a part of a name",
			"lxc.mount.entry: /srv/dev/nvidia0 srv/x none bind,create=file\nlxc.mount.entry: /dev/nvidiafoo dev/x none bind,create=file\ndev0: /dev/nvidia\n",
			passthrough.Passthrough{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := passthrough.Of(pveconf.Parse([]byte(tt.conf)), node2)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Of %q (-want +got):\n%s", tt.conf, diff)
			}
		})
	}
}

// A finding is what the tests say of a problem.
type finding struct {
	Kind   passthrough.Kind
	Line   int
	Mended bool // Set mends it
}

func findings(problems []passthrough.Problem) []finding {
	var found []finding
	for _, p := range problems {
		found = append(found, finding{p.Kind, p.Line, p.Advice == ""})
	}
	return found
}

func TestProblems(t *testing.T) {
	// What a conf needs besides the entries in question so that they are all that is wrong.
	const (
		uvm      = "lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,create=file\n"
		nvidia0  = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file\n"
		nvidia1  = "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,create=file\n"
		control  = "lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,create=file\n"
		tools    = "lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,create=file\n"
		user     = "unprivileged: 1\n"
		userGPU0 = user + nvidia0 + control + uvm + tools // lines 1 to 5
	)
	for _, tt := range []struct {
		name string
		conf string
		want []finding
	}{
		{"right, unprivileged, without rules", userGPU0, nil},
		{"GPU of a minor that the node lacks", userGPU0 + "lxc.mount.entry: /dev/nvidia3 dev/nvidia3 none bind,create=file\n",
			[]finding{{passthrough.DeviceGone, 6, true}}},
		{"devN of a minor that the node lacks", userGPU0 + "dev0: /dev/nvidia3,mode=0666\n", []finding{{passthrough.DeviceGone, 6, true}}},
		{"a capability that the driver does not have", userGPU0 + "lxc.mount.entry: /dev/nvidia-caps/nvidia-cap1 dev/nvidia-caps/nvidia-cap1 none bind,create=file\nlxc.cgroup2.devices.allow: c 236:1 r\n",
			[]finding{{passthrough.DeviceGone, 6, true}}},
		{"nvidia-uvm's major of another boot", userGPU0 + "lxc.cgroup2.devices.allow: c 510:0 rwm\n", []finding{{passthrough.WrongMajor, 6, true}}},
		{"the same without nvidia-uvm: a stranger's", user + "lxc.cgroup2.devices.allow: c 510:0 rwm\n", nil},
		{"a minor that nvidia-uvm does not have: a stranger's", userGPU0 + "lxc.cgroup2.devices.allow: c 510:2 rwm\n", nil},
		{"a static major: a stranger's", userGPU0 + "lxc.cgroup2.devices.allow: c 189:* rwm\n", nil},
		{"a major that another driver has now", userGPU0 + "lxc.cgroup2.devices.allow: c 243:* rwm\n", []finding{{passthrough.WrongMajor, 6, false}}},
		{"the same beside another device: a stranger's", userGPU0 + "dev0: /dev/drm_dp_aux0\nlxc.cgroup2.devices.allow: c 243:* rwm\n", nil},
		{"control devices not given", user + nvidia0 + control,
			[]finding{{passthrough.ControlDeviceNotGiven, 0, true}, {passthrough.ControlDeviceNotGiven, 0, true}}},
		{"control devices without a GPU", user + control + uvm, nil},
		{"privileged, rules missing", "lxc.cgroup2.devices.allow: c 195:255 rw\nlxc.cgroup2.devices.allow: /dev/nvidia-uvm rwm\nlxc.cgroup2.devices.allow: c 511:1 r\n" + nvidia0 + control + uvm + tools,
			[]finding{{passthrough.Privileged, 0, false}, {passthrough.RuleMissing, 4, true}, {passthrough.RuleMissing, 7, true}}},
		{"a raw id map makes it unprivileged", "lxc.idmap: u 0 100000 65536\n" + nvidia0 + control + uvm + tools, nil},
		{"denied", userGPU0 + "lxc.cgroup2.devices.deny: c 195:* rwm\n",
			[]finding{{passthrough.RuleMissing, 2, false}, {passthrough.RuleMissing, 3, false}}},
		{"rule without a mount", userGPU0 + "lxc.cgroup2.devices.allow: c 195:1 rwm\n", []finding{{passthrough.MountMissing, 6, true}}},
		{"rule by path without a mount", userGPU0 + "lxc.cgroup2.devices.allow: /dev/nvidia1 rwm\n", []finding{{passthrough.MountMissing, 6, true}}},
		{"wildcards", userGPU0 + "lxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: c 511:* rwm\n",
			[]finding{{passthrough.WildcardRule, 6, true}, {passthrough.WildcardRule, 7, true}}},
		{"wider wildcards are not NVIDIA's alone", userGPU0 + "lxc.cgroup2.devices.allow: c *:* rwm\nlxc.cgroup2.devices.allow: c *:1 rw\nlxc.cgroup2.devices.allow: c *:* m\n",
			[]finding{{passthrough.WildcardRule, 6, false}, {passthrough.WildcardRule, 7, false}}},
		{"everything allowed", userGPU0 + "lxc.cgroup2.devices.allow: a\n", []finding{{passthrough.WildcardRule, 6, false}}},
		{"duplicates in different forms", userGPU0 + "lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\nlxc.cgroup2.devices.allow: c 195:0 rwm\nlxc.cgroup2.devices.allow=c 195:0 rw\n",
			[]finding{{passthrough.DuplicateEntry, 6, true}, {passthrough.DuplicateEntry, 8, true}}},
		{"duplicate devN", "dev0: /dev/nvidiactl,mode=0666\ndev1: path=/dev/nvidiactl,mode=0666\n", []finding{{passthrough.DuplicateEntry, 2, true}}},
		{"raw and devN", userGPU0 + "dev0: /dev/nvidia0,mode=0666\n", []finding{{passthrough.ModeConflict, 2, true}}},
		{"absolute target", userGPU0 + "lxc.mount.entry: /dev/nvidia1 /dev/nvidia1 none bind,create=file\n", []finding{{passthrough.NoEffect, 6, true}}},
		{"cgroup v1", userGPU0 + "lxc.cgroup.devices.allow: c 195:0 rwm\n", []finding{{passthrough.NoEffect, 6, true}}},
		{"cancelled by an empty value", userGPU0 + "lxc.mount.entry:\n" + nvidia0 + control + uvm + tools,
			[]finding{{passthrough.NoEffect, 2, true}, {passthrough.NoEffect, 3, true}, {passthrough.NoEffect, 4, true}, {passthrough.NoEffect, 5, true}}},
		{"autodev off", "lxc.autodev: 0\ndev0: /dev/nvidiactl,mode=0666\n", []finding{{passthrough.NoEffect, 2, false}}},
		{"devN that denies writing", "dev0: /dev/nvidiactl,deny-write=1\n", []finding{{passthrough.RuleMissing, 1, true}}},
		{"broken devN of NVIDIA", "dev0: /dev/nvidiactl, mode=0666\n", []finding{{passthrough.InvalidLine, 1, true}}},
		{"devN without mode or owner: only root opens it", "dev0: /dev/nvidiactl\ndev1: /dev/nvidia-uvm,gid=44\n", []finding{{passthrough.RuleMissing, 1, true}}},
		{"devN of a directory, with a slash, a wildcard", "dev0: /dev/nvidia-caps,mode=0666\ndev1: /dev/nvidiactl/,mode=0666\ndev2: /dev/nvidia*,mode=0666\n",
			[]finding{{passthrough.InvalidLine, 1, true}, {passthrough.InvalidLine, 2, true}, {passthrough.InvalidLine, 3, true}}},
		{"devN with a number that Proxmox does not know, but takes", "dev256: /dev/nvidia3,mode=0666\ndev007: /dev/nvidia4,mode=0666\n",
			[]finding{{passthrough.ControlDeviceNotGiven, 0, true}, {passthrough.ControlDeviceNotGiven, 0, true}, {passthrough.ControlDeviceNotGiven, 0, true},
				{passthrough.Privileged, 0, false}, {passthrough.DeviceGone, 1, true}, {passthrough.DeviceGone, 2, true}}},
		{"devN below a directory that a mount entry brings", userGPU0 + "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,create=dir\ndev0: /dev/nvidia-caps/nvidia-cap1,mode=0666\n",
			[]finding{{passthrough.ModeConflict, 6, true}, {passthrough.DeviceGone, 7, true}}},
		{"a mount that only makes the file in the way of a devN", "lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none create=file\ndev0: /dev/nvidiactl,mode=0666\n",
			[]finding{{passthrough.ModeConflict, 1, true}, {passthrough.NoEffect, 1, true}}},
		{"broken devN of something else", "dev0: /etc/passwd\n", []finding{{passthrough.InvalidLine, 1, false}}},
		{"rule that LXC cannot read", userGPU0 + "lxc.cgroup2.devices.allow: c 195:0-3 rwm\n", []finding{{passthrough.NoEffect, 6, true}}},
		{"rules that LXC cannot read, of others and by NVIDIA's path", userGPU0 + "lxc.cgroup2.devices.allow: 10:200 rwm\nlxc.cgroup2.devices.deny: /dev/nvidia1 rwm\nlxc.cgroup2.devices.allow: /dev/nvidia1\n",
			[]finding{{passthrough.InvalidLine, 6, false}, {passthrough.InvalidLine, 7, false}, {passthrough.NoEffect, 8, true}}},
		{"what follows three letters is no matter to LXC", userGPU0 + "lxc.cgroup2.devices.allow: c 195:0 rwm # GPU 0\nlxc.cgroup2.devices.allow: c 0303:0377 rw\nlxc.cgroup2.devices.allow: a 511:0 rwm\n", nil},
		{"rule by the path of a device that is gone: the container does not start", userGPU0 + "lxc.cgroup2.devices.allow: /dev/nvidia3 rwm\n", []finding{{passthrough.DeviceGone, 6, true}}},
		{"slash at the end, nodev, wildcard", user + "lxc.mount.entry: /dev/nvidiactl/ dev/nvidiactl none bind,create=file\nlxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,nodev,create=file\nlxc.mount.entry: /dev/nvidia* dev none bind,optional,create=file\n",
			[]finding{{passthrough.NoEffect, 2, true}, {passthrough.NoEffect, 3, true}, {passthrough.NoEffect, 4, true}}},
		{"target with the number of a container", userGPU0 + "lxc.mount.entry: /dev/nvidia-modeset /var/lib/lxc/101/rootfs/dev/nvidia-modeset none bind,create=file\n", []finding{{passthrough.NoEffect, 6, true}}},
		{"a device by its link", userGPU0 + "lxc.mount.entry: /dev/char/195:3 dev/gpu none bind,create=file\ndev0: /dev/char/195:254,mode=0666\n", []finding{{passthrough.DeviceGone, 6, true}}},
		{"all of /dev", user + "mp0: /dev,mp=/host\nmp1: /dev/nvidia0,mp=/dev/nvidia0\nlxc.mount.entry: /dev dev none rbind,create=dir\nlxc.mount.entry: udev dev devtmpfs rw\n",
			[]finding{{passthrough.WildcardRule, 2, false}, {passthrough.InvalidLine, 3, false}, {passthrough.WildcardRule, 4, false}, {passthrough.WildcardRule, 5, false}}},
		{"the hook of NVIDIA's container tools; its variables alone do nothing", "lxc.environment: NVIDIA_VISIBLE_DEVICES=all\nlxc.environment: NVIDIA_DRIVER_CAPABILITIES=all\nlxc.hook.mount: /usr/share/lxc/hooks/nvidia\n",
			[]finding{{passthrough.WildcardRule, 3, false}}},
		{"the rest of Docker's leftovers is no device", user + "lxc.mount.entry: /usr/bin/nvidia-smi usr/bin/nvidia-smi none bind,ro,create=file\nlxc.mount.entry: /proc/driver/nvidia proc/driver/nvidia none bind,create=dir\nlxc.mount.entry: /run/nvidia-persistenced/socket run/nvidia-persistenced/socket none bind,create=file\nlxc.mount.entry: /dev/dri dev/dri none bind,create=dir\n", nil},
		{"an empty id map maps nothing", user + "lxc.idmap:\n" + nvidia0 + control + uvm + tools, []finding{{passthrough.Privileged, 0, false}}},
		{"any true value makes it unprivileged", "unprivileged: maybe\n" + nvidia0 + control + uvm + tools, nil},
		{"autodev off and on again", "lxc.autodev: 0\nlxc.autodev: 1\ndev0: /dev/nvidiactl,mode=0666\n", nil},
		{"below a NUL", user + control + "lxc.environment: A=\x00B\n" + uvm + "lxc.cgroup2.devices.allow: c 195:255 rwm\n",
			[]finding{{passthrough.HiddenLine, 3, false}, {passthrough.NoEffect, 4, true}, {passthrough.NoEffect, 5, true}}},
		{"invalid lines", "lxc.mount.entry : /dev/nvidia-uvm x none bind\n  memory: 1\nlxc.tty.dir: x\n",
			[]finding{{passthrough.InvalidLine, 1, false}, {passthrough.InvalidLine, 2, false}, {passthrough.InvalidLine, 3, false}}},
		{"unknown properties are no problem of ours", "foo_bar: 1\nmemory: abc\n", nil},
		{"hidden line", "lxc.environment: LANG=C\rlxc.hook.pre-start = /x\nhostname: a\x00b\n",
			[]finding{{passthrough.HiddenLine, 1, false}, {passthrough.HiddenLine, 2, false}}},
		{"CRLF hides nothing", "hostname: a\r\nlxc.arch: x\r\n", nil},
		{"entries in snapshots, one problem for each", userGPU0 + "[one]\n#dev0: /dev/nvidia0\ndev0: /dev/nvidia0,mode=0666\n[two]\narch: amd64\n[three]\nlxc.cgroup2.devices.allow: c 195:0 rwm\n" + nvidia1,
			[]finding{{passthrough.EntryInSnapshot, 8, false}, {passthrough.EntryInSnapshot, 12, false}}},
		{"raw lines in pending replace those above", userGPU0 + "[pve:pending]\nlxc.cap.drop: x\n" + nvidia0,
			[]finding{{passthrough.EntryInPending, 7, false}}},
		{"NVIDIA entries in pending", "arch: amd64\n[pve:pending]\ndev0: /dev/nvidia0,mode=0666\n" + nvidia1,
			[]finding{{passthrough.EntryInPending, 3, false}, {passthrough.EntryInPending, 4, false}}},
		{"pending deletes and replaces ours", "dev0: /dev/nvidiactl,mode=0666\ndev1: /dev/nvidia-uvm,mode=0666\n[pve:pending]\ndelete: memory,!dev0\ndev1: /dev/fuse\nmemory: 1\n",
			[]finding{{passthrough.EntryInPending, 4, false}, {passthrough.EntryInPending, 5, false}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, problems := passthrough.Of(pveconf.Parse([]byte(tt.conf)), node2)
			if diff := cmp.Diff(tt.want, findings(problems)); diff != "" {
				t.Errorf("problems of\n%s(-want +got):\n%s%+v", tt.conf, diff, problems)
			}
			for _, p := range problems {
				if p.Message == "" {
					t.Errorf("a problem without a message: %+v", p)
				}
			}
		})
	}
}

func TestMissingNode(t *testing.T) {
	inv := node2
	inv.Nodes = append([]passthrough.Node(nil), node2.Nodes...)
	inv.Nodes[1].Present = false // nvidia-uvm
	_, problems := passthrough.Of(pveconf.Parse([]byte("unprivileged: 1\ndev0: /dev/nvidia-uvm,mode=0666\n")), inv)
	want := []passthrough.Problem{{Kind: passthrough.DeviceGone, Message: "the node has no usable /dev/nvidia-uvm now", Line: 2}}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestMessages(t *testing.T) {
	const conf = `lxc.cgroup2.devices.allow: c 195:* rwm
lxc.cgroup2.devices.allow: c 510:0 rwm
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,create=file
dev0: /dev/nvidia-uvm,mode=0666
[snap]
dev0: /dev/nvidia0
dev1: /dev/nvidia1
`
	want := []string{
		`the rule "c 195:* rwm" allows every device of the driver nvidia`,
		`the rule "c 510:0 rwm" is for a major that no NVIDIA driver has; nvidia-uvm has 511`,
		`/dev/nvidia-uvm is made by this mount entry and by dev0: the container does not start`,
		`snapshot snap holds NVIDIA entries (lines 6, 7), which have no effect now`,
	}
	_, problems := passthrough.Of(pveconf.Parse([]byte(conf)), node2)
	var got []string
	for _, p := range problems {
		got = append(got, p.Message)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestStaleRuleOrStranger(t *testing.T) {
	const uvm = "unprivileged: 1\nlxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,create=file\n"
	const rule = "lxc.cgroup2.devices.allow: c 234:0 rwm\n"
	few := node2
	few.Majors = map[string]int{"nvidia": 195, "nvidia-uvm": 511} // only NVIDIA's
	kfd := node2
	kfd.Majors = map[string]int{"mem": 1, "nvidia": 195, "kfd": 234, "nvidia-uvm": 511}
	for _, tt := range []struct {
		name  string
		conf  string
		inv   passthrough.Inventory
		stale bool
	}{
		{"no driver has the major", uvm + rule, node2, true},
		{"the other drivers are not known", uvm + rule, few, true},
		{"and a device is given that may have the major", uvm + "dev0: /dev/kfd\n" + rule, few, false},
		{"and a device is given that has a fixed major", uvm + "dev0: /dev/dri/renderD128\n" + rule, few, true},
		{"another device is given, and no driver has the major", uvm + "dev0: /dev/kfd\n" + rule, node2, true},
		{"another driver has the major", uvm + "dev0: /dev/kfd\n" + rule, kfd, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := pveconf.Parse([]byte(tt.conf))
			_, problems := passthrough.Of(f, tt.inv)
			if got := len(problems) == 1 && problems[0].Kind == passthrough.WrongMajor; got != tt.stale {
				t.Errorf("problems %+v, want a stale rule: %v", problems, tt.stale)
			}
			if err := passthrough.Set(f, tt.inv, passthrough.Want{}, passthrough.ModeNone); err != nil {
				t.Fatal(err)
			}
			if got := !strings.Contains(string(f.Bytes()), rule); got != tt.stale {
				t.Errorf("Set removed the rule: %v, want %v", got, tt.stale)
			}
		})
	}
}
