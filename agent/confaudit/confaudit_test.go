package confaudit_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/confaudit"
	"phoenix.internal/agent/pveconf"
)

// lineOf writes a finding without its advice, which must be there.
func lineOf(t *testing.T, f confaudit.Finding) string {
	t.Helper()
	if f.Message == "" || f.Advice == "" || strings.HasSuffix(f.Message, ".") || strings.HasSuffix(f.Advice, ".") {
		t.Errorf("a finding without a message or advice, or with a full stop: %+v", f)
	}
	section := ""
	if f.Section != "" {
		section = "[" + f.Section + "] "
	}
	return fmt.Sprintf("%d %s%v %v: %s", f.Line, section, f.Severity, f.Kind, f.Message)
}

// What a conf has besides the lines in question, so that they are all there is to say: lines 1 to 4.
const (
	user = "arch: amd64\nostype: debian\nrootfs: local:1\nunprivileged: 1\n"
	root = "arch: amd64\nostype: debian\nrootfs: local:1\nunprivileged: 0\n"
)

var tests = []struct {
	name string
	conf string
	want []string // as lineOf writes them
}{
	{"nothing to say", user + "net0: name=eth0,bridge=vmbr0\nmp0: local:2,mp=/data\nmp1: /tank/media,mp=/media\ndev0: /dev/dri/renderD128,gid=104\nlxc.cgroup2.cpuset.cpus: 0-3\n#lxc.hook.start: /x\n", nil},
	{"nothing at all", "", nil},
	{"privileged", root, []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
	}},
	{"privileged by silence", "arch: amd64\nostype: debian\nrootfs: local:1\n", []string{
		"0 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
	}},
	{"line end with a setting behind it", user + "lxc.environment: LANG=C\rlxc.hook.start = /x\n", []string{
		`5 danger hidden-line-end: after the CR in the value of lxc.environment LXC reads a line of its own: "lxc.hook.start = /x"`,
	}},
	{"the same in a property, and in a snapshot", user + "hostname: a\r  lxc.include = /x\n[snap]\nunprivileged: 1\nlxc.environment: A=B\r\rlxc.idmap =\n", []string{
		`5 danger hidden-line-end: after the CR in the value of hostname LXC reads a line of its own: "lxc.include = /x"`,
		`8 [snap] danger hidden-line-end: after the CR in the value of lxc.environment LXC reads a line of its own: "lxc.idmap ="`,
	}},
	{"line end that only cuts the value", user + "lxc.environment: A=B\rC\n", []string{
		"5 warning hidden-line-end: the value of lxc.environment ends for LXC at a CR, before \"\\rC\"",
	}},
	{"NUL", user + "lxc.environment: A=B\u0000C\nlxc.apparmor.raw: deny /x w,\n", []string{
		"5 danger hidden-line-end: at the NUL in the value of lxc.environment LXC stops reading: no line below has an effect",
	}},
	{"where neither reaches LXC", user + "tags: a\rlxc.hook.start = /x\nlxc.environment.runtime: A=B\u0000C=D\n", []string{
		"5 warning odd-bytes: the value of tags holds the control character U+000D, which a terminal may obey: \"a\\rlxc.hook.start = /x\"",
		"6 warning odd-bytes: the value of lxc.environment.runtime holds the control character U+0000, which a terminal may obey: \"A=B\\x00C=D\"",
	}},
	{"CRLF hides nothing", user + "hostname: a\r\nlxc.arch: x\r\n", nil},
	{"control characters, and what turns the reading order", user + "lxc.environment: A=\u001b[2J\nlxc.environment: B=\u009b2J\nlxc.environment: C=\u202excod\ntags: caf\xe9\n", []string{
		"5 warning odd-bytes: the value of lxc.environment holds the control character U+001B, which a terminal may obey: \"A=\\x1b[2J\"",
		"6 warning odd-bytes: the value of lxc.environment holds the control character U+009B, which a terminal may obey: \"B=\\u009b2J\"",
		"7 warning odd-bytes: the value of lxc.environment holds U+202E, with which it looks other than it is: \"C=\\u202excod\"",
		"8 note bad-value: tag \"caf\\xe9\" is not valid",
		"8 warning odd-bytes: the value of tags is not UTF-8: \"caf\\xe9\"",
	}},
	{"hooks in a container whose ids are mapped", user + "lxc.hook.pre-start: /x\nlxc.hook.post-stop: sh -c 'y'\nlxc.hook.mount: /z\nlxc.hook.start: /in\nlxc.hook.version: 1\nlxc.net.0.script.up: /n\nlxc.net.0.script.down: /usr/share/lxc/lxcnetaddbr\nlxc.hook.autodev: /usr/share/lxc/hooks/../../../../tmp/x\nlxc.hook.mount: /usr/share/lxcfs/lxc.mount.hook\nhookscript: local:snippets/h.pl\n", []string{
		`5 danger hook: the pre-start hook "/x" runs on the node as root`,
		`6 danger hook: the post-stop hook "sh -c 'y'" runs on the node as root`,
		`7 warning hook: the mount hook "/z" runs with the rights of the container's root, in sight of the node's files`,
		`8 note hook: the start hook "/in" runs in the container before its first program`,
		`10 danger hook: the network script "/n" runs on the node as root`,
		`12 warning hook: the autodev hook "/usr/share/lxc/hooks/../../../../tmp/x" runs with the rights of the container's root, in sight of the node's files`,
		`13 note hook: the mount hook "/usr/share/lxcfs/lxc.mount.hook" comes with LXC`,
		"14 note hook: the hookscript local:snippets/h.pl runs on the node as root when the container starts and stops",
	}},
	{"hooks in a privileged container", root + "lxc.hook.mount: /z\nlxc.hook.start: /in\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		`5 danger hook: the mount hook "/z" runs with the rights of the container's root, in sight of the node's files`,
		`6 note hook: the start hook "/in" runs in the container before its first program`,
	}},
	{"hooks that are no more", user + "lxc.hook.pre-start:\nlxc.hook.stop:\n", []string{
		"5 warning cleared-list: the empty value removes Proxmox's own pre-start hook, without which the container does not work",
		"6 note cleared-list: the empty value removes every stop hook above",
	}},
	{"NVIDIA's hook", user + "lxc.hook.mount: /usr/share/lxc/hooks/nvidia\n", []string{
		`5 note hook: the mount hook "/usr/share/lxc/hooks/nvidia" comes with LXC`,
		`5 warning wildcard-rule: the hook "/usr/share/lxc/hooks/nvidia" gives GPUs by itself at the start of the container, whatever is set here`,
	}},
	{"includes", user + "lxc.include: /root/x.conf\nlxc.include: /usr/share/lxc/config/nesting.conf\nlxc.mount.fstab: /root/fstab\nlxc.include:\n", []string{
		"5 danger include: whatever settings stand in /root/x.conf are in force too, hooks that run as root among them, and neither Proxmox nor this audit sees them",
		"6 note include: the settings of /usr/share/lxc/config/nesting.conf are in force too",
		"7 warning include: the mounts of the container stand in another file, /root/fstab, which this audit does not see",
	}},
	{"an ostype that is a path", "arch: amd64\nostype: ../../../../tmp/x\nrootfs: local:1\nunprivileged: 1\n", []string{
		`2 danger include: the ostype "../../../../tmp/x" makes LXC read settings from a file of that path`,
	}},
	{"wildcards in a container that may open everything anyway", user + "lxc.cgroup2.devices.allow: a\nlxc.cgroup2.devices.allow: c *:* rwm\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: b 8:0 rw\n", []string{
		`5 note wildcard-rule: the rule "a" allows NVIDIA devices among all others; in this container the device rules allow everything anyway`,
		`6 note wildcard-rule: the rule "c *:* rwm" allows NVIDIA devices among all others; in this container the device rules allow everything anyway`,
		`7 note wildcard-rule: the rule "c 195:* rwm" allows every device of the driver nvidia; in this container the device rules allow everything anyway`,
	}},
	{"wildcards in a privileged container", root + "lxc.cgroup2.devices.allow: c *:* rwm\nlxc.cgroup2.devices.allow: c 195:* rwm\nlxc.cgroup2.devices.allow: c 189:* rwm\nlxc.cgroup2.devices.allow: c *:* m\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		`5 danger wildcard-rule: the rule "c *:* rwm" lets a privileged container open the devices of every driver, the node's memory and disks among them`,
		`6 warning wildcard-rule: the rule "c 195:* rwm" allows every device of the driver nvidia`,
		`7 note wildcard-rule: the rule "c 189:* rwm" allows every device of its major`,
	}},
	{"everything allowed", root + "lxc.cgroup2.devices.allow: a\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 danger wildcard-rule: up to this line the device rules of a privileged container allow every device of the node, its disks too",
	}},
	{"every block device", root + "lxc.cgroup2.devices.allow: b *:* rwm\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 danger wildcard-rule: up to this line the device rules of a privileged container allow every device of the node, its disks too",
	}},
	{"deny all, and nothing left", root + "lxc.cgroup2.devices.deny: a\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 danger wildcard-rule: up to this line the device rules of a privileged container allow every device of the node, its disks too",
	}},
	{"no rule left", root + "lxc.cgroup2.devices.allow:\nlxc.cgroup2.devices.deny:\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 warning cleared-list: the empty value makes LXC forget the device rules above, Proxmox's own too",
		"6 warning cleared-list: the empty value makes LXC forget the device rules above, Proxmox's own too",
		"6 danger wildcard-rule: up to this line the device rules of a privileged container allow every device of the node, its disks too",
	}},
	{"disks and memory by rule", root + "lxc.cgroup2.devices.allow: b 8:1 r\nlxc.cgroup2.devices.allow: c 1:1 r\nlxc.cgroup2.devices.allow: b 7:* rwm\nlxc.cgroup2.devices.allow: c 10:229 rwm\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		`5 danger host-device: the rule "b 8:1 r" lets a privileged container open disks of the node, for which it can make the device nodes`,
		`6 danger host-device: the rule "c 1:1 r" lets a privileged container open the memory of the node`,
		`7 note wildcard-rule: the rule "b 7:* rwm" allows every device of its major`,
	}},
	{"GPUs in a privileged container", root + "lxc.cgroup2.devices.allow: c 195:0 rwm\nlxc.cgroup2.devices.allow: c 195:255 rwm\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file\nlxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,create=file\n", []string{
		"0 warning privileged-gpu: a privileged container has GPUs: its root is root on the node",
	}},
	{"id maps", "arch: amd64\nostype: debian\nrootfs: local:1\nlxc.idmap: u 0 0 65536\nlxc.idmap: g 0 100000 1000\nlxc.idmap: g 1000 44 1\nlxc.idmap: g 1001 1001 1\nlxc.idmap: u 5 5\n", []string{
		"4 danger id-map: the id map gives the container the node's root among users",
		"6 warning id-map: the id map gives the container groups of the node's services, from 44 on",
		"7 note id-map: the id map gives the container groups of the node, from 1001 on",
		`8 warning no-start: LXC cannot read the id map "u 5 5" and does not start the container`,
	}},
	{"an empty id map", user + "lxc.idmap:\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 danger id-map: after the empty id map the container's root is the node's root, and the device rules allow everything",
	}},
	{"AppArmor", user + "lxc.apparmor.profile: unconfined\nlxc.apparmor.allow_incomplete: 1\nlxc.apparmor.allow_nesting: 1\nlxc.apparmor.raw: mount,\nlxc.apparmor.raw: deny /x w,\nlxc.apparmor.profile: generated\nlxc.apparmor.profile: mine\n", []string{
		"5 warning apparmor: the container runs without Proxmox's AppArmor profile",
		"6 warning apparmor: the container starts although AppArmor cannot confine it wholly",
		"7 note feature: the container sees the node's /proc and /sys without their covers",
		`8 note apparmor: the AppArmor profile has a rule of its own: "mount,"`,
		`11 note apparmor: the container runs under the AppArmor profile "mine" instead of Proxmox's`,
	}},
	{"AppArmor, privileged", root + "lxc.apparmor.profile:\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 danger apparmor: the container runs without Proxmox's AppArmor profile",
	}},
	{"system calls", user + "lxc.seccomp.profile:\nlxc.seccomp.profile: /root/x\nlxc.seccomp.profile: /usr/share/lxc/config/common.seccomp\nlxc.seccomp.notify.proxy: unix:/run/x\n", []string{
		"5 warning seccomp: no filter of system calls stands between the container and the kernel",
		"6 note seccomp: the filter of system calls is /root/x instead of Proxmox's",
		"8 warning seccomp: unix:/run/x decides about system calls of the container",
	}},
	{"capabilities", user + "lxc.cap.drop:\nlxc.cap.keep: sys_admin\nlxc.cap.drop: mknod\n", []string{
		"5 note capabilities: the container's root keeps every capability over what is the container's own",
		`6 note capabilities: the container's root has the capabilities "sys_admin" instead of LXC's choice`,
	}},
	{"capabilities, privileged", root + "lxc.cap.drop:\nlxc.cap.keep: sys_admin\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 danger capabilities: the container's root keeps every capability, to load kernel modules too",
		`6 warning capabilities: the container's root has the capabilities "sys_admin" instead of LXC's choice`,
	}},
	{"binds of the node in a container whose ids are mapped", user + "lxc.mount.entry: / host none rbind,create=dir\nlxc.mount.entry: /etc/../root root2 none bind,ro,create=dir\nlxc.mount.entry: /var/run/docker.sock var/run/docker.sock none bind,create=file\nlxc.mount.entry: /usr/bin x none bind,ro,create=dir\nlxc.mount.entry: /dev/sda1 dev/sda1 none bind,create=file\nlxc.mount.entry: /proc /proc none bind\nlxc.mount.entry: tmpfs /tmp tmpfs defaults\nmp0: /etc/pve,mp=/pve,ro=1\nmp1: /dev/sdb1,mp=/backup\nmp2: volume=/,mp=/host\nlxc.mount.entry: dev dev devtmpfs rw\n", []string{
		"5 warning host-path: lxc.mount.entry gives the container /, the whole node, to write to",
		"6 warning host-path: lxc.mount.entry gives the container /root, root's own files, keys among them, to read",
		"7 warning host-path: lxc.mount.entry gives the container /var/run/docker.sock, sockets of the node's services, to write to",
		"8 note host-path: lxc.mount.entry gives the container /usr/bin, programs of the node, to read",
		"9 warning host-device: lxc.mount.entry gives the container /dev/sda1 of the node",
		"12 warning host-path: mp0 gives the container /etc/pve, settings of the node, to read",
		"14 warning host-path: mp2 gives the container /, the whole node, to write to",
		"15 note host-path: the mount of devtmpfs gives the container every device node of the node",
	}},
	{"binds of the node in a privileged container", root + "lxc.mount.entry: /dev dev none rbind,create=dir\nlxc.mount.entry: /var/lib/lxc mnt none bind,create=dir\nlxc.mount.entry: /usr/lib usr/lib none bind\nmp0: /sys/fs/cgroup,mp=/x\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 danger host-path: lxc.mount.entry gives the container /dev, every device of the node, to write to",
		"6 danger host-path: lxc.mount.entry gives the container /var/lib/lxc, the containers' root file systems and LXC's configuration, to write to",
		"7 danger host-path: lxc.mount.entry gives the container /usr/lib, programs of the node, to write to",
		"8 danger host-path: mp0 gives the container /sys/fs/cgroup, the node's cgroups, to write to",
	}},
	{"what people bind every day", user + "lxc.mount.entry: /usr/bin/nvidia-smi usr/bin/nvidia-smi none bind,ro,create=file\nlxc.mount.entry: /usr/lib/x86_64-linux-gnu/libcuda.so.1 usr/lib/libcuda.so.1 none bind,create=file\nlxc.mount.entry: /run/udev run/udev none bind,create=dir\nlxc.mount.entry: /dev/dri dev/dri none bind,create=dir\nlxc.mount.entry: /etc/localtime etc/localtime none bind,ro,create=file\nlxc.mount.entry: /lib/modules lib/modules none bind,ro,create=dir\nlxc.mount.entry: /proc/driver/nvidia proc/driver/nvidia none bind\nmp0: /mnt/pve/nas,mp=/nas\n", nil},
	{"a root file system of the node", "arch: amd64\nostype: debian\nrootfs: /\nunprivileged: 1\n", []string{
		"3 warning host-path: rootfs gives the container /, the whole node, to write to",
	}},
	{"disks and memory by devN", user + "dev0: /dev/sda,mode=0660\ndev1: /dev/nvme0n1p2,deny-write=1\ndev2: /dev/mem\ndev3: /dev/fuse\n", []string{
		"5 danger host-device: dev0 gives the container /dev/sda of the node, past every file system on it",
		"6 warning host-device: dev1 lets the container read all of /dev/nvme0n1p2 of the node",
		"7 danger host-device: dev2 gives the container /dev/mem of the node, past every file system on it",
	}},
	{"a path that a terminal would obey, and a long one", user + "mp0: /etc/\u001b[2J'\\\\\u00e9\xe9,mp=/a\nlxc.hook.stop: /" + strings.Repeat("x", 600) + "\n", []string{
		"5 warning odd-bytes: the value of mp0 is not UTF-8: \"/etc/\\x1b[2J'\\\\\\\\é\\xe9,mp=/a\"",
		"5 warning host-path: mp0 gives the container /etc/\\x1b[2J'\\\\é\\xe9, settings of the node, to write to",
		`6 danger hook: the stop hook "/` + strings.Repeat("x", 485) + "…",
	}},
	{"the node's network", user + "lxc.net.0.type: none\nlxc.net.1.type: phys\nlxc.net.2.type: veth\n", []string{
		"5 warning host-network: the container has the network of the node, with every service that listens on it alone",
		"6 warning host-network: the container takes a network interface away from the node",
	}},
	{"the node's network, privileged", root + "lxc.net.0.type: none\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 danger host-network: the container has the network of the node, with every service that listens on it alone",
	}},
	{"files that LXC writes", user + "lxc.console.logfile: /etc/cron.d/x\nlxc.log.file: /var/log/../../x\nlxc.log.file: /var/log/lxc/1.log\nlxc.console.path: /dev/ttyS0\nlxc.console.path: none\nlxc.rootfs.mount: /mnt\n", []string{
		"5 danger host-file: LXC writes as root to /etc/cron.d/x on the node what the container prints",
		"6 warning host-file: LXC writes as root to /var/log/../../x on the node",
		"7 note host-file: LXC writes to /var/log/lxc/1.log on the node",
		"8 warning host-device: the console of the container is /dev/ttyS0 of the node",
		"10 warning host-path: LXC puts the container's root file system together over /mnt of the node",
	}},
	{"kernel file systems", user + "lxc.mount.auto: proc:rw sys:mixed cgroup:rw:force\n", []string{
		"5 note auto-mount: the container can write to proc as a whole",
		"5 note auto-mount: the container can write to cgroup as a whole",
	}},
	{"kernel file systems, privileged, and none", root + "lxc.mount.auto: sys:rw\nlxc.mount.auto:\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 warning auto-mount: the container can write to sys as a whole",
		"6 warning cleared-list: the empty value makes LXC mount neither /proc nor /sys",
	}},
	{"lists cleared", user + "lxc.mount.entry:\nlxc.cgroup2.memory.max:\nlxc.cgroup2.devices.allow:\nlxc.cgroup2.devices.deny:\n", []string{
		"5 warning cleared-list: the empty value makes LXC forget every mount entry above, Proxmox's own too",
		"6 warning cleared-list: the empty value clears what Proxmox sets for memory.max",
		"7 note cleared-list: the empty value makes LXC forget the device rules above, that everything is allowed among them",
		"8 warning cleared-list: the empty value makes LXC forget the device rules above, Proxmox's own too",
	}},
	{"variables", user + "lxc.environment: LD_PRELOAD=/x\nlxc.environment.runtime: LD_LIBRARY_PATH=/opt\nlxc.environment.hooks: PERL5LIB=/x\nlxc.environment.hooks: A=B\nlxc.environment: PATH=/bin\n", []string{
		"5 warning environment: LD_PRELOAD makes every program in the container load more than its own code",
		"6 note environment: LD_LIBRARY_PATH changes which libraries the programs in the container load",
		"7 danger environment: PERL5LIB makes the hooks, which run on the node as root, load other programs",
	}},
	{"first programs", user + "lxc.init.cmd: /bin/sh\nentrypoint: /app\n", []string{
		`5 note init: the first program in the container is "/bin/sh"`,
		`6 note init: the first program in the container is "/app"`,
	}},
	{"features", user + "features: nesting=1,keyctl=0,mknod=1,mount=nfs\n", []string{
		"5 note feature: features that weaken the container's walls: mknod, mount=nfs",
	}},
	{"an ordinary container, with the nesting that Proxmox's own dialog sets", user + "features: nesting=1\n", nil},
	{"features, privileged", root + "features: nesting=1\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"5 warning feature: features that weaken the container's walls: nesting",
	}},
	{"raw lines in pending", user + "lxc.apparmor.profile: generated\n[pve:pending]\ndelete: memory\nfeatures: fuse=1\nlxc.cap.drop:\n", []string{
		"8 [pve:pending] note feature: features that weaken the container's walls: fuse",
		"9 [pve:pending] note capabilities: the container's root keeps every capability over what is the container's own",
		"9 [pve:pending] warning raw-in-pending: at the next stop the raw lines in [pve:pending] take the place of all raw lines of the main section",
	}},
	{"pending changes of a privileged container", root + "[pve:pending]\nlxc.apparmor.profile: unconfined\n", []string{
		"4 note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"6 [pve:pending] danger apparmor: the container runs without Proxmox's AppArmor profile",
		"6 [pve:pending] warning raw-in-pending: at the next stop the raw lines in [pve:pending] take the place of all raw lines of the main section",
	}},
	{"snapshots", user + "[old]\nlock: backup\nlxc.cap.drop:\n[gpu]\nunprivileged: 1\nsnapstate: delete\ndev0: /dev/nvidia0,mode=0666\n", []string{
		"5 [old] note privileged: the container is privileged: its root is the node's root, behind AppArmor and a list of capabilities",
		"7 [old] danger capabilities: the container's root keeps every capability, to load kernel modules too",
		"8 [gpu] note rollback: a rollback to gpu brings back the GPUs of its own time",
	}},
	{"keys that stop the start", user + "lxc.id_map: u 0 100000 65536\nlxc.kmsg: 1\nlxc.limit.nofile: 1\nlxc.cgroup.memory.limit_in_bytes: 1\ndev0: /etc/passwd\ndev1: /dev/nvidia0\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,create=file\nlxc.cgroup2.devices.allow: 195:0 rwm\n", []string{
		"5 warning no-start: LXC does not know lxc.id_map any more, and does not start the container",
		"6 warning no-start: LXC does not know lxc.kmsg any more, and does not start the container",
		"7 warning no-start: LXC does not know lxc.limit.nofile any more, and does not start the container",
		`9 warning no-start: dev0: device entry "/etc/passwd": path "/etc/passwd" is not valid; the container does not start`,
		"11 warning no-start: /dev/nvidia0 is made by this mount entry and by dev1: the container does not start",
		`12 warning no-start: LXC cannot read the device rule "195:0 rwm" and does not start the container`,
	}},
	{"what a start needs is missing", "hostname: a\nunprivileged: 1\n", []string{
		"0 warning no-start: without arch, ostype, rootfs the container does not start",
	}},
	{"a container in the making", "lock: create\nunprivileged: 1\n", []string{
		"1 note lock: the conf is locked (create), and Proxmox refuses to start or change the container",
	}},
	{"without effect", user + "lxc.mount.entry: /dev/nvidia0 /dev/nvidia0 none bind,create=file\n", []string{
		"5 note no-effect: the mount entry of /dev/nvidia0 has no effect: its target begins with a slash, and LXC ignores it",
	}},
	{"values and keys that Proxmox objects to", user + "memory: much\nfoo_bar: 1\n", []string{
		`5 note bad-value: memory wants a whole number, not "much"`,
		"6 note bad-value: Proxmox does not know this property",
	}},
	{"lines that Proxmox drops", user + "  cores: 2\nlxc.rootfs.path: /\n", []string{
		"5 warning dropped-line: Proxmox cannot read this line, for the blank it begins with, and drops it when it next writes the conf",
		"6 warning dropped-line: lxc.rootfs.path is made from the property rootfs; Proxmox ignores this line",
	}},
	{"headers that are none, and sections twice", user + "[a]\nlxc.cap.drop:\n[one]\ncores: 1\n[one]\nunprivileged: 1\n", []string{
		"5 warning lost-section: the line looks like the header of a section and is none: what stands below belongs to the section above",
		"6 note capabilities: the container's root keeps every capability over what is the container's own",
		"7 [one] warning lost-section: there is another section [one] below, and Proxmox forgets this one",
	}},
	{"Proxmox cannot read it", user + "lxc: x\nlxc.cap.drop: mknod\n", []string{
		`0 warning unreadable: Proxmox cannot read this conf, for line 5: Can't use string ("x") as an ARRAY ref while "strict refs" in use`,
		"5 note bad-value: Proxmox does not know this property",
	}},
}

func TestFindings(t *testing.T) {
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, f := range confaudit.Findings(pveconf.Parse([]byte(tt.conf))) {
				got = append(got, lineOf(t, f))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("findings of\n%s(-want +got):\n%s", tt.conf, diff)
			}
		})
	}
}

// TestKindsAreTested holds the table to every kind, and every kind and severity to a name of its own.
func TestKindsAreTested(t *testing.T) {
	tested, names := map[string]bool{}, map[string]bool{}
	for _, tt := range tests {
		for _, w := range tt.want {
			head, _, _ := strings.Cut(w, ": ")
			tested[head[strings.LastIndex(head, " ")+1:]] = true
		}
	}
	kind := confaudit.Kind(0)
	for ; !strings.HasPrefix(kind.String(), "Kind("); kind++ {
		if names[kind.String()] {
			t.Errorf("%v is the name of two kinds", kind)
		}
		names[kind.String()] = true
		if !tested[kind.String()] {
			t.Errorf("no test has the kind %v", kind)
		}
	}
	if kind != confaudit.Lock+1 {
		t.Errorf("%d kinds have a name, want %d", kind, confaudit.Lock+1)
	}
	for name := range tested {
		if !names[name] {
			t.Errorf("a test has the kind %s, which is none", name)
		}
	}
}
