// Package vmconf reads from the conf of a virtual machine which PCI devices of the node it takes. The package is pure.
//
// The form of the conf is that of PVE::QemuServer (parse_vm_config) and PVE::QemuServer::PCI of qemu-server 9.
package vmconf

import (
	"regexp"
	"slices"
	"strings"
)

// HostPCI is what a conf takes of the node by its hostpciN lines: when the machine starts, Proxmox binds these devices to
// vfio-pci, whoever has them. A mediated device (mdev) is not among them: its card stays with the node's driver.
type HostPCI struct {
	Addresses []string // as dddd:bb:ss.f, or as dddd:bb:ss for every function of the device
	Mappings  []string // names of resource mappings, whose devices another file tells
}

var (
	header   = regexp.MustCompile(`^\[[^\]]*\]\s*$`)
	property = regexp.MustCompile(`^(hostpci(?:[0-9]|1[0-5])):\s*(.+?)\s*$`)
	address  = regexp.MustCompile(`^(?:[a-f0-9]{4,}:)?[a-f0-9]{2}:[a-f0-9]{2}(?:\.[a-f0-9])?$`)
	domain   = regexp.MustCompile(`^[a-f0-9]{4,}:`)
)

// Parse reads a conf, but for its snapshots and what waits for the next start: only the main section is in force. What
// Proxmox could not read is left out.
func Parse(conf []byte) HostPCI {
	inForce := map[string]string{} // by key: the last one counts
	var keys []string
	for line := range strings.Lines(string(conf)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "[") && header.MatchString(line) {
			break
		}
		if !strings.HasPrefix(line, "hostpci") {
			continue
		}
		m := property.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if _, again := inForce[m[1]]; !again {
			keys = append(keys, m[1])
		}
		inForce[m[1]] = m[2]
	}
	var h HostPCI
	for _, key := range keys {
		h.add(inForce[key])
	}
	return h
}

// add adds the value of one line: "0000:01:00;0000:02:00.0,pcie=1", "host=01:00.0" or "mapping=gpus,pcie=1".
func (h *HostPCI) add(value string) {
	var hosts, mapping string
	for item := range strings.SplitSeq(value, ",") {
		key, v, ok := strings.Cut(item, "=")
		switch {
		case !ok:
			hosts = item
		case key == "host":
			hosts = v
		case key == "mapping":
			mapping = v
		case key == "mdev":
			return
		}
	}
	if mapping != "" {
		h.Mappings = append(h.Mappings, mapping)
	}
	for host := range strings.SplitSeq(hosts, ";") {
		if !address.MatchString(host) {
			continue
		}
		if !domain.MatchString(host) {
			host = "0000:" + host
		}
		h.Addresses = append(h.Addresses, host)
	}
}

// Takes tells whether the device at a PCI address, dddd:bb:ss.f in lower case, is among those that the conf names itself.
func (h HostPCI) Takes(address string) bool {
	device, _, _ := strings.Cut(address, ".")
	return slices.Contains(h.Addresses, address) || slices.Contains(h.Addresses, device)
}
