package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// TestApply applies the sample fleet file, through a controller and without one. On pve2 the device minors
// run against the indexes: there GPU 1 is /dev/nvidia0.
func TestApply(t *testing.T) {
	t.Parallel()
	const none = "nvidia0=ENOENT nvidia1=ENOENT" + noControl
	want := map[string]map[int32]string{
		"pve1": {
			900: none,
			901: "nvidia0 nvidia1" + control,
			910: "nvidia0 nvidia1" + control,
			911: "nvidia0 nvidia1=ENOENT" + control,
		},
		"pve2": {
			912: "nvidia0 nvidia1=ENOENT" + control,
			913: "nvidia0 nvidia1=ENOENT" + control,
			920: none,
		},
	}
	for name, local := range map[string]bool{"controller": false, "no controller": true} {
		t.Run(name, func(t *testing.T) {
			fleet, err := filepath.Abs("../../config/phoenix_lxc_configs.sample.json")
			if err != nil {
				t.Fatal(err)
			}
			w := newNodes(t, sandboxtest.Options{Nodes: 2, ReverseMinors: true, Fleet: fleet})
			var flags []string
			if local {
				flags = w.local()
			} else {
				w.StartController()
			}
			w.cli(append(flags, "apply")...)
			got := map[string]map[int32]string{}
			for _, n := range w.nodes {
				got[n.Name] = map[int32]string{}
				for _, ctid := range ctids(t, n) {
					got[n.Name][ctid] = reach(t, n, ctid)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("what the containers reach (-want +got):\n%s", diff)
			}
			w.inSync(flags...)

			confs := w.confs()
			w.resetPctCalls()
			w.cli(append(flags, "apply")...)
			if calls := w.pctCalls(); len(calls) > 0 {
				t.Errorf("the second apply called pct: %q", calls)
			}
			if diff := cmp.Diff(confs, w.confs()); diff != "" {
				t.Errorf("the second apply changed confs:\n%s", diff)
			}
			w.noTemporaryFiles()
		})
	}
}

// With the driver a container sees its MIG device, and not the others of the same card.
func TestApplyDriverMIG(t *testing.T) {
	t.Parallel()
	fleet := filepath.Join(t.TempDir(), "phoenix_lxc_configs.json")
	if err := os.WriteFile(fleet, []byte(`{"lxc_configs": {
		"901": {"unprivileged": true, "gpu_assignment": "0:1", "features": ["nvidia"]},
		"902": {"gpu_assignment": "0:0,1", "features": ["nvidia"], "passthrough_mode": "native"}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, sandboxtest.Options{Shapes: []string{"mig"}, Fleet: fleet})
	w.cli("apply")
	n := w.nodes[0]
	devices := n.GPUs[0].MIG.Devices
	for ctid, want := range map[int32]string{
		901: fmt.Sprintf("GPU 0: %s (UUID: %s)\n  MIG 1g.10gb         Device  0: (UUID: %s)\n", n.GPUs[0].Model, n.GPUs[0].UUID, devices[1].UUID),
		902: fmt.Sprintf("GPU 0: %s (UUID: %s)\n  MIG 3g.40gb         Device  0: (UUID: %s)\nGPU 1: %s (UUID: %s)\n",
			n.GPUs[0].Model, n.GPUs[0].UUID, devices[0].UUID, n.GPUs[1].Model, n.GPUs[1].UUID),
	} {
		if got, stderr, _ := n.Attach(ctid, "nvidia-smi -L"); got != want {
			t.Errorf("nvidia-smi in %d prints\n%s%swant\n%s", ctid, got, stderr, want)
		}
	}
}
