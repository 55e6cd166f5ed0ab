package passthrough

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"phoenix.internal/agent/pveconf"
)

// A conf holds the NVIDIA entries of a conf's main section.
type conf struct {
	file         *pveconf.File
	inv          Inventory
	unprivileged bool
	mounts       []mount
	rules        []rule // allow rules, cgroup v1 ones too
	devices      []device
	broad        []pveconf.Entry // allow rules that cover NVIDIA devices among all others
	strange      []pveconf.Entry // wildcard rules for another driver that may have been meant for nvidia-uvm
	otherDevices bool            // other devices, whose majors may be given out at run time, are given too
	lines        []RuleLine
	uvm          bool // nvidia-uvm is about to be given
}

// A mount is an lxc.mount.entry with an NVIDIA path as its source or target.
type mount struct {
	line     int
	source   string // absolute, cleaned
	target   string // absolute in the container, cleaned
	noEffect string // why it does not give the device; empty if it does
	hidden   bool   // a line end or NUL stands within
}

// A rule is an allow rule for NVIDIA devices.
type rule struct {
	line     int
	rule     Rule
	path     string // of a rule by path, cleaned
	text     string // as LXC reads it
	stale    bool   // made for nvidia-uvm when it had another major
	noEffect string
	hidden   bool
}

// A device is a devN for an NVIDIA path.
type device struct {
	line      int
	key       string
	path      string // cleaned
	denyWrite bool
	broken    bool // Proxmox cannot read it, and the container does not start
}

func read(f *pveconf.File, inv Inventory, wantsUVM bool) *conf {
	c := &conf{file: f, inv: inv, unprivileged: unprivileged(f), lines: RuleLines(f, inv), uvm: wantsUVM}
	c.readEntries(f.Properties(), f.Raw())
	return c
}

// readEntries collects the NVIDIA entries of one section.
func (c *conf) readEntries(properties, raw []pveconf.Entry) {
	for i, e := range raw {
		if e.Key == mountKey {
			c.readMount(e, raw[i+1:])
		}
	}
	for _, e := range properties {
		if isDevice(e.Key) {
			c.readDevice(e)
		}
	}
	// After mounts and devices, which tell a stale rule from a stranger's.
	for i, e := range raw {
		if e.Key == allowKey || e.Key == allowV1Key {
			c.readRule(e, raw[i+1:])
		}
	}
}

func (c *conf) readDevice(e pveconf.Entry) {
	d, err := pveconf.ParseDevice(e.Value)
	if err != nil {
		// What it was meant for shows all the same.
		for item := range strings.SplitSeq(e.Value, ",") {
			item = strings.TrimPrefix(strings.TrimSpace(item), "path=")
			if nvidiaPath.MatchString(path.Clean(item)) {
				d.Path = item
			}
		}
	}
	if p := path.Clean(d.Path); nvidiaPath.MatchString(p) {
		c.devices = append(c.devices, device{line: e.Line, key: e.Key, path: p, denyWrite: d.DenyWrite, broken: err != nil})
	} else if !staticPath.MatchString(p) {
		c.otherDevices = true
	}
}

// staticPath matches common devices whose majors are fixed (Linux, admin-guide/devices.txt).
var staticPath = regexp.MustCompile(`^/dev/(dri|snd|input|bus/usb|net/tun|fuse|kvm|tty[^/]*|video[0-9]+|loop[^/]*|null|shm)(/|$)`)

// unprivileged says whether the container's root is not the host's; Proxmox treats a raw lxc.idmap like
// the property (LXC.pm, update_lxc_config).
func unprivileged(f *pveconf.File) bool {
	v, _ := f.Property("unprivileged")
	return v == "1" || slices.ContainsFunc(f.Raw(), func(e pveconf.Entry) bool { return e.Key == "lxc.idmap" })
}

var rootfsPattern = regexp.MustCompile(`^/var/lib/lxc/[0-9]+/rootfs/`)

// readMount reads an fstab line as LXC does (lxc/conf.c, mount_file_entries). rest are the raw lines below.
func (c *conf) readMount(e pveconf.Entry, rest []pveconf.Entry) {
	value := lxcValue(e.Value)
	fields := strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) < 2 || strings.HasPrefix(value, "#") {
		return
	}
	for i := range fields {
		fields[i] = fstabEscapes.Replace(fields[i])
	}
	m := mount{line: e.Line, source: path.Clean(fields[0]), hidden: strings.ContainsAny(e.Value, "\r\x00")}
	absolute := strings.HasPrefix(fields[1], "/")
	if root := rootfsPattern.FindString(fields[1]); root != "" {
		m.target, absolute = path.Clean(fields[1][len(root)-1:]), false
	} else {
		m.target = path.Clean("/" + fields[1])
	}
	if !nvidiaPath.MatchString(m.source) && !nvidiaPath.MatchString(m.target) {
		c.otherDevices = c.otherDevices || strings.HasPrefix(m.source, "/dev/") && !staticPath.MatchString(m.source)
		return
	}
	var options []string
	if len(fields) > 3 {
		options = strings.Split(fields[3], ",")
	}
	has := func(o string) bool { return slices.Contains(options, o) }
	cleared := slices.ContainsFunc(rest, func(o pveconf.Entry) bool { return o.Key == mountKey && lxcValue(o.Value) == "" })
	switch {
	case absolute:
		m.noEffect = "its target begins with a slash, and LXC ignores it"
	case slices.Contains(strings.Split(fields[1], "/"), ".."):
		m.noEffect = "its target leaves the container"
	case cleared:
		m.noEffect = "an empty lxc.mount.entry below cancels it"
	case !has("bind") && !has("rbind"):
		m.noEffect = "it is no bind mount"
	case has("relative"):
		m.noEffect = "its source is looked up in the container"
	case !has("create=" + kindOf(m.source)):
		m.noEffect = "nothing makes its target: create=" + kindOf(m.source) + " is missing"
	case !nvidiaPath.MatchString(m.source):
		m.noEffect = "its source is no NVIDIA device"
	}
	c.mounts = append(c.mounts, m)
}

// kindOf says what a mount's source is, in the words of the option create.
func kindOf(source string) string {
	if source == "/dev/nvidia-caps" || source == "/dev/nvidia-caps-imex-channels" {
		return "dir"
	}
	return "file"
}

var fstabEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// brokenRule finds the rules for NVIDIA's own major that LXC cannot read.
var brokenRule = regexp.MustCompile(`^c[\t-\r ]*195[^0-9]`)

// readRule reads an allow rule. rest are the raw lines below.
func (c *conf) readRule(e pveconf.Entry, rest []pveconf.Entry) {
	value := lxcValue(e.Value)
	r := rule{line: e.Line, text: value, hidden: strings.ContainsAny(e.Value, "\r\x00")}
	var err error
	r.rule, r.path, err = parseRule(value, c.inv)
	switch {
	case err != nil:
		if !brokenRule.MatchString(value) {
			return
		}
		r.noEffect = "LXC cannot read it and does not start the container"
	case r.path != "":
		r.path = path.Clean(r.path)
		if !nvidiaPath.MatchString(r.path) {
			return
		}
	case r.rule.Type != 'c' || r.rule.Major < 0:
		if e.Key == allowKey && (r.rule.Type == 'a' || r.rule.opens(nvidiaMajor, max(r.rule.Minor, 0))) {
			c.broad = append(c.broad, e)
		}
		return
	case strings.HasPrefix(c.inv.driver(r.rule.Major), "nvidia"):
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
	case r.noEffect != "":
	case e.Key == allowV1Key:
		r.noEffect = "it is for cgroup v1"
	case slices.ContainsFunc(rest, func(o pveconf.Entry) bool { return cancels(o, r.rule) }):
		r.noEffect = "a line below cancels it"
	}
	c.rules = append(c.rules, r)
}

// cancels says whether the later raw line makes LXC forget the allow rule r.
func cancels(e pveconf.Entry, r Rule) bool {
	value := lxcValue(e.Value)
	later, err := ParseRule(value)
	switch e.Key {
	case allowKey:
		return value == "" || err == nil && later.Type == 'a'
	case denyKey:
		return err == nil && (later.Type == 'a' || later == r)
	}
	return false
}

// stale says whether a rule was most likely made for nvidia-uvm under a major it had before: the major is
// one that the kernel gives out at run time, no driver has it now, the minor is one of nvidia-uvm's, and
// the conf gives nvidia-uvm. Everything else may be meant for some other device. Where the inventory has
// only the majors of NVIDIA's drivers the conf must not give another device that may have such a major.
func (c *conf) stale(r Rule) bool {
	return r.Type == 'c' && dynamic(r.Major) && r.Minor <= 1 && c.inv.driver(r.Major) == "" &&
		(c.uvm || c.givesUVM()) && (c.inv.hasOtherMajors() || !c.otherDevices)
}

// dynamic says whether the kernel gives out this major at run time (Linux, fs/char_dev.c: 234 to 254, then
// 511 down to 384).
func dynamic(major int) bool {
	return 234 <= major && major <= 254 || 384 <= major && major <= 511
}

func (c *conf) givesUVM() bool {
	uvm := func(p string) bool { return p == "/dev/nvidia-uvm" || p == "/dev/nvidia-uvm-tools" }
	return slices.ContainsFunc(c.mounts, func(m mount) bool { return uvm(m.source) }) ||
		slices.ContainsFunc(c.devices, func(d device) bool { return uvm(d.path) })
}
