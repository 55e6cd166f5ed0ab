package e2e_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"phoenix.internal/deploy/sandbox/runfile"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// TestApplyDriver brings the driver into containers by apply alone, with the installer in a folder of the node; then the
// node gets another driver, and the containers follow.
func TestApplyDriver(t *testing.T) {
	t.Parallel()
	const newer = "590.10.01"
	w := newDriverWorld(t)
	for _, version := range []string{loadedDriver, newer} {
		b, name := runfile.New(runfile.Options{Version: version, GPUs: w.gpus}), runfile.Name(version)
		w.onNode(name, b)
		w.onNode(name+".sha256sum", fmt.Appendf(nil, "%x  %s\n", sha256.Sum256(b), name))
	}
	w.fleet = filepath.Join(t.TempDir(), "phoenix_lxc_configs.json")
	w.configureController("fleet_file: %q\n", w.fleet)
	w.StartController()
	file := func(capabilities string) {
		t.Helper()
		entries := fmt.Sprintf(`{"nvidia_driver_version": %q, "nvidia_runfile_url": "/etc/phoenix/%s", "lxc_configs": {
			"901": {"gpu_assignment": "0", "features": ["nvidia"], "gpu_capabilities": %q},
			"902": {"gpu_assignment": "0,1", "clone_from_ctid": 901},
			"903": {"gpu_assignment": "1"}}}`, loadedDriver, runfile.Name(loadedDriver), capabilities)
		if err := os.WriteFile(w.fleet, []byte(entries), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file("compute")
	for ctid := int32(901); ctid <= 903; ctid++ {
		w.start(ctid, true)
	}
	check := func(version string) {
		t.Helper()
		uuid := func(i int) string { return w.n.GPUs[i].UUID }
		for ctid, uuids := range map[int32][]string{901: {uuid(0)}, 902: {uuid(0), uuid(1)}} {
			if d := w.driver(t, ctid); d.GetState() != typev1.DriverState_DRIVER_STATE_INSTALLED || d.GetVersion() != version {
				t.Errorf("CTID %d has the driver %v, want %s", ctid, d, version)
			}
			if c := w.verify(t, ctid, uuids...); !c.GetOk() || c.GetSmiVersion() != version {
				t.Errorf("CTID %d: %v", ctid, c)
			}
		}
		if d := w.driver(t, 903); d.GetState() != typev1.DriverState_DRIVER_STATE_NONE {
			t.Errorf("CTID 903, without the feature, has %v", d)
		}
		confs := w.confs()
		w.resetPctCalls()
		if out := w.cli("apply"); !strings.Contains(out, "succeeded: 3 unchanged") {
			t.Errorf("the second apply finds something to do:\n%s", out)
		}
		if calls := w.pctCalls(); len(calls) > 0 {
			t.Errorf("the second apply called pct: %q", calls)
		}
		if got := w.confs(); fmt.Sprint(got) != fmt.Sprint(confs) {
			t.Errorf("the second apply changed confs")
		}
	}

	out := w.cli("apply")
	for _, want := range []string{
		"driver " + loadedDriver + " is installed", "driver " + loadedDriver + " shows exactly what is assigned, and CUDA starts",
		"install driver: copy: ", "install driver: install\n", "install driver: check\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("apply does not say %q:\n%s", want, out)
		}
	}
	check(loadedDriver)

	w.n.Upgrade(newer, true)
	out = w.cli("apply")
	if want := "driver " + newer + " is installed, in the place of " + loadedDriver; strings.Count(out, want) != 2 {
		t.Errorf("apply does not say %q of two containers:\n%s", want, out)
	}
	check(newer)

	// The DRM nodes of a distribution are for its groups only.
	w.n.Must("sh", "-c", "chmod 666 /dev/dri/card* /dev/dri/renderD*")
	file("compute,graphics")
	if out, want := w.cli("apply"), "driver "+newer+" is installed, with what graphics needs"; strings.Count(out, want) != 1 {
		t.Errorf("graphics are asked for, and apply does not say %q of one container:\n%s", want, out)
	}
	if !w.driver(t, 901).GetGraphics() || w.driver(t, 902).GetGraphics() {
		t.Errorf("CTID 901, which is to have the libraries for graphics, and 902, which is not: %v, %v", w.driver(t, 901), w.driver(t, 902))
	}
	check(newer)

	list, err := w.client.ListInstallers(t.Context(), &agentv1.ListInstallersRequest{})
	if err != nil || !slices.ContainsFunc(list.GetInstallers(), func(i *typev1.Installer) bool { return i.GetVersion() == newer && i.GetInUse() }) {
		t.Errorf("the node's installers: %v, %v", list, err)
	}
}

// onNode puts a file where the agent may take installers from.
func (w *driverWorld) onNode(name string, content []byte) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.n.Dir(), "etc-phoenix", name), content, 0o644); err != nil {
		w.t.Fatal(err)
	}
}
