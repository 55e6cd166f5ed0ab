package confaudit

import (
	"path"
	"regexp"
	"strings"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// hostPaths are the parts of the node that are better not a container's. A path that ends in a slash stands
// for all below it too, and of two that fit the longer one counts.
var hostPaths = map[string]string{
	"/":                          "the whole node",
	"/bin/":                      "programs of the node",
	"/boot/":                     "the kernel of the node",
	"/dev":                       "every device of the node",
	"/dev/mapper":                "the disks of the node",
	"/dev/disk/":                 "the disks of the node",
	"/etc/":                      "settings of the node",
	"/etc/localtime":             "",
	"/etc/timezone":              "",
	"/etc/hosts":                 "",
	"/etc/resolv.conf":           "",
	"/etc/ssl/certs/":            "",
	"/lib/":                      "programs of the node",
	"/lib/modules/":              "",
	"/proc/":                     "the node's processes and kernel",
	"/proc/driver/nvidia/":       "",
	"/root/":                     "root's own files, keys among them",
	"/run/":                      "sockets of the node's services",
	"/run/nvidia-persistenced/":  "",
	"/run/udev/":                 "",
	"/sbin/":                     "programs of the node",
	"/sys/":                      "the node's kernel",
	"/sys/fs/cgroup/":            "the node's cgroups",
	"/usr/":                      "programs of the node",
	"/usr/bin/nvidia-":           "",
	"/usr/lib/x86_64-linux-gnu/": "",
	"/usr/lib/firmware/":         "",
	"/usr/share/":                "",
	"/var":                       "state of the node's services",
	"/var/lib":                   "state of the node's services",
	"/var/lib/docker/":           "Docker's state",
	"/var/lib/lxc/":              "the containers' root file systems and LXC's configuration",
	"/var/lib/pve-cluster/":      "the database of the cluster",
	"/var/spool/":                "jobs of the node",
}

// hostPath says what a path of the node is, or "" if it may well be a container's.
func hostPath(p string) string {
	p = path.Clean(p)
	if rest, ok := strings.CutPrefix(p, "/var/run"); ok && (rest == "" || rest[0] == '/') {
		p = "/run" + rest
	}
	longest, what := 0, ""
	for known, w := range hostPaths {
		fits := p == strings.TrimSuffix(known, "/") || p == known ||
			len(known) > 1 && strings.HasPrefix(p, known) && (known[len(known)-1] == '/' || known[len(known)-1] == '-')
		if fits && len(known) > longest {
			longest, what = len(known), w
		}
	}
	return what
}

// diskPath finds the devices that are as good as the node: disks and memory.
var diskPath = regexp.MustCompile(`^/dev/(sd[a-z]|nvme[0-9]|vd[a-z]|xvd[a-z]|hd[a-z]|md[0-9]|md/|dm-|zd[0-9]|zvol/|mapper/|disk/|rbd|nbd[0-9]|drbd|bcache[0-9]|mmcblk[0-9]|pve/|mem$|kmem$|port$)`)

// checkMount judges an lxc.mount.entry.
func (s *section) checkMount(e pveconf.Entry) {
	m, ok := passthrough.ParseMount(e.Value)
	if !ok {
		if passthrough.LXCValue(e.Value) == "" {
			s.add(e.Line, ClearedList, Warning, "remove the line", "the empty value makes LXC forget every mount entry above, Proxmox's own too")
		}
		return
	}
	if m.Type == "devtmpfs" && !m.Bind() {
		s.add(e.Line, HostPath, s.unlessMapped(Danger, Note), "remove the line", "the mount of devtmpfs gives the container every device node of the node")
	}
	if !m.Bind() || m.Absolute && !m.Rootfs {
		return
	}
	s.checkBind(e, m.Source, m.Has("ro"))
}

// checkBind judges a bind of something of the node.
func (s *section) checkBind(e pveconf.Entry, source string, readOnly bool) {
	source = path.Clean(source)
	if diskPath.MatchString(source) {
		s.add(e.Line, HostDevice, s.unlessMapped(Danger, Warning), "remove the line, and give the container a volume", "%s gives the container %s of the node", e.Key, source)
		return
	}
	what := hostPath(source)
	if what == "" {
		return
	}
	severity := s.unlessMapped(Danger, Warning)
	how := "to write to"
	if readOnly {
		how = "to read"
	}
	// Programs and the like are no secret.
	if readOnly && strings.HasPrefix(what, "programs") {
		severity = Note
	}
	s.add(e.Line, HostPath, severity, "bind only the directory that is needed, read-only if that will do", "%s gives the container %s, %s, %s", e.Key, source, what, how)
}

// checkMountPoint judges mpN and rootfs. What is below /dev Proxmox mounts as a file system, which is an
// ordinary way to give a disk.
func (s *section) checkMountPoint(e pveconf.Entry) {
	volume, options, _ := strings.Cut(e.Value, ",")
	volume = strings.TrimPrefix(volume, "volume=")
	if !strings.HasPrefix(volume, "/") || strings.HasPrefix(path.Clean(volume), "/dev/") {
		return
	}
	readOnly := false
	for o := range strings.SplitSeq(options, ",") {
		readOnly = readOnly || o == "ro=1"
	}
	s.checkBind(e, volume, readOnly)
}

// checkDevice judges a devN.
func (s *section) checkDevice(e pveconf.Entry) {
	d, err := pveconf.ParseDevice(e.Value)
	if err != nil || !diskPath.MatchString(path.Clean(d.Path)) {
		return // package passthrough tells of the errors
	}
	if d.DenyWrite {
		s.add(e.Line, HostDevice, Warning, "give the container a volume instead", "%s lets the container read all of %s of the node", e.Key, d.Path)
		return
	}
	s.add(e.Line, HostDevice, Danger, "give the container a volume instead", "%s gives the container %s of the node, past every file system on it", e.Key, d.Path)
}
