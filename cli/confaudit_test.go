package cli_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Three judges look at a conf: the audit of its bytes, passthrough, and the parser. What one of them has said of a line the
// others do not say again, and nothing is left out.
func TestAuditSaysEachThingOnce(t *testing.T) {
	const whole = "arch: amd64\nostype: debian\nrootfs: local:8\n"
	for _, test := range []struct {
		name, conf string
		code       int
		want       []string // line, severity, kind and section of each finding
	}{
		{"nothing to say", whole + "unprivileged: 1\n", 0, nil},
		{"a hidden line end", whole + "unprivileged: 1\nlxc.environment: A=1\rlxc.hook.start = /x\n", 1,
			[]string{"5 danger hidden-line-end "}},
		{"a line that Proxmox cannot read", whole + "unprivileged: 1\nnonsense\n", 1, []string{"5 warning dropped-line "}},
		{"a key twice", whole + "cores: 1\ncores: 2\nunprivileged: 1\n", 1, []string{"4 warning lost-line "}},
		{"a value that Proxmox objects to", whole + "cores: many\nunprivileged: 1\n", 0, []string{"4 note bad-value "}},
		{"a rule without a mount", whole + "unprivileged: 1\nlxc.cgroup2.devices.allow: c 195:0 rwm\n", 1,
			[]string{"5 warning mount-missing "}},
		{"a wildcard", whole + "unprivileged: 1\nlxc.cgroup2.devices.allow: c 195:* rwm\n", 0, []string{"5 note wildcard-rule "}},
		{"a GPU in a snapshot", whole + "unprivileged: 1\n[before]\nunprivileged: 1\ndev0: /dev/nvidia0,mode=0666\n", 0,
			[]string{"5 note rollback before"}},
		{"raw lines that wait", whole + "unprivileged: 1\n[pve:pending]\nlxc.environment: A=1\n", 1,
			[]string{"6 warning raw-in-pending pve:pending"}},
		{"GPUs of a privileged container", whole + "dev0: /dev/nvidiactl,mode=0666\ndev1: /dev/nvidia-uvm,mode=0666\n" +
			"dev2: /dev/nvidia-uvm-tools,mode=0666\ndev3: /dev/nvidia0,mode=0666\n", 1, []string{"0 warning privileged-gpu "}},
		{"a conf that kills Proxmox's parser", whole + "lxc: 1\nlxc.environment: A=1\nunprivileged: 1\n", 1,
			[]string{"0 warning unreadable ", "4 note bad-value "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			noSettings(t)
			got := alone(t, strings.NewReader(test.conf), "conf", "audit", "--files", "--json", "-")
			var answer struct {
				Confs []struct {
					Findings []struct {
						Line                             int
						Section, Severity, Kind, Message string
					}
				}
			}
			if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil || len(answer.Confs) != 1 {
				t.Fatalf("%v\n%s%s", err, got.stdout, got.stderr)
			}
			var findings []string
			for _, f := range answer.Confs[0].Findings {
				findings = append(findings, fmt.Sprintf("%d %s %s %s", f.Line, f.Severity, f.Kind, f.Section))
				if f.Message == "" {
					t.Errorf("line %d: %s without a message", f.Line, f.Kind)
				}
			}
			if diff := cmp.Diff(test.want, findings); diff != "" || got.code != test.code {
				t.Errorf("%q: exit %d, want %d, findings (-want +got):\n%s%s", test.conf, got.code, test.code, diff, got.stdout)
			}
		})
	}
}
