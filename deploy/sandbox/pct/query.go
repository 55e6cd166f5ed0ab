package pct

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
)

func statusWord(ctid int32) string {
	if running(ctid) {
		return "running"
	}
	return "stopped"
}

func (c *call) status() error {
	conf, err := c.load(c.ctid)
	if err != nil {
		return err
	}
	if !c.on("verbose") {
		fmt.Fprintf(c.Out, "status: %s\n", statusWord(c.ctid))
		return nil
	}
	value := func(key, fallback string) string {
		if v, ok := conf.Property(key); ok {
			return v
		}
		return fallback
	}
	mebibytes := func(key, fallback string) string {
		n, _ := strconv.ParseInt(value(key, fallback), 10, 64)
		return strconv.FormatInt(n<<20, 10)
	}
	lines := map[string]string{
		"cpus": value("cores", "1"), "disk": "0", "diskread": "0", "diskwrite": "0", "maxdisk": "0",
		"maxmem": mebibytes("memory", "512"), "maxswap": mebibytes("swap", "0"), "mem": "0",
		"name": value("hostname", fmt.Sprintf("CT%d", c.ctid)), "netin": "0", "netout": "0",
		"status": statusWord(c.ctid), "swap": "0", "type": "lxc", "uptime": "0", "vmid": strconv.Itoa(int(c.ctid)),
	}
	for _, key := range []string{"lock", "tags", "template"} {
		if v, ok := conf.Property(key); ok {
			lines[key] = v
		}
	}
	if pid, err := ask(c.ctid, commandInitPID); err == nil && int32(pid) > 0 {
		lines["pid"] = strconv.Itoa(int(int32(pid)))
	}
	c.printSorted(lines)
	return nil
}

func (c *call) printSorted(lines map[string]string) {
	var keys []string
	for key := range lines {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		fmt.Fprintf(c.Out, "%s: %s\n", key, lines[key])
	}
}

// ctids are the containers of this node, ascending.
func (h *Host) ctids() ([]int32, error) {
	entries, err := os.ReadDir(filepath.Dir(h.confPath(100)))
	if err != nil {
		return nil, err
	}
	var ctids []int32
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".conf")
		if n, err := strconv.ParseInt(name, 10, 32); ok && err == nil {
			ctids = append(ctids, int32(n))
		}
	}
	slices.Sort(ctids)
	return ctids, nil
}

func (c *call) list() error {
	ctids, err := c.ctids()
	if err != nil || len(ctids) == 0 {
		return err
	}
	const row = "%-10s %-10s %-12s %-20s\n"
	fmt.Fprintf(c.Out, row, "VMID", "Status", "Lock", "Name")
	for _, ctid := range ctids {
		conf, err := c.load(ctid)
		if err != nil {
			continue // removed meanwhile
		}
		lock, _ := conf.Property("lock")
		name, ok := conf.Property("hostname")
		if !ok {
			name = fmt.Sprintf("CT%d", ctid)
		}
		fmt.Fprintf(c.Out, row, strconv.Itoa(int(ctid)), statusWord(ctid), lock, name)
	}
	return nil
}

func (c *call) config() error {
	conf, err := c.load(c.ctid)
	if err != nil {
		return err
	}
	section := pveconf.Section{Description: conf.Description(), Properties: conf.Properties(), Raw: conf.Raw()}
	if name, ok := c.options["snapshot"]; ok {
		snapshots := conf.Snapshots()
		i := slices.IndexFunc(snapshots, func(s pveconf.Section) bool { return s.Name == name })
		if i < 0 {
			return proxmox("snapshot '%s' does not exist", name)
		}
		section = snapshots[i]
	} else if !c.on("current") && conf.Pending().Line > 0 {
		if err := conf.ApplyPending(); err != nil {
			return err
		}
		section.Properties, section.Raw = conf.Properties(), conf.Raw()
	}
	lines := map[string]string{}
	for _, e := range section.Properties {
		lines[e.Key] = e.Value
	}
	if section.Description != "" {
		lines["description"] = encodeText(section.Description)
	}
	c.printSorted(lines)
	for _, e := range section.Raw {
		fmt.Fprintf(c.Out, "%s: %s\n", e.Key, e.Value)
	}
	return nil
}

// encodeText is PVE::ParseUtils::encode_text.
func encodeText(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c >= 0x7f || c == '%' || c == ':' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
