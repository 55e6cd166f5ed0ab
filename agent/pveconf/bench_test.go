package pveconf_test

import (
	"testing"
	"time"

	"phoenix.internal/agent/pveconf"
)

// proxmoxLoads is how long Proxmox's own parser takes to load, before it reads its first conf.
const proxmoxLoads = 430 * time.Millisecond

var benchmarkConfs = []struct{ name, path string }{
	{"typical", "testdata/pve/real-gpu-nvidia-raw-equals.conf"},
	{"2000-lines", "testdata/pve/nasty-2000-raw-lines.conf"},
}

func benchmark(b *testing.B, run func(conf []byte) error) {
	for _, c := range benchmarkConfs {
		b.Run(c.name, func(b *testing.B) {
			conf := read(b, c.path)
			b.SetBytes(int64(len(conf)))
			b.ReportAllocs()
			for b.Loop() {
				if err := run(conf); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(proxmoxLoads)*float64(b.N)/float64(b.Elapsed()), "x-less-than-430ms")
		})
	}
}

func BenchmarkParse(b *testing.B) {
	benchmark(b, func(conf []byte) error {
		pveconf.Parse(conf)
		return nil
	})
}

// BenchmarkEdit reads, changes a property, adds one and a raw line, and writes.
func BenchmarkEdit(b *testing.B) {
	benchmark(b, func(conf []byte) error {
		f := pveconf.Parse(conf)
		if err := f.Set("memory", "4096"); err != nil {
			return err
		}
		if err := f.Set("dev9", "/dev/nvidia0,mode=0666"); err != nil {
			return err
		}
		if err := f.AppendRaw("lxc.cgroup2.devices.allow", "c 195:* rw"); err != nil {
			return err
		}
		f.Bytes()
		return nil
	})
}

func BenchmarkCanonical(b *testing.B) {
	benchmark(b, func(conf []byte) error {
		_, err := pveconf.Parse(conf).Canonical()
		return err
	})
}
