package vmconf_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/vmconf"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, conf string
		want       vmconf.HostPCI
	}{
		{"none", "bios: ovmf\ncores: 8\nscsi0: local-zfs:vm-300-disk-0,size=32G\n", vmconf.HostPCI{}},
		{"one function", "hostpci0: 0000:01:00.0,pcie=1,x-vga=1\n", vmconf.HostPCI{Addresses: []string{"0000:01:00.0"}}},
		{"all functions", "hostpci0: 0000:01:00,pcie=1\n", vmconf.HostPCI{Addresses: []string{"0000:01:00"}}},
		{"without domain", "hostpci0: 41:00.0\n", vmconf.HostPCI{Addresses: []string{"0000:41:00.0"}}},
		{"with its key", "hostpci0: pcie=1,host=01:00\n", vmconf.HostPCI{Addresses: []string{"0000:01:00"}}},
		{"several in one line", "hostpci0: 01:00.0;01:00.1;10000:02:00,rombar=0\n",
			vmconf.HostPCI{Addresses: []string{"0000:01:00.0", "0000:01:00.1", "10000:02:00"}}},
		{"several lines, blanks and CR", "hostpci0:01:00\nhostpci15:\t 02:00 \r\n", vmconf.HostPCI{Addresses: []string{"0000:01:00", "0000:02:00"}}},
		{"the last of a key counts", "hostpci0: 01:00\nhostpci0: 02:00\n", vmconf.HostPCI{Addresses: []string{"0000:02:00"}}},
		{"mapping", "hostpci0: mapping=gpus,pcie=1\n", vmconf.HostPCI{Mappings: []string{"gpus"}}},
		{"mediated device", "hostpci0: 01:00.0,mdev=nvidia-63\nhostpci1: mapping=vgpus,mdev=nvidia-63\n", vmconf.HostPCI{}},
		{"no more than 16", "hostpci16: 01:00\nhostpci01: 01:00\n", vmconf.HostPCI{}},
		{"neither comment nor other key", "#hostpci0: 01:00\n hostpci0: 01:00\nnothostpci0: 01:00\n", vmconf.HostPCI{}},
		{"not an address", "hostpci0: 0000:01:0G.0\nhostpci1: 01:00.00\nhostpci2: 01\n", vmconf.HostPCI{}},
		{"snapshot", "hostpci0: 01:00\n[before]\nhostpci0: 02:00\nhostpci1: 03:00\n", vmconf.HostPCI{Addresses: []string{"0000:01:00"}}},
		{"pending and special sections", "cores: 1\n[PENDING]\nhostpci0: 01:00\n[special:fleecing]\nhostpci1: 02:00\n", vmconf.HostPCI{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, vmconf.Parse([]byte(tt.conf))); diff != "" {
				t.Errorf("Parse(%q) (-want +got):\n%s", tt.conf, diff)
			}
		})
	}
}

func TestTakes(t *testing.T) {
	h := vmconf.Parse([]byte("hostpci0: 01:00\nhostpci1: 02:00.1\n"))
	for address, want := range map[string]bool{
		"0000:01:00.0": true, "0000:01:00.1": true, "0000:02:00.1": true,
		"0000:02:00.0": false, "0000:01:01.0": false, "0001:01:00.0": false, "10000:01:00.0": false,
	} {
		if got := h.Takes(address); got != want {
			t.Errorf("Takes(%q) of %+v = %t, want %t", address, h, got, want)
		}
	}
}

// FuzzParse holds the laws that sections after the main one change nothing, and that only what is an address is taken for
// one.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "hostpci0: 0000:01:00.0;02:00,pcie=1\nhostpci1: mapping=gpus\n[snap]\nhostpci2: 03:00\n", "hostpci0: host=01:00,mdev=a\r\n", "[", "hostpci0: ,;=,host=;",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := vmconf.Parse(b)
		if later := vmconf.Parse(slices.Concat(b, []byte("\n[a]\nhostpci3: 7f:00.0\n"))); !cmp.Equal(got, later) {
			t.Errorf("%q gives %+v, and with a snapshot %+v", b, got, later)
		}
		for _, a := range got.Addresses {
			if len(a) < len("0000:01:00") || !got.Takes(a) {
				t.Errorf("%q gives the address %q", b, a)
			}
		}
	})
}
