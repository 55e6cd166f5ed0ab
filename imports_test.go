package phoenix_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "phoenix.internal/"

// mayImport is who may import whom within the module, by directory; a directory stands for everything below it, and may
// always import itself. The longest matching row counts. Change it together with the import, and say why in the commit.
var mayImport = map[string][]string{
	"gen":        nil,
	"agent":      {"gen"}, // the root daemon can be reviewed alone
	"controller": {"gen"},
	"cli":        {"agent/confaudit", "agent/passthrough", "agent/pveconf", "controller", "gen"}, // a conf is a file: that needs no agent
	"deploy":     {"agent/nvml", "agent/pveconf", "gen"},

	// Pure packages decide and open no file: they see no generated type and no I/O package of ours.
	"agent/pveconf":       {},
	"agent/vmconf":        {},
	"agent/passthrough":   {"agent/pveconf"},
	"agent/confaudit":     {"agent/passthrough", "agent/pveconf"},
	"controller/fleet":    {},
	"controller/observed": {},
	"controller/doctor":   {},
	"controller/plan":     {"controller/fleet", "controller/observed"},

	// Only edges see generated types.
	"agent/gpu":              {"agent/nvml"},
	"agent/nvml":             {},
	"agent/cmd/phoenix-nvml": {"agent/nvml"}, // what loads the driver's library sees nothing else of the agent
	"agent/lxcmon":           {},
	"agent/pct":              {},
	"agent/ctlock":           {},
	"agent/confstore":        {"agent/pveconf"},
	"agent/attach":           {},
	"agent/statefile":        {},
	"agent/xid":              {},
	"agent/health":           {"agent/lxcmon", "agent/statefile", "agent/xid"},
	"agent/probe":            {"agent/attach"},
	"agent/transfer":         {"agent/attach"},
	"agent/driver":           {"agent/attach", "agent/ctlock"},
	"agent/bootguard":        {"agent/confstore", "agent/container", "agent/gpu", "agent/statefile"},
	"agent/container":        {"agent/confstore", "agent/ctlock", "agent/gpu", "agent/lxcmon", "agent/passthrough", "agent/pct", "agent/pveconf", "agent/statefile", "agent/vmconf"},
	"controller/engine":      {"controller/feature", "controller/fleet", "controller/lane", "controller/node", "controller/observed", "controller/plan", "controller/store"},
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		dir := strings.TrimPrefix(p.ImportPath, module)
		row, ok := rowOf(dir)
		if !ok {
			t.Errorf("%s is in no row of mayImport", dir)
			continue
		}
		for _, path := range p.Imports {
			imported, ok := strings.CutPrefix(path, module)
			if !ok || below(imported, row) {
				continue
			}
			if !slices.ContainsFunc(mayImport[row], func(allowed string) bool { return below(imported, allowed) }) {
				t.Errorf("%s imports %s; the row %q allows %v", dir, imported, row, mayImport[row])
			}
		}
	}
}

// TestRootDaemonImportsFewModules holds the list that docs/decisions.md justifies.
func TestRootDaemonImportsFewModules(t *testing.T) {
	allowed := []string{
		"github.com/fsnotify/fsnotify", "github.com/go-viper/mapstructure/v2", "github.com/pelletier/go-toml/v2",
		"github.com/sagikazarmark/locafero", "github.com/sourcegraph/conc", "github.com/spf13/afero", "github.com/spf13/cast",
		"github.com/spf13/pflag", "github.com/spf13/viper", "github.com/subosito/gotenv", "go.yaml.in/yaml/v3",
		"golang.org/x/net", "golang.org/x/sync", "golang.org/x/sys", "golang.org/x/term", "golang.org/x/text",
		"google.golang.org/genproto/googleapis/rpc", "google.golang.org/grpc", "google.golang.org/protobuf",
	}
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./agent/cmd/phoenix-agent").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	modules := strings.Fields(string(out))
	slices.Sort(modules)
	for _, m := range slices.Compact(modules) {
		if m+"/" != module && !slices.Contains(allowed, m) {
			t.Errorf("phoenix-agent depends on %s, which docs/decisions.md does not justify", m)
		}
	}
}

type pkg struct {
	ImportPath string
	Imports    []string
}

// packages lists the module's packages without their tests, which may use what they like.
func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		// Packages that only tests import stand outside the table.
		if p.ImportPath+"/" != module && !strings.HasSuffix(p.ImportPath, "test") {
			all = append(all, p)
		}
	}
	if len(all) < 20 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

// rowOf finds the longest row that dir is below.
func rowOf(dir string) (row string, ok bool) {
	for r := range mayImport {
		if below(dir, r) && len(r) > len(row) {
			row, ok = r, true
		}
	}
	return row, ok
}

func below(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }
