package pveconf

import "fmt"

// A Device is the value of a devN property: a device of the node that Proxmox makes anew in the
// container at each start.
type Device struct {
	Path      string // absolute, below /dev
	Mode      string // "0" and three octal digits; empty: 0660
	UID, GID  string // as seen in the container; empty: 0
	DenyWrite bool
}

// ParseDevice reads the value of a devN property as Proxmox does (PVE::JSONSchema,
// parse_property_string with the format of dev_desc): no white space is trimmed, an item without a key is
// the path, a repeated or unknown key is an error. It wants a path, as Proxmox does when it starts the container.
func ParseDevice(value string) (Device, error) {
	if err := deviceFormat.check(value); err != nil {
		return Device{}, fmt.Errorf("device entry %w", err)
	}
	items, err := deviceFormat.split(value)
	if err != nil {
		return Device{}, err
	}
	var d Device
	for _, i := range items {
		switch i.key {
		case "path":
			d.Path = i.value
		case "mode":
			d.Mode = i.value
		case "uid":
			d.UID = i.value
		case "gid":
			d.GID = i.value
		case "deny-write":
			d.DenyWrite, _ = boolean(i.value)
		}
	}
	if d.Path == "" {
		return Device{}, fmt.Errorf("device entry %q has no path", value)
	}
	return d, nil
}
