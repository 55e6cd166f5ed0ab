package lxcconf_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/pveconf"
	"phoenix.internal/deploy/sandbox/lxcconf"
)

// On a machine that has nothing, only what is in force counts: not what is pending or in a snapshot.
func TestGenerateOnBareMachine(t *testing.T) {
	const conf = `arch: amd64
ostype: alpine
rootfs: local:1,size=1G
memory: 64
cpulimit: 1
cores: 1
unprivileged: 1
net0: name=eth0,bridge=vmbr0
lxc.apparmor.profile: unconfined

[pve:pending]
hostname: later

[old]
hostname: before
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file
`
	const want = `lxc.cgroup.relative = 0
lxc.cgroup.dir.monitor = lxc.monitor/101
lxc.cgroup.dir.container = lxc/101
lxc.cgroup.dir.container.inner = ns
lxc.arch = amd64
lxc.include = /usr/share/lxc/config/common.conf
lxc.include = /usr/share/lxc/config/userns.conf
lxc.mount.auto = sys:mixed
lxc.monitor.unshare = 1
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
lxc.tty.max = 2
lxc.environment = TERM=linux
lxc.uts.name = CT101
lxc.rootfs.path = /var/lib/lxc/101/rootfs
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
`
	got, err := lxcconf.Generate(101, pveconf.Parse([]byte(conf)), lxcconf.Host{})
	if err != nil {
		t.Fatalf("%s\n%v", conf, err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("conf:\n%s\nLXC config (-want +got):\n%s", conf, diff)
	}
}

const base = "arch: amd64\nostype: debian\nrootfs: local:1,size=1G\n"

// What single properties add, where no recording shows it. Memory and swap are always there.
func TestGenerateLines(t *testing.T) {
	for _, c := range []struct{ name, conf, want string }{
		{"deny-write", "dev0: /dev/nvidia0,deny-write=1\n", "lxc.cgroup2.devices.allow = c 195:0 r\nlxc.cgroup2.devices.deny = c 195:0 w\n"},
		{"block device", "dev3: path=/dev/sda\n", "lxc.cgroup2.devices.allow = b 8:0 rw\n"},
		{"devices by key as text", "dev2: /dev/nvidia0\ndev10: /dev/sda\n", "lxc.cgroup2.devices.allow = b 8:0 rw\nlxc.cgroup2.devices.allow = c 195:0 rw\n"},
		{"networks by key as text", "net2: name=b\nnet10: name=a\n", "lxc.net.10.script.up = /usr/share/lxc/lxcnetaddbr\nlxc.net.2.type = veth\n"},
		{"network managed by the host", "net0: name=a,host-managed=yes,ip=10.0.0.2/24,gw=10.0.0.1,ip6=fd00::2/64,gw6=fd00::1\n",
			"lxcnetaddbr\nlxc.net.0.ipv4.address = 10.0.0.2/24\nlxc.net.0.ipv4.gateway = 10.0.0.1\n" +
				"lxc.net.0.ipv6.address = fd00::2/64\nlxc.net.0.ipv6.gateway = fd00::1\nlxc.net.0.flags = up\n"},
		{"network managed by the host, with DHCP", "net0: name=a,host-managed=1,ip=dhcp,ip6=auto,link_down=0\n", "lxcnetaddbr\nlxc.net.0.flags = up\n"},
		{"entry point that is the default", "entrypoint: /sbin/init\n", "rootfs\nlxc.init.cmd = /sbin/init\n"},
		{"fuse spelled otherwise", "features: fuse=Yes\n", "lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file 0 0\n"},
		{"environment before other raw lines", "lxc.autodev: 1\nlxc.environment.runtime: A=b\n", "lxc.environment.runtime = A=b\nlxc.autodev = 1\n"},
		{"environment that ends in nothing", "lxc.environment.runtime: A=b\nlxc.environment.runtime:\nlxc.autodev: 1\n", "rootfs\nlxc.environment.runtime = A=b\nlxc.autodev = 1\n"},
		{"unprivileged that is no boolean", "unprivileged: maybe\n", "lxc.idmap = u 0 100000 65536\n"},
		{"host name that Perl takes for none", "hostname: 0\n", "lxc.uts.name = CT101\n"},
		{"memory of half a mebibyte", "memory: 1.5\n", "lxc.cgroup2.memory.max = 1572864\nlxc.cgroup2.memory.high = 1560576\n"},
		{"memory that is no number", "memory: lots\n", "lxc.cgroup2.memory.max = 0\n"},
		{"memory 0 is the default", "memory: 0\n", "lxc.cgroup2.memory.max = 536870912\n"},
		{"memory below nothing", "memory: -1\n", "lxc.cgroup2.memory.max = -1048576\n"},
		{"memory without bounds", "memory: inf\n", "lxc.cgroup2.memory.max = Inf\n"},
		{"number with text behind it", "cpulimit: .5 CPUs\n", "lxc.cgroup2.cpu.max = 50000 100000\n"},
		{"one core", "cores: 1\n", "lxc.cgroup2.cpuset.cpus = 0\n"},
		{"half a core", "cores: 0.5\n", "lxc.cgroup2.cpuset.cpus = \n"},
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

// What single properties take away.
func TestGenerateWithout(t *testing.T) {
	for _, c := range []struct{ name, conf, without string }{
		{"the system may be written", "unprivileged: 1\nfeatures: force_rw_sys=1\n", "lxc.mount.auto"},
		{"a map alone does not make it unprivileged", "lxc.idmap: u 0 200000 1000\n", "lxc.mount.auto"},
		{"a map of its own", "unprivileged: 1\nlxc.idmap: u 0 200000 1000\n", "lxc.idmap = u 0 100000"},
		{"CPUs of its own", "cores: 2\nlxc.cgroup2.cpuset.cpus: 5\n", "lxc.cgroup2.cpuset.cpus = 0-1"},
		{"no cores", "cores: 0\n", "cpuset"},
		{"no limit of the CPU", "cpulimit: 0\n", "cpu.max"},
		{"no device", "", "devices"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := lxcconf.Generate(101, pveconf.Parse([]byte(base+c.conf)), proxmox)
			if err != nil {
				t.Fatalf("%s%v", c.conf, err)
			}
			if strings.Contains(string(got), c.without) {
				t.Errorf("%sgives\n%s\nwith %s", c.conf, got, c.without)
			}
		})
	}
}

func TestGenerateRefuses(t *testing.T) {
	bare := proxmox
	bare.Network, bare.Device = nil, nil
	for _, c := range []struct {
		name string
		host lxcconf.Host
		conf string
		want string
	}{
		{"no arch", proxmox, "ostype: debian\nrootfs: x\n", "missing 'arch' - internal error"},
		{"no ostype", proxmox, "arch: amd64\nrootfs: x\n", "missing 'ostype' - internal error"},
		{"no rootfs", proxmox, "arch: amd64\nostype: debian\n", "missing 'rootfs' configuration"},
		{"property that hides the raw lines", proxmox, base + "lxc.autodev: 1\nlxc: yes\n", `Can't use string ("yes") as an ARRAY ref`},
		{"missing device", proxmox, base + "dev0: /dev/nvidia7\n", "Device /dev/nvidia7 does not exist"},
		{"machine without devices", bare, base + "dev0: /dev/nvidia0\n", "Device /dev/nvidia0 does not exist"},
		{"mode without its first digit", proxmox, base + "dev0: /dev/nvidia0,mode=666\n", `device entry "/dev/nvidia0,mode=666": mode "666" is not valid`},
		{"unknown feature", proxmox, base + "features: nesting=1,gpu=1\n", "features: format error: gpu is not defined in the schema"},
		{"feature that is no boolean", proxmox, base + "features: nesting=maybe\n", `features: format error: nesting: invalid value "maybe"`},
		{"feature without a value", proxmox, base + "features: nesting\n", `features: format error: "nesting" is not a key with a value`},
		{"network without a name", proxmox, base + "net0: bridge=vmbr0\n", "net0: format error: name is missing"},
		{"network key twice", proxmox, base + "net0: name=a,name=b\n", "net0: format error: duplicate key name"},
		{"network of another kind", proxmox, base + "net0: name=a,type=macvlan\n", `net0: format error: type: invalid value "macvlan"`},
		{"VLAN out of range", proxmox, base + "net0: name=a,tag=5000\n", `net0: format error: tag: invalid value "5000"`},
		{"group address", proxmox, base + "net0: name=a,hwaddr=01:00:5E:00:00:01\n", `net0: format error: hwaddr: invalid value "01:00:5E:00:00:01"`},
		{"address without a mask", proxmox, base + "net0: name=a,ip=10.0.0.1\n", `net0: format error: ip: invalid value "10.0.0.1"`},
		{"address of the other family", proxmox, base + "net0: name=a,ip6=10.0.0.1/24\n", `net0: format error: ip6: invalid value "10.0.0.1/24"`},
		{"MTU beyond the bridge's", proxmox, base + "net0: name=a,mtu=9000\n", "net0: MTU size '9000' is bigger than bridge MTU '1500'"},
		{"machine without networks", bare, base + "net0: eth0\n", `net0: format error: "eth0" is not a key with a value`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := lxcconf.Generate(101, pveconf.Parse([]byte(c.conf)), c.host)
			if err == nil || err.Error() != c.want {
				t.Errorf("conf:\n%s\ngot %q, error %v, want %s", c.conf, got, err, c.want)
			}
		})
	}
}
