package passthrough_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// benchConfs are a conf as one meets it, one of 2,000 raw lines, and one of 2,000 raw lines that are all
// NVIDIA's.
func benchConfs(b *testing.B) map[string][]byte {
	b.Helper()
	confs := map[string][]byte{}
	for name, file := range map[string]string{"typical": "real-gpu-privileged-raw", "2000-lines": "nasty-2000-raw-lines"} {
		conf, err := os.ReadFile("../pveconf/testdata/pve/" + file + ".conf")
		if err != nil {
			b.Fatal(err)
		}
		confs[name] = conf
	}
	var all strings.Builder
	all.WriteString("arch: amd64\nunprivileged: 0\n")
	for i := range 1000 {
		fmt.Fprintf(&all, "lxc.mount.entry: /dev/nvidia%d srv/nvidia%d none bind,create=file\n", i%2, i)
		fmt.Fprintf(&all, "lxc.cgroup2.devices.allow: c 195:%d rwm\n", i)
	}
	confs["2000-nvidia-lines"] = []byte(all.String())
	return confs
}

func BenchmarkOf(b *testing.B) {
	for name, conf := range benchConfs(b) {
		b.Run(name, func(b *testing.B) {
			f := pveconf.Parse(conf)
			b.SetBytes(int64(len(conf)))
			for b.Loop() {
				passthrough.Of(f, node2)
			}
		})
	}
}

// BenchmarkSet gives a GPU in the other mode each time, so that there is always something to do.
func BenchmarkSet(b *testing.B) {
	for name, conf := range benchConfs(b) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(conf)))
			for i := 0; b.Loop(); i++ {
				f := pveconf.Parse(conf)
				if err := passthrough.Set(f, node2, whole([]int{0}), modes[i%2]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
