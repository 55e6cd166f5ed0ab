package plan_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

func TestDriver(t *testing.T) {
	install := []string{
		"install driver: 580.76.05, which node pve1 has loaded, unless it is there",
		"verify driver: it works, and shows exactly what is assigned",
	}
	const stored = "boot:1:1 raw 0"
	for _, tt := range []struct {
		name, fleet, stored string
		c                   observed.Container
		want                []string
	}{
		{"not verified", `"gpu_assignment": "0", "features": ["nvidia"]`, stored, running(given(0), given(0)), install},
		{"verified", `"gpu_assignment": "0", "features": ["nvidia"]`, stored + " driver 580.76.05 install", running(given(0), given(0)), nil},
		{"verified in another version", `"gpu_assignment": "0", "features": ["nvidia"]`, stored + " driver 570.86.10 install", running(given(0), given(0)), install},
		{"inherited", `"gpu_assignment": "0", "clone_from_ctid": "900"`, stored, running(given(0), given(0)), install},
		{"no feature", `"gpu_assignment": "0"`, stored, running(given(0), given(0)), nil},
		{"stopped", `"gpu_assignment": "0", "features": ["nvidia"]`, stored, stopped(given(0)),
			[]string{"note: it is stopped, and stays so: nothing in it is verified; apply --start starts containers that have GPUs"}},
		{"left to others", `"gpu_assignment": "0", "features": ["nvidia"], "driver_mode": "none"`, stored, running(given(0), given(0)),
			[]string{"note: driver_mode none: the driver in it is left to others"}},
		{"no GPU", `"features": ["nvidia"]`, "boot:1:1 none none", running(given(), given()),
			[]string{"note: feature nvidia: no GPU is assigned, so no driver is installed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := fleetOf(t, `"900": {"features": ["nvidia"]}, "901": {`+tt.fleet+`}`)
			o := &observed.Fleet{Nodes: []observed.Node{node(tt.c)}, Verified: map[int32]string{901: tt.stored}}
			p := plan.Compute(f, o, plan.Options{CTIDs: []int32{901}})
			if diff := cmp.Diff(tt.want, text(p.Containers[0])); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDriverSource(t *testing.T) {
	const sum = "5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e"
	for _, tt := range []struct {
		name, version, runfile, capabilities string
		want                                 plan.Driver
	}{
		{"nothing is said", "", "", "", plan.Driver{Version: "580.76.05", SHA256: sum}},
		{"the same version", "580.76.05", "https://m/580.76.05/a.run", "", plan.Driver{Version: "580.76.05", Source: "https://m/580.76.05/a.run", SHA256: sum}},
		{"another version, in the URL twice", "570.86.10", "https://m/570.86.10/a-570.86.10.run", "", plan.Driver{Version: "580.76.05", Source: "https://m/580.76.05/a-580.76.05.run"}},
		{"another version, and a URL without it", "570.86.10", "/srv/a.run", "", plan.Driver{Version: "580.76.05"}},
		{"graphics", "", "/srv/a.run", "graphics", plan.Driver{Version: "580.76.05", Source: "/srv/a.run", SHA256: sum, Graphics: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := fleetOf(t, `"901": {"gpu_assignment": "0", "features": ["nvidia"], "gpu_capabilities": "`+tt.capabilities+`"}`)
			f.DriverVersion, f.Runfile, f.RunfileSHA256 = tt.version, tt.runfile, sum
			p := plan.Compute(f, verified(node(running(given(0), given(0)))), plan.Options{})
			if diff := cmp.Diff(tt.want, p.Containers[0].Driver); diff != "" {
				t.Errorf("driver (-want +got):\n%s", diff)
			}
		})
	}
}
