// Package lxcconf turns a Proxmox container conf into the LXC configuration that Proxmox starts the
// container with. It is pure: what it must know of the machine is passed in.
//
// The order of the lines and every text in them follow PVE::LXC::update_lxc_config of pve-container
// 6.1 (reference/proxmox-lxc.md, chapter 7.2).
package lxcconf

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
)

// A Host is what the generated lines depend on beside the conf. The zero value is a machine without
// AppArmor, seccomp, network, devices and cgroup controllers.
type Host struct {
	Include  func(name string) bool            // whether LXC's folder of shared configs has this file; nil: none
	Device   func(path string) (Device, error) // stats a device node of the host; nil: none exists
	AppArmor bool                              // write AppArmor's lines
	Seccomp  bool                              // write Proxmox's own seccomp profile for unprivileged containers
	Network  bool                              // write a veth for each netN; if false a container has only its loopback
	Memory   bool                              // the memory controller can be used
	CPU      bool                              // the cpu controller can be used
	CPUs     int                               // CPUs that cpuset may name; 0: no cpuset controller
}

// A Device is a device node of the host.
type Device struct {
	Type         byte // 'c' or 'b'
	Major, Minor uint32
}

const includeDir = "/usr/share/lxc/config/"

// Generate returns the LXC config of a container. Its errors are Proxmox's own words.
func Generate(ctid int32, conf *pveconf.File, host Host) ([]byte, error) {
	g := generator{ctid: ctid, host: host, conf: conf}
	if err := g.run(); err != nil {
		return nil, err
	}
	return []byte(g.out.String()), nil
}

type generator struct {
	ctid int32
	host Host
	conf *pveconf.File
	out  strings.Builder
}

func (g *generator) line(key, format string, args ...any) {
	fmt.Fprintf(&g.out, "%s = %s\n", key, fmt.Sprintf(format, args...))
}

// value is a property of the main section, or fallback.
func (g *generator) value(key, fallback string) string {
	if v, ok := g.conf.Property(key); ok {
		return v
	}
	return fallback
}

func (g *generator) number(key string, fallback int64) int64 {
	v, ok := g.conf.Property(key)
	if !ok {
		return fallback
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0 // as Perl reads it
	}
	return n
}

func (g *generator) hasRaw(key string) bool {
	for _, e := range g.conf.Raw() {
		if e.Key == key {
			return true
		}
	}
	return false
}

func (g *generator) run() error {
	arch, ok := g.conf.Property("arch")
	if !ok {
		return errors.New("missing 'arch' - internal error")
	}
	ostype, ok := g.conf.Property("ostype")
	if !ok {
		return errors.New("missing 'ostype' - internal error")
	}
	features := items(g.value("features", ""))
	unprivileged := Unprivileged(g.conf)

	g.line("lxc.cgroup.relative", "0")
	g.line("lxc.cgroup.dir.monitor", "lxc.monitor/%d", g.ctid)
	g.line("lxc.cgroup.dir.container", "lxc/%d", g.ctid)
	g.line("lxc.cgroup.dir.container.inner", "ns")
	g.line("lxc.arch", "%s", arch)
	g.line("lxc.include", "%s", g.include(ostype, "common.conf"))
	if unprivileged {
		g.line("lxc.include", "%s", g.include(ostype, "userns.conf"))
	}
	g.security(unprivileged, features)
	if features["fuse"] == "1" {
		g.line("lxc.mount.entry", "/dev/fuse dev/fuse none bind,create=file 0 0")
	}
	if unprivileged && features["force_rw_sys"] != "1" {
		g.line("lxc.mount.auto", "sys:mixed")
	}
	entrypoint := g.value("entrypoint", "/sbin/init")
	if entrypoint != "/sbin/init" {
		g.line("lxc.mount.entry", "shm dev/shm tmpfs rw,nosuid,nodev,create=dir 0 0")
	}
	if err := g.devices(); err != nil {
		return err
	}
	g.line("lxc.monitor.unshare", "1")
	if g.value("unprivileged", "0") == "1" && !g.hasRaw("lxc.idmap") {
		g.line("lxc.idmap", "u 0 100000 65536")
		g.line("lxc.idmap", "g 0 100000 65536")
	}
	if g.value("console", "1") == "0" {
		g.line("lxc.console.path", "none")
		g.line("lxc.cgroup2.devices.deny", "c 5:1 rwm")
	}
	g.line("lxc.tty.max", "%d", g.number("tty", 2))
	g.line("lxc.environment", "TERM=linux")
	g.line("lxc.uts.name", "%s", g.value("hostname", fmt.Sprintf("CT%d", g.ctid)))
	g.limits()
	if _, ok := g.conf.Property("rootfs"); !ok {
		return errors.New("missing 'rootfs' configuration")
	}
	g.line("lxc.rootfs.path", "/var/lib/lxc/%d/rootfs", g.ctid)
	if entrypoint != "/sbin/init" {
		g.line("lxc.init.cmd", "%s", entrypoint)
	}
	g.network()
	g.raw(func(key string) bool { return key == "lxc.environment.runtime" })
	g.raw(func(key string) bool { return key != "lxc.environment.runtime" })
	if cores := g.number("cores", 0); cores > 0 && g.host.CPUs > 0 && !g.hasRaw("lxc.cgroup2.cpuset.cpus") {
		g.line("lxc.cgroup2.cpuset.cpus", "%s", firstCPUs(min(int(cores), g.host.CPUs)))
	}
	return nil
}

// raw writes the raw lines whose key is wanted, in the order of the file.
func (g *generator) raw(wanted func(key string) bool) {
	for _, e := range g.conf.Raw() {
		if wanted(e.Key) {
			g.line(e.Key, "%s", e.Value)
		}
	}
}

// Unprivileged tells whether the container has a user namespace: it says so, or has a map of its own.
func Unprivileged(conf *pveconf.File) bool {
	if v, _ := conf.Property("unprivileged"); v == "1" {
		return true
	}
	for _, e := range conf.Raw() {
		if e.Key == "lxc.idmap" {
			return true
		}
	}
	return false
}

// items splits a property like features or netN, "nesting=1,mount=nfs;cifs".
func items(value string) map[string]string {
	m := map[string]string{}
	for item := range strings.SplitSeq(value, ",") {
		if key, v, ok := strings.Cut(item, "="); ok {
			m[key] = v
		}
	}
	return m
}

func (g *generator) include(ostype, name string) string {
	if own := ostype + "." + name; g.host.Include != nil && g.host.Include(own) {
		return includeDir + own
	}
	return includeDir + name
}

func (g *generator) security(unprivileged bool, features map[string]string) {
	if g.host.Seccomp && unprivileged && !g.hasRaw("lxc.seccomp.profile") {
		g.line("lxc.seccomp.profile", "/var/lib/lxc/%d/rules.seccomp", g.ctid)
	}
	if !g.host.AppArmor || g.hasRaw("lxc.apparmor.profile") {
		return
	}
	g.line("lxc.apparmor.profile", "generated")
	g.line("lxc.apparmor.raw", "allow mqueue,")
	if features["nesting"] == "1" {
		g.line("lxc.apparmor.allow_nesting", "1")
		g.line("lxc.apparmor.raw", "allow userns,")
	} else {
		g.line("lxc.apparmor.raw", "deny mount -> /proc/,")
		g.line("lxc.apparmor.raw", "deny mount -> /sys/,")
	}
	if types := features["mount"]; types != "" {
		for fstype := range strings.SplitSeq(types, ";") {
			g.line("lxc.apparmor.raw", "mount fstype=%s,", fstype)
		}
	}
	if features["fuse"] == "1" {
		g.line("lxc.apparmor.raw", "mount fstype=fuse,")
	}
}

func (g *generator) devices() error {
	passthrough, err := Passthrough(g.conf)
	if err != nil {
		return err
	}
	for _, p := range passthrough {
		d, err := g.device(p.Path)
		if err != nil {
			return err
		}
		if p.DenyWrite {
			g.line("lxc.cgroup2.devices.allow", "%c %d:%d r", d.Type, d.Major, d.Minor)
			g.line("lxc.cgroup2.devices.deny", "%c %d:%d w", d.Type, d.Major, d.Minor)
		} else {
			g.line("lxc.cgroup2.devices.allow", "%c %d:%d rw", d.Type, d.Major, d.Minor)
		}
	}
	return nil
}

func (g *generator) device(path string) (Device, error) {
	if g.host.Device == nil {
		return Device{}, fmt.Errorf("Device %s does not exist", path)
	}
	return g.host.Device(path)
}

func (g *generator) limits() {
	if g.host.Memory {
		bytes := g.number("memory", 512) << 20
		g.line("lxc.cgroup2.memory.max", "%d", bytes)
		g.line("lxc.cgroup2.memory.high", "%d", bytes-min(bytes/128, 128<<20))
		g.line("lxc.cgroup2.memory.swap.max", "%d", g.number("swap", 0)<<20)
	}
	if !g.host.CPU {
		return
	}
	if limit, err := strconv.ParseFloat(g.value("cpulimit", "0"), 64); err == nil && limit > 0 {
		g.line("lxc.cgroup2.cpu.max", "%d 100000", int64(limit*100000))
	}
	if _, ok := g.conf.Property("cpuunits"); ok {
		g.line("lxc.cgroup2.cpu.weight", "%d", min(max(g.number("cpuunits", 100), 1), 10000))
	}
}

func (g *generator) network() {
	if !g.host.Network {
		g.line("lxc.net.0.type", "empty")
		return
	}
	for n := range 32 {
		value, ok := g.conf.Property(fmt.Sprintf("net%d", n))
		if !ok {
			continue
		}
		net := items(value)
		g.line(fmt.Sprintf("lxc.net.%d.type", n), "veth")
		g.line(fmt.Sprintf("lxc.net.%d.veth.pair", n), "veth%di%d", g.ctid, n)
		g.line(fmt.Sprintf("lxc.net.%d.hwaddr", n), "%s", net["hwaddr"])
		g.line(fmt.Sprintf("lxc.net.%d.name", n), "%s", net["name"])
		g.line(fmt.Sprintf("lxc.net.%d.mtu", n), "1500")
		g.line(fmt.Sprintf("lxc.net.%d.script.up", n), "/usr/share/lxc/lxcnetaddbr")
	}
}

func firstCPUs(n int) string {
	if n == 1 {
		return "0"
	}
	return fmt.Sprintf("0-%d", n-1)
}
