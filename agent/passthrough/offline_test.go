package passthrough_test

import (
	"os"
	"slices"
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

// TestOfflineRealConfs reads confs as one meets them (see ../pveconf/testdata/pve).
func TestOfflineRealConfs(t *testing.T) {
	type kinds = []passthrough.Kind
	for _, tt := range []struct {
		name     string
		minors   []int
		mode     passthrough.Mode
		devices  int
		problems kinds
	}{
		{"debian-unprivileged", nil, passthrough.ModeNone, 0, nil},
		{"gpu-amd-kfd", nil, passthrough.ModeNone, 0, nil},
		{"usb-coral-dev-entry", nil, passthrough.ModeNone, 0, nil},
		{"gpu-container-toolkit-hook", nil, passthrough.ModeNone, 0, kinds{passthrough.WildcardRule}},
		{"gpu-mig-caps", nil, passthrough.ModeRaw, 2, kinds{passthrough.WildcardRule}},
		{"gpu-nvidia-dev-entries", []int{0}, passthrough.ModeNative, 4, nil},
		{"gpu-nvidia-raw-equals", []int{0}, passthrough.ModeRaw, 4, kinds{passthrough.WildcardRule, passthrough.WildcardRule}},
		{"gpu-privileged-raw", []int{0}, passthrough.ModeRaw, 5, kinds{passthrough.Privileged, passthrough.RuleMissing}},
		{"gpu-with-snapshot", []int{0}, passthrough.ModeRaw, 4, kinds{passthrough.WildcardRule, passthrough.WildcardRule, passthrough.EntryInSnapshot}},
		{"everything", []int{0}, passthrough.ModeNative, 4, kinds{passthrough.WildcardRule}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := os.ReadFile("../pveconf/testdata/pve/real-" + tt.name + ".conf")
			if err != nil {
				t.Fatal(err)
			}
			p, problems := passthrough.Offline(pveconf.Parse(b))
			var minors []int
			for _, g := range p.GPUs {
				if g.Index != -1 || g.UUID != "" {
					t.Errorf("a GPU of no node is %+v", g)
				}
				minors = append(minors, g.Minor)
			}
			var got kinds
			for _, problem := range problems {
				got = append(got, problem.Kind)
			}
			if !slices.Equal(minors, tt.minors) || p.Mode != tt.mode || len(p.Devices) != tt.devices || !slices.Equal(got, tt.problems) {
				t.Errorf("it gives the minors %v in mode %v, devices %v, problems %+v; want %v, %v, %d devices, problems %v",
					minors, p.Mode, p.Devices, problems, tt.minors, tt.mode, tt.devices, tt.problems)
			}
		})
	}
}
