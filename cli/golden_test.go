package cli_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var away = []*typev1.NodeError{{Node: "pve3", Address: "10.0.0.13:7461", Message: "connection refused"}}

// TestOutput compares everything a command writes with a golden file of the row's name.
func TestOutput(t *testing.T) {
	failed, succeeded := controllerv1.RunState_RUN_STATE_FAILED, controllerv1.RunState_RUN_STATE_SUCCEEDED
	for _, test := range []struct {
		name string
		fake *fake
		args string
	}{
		{"nodes", &fake{}, "nodes"},
		{"nodes unreachable", &fake{unreachable: away}, "nodes"},
		{"devices", &fake{}, "devices"},
		{"devices in colour", &fake{}, "devices --color always"},
		{"containers", &fake{}, "containers"},
		{"containers unreachable", &fake{unreachable: away}, "containers --node pve1"},
		{"validate", &fake{}, "validate"},
		{"validate in colour", &fake{}, "validate --color always"},
		{"validate valid", &fake{plain: true}, "validate"},
		{"plan", &fake{}, "plan"},
		{"plan in colour", &fake{plain: true}, "plan --color always"},
		{"plan unreachable", &fake{plain: true, unreachable: away}, "plan 901"},
		{"status", &fake{}, "status"},
		{"status in colour", &fake{}, "status --color always"},
		{"status without probe", &fake{plain: true}, "status --no-probe"},
		{"status exit code in sync", &fake{plain: true}, "status --exit-code"},
		{"status exit code drift", &fake{}, "status --exit-code"},
		{"conf show", &fake{}, "conf show 901"},
		{"conf show revision", &fake{}, "conf show 901 --revision 1"},
		{"conf show hostile", &fake{conf: []byte("#a\x1b]52;c;eA==\x07\r\n\tb: \xff\n")}, "conf show 901"},
		{"conf show raw", &fake{conf: []byte("#a\x1b]52;c;eA==\x07\r\n\tb: \xff\n")}, "conf show 901 --raw"},
		{"conf diff", &fake{}, "conf diff 901 910"},
		{"conf diff all", &fake{}, "conf diff 901 910 --all"},
		{"conf diff clone", &fake{}, "conf diff 901 902"},
		{"conf diff clone all", &fake{}, "conf diff 901 902 --all"},
		{"conf diff in colour", &fake{}, "conf diff 901 910 --color always"},
		{"conf diff revision", &fake{}, "conf diff 901 --revision 1"},
		{"conf diff same revision", &fake{}, "conf diff 901 --revision 2"},
		{"conf revisions", &fake{}, "conf revisions 901"},
		{"conf restore", &fake{}, "conf restore 901 1"},
		{"conf restore dry run", &fake{}, "conf restore 901 1 --dry-run"},
		{"restart", &fake{}, "restart 901"},
		{"probe", &fake{plain: true}, "probe 901"},
		{"probe bad", &fake{}, "probe 901"},
		{"health", &fake{plain: true}, "health"},
		{"health bad", &fake{notServing: "phoenix.controller.v1.RunService", unreachable: away}, "health"},
		{"runs", &fake{}, "runs"},
		{"runs show", &fake{}, "runs show 2026"},
		{"runs watch", &fake{}, "runs watch 2026"},
		{"runs cancel", &fake{}, "runs cancel 2026"},
		{"apply", &fake{events: progressOf(succeeded)}, "apply"},
		{"apply failed", &fake{events: progressOf(failed)}, "apply 901 910"},

		{"json nodes", &fake{}, "nodes --json"},
		{"json devices", &fake{}, "devices --json"},
		{"json status", &fake{}, "status --json"},
		{"json plan", &fake{plain: true}, "plan --json"},
		{"json health", &fake{plain: true}, "health --json"},
		{"json apply", &fake{events: progressOf(failed)}, "apply --json"},
		{"json restart", &fake{}, "restart 901 --json"},
		{"json conf diff", &fake{}, "conf diff 901 --revision 1 --json"},
		{"json validate", &fake{}, "validate --json"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := run(t, test.fake, nil, strings.Fields(test.args)...)
			text := fmt.Sprintf("$ phoenix-cli %s\n-- exit %d --\n-- stdout --\n%s-- stderr --\n%s",
				test.args, got.code, got.stdout, got.stderr)
			golden(t, strings.ReplaceAll(test.name, " ", "-"), text)
		})
	}
}

// golden compares got with the golden file, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}
