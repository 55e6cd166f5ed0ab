package pveconf

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// A format is one of Proxmox's property strings, "volume,size=8G,ro=1" (PVE::JSONSchema, parse_property_string).
type format struct {
	defaultKey string   // of an item without a key; empty if each needs one
	required   []string // items that must be there
	items      map[string]func(string) bool
}

// The formats of PVE::LXC::Config.
var (
	rootfsFormat = format{defaultKey: "volume", required: []string{"volume"}, items: map[string]func(string) bool{
		"volume": isPath, "size": isSize, "mountoptions": isMountOptions,
		"acl": isBoolean, "ro": isBoolean, "quota": isBoolean, "replicate": isBoolean, "shared": isBoolean,
	}}
	mountFormat = format{defaultKey: "volume", required: []string{"mp", "volume"}, items: map[string]func(string) bool{
		"volume": isPath, "mp": isPath, "size": isSize, "mountoptions": isMountOptions, "backup": isBoolean,
		"acl": isBoolean, "ro": isBoolean, "quota": isBoolean, "replicate": isBoolean, "shared": isBoolean,
	}}
	netFormat = format{required: []string{"name"}, items: map[string]func(string) bool{
		"name": isInterface, "bridge": isInterface, "type": func(s string) bool { return s == "veth" },
		"hwaddr": isUnicastMAC, "ip": isIPv4Config, "ip6": isIPv6Config,
		"gw": isIPv4, "gw6": isIPv6,
		"mtu": isIntegerIn(64, 65535), "tag": isIntegerIn(1, 4094), "trunks": isTrunks, "rate": isNumber,
		"firewall": isBoolean, "link_down": isBoolean, "host-managed": isBoolean,
	}}
	featuresFormat = format{items: map[string]func(string) bool{
		"mount": featureMountPattern.MatchString, "nesting": isBoolean, "keyctl": isBoolean, "fuse": isBoolean,
		"mknod": isBoolean, "force_rw_sys": isBoolean,
	}}
	deviceFormat = format{defaultKey: "path", items: map[string]func(string) bool{
		"path": isDevicePath, "mode": isMode, "uid": isDigits, "gid": isDigits, "deny-write": isBoolean,
	}}
)

// check says what Proxmox objects to in value.
func (f format) check(value string) error {
	items, err := f.split(value)
	if err != nil {
		return err
	}
	for _, i := range items {
		valid, known := f.items[i.key]
		switch {
		case !known:
			return fmt.Errorf("%q has the unknown key %q", value, i.key)
		case !valid(i.value):
			return fmt.Errorf("%q: %s %q is not valid", value, i.key, i.value)
		}
	}
	for _, key := range f.required {
		if _, ok := items.find(key); !ok {
			return fmt.Errorf("%q has no %s", value, key)
		}
	}
	return nil
}

// items are those of a property string, in order.
type items []struct{ key, value string }

func (i items) find(key string) (value string, ok bool) {
	for _, item := range i {
		if item.key == key {
			return item.value, true
		}
	}
	return "", false
}

// split cuts a property string at its commas, which nothing can escape. White space is part of keys and values, but an
// item of nothing else is skipped.
func (f format) split(value string) (items, error) {
	var all items
	for item := range strings.SplitSeq(value, ",") {
		if trim(item) == "" {
			continue
		}
		key, v, ok := strings.Cut(item, "=")
		switch {
		case !ok && f.defaultKey == "":
			return nil, fmt.Errorf("%q has %q without a key", value, item)
		case !ok:
			key, v = f.defaultKey, item
		case key == "" || v == "":
			return nil, fmt.Errorf("%q has %q, which lacks the key or the value", value, item)
		}
		if _, twice := all.find(key); twice {
			return nil, fmt.Errorf("%q has %s twice", value, key)
		}
		all = append(all, struct{ key, value string }{key, v})
	}
	return all, nil
}

// volume returns what a rootfs or mpN mounts, if Proxmox can read the whole value.
func volume(key, value string) (string, bool) {
	f := mountFormat
	if key == "rootfs" {
		f = rootfsFormat
	}
	if f.check(value) != nil {
		return "", false
	}
	items, _ := f.split(value)
	return items.find("volume")
}

// checkFormat says what Proxmox objects to in the value of a property that has a format. Time zones are not checked:
// Proxmox looks them up on the node.
func checkFormat(key, base, value string) error {
	switch {
	case key == "rootfs":
		return rootfsFormat.check(value)
	case key == "features":
		return featuresFormat.check(value)
	case base == "mp":
		return mountFormat.check(value)
	case base == "net":
		return netFormat.check(value)
	case base == "dev":
		return deviceFormat.check(value)
	case (base == "unused" || key == "hookscript") && !isVolumeID(value):
		return fmt.Errorf("%s %q is no volume", key, value)
	case key == "hostname" && !isDNSName(value):
		return fmt.Errorf("hostname %q is no DNS name", value)
	case key == "parent" && !isSectionName(value):
		return fmt.Errorf("parent %q is no name of a snapshot", value)
	case key == "startup":
		return checkStartup(value)
	case key == "searchdomain":
		return checkList(value, "search domain", isDNSName)
	case key == "nameserver":
		return checkList(value, "name server", isNameserver)
	case key == "tags":
		return checkList(value, "tag", isTag)
	}
	return nil
}

// checkList checks each item of a list as Proxmox splits it (PVE::Tools, split_list); none need be there.
func checkList(value, what string, valid func(string) bool) error {
	for item := range strings.FieldsFuncSeq(value, func(r rune) bool { return strings.ContainsRune(",;"+white, r) }) {
		if !valid(item) {
			return fmt.Errorf("%s %q is not valid", what, item)
		}
	}
	return nil
}

// checkStartup follows parse_startup_order of PVE::JSONSchema.
func checkStartup(value string) error {
	if value == "0" { // false for Perl
		return errors.New(`startup "0" is no order`)
	}
	for item := range strings.SplitSeq(value, ",") {
		key, v, ok := strings.Cut(item, "=")
		if !ok {
			key, v = "order", item
		}
		if trim(item) != "" && (key != "order" && key != "up" && key != "down" || !isDigits(v)) {
			return fmt.Errorf("startup has %q, which is none of order=N, up=N, down=N", item)
		}
	}
	return nil
}

var (
	featureMountPattern = regexp.MustCompile(`^[a-zA-Z0-9_; ]+$`)
	numberFormPattern   = regexp.MustCompile(`^[+-]? *([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$`)
	volumeIDPattern     = regexp.MustCompile(`(?s)^[a-zA-Z][a-zA-Z0-9._-]*[a-zA-Z0-9]:.+$`)
	linkLocalPattern    = regexp.MustCompile(`(?s)^(?i)(fe80:[^%]+)%[a-z][a-z0-9_]{1,20}([:.][0-9]+)?$`)
	mountOptions        = set(`discard lazytime noatime nodev noexec nosuid`)
)

func isNumber(s string) bool   { return numberFormPattern.MatchString(s) }
func isVolumeID(s string) bool { return volumeIDPattern.MatchString(s) }

// isBoolean says whether Proxmox reads s as true or false.
func isBoolean(s string) bool {
	_, ok := boolean(s)
	return ok
}

// boolean is parse_boolean of PVE::JSONSchema.
func boolean(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "1", "on", "yes", "true":
		return true, true
	case "0", "off", "no", "false":
		return false, true
	}
	return false, false
}

func isDigits(s string) bool {
	return consistsOf(s, isDigit)
}

func isDigit(c byte) bool  { return '0' <= c && c <= '9' }
func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// consistsOf says whether s has at least one byte, and each is one of those.
func consistsOf(s string, of func(byte) bool) bool {
	for i := range len(s) {
		if !of(s[i]) {
			return false
		}
	}
	return s != ""
}

// isIntegerIn returns a check for a whole number, both limits included; a sign is allowed.
func isIntegerIn(least, greatest int64) func(string) bool {
	return func(s string) bool {
		n, err := strconv.ParseInt(s, 10, 64)
		return err == nil && least <= n && n <= greatest
	}
}

// isPath is verify_lxc_mp_string: any text without "." and ".." as a component.
func isPath(s string) bool {
	return !strings.HasPrefix(s, "../") && !hasDots(s)
}

func isDevicePath(s string) bool {
	return strings.HasPrefix(s, "/dev/") && !hasDots(s)
}

func hasDots(s string) bool {
	return strings.Contains(s, "/./") || strings.Contains(s, "/../") || strings.HasSuffix(s, "/.") || strings.HasSuffix(s, "/..")
}

func isMode(s string) bool {
	return len(s) == 4 && s[0] == '0' && consistsOf(s, func(c byte) bool { return '0' <= c && c <= '7' })
}

func isSize(s string) bool {
	if s != "" && strings.Contains("KMGT", s[len(s)-1:]) {
		s = s[:len(s)-1]
	}
	whole, part, ok := strings.Cut(s, ".")
	return isDigits(whole) && (!ok || isDigits(part))
}

func isMountOptions(s string) bool {
	for option := range strings.SplitSeq(s, ";") {
		if !mountOptions[option] {
			return false
		}
	}
	return true
}

func isTrunks(s string) bool {
	for tag := range strings.SplitSeq(s, ";") {
		if !isDigits(tag) {
			return false
		}
	}
	return true
}

func isInterface(s string) bool {
	return consistsOf(s, func(c byte) bool { return isLetter(c) || isDigit(c) || c == '_' || c == '-' || c == '.' })
}

func isTag(s string) bool {
	return s[0] != '-' && s[0] != '+' && s[0] != '.' && consistsOf(s, func(c byte) bool {
		return isLetter(c) || isDigit(c) || c == '_' || c == '-' || c == '+' || c == '.'
	})
}

func isUnicastMAC(s string) bool {
	if len(s) != 17 || unhex(s[1])&1 != 0 {
		return false
	}
	for i := range len(s) {
		if i%3 == 2 && s[i] != ':' || i%3 != 2 && unhex(s[i]) < 0 {
			return false
		}
	}
	return true
}

func isIPv4Config(s string) bool {
	prefix, err := netip.ParsePrefix(s)
	return s == "dhcp" || s == "manual" || err == nil && prefix.Addr().Is4() && prefix.Bits() > 7
}

func isIPv6Config(s string) bool {
	prefix, err := netip.ParsePrefix(s)
	return s == "auto" || s == "dhcp" || s == "manual" || err == nil && prefix.Addr().Is6() && prefix.Bits() > 7
}

func isIPv4(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is4()
}

func isIPv6(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is6() && a.Zone() == ""
}

// isNameserver also takes a link-local address with the interface.
func isNameserver(s string) bool {
	if m := linkLocalPattern.FindStringSubmatch(s); m != nil {
		return isIPv6(m[1])
	}
	return isIPv4(s) || isIPv6(s)
}

// isDNSName takes labels of letters, digits and, within, hyphens.
func isDNSName(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		ok := len(label) <= 63 && consistsOf(label, func(c byte) bool { return isLetter(c) || isDigit(c) || c == '-' })
		if !ok || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}

// isSectionName says whether s can stand in brackets as a snapshot's header.
func isSectionName(s string) bool {
	return len(s) > 1 && isLetter(s[0]) &&
		consistsOf(s, func(c byte) bool { return isLetter(c) || isDigit(c) || c == '_' || c == '-' })
}
