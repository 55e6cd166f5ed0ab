package passthrough_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

func TestOffline(t *testing.T) {
	const conf = `lxc.cgroup2.devices.allow: c 195:* rwm
lxc.cgroup2.devices.allow: c 510:* rwm
lxc.mount.entry: /dev/nvidia3 dev/nvidia3 none bind,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,create=file
dev0: /dev/nvidia3,mode=0666
`
	got, problems := passthrough.Offline(pveconf.Parse([]byte(conf)))
	want := passthrough.Passthrough{
		GPUs: []passthrough.GPU{{Index: -1, Minor: 3}}, Mode: passthrough.ModeMixed,
		Devices: []passthrough.Device{{Path: "/dev/nvidia-uvm", Major: -1, Minor: 0}, {Path: "/dev/nvidia3", Major: 195, Minor: 3}},
		Rules: []passthrough.Rule{
			{Type: 'c', Major: 195, Minor: -1, Access: "rwm"}, {Type: 'c', Major: 510, Minor: -1, Access: "rwm"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Offline (-want +got):\n%s", diff)
	}
	wantProblems := []finding{
		{passthrough.ControlDeviceNotGiven, 0, true}, {passthrough.ControlDeviceNotGiven, 0, true}, {passthrough.Privileged, 0, false},
		{passthrough.WildcardRule, 1, true}, {passthrough.WildcardRule, 2, true}, {passthrough.ModeConflict, 3, true},
	}
	if diff := cmp.Diff(wantProblems, findings(problems)); diff != "" {
		t.Errorf("problems (-want +got):\n%s%+v", diff, problems)
	}
}
