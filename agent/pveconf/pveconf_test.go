package pveconf_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/pveconf"
)

// fuzzerLikes is chapter 12.8 of the reference: its outcome is known from Proxmox itself.
const fuzzerLikes = `Arch: amd64
arch: amd64
  cores: 2
memory: abc
foo_bar12: kept
foo-bar: gone
hostname: a
hostname: b
onboot: YES
lxc.tty.dir: gone
lxc.id_map: u 0 100000 65536
lxc.cgroup2.devices.allow:
[x]
swap: 256
[special:any]
tty: 1
[ok]
#in snapshot
memory: 16
`

func TestRead(t *testing.T) {
	f := pveconf.Parse([]byte(fuzzerLikes))
	wantProperties := []pveconf.Entry{
		{Key: "arch", Value: "amd64", Line: 2},
		{Key: "memory", Value: "abc", Line: 4},
		{Key: "foo_bar12", Value: "kept", Line: 5},
		{Key: "hostname", Value: "b", Line: 8},
		{Key: "onboot", Value: "1", Line: 9},
		{Key: "swap", Value: "256", Line: 14},
		{Key: "tty", Value: "1", Line: 16},
	}
	if diff := cmp.Diff(wantProperties, f.Properties()); diff != "" {
		t.Errorf("Properties (-want +got):\n%s", diff)
	}
	wantRaw := []pveconf.Entry{
		{Key: "lxc.id_map", Value: "u 0 100000 65536", Line: 11},
		{Key: "lxc.cgroup2.devices.allow", Value: "", Line: 12},
	}
	if diff := cmp.Diff(wantRaw, f.Raw()); diff != "" {
		t.Errorf("Raw (-want +got):\n%s", diff)
	}
	wantSnapshots := []pveconf.Section{{
		Name: "ok", Line: 17, Description: "in snapshot\n",
		Properties: []pveconf.Entry{{Key: "memory", Value: "16", Line: 19}},
	}}
	if diff := cmp.Diff(wantSnapshots, f.Snapshots()); diff != "" {
		t.Errorf("Snapshots (-want +got):\n%s", diff)
	}
	type warning struct {
		Line int
		Kind pveconf.WarningKind
	}
	wantWarnings := []warning{
		{1, pveconf.WarningInvalid}, // upper case
		{3, pveconf.WarningInvalid}, // indented
		{4, pveconf.WarningValue},   // no integer
		{5, pveconf.WarningValue},   // unknown property
		{6, pveconf.WarningInvalid}, // "-" in the key
		{7, pveconf.WarningLost},    // line 8 overrides it
		{10, pveconf.WarningInvalid},
		{11, pveconf.WarningValue}, // LXC 2
		{13, pveconf.WarningInvalid},
		{14, pveconf.WarningMisplaced}, // in the main section, not in [x]
		{15, pveconf.WarningInvalid},
		{16, pveconf.WarningMisplaced},
	}
	var warnings []warning
	for _, w := range f.Warnings() {
		warnings = append(warnings, warning{w.Line, w.Kind})
	}
	if diff := cmp.Diff(wantWarnings, warnings); diff != "" {
		t.Errorf("Warnings (-want +got):\n%s", diff)
	}
	const wantCanonical = `arch: amd64
foo_bar12: kept
hostname: b
memory: abc
onboot: 1
swap: 256
tty: 1
lxc.id_map: u 0 100000 65536
lxc.cgroup2.devices.allow: ` + `

[ok]
#in snapshot
memory: 16
`
	canonical, err := f.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantCanonical, string(canonical)); diff != "" {
		t.Errorf("Canonical (-want +got):\n%s", diff)
	}
}

func TestLine(t *testing.T) {
	const lxc, property = "lxc", "property"
	for _, tt := range []struct {
		name string
		line string
		kind string // empty: neither
		want pveconf.Entry
	}{
		{"raw with a colon", "lxc.mount.entry: a b", lxc, pveconf.Entry{Key: "lxc.mount.entry", Value: "a b", Line: 1}},
		{"raw with an equals sign", "lxc.mount.entry=a", lxc, pveconf.Entry{Key: "lxc.mount.entry", Value: "a", Line: 1}},
		{"raw with blanks around the equals sign", "lxc.mount.entry \t= a", lxc, pveconf.Entry{Key: "lxc.mount.entry", Value: "a", Line: 1}},
		{"raw with a blank before the colon", "lxc.mount.entry : a", "", pveconf.Entry{}},
		{"only the first separator counts", "lxc.mount.entry: a=b: #c", lxc, pveconf.Entry{Key: "lxc.mount.entry", Value: "a=b: #c", Line: 1}},
		{"raw with vertical tab and form feed", "lxc.arch:\v\fx\f\v", lxc, pveconf.Entry{Key: "lxc.arch", Value: "x", Line: 1}},
		{"no-break space is no white space", "lxc.arch: \u00a0x", lxc, pveconf.Entry{Key: "lxc.arch", Value: "\u00a0x", Line: 1}},
		{"no comment at the end of a line", "memory: 512 # half", property, pveconf.Entry{Key: "memory", Value: "512 # half", Line: 1}},
		{"property without a blank", "memory:512", property, pveconf.Entry{Key: "memory", Value: "512", Line: 1}},
		{"property with an equals sign", "memory = 512", "", pveconf.Entry{}},
		{"property without a value", "memory:", "", pveconf.Entry{}},
		{"property of one blank", "hostname: ", property, pveconf.Entry{Key: "hostname", Value: " ", Line: 1}},
		{"property with CRLF", "memory: 512\r", property, pveconf.Entry{Key: "memory", Value: "512", Line: 1}},
		{"carriage return within a value", "tags: a\rb", property, pveconf.Entry{Key: "tags", Value: "a\rb", Line: 1}},
		{"comment", "#memory: 512", "", pveconf.Entry{}},
		{"indented", " memory: 512", "", pveconf.Entry{}},
		{"digits within the key", "a1b: x", "", pveconf.Entry{}},
		{"delete outside of pending", "delete: x", "", pveconf.Entry{}},
		{"snapstate in any value", "hostname: snapstate: delete", "", pveconf.Entry{}},
		{"leading zeros", "memory: 007", property, pveconf.Entry{Key: "memory", Value: "7", Line: 1}},
		{"64 bits", "memory: 18446744073709551615", property, pveconf.Entry{Key: "memory", Value: "18446744073709551615", Line: 1}},
		{"more than 64 bits", "memory: 18446744073709551616", property, pveconf.Entry{Key: "memory", Value: "1.84467440737096e+19", Line: 1}},
		{"byte order mark", "\ufeffarch: amd64", "", pveconf.Entry{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := pveconf.Parse([]byte(tt.line + "\n"))
			var wantProperties, wantRaw []pveconf.Entry
			switch tt.kind {
			case property:
				wantProperties = []pveconf.Entry{tt.want}
			case lxc:
				wantRaw = []pveconf.Entry{tt.want}
			}
			if diff := cmp.Diff(wantProperties, f.Properties()); diff != "" {
				t.Errorf("Properties of %q (-want +got):\n%s", tt.line, diff)
			}
			if diff := cmp.Diff(wantRaw, f.Raw()); diff != "" {
				t.Errorf("Raw of %q (-want +got):\n%s", tt.line, diff)
			}
		})
	}
}

// A person who looks at a line that Proxmox cannot read is told what to look for.
func TestInvalidLine(t *testing.T) {
	for line, cause := range map[string]string{
		"nonsense":            "",
		"foo-bar: x":          "",
		": x":                 "",
		" [sn]":               ", for the blank it begins with,",
		"\tmemory: 512":       ", for the blank it begins with,",
		"\ufeffarch: amd64":   ", for the byte order mark it begins with,",
		"lxc.arch : amd64":    ", for the blank before the colon,",
		"memory  : 512":       ", for the blank before the colon,",
		"Memory: 512":         ", for the capital letters in its key,",
		"lxc.Mount.entry: /x": ", for the capital letters in its key,",
		"memory = 512":        `, for the "=" in the place of a colon,`,
		"memories = 512":      "",
	} {
		got := pveconf.Parse([]byte("arch: amd64\n" + line + "\n")).Warnings()
		want := "Proxmox cannot read this line" + cause + " and drops it when it next writes the conf"
		if len(got) == 0 || got[0].Text != want || got[0].Line != 2 {
			t.Errorf("%q: warnings %+v, want %q", line, got, want)
		}
	}
}

func TestWarnings(t *testing.T) {
	type warning struct {
		Line int
		Kind pveconf.WarningKind
	}
	for _, tt := range []struct {
		name, conf string
		want       []warning
	}{
		{"nothing", "#note\narch: amd64\nlxc.arch: x\n\n[pve:pending]\nmemory: 1\n\n[sn]\nmemory: 2\nlxc.arch: x\n", nil},
		{"CR and NUL within, where LXC sees them", "tags: a\r\nlxc.environment: LANG=C\rlxc.hook.pre-start = /x\nhostname: a\n[sn]\ntty: 1\x002\n#a\rb\n",
			[]warning{{2, pveconf.WarningHidden}, {5, pveconf.WarningValue}, {5, pveconf.WarningHidden}}},
		{"byte order mark", "\ufeffarch: amd64\narch: amd64\n", []warning{{1, pveconf.WarningInvalid}}},
		{"properties twice, in each section by itself", "memory: 1\nswap: 1\nmemory: 2\nmemory: 3\n[sn]\nmemory: 4\nswap: 1\nswap: 2\n",
			[]warning{{1, pveconf.WarningLost}, {3, pveconf.WarningLost}, {7, pveconf.WarningLost}}},
		{"env sets the environment anew", "lxc.environment.runtime: A=1\nenv: B=2\nenv: C=3\nlxc.environment.runtime: D=4\n",
			[]warning{{1, pveconf.WarningLost}, {2, pveconf.WarningLost}}},
		{"sections twice", "[sn]\ntty: 1\ntty: 2\n[sn]\n\n[pve:pending]\n\n[PVE:pending]\n[sn]\ntty: 3\n", []warning{{1, pveconf.WarningLost}}},
		{"a snapshot in another case is another", "[sn]\ntty: 1\n[SN]\ntty: 2\n", nil},
		{"what looks like a header", "arch: amd64\n[a]\n\n#c\ntty: 1\n[sn]\nswap: 1\n[x] y\nlxc.arch: x\n [zz]\n",
			[]warning{{2, pveconf.WarningInvalid}, {4, pveconf.WarningMisplaced}, {8, pveconf.WarningInvalid}, {9, pveconf.WarningMisplaced}, {10, pveconf.WarningInvalid}}},
		{"header behind a byte order mark", "\ufeff[sn]\ntty: 1\n", []warning{{1, pveconf.WarningInvalid}, {2, pveconf.WarningMisplaced}}},
		{"raw lines pending", "lxc.arch: x\n[pve:pending]\nlxc.environment.runtime: A=1\nlxc.tty.max: 1\nlxc.tty.max: 2\n", []warning{{4, pveconf.WarningLost}}},
		{"bytes in comments", "#\xff\n#%FF\n#ä%C3%A4\ndescription: \xff\n#%ED%A0%80\n",
			[]warning{{1, pveconf.WarningLost}, {2, pveconf.WarningLost}, {4, pveconf.WarningLost}}},
		{"taken for a state", "tags: snapstate: delete\nsnapstate: prepare\nsnapstate: x\n[sn]\nsnapstate: delete\nhostname: snapstate: prepare\n",
			[]warning{{1, pveconf.WarningLost}, {2, pveconf.WarningLost}, {3, pveconf.WarningInvalid}, {5, pveconf.WarningLost}, {6, pveconf.WarningLost}}},
		{"device without a path", "dev0: mode=0666\n", []warning{{1, pveconf.WarningStart}}},
		{"a conf that Proxmox cannot read", "lxc: x\nlxc.arch: y\n", []warning{{1, pveconf.WarningValue}, {1, pveconf.WarningFatal}}},
		{"a conf that Proxmox cannot write", "arch: amd64\npending: x\n", []warning{{2, pveconf.WarningValue}, {2, pveconf.WarningFatal}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []warning
			for _, w := range pveconf.Parse([]byte(tt.conf)).Warnings() {
				got = append(got, warning{w.Line, w.Kind})
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Warnings of %q (-want +got):\n%s", tt.conf, diff)
			}
		})
	}
}

// TestFormats is about what Proxmox's schema takes and does not take.
func TestFormats(t *testing.T) {
	for _, line := range []string{
		"rootfs: local-lvm:vm-101-disk-0,size=8G", "rootfs: volume=local:101/a.raw,size=0.5T,mountoptions=discard;noatime,acl=1,ro=no,quota=0,replicate=1,shared=0",
		"rootfs: relative", "rootfs: a, ,size=8",
		"mp0: /srv/a b,mp=/x", "mp255: mp=x,volume=y,backup=On", "mp1: /srv/..x,mp=/.x",
		"net0: name=eth0", "net31: name=e-_.9,bridge=vmbr0,firewall=1,hwaddr=bc:24:11:Ab:CD:EF,ip=dhcp,ip6=auto,mtu=64,rate=12.5,tag=4094,trunks=1;20,type=veth,link_down=0,host-managed=1",
		"net0: name=eth0,ip=10.0.0.1/8,gw=10.0.0.2,ip6=fd00::1/128,gw6=fe80::1", "net0: name=eth0,ip=manual,ip6=dhcp",
		"features: nesting=1,mount=nfs;cifs,keyctl=0,fuse=yes,mknod=1,force_rw_sys=1", "features: ,",
		"unused0: local-lvm:vm-101-disk-9", "hookscript: local:snippets/h.pl",
		"startup: 5", "startup: order=5,up=3,down=4", "startup: up=1", "startup: ,",
		"hostname: a.b-c.0d", "searchdomain: home.arpa,example.org x", "searchdomain: ;",
		"nameserver: 1.1.1.1 2606:4700::1111;fe80::1%eth0", "parent: s1", "parent: a_-9",
		"tags: a;b,c d", "tags: _a+b.c", "timezone: Anywhere/Else", "arch: pdp11", "cmode: whatever", "lock: anything",
		"onboot: TRUE", "memory: 0", "cpulimit: 0.5", "dev0: /dev/a,uid=0,gid=44,mode=0666,deny-write=1",
	} {
		if w := pveconf.Parse([]byte(line)).Warnings(); w != nil {
			t.Errorf("%q: %+v, want no warning", line, w)
		}
	}
	for _, line := range []string{
		"rootfs: size=8G", "rootfs: a,size=8GB", "rootfs: a,size=.5G", "rootfs: a,mountoptions=suid", "rootfs: a,mountoptions=nodev;", "rootfs: a,mp=/", "rootfs: a,acl=2",
		"rootfs: a,b", "rootfs: /srv/../etc", "rootfs: ../etc", "rootfs: /srv/.", "rootfs: a,size=", "rootfs: a,=8G", "rootfs: a, size=8G", "rootfs: a,size=1,size=1",
		"mp0: /srv", "mp0: mp=/x", "mp256: a,mp=/x", "mp00: a,mp=/x", "mp: a,mp=/x", "mp0: a,mp=/x/..",
		"net0: bridge=vmbr0", "net0: eth0", "net0: name=eth 0", "net0: name=eth0,type=macvlan", "net0: name=eth0,tag=0", "net0: name=eth0,tag=4095", "net0: name=eth0,mtu=63",
		"net0: name=eth0,hwaddr=BD:24:11:AB:CD:EF", "net0: name=eth0,hwaddr=BC-24-11-AB-CD-EF", "net0: name=eth0,ip=10.0.0.1", "net0: name=eth0,ip=10.0.0.1/7", "net0: name=eth0,ip=10.0.0.01/24",
		"net0: name=eth0,ip=fd00::1/64", "net0: name=eth0,ip6=10.0.0.1/24", "net0: name=eth0,ip6=fe80::1%eth0/64", "net0: name=eth0,gw=10.0.0.1/24", "net0: name=eth0,gw6=fe80::1%eth0",
		"net0: name=eth0,trunks=1;", "net0: name=eth0,rate=fast", "net32: name=eth0",
		"features: nesting", "features: nesting=2", "features: docker=1", "features: mount=nfs:cifs",
		"unused0: vm-101-disk-9", "unused0: a:b", "hookscript: /usr/local/bin/h",
		"startup: 0", "startup: order=a", "startup: 1;2", "startup: boot=1", "startup: up",
		"hostname: a_b", "hostname: -a", "hostname: a-", "hostname: a..b", "searchdomain: a_b", "nameserver: dns.example.org", "nameserver: fe80::1%", "parent: a", "parent: 1a",
		"tags: -a", "tags: a:b", "onboot: 2", "memory: 1.0", "cpulimit: 1.", "cpulimit: .5", "dev0: /dev/a,uid=x",
	} {
		w := pveconf.Parse([]byte(line)).Warnings()
		if len(w) != 1 || w[0].Kind != pveconf.WarningValue {
			t.Errorf("%q: %+v, want a warning about its value", line, w)
		}
	}
}

// TestDescription has the outcomes of Perl 5.36's uri_unescape and decode("utf8", ...) for the same bytes.
func TestDescription(t *testing.T) {
	for _, tt := range []struct{ name, conf, want string }{
		{"none", "arch: amd64\n", ""},
		{"an empty comment", "#\n", "\n"},
		{"blanks belong to it", "#  a \n", "  a \n"},
		{"percent escapes, in either case", "#%c3%A4 100%25\n", "ä 100%\n"},
		{"no escapes", "#50% %4 %zz %\n", "50% %4 %zz %\n"},
		{"an escape makes no escape", "#%2541\n", "%41\n"},
		{"an escaped line feed", "#a%0Ab\n", "a\nb\n"},
		{"carriage return", "#a\r\n", "a\r\n"},
		{"a character of bytes and escapes", "#\xe2%82\xac\n", "€\n"},
		{"the key has no line feed", "description: a\n#b\ndescription: c\n", "ab\nc"},
		{"the key of blanks counts if there is no other", "description: \t\n", "\t"},
		{"the key of blanks does not count", "description: \n#a\n", "a\n"},
		{"0 is false for Perl", "description: 0\n", ""},
		{"00 is true", "description: 0\ndescription: 0\n", "00"},

		{"Latin-1", "#a\xe4b\n", "a\ufffdb\n"},
		{"stray continuation bytes", "#\x80\xbf\n", "\ufffd\ufffd\n"},
		{"cut short", "#\xe2\x82\n", "\ufffd\n"},
		{"cut short by another", "#\xe2\x82\xc3\xa4\n", "\ufffdä\n"},
		{"overlong", "#\xc0\x80\xe0\x80\xaf\xf0\x82\x82\xac\n", "\ufffd\ufffd\ufffd\n"},
		{"0xff and 0xfe", "#\xff\xfe\n", "\ufffd\ufffd\n"},
		{"a surrogate stays", "#%ED%A0%80\n", "\xed\xa0\x80\n"},
		{"beyond Unicode stays", "#%F4%90%80%80\xf8\x88\x80\x80\x80\n", "\xf4\x90\x80\x80\xf8\x88\x80\x80\x80\n"},
		{"Perl's own 36 and 63 bits stay", "#\xfe\x83\xbf\xbf\xbf\xbf\xbf\xff\x80\x80\x80\x80\x80\x81\x80\x80\x80\x80\x80\x80\n",
			"\xfe\x83\xbf\xbf\xbf\xbf\xbf\xff\x80\x80\x80\x80\x80\x81\x80\x80\x80\x80\x80\x80\n"},
		{"64 bits", "#\xff\x81\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\n", "\ufffd\n"},
		{"noncharacters stay", "#\ufffe\ufdd0\n", "\ufffe\ufdd0\n"},
		{"a character behind a stray byte is swallowed", "#\x80€a\n", "\ufffda\n"},
		{"not this one", "#\x80äa\n", "\ufffdäa\n"},
		{"this one with what follows", "#\x80ä\x80a\n", "\ufffda\n"},
		{"nor these", "#\x80\uffee\U0001f600\n", "\ufffd\uffee\U0001f600\n"},
		{"nor a noncharacter", "#\x80\uffff\n", "\ufffd\uffff\n"},
		{"half of a character behind a stray byte", "#\x80\xf5\x80\x80\n", "\ufffd\ufffd\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, pveconf.Parse([]byte(tt.conf)).Description()); diff != "" {
				t.Errorf("Description of %q (-want +got):\n%s", tt.conf, diff)
			}
		})
	}
}

// TestConfigJSON is about what no recording shows; the digest is overridden to be readable.
func TestConfigJSON(t *testing.T) {
	for _, tt := range []struct{ name, conf, want string }{
		{"numbers", "memory: 00012\nswap: 18446744073709551616\ncpulimit: 1.50\nonboot: YES\ntty: 1.0\n",
			`{"cpulimit":"1.50","digest":"x","memory":12,"onboot":1,"pending":{},"snapshots":{},"swap":1.84467440737096e+19,"tty":"1.0"}`},
		{"what looks like a number is text", "tags: 12\nfoo: 1\n", `{"digest":"x","foo":"1","pending":{},"snapshots":{},"tags":"12"}`},
		{"beyond all numbers", "memory: 1" + strings.Repeat("0", 400) + "\n", `{"digest":"x","memory":"Inf","pending":{},"snapshots":{}}`},
		{"environment with blanks and empty lines", "lxc.environment.runtime:  A=b  c \nlxc.environment.runtime:\nenv: X=1 \nlxc.environment.runtime = B=2\n",
			`{"digest":"x","env":"X=1\u0000B=2","pending":{},"snapshots":{}}`},
		{"raw lines, in a snapshot too", "lxc.cap.drop=\nlxc.idmap: u 0 1 2\n[sn]\nlxc.arch:x\n",
			`{"digest":"x","lxc":[["lxc.cap.drop",""],["lxc.idmap","u 0 1 2"]],"pending":{},"snapshots":{"sn":{"lxc":[["lxc.arch","x"]]}}}`},
		{"bytes", "tags: \xff\n#%ED%A0%80\n", `{"description":{"$bytes_hex":"eda0800a"},"digest":"x","pending":{},"snapshots":{},"tags":{"$bytes_hex":"ff"}}`},
		{"no HTML escapes", "tags: <&>\n", `{"digest":"x","pending":{},"snapshots":{},"tags":"<&>"}`},
		{"sections twice: the second counts", "[sn]\ntty: 1\n[pve:pending]\nswap: 1\n[sn]\n[pve:pending]\ndelete: a , b\n",
			`{"digest":"x","pending":{"delete":"a , b"},"snapshots":{"sn":{}}}`},
		{"a snapshot named pending may delete", "[pending]\ndelete: tty\n[other]\ndelete: tty\n",
			`{"digest":"x","pending":{},"snapshots":{"other":{},"pending":{"delete":"tty"}}}`},
		{"names that Proxmox uses itself", "pending: a\nsnapshots: b\nlxc.arch: x\nlxc: c\nsnapname: d\n",
			`{"digest":"x","lxc":"c","pending":"a","snapname":"d","snapshots":"b"}`},
		{"pending section over property", "pending: a\n[PVE:PENDING]\npending: b\nlxc: c\n", `{"digest":"x","pending":{"lxc":"c","pending":"b"},"snapshots":{}}`},
		{"a state within a value", "[sn]\nhostname: snapstate: prepare\nsnapstate:delete \nxsnapstate:  other\n",
			`{"digest":"x","pending":{},"snapshots":{"sn":{"snapstate":"delete","xsnapstate":"other"}}}`},
		{"a description wins over a state", "description: snapstate: delete\n", `{"description":"snapstate: delete","digest":"x","pending":{},"snapshots":{}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conf := "digest: x\n" + tt.conf
			got, err := pveconf.Parse([]byte(conf)).ConfigJSON()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("ConfigJSON of %q (-want +got):\n%s", conf, diff)
			}
		})
	}
}

func TestSectionTwice(t *testing.T) {
	f := pveconf.Parse([]byte("arch: amd64\n[pve:pending]\nmemory: 1\n[sn]\ntty: 1\n[PVE:Pending]\nswap: 2\ndelete: tty\n[sn]\ncores: 3\n"))
	wantPending := pveconf.Section{Name: "pve:pending", Line: 6, Properties: []pveconf.Entry{
		{Key: "swap", Value: "2", Line: 7}, {Key: "delete", Value: "tty", Line: 8},
	}}
	if diff := cmp.Diff(wantPending, f.Pending()); diff != "" {
		t.Errorf("Pending (-want +got):\n%s", diff)
	}
	wantSnapshots := []pveconf.Section{{Name: "sn", Line: 9, Properties: []pveconf.Entry{{Key: "cores", Value: "3", Line: 10}}}}
	if diff := cmp.Diff(wantSnapshots, f.Snapshots()); diff != "" {
		t.Errorf("Snapshots (-want +got):\n%s", diff)
	}
	if got := pveconf.Parse(nil).Pending(); got.Line != 0 || got.Name != "pve:pending" {
		t.Errorf("Pending of an empty conf = %+v", got)
	}
}

func TestDigest(t *testing.T) {
	if got, want := pveconf.Parse(nil).Digest(), "da39a3ee5e6b4b0d3255bfef95601890afd80709"; got != want {
		t.Errorf("Digest of an empty conf = %s, want %s", got, want)
	}
}

func TestApplyPending(t *testing.T) {
	for _, tt := range []struct {
		name, conf, want string
	}{
		{"12.4 of the reference",
			"arch: amd64\nhostname: old-name\nnameserver: 10.20.0.1\nunprivileged: 1\n\n[pve:pending]\ndelete: nameserver\ndev0: /dev/nvidia0,mode=0666\nfeatures: nesting=1\n",
			"arch: amd64\ndev0: /dev/nvidia0,mode=0666\nfeatures: nesting=1\nhostname: old-name\nunprivileged: 1\n"},
		{"12.5 of the reference: raw lines replace all raw lines",
			"arch: amd64\nlxc.apparmor.profile: unconfined\nlxc.cgroup2.devices.allow: c 195:0 rwm\n\n[pve:pending]\nmemory: 2048\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind\n",
			"arch: amd64\nmemory: 2048\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind\n"},
		{"every form of delete", "arch: amd64\ncores: 1\nswap: 0\ntags: a\ntty: 1\n[pve:pending]\ndelete: cores,!swap ; tags\ttty\n", "arch: amd64\n"},
		{"snapshots stay, and the rest is written canonically", "tty = 1\nonboot: yes\n#c\n[pve:pending]\nswap: 0\n[sn]\ntty: 01\n",
			"#c\nonboot: 1\nswap: 0\n\n[sn]\ntty: 1\n"},
		{"nothing pending", "swap: 0\narch: amd64\n", "arch: amd64\nswap: 0\n"},
		{"an empty conf", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := pveconf.Parse([]byte(tt.conf))
			if err := f.ApplyPending(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(f.Bytes())); diff != "" {
				t.Errorf("ApplyPending of %q (-want +got):\n%s", tt.conf, diff)
			}
		})
	}
}

func TestSplit(t *testing.T) {
	for _, tt := range []struct{ name, conf, main, sections string }{
		{"empty", "", "", ""},
		{"no section", "arch: amd64\n\n", "arch: amd64\n\n", ""},
		{"no final line feed", "arch: amd64", "arch: amd64", ""},
		{"a blank line above the header is of the main section", "arch: amd64\n\n[sn]\ntty: 1\n", "arch: amd64\n\n", "[sn]\ntty: 1\n"},
		{"pending in capitals, with blanks behind", "tty: 1\n[PVE:Pending] \t\v\f\r\ntty: 2\n[sn]\n", "tty: 1\n", "[PVE:Pending] \t\v\f\r\ntty: 2\n[sn]\n"},
		{"a header is first", "[sn]\ntty: 1", "", "[sn]\ntty: 1"},
		{"a header is last, without a line feed", "tty: 1\n[sn]", "tty: 1\n", "[sn]"},
		{"no headers", "[a]\n[x] y\n [zz]\n[pve:other]\n#[sn]\n[2n]\n[sn\u00a0]\n", "[a]\n[x] y\n [zz]\n[pve:other]\n#[sn]\n[2n]\n[sn\u00a0]\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			main, sections := pveconf.Split([]byte(tt.conf))
			if string(main) != tt.main || string(sections) != tt.sections {
				t.Errorf("Split(%q) = %q, %q; want %q, %q", tt.conf, main, sections, tt.main, tt.sections)
			}
		})
	}
}

func TestWhereProxmoxDies(t *testing.T) {
	for _, tt := range []struct {
		conf string
		want pveconf.FatalError
	}{
		{"tty: 1\nlxc: yes\n", pveconf.FatalError{Line: 2, Writing: true, Reason: `Can't use string ("yes") as an ARRAY ref while "strict refs" in use`}},
		{"lxc: 0\nlxc.arch: x\n", pveconf.FatalError{Line: 1, Reason: `Can't use string ("0") as an ARRAY ref while "strict refs" in use`}},
		{"pending: 0\n", pveconf.FatalError{Line: 1, Writing: true, Reason: `Can't use string ("0") as a HASH ref while "strict refs" in use`}},
		{"snapshots: x\n", pveconf.FatalError{Line: 1, Writing: true, Reason: `Can't use string ("x") as a HASH ref while "strict refs" in use`}},
		{"snapshots: x\n[pve:pending]\n[sn]\n", pveconf.FatalError{Line: 1, Reason: `Can't use string ("x") as a HASH ref while "strict refs" in use`}},
		{"[sn]\n\nlxc: x\n", pveconf.FatalError{Line: 3, Writing: true, Reason: `Can't use string ("x") as an ARRAY ref while "strict refs" in use`}},
		{"pending: 12345678901234567890123456789012\n", pveconf.FatalError{Line: 1, Writing: true, Reason: `Can't use string ("12345678901234567890123456789012") as a HASH ref while "strict refs" in use`}},
		{"pending: 123456789012345678901234567890123\n", pveconf.FatalError{Line: 1, Writing: true, Reason: `Can't use string ("12345678901234567890123456789012"...) as a HASH ref while "strict refs" in use`}},
	} {
		f := pveconf.Parse([]byte(tt.conf))
		check := func(from string, err error) {
			t.Helper()
			if got, ok := errors.AsType[*pveconf.FatalError](err); !ok || *got != tt.want {
				t.Errorf("%s of %q: %v, want %v", from, tt.conf, err, &tt.want)
			}
		}
		_, err := f.Canonical()
		check("Canonical", err)
		check("ApplyPending", f.ApplyPending())
		if got := string(f.Bytes()); got != tt.conf {
			t.Errorf("ApplyPending of %q made %q of it", tt.conf, got)
		}
		if b, err := f.ConfigJSON(); !tt.want.Writing {
			check("ConfigJSON", err)
		} else if err != nil {
			t.Errorf("ConfigJSON of %q = %s, %v; Proxmox reads it", tt.conf, b, err)
		}
	}
}

func TestParseDevice(t *testing.T) {
	for value, want := range map[string]pveconf.Device{
		"/dev/nvidia0":           {Path: "/dev/nvidia0"},
		"/dev/nvidia0,mode=0666": {Path: "/dev/nvidia0", Mode: "0666"},
		"path=/dev/nvidiactl,gid=44,uid=0,deny-write=1": {Path: "/dev/nvidiactl", GID: "44", UID: "0", DenyWrite: true},
		"mode=0660,,path=/dev/a b,deny-write=off":       {Path: "/dev/a b", Mode: "0660"},
		"/dev/a..b": {Path: "/dev/a..b"},
		"/dev/nvidia-caps/nvidia-cap1,deny-write=YES,uid=01": {Path: "/dev/nvidia-caps/nvidia-cap1", DenyWrite: true, UID: "01"},
	} {
		got, err := pveconf.ParseDevice(value)
		if err != nil {
			t.Errorf("ParseDevice(%q): %v", value, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ParseDevice(%q) (-want +got):\n%s", value, diff)
		}
	}
	for _, value := range []string{
		"", "mode=0666", "/etc/passwd", "/dev/../etc/shadow", "/dev/./a", "/dev/a/..", "dev/a",
		"/dev/a,mode=666", "/dev/a,mode=0o666", "/dev/a,mode=01777", "/dev/a,uid=0x10", "/dev/a,gid=-1", "/dev/a,gid=video",
		"/dev/a, mode=0666", "/dev/a,foo=1", "/dev/a,mode=0666,mode=0666", "/dev/a,/dev/b", "/dev/a,deny-write=2",
	} {
		if d, err := pveconf.ParseDevice(value); err == nil {
			t.Errorf("ParseDevice(%q) = %+v, want an error", value, d)
		}
	}
}
