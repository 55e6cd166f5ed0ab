package demo_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { os.Exit(sandboxtest.Main(m)) }

// A demo is what a person gets who types `make demo`, but for the places.
type demo struct {
	program string
	cli     string // phoenix-cli
	dir     string
	config  string
	args    []string
}

func newDemo(t *testing.T, fleet string) *demo {
	t.Helper()
	s := sandboxtest.Up(t, sandboxtest.Options{GPUs: -1}) // skips where there can be no sandbox
	for _, name := range []string{"phoenix-agent", "phoenix-controller", "phoenix-cli"} {
		s.Program(name)
	}
	dir := t.TempDir()
	d := &demo{program: s.Program("phoenix-sandbox"), cli: s.Program("phoenix-cli"), dir: filepath.Join(dir, "sandbox"), config: filepath.Join(dir, "etc/cli.yaml")}
	path := filepath.Join(dir, "fleet.json")
	if err := os.WriteFile(path, []byte(fleet), 0o644); err != nil {
		t.Fatal(err)
	}
	d.args = []string{"--fleet", path, "--cli-config", d.config, "--controller", sandboxtest.FreeAddress(t)}
	t.Cleanup(func() { d.run("down") })
	return d
}

func (d *demo) run(command string, args ...string) (string, error) {
	out, err := exec.Command(d.program, append([]string{command, "--dir", d.dir}, args...)...).CombinedOutput()
	return string(out), err
}

func TestDemo(t *testing.T) {
	// The sandbox has the driver of this version, and its nodes cannot reach this address.
	d := newDemo(t, `{"nvidia_driver_version": "580.76.05", "nvidia_runfile_url": "https://us.download.nvidia.com/580.76.05.run", "lxc_configs": {
		"901": {"name": "both", "unprivileged": true, "gpu_assignment": "0,1", "features": ["nvidia"], "start_at_boot": true},
		"902": {"name": "second", "gpu_assignment": "1", "passthrough_mode": "native", "clone_from_ctid": 901, "start_at_boot": true},
		"903": {"name": "none", "unprivileged": true, "gpu_assignment": "none", "features": ["base_setup"]}}}`)
	for _, turn := range []string{"from nothing", "over one that is up"} {
		out, err := d.run("demo", d.args...)
		if err != nil {
			t.Fatalf("%s: %v\n%s", turn, err, out)
		}
		for _, want := range []string{
			"901 both on pve1: install driver: done",
			"902 second on pve1: install driver: done",
			": driver 580.76.05 is installed\n",
			"901 both on pve1: verify driver: done",
			"902 second on pve1: verify driver: done",
			": driver 580.76.05 shows exactly what is assigned",
			"0,1 open (no driver)\n",
			"1 open (no driver); 0 absent\n",
			"0,1 absent\n",
			"== all is well.",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", turn, want, out)
			}
		}
	}
	if out, err := d.run("reboot", "pve1", "--driver", "590.10.01"); err != nil {
		t.Fatalf("reboot: %v\n%s", err, out)
	}
	out, err := exec.Command(d.cli, "--config", d.config, "apply").CombinedOutput()
	if want := "driver 590.10.01 is installed, in the place of 580.76.05"; err != nil || strings.Count(string(out), want) != 2 {
		t.Errorf("apply after a reboot with another driver does not say %q of two containers: %v\n%s", want, err, out)
	}
	if out, err := d.run("down"); err != nil || !strings.HasSuffix(out, "nothing is left\n") {
		t.Errorf("down: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Dir(d.config)); err == nil {
		t.Errorf("%s is left", filepath.Dir(d.config))
	}
}

func TestDemoThatFails(t *testing.T) {
	d := newDemo(t, `{"lxc_configs": {"901": {"name": "greedy", "unprivileged": true, "gpu_assignment": "7"}}}`)
	out, err := d.run("demo", d.args...)
	if err == nil || !strings.Contains(out, "phoenix-sandbox: phoenix-cli apply: exit status 1\n") || !strings.Contains(out, "-- the end of ") {
		t.Errorf("want status 1, the reason and the logs; got %v\n%s", err, out)
	}
}
