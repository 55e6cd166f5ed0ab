package sandbox_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"phoenix.internal/deploy/sandbox"
	"phoenix.internal/deploy/sandbox/nvidia"
	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// All shapes side by side on real LXC: what each node's own tools and files say.
func TestShapes(t *testing.T) {
	shapes := nvidia.Shapes()
	s := sandboxtest.Up(t, sandboxtest.Options{Nodes: len(shapes), Shapes: shapes})
	for shape, want := range map[string]string{
		"plain": "0, 00000000:01:00.0, 580.105.08\n1, 00000000:41:00.0, 580.105.08\n" +
			"status 0\nnvidia0 nvidia1 uvm live",
		"eight": "0, 00000000:01:00.0, 580.105.08\n1, 00000000:11:00.0, 580.105.08\n2, 00000000:21:00.0, 580.105.08\n3, 00000000:31:00.0, 580.105.08\n" +
			"4, 00000000:41:00.0, 580.105.08\n5, 00000000:51:00.0, 580.105.08\n6, 00000000:61:00.0, 580.105.08\n7, 00000000:71:00.0, 580.105.08\n" +
			"status 0\nnvidia0 nvidia1 nvidia2 nvidia3 nvidia4 nvidia5 nvidia6 nvidia7 uvm live",
		"mig": "0, 00000000:01:00.0, 580.105.08\n1, 00000000:41:00.0, 580.105.08\n" +
			"status 0\nnvidia0 nvidia1 uvm live",
		"fabric": "0, 00000000:01:00.0, 580.105.08\n1, 00000000:41:00.0, 580.105.08\n" +
			"status 0\nnvidia0 nvidia1 uvm live",
		"vfio":        "0, 00000000:01:00.0, 580.105.08\nstatus 0\nnvidia0 uvm live",
		"off-bus":     "0, 00000000:01:00.0, 580.105.08\n1, 00000000:41:00.0, 580.105.08\nstatus 15\nnvidia0 uvm live",
		"uvm-missing": "0, 00000000:01:00.0, 580.105.08\n1, 00000000:41:00.0, 580.105.08\nstatus 0\nnvidia0 nvidia1",
		"no-driver": "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest " +
			"NVIDIA driver is installed and running.\n\nstatus 9\n",
		"other-driver": "0, 00000000:01:00.0, 570.148.08\n1, 00000000:41:00.0, 570.148.08\nstatus 0\nnvidia0 nvidia1 uvm live",
	} {
		t.Run(shape, func(t *testing.T) {
			n := s.Node(1 + slices.Index(shapes, shape)).For(t)
			got, _, _ := n.Run("sh", "-c", `nvidia-smi --query-gpu=index,pci.bus_id,driver_version --format=csv,noheader
echo status $?
cd /dev; for f in nvidia[0-9]*; do [ ! -c $f ] || echo $f; done | tr '\n' ' '
[ ! -c nvidia-uvm ] || echo -n uvm $(cat /sys/module/nvidia_uvm/initstate)`)
			if strings.TrimSuffix(got, " ") != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// A reboot with a new driver: other majors, another boot ID, nothing left in /run, and the onboot containers in their order.
func TestReboot(t *testing.T) {
	s := sandboxtest.Up(t, sandboxtest.Options{Shapes: []string{"mig"}})
	n := s.Node(1)
	conf := func(more string) string {
		return "arch: amd64\nhostname: guest\nmemory: 64\n" + more + "ostype: debian\nrootfs: local:vm-disk-0,size=1G\n"
	}
	n.Add(900, conf("onboot: 1\n"))
	n.Add(901, conf(""))
	n.Add(902, conf("dev0: /dev/nvidia1,mode=0666\nonboot: 1\nstartup: order=2,up=5\n"))
	n.Add(903, conf("onboot: 1\nstartup: order=1\n"))
	n.Must("pct", "start", "901")
	n.Must("pct", "start", "902")
	n.Must("sh", "-c", "echo x >/run/left; mknod /dev/left c 1 3")
	n.KernelLog("NVRM: Xid (PCI:0000:01:00): 31, pid=1, name=x")
	before, bootID := n.Majors, n.Must("cat", "/proc/sys/kernel/random/boot_id")
	n.StartAgent()
	n.ResetPctCalls()

	n.Reboot(sandbox.RebootOptions{Driver: "590.10.01", LoseUVM: true})

	if got, want := n.PctCalls("start"), []string{"start 903", "start 902", "start 900"}; !slices.Equal(got, want) {
		t.Errorf("calls of pct %v, want %v", got, want)
	}
	if _, err := s.AgentPID(n.Name); err != nil {
		t.Errorf("the agent: %v", err)
	}
	if n.Running(901) || !n.Running(902) {
		t.Errorf("901 runs %v, 902 runs %v; want false, true", n.Running(901), n.Running(902))
	}
	if got := n.Open(902, "/dev/nvidia1"); got != "ENXIO" {
		t.Errorf("902 opens its GPU: %s, want ENXIO", got)
	}
	if n.Majors.UVM == before.UVM || n.Majors.Caps == before.Caps || n.Majors.NVIDIA != before.NVIDIA {
		t.Errorf("majors %+v, before %+v", n.Majors, before)
	}
	if now := n.Must("cat", "/proc/sys/kernel/random/boot_id"); now == bootID || len(now) != len("12345678-1234-4234-8234-123456789abc\n") {
		t.Errorf("boot ID %q, before %q", now, bootID)
	}
	for _, c := range []struct{ script, want string }{
		{"ls -d /run/left /dev/left /dev/nvidia-uvm /sys/module/nvidia_uvm /proc/driver/nvidia/capabilities/gpu0/mig/gi2 2>/dev/null", ""},
		{"cat /sys/module/nvidia/version; modinfo -F version nvidia; readlink -f /usr/local/lib/libcuda.so.1", "590.10.01\n590.10.01\n/usr/local/lib/libcuda.so.590.10.01\n"},
		{"cut -d';' -f2 /run/phoenix-sandbox/kernel.log", "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  590.10.01\n"},
		{"stat -c %t /dev/nvidia-caps/nvidia-cap2", fmt.Sprintf("%x\n", n.Majors.Caps)},
		{"nvidia-modprobe -u -c 0; stat -c %t:%T /dev/nvidia-uvm; readlink /dev/char/" + fmt.Sprint(n.Majors.UVM) + ":0", fmt.Sprintf("%x:0\n../nvidia-uvm\n", n.Majors.UVM)},
		{"grep -h nvidia-uvm /proc/devices", fmt.Sprintf("%d nvidia-uvm\n", n.Majors.UVM)},
		{"modprobe -r nvidia_uvm; modprobe -r nvidia 2>&1; ls -d /sys/module/nvidia_uvm /sys/module/nvidia 2>/dev/null",
			"modprobe: FATAL: Module nvidia is in use.\n/sys/module/nvidia\n"},
	} {
		if got, _, _ := n.Run("sh", "-c", c.script); got != c.want {
			t.Errorf("%s: got %q, want %q", c.script, got, c.want)
		}
	}
}

// What happens to the GPUs of a node shows inside at once.
func TestFaults(t *testing.T) {
	s := sandboxtest.Up(t, sandboxtest.Options{})
	n := s.Node(1)
	n.Bind(1, "vfio-pci")
	n.Lose(0)
	n.RemoveDeviceNode("/dev/nvidia-uvm")
	for _, c := range []struct{ script, want string }{
		{"basename $(readlink /sys/bus/pci/devices/0000:41:00.0/driver); ls /proc/driver/nvidia/gpus", "vfio-pci\n0000:01:00.0\n"},
		{"nvidia-smi -L", "Unable to determine the device handle for GPU0: 00000000:01:00.0: GPU is lost.  Reboot the system to recover this GPU\n"},
		{"grep -c 'Xid (PCI:0000:01:00): 79' /run/phoenix-sandbox/kernel.log", "1\n"},
		{"ls /dev/nvidia-uvm* 2>&1", "/dev/nvidia-uvm-tools\n"},
	} {
		if got, _, _ := n.Run("sh", "-c", c.script); got != c.want {
			t.Errorf("%s: got %q, want %q", c.script, got, c.want)
		}
	}
	n.Upgrade("590.10.01", false)
	if n.Driver != "580.105.08" || n.OnDisk != "590.10.01" {
		t.Errorf("driver %s, on disk %s", n.Driver, n.OnDisk)
	}
	if _, err := os.Stat(filepath.Join(n.Dir(), "run/phoenix-sandbox/nvml.json")); err != nil {
		t.Error(err)
	}
	// From the command line, as a person does it.
	refused(t, s, `no GPU 9; there are 2`, "fault", "--dir", s.Dir, "lose", "pve1", "9")
	refused(t, s, `no shape "round"; there are eight, fabric, mig, no-driver, off-bus, other-driver, plain, uvm-missing, vfio`,
		"up", "--dir", filepath.Join(t.TempDir(), "x"), "--shape", "round")
}
