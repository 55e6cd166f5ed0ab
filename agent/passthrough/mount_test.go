package passthrough_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

func TestParseMount(t *testing.T) {
	for _, tt := range []struct {
		name  string
		value string
		want  passthrough.Mount
		bind  bool
	}{
		{"as Set writes it", "/dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
			passthrough.Mount{Source: "/dev/nvidia0", Target: "/dev/nvidia0", Type: "none", Options: []string{"bind", "optional", "create=file"}}, true},
		{"quotes, tabs, escapes, fields at the end", "\" /srv/a\\040b\\134c\tx\\\\y\tnone \trbind 0, 0\"",
			passthrough.Mount{Source: `/srv/a b\c`, Target: `/x\y`, Type: "none", Options: []string{"rbind"}}, true},
		{"up to a CR", "/a b none bind\rlxc.hook.start = /x", passthrough.Mount{Source: "/a", Target: "/b", Type: "none", Options: []string{"bind"}}, true},
		{"absolute", "/a //b/./c/ none bind", passthrough.Mount{Source: "/a", Target: "/b/c", Type: "none", Options: []string{"bind"}, Absolute: true}, true},
		{"below a root file system", "/a /var/lib/lxc/101/rootfs/b none bind",
			passthrough.Mount{Source: "/a", Target: "/b", Type: "none", Options: []string{"bind"}, Absolute: true, Rootfs: true}, true},
		{"relative to the container", "a b none bind,relative", passthrough.Mount{Source: "a", Target: "/b", Type: "none", Options: []string{"bind", "relative"}}, false},
		{"no options", "proc proc", passthrough.Mount{Source: "proc", Target: "/proc"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := passthrough.ParseMount(tt.value)
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreUnexported(passthrough.Mount{})); diff != "" || !ok || got.Bind() != tt.bind {
				t.Errorf("ParseMount(%q): %v, a bind %v, want %v (-want +got):\n%s", tt.value, ok, got.Bind(), tt.bind, diff)
			}
		})
	}
	for _, value := range []string{"", "/a", "#/a b none bind", `" #/a b none bind"`, "/a\x00 b none bind"} {
		if got, ok := passthrough.ParseMount(value); ok {
			t.Errorf("ParseMount(%q) = %+v, want none", value, got)
		}
	}
}

func TestUnprivileged(t *testing.T) {
	for _, tt := range []struct {
		name             string
		conf             string
		allowAll, mapped bool
	}{
		{"silence", "arch: amd64\n", false, false},
		{"the property", "unprivileged: 1\n", true, true},
		{"the last one counts", "unprivileged: 1\nunprivileged: 0\n", false, false},
		{"whatever is true for Perl", "unprivileged: maybe\n", true, true},
		{"a raw map", "lxc.idmap: u 0 100000 65536\n", true, true},
		{"an empty raw map", "unprivileged: 1\nlxc.idmap:\n", true, false},
		{"an empty one, then one", "lxc.idmap:\nlxc.idmap = u 0 100000 65536\n", true, true},
		{"in a snapshot", "arch: amd64\n[snap]\nunprivileged: 1\n", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			allowAll, mapped := passthrough.Unprivileged(pveconf.Parse([]byte(tt.conf)))
			if allowAll != tt.allowAll || mapped != tt.mapped {
				t.Errorf("Unprivileged of %q: %v, %v, want %v, %v", tt.conf, allowAll, mapped, tt.allowAll, tt.mapped)
			}
		})
	}
}
