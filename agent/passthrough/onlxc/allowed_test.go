// Package onlxc_test holds what package passthrough says of LXC against LXC itself. It stands apart so that
// the tests of the pure package run without containers.
package onlxc_test

import (
	"strings"
	"testing"

	"phoenix.internal/agent/lxctest"
	"phoenix.internal/agent/passthrough"
)

func TestMain(m *testing.M) { lxctest.Main(m) }

// TestAllowed opens a device for reading and writing in containers with odd device rules.
func TestAllowed(t *testing.T) {
	for _, rules := range []string{
		"",
		"allow c 195:1 rw",
		"allow c 195:10 rwm; allow c 195:0 rwm",
		"allow c *:* m",
		"allow c 195:1 r",
		"allow c 195:1 r; allow c 195:1 w",
		"allow c 195:* rwm",
		"allow c *:1 rw",
		"deny c 195:1 w",
		"deny c 195:* rwm",
		"allow c 195:1 rwm; deny c 195:* rwm",
		"allow c 195:1 rwm; deny c 195:1 rwm",
		"deny c 195:1 rwm; allow c 195:1 rwm",
		"deny c 195:1 rw; allow c 195:1 wr",
		"allow c 195:1 rwm; deny a",
		"deny a; allow c 195:1 rwm",
		"deny c 195:1 rwm; allow a",
		"deny a",
		"allow c 195:1 rwm; allow ; allow c 195:0 rwm",
		"deny c 195:1 rwm; deny ; allow c 195:0 rwm",
		"allow ",
		"deny ",
		"allow ; deny ",
		"allow c 195:1 rwm # the GPU",
		"allow c 195:1 rwmx",
		"allow a 195:1 rw",
		"allow b 195:1 rwm",
		"allow c 0303:01 rw",
		"allow c 195:001 rw",
	} {
		t.Run(rules, func(t *testing.T) {
			var lines []passthrough.RuleLine
			var config []string
			for rule := range strings.SplitSeq(rules, "; ") {
				if verb, value, ok := strings.Cut(rule, " "); ok {
					lines = append(lines, passthrough.RuleLine{Deny: verb == "deny", Value: value})
					config = append(config, "lxc.cgroup2.devices."+verb+" = "+value)
				}
			}
			for _, unprivileged := range []bool{false, true} {
				c := lxctest.Start(t, lxctest.Config{
					Unprivileged: unprivileged,
					Devices:      []lxctest.Device{{Path: "/dev/nvidia1", Major: 195, Minor: 1, Denied: true}},
					Lines:        config,
				})
				out := c.Run(t, "(exec 3<>/dev/nvidia1) 2>&1; true")
				want := strings.Contains(out, "No such device or address") // allowed, and no driver behind it
				if !want && !strings.Contains(out, "Operation not permitted") {
					t.Fatalf("opening the device says %q", out)
				}
				if got := passthrough.Allowed(lines, unprivileged, 195, 1); got != want {
					t.Errorf("unprivileged %v: Allowed = %v, but LXC says %v", unprivileged, got, want)
				}
			}
		})
	}
}
