package passthrough_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// node2 has two GPUs whose minors are swapped against their order on the PCI bus, and every device node.
var node2 = passthrough.Inventory{
	GPUs: []passthrough.GPU{{Index: 0, UUID: "GPU-b", Minor: 1}, {Index: 1, UUID: "GPU-a", Minor: 0}},
	Nodes: []passthrough.Node{
		{Path: "/dev/nvidia-modeset", Major: 195, Minor: 254, Present: true, GPU: -1},
		{Path: "/dev/nvidia-uvm", Major: 511, Minor: 0, Present: true, GPU: -1, Needed: true},
		{Path: "/dev/nvidia-uvm-tools", Major: 511, Minor: 1, Present: true, GPU: -1, Needed: true},
		{Path: "/dev/nvidia0", Major: 195, Minor: 0, Present: true, GPU: 0},
		{Path: "/dev/nvidia1", Major: 195, Minor: 1, Present: true, GPU: 1},
		{Path: "/dev/nvidiactl", Major: 195, Minor: 255, Present: true, GPU: -1, Needed: true},
	},
	Majors: map[string]int{"mem": 1, "nvidia": 195, "drm": 226, "nvidia-caps": 236, "aux": 243, "nvidia-uvm": 511},
}

func TestSet(t *testing.T) {
	f := pveconf.Parse([]byte("arch: amd64\nmemory: 512\nunprivileged: 1\n\n[snap]\narch: amd64\n"))
	if err := passthrough.Set(f, node2, []int{1}, passthrough.ModeRaw); err != nil {
		t.Fatal(err)
	}
	want := `arch: amd64
memory: 512
unprivileged: 1
lxc.cgroup2.devices.allow: c 195:1 rwm
lxc.cgroup2.devices.allow: c 195:255 rwm
lxc.cgroup2.devices.allow: c 511:0 rwm
lxc.cgroup2.devices.allow: c 511:1 rwm
lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file

[snap]
arch: amd64
`
	if diff := cmp.Diff(want, string(f.Bytes())); diff != "" {
		t.Errorf("raw, GPU of minor 1 (-want +got):\n%s", diff)
	}
	if _, problems := passthrough.Of(f, node2); problems != nil {
		t.Errorf("problems of our own form: %v", problems)
	}
	if err := passthrough.Set(f, node2, []int{0}, passthrough.ModeNative); err != nil {
		t.Fatal(err)
	}
	want = `arch: amd64
dev0: /dev/nvidia0,mode=0666
dev1: /dev/nvidiactl,mode=0666
dev2: /dev/nvidia-uvm,mode=0666
dev3: /dev/nvidia-uvm-tools,mode=0666
memory: 512
unprivileged: 1

[snap]
arch: amd64
`
	if diff := cmp.Diff(want, string(f.Bytes())); diff != "" {
		t.Errorf("native, GPU of minor 0 (-want +got):\n%s", diff)
	}
}
