package pveconf

import (
	"fmt"
	"regexp"
	"strings"
)

// A Device is the value of a devN property: a device of the node that Proxmox makes anew in the
// container at each start.
type Device struct {
	Path      string // absolute, below /dev
	Mode      string // "0" and three octal digits; empty: 0660
	UID, GID  string // as seen in the container; empty: 0
	DenyWrite bool
}

var (
	devicePathPattern = regexp.MustCompile(`(?s)^/dev/`)
	dotsPattern       = regexp.MustCompile(`(?s)/\.\.?(/|$)`)
	modePattern       = regexp.MustCompile(`^0[0-7]{3}$`)
	digitsPattern     = regexp.MustCompile(`^[0-9]+$`)
)

// ParseDevice reads the value of a devN property as Proxmox does (PVE::JSONSchema,
// parse_property_string with the format of dev_desc): no white space is trimmed, an item without a key is
// the path, a repeated or unknown key is an error.
func ParseDevice(value string) (Device, error) {
	items, err := propertyString(value, "path")
	if err != nil {
		return Device{}, err
	}
	var d Device
	for key, v := range items {
		ok := true
		switch key {
		case "path":
			d.Path, ok = v, devicePathPattern.MatchString(v) && !dotsPattern.MatchString(v)
		case "mode":
			d.Mode, ok = v, modePattern.MatchString(v)
		case "uid":
			d.UID, ok = v, digitsPattern.MatchString(v)
		case "gid":
			d.GID, ok = v, digitsPattern.MatchString(v)
		case "deny-write":
			m := booleanPattern.FindStringSubmatch(v)
			ok = m != nil
			d.DenyWrite = ok && m[1] != ""
		default:
			return Device{}, fmt.Errorf("device entry %q: unknown key %q", value, key)
		}
		if !ok {
			return Device{}, fmt.Errorf("device entry %q: %s %q is not valid", value, key, v)
		}
	}
	if d.Path == "" {
		return Device{}, fmt.Errorf("device entry %q has no path", value)
	}
	return d, nil
}

// propertyString splits Proxmox's "a=1,b=2" form. One item may lack its key; it is that of defaultKey.
func propertyString(value, defaultKey string) (map[string]string, error) {
	items := map[string]string{}
	for _, item := range strings.Split(value, ",") {
		if item == "" {
			continue
		}
		key, v, ok := strings.Cut(item, "=")
		if !ok {
			key, v = defaultKey, item
		}
		if _, twice := items[key]; twice {
			return nil, fmt.Errorf("%q has %s twice", value, key)
		}
		items[key] = v
	}
	return items, nil
}
