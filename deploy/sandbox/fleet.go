package sandbox

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A fleetFile is the part of a fleet file that a host is made from. It is read leniently: finding faults
// is the controller's business.
type fleetFile struct {
	Driver     string
	Containers []fleetContainer // by CTID
}

type fleetContainer struct {
	CTID         int32
	Name         string
	Node         string
	MemoryMiB    int
	SwapMiB      int
	Cores        int
	StorageGiB   int
	Unprivileged bool
	GPUs         []string // the words of gpu_assignment that are numbers
	CloneFrom    int32    // 0: not cloned
	Snapshot     string   // name of its snapshot, "" none
	StartAtBoot  bool
	HealthCheck  string // command, "" none
	Options      []string
	Net          fleetNet
	MAC          string
}

type fleetNet struct {
	Name   string `json:"name"`
	Bridge string `json:"bridge"`
	IP     string `json:"ip"`
	GW     string `json:"gw"`
}

func readFleet(path string) (*fleetFile, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Driver     string `json:"nvidia_driver_version"`
		Containers map[string]struct {
			Name         string `json:"name"`
			Node         string `json:"node"`
			MemoryMiB    int    `json:"memory_mb"`
			SwapMiB      int    `json:"swap_mb"`
			Cores        int    `json:"cores"`
			StorageGiB   int    `json:"storage_size_gb"`
			Unprivileged bool   `json:"unprivileged"`
			GPUs         any    `json:"gpu_assignment"`
			CloneFrom    any    `json:"clone_from_ctid"`
			Snapshot     string `json:"template_snapshot_name"`
			StartAtBoot  bool   `json:"start_at_boot"`
			HealthCheck  *struct {
				Command string `json:"command"`
			} `json:"health_check"`
			Options []string `json:"lxc_options"`
			Net     fleetNet `json:"network_config"`
			MAC     string   `json:"mac_address"`
		} `json:"lxc_configs"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("read fleet file %s: %w", path, err)
	}
	fleet := &fleetFile{Driver: file.Driver}
	for key, c := range file.Containers {
		ctid, err := strconv.ParseInt(key, 10, 32)
		if err != nil || ctid < 100 || ctid > 999999999 {
			return nil, fmt.Errorf("read fleet file %s: lxc_configs: %q is not a CTID", path, key)
		}
		container := fleetContainer{
			CTID: int32(ctid), Name: c.Name, Node: c.Node, MemoryMiB: c.MemoryMiB, SwapMiB: c.SwapMiB, Cores: c.Cores,
			StorageGiB: c.StorageGiB, Unprivileged: c.Unprivileged, Snapshot: c.Snapshot, StartAtBoot: c.StartAtBoot,
			Options: c.Options, Net: c.Net, MAC: c.MAC, GPUs: numbers(fmt.Sprint(c.GPUs)),
		}
		if c.HealthCheck != nil {
			container.HealthCheck = c.HealthCheck.Command
		}
		if source, err := strconv.ParseInt(fmt.Sprint(c.CloneFrom), 10, 32); err == nil {
			container.CloneFrom = int32(source)
		}
		fleet.Containers = append(fleet.Containers, container)
	}
	slices.SortFunc(fleet.Containers, func(a, b fleetContainer) int { return int(a.CTID - b.CTID) })
	return fleet, nil
}

func numbers(s string) []string {
	var words []string
	for word := range strings.SplitSeq(s, ",") {
		if _, err := strconv.Atoi(strings.TrimSpace(word)); err == nil {
			words = append(words, strings.TrimSpace(word))
		}
	}
	return words
}

// spread decides the node of each container: the one it names; else that of the container it was cloned
// from, as Proxmox clones, until that node has its share; else the next in turn that has not.
func (f *fleetFile) spread(nodes []Node) map[int32]*Node {
	share := (len(f.Containers) + len(nodes) - 1) / len(nodes)
	count := map[*Node]int{}
	byName := map[string]*Node{}
	for i := range nodes {
		byName[nodes[i].Name] = &nodes[i]
	}
	placed := map[int32]*Node{}
	put := func(c fleetContainer, n *Node) { placed[c.CTID] = n; count[n]++ }
	for _, c := range f.Containers {
		if n := byName[c.Node]; n != nil {
			put(c, n)
		}
	}
	next := 0
	for _, c := range f.sourcesFirst() {
		if placed[c.CTID] != nil {
			continue
		}
		n := placed[c.CloneFrom]
		for n == nil || count[n] >= share && next < 2*len(nodes)*share {
			n = &nodes[next%len(nodes)]
			next++
		}
		put(c, n)
	}
	return placed
}

// sourcesFirst orders the containers so that each comes after the one it was cloned from; in a circle,
// which is a fault of the fleet file, the order means nothing.
func (f *fleetFile) sourcesFirst() []fleetContainer {
	byCTID := map[int32]fleetContainer{}
	for _, c := range f.Containers {
		byCTID[c.CTID] = c
	}
	var ordered []fleetContainer
	done := map[int32]bool{}
	var visit func(c fleetContainer)
	visit = func(c fleetContainer) {
		if done[c.CTID] {
			return
		}
		done[c.CTID] = true
		if source, ok := byCTID[c.CloneFrom]; ok {
			visit(source)
		}
		ordered = append(ordered, c)
	}
	for _, c := range f.Containers {
		visit(c)
	}
	return ordered
}

// conf is what Proxmox and a few years of shell scripts would have made of the container. Every third
// container with GPUs has the scripts' leftovers: all GPUs by hand, with a hard-coded major of nvidia-uvm
// that is not this node's.
func (c *fleetContainer) conf(leftovers bool) string {
	var b strings.Builder
	c.properties(&b, c.Snapshot, false)
	for _, option := range c.Options {
		if key, value, ok := strings.Cut(option, "="); ok {
			fmt.Fprintf(&b, "%s: %s\n", strings.TrimSpace(key), strings.TrimSpace(value))
		}
	}
	if leftovers {
		b.WriteString(scriptLeftovers)
	}
	if c.Snapshot != "" {
		fmt.Fprintf(&b, "\n[%s]\n#as the scripts made it\n", c.Snapshot)
		c.properties(&b, "", true)
	}
	return b.String()
}

const scriptLeftovers = `lxc.cgroup2.devices.allow = c 195:* rwm
lxc.cgroup2.devices.allow = c 243:* rwm
lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry = /dev/nvidia1 dev/nvidia1 none bind,optional,create=file
lxc.mount.entry = /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry = /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
`

// properties writes the properties of the main section, or of the snapshot, in Proxmox's order.
func (c *fleetContainer) properties(b *strings.Builder, parent string, snapshot bool) {
	or := func(value, fallback string) string {
		if value == "" {
			return fallback
		}
		return value
	}
	flag := map[bool]string{true: "1", false: "0"}
	net := fmt.Sprintf("name=%s,bridge=%s", or(c.Net.Name, "eth0"), or(c.Net.Bridge, "vmbr0"))
	if _, err := netip.ParseAddr(c.Net.GW); err == nil {
		net += ",gw=" + c.Net.GW
	}
	net += ",hwaddr=" + or(c.MAC, fmt.Sprintf("BC:24:11:%02X:%02X:%02X", byte(c.CTID>>16), byte(c.CTID>>8), byte(c.CTID)))
	ip := "dhcp" // what a fleet file has, such as an address without its mask, need not be what Proxmox takes
	if _, err := netip.ParsePrefix(c.Net.IP); err == nil {
		ip = c.Net.IP
	}
	net += ",ip=" + ip + ",type=veth"

	b.WriteString("arch: amd64\n")
	fmt.Fprintf(b, "cores: %d\n", max(c.Cores, 1))
	fmt.Fprintf(b, "hostname: %s\n", hostname(c.Name, c.CTID))
	fmt.Fprintf(b, "memory: %d\n", max(c.MemoryMiB, 16))
	fmt.Fprintf(b, "net0: %s\n", net)
	fmt.Fprintf(b, "onboot: %s\n", flag[c.StartAtBoot])
	b.WriteString("ostype: ubuntu\n")
	if parent != "" {
		fmt.Fprintf(b, "parent: %s\n", parent)
	}
	fmt.Fprintf(b, "rootfs: local:%d/vm-%d-disk-0.raw,size=%dG\n", c.CTID, c.CTID, max(c.StorageGiB, 8))
	if snapshot {
		b.WriteString("snaptime: 1764000000\n")
	}
	fmt.Fprintf(b, "swap: %d\n", c.SwapMiB)
	if c.Unprivileged {
		b.WriteString("unprivileged: 1\n")
	}
}

// hostname makes a host name of a container's name: "Copy-Cuda12.8" is one already.
func hostname(name string, ctid int32) string {
	clean := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		}
		return '-'
	}, name), "-.")
	if clean == "" {
		return fmt.Sprintf("CT%d", ctid)
	}
	return clean
}
