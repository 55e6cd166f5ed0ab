package pveconf_test

import (
	"bytes"
	"encoding/json"
	"errors"
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
	if len(paths) != 88 {
		t.Fatalf("testdata/pve holds %d recordings, want 88", len(paths))
	}
	for i, p := range paths {
		paths[i] = strings.TrimSuffix(p, ".parsed.json")
	}
	return paths
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type recording struct {
	Config       map[string]any
	Error        string
	RewriteError string `json:"rewrite_error"`
	Warnings     []string
}

func readRecording(t *testing.T, path string) recording {
	t.Helper()
	return decode[recording](t, read(t, path))
}

// decode keeps numbers as they are written: 1 and 1.0 differ, as do 1 and "1".
func decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v T
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	return v
}

// TestCanonicalGoldens holds Canonical against what Proxmox's own writer made of the same bytes.
func TestCanonicalGoldens(t *testing.T) {
	for _, name := range goldens(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			conf := read(t, name+".conf")
			got, err := pveconf.Parse(conf).Canonical()
			want, readErr := os.ReadFile(name + ".rewritten.conf")
			if os.IsNotExist(readErr) {
				fatal, ok := errors.AsType[*pveconf.FatalError](err)
				died, parsing := strings.CutPrefix(readRecording(t, name+".parsed.json").RewriteError, "parse: ")
				if !ok || fatal.Writing == parsing || !strings.HasPrefix(died, fatal.Reason+" at ") {
					t.Errorf("Canonical of %q = %q, %v; Proxmox died of %q, when parsing: %v", conf, got, err, died, parsing)
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

// TestConfigGoldens holds ConfigJSON against what Proxmox's own parser made of the same bytes.
func TestConfigGoldens(t *testing.T) {
	for _, name := range goldens(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			conf := read(t, name+".conf")
			want := readRecording(t, name+".parsed.json")
			b, err := pveconf.Parse(conf).ConfigJSON()
			if want.Config == nil {
				fatal, ok := errors.AsType[*pveconf.FatalError](err)
				if !ok || fatal.Writing || !strings.HasPrefix(want.Error, fatal.Reason+" at ") {
					t.Errorf("ConfigJSON of %q = %s, %v; Proxmox's parser died of %q", conf, b, err, want.Error)
				}
				return
			}
			if err != nil {
				t.Fatalf("ConfigJSON of %q: %v", conf, err)
			}
			if diff := cmp.Diff(want.Config, decode[map[string]any](t, b)); diff != "" {
				t.Errorf("ConfigJSON of %q (-Proxmox +got):\n%s", conf, diff)
			}
		})
	}
}

// TestWarningGoldens holds what is said of each line to what Proxmox's parser printed while reading it.
func TestWarningGoldens(t *testing.T) {
	for _, name := range goldens(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			conf := read(t, name+".conf")
			lines := strings.Split(string(conf), "\n")
			var got []string
			for _, w := range pveconf.Parse(conf).Warnings() {
				if w.Kind.Printed() {
					got = append(got, lines[w.Line-1])
				}
			}
			want := readRecording(t, name+".parsed.json").Warnings
			if len(got) != len(want) {
				t.Fatalf("%d warnings, Proxmox has %d:\n%q\nProxmox:\n%q", len(got), len(want), got, want)
			}
			for i, w := range want {
				w = strings.TrimPrefix(w, "vm 101 - ")
				w = strings.TrimPrefix(w, "unable to parse value of ")
				w = strings.TrimPrefix(w, "unable to parse config: ")
				w = strings.TrimPrefix(w, "property ")
				key, _, _ := strings.Cut(strings.TrimPrefix(w, "'"), "'") // or the whole line
				if raw, _, ok := strings.Cut(key, ": lxc.rootfs."); ok {
					key = raw
				}
				if !strings.HasPrefix(got[i], key) {
					t.Errorf("warning %d is about the line %q, Proxmox's says %q", i+1, got[i], want[i])
				}
			}
		})
	}
}

// TestNoWarningGoldens: there is nothing to say about confs as one meets them.
func TestNoWarningGoldens(t *testing.T) {
	for _, name := range goldens(t) {
		if strings.HasPrefix(filepath.Base(name), "real-") {
			for _, w := range pveconf.Parse(read(t, name+".conf")).Warnings() {
				t.Errorf("%s: %+v", name, w)
			}
		}
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
