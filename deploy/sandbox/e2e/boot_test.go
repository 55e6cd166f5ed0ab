package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"phoenix.internal/deploy/sandbox"
	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// A reboot gives nvidia-uvm another major and leaves it unloaded until somebody uses CUDA. With no controller, containers
// with onboot have their GPUs before anyone logs in.
func TestFailure10_AfterAReboot(t *testing.T) {
	w := newNodes(t, sandboxtest.Options{})
	n := w.nodes[0]
	// Privileged, so that the device rules with their majors are in force.
	for ctid, onboot := range map[int32]string{901: "1", 902: "1", 903: "0"} {
		n.Add(ctid, fmt.Sprintf("arch: amd64\nhostname: ct%[1]d\nmemory: 512\nonboot: %[2]s\nostype: debian\nrootfs: local:subvol-%[1]d-disk-0,size=1G\n", ctid, onboot))
	}
	w.setFleet(`
		"901": {"gpu_assignment": "0,1", "passthrough_mode": "raw"},
		"902": {"gpu_assignment": "1", "passthrough_mode": "native"},
		"903": {"gpu_assignment": "0", "passthrough_mode": "raw"}`)
	w.cli(append(w.local(), "apply")...)

	// Somebody changes what 903 has, and no agent is asked.
	edited := n.Conf(903) + "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file\n"
	n.SetConf(903, edited)

	uvm := n.Host.Majors.UVM
	raw, native := n.Conf(901), n.Conf(902)
	n.ResetPctCalls()
	n.Reboot(sandbox.RebootOptions{LoseUVM: true, NoAgent: true})
	if n.Host.Majors.UVM == uvm {
		t.Fatal("the boot gave nvidia-uvm the major that it had")
	}

	rules := func(major int) string {
		return fmt.Sprintf("lxc.cgroup2.devices.allow: c %[1]d:0 rwm\nlxc.cgroup2.devices.allow: c %[1]d:1 rwm\n", major)
	}
	if !strings.Contains(raw, rules(uvm)) {
		t.Fatalf("no rules for nvidia-uvm's major %d in\n%s", uvm, raw)
	}
	wantRaw := strings.Replace(raw, rules(uvm), "", 1) + rules(n.Host.Majors.UVM)
	for ctid, want := range map[int32]string{901: wantRaw, 902: native} {
		if got := n.Conf(ctid); got != want {
			t.Errorf("conf of CTID %d after the boot:\n%s\nwant:\n%s", ctid, got, want)
		}
	}
	for ctid, want := range map[int32]string{901: "nvidia0 nvidia1" + control, 902: "nvidia0=ENOENT nvidia1" + control} {
		if got := reach(t, n, ctid); got != want {
			t.Errorf("CTID %d after the boot reaches %q, want %q", ctid, got, want)
		}
	}
	if calls := n.PctCalls("shutdown", "stop", "reboot"); len(calls) > 0 {
		t.Errorf("restarted after the boot: %q", calls)
	}
	if got := n.Conf(903); got != edited {
		t.Errorf("the conf that somebody had changed:\n%s\nwant it as it was:\n%s", got, edited)
	}

	// The agent finds the boot guarded, and guards it from now on.
	n.StartAgent()
	if _, stderr, code := n.Run(w.Program("phoenix-agent"), "boot-guard", "--config", "/etc/phoenix/agent.yaml"); code != 0 || !strings.Contains(stderr, "an agent runs") {
		t.Errorf("boot-guard beside an agent: exit status %d, %q", code, stderr)
	}
	if got := n.Conf(901); got != wantRaw {
		t.Errorf("conf of CTID 901 with the agent:\n%s\nwant:\n%s", got, wantRaw)
	}
}

// A boot forgets how a card was divided. Two containers have a MIG device each; each has one of its own again, whatever
// number the driver gave it, before anyone logs in.
func TestMIGAfterAReboot(t *testing.T) {
	w := newNodes(t, sandboxtest.Options{Shapes: []string{"mig"}})
	n := w.nodes[0]
	for _, ctid := range []int32{901, 902} {
		n.Add(ctid, fmt.Sprintf("arch: amd64\nhostname: ct%[1]d\nmemory: 512\nonboot: 1\nostype: debian\nrootfs: local:subvol-%[1]d-disk-0,size=1G\n", ctid))
	}
	w.setFleet(`
		"901": {"ctid": 901, "gpu_assignment": "0:1", "passthrough_mode": "raw"},
		"902": {"ctid": 902, "gpu_assignment": "0:2", "passthrough_mode": "native"}`)
	w.cli(append(w.local(), "apply")...)
	check := func(when, reached, refused string, ctid int32) {
		t.Helper()
		for path := range strings.FieldsSeq("/dev/nvidia0 " + reached) {
			if got := n.Open(ctid, path); got != "ENXIO" { // it may, and there is no driver
				t.Errorf("%s: CTID %d opens %s: %s, want ENXIO", when, ctid, path, got)
			}
		}
		for path := range strings.FieldsSeq("/dev/nvidia1 " + refused) {
			if got := n.Open(ctid, path); got != "ENOENT" {
				t.Errorf("%s: CTID %d opens %s: %s, want ENOENT", when, ctid, path, got)
			}
		}
	}
	const caps = "/dev/nvidia-caps/nvidia-cap"
	for _, ctid := range []int32{901, 902} {
		n.Must("pct", "start", fmt.Sprint(ctid))
	}
	check("before the boot", caps+"84 "+caps+"85", caps+"93 "+caps+"94", 901)
	check("before the boot", caps+"93 "+caps+"94", caps+"84 "+caps+"85", 902)

	n.Reboot(sandbox.RebootOptions{LoseUVM: true, NoAgent: true})
	check("after the boot", caps+"66 "+caps+"67", caps+"75 "+caps+"76", 901)
	check("after the boot", caps+"75 "+caps+"76", caps+"66 "+caps+"67", 902)
}
