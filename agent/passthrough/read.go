package passthrough

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
)

// A conf holds the NVIDIA entries of a conf's main section.
type conf struct {
	file         *pveconf.File
	inv          Inventory
	raw          []pveconf.Entry
	unprivileged bool // every device is allowed but what is denied
	mapped       bool // the container's root is not the node's
	mounts       []mount
	rules        []rule // allow rules, cgroup v1 ones too
	devices      []device
	broad        []pveconf.Entry // allow rules that cover NVIDIA devices among all others
	drm          []pveconf.Entry // wildcard rules for DRM nodes, NVIDIA's among them
	strange      []pveconf.Entry // wildcard rules for another driver that may have been meant for nvidia-uvm
	folders      []folder        // other folders in which NVIDIA devices come along
	unreadable   []pveconf.Entry // rules for other devices that LXC cannot read
	others       []problemAt     // other ways to NVIDIA devices
	otherDevices bool            // other devices, whose majors may be given out at run time, are given too
	program      program
	want         []Node // is about to be given
	below        cancellations
}

// A folder is an lxc.mount.entry of a folder that is not NVIDIA's alone.
type folder struct {
	line           int
	source, target string
	nodes          []Node // NVIDIA's in it
}

// A problemAt is something a person is told about a line.
type problemAt struct {
	kind            Kind
	line            int
	message, advice string
}

// A mount is an lxc.mount.entry with an NVIDIA path as its source or target.
type mount struct {
	line     int
	source   string // absolute, cleaned, no link of /dev/char
	target   string // absolute in the container, cleaned
	noEffect string // why it does not give the device; empty if it does
	makes    bool   // it makes a file at the target all the same
	rootfs   bool   // it depends on the container's number
	exact    bool   // it is no link, and no line end or NUL stands within
}

// A rule is an allow rule for NVIDIA devices.
type rule struct {
	line     int
	rule     Rule
	path     string // of a rule by path, cleaned
	text     string // as LXC reads it
	stale    bool   // made for nvidia-uvm when it had another major
	noEffect string
	hidden   bool // a line end or NUL stands within
}

// A device is a devN for an NVIDIA path.
type device struct {
	line      int
	key       string
	path      string // cleaned
	source    string // path, but the device that a link of /dev/char stands for
	denyWrite bool
	rootOnly  bool   // neither mode nor owner is given
	broken    string // why Proxmox cannot make it, so that the container does not start
}

// cancellations are the lines that make LXC forget what stands above them.
type cancellations struct {
	mounts int          // the last empty lxc.mount.entry; 0: none
	rules  int          // the last line that forgets every allow rule
	denied map[Rule]int // the last deny rule of each kind
	nul    int          // the line in which LXC's configuration ends; 0: none
	nulKey string       // of that line
}

func read(f *pveconf.File, inv Inventory, want []Node) *conf {
	properties, raw := f.Properties(), f.Raw()
	c := &conf{file: f, inv: inv, raw: raw, want: want}
	c.unprivileged, c.mapped = unprivileged(properties, raw)
	c.program = compile(ruleLines(properties, raw, inv), c.unprivileged)
	c.readEntries(properties, raw)
	return c
}

// readEntries collects the NVIDIA entries of one section.
func (c *conf) readEntries(properties, raw []pveconf.Entry) {
	c.below = readCancellations(raw)
	for _, e := range raw {
		switch e.Key {
		case mountKey:
			c.readMount(e)
		case "lxc.hook.mount":
			c.readHook(e)
		}
	}
	for _, e := range properties {
		switch {
		case isDevice(e.Key):
			c.readDevice(e)
		case mountPointPattern.MatchString(e.Key):
			c.readMountPoint(e)
		}
	}
	// After mounts and devices, which tell a stale rule from a stranger's.
	for _, e := range raw {
		switch e.Key {
		case allowKey, allowV1Key:
			c.readRule(e)
		case denyKey:
			if value := LXCValue(e.Value); value != "" && !c.beyond(e) {
				if _, err := ParseRule(value); err != nil {
					c.unreadable = append(c.unreadable, e)
				}
			}
		}
	}
}

func readCancellations(raw []pveconf.Entry) cancellations {
	below := cancellations{denied: map[Rule]int{}}
	for _, e := range raw {
		value := LXCValue(e.Value)
		switch e.Key {
		case mountKey:
			if value == "" {
				below.mounts = e.Line
			}
		case allowKey:
			if value == "" || value == "a" {
				below.rules = e.Line
			}
		case denyKey:
			if r, err := ParseRule(value); err == nil && r.global() {
				below.rules = e.Line
			} else if err == nil {
				below.denied[r] = e.Line
			}
		}
		if hasNUL(e) {
			below.nul, below.nulKey = e.Line, e.Key
			break
		}
	}
	return below
}

// beyond says whether LXC does not get as far as e.
func (c *conf) beyond(e pveconf.Entry) bool { return 0 < c.below.nul && c.below.nul < e.Line }

// cancelled says whether a line below the given one makes LXC forget the allow rule r.
func (b cancellations) cancelled(r Rule, line int) bool {
	return b.rules > line || b.denied[r] > line
}

func (c *conf) readDevice(e pveconf.Entry) {
	d, err := pveconf.ParseDevice(e.Value)
	if err != nil {
		// What it was meant for shows all the same.
		for item := range strings.SplitSeq(e.Value, ",") {
			item = strings.TrimPrefix(strings.TrimSpace(item), "path=")
			if c.inv.ours(path.Clean(item)) {
				d.Path = item
			}
		}
	}
	p := path.Clean(d.Path)
	dev := device{line: e.Line, key: e.Key, path: p, source: c.inv.resolve(p), denyWrite: d.DenyWrite,
		rootOnly: d.Mode == "" && d.UID == "" && d.GID == ""}
	switch {
	case !c.inv.ours(dev.source):
		c.otherDevices = c.otherDevices || !staticPath.MatchString(p)
		return
	case err != nil:
		dev.broken = err.Error()
	case strings.HasSuffix(d.Path, "/"):
		dev.broken = d.Path + " ends in a slash, and is no device"
	case kindOf(p) == "dir":
		dev.broken = p + " is a directory; each device in it needs an entry of its own"
	case wildPath.MatchString(p):
		dev.broken = p + " has a wildcard, which Proxmox does not know"
	}
	c.devices = append(c.devices, dev)
}

var mountPointPattern = regexp.MustCompile(`^(mp[0-9]+|rootfs)$`)

// readMountPoint finds the mount points that give NVIDIA devices, or were meant to: Proxmox mounts what is
// below /dev as a file system (PVE::LXC::Config, classify_mountpoint).
func (c *conf) readMountPoint(e pveconf.Entry) {
	volume, _, _ := strings.Cut(e.Value, ",")
	volume = strings.TrimPrefix(volume, "volume=")
	switch p := path.Clean(volume); {
	case c.inv.ours(c.inv.resolve(p)):
		c.others = append(c.others, problemAt{InvalidLine, e.Line, fmt.Sprintf("%s mounts %s as a file system, which it has not: the container does not start", e.Key, p), "remove " + e.Key})
	case p == "/" || p == "/dev":
		c.others = append(c.others, problemAt{WildcardRule, e.Line, fmt.Sprintf("%s binds %s of the node, with every device in it", e.Key, p), "remove " + e.Key})
	}
}

// readHook finds the hook with which NVIDIA's container tools give GPUs by themselves.
func (c *conf) readHook(e pveconf.Entry) {
	if value := LXCValue(e.Value); nvidiaHook.MatchString(value) {
		c.others = append(c.others, problemAt{WildcardRule, e.Line, fmt.Sprintf("the hook %q gives GPUs by itself at the start of the container, whatever is set here", value), "remove the line"})
	}
}

var nvidiaHook = regexp.MustCompile(`/hooks/nvidia($|[\t ])|nvidia-container-`)

// staticPath matches common devices whose majors are fixed (Linux, admin-guide/devices.txt).
var staticPath = regexp.MustCompile(`^/dev/(dri|snd|input|bus/usb|net/tun|fuse|kvm|tty[^/]*|video[0-9]+|loop[^/]*|null|shm)(/|$)`)

// unprivileged says whether Proxmox takes the container for an unprivileged one, in which every device is
// allowed, and whether its ids are mapped. A raw lxc.idmap, whatever it says, counts like the property and
// takes the place of Proxmox's own map (LXC.pm, update_lxc_config); after an empty one LXC has none.
func unprivileged(properties, raw []pveconf.Entry) (user, mapped bool) {
	for _, e := range properties {
		if e.Key == "unprivileged" {
			user = e.Value != "0" // Perl's truth
			mapped = user
		}
	}
	for _, e := range raw {
		if e.Key == "lxc.idmap" {
			user, mapped = true, LXCValue(e.Value) != ""
		}
	}
	return user, mapped
}

// Unprivileged says whether Proxmox takes the container of the main section for an unprivileged one, in which
// the device rules allow everything, and whether its root is mapped to another user than the node's. The two
// differ where a raw lxc.idmap is empty.
func Unprivileged(f *pveconf.File) (allowAll, mapped bool) {
	return unprivileged(f.Properties(), f.Raw())
}

func (c *conf) readMount(e pveconf.Entry) {
	entry, ok := ParseMount(e.Value)
	if !ok {
		return
	}
	clean := path.Clean(entry.Source)
	m := mount{line: e.Line, source: c.inv.resolve(clean), target: entry.Target, rootfs: entry.Rootfs}
	m.exact = m.source == clean && !strings.ContainsAny(e.Value, "\r\x00")
	// What is in the place of a card's DRM node may be another card's.
	if !c.inv.ours(m.source) && !nvidiaPath.MatchString(m.target) {
		c.readOtherMount(e, entry, clean)
		return
	}
	kind := kindOf(m.source)
	m.makes = entry.Has("create=file") && !c.beyond(e) && c.below.mounts <= e.Line
	switch {
	case c.beyond(e):
		m.noEffect = fmt.Sprintf("LXC reads no further than the NUL in line %d", c.below.nul)
	case c.below.mounts > e.Line:
		m.noEffect = "an empty lxc.mount.entry below cancels it"
	case entry.Absolute && !entry.Rootfs:
		m.noEffect, m.makes = "its target begins with a slash, and LXC ignores it", false
	case entry.leaves():
		m.noEffect, m.makes = "its target leaves the container", false
	case entry.slash && kind == "file":
		m.noEffect, m.makes = "a path in it ends in a slash, and is no device", false
	case wildPath.MatchString(m.source):
		m.noEffect = "nothing expands the wildcard in it"
	case !entry.Has("bind") && !entry.Has("rbind"):
		m.noEffect = "it is no bind mount"
	case entry.Has("relative"):
		m.noEffect = "its source is looked up in the container"
	case !entry.Has("create=" + kind):
		m.noEffect = "nothing makes its target: create=" + kind + " is missing"
	case entry.noDev():
		m.noEffect = "nodev keeps the device from being opened"
	case !c.inv.ours(m.source):
		m.noEffect = "its source is no NVIDIA device"
	}
	c.mounts = append(c.mounts, m)
}

// readOtherMount finds the mounts that bring every device of the node with them.
func (c *conf) readOtherMount(e pveconf.Entry, m Mount, source string) {
	all := m.Bind() && (source == "/dev" || source == "/" && m.Has("rbind")) || m.Type == "devtmpfs" && !m.Has("bind") && !m.Has("rbind")
	switch {
	case all && (!m.Absolute || m.Rootfs) && !m.noDev() && !c.beyond(e) && c.below.mounts <= e.Line:
		c.others = append(c.others, problemAt{WildcardRule, e.Line, fmt.Sprintf("the mount entry of %s brings every device of the node", source), "remove the line, and give the devices that are needed one by one"})
	case strings.HasPrefix(source, "/dev/") && !staticPath.MatchString(source):
		c.otherDevices = true
	case m.Bind() && (!m.Absolute || m.Rootfs) && !m.leaves() && !m.noDev() && !c.beyond(e) && c.below.mounts <= e.Line:
		in := folder{line: e.Line, source: source, target: m.Target}
		for _, n := range c.inv.Nodes {
			if strings.HasPrefix(n.Path, source+"/") {
				in.nodes = append(in.nodes, n)
			}
		}
		if in.nodes != nil {
			c.folders = append(c.folders, in)
		}
	}
}

// kindOf says what a mount's source is, in the words of the option create.
func kindOf(source string) string {
	if source == "/dev/nvidia-caps" || source == "/dev/nvidia-caps-imex-channels" {
		return "dir"
	}
	return "file"
}

// brokenRule finds the rules for NVIDIA devices that LXC cannot read.
var brokenRule = regexp.MustCompile(`^(c[\t-\r ]*195[^0-9]|/dev/nvidia)`)

// readRule reads an allow rule.
func (c *conf) readRule(e pveconf.Entry) {
	value := LXCValue(e.Value)
	r := rule{line: e.Line, text: value, hidden: strings.ContainsAny(e.Value, "\r\x00")}
	var err error
	r.rule, r.path, err = parseRule(value, c.inv)
	switch {
	case err != nil:
		if !brokenRule.MatchString(value) {
			if e.Key == allowKey && value != "" && !c.beyond(e) {
				c.unreadable = append(c.unreadable, e)
			}
			return
		}
		r.noEffect = "LXC cannot read it and does not start the container"
	case r.path != "":
		if !c.inv.ours(r.path) {
			return
		}
	case r.rule.Type == 'b' || r.rule.Major < 0:
		if e.Key == allowKey && !c.beyond(e) && (r.rule.global() || r.rule.opens('c', nvidiaMajor, max(r.rule.Minor, 0))) {
			c.broad = append(c.broad, e)
		}
		return
	case strings.HasPrefix(c.inv.driver(r.rule.Major), "nvidia"):
	case c.inv.graphics(r.rule.Major, r.rule.Minor):
		if r.rule.Minor < 0 {
			if e.Key == allowKey && !c.beyond(e) && !c.mapped {
				c.drm = append(c.drm, e)
			}
			return
		}
	case c.inv.offline && c.stale(r.rule):
		// It may as well be the major that nvidia-uvm has now.
	case c.stale(r.rule):
		r.stale = true
	default:
		if e.Key == allowKey && dynamic(r.rule.Major) && r.rule.Minor < 0 && c.givesUVM() && !c.otherDevices {
			c.strange = append(c.strange, e)
		}
		return
	}
	switch {
	case c.beyond(e):
		r.noEffect = fmt.Sprintf("LXC reads no further than the NUL in line %d", c.below.nul)
	case r.noEffect != "":
	case e.Key == allowV1Key:
		r.noEffect = "it is for cgroup v1"
	case c.below.cancelled(r.rule, e.Line):
		r.noEffect = "a line below cancels it"
	}
	c.rules = append(c.rules, r)
}

// stale says whether a rule was most likely made for nvidia-uvm or a capability node under a major it had before: the
// major is one that the kernel gives out at run time, no driver has it now, the minor is that of such a device, and
// the conf gives this device, or is about to. Everything else may be meant for some other device. Where the inventory has
// only the majors of NVIDIA's drivers the conf must not give another device that may have such a major.
func (c *conf) stale(r Rule) bool {
	return dynamic(r.Major) && c.inv.driver(r.Major) == "" && c.gives(r.Minor) && (c.inv.hasOtherMajors() || !c.otherDevices)
}

// gives says whether the conf gives, or is about to give, a device of this minor whose major the kernel gives out at run
// time. Of nvidia-uvm it is always both, and a wildcard is for them.
func (c *conf) gives(minor int) bool {
	uvm := minor <= 1 && (len(c.want) > 0 || c.givesUVM())
	numbered := func(p string) bool {
		m := numberedPath.FindStringSubmatch(p)
		return m != nil && m[1] == strconv.Itoa(minor)
	}
	return uvm || slices.ContainsFunc(c.want, func(n Node) bool { return numbered(n.Path) }) ||
		slices.ContainsFunc(c.mounts, func(m mount) bool { return numbered(m.source) }) ||
		slices.ContainsFunc(c.devices, func(d device) bool { return numbered(d.source) })
}

// numberedPath matches the devices that have their minor number in their names.
var numberedPath = regexp.MustCompile(`^/dev/(?:nvidia-caps/nvidia-cap|nvidia-caps-imex-channels/channel)(0|[1-9][0-9]{0,6})$`)

// dynamic says whether the kernel gives out this major at run time (Linux, fs/char_dev.c: 234 to 254, then
// 511 down to 384).
func dynamic(major int) bool {
	return 234 <= major && major <= 254 || 384 <= major && major <= 511
}

func (c *conf) givesUVM() bool {
	uvm := func(p string) bool { return p == "/dev/nvidia-uvm" || p == "/dev/nvidia-uvm-tools" }
	return slices.ContainsFunc(c.mounts, func(m mount) bool { return uvm(m.source) }) ||
		slices.ContainsFunc(c.devices, func(d device) bool { return uvm(d.source) })
}
