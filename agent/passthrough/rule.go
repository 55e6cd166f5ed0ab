package passthrough

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
)

const (
	mountKey = "lxc.mount.entry"
	allowKey = "lxc.cgroup2.devices.allow"
	denyKey  = "lxc.cgroup2.devices.deny"
	// cgroup v1: LXC ignores them where only cgroup v2 is mounted, as on every supported Proxmox VE.
	allowV1Key = "lxc.cgroup.devices.allow"
)

// A Rule is one rule of the device cgroup.
type Rule struct {
	Type         byte   // 'c', 'b', or 'a' for both
	Major, Minor int    // -1: any
	Access       string // of the letters r, w and m; empty for the rule "a", which forgets all rules before it
}

// global says whether r is "a" alone.
func (r Rule) global() bool { return r.Access == "" }

func (r Rule) String() string {
	if r.global() {
		return "a"
	}
	number := func(n int) string {
		if n < 0 {
			return "*"
		}
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%c %s:%s %s", r.Type, number(r.Major), number(r.Minor), r.Access)
}

// After three letters LXC reads no further, so what follows them may be anything, a comment too.
var (
	rulePattern     = regexp.MustCompile(`(?s)^([abc])[\t-\r ](\*|[0-9]+):(\*|[0-9]+)[\t-\r ](?:([rwm]{3}).*|([rwm]{1,2}))$`)
	pathRulePattern = regexp.MustCompile(`(?s)^(/[^ ]*) +(?:([rwm]{3})[^ ]*|([rwm]{1,2}))(?: .*)?$`)
)

// ParseRule reads a rule of numbers as LXC does (cgfsng.c, device_cgroup_rule_parse). A rule by path ("/dev/nvidia-uvm rwm") is an error: only LXC at the start of the
// container knows its numbers.
func ParseRule(value string) (Rule, error) {
	if value == "a" {
		return Rule{Type: 'a', Major: -1, Minor: -1}, nil
	}
	m := rulePattern.FindStringSubmatch(value)
	if m == nil {
		return Rule{}, fmt.Errorf("device rule %q is not TYPE MAJOR:MINOR ACCESS", value)
	}
	r := Rule{Type: m[1][0], Access: m[4] + m[5]}
	for i, number := range []*int{&r.Major, &r.Minor} {
		if *number = -1; m[2+i] == "*" {
			continue
		}
		// As C's strtol: a leading zero means octal.
		n, err := strconv.ParseInt(m[2+i], 0, 32)
		if err != nil {
			return Rule{}, fmt.Errorf("device rule %q: %w", value, err)
		}
		*number = int(n)
	}
	return r, nil
}

// opens says whether the rule covers opening the device for reading and writing. LXC's program compares the
// whole of the access that is asked for: a rule of "r" alone does not match it.
func (r Rule) opens(kind byte, major, minor int) bool {
	return (r.Type == kind || r.Type == 'a') && (r.Major < 0 || r.Major == major) && (r.Minor < 0 || r.Minor == minor) &&
		strings.Contains(r.Access, "r") && strings.Contains(r.Access, "w")
}

// A RuleLine is the value of one lxc.cgroup2.devices.allow or .deny.
type RuleLine struct {
	Deny  bool
	Value string
}

// Allowed says whether the rules, in LXC's order, let a container open the character device for reading
// and writing. allowAll is the base that Proxmox gives: true for an unprivileged container, false for a
// privileged one. Rules that LXC cannot read, and rules by path, are passed over; see [RuleLines].
//
// As LXC 5.0.2 does, which the tests in onlxc try: "a" forgets all rules and sets the base; where everything
// is allowed only deny rules count, elsewhere only allow rules; a rule that repeats an earlier one takes its
// place; an empty value forgets the earlier lines of its key, those of Proxmox's files among them. Where no
// rule is left LXC installs no program, and everything is allowed, even after a "deny a".
func Allowed(rules []RuleLine, allowAll bool, major, minor int) bool {
	return compile(rules, allowAll).opens('c', major, minor)
}

// AllowsAll says whether the rules let a container open devices of every kind: block devices, among them the
// disks of the node, are open to it too. The base is as for [Allowed].
func AllowsAll(rules []RuleLine, allowAll bool) bool {
	p := compile(rules, allowAll)
	return p.opens('b', 8, 0) && p.opens('b', 259, 0)
}

// A program is what LXC makes of device rules.
type program struct {
	allowAll bool          // the base
	denied   map[Rule]bool // all rules, in force or not; true: a deny rule
}

func compile(rules []RuleLine, allowAll bool) program {
	// LXC's common.conf denies all and allows, among others, making any node.
	lines := []RuleLine{{Deny: true, Value: "a"}, {Value: "c *:* m"}}
	if allowAll {
		lines = []RuleLine{{Value: "a"}}
	}
	first := map[bool]int{} // where the lines of each key begin to count
	lines = append(lines, rules...)
	for i, l := range lines {
		if l.Value == "" {
			first[l.Deny] = i + 1
		}
	}
	p := program{denied: map[Rule]bool{}}
	for i, l := range lines {
		r, err := ParseRule(l.Value)
		switch {
		case err != nil || i < first[l.Deny]:
		case r.global():
			p.allowAll = !l.Deny
			clear(p.denied)
		default:
			p.denied[r] = l.Deny
		}
	}
	return p
}

func (p program) opens(kind byte, major, minor int) bool {
	if len(p.denied) == 0 {
		return true
	}
	for r, deny := range p.denied {
		if deny == p.allowAll && r.opens(kind, major, minor) {
			return !deny
		}
	}
	return p.allowAll
}

// opensWith says whether an allow rule for the character device at the end would let the container open it.
func (p program) opensWith(r Rule) bool {
	for d, deny := range p.denied {
		if p.allowAll && deny && d != r && d.opens('c', r.Major, r.Minor) {
			return false
		}
	}
	return true
}

// RuleLines returns the device rules that Proxmox makes of the main section: those of the devN, then the
// raw lines, rules by path with the numbers that the device has now. Rules of LXC's own files are left
// out; none of them lets a container open an NVIDIA device.
func RuleLines(f *pveconf.File, inv Inventory) []RuleLine {
	return ruleLines(f.Properties(), f.Raw(), inv)
}

func ruleLines(properties, raw []pveconf.Entry, inv Inventory) []RuleLine {
	var lines []RuleLine
	for _, e := range properties {
		if !isDevice(e.Key) {
			continue
		}
		d, err := pveconf.ParseDevice(e.Value)
		if err != nil {
			continue
		}
		n, ok := inv.node(inv.resolve(path.Clean(d.Path)))
		switch {
		case !ok || n.Major < 0:
		case d.DenyWrite:
			lines = append(lines,
				RuleLine{Value: Rule{'c', n.Major, n.Minor, "r"}.String()},
				RuleLine{Deny: true, Value: Rule{'c', n.Major, n.Minor, "w"}.String()})
		default:
			lines = append(lines, RuleLine{Value: Rule{'c', n.Major, n.Minor, "rw"}.String()})
		}
	}
	for _, e := range raw {
		if e.Key == allowKey || e.Key == denyKey {
			value := LXCValue(e.Value)
			if r, path, err := parseRule(value, inv); err == nil && path != "" && r.Major >= 0 {
				value = r.String()
			}
			lines = append(lines, RuleLine{Deny: e.Key == denyKey, Value: value})
		}
		if hasNUL(e) {
			break // LXC reads no further
		}
	}
	return lines
}

// parseRule reads a rule of numbers or by path; the numbers of a path are -1 if inv does not have it.
func parseRule(value string, inv Inventory) (r Rule, file string, err error) {
	m := pathRulePattern.FindStringSubmatch(value)
	if m == nil {
		r, err = ParseRule(value)
		return r, "", err
	}
	r = Rule{Type: 'c', Major: -1, Minor: -1, Access: m[2] + m[3]}
	file = inv.resolve(path.Clean(m[1]))
	if n, ok := inv.node(file); ok {
		r.Major, r.Minor = n.Major, n.Minor
	}
	return r, file, nil
}

// devicePattern is wider than Proxmox's schema: at a start Proxmox takes every such key, dev256 and dev007
// too (PVE::LXC::Config, foreach_passthrough_device).
var devicePattern = regexp.MustCompile(`^dev[0-9]+$`)

func isDevice(key string) bool { return devicePattern.MatchString(key) }

// LXCValue returns what LXC reads of a raw value: up to a CR or NUL, without one matching pair of quotes
// (confile.c, parse_line).
func LXCValue(value string) string {
	if i := strings.IndexAny(value, "\r\x00"); i >= 0 {
		value = strings.TrimRight(value[:i], " \t\v\f")
	}
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[0] == value[n-1] {
		return value[1 : n-1]
	}
	return value
}

// hasNUL says whether LXC's configuration ends in this raw line. Proxmox takes the lines of
// lxc.environment.runtime apart at each NUL, so none of them reaches LXC.
func hasNUL(e pveconf.Entry) bool {
	return e.Key != "lxc.environment.runtime" && strings.Contains(e.Value, "\x00")
}
