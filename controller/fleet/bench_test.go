package fleet_test

import (
	"bytes"
	"fmt"
	"testing"

	"phoenix.internal/controller/fleet"
)

// BenchmarkParse reads a file of 20,000 containers, some 6 MB.
func BenchmarkParse(b *testing.B) {
	var file bytes.Buffer
	file.WriteString(`{"lxc_configs": {`)
	for i := range fleet.MaxContainers {
		fmt.Fprintf(&file, `"%d": {"name": "container-%d", "memory_mb": 4096, "cores": 4, "unprivileged": true, "gpu_assignment": "0, 1",
			"network_config": {"name": "eth0", "bridge": "vmbr0", "ip": "192.0.2.1/24", "gw": "192.0.2.254"},
			"features": ["nvidia", "vllm"], "clone_from_ctid": "%d"},`, 1000+i, i, 1000+i/2-1)
	}
	file.Truncate(file.Len() - 1)
	file.WriteString("}}")
	b.SetBytes(int64(file.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, findings := fleet.Parse("f.json", file.Bytes()); !fleet.Valid(findings) {
			b.Fatalf("%.300v", findings)
		}
	}
}
