package passthrough

import (
	"fmt"
	"regexp"
	"slices"
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
	Type         byte   // 'c', 'b', or 'a' for every device
	Major, Minor int    // -1: any
	Access       string // of the letters r, w and m
}

func (r Rule) String() string {
	if r.Type == 'a' {
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

var (
	rulePattern     = regexp.MustCompile(`^([bc])[\t-\r ](\*|[0-9]{1,9}):(\*|[0-9]{1,9})[\t-\r ]([rwm]{1,3})$`)
	pathRulePattern = regexp.MustCompile(`^(/[^\t-\r ]+)[\t-\r ]+([rwm]{1,3})$`)
)

// ParseRule reads a rule of numbers as LXC does (cgfsng.c, device_cgroup_rule_parse). A rule by path ("/dev/nvidia-uvm rwm") is an error: only LXC at the start of the
// container knows its numbers.
func ParseRule(value string) (Rule, error) {
	if value == "a" {
		return Rule{Type: 'a', Major: -1, Minor: -1, Access: "rwm"}, nil
	}
	m := rulePattern.FindStringSubmatch(value)
	if m == nil {
		return Rule{}, fmt.Errorf("device rule %q is not TYPE MAJOR:MINOR ACCESS", value)
	}
	number := func(s string) int {
		if n, err := strconv.Atoi(s); err == nil {
			return n
		}
		return -1
	}
	return Rule{Type: m[1][0], Major: number(m[2]), Minor: number(m[3]), Access: m[4]}, nil
}

// opens says whether the rule covers opening the character device for reading and writing. LXC's
// program compares the whole of the access that is asked for: a rule of "r" alone does not match it.
func (r Rule) opens(major, minor int) bool {
	return r.Type == 'c' && (r.Major < 0 || r.Major == major) && (r.Minor < 0 || r.Minor == minor) &&
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
	// LXC's common.conf denies all and allows, among others, making any node.
	lines := []RuleLine{{Deny: true, Value: "a"}, {Value: "c *:* m"}}
	if allowAll {
		lines = []RuleLine{{Value: "a"}}
	}
	for _, r := range rules {
		if r.Value != "" {
			lines = append(lines, r)
		} else {
			lines = slices.DeleteFunc(lines, func(l RuleLine) bool { return l.Deny == r.Deny })
		}
	}
	allowAll = false
	denied := map[Rule]bool{}
	for _, l := range lines {
		r, err := ParseRule(l.Value)
		switch {
		case err != nil:
		case r.Type == 'a':
			allowAll = !l.Deny
			clear(denied)
		default:
			denied[r] = l.Deny
		}
	}
	if len(denied) == 0 {
		return true
	}
	for r, deny := range denied {
		if deny == allowAll && r.opens(major, minor) {
			return !deny
		}
	}
	return allowAll
}

// RuleLines returns the device rules that Proxmox makes of the main section: those of the devN, then the
// raw lines, rules by path with the numbers that the device has now. Rules of LXC's own files are left
// out; none of them lets a container open an NVIDIA device.
func RuleLines(f *pveconf.File, inv Inventory) []RuleLine {
	var lines []RuleLine
	for _, e := range f.Properties() {
		if !isDevice(e.Key) {
			continue
		}
		d, err := pveconf.ParseDevice(e.Value)
		if err != nil {
			continue
		}
		n, ok := inv.node(d.Path)
		switch {
		case !ok:
		case d.DenyWrite:
			lines = append(lines,
				RuleLine{Value: Rule{'c', n.Major, n.Minor, "r"}.String()},
				RuleLine{Deny: true, Value: Rule{'c', n.Major, n.Minor, "w"}.String()})
		default:
			lines = append(lines, RuleLine{Value: Rule{'c', n.Major, n.Minor, "rw"}.String()})
		}
	}
	for _, e := range f.Raw() {
		if e.Key != allowKey && e.Key != denyKey {
			continue
		}
		value := lxcValue(e.Value)
		if r, path, err := parseRule(value, inv); err == nil && path != "" && r.Major >= 0 {
			value = r.String()
		}
		lines = append(lines, RuleLine{Deny: e.Key == denyKey, Value: value})
	}
	return lines
}

// parseRule reads a rule of numbers or by path; the numbers of a path are -1 if inv does not have it.
func parseRule(value string, inv Inventory) (r Rule, path string, err error) {
	m := pathRulePattern.FindStringSubmatch(value)
	if m == nil {
		r, err = ParseRule(value)
		return r, "", err
	}
	r = Rule{Type: 'c', Major: -1, Minor: -1, Access: m[2]}
	if n, ok := inv.node(m[1]); ok {
		r.Major, r.Minor = n.Major, n.Minor
	}
	return r, m[1], nil
}

var devicePattern = regexp.MustCompile(`^dev(0|[1-9][0-9]{0,2})$`)

func isDevice(key string) bool { return devicePattern.MatchString(key) }

// lxcValue returns what LXC reads of a raw value: up to a CR or NUL, without one matching pair of quotes
// (confile.c, parse_line).
func lxcValue(value string) string {
	if i := strings.IndexAny(value, "\r\x00"); i >= 0 {
		value = strings.TrimRight(value[:i], " \t\v\f")
	}
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[0] == value[n-1] {
		return value[1 : n-1]
	}
	return value
}
