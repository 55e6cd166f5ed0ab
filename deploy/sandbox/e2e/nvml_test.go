package e2e_test

import (
	"strings"
	"testing"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// TestNVML sees through the whole of Phoenix what the driver's library alone knows: that a GPU which /proc and /sys still
// have is lost.
func TestNVML(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{Shapes: []string{"mig"}})
	said := func() bool {
		stdout, stderr, code := w.CLI("devices", "--json")
		if code != 0 {
			t.Errorf("devices: status %d\n%s", code, stderr)
		}
		return strings.Contains(stdout, "GPU 0000:41:00.0: NVML says: GPU is lost (code 15).")
	}
	if said() {
		t.Error("devices says that a GPU is lost, which is there")
	}
	w.nodes[0].Lose(1)
	eventually(t, "devices says that the GPU is lost", said)
}
