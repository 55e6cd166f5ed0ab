package lxcconf

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
)

// A Network is what Proxmox asks its host about the bridges of containers.
type Network struct {
	MTU int    // of every bridge
	MAC string // of a netN without hwaddr, where Proxmox makes one up at each start
}

var netKey = regexp.MustCompile(`^net([0-9]+)$`)

func (g *generator) network() error {
	if g.host.Network == nil {
		g.line("lxc.net.0.type", "empty")
	}
	values := map[string]string{}
	for _, e := range g.conf.Properties() {
		if netKey.MatchString(e.Key) {
			values[e.Key] = e.Value
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) { // as text: net10 before net2
		net, err := netFormat.read(key, values[key])
		if err != nil {
			return err
		}
		if net["name"] == "" {
			return fmt.Errorf("%s: format error: name is missing", key)
		}
		if g.host.Network == nil {
			continue
		}
		if err := g.netLines(key, net); err != nil {
			return err
		}
	}
	return nil
}

func (g *generator) netLines(key string, net map[string]string) error {
	mac, ok := net["hwaddr"]
	if !ok {
		mac = g.host.Network.MAC
	}
	mtu := g.host.Network.MTU
	if v, ok := net["mtu"]; ok {
		mtu, _ = strconv.Atoi(v) // the format has checked it
	}
	if mtu > g.host.Network.MTU {
		return fmt.Errorf("%s: MTU size '%d' is bigger than bridge MTU '%d'", key, mtu, g.host.Network.MTU)
	}
	n := netKey.FindStringSubmatch(key)[1]
	line := func(suffix, format string, args ...any) { g.line("lxc.net."+n+"."+suffix, format, args...) }
	line("type", "veth")
	line("veth.pair", "veth%di%s", g.ctid, n)
	line("hwaddr", "%s", mac)
	line("name", "%s", net["name"])
	line("mtu", "%d", mtu)
	line("script.up", "/usr/share/lxc/lxcnetaddbr")
	if !on(net["host-managed"]) {
		return nil
	}
	for _, family := range []struct{ name, ip, gw string }{{"ipv4", net["ip"], net["gw"]}, {"ipv6", net["ip6"], net["gw6"]}} {
		switch family.ip {
		case "", "auto", "dhcp", "manual":
			continue
		}
		line(family.name+".address", "%s", family.ip)
		if family.gw != "" {
			line(family.name+".gateway", "%s", family.gw)
		}
	}
	line("flags", "up")
	return nil
}
