package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"phoenix.internal/deploy/sandbox"
	"phoenix.internal/deploy/sandbox/nvidia"
	"phoenix.internal/deploy/sandbox/runfile"
	"phoenix.internal/deploy/sandbox/sandboxtest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

// diagnose runs doctor, whose exit status has to agree with what it says, and returns that.
func (w *world) diagnose(t *testing.T, args ...string) *controllerv1.DiagnoseResponse {
	t.Helper()
	stdout, stderr, code := w.CLI(append(args, "--json")...)
	var r controllerv1.DiagnoseResponse
	if err := protojson.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("phoenix-cli %s: exit status %d, %v\n%s%s", strings.Join(args, " "), code, err, stdout, stderr)
	}
	if r.GetHealthy() != (code == 0) {
		t.Errorf("phoenix-cli %s: exit status %d, and healthy is %v", strings.Join(args, " "), code, r.GetHealthy())
	}
	return &r
}

// names checks what doctor finds first in a container: "" is nothing, "warning: x" a warning.
func (w *world) names(t *testing.T, ctid int32, want string, args ...string) {
	t.Helper()
	r := w.diagnose(t, append(args, "doctor", fmt.Sprint(ctid))...)
	d := r.GetContainers()[0]
	got := ""
	if len(d.GetFindings()) > 0 {
		got = d.GetFindings()[0].GetFault()
		if d.GetFindings()[0].GetSeverity() == controllerv1.Severity_SEVERITY_WARNING {
			got = "warning: " + got
		}
	}
	if got != want {
		t.Errorf("CTID %d: doctor finds %q, want %q: %v", ctid, got, want, d)
	}
}

// A patient is a container and what doctor has to find first.
type patient struct {
	name string
	node int // of the world, from 0
	make func(n *sandboxtest.Node, ctid int32)
	file string // its entry in the fleet file, "" for none
	want string
}

// with makes and starts a container with these lines.
func with(lines func(n *sandboxtest.Node) []string) func(*sandboxtest.Node, int32) {
	return func(n *sandboxtest.Node, ctid int32) { startWith(n, ctid, conf(ctid, lines(n)...)) }
}

// gpus are the lines of GPUs by minor.
func gpus(minors ...int) func(n *sandboxtest.Node) []string {
	return func(n *sandboxtest.Node) []string { return scripted(n, minors...) }
}

// down makes a container that is not started.
func down(lines func(n *sandboxtest.Node) []string) func(*sandboxtest.Node, int32) {
	return func(n *sandboxtest.Node, ctid int32) { n.Add(ctid, conf(ctid, lines(n)...)) }
}

// withRoot makes and starts a privileged container.
func withRoot(lines func(n *sandboxtest.Node) []string) func(*sandboxtest.Node, int32) {
	return func(n *sandboxtest.Node, ctid int32) { startWith(n, ctid, privileged(conf(ctid, lines(n)...))) }
}

func nothing(*sandboxtest.Node) []string { return nil }

func native(paths ...string) []string {
	var lines []string
	for i, path := range paths {
		lines = append(lines, fmt.Sprintf("dev%d: %s,mode=0666", i, path))
	}
	return lines
}

// section puts a line that begins a section before others.
func section(name string, lines []string) []string {
	return append([]string{"", "[" + name + "]", "arch: amd64"}, lines...)
}

const (
	gpu0 = `"gpu_assignment": "0"`
	gpu1 = `"gpu_assignment": "1"`
)

// shapesOfDoctor are the nodes, in this order.
var shapesOfDoctor = []string{"plain", "vfio", "off-bus", "mig", "no-driver", "uvm-missing", "eight"}

// The first two take a device node away for a moment, so the others wait until they are made.
var patients = []patient{
	{"a ghost in the place of a device", 0, func(n *sandboxtest.Node, ctid int32) {
		n.Must("mv", "/dev/nvidia-uvm", "/dev/away")
		defer n.Must("mv", "/dev/away", "/dev/nvidia-uvm")
		with(gpus(0))(n, ctid)
	}, gpu0, "ghost_file"},
	{"an old node inside", 0, func(n *sandboxtest.Node, ctid int32) {
		n.Must("mv", "/dev/nvidia-uvm", "/dev/away")
		defer n.Must("mv", "/dev/away", "/dev/nvidia-uvm")
		n.Must("mknod", "-m", "666", "/dev/nvidia-uvm", "c", "60", "0")
		with(gpus(0))(n, ctid)
	}, gpu0, "old_numbers"},
	{"raw", 0, with(gpus(0)), gpu0, ""},
	{"native", 0, with(func(*sandboxtest.Node) []string {
		return native("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
	}), `"gpu_assignment": "all", "passthrough_mode": "native"`, ""},
	{"no GPU", 0, with(nothing), `"gpu_assignment": "none"`, ""},
	{"stopped without GPU", 0, down(nothing), `"gpu_assignment": "none"`, ""},
	{"privileged", 0, withRoot(gpus(0)), gpu0, "warning: privileged"},

	{"never applied", 0, with(nothing), gpu0, "not_given"},
	{"applied by hand, not restarted", 0, func(n *sandboxtest.Node, ctid int32) {
		startWith(n, ctid, conf(ctid))
		n.SetConf(ctid, conf(ctid, scripted(n, 0)...))
	}, gpu0, "restart_pending"},
	{"stopped", 0, down(gpus(0)), gpu0, "stopped"},
	{"locked", 0, func(n *sandboxtest.Node, ctid int32) {
		n.Add(ctid, strings.Replace(conf(ctid, scripted(n, 0)...), "memory:", "lock: backup\nmemory:", 1))
	}, gpu0, "locked"},
	{"a template", 0, func(n *sandboxtest.Node, ctid int32) {
		n.Add(ctid, strings.Replace(conf(ctid, scripted(n, 0)...), "swap: 0\n", "swap: 0\ntemplate: 1\n", 1))
	}, gpu0, "template"},
	{"frozen", 0, func(n *sandboxtest.Node, ctid int32) {
		with(gpus(0))(n, ctid)
		n.Must("lxc-freeze", "-n", fmt.Sprint(ctid))
	}, gpu0, "frozen"},
	{"lines at the end of the file", 0, with(func(n *sandboxtest.Node) []string { return section("before", scripted(n, 0)) }), gpu0, "only_in_snapshot"},
	{"an old snapshot", 0, with(func(n *sandboxtest.Node) []string {
		return append(scripted(n, 0), section("before", scripted(n, 1))...)
	}), gpu0, "warning: snapshot_entries"},
	{"lines that are pending", 0, func(n *sandboxtest.Node, ctid int32) {
		startWith(n, ctid, conf(ctid))
		n.SetConf(ctid, conf(ctid, section("pve:pending", scripted(n, 0))...))
	}, gpu0, "only_in_pending"},
	{"rolled back to before the assignment changed", 0, with(gpus(1)), gpu0, "not_given"},
	{"a clone with the original's GPUs", 0, with(gpus(0)), `"gpu_assignment": "none", "clone_from_ctid": 901`, "cloned_entries"},
	{"one GPU too many", 0, with(gpus(0, 1)), gpu0, "gives_more"},
	{"a wildcard", 0, withRoot(func(n *sandboxtest.Node) []string {
		return append(scripted(n, 0), "lxc.cgroup2.devices.allow: c 195:* rwm")
	}), gpu0, "wildcard_rule"},
	{"a wildcard that does no harm", 0, with(func(n *sandboxtest.Node) []string {
		return append(scripted(n, 0), "lxc.cgroup2.devices.allow: c 195:* rwm")
	}), gpu0, "warning: wildcard_rule"},
	{"another host's major", 0, withRoot(func(n *sandboxtest.Node) []string {
		lines := scripted(n, 0)
		for i := range lines {
			lines[i] = strings.Replace(lines[i], fmt.Sprintf("c %d:", n.Majors.UVM), "c 243:", 1)
		}
		return lines
	}), gpu0, "wrong_major"},
	{"no rule for its GPU", 0, withRoot(func(n *sandboxtest.Node) []string {
		return slices.DeleteFunc(scripted(n, 0), func(line string) bool { return strings.Contains(line, "c 195:0 ") })
	}), gpu0, "rule_missing"},
	{"without nvidia-uvm", 0, with(func(n *sandboxtest.Node) []string {
		return slices.DeleteFunc(scripted(n, 0), func(line string) bool { return strings.Contains(line, "nvidia-uvm") })
	}), gpu0, "control_missing"},
	{"both modes at once", 0, down(func(n *sandboxtest.Node) []string { return append(native("/dev/nvidia0"), scripted(n, 0)...) }), gpu0, "mode_conflict"},
	{"the other mode", 0, with(gpus(0)), gpu0 + `, "passthrough_mode": "native"`, "warning: other_mode"},
	{"twice the same line", 0, with(func(n *sandboxtest.Node) []string {
		lines := scripted(n, 0)
		return append(lines, lines[len(lines)-1])
	}), gpu0, "warning: duplicate_entry"},
	{"a node for root alone inside", 0, with(func(*sandboxtest.Node) []string {
		lines := native("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
		return append(lines, "dev3: /dev/nvidia0")
	}), gpu0 + `, "passthrough_mode": "native"`, "rule_missing"},
	{"an index beyond the last", 0, with(nothing), `"gpu_assignment": "7"`, "no_such_gpu"},
	{"another node's", 0, with(gpus(0)), gpu0 + `, "node": "pve2"`, "wrong_node"},
	{"not in the fleet file", 0, with(nothing), "", "not_in_fleet"},
	{"nobody's", 0, with(gpus(0)), "", "warning: unmanaged"},
	{"nowhere", 0, func(*sandboxtest.Node, int32) {}, gpu0, "no_container"},
	{"another has it alone", 0, with(gpus(0)), gpu0 + `, "gpu_policy": "exclusive"`, "not_assignable"},

	{"the other card is on vfio", 1, with(gpus(0)), gpu0, ""},
	{"on vfio", 1, with(nothing), gpu1, "bound_vfio"},
	{"off the bus", 2, with(nothing), gpu1, "off_bus"},
	{"the other fell off the bus", 2, with(gpus(0)), gpu0, ""},
	{"whole, though divided", 3, with(gpus(0)), gpu0, "mig_whole"},
	{"the card that is not divided", 3, with(gpus(1)), gpu1, ""},
	{"a MIG device that is not there", 3, with(nothing), `"gpu_assignment": "0:5"`, "mig_gone"},
	{"a MIG device of a card that is not divided", 3, with(nothing), `"gpu_assignment": "1:0"`, "mig_off"},
	{"Docker that would change the cgroup", 0, func(n *sandboxtest.Node, ctid int32) {
		with(gpus(0))(n, ctid)
		n.Must("lxc-attach", "-n", fmt.Sprint(ctid), "--", "sh", "-c",
			"mkdir -p /etc/nvidia-container-runtime; echo '[nvidia-container-cli]' >/etc/nvidia-container-runtime/config.toml")
	}, gpu0, "warning: docker_cgroups"},
	{"no driver", 4, with(nothing), gpu0, "module_not_loaded"},
	{"uvm is missing", 5, down(gpus(0)), gpu0, "uvm_not_loaded"},
	{"minors in another order than the bus", 6, with(gpus(3)), gpu0, ""},
	{"the minor taken for the index", 6, with(gpus(0)), gpu0, "not_given"},
}

// Each fault on real containers: doctor names the true cause, and finds nothing where all is well.
func TestDoctor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{Nodes: len(shapesOfDoctor), Shapes: shapesOfDoctor})
	var entries, ctids []string
	t.Run("make", func(t *testing.T) {
		for i, p := range patients {
			ctid := int32(901 + i)
			ctids = append(ctids, fmt.Sprint(ctid))
			if p.file != "" {
				entries = append(entries, fmt.Sprintf(`"%d": {%s}`, ctid, p.file))
			}
			if i < 2 {
				p.make(w.nodes[p.node], ctid)
				continue
			}
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				p.make(w.nodes[p.node].For(t), ctid)
			})
		}
	})
	w.setFleet(strings.Join(entries, ",\n"))

	found := func(d *controllerv1.Diagnosis) string {
		switch f := d.GetFindings(); {
		case len(f) == 0:
			return ""
		case f[0].GetSeverity() == controllerv1.Severity_SEVERITY_WARNING:
			return "warning: " + f[0].GetFault()
		default:
			return f[0].GetFault()
		}
	}
	all := w.diagnose(t, append([]string{"doctor"}, ctids...)...).GetContainers()
	for i, p := range patients {
		if got := found(all[i]); got != p.want {
			t.Errorf("%s: doctor finds %q, want %q: %v", p.name, got, p.want, all[i])
		}
	}
	r := w.diagnose(t, "doctor")
	for _, d := range r.GetContainers() {
		if p := patients[d.GetCtid()-901]; found(d) != p.want {
			t.Errorf("%s: in the round %q, want %q", p.name, found(d), p.want)
		}
	}
	if len(r.GetContainers()) != len(patients)-1 { // all but the one that is not in the fleet file and has no GPU
		t.Errorf("the round examines %d containers, want %d", len(r.GetContainers()), len(patients)-1)
	}

	// A MIG device, until it is gone.
	n := w.nodes[3]
	startWith(n, 1000, conf(1000))
	w.setFleet(`"1000": {"gpu_assignment": "0:1"}`)
	w.cli("apply")
	w.names(t, 1000, "")
	n.Change(func(h *nvidia.Host) { h.GPUs[0].MIG.Devices = h.GPUs[0].MIG.Devices[:1] })
	w.names(t, 1000, "mig_gone")
	n.Change(func(h *nvidia.Host) { h.GPUs[0].MIG.Current, h.GPUs[0].MIG.Devices = false, nil })
	w.names(t, 1000, "mig_off")

	if len(r.GetNodes()) != 1 || r.GetNodes()[0].GetNode() != "pve3" || r.GetNodes()[0].GetFinding().GetFault() != "off_bus" {
		t.Errorf("the round finds of nodes %v, want that a card of pve3 fell off the bus", r.GetNodes())
	}
}

// What happens to a node while a container runs on it, or over a reboot.
func TestDoctorLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	startWith(n, 902, privileged(conf(902, append(scripted(n, 1), "onboot: 1")...)))
	w.setFleet(`"901": {` + gpu0 + `}, "902": {` + gpu1 + `}`)
	w.cli("apply", "901")
	w.names(t, 901, "")

	n.Upgrade("590.10.01", false)
	w.names(t, 901, "warning: upgrade_pending")
	n.Upgrade(n.Driver, false)
	w.names(t, 901, "")

	n.Change(func(h *nvidia.Host) { h.GPUs[0].Bound = "nouveau" })
	w.names(t, 901, "bound_nouveau")
	n.Bind(0, "vfio-pci") // so that index 0 is now the other card's
	w.names(t, 901, "bound_vfio")
	n.Bind(0, "")
	w.names(t, 901, "unbound")
	n.Bind(0, "nvidia")
	w.names(t, 901, "")

	uuid := n.GPUs[0].UUID
	n.Change(func(h *nvidia.Host) { h.GPUs[0].UUID = "GPU-00000000-1111-2222-3333-444444444444" })
	w.names(t, 901, "gpu_moved")
	n.Change(func(h *nvidia.Host) { h.GPUs[0].UUID, h.GPUs[0].Fault = uuid, nvidia.Removed })
	w.names(t, 901, "card_gone")
	n.Change(func(h *nvidia.Host) { h.GPUs[0].Fault = nvidia.Excluded })
	w.names(t, 901, "excluded")
	n.Change(func(h *nvidia.Host) { h.GPUs[0].Fault = nvidia.Healthy })
	w.names(t, 901, "")

	n.Must("chmod", "600", "/dev/nvidia0")
	w.names(t, 901, "node_mode")
	n.Must("chmod", "666", "/dev/nvidia0")
	n.RemoveDeviceNode("/dev/nvidiactl")
	w.names(t, 901, "warning: node_missing")
	n.Must("nvidia-modprobe", "-c", "255")

	n.KernelLog("NVRM: Xid (PCI:0000:01:00): 95, pid=1, name=train, Uncontained: SM")
	sandboxtest.Eventually(t, "the agent sees the error", func() bool {
		return len(w.diagnose(t, "doctor", "901").GetContainers()[0].GetFindings()) > 0
	})
	w.names(t, 901, "needs_reset")
	w.cli("health", "ack", "pve1", "0")
	n.Lose(0)
	sandboxtest.Eventually(t, "the agent sees the loss", func() bool {
		return len(w.diagnose(t, "doctor", "901").GetContainers()[0].GetFindings()) > 0
	})
	w.names(t, 901, "off_bus")

	// A reboot brings it back, with other majors: what was applied is mended before it starts, what was written by hand is not.
	n.Reboot(sandbox.RebootOptions{})
	w.names(t, 901, "stopped")
	w.names(t, 902, "wrong_major")
	w.SignalController(9)
	w.refused(1, "", "doctor")

	// Without controller, and without agent.
	n.SignalAgent(9)
	r := w.diagnose(t, append(w.local(), "doctor")...)
	if len(r.GetNodes()) != 1 || r.GetNodes()[0].GetFinding().GetFault() != "agent_away" {
		t.Errorf("the round finds of nodes %v, want that the agent is away", r.GetNodes())
	}
	w.names(t, 901, "agent_away", w.local()...)
}

// The user-space driver in the container.
func TestDoctorDriver(t *testing.T) {
	t.Parallel()
	w := newDriverWorld(t)
	w.fleet = filepath.Join(t.TempDir(), "fleet.json")
	loaded, older := w.put(runfile.Options{Version: loadedDriver}), w.put(runfile.Options{Version: olderDriver})
	for _, req := range []*agentv1.FetchInstallerRequest{loaded, older} {
		if _, err := w.fetch(t.Context(), req, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.start(901, true, scripted(w.n, w.n.GPUs[0].Minor)...)
	w.start(902, false, scripted(w.n, w.n.GPUs[0].Minor)...)
	w.n.Add(903, conf(903, scripted(w.n, w.n.GPUs[0].Minor)...))
	if err := os.WriteFile(w.root(903, "lib", "ld-musl-x86_64.so.1"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	w.n.Must("pct", "start", "903")
	const driver = gpu0 + `, "features": ["nvidia"]`
	w.setFleet(`"901": {` + driver + `}, "902": {` + driver + `}, "903": {` + driver + `}`)
	names := func(ctid int32, want string) { t.Helper(); w.names(t, ctid, want, w.local()...) }

	names(901, "no_user_space")
	names(902, "no_libc")
	names(903, "musl")
	install := func(version string) {
		t.Helper()
		if _, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 901, Version: version}, nil); err != nil {
			t.Fatal(err)
		}
	}
	install(olderDriver)
	names(901, "version_mismatch")
	install(loadedDriver)
	names(901, "")
	for _, tt := range []struct{ break_, mend, want string }{
		{"mv /usr/lib/x86_64-linux-gnu/libcuda.so.1 /root", "mv /root/libcuda.so.1 /usr/lib/x86_64-linux-gnu", "incomplete"},
		{"mv /usr/bin/nvidia-smi /root", "mv /root/nvidia-smi /usr/bin", "smi_fails"},
		{"mv /usr/bin/nvidia-smi /root; printf '#!/bin/sh\\n' >/usr/bin/nvidia-smi; chmod 755 /usr/bin/nvidia-smi", "mv /root/nvidia-smi /usr/bin", "smi_missing"},
	} {
		if _, stderr, code := w.n.Attach(901, tt.break_); code != 0 {
			t.Fatalf("%s: %s", tt.break_, stderr)
		}
		names(901, tt.want)
		if _, stderr, code := w.n.Attach(901, tt.mend); code != 0 {
			t.Fatalf("%s: %s", tt.mend, stderr)
		}
	}
	names(901, "")
	w.n.Upgrade("590.10.01", true) // with the modules loaded anew
	names(901, "version_mismatch")
}
