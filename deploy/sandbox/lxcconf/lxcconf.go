// Package lxcconf turns a Proxmox container conf into the LXC configuration that Proxmox starts the
// container with. It is pure: what it must know of the machine is passed in.
//
// The lines, their order and every text in them are those of PVE::LXC::update_lxc_config of pve-container
// 6.1.10 (reference/proxmox-lxc.md, chapter 7.2), but for [LeftOut]; a test holds them against Proxmox's own.
package lxcconf

import (
	"errors"
	"fmt"
	"strings"

	"phoenix.internal/agent/pveconf"
)

// A Host is what the generated lines depend on beside the conf. The zero value is a machine without
// networks for containers, devices and cgroup controllers.
type Host struct {
	Include func(name string) bool            // whether LXC's folder of shared configs has this file; nil: none
	Device  func(path string) (Device, error) // stats a device node of the host; nil: none exists
	Network *Network                          // of containers; nil: see [WithoutNetwork]
	Memory  bool                              // the memory controller can be used
	CPU     bool                              // the cpu controller can be used
	CPUs    int                               // CPUs that cpuset may name; 0: no cpuset controller
}

// A Device is a device node of the host.
type Device struct {
	Type         byte // 'c' or 'b'
	Major, Minor uint32
}

const includeDir = "/usr/share/lxc/config/"

// Generate returns the LXC config of a container, or nil for a template, for which Proxmox writes none.
// It returns an error where Proxmox refuses to start the container. Which CPUs a container with cores
// gets Proxmox leaves to chance; here they are the first.
func Generate(ctid int32, conf *pveconf.File, host Host) ([]byte, error) {
	g := generator{ctid: ctid, host: host, conf: conf}
	if truth(g.value("template", "")) {
		return nil, nil
	}
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

func (g *generator) hasRaw(key string) bool { return hasRaw(g.conf, key) }

func hasRaw(conf *pveconf.File, key string) bool {
	for _, e := range conf.Raw() {
		if e.Key == key {
			return true
		}
	}
	return false
}

func (g *generator) run() error {
	if _, err := g.conf.ConfigJSON(); err != nil { // Proxmox's parser dies
		return err
	}
	if v, ok := g.conf.Property("lxc"); ok { // Proxmox keeps the raw lines under this name
		return fmt.Errorf("Can't use string (%q) as an ARRAY ref", v)
	}
	arch := g.value("arch", "")
	if !truth(arch) {
		return errors.New("missing 'arch' - internal error")
	}
	ostype := g.value("ostype", "")
	if !truth(ostype) {
		return errors.New("missing 'ostype' - internal error")
	}
	features, err := featuresFormat.read("features", g.value("features", ""))
	if err != nil {
		return err
	}
	unprivileged := truth(g.value("unprivileged", ""))
	entrypoint := g.value("entrypoint", "")

	g.line("lxc.cgroup.relative", "0")
	g.line("lxc.cgroup.dir.monitor", "lxc.monitor/%d", g.ctid)
	g.line("lxc.cgroup.dir.container", "lxc/%d", g.ctid)
	g.line("lxc.cgroup.dir.container.inner", "ns")
	g.line("lxc.arch", "%s", arch)
	g.line("lxc.include", "%s", g.include(ostype, "common.conf"))
	if Unprivileged(g.conf) {
		g.line("lxc.include", "%s", g.include(ostype, "userns.conf"))
	}
	if on(features["fuse"]) {
		g.line("lxc.mount.entry", "/dev/fuse dev/fuse none bind,create=file 0 0")
	}
	if unprivileged && !on(features["force_rw_sys"]) {
		g.line("lxc.mount.auto", "sys:mixed")
	}
	if entrypoint != "" && entrypoint != "/sbin/init" {
		g.line("lxc.mount.entry", "shm dev/shm tmpfs rw,nosuid,nodev,create=dir 0 0")
	}
	if err := g.devices(); err != nil {
		return err
	}
	g.line("lxc.monitor.unshare", "1")
	if unprivileged && !g.hasRaw("lxc.idmap") {
		g.line("lxc.idmap", "u 0 100000 65536")
		g.line("lxc.idmap", "g 0 100000 65536")
	}
	if !truth(g.value("console", "1")) {
		g.line("lxc.console.path", "none")
		g.line("lxc.cgroup2.devices.deny", "c 5:1 rwm")
	}
	g.line("lxc.tty.max", "%s", g.value("tty", "2"))
	g.line("lxc.environment", "TERM=linux")
	hostname := g.value("hostname", "")
	if !truth(hostname) {
		hostname = fmt.Sprintf("CT%d", g.ctid)
	}
	g.line("lxc.uts.name", "%s", hostname)
	g.limits()
	if _, ok := g.conf.Property("rootfs"); !ok {
		return errors.New("missing 'rootfs' configuration")
	}
	g.line("lxc.rootfs.path", "/var/lib/lxc/%d/rootfs", g.ctid)
	if entrypoint != "" {
		g.line("lxc.init.cmd", "%s", entrypoint)
	}
	if err := g.network(); err != nil {
		return err
	}
	g.environment()
	for _, e := range g.conf.Raw() {
		if e.Key != runtimeKey {
			g.line(e.Key, "%s", e.Value)
		}
	}
	if cores := g.value("cores", ""); truth(cores) && g.host.CPUs > 0 && !g.hasRaw("lxc.cgroup2.cpuset.cpus") {
		g.line("lxc.cgroup2.cpuset.cpus", "%s", firstCPUs(min(number(cores), float64(g.host.CPUs))))
	}
	return nil
}

// Unprivileged tells whether the container has a user namespace: it says so, or has a map of its own.
func Unprivileged(conf *pveconf.File) bool {
	v, _ := conf.Property("unprivileged")
	return truth(v) || hasRaw(conf, "lxc.idmap")
}

func (g *generator) include(ostype, name string) string {
	if own := ostype + "." + name; g.host.Include != nil && g.host.Include(own) {
		return includeDir + own
	}
	return includeDir + name
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
		memory := g.value("memory", "")
		if !truth(memory) {
			memory = "512"
		}
		mebibytes := number(memory)
		high := mebibytes * 1016 / 1024
		if mebibytes >= 16*1024 {
			high = mebibytes - 128
		}
		g.line("lxc.cgroup2.memory.max", "%s", integer(mebibytes*(1<<20)))
		g.line("lxc.cgroup2.memory.high", "%s", integer(high*(1<<20)))
		g.line("lxc.cgroup2.memory.swap.max", "%s", integer(number(g.value("swap", "0"))*(1<<20)))
	}
	if !g.host.CPU {
		return
	}
	if limit := g.value("cpulimit", ""); truth(limit) {
		g.line("lxc.cgroup2.cpu.max", "%s 100000", integer(number(limit)*100000))
	}
	if units, ok := g.conf.Property("cpuunits"); ok {
		g.line("lxc.cgroup2.cpu.weight", "%s", units)
	}
}

// runtimeKey is the raw key whose lines Proxmox joins with NUL to the property env.
const runtimeKey = "lxc.environment.runtime"

// environment writes env: the property's value replaces what lines before it gave, lines after it add to it.
func (g *generator) environment() {
	var variables []string
	line := 0
	for _, e := range g.conf.Properties() {
		if e.Key == "env" {
			variables, line = strings.Split(e.Value, "\x00"), e.Line
		}
	}
	for _, e := range g.conf.Raw() {
		if e.Key == runtimeKey && e.Line > line {
			variables = append(variables, e.Value)
		}
	}
	for len(variables) > 0 && variables[len(variables)-1] == "" { // Perl's split drops empty fields at the end
		variables = variables[:len(variables)-1]
	}
	for _, v := range variables {
		g.line(runtimeKey, "%s", v)
	}
}

// firstCPUs names n CPUs; Proxmox drops the fraction, and names none where n is below 1.
func firstCPUs(n float64) string {
	switch {
	case !(n >= 1):
		return ""
	case n < 2:
		return "0"
	}
	return fmt.Sprintf("0-%d", int(n)-1)
}
