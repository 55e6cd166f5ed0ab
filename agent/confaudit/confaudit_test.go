package confaudit_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/confaudit"
	"phoenix.internal/agent/pveconf"
)

func TestHiddenLineEnd(t *testing.T) {
	got := confaudit.Findings(pveconf.Parse([]byte("unprivileged: 1\n[snap]\nlxc.environment: LANG=C\rlxc.hook.start = /x\n")))
	want := []confaudit.Finding{{Line: 3, Section: "snap", Kind: confaudit.HiddenLineEnd, Severity: confaudit.Danger,
		Message: "the value of lxc.environment holds the control character 0xd, where LXC ends the line", Advice: "remove the line; find out who wrote it"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}
