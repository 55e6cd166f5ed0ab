package e2e_test

import (
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
