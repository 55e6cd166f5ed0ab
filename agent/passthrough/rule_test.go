package passthrough_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

func TestParseRule(t *testing.T) {
	for value, want := range map[string]passthrough.Rule{
		"c 195:0 rwm":   {Type: 'c', Major: 195, Minor: 0, Access: "rwm"},
		"c 195:* rw":    {Type: 'c', Major: 195, Minor: -1, Access: "rw"},
		"b *:* m":       {Type: 'b', Major: -1, Minor: -1, Access: "m"},
		"c\t195:255\tr": {Type: 'c', Major: 195, Minor: 255, Access: "r"},
		"a":             {Type: 'a', Major: -1, Minor: -1},
		"a *:* rwm":     {Type: 'a', Major: -1, Minor: -1, Access: "rwm"},
		"c 195:0 rwmx":  {Type: 'c', Major: 195, Minor: 0, Access: "rwm"},
		"c 0303:010 rr": {Type: 'c', Major: 195, Minor: 8, Access: "rr"},

		"c 195:0 rwm # GPU": {Type: 'c', Major: 195, Minor: 0, Access: "rwm"},
	} {
		got, err := passthrough.ParseRule(value)
		if err != nil {
			t.Errorf("ParseRule(%q): %v", value, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ParseRule(%q) (-want +got):\n%s", value, diff)
		}
	}
	for _, value := range []string{
		"", "c", "all", "a all", "c 195:0", "c 195 rwm", "c  195:0 rwm", "c 195:0  rwm", "c 195:0-3 rwm", "c 195:0 rw # GPU", "c 0195:0 rwm", "c -1:0 rw",
		"d 195:0 rwm", "C 195:0 rwm", "c 1e2:0 r", "c 99999999999:0 r", "/dev/nvidia0 rwm", " c 195:0 rwm",
	} {
		if r, err := passthrough.ParseRule(value); err == nil {
			t.Errorf("ParseRule(%q) = %v, want an error", value, r)
		}
	}
}

func TestAllowed(t *testing.T) {
	allow := func(v string) passthrough.RuleLine { return passthrough.RuleLine{Value: v} }
	deny := func(v string) passthrough.RuleLine { return passthrough.RuleLine{Deny: true, Value: v} }
	type rules = []passthrough.RuleLine
	for _, tt := range []struct {
		name             string
		rules            rules
		privileged, user bool // whether 195:1 is allowed, by the base
	}{
		{"none", nil, false, true},
		{"its own rule", rules{allow("c 195:1 rw")}, true, true},
		{"another minor", rules{allow("c 195:10 rwm"), allow("c 195:0 rwm")}, false, true},
		{"both kinds of devices", rules{allow("a 195:1 rw")}, true, true},
		{"a comment after the letters", rules{allow("c 195:1 rwm # the GPU")}, true, true},
		{"a block device", rules{allow("b 195:1 rwm")}, false, true},
		{"mknod only, as Proxmox allows for everything", rules{allow("c *:* m")}, false, true},
		{"reading only", rules{allow("c 195:1 r")}, false, true},
		{"reading and writing in two rules", rules{allow("c 195:1 r"), allow("c 195:1 w")}, false, true},
		{"wildcard", rules{allow("c 195:* rwm")}, true, true},
		{"a deny rule counts only where everything is allowed", rules{allow("c 195:1 rwm"), deny("c 195:* rwm")}, true, false},
		{"a deny rule of the same words takes the rule's place", rules{allow("c 195:1 rwm"), deny("c 195:1 rwm")}, false, false},
		{"and an allow rule takes its place again", rules{deny("c 195:1 rwm"), allow("c 195:1 rwm")}, true, true},
		{"deny all forgets what is above", rules{allow("c 195:1 rwm"), deny("a"), allow("c 195:0 rwm")}, false, false},
		{"deny all without a rule below: no program", rules{deny("a")}, true, true},
		{"an empty allow without a rule below: no program", rules{allow("")}, true, true},
		{"an empty deny leaves Proxmox's allow rules", rules{deny("")}, false, true},
		{"deny all, then a rule", rules{deny("a"), allow("c 195:1 rwm")}, true, true},
		{"allow all", rules{deny("c 195:1 rwm"), allow("a")}, true, true},
		{"an empty allow forgets the rules above, and the base of an unprivileged container", rules{allow("c 195:1 rwm"), allow(""), allow("c 195:0 rwm")}, false, false},
		{"an empty deny forgets the deny rules", rules{deny("c 195:1 rwm"), deny(""), allow("c 195:0 rwm")}, false, true},
		{"what LXC cannot read", rules{allow("c 195:1"), allow("/dev/nvidia1 rwm")}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := passthrough.Allowed(tt.rules, false, 195, 1); got != tt.privileged {
				t.Errorf("privileged with %v: allowed %v, want %v", tt.rules, got, tt.privileged)
			}
			if got := passthrough.Allowed(tt.rules, true, 195, 1); got != tt.user {
				t.Errorf("unprivileged with %v: allowed %v, want %v", tt.rules, got, tt.user)
			}
		})
	}
}

func TestAllowsAll(t *testing.T) {
	for _, tt := range []struct {
		name             string
		rules            []passthrough.RuleLine
		privileged, user bool
	}{
		{"none", nil, false, true},
		{"everything", []passthrough.RuleLine{{Value: "a"}}, true, true},
		{"every block device", []passthrough.RuleLine{{Value: "b *:* rwm"}}, true, true},
		{"every character device", []passthrough.RuleLine{{Value: "c *:* rwm"}}, false, true},
		{"some block device", []passthrough.RuleLine{{Value: "b 8:0 rw"}}, false, true},
		{"no rule is left", []passthrough.RuleLine{{Deny: true, Value: "a"}}, true, true},
		{"denied", []passthrough.RuleLine{{Deny: true, Value: "b *:* rwm"}}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := passthrough.AllowsAll(tt.rules, false); got != tt.privileged {
				t.Errorf("privileged with %v: AllowsAll = %v, want %v", tt.rules, got, tt.privileged)
			}
			if got := passthrough.AllowsAll(tt.rules, true); got != tt.user {
				t.Errorf("unprivileged with %v: AllowsAll = %v, want %v", tt.rules, got, tt.user)
			}
		})
	}
}

func TestRuleLines(t *testing.T) {
	f := pveconf.Parse([]byte(`lxc.cgroup2.devices.allow = c 195:0 rwm
lxc.cgroup2.devices.deny: a
lxc.cgroup2.devices.allow: "/dev/nvidia-uvm rwm"
lxc.cgroup2.devices.allow: /dev/unknown rwm
lxc.cgroup2.devices.allow:
lxc.cgroup.devices.allow: c 195:1 rwm
dev0: /dev/nvidiactl
dev1: /dev/nvidia1,deny-write=1
dev2: /dev/fuse
dev3: /etc/passwd
[snap]
dev4: /dev/nvidia0
`))
	want := []passthrough.RuleLine{
		{Value: "c 195:255 rw"},
		{Value: "c 195:1 r"},
		{Deny: true, Value: "c 195:1 w"},
		{Value: "c 195:0 rwm"},
		{Deny: true, Value: "a"},
		{Value: "c 511:0 rwm"},
		{Value: "/dev/unknown rwm"},
		{Value: ""},
	}
	if diff := cmp.Diff(want, passthrough.RuleLines(f, node2)); diff != "" {
		t.Errorf("RuleLines (-want +got):\n%s", diff)
	}
}
