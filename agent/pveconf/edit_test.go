package pveconf_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/pveconf"
)

const withSections = `arch: amd64
hostname: web
memory: 512
lxc.mount.entry: /srv srv none bind

[pve:pending]
delete: swap
lxc.mount.entry: /pending p none bind

[snap]
arch: amd64
swap: 256
lxc.mount.entry: /snap s none bind
`

func set(key, value string) func(*pveconf.File) error {
	return func(f *pveconf.File) error { return f.Set(key, value) }
}

func unset(key string) func(*pveconf.File) error {
	return func(f *pveconf.File) error { f.Unset(key); return nil }
}

func appendRaw(key, value string) func(*pveconf.File) error {
	return func(f *pveconf.File) error { return f.AppendRaw(key, value) }
}

func TestEdit(t *testing.T) {
	for _, tt := range []struct {
		name string
		conf string
		edit func(*pveconf.File) error
		want string
	}{
		{"property to its sorted place", "arch: amd64\nhostname: a\nswap: 0\nlxc.arch: x\n", set("memory", "512"),
			"arch: amd64\nhostname: a\nmemory: 512\nswap: 0\nlxc.arch: x\n"},
		{"bytewise order: mp10 before mp2", "mp1: a:b,mp=/1\nmp2: a:c,mp=/2\n", set("mp10", "a:d,mp=/10"),
			"mp1: a:b,mp=/1\nmp10: a:d,mp=/10\nmp2: a:c,mp=/2\n"},
		{"greatest key after the last property, before raw lines", "arch: amd64\nlxc.arch: x\n", set("swap", "0"),
			"arch: amd64\nswap: 0\nlxc.arch: x\n"},
		{"least key below the description", "#notes\nhostname: a\n", set("arch", "amd64"),
			"#notes\narch: amd64\nhostname: a\n"},
		{"a comment stays above its property", "arch: amd64\n# the net\nnet0: name=eth0\n", set("memory", "512"),
			"arch: amd64\nmemory: 512\n# the net\nnet0: name=eth0\n"},
		{"unsorted by hand: before the first greater key", "memory: 512\narch: amd64\nhostname: a\n", set("cores", "2"),
			"cores: 2\nmemory: 512\narch: amd64\nhostname: a\n"},
		{"raw lines among properties: never after a raw line", "arch: amd64\nlxc.arch: x\nhostname: a\n", set("memory", "512"),
			"arch: amd64\nmemory: 512\nlxc.arch: x\nhostname: a\n"},
		{"only raw lines", "lxc.arch: x\n", set("arch", "amd64"), "arch: amd64\nlxc.arch: x\n"},
		{"same value: nothing changes", "memory:512   \r\n", set("memory", "512"), "memory:512   \r\n"},
		{"same value in another spelling: nothing changes", "onboot: YES\n", set("onboot", "1"), "onboot: YES\n"},
		{"value is written as Proxmox normalises it", "", set("onboot", "yes"), "onboot: 1\n"},
		{"replaced where it stands", "swap: 0\nmemory: 256\narch: amd64\n", set("memory", "512"),
			"swap: 0\nmemory: 512\narch: amd64\n"},
		{"of several the one in force is replaced", "memory: 1\narch: amd64\nmemory: 2\n", set("memory", "512"),
			"arch: amd64\nmemory: 512\n"},
		{"sections untouched by set", withSections, set("swap", "128"),
			strings.Replace(withSections, "memory: 512\n", "memory: 512\nswap: 128\n", 1)},
		{"sections untouched by unset", withSections, unset("swap"), withSections},
		{"unset removes every line of the key", "memory: 1\narch: amd64\nmemory: 2\n", unset("memory"), "arch: amd64\n"},
		{"unset the last line without a line feed", "arch: amd64\nmemory: 2", unset("memory"), "arch: amd64"},

		{"raw line before the first section", withSections, appendRaw("lxc.mount.entry", "/new n none bind"),
			strings.Replace(withSections, "none bind\n", "none bind\nlxc.mount.entry: /new n none bind\n", 1)},
		{"raw line in an empty file", "", appendRaw("lxc.arch", "x"), "lxc.arch: x\n"},
		{"raw line where a section is first", "[snap]\narch: amd64\n", appendRaw("lxc.arch", "x"),
			"lxc.arch: x\n[snap]\narch: amd64\n"},
		{"raw line where a blank line and a section are first", "\n[snap]\narch: amd64\n", appendRaw("lxc.arch", "x"),
			"lxc.arch: x\n\n[snap]\narch: amd64\n"},
		{"raw line below comments only", "#a\n#b\n\n", appendRaw("lxc.arch", "x"), "#a\n#b\nlxc.arch: x\n\n"},
		{"raw line below comments only, no final line feed", "#a", appendRaw("lxc.arch", "x"), "#a\nlxc.arch: x"},
		{"no final line feed", "arch: amd64", appendRaw("lxc.arch", "x"), "arch: amd64\nlxc.arch: x"},
		{"CRLF of others is kept", "arch: amd64\r\nswap: 0\r\n", set("memory", "512"),
			"arch: amd64\r\nmemory: 512\nswap: 0\r\n"},
		{"what only looks like a header belongs above", "arch: amd64\n[a]\n [sn]\n[x] y\nmemory: 512\n[ab]\nswap: 0\n",
			appendRaw("lxc.arch", "x"), "arch: amd64\n[a]\n [sn]\n[x] y\nmemory: 512\nlxc.arch: x\n[ab]\nswap: 0\n"},
		{"properties below raw lines", "lxc.arch: x\narch: amd64\n", appendRaw("lxc.tty.max", "1"),
			"lxc.arch: x\narch: amd64\nlxc.tty.max: 1\n"},
		{"runtime environment before other raw lines, the comment stays above its own", "arch: amd64\n#gpu\nlxc.arch: x\n", appendRaw("lxc.environment.runtime", "A=1"),
			"arch: amd64\nlxc.environment.runtime: A=1\n#gpu\nlxc.arch: x\n"},
		{"runtime environment after the lines of its own", "lxc.environment.runtime: A=1\nlxc.environment.runtime = B=2\nlxc.arch: x\n", appendRaw("lxc.environment.runtime", "C=3"),
			"lxc.environment.runtime: A=1\nlxc.environment.runtime = B=2\nlxc.environment.runtime: C=3\nlxc.arch: x\n"},
		{"runtime environment after the property that would replace it", "lxc.arch: x\nenv: A=1\nmemory: 1\n", appendRaw("lxc.environment.runtime", "B=2"),
			"lxc.arch: x\nenv: A=1\nlxc.environment.runtime: B=2\nmemory: 1\n"},
		{"runtime environment above raw lines only", "#notes\nlxc.arch: x\n", appendRaw("lxc.environment.runtime", "B=2"),
			"#notes\nlxc.environment.runtime: B=2\nlxc.arch: x\n"},
		{"runtime environment in an empty main section", "\n[sn]\nlxc.environment.runtime: A=1\n", appendRaw("lxc.environment.runtime", "B=2"),
			"lxc.environment.runtime: B=2\n\n[sn]\nlxc.environment.runtime: A=1\n"},
		{"property below a description only, no final line feed", "#a\n#b", set("memory", "1"), "#a\n#b\nmemory: 1"},
		{"property where a section is first", "[sn]\nmemory: 2\n", set("memory", "1"), "memory: 1\n[sn]\nmemory: 2\n"},
		{"property between raw lines and a section at once after", "lxc.arch: x\n[sn]\nmemory: 2", set("memory", "1"), "memory: 1\nlxc.arch: x\n[sn]\nmemory: 2"},
		{"raw line with CRLF above gets no CR", "arch: amd64\r\nlxc.arch: x\r\n\r\n[sn]\r\n", appendRaw("lxc.tty.max", "1"),
			"arch: amd64\r\nlxc.arch: x\r\nlxc.tty.max: 1\n\r\n[sn]\r\n"},
		{"empty raw value as Proxmox writes it", "", appendRaw("lxc.cap.drop", ""), "lxc.cap.drop: \n"},
		{"insert before a raw line", "arch: amd64\nlxc.arch: x\nlxc.tty.max: 1\n",
			func(f *pveconf.File) error { return f.InsertRaw(3, "lxc.cap.drop", "sys_time") },
			"arch: amd64\nlxc.arch: x\nlxc.cap.drop: sys_time\nlxc.tty.max: 1\n"},
		{"remove raw lines in either form, in the main section only", "lxc.arch = x\nlxc.tty.max: 1\nlxc.arch:x\n[snap]\nlxc.arch: x\n",
			func(f *pveconf.File) error {
				f.RemoveRaw(func(e pveconf.Entry) bool { return e.Key == "lxc.arch" && e.Value == "x" })
				return nil
			}, "lxc.tty.max: 1\n[snap]\nlxc.arch: x\n"},
		{"remove properties, overridden ones too", "dev0: /dev/a\ndev0: /dev/b\ndev1: /dev/a\n[snap]\ndev0: /dev/a\n",
			func(f *pveconf.File) error {
				f.RemoveProperties(func(e pveconf.Entry) bool { return e.Value == "/dev/a" })
				return nil
			}, "dev0: /dev/b\n[snap]\ndev0: /dev/a\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := pveconf.Parse([]byte(tt.conf))
			if err := tt.edit(f); err != nil {
				t.Fatalf("edit of %q: %v", tt.conf, err)
			}
			if diff := cmp.Diff(tt.want, string(f.Bytes())); diff != "" {
				t.Errorf("edit of %q (-want +got):\n%s", tt.conf, diff)
			}
		})
	}
}

func TestEditRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*pveconf.File) error
	}{
		{"line feed in a value", set("hostname", "a\nlxc.hook.pre-start: /x")},
		{"carriage return in a value", set("lock", "a\rlxc.hook.pre-start = /x")},
		{"carriage return in a raw value", appendRaw("lxc.environment", "LANG=C\rlxc.hook.pre-start = /x")},
		{"NUL in a raw value", appendRaw("lxc.environment", "A=\x00")},
		{"escape in a value", set("lock", "\x1b[2J")},
		{"not UTF-8", set("lock", "\xff")},
		{"leading blank", set("lock", " a")},
		{"trailing blank", appendRaw("lxc.environment", "A=b ")},
		{"too long", set("lock", strings.Repeat("x", 4097))},
		{"empty value of a property", set("lock", "")},
		{"value that Proxmox takes for another key", set("hostname", "snapstate: delete")},
		{"boolean", set("onboot", "maybe")},
		{"integer", set("memory", "12k")},
		{"number", set("cpulimit", "1.")},
		{"hostname", set("hostname", "a_b")},
		{"device entry", set("dev0", "/etc/passwd")},
		{"unknown property", set("foo_bar12", "x")},
		{"number beyond the range", set("dev256", "/dev/null")},
		{"number with a leading zero", set("dev00", "/dev/null")},
		{"reserved: description", set("description", "x")},
		{"reserved: digest", set("digest", "x")},
		{"reserved: pending", set("pending", "x")},
		{"reserved: snapshots", set("snapshots", "x")},
		{"reserved: lxc", set("lxc", "x")},
		{"reserved: env", set("env", "x")},
		{"reserved: snapstate", set("snapstate", "x")},
		{"reserved: delete", set("delete", "x")},
		{"key with a line feed", set("memory: 1\nlock", "x")},
		{"raw key with a line feed", appendRaw("lxc.arch: x\nlxc.environment", "x")},
		{"raw key that Proxmox drops", appendRaw("lxc.tty.dir", "x")},
		{"raw key that Proxmox refuses", appendRaw("lxc.rootfs.path", "x")},
		{"empty runtime environment", appendRaw("lxc.environment.runtime", "")},
		{"device entry without a path", set("dev0", "mode=0666")},
		{"mount point without a path in the container", set("mp0", "/srv")},
		{"network with an unknown key", set("net0", "name=eth0,foo=1")},
		{"upper case raw key", appendRaw("lxc.Arch", "x")},
		{"no raw key", appendRaw("memory", "512")},
		{"raw key as property", set("lxc.arch", "x")},
		{"insert below the main section", func(f *pveconf.File) error { return f.InsertRaw(3, "lxc.arch", "x") }},
		{"insert before a property", func(f *pveconf.File) error { return f.InsertRaw(1, "lxc.arch", "x") }},
		{"insert at line 0", func(f *pveconf.File) error { return f.InsertRaw(0, "lxc.arch", "x") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const conf = "arch: amd64\n[snap]\nlxc.arch: x\n"
			f := pveconf.Parse([]byte(conf))
			if err := tt.edit(f); err == nil {
				t.Errorf("the edit was not refused; it made %q", f.Bytes())
			}
			if got := string(f.Bytes()); got != conf {
				t.Errorf("a refused edit changed the conf to %q", got)
			}
		})
	}
}
