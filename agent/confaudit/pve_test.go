package confaudit_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/confaudit"
	"phoenix.internal/agent/pveconf"
)

var update = flag.Bool("update", false, "rewrite testdata/real.txt")

// pveConfs are confs with which Proxmox's own code was tried; see there.
const pveConfs = "../pveconf/testdata/pve"

// TestRealConfs holds what is said about confs as one meets them: a note now and then, a warning seldom. The
// one danger is a hook that somebody wrote. testdata/real.txt is reviewed as code.
func TestRealConfs(t *testing.T) {
	paths, err := filepath.Glob(pveConfs + "/real-*.conf")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no confs in %s: %v", pveConfs, err)
	}
	var got strings.Builder
	for _, p := range paths {
		if strings.HasSuffix(p, ".rewritten.conf") {
			continue
		}
		got.WriteString("-- " + strings.TrimSuffix(filepath.Base(p), ".conf") + " --\n")
		for _, f := range confaudit.Findings(parseFile(t, p)) {
			got.WriteString(lineOf(t, f) + "\n")
		}
	}
	const golden = "testdata/real.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

func parseFile(t testing.TB, path string) *pveconf.File {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return pveconf.Parse(b)
}

// FuzzFindings holds that every finding is about a line that there is, in its section, that they come by line,
// that an audit changes nothing, and that what is hidden in a value is found in whatever section it stands.
func FuzzFindings(f *testing.F) {
	paths, err := filepath.Glob(pveConfs + "/*.conf")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds in %s: %v", pveConfs, err)
	}
	for _, p := range paths {
		// What the large ones have more of the fuzzer would minimize for a minute each.
		if b := parseFile(f, p).Bytes(); len(b) < 8<<10 {
			f.Add(b)
		}
	}
	for _, tt := range tests {
		f.Add([]byte(tt.conf))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file := pveconf.Parse(b)
		findings := confaudit.Findings(file)
		if string(file.Bytes()) != string(b) {
			t.Errorf("the audit of %q changed it to %q", b, file.Bytes())
		}
		lines, last := strings.Count(string(b), "\n")+1, 0
		dangers := map[int]bool{}
		for _, found := range findings {
			if found.Line < last || found.Line > lines || found.Message == "" || found.Advice == "" ||
				strings.ContainsFunc(found.Message, func(r rune) bool { return !unicode.IsPrint(r) }) || len(found.Message) > 600 {
				t.Errorf("audit of %q: %+v", b, found)
			}
			last = found.Line
			dangers[found.Line] = dangers[found.Line] || found.Severity == confaudit.Danger && found.Kind == confaudit.HiddenLineEnd
		}
		for _, raw := range file.Raw() {
			if raw.Key != "lxc.environment.runtime" && strings.Contains(raw.Value, "\rlxc.") && !strings.Contains(raw.Value, "\x00") && !dangers[raw.Line] {
				t.Errorf("audit of %q: nothing about the line hidden in line %d", b, raw.Line)
			}
		}
	})
}

func BenchmarkFindings(b *testing.B) {
	for _, name := range []string{"real-everything", "nasty-2000-raw-lines"} {
		b.Run(name, func(b *testing.B) {
			f := parseFile(b, filepath.Join(pveConfs, name+".conf"))
			b.SetBytes(int64(len(f.Bytes())))
			for b.Loop() {
				confaudit.Findings(f)
			}
		})
	}
}
