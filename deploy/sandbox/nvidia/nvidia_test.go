package nvidia_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"phoenix.internal/agent/gpu"
	"phoenix.internal/deploy/sandbox/nvidia"
)

// majors are those of all hosts here.
var majors = nvidia.Majors{NVIDIA: 195, UVM: 511, Caps: 501, IMEX: 502, NVLink: 503, DRM: 226}

// boot lays out a host of this shape in a folder.
func boot(t *testing.T, shape string) nvidia.Tree {
	t.Helper()
	host, err := nvidia.Shape(shape, 1)
	must(t, err)
	host.Majors = majors
	dir := t.TempDir()
	tree := nvidia.Tree{Root: dir, State: filepath.Join(dir, "state.json")}
	if err := unix.Mknod(filepath.Join(dir, "node"), unix.S_IFCHR, int(unix.Mkdev(1, 3))); err != nil {
		t.Skipf("mknod: %v: device nodes need root", err)
	}
	must(t, tree.Create(host))
	must(t, tree.Boot())
	return tree
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seen is what the agent's own scanner makes of a tree: the driver, a line for each GPU, and the problems.
func seen(t *testing.T, tree nvidia.Tree) []string {
	t.Helper()
	s := gpu.Scanner{
		Sys: filepath.Join(tree.Root, "sys"), Proc: filepath.Join(tree.Root, "proc"), Dev: filepath.Join(tree.Root, "dev"),
		SMI: "/nonexistent/nvidia-smi",
	}
	inv, err := s.Scan(t.Context())
	must(t, err)
	lines := []string{fmt.Sprintf("driver %q open %v", inv.DriverVersion, inv.OpenKernelModule)}
	for _, g := range inv.GPUs {
		line := fmt.Sprintf("%d %s minor %d numa %d %s", g.Index, g.PCIAddress, g.Minor, g.NUMANode, g.Driver)
		for _, d := range g.MIG {
			line += fmt.Sprintf(" gi%d/ci%d", d.Instance.GPU, d.Instance.Compute)
			for _, n := range d.Nodes {
				line += fmt.Sprintf(" %s=%d:%d %v", filepath.Base(n.Path), n.Major, n.Minor, n.State)
			}
		}
		lines = append(lines, line)
	}
	return append(lines, inv.Problems...)
}

func check(t *testing.T, tree nvidia.Tree, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, seen(t, tree)); diff != "" {
		t.Errorf("what the agent sees (-want +got):\n%s", diff)
	}
}

func TestShapes(t *testing.T) {
	const driver = `driver "580.105.08" open true`
	for name, want := range map[string][]string{
		"plain": {driver, "0 0000:01:00.0 minor 0 numa 0 nvidia", "1 0000:41:00.0 minor 1 numa 1 nvidia"},
		"eight": {driver,
			"0 0000:01:00.0 minor 3 numa 0 nvidia", "1 0000:11:00.0 minor 2 numa 0 nvidia", "2 0000:21:00.0 minor 0 numa 0 nvidia",
			"3 0000:31:00.0 minor 1 numa 0 nvidia", "4 0000:41:00.0 minor 7 numa 1 nvidia", "5 0000:51:00.0 minor 6 numa 1 nvidia",
			"6 0000:61:00.0 minor 4 numa 1 nvidia", "7 0000:71:00.0 minor 5 numa 1 nvidia"},
		"mig": {driver,
			"0 0000:01:00.0 minor 0 numa 0 nvidia gi2/ci0 nvidia-cap21=501:21 ok nvidia-cap22=501:22 ok" +
				" gi9/ci0 nvidia-cap84=501:84 ok nvidia-cap85=501:85 ok gi10/ci0 nvidia-cap93=501:93 ok nvidia-cap94=501:94 ok",
			"1 0000:41:00.0 minor 1 numa 1 nvidia"},
		"fabric": {driver, "0 0000:01:00.0 minor 0 numa 0 nvidia", "1 0000:41:00.0 minor 1 numa 1 nvidia"},
		"vfio":   {driver, "0 0000:01:00.0 minor 0 numa 0 nvidia", "-1 0000:41:00.0 minor -1 numa 1 vfio-pci"},
		"off-bus": {driver, "0 0000:01:00.0 minor 0 numa 0 nvidia", "1 0000:41:00.0 minor -1 numa 1 nvidia",
			"GPU 0000:41:00.0 is bound to nvidia, but the driver does not list it: it did not initialise or fell off the bus (see the kernel's log)."},
		"uvm-missing": {driver, "0 0000:01:00.0 minor 0 numa 0 nvidia", "1 0000:41:00.0 minor 1 numa 1 nvidia",
			"The module nvidia-uvm is not loaded, so CUDA does not work.",
			"Device node /dev/nvidia-uvm is missing.", "Device node /dev/nvidia-uvm-tools is missing."},
		"no-driver": {`driver "" open false`, "-1 0000:01:00.0 minor -1 numa 0 none", "-1 0000:41:00.0 minor -1 numa 1 none",
			"The nvidia driver is not loaded."},
		"other-driver": {`driver "570.148.08" open false`, "0 0000:01:00.0 minor 0 numa 0 nvidia", "1 0000:41:00.0 minor 1 numa 1 nvidia"},
	} {
		t.Run(name, func(t *testing.T) { check(t, boot(t, name), want...) })
	}
	t.Run("all are here", func(t *testing.T) {
		want := []string{"eight", "fabric", "mig", "no-driver", "off-bus", "other-driver", "plain", "uvm-missing", "vfio"}
		if diff := cmp.Diff(want, nvidia.Shapes()); diff != "" {
			t.Errorf("Shapes (-want +got):\n%s", diff)
		}
	})
}

// All minors are the driver's: those at the ends of its tables, and those of a fabric.
func TestFabric(t *testing.T) {
	tree := boot(t, "fabric")
	for path, want := range map[string]string{
		"proc/driver/nvidia/capabilities/fabric-imex-mgmt":   "DeviceFileMinor: 4323\nDeviceFileMode: 256\nDeviceFileModify: 1\n",
		"proc/driver/nvidia-nvlink/capabilities/fabric-mgmt": "DeviceFileMinor: 0\nDeviceFileMode: 256\nDeviceFileModify: 1\n",
		"proc/driver/nvidia-caps/sys-minors":                 "fabric-imex-mgmt 4323\n",
		"proc/driver/nvidia-caps/nvlink-minors":              "fabric-mgmt 0\n",
	} {
		if b, err := os.ReadFile(filepath.Join(tree.Root, path)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v, want %q", path, b, err, want)
		}
	}
	b, err := os.ReadFile(filepath.Join(tree.Root, "proc/driver/nvidia-caps/mig-minors"))
	must(t, err)
	lines := strings.Split(string(b), "\n")
	if got, want := lines[:4], []string{"config 1", "monitor 2", "gpu0/gi0/access 3", "gpu0/gi0/ci0/access 4"}; !slices.Equal(got, want) {
		t.Errorf("first minors %q, want %q", got, want)
	}
	if got, want := lines[len(lines)-2], "gpu31/gi14/ci7/access 4322"; got != want {
		t.Errorf("last minor %q, want %q", got, want)
	}
	want := "nvidia-caps/nvidia-cap0 501:0 400, nvidia-caps/nvidia-cap1 501:1 400, nvidia-caps/nvidia-cap2 501:2 444, " +
		"nvidia-caps/nvidia-cap4323 501:4323 400, nvidia-caps-imex-channels/channel0 502:0 666"
	if got := nodes(t, filepath.Join(tree.Root, "dev")); !strings.Contains(got, want) {
		t.Errorf("nodes %s, want %s among them", got, want)
	}
}

// tool runs one of the driver's programs on a host.
func tool(t *testing.T, tree nvidia.Tree, command string) (out string, code int) {
	t.Helper()
	var b bytes.Buffer
	words := strings.Fields(command)
	tools := nvidia.Tools{Tree: tree, Out: &b, Err: &b}
	code = tools.Main(words[0], words[1:])
	return b.String(), code
}

func TestToolsBringUVMBack(t *testing.T) {
	tree := boot(t, "uvm-missing")
	if out, code := tool(t, tree, "modprobe nvidia-uvm"); out != "" || code != 0 {
		t.Fatalf("modprobe: %q, status %d", out, code)
	}
	gpus := []string{`driver "580.105.08" open true`, "0 0000:01:00.0 minor 0 numa 0 nvidia", "1 0000:41:00.0 minor 1 numa 1 nvidia"}
	check(t, tree, append(slices.Clone(gpus), "Device node /dev/nvidia-uvm is missing.", "Device node /dev/nvidia-uvm-tools is missing.")...)
	if out, code := tool(t, tree, "nvidia-modprobe -u -c 0"); out != "" || code != 0 {
		t.Fatalf("nvidia-modprobe: %q, status %d", out, code)
	}
	check(t, tree, gpus...)
}

func TestNVIDIAModprobe(t *testing.T) {
	for _, c := range []struct {
		name, before, command string
		code                  int
		want                  string // paths in /dev that it made, with numbers and mode
	}{
		{"a GPU and the control device", "", "nvidia-modprobe -c 255 -c 1", 0, "nvidia1 195:1 666, nvidiactl 195:255 666"},
		{"joined", "", "nvidia-modprobe -c0", 0, "nvidia0 195:0 666"},
		{"modeset", "", "nvidia-modprobe -m", 0, "nvidia-modeset 195:254 666"},
		{"unified memory, no nodes", "", "nvidia-modprobe -u", 0, ""},
		{"unified memory", "", "nvidia-modprobe -u -c 0", 0, "nvidia-uvm 511:0 666, nvidia-uvm-tools 511:1 666"},
		{"links", "", "nvidia-modprobe -l", 0, "nvidia-nvlink 503:0 666"},
		{"switches, which there are none of", "", "nvidia-modprobe -s -c 0", 1, ""},
		{"capabilities", "", "nvidia-modprobe -f /proc/driver/nvidia/capabilities/gpu0/mig/gi2/access -f /proc/driver/nvidia/capabilities/mig/config", 0,
			"nvidia-caps/nvidia-cap1 501:1 400, nvidia-caps/nvidia-cap21 501:21 444"},
		{"a capability that there is not", "", "nvidia-modprobe -f /proc/driver/nvidia/capabilities/gpu0/mig/gi7/access", 1, ""},
		{"a file in the way", "echo x >nvidia0", "nvidia-modprobe -c 0", 0, "nvidia0 195:0 666"},
		{"numbers of an earlier load", "mknod nvidia-uvm c 500 0", "nvidia-modprobe -u -c 0", 0, "nvidia-uvm 511:0 666, nvidia-uvm-tools 511:1 666"},
		{"a mode in the way", "mknod -m 600 nvidia0 c 195 0", "nvidia-modprobe -c 0", 0, "nvidia0 195:0 666"},
		{"an unknown option", "", "nvidia-modprobe --frob", 2, ""},
		{"modinfo without a version", "", "modinfo nvidia", 2, ""},
		{"modinfo of another module", "", "modinfo -F version zfs", 1, ""},
		{"modprobe of another module", "", "modprobe -q zfs", 1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := boot(t, "mig")
			dev := filepath.Join(tree.Root, "dev")
			must(t, os.RemoveAll(dev))
			must(t, os.MkdirAll(dev, 0o755))
			if c.before != "" {
				fields := strings.Fields(c.before)
				if fields[0] == "echo" {
					must(t, os.WriteFile(filepath.Join(dev, "nvidia0"), []byte("x"), 0o644))
				} else {
					mode := uint32(0o666)
					if strings.Contains(c.before, "600") {
						mode = 0o600
					}
					numbers := map[string]uint64{"nvidia-uvm": unix.Mkdev(500, 0), "nvidia0": unix.Mkdev(195, 0)}
					for name, number := range numbers {
						if strings.Contains(c.before, name) {
							must(t, unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|mode, int(number)))
						}
					}
				}
			}
			out, code := tool(t, tree, c.command)
			if got := nodes(t, dev); got != c.want || code != c.code {
				t.Errorf("%s: made %q, status %d (%s), want %q, %d", c.command, got, code, out, c.want, c.code)
			}
		})
	}
}

// nodes are the device nodes below dev.
func nodes(t *testing.T, dev string) string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dev, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		name, err := filepath.Rel(dev, path)
		all = append(all, fmt.Sprintf("%s %d:%d %o", name, unix.Major(st.Rdev), unix.Minor(st.Rdev), st.Mode&0o777))
		return err
	}))
	return strings.Join(all, ", ")
}

// NVreg_ModifyDeviceFiles=0 keeps it from the GPUs' nodes, successfully, and not from those of uvm.
func TestModifyDeviceFiles(t *testing.T) {
	tree := boot(t, "plain")
	must(t, tree.Change(func(h *nvidia.Host) error { h.LeaveNodes = true; return nil }))
	dev := filepath.Join(tree.Root, "dev")
	must(t, os.RemoveAll(dev))
	_, code := tool(t, tree, "nvidia-modprobe -c 0")
	if _, err := os.Stat(filepath.Join(dev, "nvidia0")); err == nil || code != 0 {
		t.Errorf("status %d, nvidia0 made %v; want 0 and not", code, err == nil)
	}
	_, code = tool(t, tree, "nvidia-modprobe -u -c 0")
	if got, want := nodes(t, dev), "nvidia-uvm 511:0 666, nvidia-uvm-tools 511:1 666"; got != want || code != 0 {
		t.Errorf("status %d, made %q; want 0, %q", code, got, want)
	}
}

func TestSMI(t *testing.T) {
	const lost = "Unable to determine the device handle for GPU1: 00000000:41:00.0: GPU is lost.  Reboot the system to recover this GPU\n"
	for _, c := range []struct {
		name, shape, args, want string
		code                    int
	}{
		{"fields", "eight", "--query-gpu=index,pci.bus_id,memory.total --format=csv,noheader,nounits -i 4,0000:71:00.0",
			"4, 00000000:41:00.0, 49140\n7, 00000000:71:00.0, 49140\n", 0},
		{"header and units", "other-driver", "--query-gpu=name,memory.free,driver_version,mig.mode.current,serial --format=csv -i 0",
			"name, memory.free, driver_version, mig.mode.current, serial\nNVIDIA GeForce RTX 5060 Ti, 16311 MiB, 570.148.08, [N/A], [N/A]\n", 0},
		{"MIG mode", "mig", "--query-gpu=index,mig.mode.current,mig.mode.pending --format=csv,noheader", "0, Enabled, Enabled\n1, Disabled, Disabled\n", 0},
		{"MIG devices", "mig", "-L -i 0", `GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-UUID)
  MIG 3g.40gb         Device  0: (UUID: MIG-UUID)
  MIG 1g.10gb         Device  1: (UUID: MIG-UUID)
  MIG 1g.10gb         Device  2: (UUID: MIG-UUID)
`, 0},
		{"one is with a VM", "vfio", "--query-gpu=index,pci.bus_id --format=csv,noheader", "0, 00000000:01:00.0\n", 0},
		{"one fell off the bus: the list", "off-bus", "-L -i 1", lost, 15},
		{"one fell off the bus: fields", "off-bus", "--query-gpu=index,uuid,memory.total --format=csv,noheader -i 1", "1, [GPU is lost], [GPU is lost]\n", 15},
		{"no driver", "no-driver", "-L", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. " +
			"Make sure that the latest NVIDIA driver is installed and running.\n\n", 9},
		{"no such card", "plain", "-i 7", "the sandbox's nvidia-smi does not know -i 7\n", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, code := tool(t, boot(t, c.shape), "nvidia-smi "+c.args)
			got, want := hideUUIDs(got), hideUUIDs(c.want)
			if got != want || code != c.code {
				t.Errorf("nvidia-smi %s: got %q, status %d, want %q, %d", c.args, got, code, want, c.code)
			}
		})
	}
}

// hideUUIDs replaces what is made up.
func hideUUIDs(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if before, _, ok := strings.Cut(line, "(UUID: "); ok {
			kind, _, _ := strings.Cut(line[len(before)+len("(UUID: "):], "-")
			line = before + "(" + kind + ")\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

func TestUpgradeBreaksLibraryUntilBoot(t *testing.T) {
	tree := boot(t, "plain")
	must(t, tree.Upgrade("590.10.01", false))
	want := "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 590.10\n"
	if out, code := tool(t, tree, "nvidia-smi"); out != want || code != 18 {
		t.Errorf("before the boot: %q, status %d, want %q, 18", out, code, want)
	}
	if out, code := tool(t, tree, "modinfo -F version nvidia"); out != "590.10.01\n" || code != 0 {
		t.Errorf("modinfo: %q, status %d", out, code)
	}
	libraries, err := filepath.Glob(filepath.Join(tree.Root, "usr/local/lib/libnvidia-ml.so*"))
	must(t, err)
	for i := range libraries {
		libraries[i] = filepath.Base(libraries[i])
	}
	if want := []string{"libnvidia-ml.so.1", "libnvidia-ml.so.590.10.01"}; !slices.Equal(libraries, want) {
		t.Errorf("libraries %v, want %v", libraries, want)
	}
	host, err := tree.Host()
	must(t, err)
	host.Boot()
	must(t, tree.Create(host))
	must(t, tree.Boot())
	check(t, tree, `driver "590.10.01" open true`, "0 0000:01:00.0 minor 0 numa 0 nvidia", "1 0000:41:00.0 minor 1 numa 1 nvidia")
}

func TestFaultsOfARunningHost(t *testing.T) {
	const first, second = "0 0000:01:00.0 minor 0 numa 0 nvidia", "1 0000:41:00.0 minor 1 numa 1 nvidia"
	const driver = `driver "580.105.08" open true`
	tree := boot(t, "plain")

	must(t, tree.Bind(1, "vfio-pci"))
	check(t, tree, driver, first, "-1 0000:41:00.0 minor -1 numa 1 vfio-pci")
	must(t, tree.Bind(1, "nvidia"))
	check(t, tree, driver, first, second)

	// A loss shows in the library and in the log only.
	must(t, tree.Lose(0))
	check(t, tree, driver, first, second)
	b, err := os.ReadFile(filepath.Join(tree.Root, nvidia.NVMLFile))
	must(t, err)
	var nvml nvidia.NVML
	must(t, json.Unmarshal(b, &nvml))
	if got := []int{nvml.ReturnCode, nvml.GPUs[0].ReturnCode, nvml.GPUs[1].ReturnCode}; !slices.Equal(got, []int{0, 15, 0}) {
		t.Errorf("return codes %v, want [0 15 0]\n%s", got, b)
	}
	log, err := os.ReadFile(filepath.Join(tree.Root, nvidia.KernelLogFile))
	must(t, err)
	lines := strings.Split(string(log), "\n")
	if !strings.HasPrefix(lines[1], "3,1,") || !strings.HasSuffix(lines[1], ",-;NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.") {
		t.Errorf("log:\n%s", log)
	}
	if err := tree.Lose(5); err == nil {
		t.Error("there is no GPU 5")
	}
}

func TestPartition(t *testing.T) {
	tree := boot(t, "mig")
	for _, c := range []struct {
		command, want string
		code          int
	}{
		{"nvidia-smi mig -i 1 -cgi 19 -C", "GPU 1: 00000000:41:00.0: MIG mode is not enabled\n", 1},
		{"nvidia-smi -i 1 -mig 1", "Enabled MIG Mode for GPU 1\nAll done.\n", 0},
		{"nvidia-smi mig -i 1 -cgi 9,3g.40gb -C", "Successfully created the instances of GPU 1\n", 0},
		{"nvidia-smi mig -i 1 -cgi 9 -C", "GPU 1: 00000000:41:00.0: Insufficient Resources\n", 1},
		{"nvidia-smi mig -i 0 -dgi", "Successfully destroyed the instances of GPU 0\n", 0},
		{"nvidia-smi -i 0 -mig 0", "Disabled MIG Mode for GPU 0\nAll done.\n", 0},
	} {
		if out, code := tool(t, tree, c.command); out != c.want || code != c.code {
			t.Errorf("%s: %q, status %d, want %q, %d", c.command, out, code, c.want, c.code)
		}
	}
	check(t, tree, `driver "580.105.08" open true`, "0 0000:01:00.0 minor 0 numa 0 nvidia",
		"1 0000:41:00.0 minor 1 numa 1 nvidia gi1/ci0 nvidia-cap147=501:147 ok nvidia-cap148=501:148 ok gi2/ci0 nvidia-cap156=501:156 ok nvidia-cap157=501:157 ok")
}
