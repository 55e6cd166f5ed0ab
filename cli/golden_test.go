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
		{"devices divided", &fake{divided: true}, "devices"},
		{"devices in colour", &fake{}, "devices --color always"},
		{"gpus", &fake{divided: true, plain: true, unreachable: away}, "gpus"},
		{"gpus unused in colour", &fake{divided: true, plain: true}, "gpus --unused --color always"},
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
		{"conf show canonical", &fake{conf: []byte("lxc.mount.entry = a b none bind\ncores: 2\narch: amd64\n#n\xc3\xb6te\n")}, "conf show 901 --canonical"},
		{"conf show canonical hostile", &fake{conf: []byte("hostname: a\x1b[2J\n")}, "conf show 901 --canonical"},
		{"conf show canonical raw", &fake{conf: []byte("hostname: a\x1b[2J\n")}, "conf show 901 --canonical --raw"},
		{"conf show canonical impossible", &fake{conf: []byte("arch: amd64\nlxc: 1\n")}, "conf show 901 --canonical"},
		{"conf show canonical revision", &fake{}, "conf show 901 --canonical --revision 1"},
		{"conf show effective", &fake{}, "conf show 901 --effective"},
		{"conf show effective raw", &fake{}, "conf show 901 --effective --raw"},
		{"conf show effective stopped", &fake{}, "conf show 900 --effective"},
		{"conf show effective old agent", &fake{old: true}, "conf show 901 --effective"},
		{"conf audit", &fake{}, "conf audit"},
		{"conf audit in colour", &fake{}, "conf audit --color always"},
		{"conf audit one", &fake{}, "conf audit 900"},
		{"conf audit gone", &fake{}, "conf audit 901 913"},
		{"conf audit unreachable", &fake{unreachable: away}, "conf audit --node pve1"},
		{"conf audit files", &fake{}, "conf audit --files testdata/conf/ordinary.conf testdata/conf/hostile.conf testdata/conf/none.conf"},
		{"conf audit files good", &fake{}, "conf audit --files testdata/conf/ordinary.conf"},
		{"conf inspect", &fake{}, "conf inspect testdata/conf/ordinary.conf"},
		{"conf inspect hostile", &fake{}, "conf inspect testdata/conf/hostile.conf"},
		{"conf inspect impossible", &fake{}, "conf inspect testdata/conf/impossible.conf"},
		{"conf inspect diff", &fake{}, "conf inspect testdata/conf/hostile.conf --diff"},
		{"conf inspect diff none", &fake{}, "conf inspect testdata/conf/ordinary.conf --diff"},
		{"conf inspect diff impossible", &fake{}, "conf inspect testdata/conf/impossible.conf --diff"},
		{"conf inspect proxmox", &fake{}, "conf inspect testdata/conf/ordinary.conf --proxmox"},
		{"conf inspect proxmox impossible", &fake{}, "conf inspect testdata/conf/impossible.conf --proxmox"},
		{"conf canonical", &fake{}, "conf canonical testdata/conf/hostile.conf"},
		{"conf canonical impossible", &fake{}, "conf canonical testdata/conf/impossible.conf"},
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
		{"json gpus", &fake{divided: true, plain: true}, "gpus --json"},
		{"json devices", &fake{}, "devices --json"},
		{"json status", &fake{}, "status --json"},
		{"json plan", &fake{plain: true}, "plan --json"},
		{"json health", &fake{plain: true}, "health --json"},
		{"json apply", &fake{events: progressOf(failed)}, "apply --json"},
		{"json restart", &fake{}, "restart 901 --json"},
		{"json conf diff", &fake{}, "conf diff 901 --revision 1 --json"},
		{"json validate", &fake{}, "validate --json"},
		{"json conf show effective", &fake{}, "conf show 901 --effective --json"},
		{"json conf revisions", &fake{}, "conf revisions 901 --json"},
		{"json conf audit", &fake{unreachable: away}, "conf audit 912 --json"},
		{"json conf audit unreachable", &fake{unreachable: away}, "conf audit --json"},
		{"json conf audit files", &fake{}, "conf audit --files testdata/conf/ordinary.conf --json"},
		{"json conf inspect", &fake{}, "conf inspect testdata/conf/hostile.conf --json"},
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
