package fleet_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/fleet"
)

func TestSample(t *testing.T) {
	f, findings, err := fleet.Load("../../deploy/config/phoenix_lxc_configs.sample.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(findings) > 0 {
		t.Errorf("findings: %v; want none", findings)
	}
	gpus := map[int32]string{}
	for _, c := range f.Containers {
		gpus[c.CTID] = fleet.Text(c.GPUs)
	}
	want := map[int32]string{900: "none", 901: "0,1", 910: "0,1", 911: "0", 912: "1", 913: "1", 920: "none"}
	if diff := cmp.Diff(want, gpus); diff != "" {
		t.Errorf("GPUs (-want +got):\n%s", diff)
	}
}
