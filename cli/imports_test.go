package cli_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "phoenix.internal/"

// imports says what each package here uses of this repository. Of the controller only the ways to reach its API are
// used: everything else goes through the API, so that both ways of working do the same. Of the agent only the pure
// packages about confs are: what a file means needs nobody who is asked.
var imports = map[string][]string{
	"cli": {
		"agent/confaudit", "agent/passthrough", "agent/pveconf",
		"cli/output", "cli/terminal",
		"controller", "controller/client", "controller/pki",
		"gen/phoenix/controller/v1", "gen/phoenix/error/v1", "gen/phoenix/type/v1",
	},
	"cli/cmd/phoenix-cli": {"cli"},
	"cli/output":          nil,
	"cli/terminal":        {"cli/output"},
}

// confined are libraries that one file alone uses.
var confined = map[string]string{
	"github.com/spf13/viper":             "cli/config.go",
	"github.com/aymanbagabas/go-udiff":   "cli/output/diff.go",
	"golang.org/x/term":                  "cli/terminal/terminal.go",
	"golang.org/x/sys/unix":              "cli/terminal/input.go",
	"phoenix.internal/controller":        "cli/connect.go",
	"phoenix.internal/controller/pki":    "cli/config.go cli/connect.go",
	"phoenix.internal/controller/client": "cli/connect.go cli/errors.go cli/gpus.go",
}

func TestImports(t *testing.T) {
	found := map[string]map[string]bool{}
	users := map[string][]string{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		file := path.Join("cli", filepath.ToSlash(name))
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := path.Dir(file)
		if found[pkg] == nil {
			found[pkg] = map[string]bool{}
		}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if own, ok := strings.CutPrefix(imported, module); ok {
				found[pkg][own] = true
			}
			if _, ok := confined[imported]; ok {
				users[imported] = append(users[imported], file)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for pkg, set := range found {
		got[pkg] = slices.Sorted(maps.Keys(set))
	}
	if diff := cmp.Diff(imports, got); diff != "" {
		t.Errorf("imports of this repository (-table +code):\n%s", diff)
	}
	for library, want := range confined {
		if got := strings.Join(users[library], " "); got != want {
			t.Errorf("%s is used by %q, the table says %q", library, got, want)
		}
	}
}
