package pveconf_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
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
		if len(b) < 16<<10 { // the fuzzer would spend its time on making larger ones small
			add(b)
		}
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

// FuzzCanonical holds the laws that what Proxmox writes is what Proxmox writes again, and that it means what was read.
//
// One thing takes two rewrites to settle, in Proxmox as here: blanks at the ends of a part of the property env. They
// reach the line lxc.environment.runtime that the part becomes, and are lost when that is read.
func FuzzCanonical(f *testing.F) {
	addSeeds(f, func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		conf := pveconf.Parse(b)
		once, err := conf.Canonical()
		if err != nil {
			return // Proxmox dies on it
		}
		rewritten := pveconf.Parse(once)
		twice, err := rewritten.Canonical()
		if err != nil {
			t.Fatalf("Canonical of %q = %q, of which Canonical: %v", b, once, err)
		}
		before, got := config(t, conf), config(t, rewritten)
		dropUsed(before, got)
		want := remaining(before)
		delete(got, "digest")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Canonical of %q means something else (-want +got):\n%s", b, diff)
		}
		for _, w := range rewritten.Warnings() {
			if w.Kind != pveconf.WarningValue && w.Kind != pveconf.WarningHidden && w.Kind != pveconf.WarningStart && !aboutPending(w) {
				t.Errorf("Canonical of %q = %q, with the warning %+v", b, once, w)
			}
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

func aboutPending(w pveconf.Warning) bool {
	return w.Kind == pveconf.WarningLost && strings.Contains(w.Text, "[pve:pending]")
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

// config is what ConfigJSON says, with strings that are not UTF-8 as such.
func config(t *testing.T, f *pveconf.File) map[string]any {
	t.Helper()
	b, err := f.ConfigJSON()
	if err != nil {
		t.Fatalf("ConfigJSON of %q, of which Canonical gives no error: %v", f.Bytes(), err)
	}
	return plain(t, decode[map[string]any](t, b)).(map[string]any)
}

// plain decodes "$bytes_hex".
func plain(t *testing.T, v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = plain(t, v[i])
		}
	case map[string]any:
		if s, ok := v["$bytes_hex"].(string); ok {
			b, err := hex.DecodeString(s)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		for key := range v {
			v[key] = plain(t, v[key])
		}
	}
	return v
}

// remaining is what is left of a config when Proxmox writes it and reads it again.
func remaining(config map[string]any) map[string]any {
	sections := []map[string]any{config, config["pending"].(map[string]any)}
	for _, s := range config["snapshots"].(map[string]any) {
		sections = append(sections, s.(map[string]any))
	}
	for i, s := range sections {
		// The names that Proxmox uses in memory for something else are not written.
		for _, key := range []string{"digest", "snapname"} {
			delete(s, key)
		}
		if i > 0 {
			delete(s, "pending")
			delete(s, "snapshots")
		}
		if _, ok := s["lxc"].(string); ok { // "0": the writer takes it for no raw lines, and dies of any other
			delete(s, "lxc")
		}
		// The description is split into lines, without empty ones at its end, and each ends in a line feed.
		if d, ok := s["description"].(string); ok {
			if d = strings.TrimRight(d, "\n"); d == "" {
				delete(s, "description")
			} else {
				s["description"] = d + "\n"
			}
		}
		// The environment is split at NUL, without empty parts at its end; blanks around a part are lost.
		if env, ok := s["env"].(string); ok {
			if env = strings.TrimRight(env, "\x00"); env == "" {
				delete(s, "env")
			} else {
				parts := strings.Split(env, "\x00")
				for i := range parts {
					parts[i] = strings.Trim(parts[i], " \t\v\f\r")
				}
				s["env"] = strings.Join(parts, "\x00")
			}
		}
		// A number beyond 64 bits is written as 1e+20, which is read as text.
		for key, v := range s {
			if n, ok := v.(json.Number); ok && strings.Trim(string(n), "0123456789") != "" {
				s[key] = string(n)
			}
		}
	}
	return config
}

// dropUsed removes from both configs each unusedN whose volume a mount point of before may have: the writer drops it if
// the value of that mount point is valid.
func dropUsed(before, after map[string]any) {
	used := map[string]bool{}
	for key, v := range before {
		if key == "rootfs" || mountKey.MatchString(key) {
			for _, item := range strings.Split(v.(string), ",") {
				used[strings.TrimPrefix(item, "volume=")] = true
			}
		}
	}
	for _, config := range []map[string]any{before, after} {
		maps.DeleteFunc(config, func(key string, v any) bool {
			text, ok := v.(string)
			return ok && strings.HasPrefix(key, "unused") && used[text]
		})
	}
}

var mountKey = regexp.MustCompile(`^mp[0-9]+$`)

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
		rawBefore := conf.Raw()
		if err := conf.AppendRaw(rawKey, rawValue); err == nil {
			want := append(slices.Clone(before), rawKey+": "+rawValue)
			if diff := cmp.Diff(sorted(want), sorted(lxcLines(conf.Bytes()))); diff != "" {
				t.Errorf("AppendRaw(%q, %q) to %q (-want +got):\n%s", rawKey, rawValue, b, diff)
			}
			raw := pveconf.Parse(conf.Bytes()).Raw()
			at := len(raw) - 1
			if rawKey == "lxc.environment.runtime" {
				at = slices.IndexFunc(raw, func(e pveconf.Entry) bool { return !slices.Contains(rawBefore, e) })
			}
			if len(raw) != len(rawBefore)+1 || raw[at].Key != rawKey || raw[at].Value != rawValue {
				t.Fatalf("after AppendRaw(%q, %q) to %q the raw lines are %v", rawKey, rawValue, b, raw)
			}
			sameSections(t, b, conf.Bytes())
			staysCanonical(t, b, conf.Bytes())
			conf.RemoveRaw(func(e pveconf.Entry) bool { return e.Line == raw[at].Line })
			if got := conf.Bytes(); !bytes.Equal(got, b) {
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
			if conf.Unset(key); !had && !bytes.Equal(conf.Bytes(), b) {
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
