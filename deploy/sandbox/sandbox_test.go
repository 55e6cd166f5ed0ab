package sandbox_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { os.Exit(sandboxtest.Main(m)) }

// fleet is a fleet file with one container of each kind that Up treats differently.
const fleet = `{
  "nvidia_driver_version": "580.76.05",
  "lxc_configs": {
    "900": {"name": "Base", "memory_mb": 64, "cores": 1, "unprivileged": true, "gpu_assignment": "none",
            "template_snapshot_name": "final-form", "lxc_options": ["lxc.apparmor.profile=unconfined"],
            "network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "10.0.0.200/24", "gw": "10.0.0.1"},
            "mac_address": "52:54:00:AA:BB:CC", "storage_size_gb": 16},
    "901": {"name": "gpu box", "memory_mb": 64, "cores": 2, "gpu_assignment": "0, 1", "clone_from_ctid": "900",
            "network_config": {"ip": "10.0.0.201", "gw": "none"}},
    "902": {"name": "web", "node": "pve2", "unprivileged": true, "gpu_assignment": "0", "start_at_boot": true,
            "health_check": {"command": "/opt/check/web.sh --fast"}},
    "903": {"name": "db", "unprivileged": true, "clone_from_ctid": "902", "health_check": {"command": "curl -s http://localhost"}}
  }
}`

func writeFleet(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet.json")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUpAndDown(t *testing.T) {
	s := sandboxtest.Up(t, sandboxtest.Options{Nodes: 2, ReverseMinors: true, Fleet: writeFleet(t, fleet)})
	t.Run("what a node sees", func(t *testing.T) { nodeView(t, s) })
	t.Run("this machine is as it was", func(t *testing.T) { machineView(t, s) })
	t.Run("confs and places of the fleet's containers", func(t *testing.T) { fleetContainers(t, s) })
	t.Run("up again is refused", func(t *testing.T) {
		refused(t, s, "a sandbox is up in "+s.Dir+": take it down first", "up", "--dir", s.Dir)
	})
	t.Run("a person's process in a node is told, and left alone", func(t *testing.T) { strayProcess(t, s) })
	t.Run("down leaves nothing", func(t *testing.T) { nothingLeft(t, s) })
}

func nodeView(t *testing.T, s *sandboxtest.Sandbox) {
	n := s.Node(2).For(t)
	for _, c := range []struct{ script, want string }{
		{"hostname; cat /etc/hostname /etc/pve-release", "pve2\npve2\n9.1-sandbox\n"},
		{"pveversion | cut -d' ' -f1", "pve-manager/9.1-sandbox/0123456789abcdef\n"},
		{"readlink /etc/pve/local /etc/pve/lxc", "nodes/pve2\nnodes/pve2/lxc\n"},
		{"stat -c %a /etc/pve/lxc/902.conf", "640\n"},
		{"grep -h nvidia /proc/devices | sort -k2", fmt.Sprintf("195 nvidia\n%d nvidia-caps\n%d nvidia-caps-imex-channels\n195 nvidia-modeset\n%d nvidia-nvlink\n%d nvidia-uvm\n195 nvidiactl\n",
			n.Majors.Caps, n.Majors.IMEX, n.Majors.NVLink, n.Majors.UVM)},
		{"grep -h '^Device Minor' /proc/driver/nvidia/gpus/*/information | tr -d ' \\t'", "DeviceMinor:1\nDeviceMinor:0\n"},
		{"cat /sys/module/nvidia/version", "580.76.05\n"},
		{"cat /sys/bus/pci/devices/0000:41:00.0/vendor; basename $(readlink /sys/bus/pci/devices/0000:41:00.0/driver)", "0x10de\nnvidia\n"},
		{"nvidia-smi --query-gpu=index,pci.bus_id,memory.total --format=csv,noheader,nounits", "0, 00000000:01:00.0, 16311\n1, 00000000:41:00.0, 16311\n"},
		{"nvidia-smi --query-gpu=name,memory.total --format=csv", "name, memory.total\nNVIDIA GeForce RTX 5060 Ti, 16311 MiB\nNVIDIA GeForce RTX 5060 Ti, 16311 MiB\n"},
		{"stat -c '%n %t:%T %a' /dev/nvidia1 /dev/nvidiactl /dev/null", "/dev/nvidia1 c3:1 666\n/dev/nvidiactl c3:ff 666\n/dev/null 1:3 666\n"},
		{"sh -c 'exec 3</dev/nvidia0' 2>&1 | grep -o 'No such device or address'", "No such device or address\n"},
		{"stat -f -c %T /sys/fs/cgroup", "cgroup2fs\n"},
		{"ls /sys/fs/cgroup/lxc | grep '^[0-9]'", "902\n903\n"},
		{"ip -o -4 addr show dev eth0 | awk '{print $4}'", n.Address + "/30\n"},
		{"ls /var/lib/phoenix /var/lib/lxc", "/var/lib/lxc:\n902\n903\n\n/var/lib/phoenix:\n"},
	} {
		if got, stderr, _ := n.Run("sh", "-c", c.script); got != c.want {
			t.Errorf("%s: got %q (%s), want %q", c.script, got, stderr, c.want)
		}
	}
}

// machineView looks from outside of the nodes.
func machineView(t *testing.T, s *sandboxtest.Sandbox) {
	for _, path := range []string{"/etc/pve", "/usr/sbin/pct", "/var/lib/lxc/902"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is there", path)
		}
	}
	devices, err := os.ReadFile("/proc/devices")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(devices), "nvidia-uvm") {
		t.Error("nvidia-uvm is in the machine's own /proc/devices")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), s.Dir) {
		t.Errorf("something is mounted below %s:\n%s", s.Dir, mounts)
	}
}

func fleetContainers(t *testing.T, s *sandboxtest.Sandbox) {
	one, two := s.Node(1).For(t), s.Node(2).For(t)
	for ctid, n := range map[int32]*sandboxtest.Node{900: one, 901: one, 902: two, 903: two} {
		if !n.Running(ctid) {
			t.Errorf("%d does not run on %s", ctid, n.Name)
		}
	}
	want := `arch: amd64
cores: 1
hostname: Base
memory: 64
net0: name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=52:54:00:AA:BB:CC,ip=10.0.0.200/24,type=veth
onboot: 0
ostype: ubuntu
parent: final-form
rootfs: local:900/vm-900-disk-0.raw,size=16G
swap: 0
unprivileged: 1
lxc.apparmor.profile: unconfined

[final-form]
#as the scripts made it
arch: amd64
cores: 1
hostname: Base
memory: 64
net0: name=eth0,bridge=vmbr0,gw=10.0.0.1,hwaddr=52:54:00:AA:BB:CC,ip=10.0.0.200/24,type=veth
onboot: 0
ostype: ubuntu
rootfs: local:900/vm-900-disk-0.raw,size=16G
snaptime: 1764000000
swap: 0
unprivileged: 1
`
	if got := one.Conf(900); got != want {
		t.Errorf("conf of 900:\n%s\nwant:\n%s", got, want)
	}
	want = `arch: amd64
cores: 2
hostname: gpu-box
memory: 64
net0: name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:03:85,ip=dhcp,type=veth
onboot: 0
ostype: ubuntu
rootfs: local:901/vm-901-disk-0.raw,size=8G
swap: 0
lxc.cgroup2.devices.allow = c 195:* rwm
lxc.cgroup2.devices.allow = c 243:* rwm
lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry = /dev/nvidia1 dev/nvidia1 none bind,optional,create=file
lxc.mount.entry = /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry = /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
`
	if got := one.Conf(901); got != want {
		t.Errorf("conf of 901, with the scripts' leftovers:\n%s\nwant:\n%s", got, want)
	}
	// The leftovers do what they did: nvidia-uvm is denied, because its major is not 243.
	for path, want := range map[string]string{"/dev/nvidia0": "ENXIO", "/dev/nvidia-uvm": "EPERM", "/dev/nvidia-uvm-tools": "ENOENT"} {
		if got := one.Open(901, path); got != want {
			t.Errorf("open %s in 901: %s, want %s", path, got, want)
		}
	}
	if out, _, code := two.Attach(902, "/opt/check/web.sh --fast"); code != 0 || out != "the sandbox's stand-in for /opt/check/web.sh: it always succeeds\n" {
		t.Errorf("health check of 902: %q, status %d", out, code)
	}
	if out, _, code := two.Attach(903, "curl -s http://localhost"); code != 0 || out != "the sandbox's stand-in for /usr/bin/curl: it always succeeds\n" {
		t.Errorf("health check of 903: %q, status %d", out, code)
	}
}

// strayProcess enters a node as somebody does who knows nothing of the sandbox's cgroup.
func strayProcess(t *testing.T, s *sandboxtest.Sandbox) {
	holder := strings.TrimSpace(s.Node(1).For(t).Must("sh", "-c", "cat /sys/fs/cgroup/holder/cgroup.procs"))
	stray := exec.Command("nsenter", "--target="+holder, "--mount", "--", "sleep", "60")
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	defer stray.Wait()
	defer stray.Process.Kill()
	sandboxtest.Eventually(t, "it is in the node", func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", stray.Process.Pid))
		return string(comm) == "sleep\n"
	})
	out, err := exec.Command(s.Program("phoenix-sandbox"), "down", "--dir", s.Dir).CombinedOutput()
	want := fmt.Sprintf("process %d, which the sandbox did not start, is still in node pve1", stray.Process.Pid)
	if err == nil || !strings.Contains(string(out), want) {
		t.Errorf("got %v:\n%s\nwant status 1 and %q", err, out, want)
	}
	if err := stray.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("it was ended: %v", err)
	}
}

func nothingLeft(t *testing.T, s *sandboxtest.Sandbox) {
	out, err := exec.Command(s.Program("phoenix-sandbox"), "down", "--dir", s.Dir).CombinedOutput()
	if err != nil || string(out) != "nothing is there: "+s.Dir+"\n" {
		t.Errorf("a second down: %v: %s", err, out)
	}
	if _, err := os.Lstat(s.Dir); err == nil {
		t.Errorf("%s is left", s.Dir)
	}
	checkGone(t, s.Name)
}

// checkGone looks for the sandbox's name in every process's cgroup, in the cgroup trees and among the
// network interfaces. What has ended and only waits for the machine's init to notice does not count.
func checkGone(t *testing.T, name string) {
	t.Helper()
	cgroups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range cgroups {
		cgroup, _ := os.ReadFile(path) // it may end meanwhile
		status, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "status"))
		if strings.Contains(string(cgroup), name) && !strings.Contains(string(status), "\nState:\tZ") {
			t.Errorf("process left: %s%s", cgroup, status)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/" + name + "*", "/sys/fs/cgroup/*/" + name + "*", "/sys/class/net/" + name + "*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

func refused(t *testing.T, s *sandboxtest.Sandbox, want string, args ...string) {
	t.Helper()
	cmd := exec.Command(s.Program("phoenix-sandbox"), args...)
	out, err := cmd.CombinedOutput()
	if want := "phoenix-sandbox: " + want + "\n"; err == nil || string(out) != want {
		t.Errorf("phoenix-sandbox %s: got %v, %q; want %q", strings.Join(args, " "), err, out, want)
	}
}

func TestUpRefuses(t *testing.T) {
	s := sandboxtest.Up(t, sandboxtest.Options{GPUs: -1})
	dir := t.TempDir()
	foreign := filepath.Join(dir, "foreign")
	config := filepath.Join(dir, "cli.yaml")
	for path, content := range map[string]string{foreign + "/precious": "x", config: "controller: mine\n"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fleet := writeFleet(t, `{"lxc_configs": {"99": {}}}`)
	broken := writeFleet(t, `{"lxc_configs": {"900": {"name": "x", "unprivileged": true, "lxc_options": ["lxc.mount.entry=x"]}}}`)
	sandbox := filepath.Join(dir, "sandbox")
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"a folder with something in it", foreign + " is not empty, and not a sandbox's", []string{"--dir", foreign}},
		{"a folder that the nodes replace", "/run/x: a sandbox cannot lie in /run, which its nodes replace", []string{"--dir", "/run/x"}},
		{"a CLI configuration of somebody else", config + " exists and is not the sandbox's: move it away, or choose another place with --cli-config",
			[]string{"--dir", sandbox, "--cli-config", config}},
		{"no nodes", "-1 nodes: between 1 and 16 are possible", []string{"--dir", sandbox, "--nodes", "-1"}},
		{"no fleet file", "open /nowhere.json: no such file or directory", []string{"--dir", sandbox, "--fleet", "/nowhere.json"}},
		{"no CTID", "read fleet file " + fleet + ": lxc_configs: \"99\" is not a CTID", []string{"--dir", sandbox, "--fleet", fleet}},
	} {
		t.Run(c.name, func(t *testing.T) { refused(t, s, c.want, append([]string{"up"}, c.args...)...) })
	}
	t.Run("a container that does not start: what was made is gone again", func(t *testing.T) {
		out, err := exec.Command(s.Program("phoenix-sandbox"), "up", "--dir", sandbox, "--fleet", broken).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "node pve1: /usr/sbin/pct start 900: exit status 255") {
			t.Errorf("got %v: %s", err, out)
		}
		if _, err := os.Lstat(sandbox); err == nil {
			t.Errorf("%s is left", sandbox)
		}
	})
	if b, err := os.ReadFile(foreign + "/precious"); err != nil || string(b) != "x" {
		t.Errorf("the foreign file: %q, %v", b, err)
	}
	if b, err := os.ReadFile(config); err != nil || string(b) != "controller: mine\n" {
		t.Errorf("the foreign configuration: %q, %v", b, err)
	}
}

// A machine where somebody killed this and that.
func TestDownAfterKills(t *testing.T) {
	for name, script := range map[string]string{
		"the holder of a node":       "kill -9 $(cat /sys/fs/cgroup/holder/cgroup.procs)",
		"the monitors":               "for d in /sys/fs/cgroup/lxc.monitor/*/; do kill -9 $(cat $d/cgroup.procs); done",
		"the init of a container":    "kill -9 $(lxc-info -n 900 -pH)",
		"a container that is frozen": "lxc-freeze -n 900",
	} {
		t.Run(name, func(t *testing.T) {
			s := sandboxtest.Up(t, sandboxtest.Options{
				Fleet: writeFleet(t, `{"lxc_configs": {"900": {"name": "x", "unprivileged": true}, "901": {"name": "y"}}}`)})
			s.Node(1).Run("sh", "-c", script)
			out, err := exec.Command(s.Program("phoenix-sandbox"), "down", "--dir", s.Dir).CombinedOutput()
			if err != nil || !strings.HasSuffix(string(out), "nothing is left\n") {
				t.Errorf("down: %v: %s", err, out)
			}
			checkGone(t, s.Name)
		})
	}
}

// A test that is killed has no chance to take its sandbox down.
func TestProcessesEndWithTheirOwner(t *testing.T) {
	s := sandboxtest.Up(t, sandboxtest.Options{})
	owner := exec.Command("sleep", "60")
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "owned")
	program := s.Program("phoenix-sandbox")
	out, err := exec.Command(program, "up", "--dir", dir, "--nodes", "1", "--while", fmt.Sprint(owner.Process.Pid),
		"--fleet", writeFleet(t, `{"lxc_configs": {"900": {"name": "x"}}}`)).CombinedOutput()
	if err != nil {
		t.Fatalf("up: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command(program, "down", "--dir", dir).Run() })
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	owner.Wait()
	sandboxtest.Eventually(t, "the node is dead", func() bool {
		out, err := exec.Command(program, "status", "--dir", dir).CombinedOutput()
		return err == nil && strings.HasPrefix(string(out), "pve1  DEAD  ")
	})
	if out, err := exec.Command(program, "down", "--dir", dir).CombinedOutput(); err != nil {
		t.Errorf("down: %v: %s", err, out)
	}
}
