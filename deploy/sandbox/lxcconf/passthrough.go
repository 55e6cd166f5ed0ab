package lxcconf

import (
	"cmp"
	"regexp"
	"slices"

	"phoenix.internal/agent/pveconf"
)

var devKey = regexp.MustCompile(`^dev[0-9]+$`)

// Passthrough reads the devN properties of the main section, ordered by key as text. Proxmox stops
// at the first that it cannot read.
func Passthrough(conf *pveconf.File) ([]pveconf.Device, error) {
	var devices []pveconf.Device
	entries := conf.Properties()
	slices.SortFunc(entries, func(a, b pveconf.Entry) int { return cmp.Compare(a.Key, b.Key) })
	for _, e := range entries {
		if !devKey.MatchString(e.Key) {
			continue
		}
		d, err := pveconf.ParseDevice(e.Value)
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	return devices, nil
}
