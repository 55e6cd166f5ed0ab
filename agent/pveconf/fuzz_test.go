package pveconf_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/pveconf"
)

func addSeeds(f *testing.F, add func(conf []byte)) {
	f.Helper()
	paths, err := filepath.Glob("testdata/pve/*.conf")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds in testdata/pve: %v", err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		add(b)
	}
	for _, s := range []string{"", "\n", "a", "[sn]", "tty: 1", "#", "\r", "lxc.arch: x\x00\nlxc.arch: y"} {
		add([]byte(s))
	}
}

// FuzzParse holds the law that reading and writing a conf gives its bytes.
func FuzzParse(f *testing.F) {
	addSeeds(f, func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		conf := pveconf.Parse(b)
		if got := conf.Bytes(); !bytes.Equal(got, b) {
			t.Errorf("Parse(%q).Bytes() = %q", b, got)
		}
		lines := bytes.Count(b, []byte("\n")) + 1
		for _, w := range conf.Warnings() {
			if w.Line < 1 || w.Line > lines || w.Text == "" {
				t.Errorf("%q has the warning %+v", b, w)
			}
		}
	})
}

// FuzzCanonical holds the law that what Proxmox writes is what Proxmox writes again.
//
// One thing takes two rewrites to settle, in Proxmox as here: blanks at the ends of a part of the property env. They
// reach the line lxc.environment.runtime that the part becomes, and are lost when that is read.
func FuzzCanonical(f *testing.F) {
	addSeeds(f, func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		once, err := pveconf.Parse(b).Canonical()
		if err != nil {
			return // Proxmox dies on it
		}
		twice, err := pveconf.Parse(once).Canonical()
		if err != nil {
			t.Fatalf("Canonical of %q = %q, of which Canonical: %v", b, once, err)
		}
		if hasLooseEnvironment(once) {
			once = twice
			if twice, err = pveconf.Parse(once).Canonical(); err != nil {
				t.Fatalf("Canonical of %q, twice = %q, of which Canonical: %v", b, once, err)
			}
		}
		if diff := cmp.Diff(string(once), string(twice)); diff != "" {
			t.Errorf("Canonical of %q is no fixed point (-once +twice):\n%s", b, diff)
		}
	})
}

func hasLooseEnvironment(canonical []byte) bool {
	for line := range bytes.Lines(canonical) {
		value, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("lxc.environment.runtime: "))
		if ok && !bytes.Equal(value, bytes.Trim(value, " \t\v\f\r")) {
			return true
		}
	}
	return false
}

// FuzzEdit holds the laws of edits: LXC's own line splitting finds exactly the lines that were meant, and
// Proxmox reads what was set.
func FuzzEdit(f *testing.F) {
	addSeeds(f, func(b []byte) {
		f.Add(b, "memory", "512", "lxc.mount.entry", "/dev/nvidia0 dev/nvidia0 none bind,optional,create=file")
	})
	f.Add([]byte("tags: a\n[sn]"), "tags", "a\rlxc.hook.start: /x", "lxc.environment", "A=\x00")
	f.Fuzz(func(t *testing.T, b []byte, key, value, rawKey, rawValue string) {
		conf := pveconf.Parse(b)
		before := lxcLines(b)
		if err := conf.AppendRaw(rawKey, rawValue); err == nil {
			want := append(slices.Clone(before), rawKey+": "+rawValue)
			if diff := cmp.Diff(sorted(want), sorted(lxcLines(conf.Bytes()))); diff != "" {
				t.Errorf("AppendRaw(%q, %q) to %q (-want +got):\n%s", rawKey, rawValue, b, diff)
			}
			reread := pveconf.Parse(conf.Bytes())
			raw := reread.Raw()
			if n := len(raw); n == 0 || raw[n-1].Key != rawKey || raw[n-1].Value != rawValue {
				t.Errorf("after AppendRaw(%q, %q) to %q the raw lines are %v", rawKey, rawValue, b, raw)
			}
			sameSections(t, b, conf.Bytes())
			// Proxmox writes lxc.environment.runtime before the other raw lines.
			if rawKey != "lxc.environment.runtime" {
				staysCanonical(t, b, conf.Bytes())
			}
			conf.RemoveRaw(func(e pveconf.Entry) bool { return e.Line == raw[len(raw)-1].Line })
			if got := conf.Bytes(); !bytes.Equal(withFinalLF(got), withFinalLF(b)) {
				t.Errorf("AppendRaw and RemoveRaw turned %q into %q", b, got)
			}
		}

		conf = pveconf.Parse(b)
		_, had := conf.Property(key)
		if err := conf.Set(key, value); err == nil {
			got, ok := pveconf.Parse(conf.Bytes()).Property(key)
			if want, _ := conf.Property(key); !ok || got != want {
				t.Errorf("after Set(%q, %q) of %q it is %q, %v", key, value, b, got, ok)
			}
			after := lxcLines(conf.Bytes())
			if !had {
				want := append(slices.Clone(before), key+": "+got)
				if diff := cmp.Diff(sorted(want), sorted(after)); diff != "" {
					t.Errorf("Set(%q, %q) of %q (-want +got):\n%s", key, value, b, diff)
				}
			}
			sameSections(t, b, conf.Bytes())
			// Proxmox drops an unusedN whose volume is in use.
			if !strings.HasPrefix(key, "unused") && !strings.HasPrefix(key, "mp") && key != "rootfs" {
				staysCanonical(t, b, conf.Bytes())
			}
			if again := pveconf.Parse(conf.Bytes()); again.Set(key, value) != nil || !bytes.Equal(again.Bytes(), conf.Bytes()) {
				t.Errorf("Set(%q, %q) of %q twice changes it", key, value, b)
			}
			if conf.Unset(key); !had && !bytes.Equal(withFinalLF(conf.Bytes()), withFinalLF(b)) {
				t.Errorf("Set(%q, %q) and Unset turned %q into %q", key, value, b, conf.Bytes())
			}
		}
		conf.Unset(key)
		if _, ok := pveconf.Parse(conf.Bytes()).Property(key); ok {
			t.Errorf("after Unset(%q) of %q it is there still: %q", key, b, conf.Bytes())
		}
		sameSections(t, b, conf.Bytes())
	})
}

// lxcLines splits as LXC does: at CR and LF; NUL, where LXC stops, is made visible instead, so that lines
// below it count too. Empty lines mean nothing.
func lxcLines(b []byte) []string {
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\r' || r == '\n' })
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}

// sameSections checks that everything from the first header on is the same in both confs.
func sameSections(t *testing.T, before, after []byte) {
	t.Helper()
	tail := func(b []byte) string {
		first := 0
		f := pveconf.Parse(b)
		for _, s := range append(f.Snapshots(), f.Pending()) {
			if s.Line > 0 && (first == 0 || s.Line < first) {
				first = s.Line
			}
		}
		if first == 0 {
			return ""
		}
		return strings.Join(strings.SplitAfter(string(b), "\n")[first-1:], "")
	}
	if diff := cmp.Diff(tail(before), tail(after)); diff != "" {
		t.Errorf("an edit of %q changed the sections (-want +got):\n%s", before, diff)
	}
}

// staysCanonical checks that what was in Proxmox's own form still is.
func staysCanonical(t *testing.T, before, after []byte) {
	t.Helper()
	canonical := func(b []byte) bool {
		c, err := pveconf.Parse(b).Canonical()
		return err == nil && bytes.Equal(c, b)
	}
	if canonical(before) && !canonical(after) {
		t.Errorf("%q is in Proxmox's own form, but not after an edit: %q", before, after)
	}
}

func withFinalLF(b []byte) []byte {
	if len(b) == 0 || bytes.HasSuffix(b, []byte("\n")) {
		return b
	}
	return append(slices.Clone(b), '\n')
}
