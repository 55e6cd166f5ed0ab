package lxcconf

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// A format says of a property string, "a=1,b=2", which keys it may have and what their values may be
// (PVE::JSONSchema, parse_property_string).
type format map[string]func(value string) bool

var featuresFormat = format{
	"force_rw_sys": isBoolean, "fuse": isBoolean, "keyctl": isBoolean, "mknod": isBoolean, "nesting": isBoolean,
	"mount": matches(`[a-zA-Z0-9_; ]+`),
}

var netFormat = format{
	"bridge":       matches(`[-_.\w]+`),
	"firewall":     isBoolean,
	"gw":           func(v string) bool { a, err := netip.ParseAddr(v); return err == nil && a.Is4() },
	"gw6":          func(v string) bool { a, err := netip.ParseAddr(v); return err == nil && a.Is6() },
	"host-managed": isBoolean,
	"hwaddr":       matches(`(?i)[a-f0-9][02468ace](:[a-f0-9]{2}){5}`), // unicast
	"ip":           func(v string) bool { return v == "dhcp" || v == "manual" || isPrefix(v, netip.Addr.Is4) },
	"ip6":          func(v string) bool { return v == "auto" || v == "dhcp" || v == "manual" || isPrefix(v, netip.Addr.Is6) },
	"link_down":    isBoolean,
	"mtu":          between(64, 65535),
	"name":         matches(`[-_.\w]+`),
	"rate":         matches(`[0-9]+(\.[0-9]+)?`),
	"tag":          between(1, 4094),
	"trunks":       matches(`[0-9]+(;[0-9]+)*`),
	"type":         matches(`veth`),
}

// read splits the value of the property key.
func (f format) read(key, value string) (map[string]string, error) {
	items := map[string]string{}
	for item := range strings.SplitSeq(value, ",") {
		if item == "" {
			continue
		}
		name, v, _ := strings.Cut(item, "=")
		if name == "" || v == "" {
			return nil, fmt.Errorf("%s: format error: %q is not a key with a value", key, item)
		}
		valid, known := f[name]
		if _, twice := items[name]; twice {
			return nil, fmt.Errorf("%s: format error: duplicate key %s", key, name)
		}
		if !known {
			return nil, fmt.Errorf("%s: format error: %s is not defined in the schema", key, name)
		}
		if !valid(v) {
			return nil, fmt.Errorf("%s: format error: %s: invalid value %q", key, name, v)
		}
		items[name] = v
	}
	return items, nil
}

var (
	isOn      = matches(`(?i)1|on|yes|true`)
	isOff     = matches(`(?i)0|off|no|false`)
	isBoolean = func(v string) bool { return isOn(v) || isOff(v) }
)

// on is the value of a boolean item, which may be absent.
func on(v string) bool { return isOn(v) }

func matches(pattern string) func(string) bool {
	return regexp.MustCompile(`^(?:` + pattern + `)$`).MatchString
}

func between(lowest, highest int) func(string) bool {
	return func(v string) bool {
		n, err := strconv.Atoi(v)
		return err == nil && n >= lowest && n <= highest
	}
}

func isPrefix(v string, family func(netip.Addr) bool) bool {
	p, err := netip.ParsePrefix(v)
	return err == nil && family(p.Addr()) && p.Bits() >= 8
}
