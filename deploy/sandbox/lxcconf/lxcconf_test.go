package lxcconf_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/pveconf"
	"phoenix.internal/deploy/sandbox/lxcconf"
)

// proxmox is the pretended machine of Proxmox's own golden files: everything is there.
var proxmox = lxcconf.Host{
	Include: func(name string) bool {
		return strings.HasPrefix(name, "ubuntu.") || strings.HasPrefix(name, "debian.")
	},
	Device: func(path string) (lxcconf.Device, error) {
		devices := map[string]lxcconf.Device{
			"/dev/nvidia0": {Type: 'c', Major: 195, Minor: 0}, "/dev/nvidiactl": {Type: 'c', Major: 195, Minor: 255},
			"/dev/nvidia-uvm": {Type: 'c', Major: 511, Minor: 0}, "/dev/nvidia-uvm-tools": {Type: 'c', Major: 511, Minor: 1},
			"/dev/sda": {Type: 'b', Major: 8, Minor: 0},
		}
		d, ok := devices[path]
		if !ok {
			return d, fmt.Errorf("Device %s does not exist", path)
		}
		return d, nil
	},
	AppArmor: true, Seccomp: true, Network: true, Memory: true, CPU: true, CPUs: 8,
}

// The first two confs, and what Proxmox (pve-container 6.1.10) made of them, are real-gpu-nvidia-dev-entries
// and real-gpu-privileged-raw of its golden files, but for the CPUs, which Proxmox chooses by chance.
func TestGenerate(t *testing.T) {
	for _, c := range []struct {
		name string
		host lxcconf.Host
		conf string
		want string
	}{
		{"Proxmox, unprivileged, devN", proxmox, `arch: amd64
cores: 12
dev0: /dev/nvidia0,gid=44
dev1: /dev/nvidiactl,gid=44
dev2: /dev/nvidia-uvm,gid=44
dev3: /dev/nvidia-uvm-tools,gid=44
features: nesting=1
hostname: comfy
memory: 32768
net0: name=eth0,bridge=vmbr0,firewall=1,hwaddr=BC:24:11:54:74:8C,ip=dhcp,type=veth
ostype: ubuntu
rootfs: local-lvm:vm-101-disk-0,size=200G
swap: 512
unprivileged: 1
`, `lxc.cgroup.relative = 0
lxc.cgroup.dir.monitor = lxc.monitor/101
lxc.cgroup.dir.container = lxc/101
lxc.cgroup.dir.container.inner = ns
lxc.arch = amd64
lxc.include = /usr/share/lxc/config/ubuntu.common.conf
lxc.include = /usr/share/lxc/config/ubuntu.userns.conf
lxc.seccomp.profile = /var/lib/lxc/101/rules.seccomp
lxc.apparmor.profile = generated
lxc.apparmor.raw = allow mqueue,
lxc.apparmor.allow_nesting = 1
lxc.apparmor.raw = allow userns,
lxc.mount.auto = sys:mixed
lxc.cgroup2.devices.allow = c 195:0 rw
lxc.cgroup2.devices.allow = c 195:255 rw
lxc.cgroup2.devices.allow = c 511:0 rw
lxc.cgroup2.devices.allow = c 511:1 rw
lxc.monitor.unshare = 1
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
lxc.tty.max = 2
lxc.environment = TERM=linux
lxc.uts.name = comfy
lxc.cgroup2.memory.max = 34359738368
lxc.cgroup2.memory.high = 34225520640
lxc.cgroup2.memory.swap.max = 536870912
lxc.rootfs.path = /var/lib/lxc/101/rootfs
lxc.net.0.type = veth
lxc.net.0.veth.pair = veth101i0
lxc.net.0.hwaddr = BC:24:11:54:74:8C
lxc.net.0.name = eth0
lxc.net.0.mtu = 1500
lxc.net.0.script.up = /usr/share/lxc/lxcnetaddbr
lxc.cgroup2.cpuset.cpus = 0-7
`},
		{"Proxmox, privileged, raw lines last and in order", proxmox, `arch: amd64
cores: 6
hostname: oldgpu
memory: 512
net0: name=eth0,bridge=vmbr0,firewall=1,hwaddr=BC:24:11:69:D1:AF,ip=dhcp,type=veth
ostype: ubuntu
rootfs: local-lvm:vm-101-disk-0,size=8G
swap: 512
lxc.cgroup2.devices.allow: c 195:0 rwm
lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.autodev: 1
`, `lxc.cgroup.relative = 0
lxc.cgroup.dir.monitor = lxc.monitor/101
lxc.cgroup.dir.container = lxc/101
lxc.cgroup.dir.container.inner = ns
lxc.arch = amd64
lxc.include = /usr/share/lxc/config/ubuntu.common.conf
lxc.apparmor.profile = generated
lxc.apparmor.raw = allow mqueue,
lxc.apparmor.raw = deny mount -> /proc/,
lxc.apparmor.raw = deny mount -> /sys/,
lxc.monitor.unshare = 1
lxc.tty.max = 2
lxc.environment = TERM=linux
lxc.uts.name = oldgpu
lxc.cgroup2.memory.max = 536870912
lxc.cgroup2.memory.high = 532676608
lxc.cgroup2.memory.swap.max = 536870912
lxc.rootfs.path = /var/lib/lxc/101/rootfs
lxc.net.0.type = veth
lxc.net.0.veth.pair = veth101i0
lxc.net.0.hwaddr = BC:24:11:69:D1:AF
lxc.net.0.name = eth0
lxc.net.0.mtu = 1500
lxc.net.0.script.up = /usr/share/lxc/lxcnetaddbr
lxc.cgroup2.devices.allow = c 195:0 rwm
lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.autodev = 1
lxc.cgroup2.cpuset.cpus = 0-5
`},
		{"sandbox, only what is in force", lxcconf.Host{}, `arch: amd64
ostype: alpine
rootfs: local:1,size=1G
lxc.idmap: u 0 200000 1000

[pve:pending]
hostname: later

[old]
hostname: before
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file
`, `lxc.cgroup.relative = 0
lxc.cgroup.dir.monitor = lxc.monitor/101
lxc.cgroup.dir.container = lxc/101
lxc.cgroup.dir.container.inner = ns
lxc.arch = amd64
lxc.include = /usr/share/lxc/config/common.conf
lxc.include = /usr/share/lxc/config/userns.conf
lxc.mount.auto = sys:mixed
lxc.monitor.unshare = 1
lxc.tty.max = 2
lxc.environment = TERM=linux
lxc.uts.name = CT101
lxc.rootfs.path = /var/lib/lxc/101/rootfs
lxc.net.0.type = empty
lxc.idmap = u 0 200000 1000
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := lxcconf.Generate(101, pveconf.Parse([]byte(c.conf)), c.host)
			if err != nil {
				t.Fatalf("%s\n%v", c.conf, err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Errorf("conf:\n%s\nLXC config (-want +got):\n%s", c.conf, diff)
			}
		})
	}
}

// What Proxmox adds for single properties.
func TestGenerateLines(t *testing.T) {
	const base = "arch: amd64\nostype: debian\nrootfs: local:1,size=1G\n"
	for _, c := range []struct{ name, conf, want string }{
		{"deny-write", "dev0: /dev/nvidia0,deny-write=1\n", "lxc.cgroup2.devices.allow = c 195:0 r\nlxc.cgroup2.devices.deny = c 195:0 w\n"},
		{"block device", "dev3: path=/dev/sda\n", "lxc.cgroup2.devices.allow = b 8:0 rw\n"},
		{"devices by key as text", "dev2: /dev/nvidia0\ndev10: /dev/sda\n", "lxc.cgroup2.devices.allow = b 8:0 rw\nlxc.cgroup2.devices.allow = c 195:0 rw\n"},
		{"no console", "console: 0\n", "lxc.console.path = none\nlxc.cgroup2.devices.deny = c 5:1 rwm\n"},
		{"limits of the CPU", "cpulimit: 1.5\ncpuunits: 20000\n", "lxc.cgroup2.cpu.max = 150000 100000\nlxc.cgroup2.cpu.weight = 10000\n"},
		{"entry point", "entrypoint: /app run\n", "lxc.init.cmd = /app run\n"},
		{"fuse", "features: fuse=1\n", "lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file 0 0\n"},
		{"types of mounts", "features: mount=nfs;cifs\n", "lxc.apparmor.raw = mount fstype=nfs,\nlxc.apparmor.raw = mount fstype=cifs,\n"},
		{"environment before other raw lines", "lxc.autodev: 1\nlxc.environment.runtime: A=b\n", "lxc.environment.runtime = A=b\nlxc.autodev = 1\n"},
		{"one core", "cores: 1\n", "lxc.cgroup2.cpuset.cpus = 0\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := lxcconf.Generate(101, pveconf.Parse([]byte(base+c.conf)), proxmox)
			if err != nil {
				t.Fatalf("%s%v", c.conf, err)
			}
			if !strings.Contains(string(got), c.want) {
				t.Errorf("%sgives\n%s\nwithout\n%s", c.conf, got, c.want)
			}
		})
	}
}

func TestGenerateRefuses(t *testing.T) {
	for _, c := range []struct{ name, conf, want string }{
		{"no arch", "ostype: debian\nrootfs: x\n", "missing 'arch' - internal error"},
		{"no ostype", "arch: amd64\nrootfs: x\n", "missing 'ostype' - internal error"},
		{"no rootfs", "arch: amd64\nostype: debian\n", "missing 'rootfs' configuration"},
		{"missing device", "arch: amd64\nostype: debian\nrootfs: x\ndev0: /dev/nvidia7\n", "Device /dev/nvidia7 does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := lxcconf.Generate(101, pveconf.Parse([]byte(c.conf)), proxmox)
			if err == nil || err.Error() != c.want {
				t.Errorf("conf:\n%s\ngot %v, want %s", c.conf, err, c.want)
			}
		})
	}
	if _, err := lxcconf.Generate(101, pveconf.Parse([]byte("arch: amd64\nostype: debian\nrootfs: x\ndev0: /dev/nvidia0,mode=666\n")), proxmox); err == nil {
		t.Error("a devN that Proxmox cannot read must not start")
	}
}
