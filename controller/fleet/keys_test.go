package fleet_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"phoenix.internal/controller/fleet"
)

var update = flag.Bool("update", false, "rewrite the table of keys in docs/fleet-file.md")

// The table in the documentation is that of the code.
func TestDocumentedKeys(t *testing.T) {
	const path = "../../docs/fleet-file.md"
	const begin, end = "-update -->\n", "<!-- end of keys -->"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), begin)
	table, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	want := keyTable(fleet.Keys())
	if table == want {
		return
	}
	if !*update {
		t.Fatalf("the table of keys in %s is not that of the code; run go test ./controller/fleet -update\n got:\n%s\nwant:\n%s", path, table, want)
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func keyTable(keys []fleet.Key) string {
	var s strings.Builder
	s.WriteString("| key | Phoenix | what it is |\n| --- | --- | --- |\n")
	for _, k := range keys {
		what := "leaves it alone"
		switch {
		case k.Acts:
			what = "**acts on it**"
		case k.Open:
			what = "leaves it alone, *open*"
		}
		s.WriteString("| `" + strings.ReplaceAll(k.Path, "lxc_configs.*.", "…") + "` | " + what + " | " + k.Doc + " |\n")
	}
	return s.String()
}

// Every key that the files in use have is in the table, nested ones too; and the table has nothing else but what Phoenix
// adds.
func TestKeysOfSharedFiles(t *testing.T) {
	used := map[string]bool{}
	for _, name := range []string{"phoenix_lxc_configs-2025-09-23.json", "phoenix_lxc_configs-2025-11-25.json"} {
		b, err := os.ReadFile(filepath.Join(fleetFiles(t), name))
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		collect(used, "", v)
	}
	open := []string{"lxc_configs.*.vllm_engine_config.", "lxc_configs.*.vllm_parameters."}
	added := []string{
		"passthrough_mode", "lxc_configs.*.passthrough_mode", "lxc_configs.*.node", "lxc_configs.*.health_check.timeout",
		"gpu_policy", "lxc_configs.*.gpu_policy", "lxc_configs.*.gpu_capabilities",
		"driver_mode", "lxc_configs.*.driver_mode", "nvidia_runfile_sha256",
	}
	known := map[string]bool{}
	for _, k := range fleet.Keys() {
		known[k.Path] = true
		if !used[k.Path] && !slices.Contains(added, k.Path) {
			t.Errorf("%s is in the table, and no file has it", k.Path)
		}
	}
	for path := range used {
		isOpen := slices.ContainsFunc(open, func(prefix string) bool { return strings.HasPrefix(path, prefix) })
		if !known[path] && !isOpen {
			t.Errorf("%s is in a file, and not in the table", path)
		}
	}
}

// collect gathers the paths of all keys below a value.
func collect(paths map[string]bool, path string, v any) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			collect(paths, path+"[]", item)
		}
	case map[string]any:
		for key, member := range v {
			if path == "lxc_configs" {
				collect(paths, "lxc_configs.*", member)
				continue
			}
			at := strings.TrimPrefix(path+"."+key, ".")
			paths[at] = true
			collect(paths, at, member)
		}
	}
}
