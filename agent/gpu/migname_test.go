package gpu_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"phoenix.internal/agent/gpu"
)

// The numbers that nvidia-smi counts by need not follow the instances.
const smiMIG = `#!/bin/sh
echo "$*" >>"$(dirname "$0")/asked"
case "$*" in
-L) cat <<'EOT'
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-2222-3333-4444-555555555555)
  MIG 3g.40gb     Device  0: (UUID: MIG-0D13DD3C-0000-5E2F-9999-000000000013)
  MIG 1c.2g.20gb  Device  1: (UUID: MIG-0d13dd3c-0000-5e2f-9999-000000000012)
  MIG 1g.10gb     Device  7: (UUID: MIG-0d13dd3c-0000-5e2f-9999-000000000017)
GPU 1: NVIDIA GeForce RTX 5060 Ti (UUID: GPU-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee)
EOT
;;
"-q -x") cat <<'EOT'
<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">
<nvidia_smi_log>
	<gpu id="00000000:01:00.0">
		<uuid>GPU-11111111-2222-3333-4444-555555555555</uuid>
		<mig_devices>
			<mig_device><index>0</index><gpu_instance_id>13</gpu_instance_id><compute_instance_id>0</compute_instance_id></mig_device>
			<mig_device><index>1</index><gpu_instance_id>1</gpu_instance_id><compute_instance_id>2</compute_instance_id></mig_device>
		</mig_devices>
	</gpu>
	<gpu id="00000000:81:00.0"><uuid>GPU-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee</uuid><mig_devices>None</mig_devices></gpu>
</nvidia_smi_log>
EOT
;;
*) exit 1 ;;
esac
`

func TestMIGNames(t *testing.T) {
	h := newGPUHost(t)
	h.mig()
	h.file("nvidia-smi", smiMIG)
	s := h.scanner()
	type name struct {
		Instance gpu.Instance
		Index    int
		UUID     string
		Profile  string
	}
	for range 2 {
		inv, err := s.Scan(t.Context())
		h.must(err)
		var got []name
		for _, m := range inv.GPUs[0].MIG {
			got = append(got, name{m.Instance, m.Index, m.UUID, m.Profile})
		}
		want := []name{
			{gpu.Instance{GPU: 1, Compute: 0}, -1, "", ""},
			{gpu.Instance{GPU: 1, Compute: 2}, 1, "MIG-0d13dd3c-0000-5e2f-9999-000000000012", "1c.2g.20gb"},
			{gpu.Instance{GPU: 13, Compute: 0}, 0, "MIG-0d13dd3c-0000-5e2f-9999-000000000013", "3g.40gb"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("MIG devices (-want +got):\n%s", diff)
		}
		if got := inv.GPUs[0].Sources["mig_devices"]; got != "nvidia-smi" {
			t.Errorf("their source is %q", got)
		}
	}
	// Once for this division, and once more for another.
	asked := func() string {
		b, err := os.ReadFile(filepath.Join(h.root, "asked"))
		h.must(err)
		return string(b)
	}
	const memory, names = "--query-gpu=pci.bus_id,memory.total --format=csv,noheader,nounits\n", "-L\n-q -x\n"
	if got := asked(); got != memory+names {
		t.Errorf("nvidia-smi was asked %q", got)
	}
	h.remove("proc/driver/nvidia/capabilities/gpu1/mig/gi13")
	if _, err := s.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := asked(); got != memory+names+names {
		t.Errorf("after a change nvidia-smi was asked %q", got)
	}
}
