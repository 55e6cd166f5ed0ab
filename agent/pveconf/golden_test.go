package pveconf_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/pveconf"
)

// goldens returns the names of the recorded confs and stops the test if there are fewer than recorded.
func goldens(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/pve/*.parsed.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) != 87 {
		t.Fatalf("testdata/pve holds %d recordings, want 87", len(paths))
	}
	for i, p := range paths {
		paths[i] = strings.TrimSuffix(p, ".parsed.json")
	}
	return paths
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type recording struct {
	Config   map[string]any
	Warnings []string
}

func readRecording(t *testing.T, path string) recording {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(read(t, path)))
	d.UseNumber()
	var r recording
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return r
}

// TestCanonicalGoldens holds Canonical against what Proxmox's own writer made of the same bytes.
func TestCanonicalGoldens(t *testing.T) {
	for _, name := range goldens(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			conf := read(t, name+".conf")
			got, err := pveconf.Parse(conf).Canonical()
			want, readErr := os.ReadFile(name + ".rewritten.conf")
			if os.IsNotExist(readErr) {
				if err == nil {
					t.Fatalf("Canonical of %q = %q, want an error: Proxmox died", conf, got)
				}
				return
			}
			if err != nil {
				t.Fatalf("Canonical of %q: %v", conf, err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("Canonical of %q (-Proxmox +got):\n%s", conf, diff)
			}
		})
	}
}

// TestMeaningGoldens holds what is read of a conf against what Proxmox's own parser read.
func TestMeaningGoldens(t *testing.T) {
	for _, name := range goldens(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			conf := read(t, name+".conf")
			r := readRecording(t, name+".parsed.json")
			if r.Config == nil {
				return // Proxmox's parser died on this conf; TestCanonicalGoldens has it
			}
			want := plain(t, r.Config).(map[string]any)
			got := meaning(pveconf.Parse(conf))
			// The property "digest" overwrites the digest in Proxmox's memory; we keep them apart.
			if v, ok := pveconf.Parse(conf).Property("digest"); ok {
				got["digest"] = v
			}
			for _, key := range []string{"pending", "snapshots"} { // scalars where the name was a property
				if v, ok := pveconf.Parse(conf).Property(key); ok {
					got[key] = v
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%q (-Proxmox +got):\n%s", conf, diff)
			}
		})
	}
}

// plain turns recorded JSON into strings, lists and maps.
func plain(t *testing.T, v any) any {
	t.Helper()
	switch v := v.(type) {
	case json.Number:
		return v.String()
	case []any:
		for i := range v {
			v[i] = plain(t, v[i])
		}
		return v
	case map[string]any:
		if s, ok := v["$bytes_hex"].(string); ok {
			b, err := hex.DecodeString(s)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		for k := range v {
			v[k] = plain(t, v[k])
		}
		return v
	}
	return v
}

// meaning puts what pveconf reads into the shape of the recordings.
func meaning(f *pveconf.File) map[string]any {
	main := pveconf.Section{Description: f.Description(), Properties: f.Properties(), Raw: f.Raw()}
	m := section(main)
	m["digest"] = f.Digest()
	m["pending"] = section(f.Pending())
	snapshots := map[string]any{}
	for _, s := range f.Snapshots() {
		snapshots[s.Name] = section(s)
	}
	m["snapshots"] = snapshots
	return m
}

func section(s pveconf.Section) map[string]any {
	m := map[string]any{}
	if s.Description != "" {
		m["description"] = s.Description
	}
	// Proxmox keeps these raw lines in the property env, which a later line env: replaces.
	env := map[int]string{}
	var raw []any
	for _, e := range s.Raw {
		if e.Key == "lxc.environment.runtime" {
			env[e.Line] = e.Value
			continue
		}
		raw = append(raw, []any{e.Key, e.Value})
	}
	if raw != nil {
		m["lxc"] = raw
	}
	var values []string
	for _, e := range s.Properties {
		m[e.Key] = e.Value
		if e.Key == "env" {
			maps.DeleteFunc(env, func(line int, _ string) bool { return line < e.Line })
			values = append(values, e.Value)
		}
	}
	for _, e := range s.Raw {
		if v, ok := env[e.Line]; ok {
			values = append(values, v)
		}
	}
	if values != nil {
		m["env"] = strings.Join(values, "\x00")
	}
	return m
}

// TestWarningGoldens holds the number of warnings against Proxmox's own.
func TestWarningGoldens(t *testing.T) {
	unchecked := map[string]int{
		// The formats of mpN and netN are not checked.
		"nasty-mount-entries-broken": 4,
		"nasty-net-entries-broken":   4,
		// A devN without a path gets past Proxmox's parser, and then stops the start; we warn at once.
		"nasty-dev-entries-broken": -1,
	}
	for _, name := range goldens(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			var got []string
			for _, w := range pveconf.Parse(read(t, name+".conf")).Warnings() {
				if w.Kind != pveconf.WarningHidden { // Proxmox does not see these
					got = append(got, w.Text)
				}
			}
			want := readRecording(t, name+".parsed.json").Warnings
			if len(got)+unchecked[filepath.Base(name)] != len(want) {
				t.Errorf("%d warnings, Proxmox has %d:\n%q\nProxmox:\n%q", len(got), len(want), got, want)
			}
		})
	}
}

// TestIdentityGoldens writes every recorded conf back as it was.
func TestIdentityGoldens(t *testing.T) {
	for _, name := range goldens(t) {
		conf := read(t, name+".conf")
		if got := pveconf.Parse(conf).Bytes(); !bytes.Equal(got, conf) {
			t.Errorf("%s: %q was written back as %q", name, conf, got)
		}
	}
}
