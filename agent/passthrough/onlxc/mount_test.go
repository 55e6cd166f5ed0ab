package onlxc_test

import (
	"strings"
	"testing"

	"phoenix.internal/agent/lxctest"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

// TestMounts gives containers a device by odd mount entries and compares what passthrough.Of reads with
// what the container has. In the entries SOURCE is the device on the host.
func TestMounts(t *testing.T) {
	const (
		device = "/dev/nvidia1"
		ctid   = 100000101
		source = "/var/lib/lxc/100000101/dev0" // where lxctest makes the node of the first device
	)
	inv := passthrough.Inventory{
		GPUs:  []passthrough.GPU{{Minor: 1}},
		Nodes: []passthrough.Node{{Path: device, Major: 195, Minor: 1, Present: true, GPU: 1}},
	}
	for _, tt := range []struct {
		name   string
		values []string
		want   bool
	}{
		{"our own form", []string{"SOURCE dev/nvidia1 none bind,optional,create=file"}, true},
		{"all fields", []string{"SOURCE dev/nvidia1 none defaults,bind,create=file 0 0"}, true},
		{"tabs and blanks", []string{"SOURCE \t dev/nvidia1\tnone  bind,create=file"}, true},
		{"rbind, ro", []string{"SOURCE dev/nvidia1 none rbind,ro,create=file"}, true},
		{"quoted", []string{`"SOURCE dev/nvidia1 none bind,create=file"`}, true},
		{"single quotes", []string{`'SOURCE dev/nvidia1 none bind,create=file'`}, true},
		{"two slashes and a dot", []string{"SOURCE ./dev//nvidia1 none bind,create=file"}, true},
		{"escaped", []string{`SOURCE dev/nvidia\061 none bind,create=file`}, false},
		{"absolute", []string{"SOURCE /dev/nvidia1 none bind,optional,create=file"}, false},
		{"absolute below the root file system", []string{"SOURCE /var/lib/lxc/100000101/rootfs/dev/nvidia1 none bind,optional,create=file"}, true},
		{"not bound", []string{"SOURCE dev/nvidia1 none optional,create=file"}, false},
		{"relative", []string{"SOURCE dev/nvidia1 none bind,relative,optional,create=file"}, false},
		{"nodev, applied", []string{"SOURCE dev/nvidia1 none bind,ro,nodev,create=file"}, false},
		{"nodev, taken back", []string{"SOURCE dev/nvidia1 none bind,ro,nodev,dev,create=file"}, true},
		{"slash after the source", []string{"SOURCE/ dev/nvidia1 none bind,optional,create=file"}, false},
		{"slash after the target", []string{"SOURCE dev/nvidia1/ none bind,optional,create=file"}, false},
		{"dots in the target", []string{"SOURCE dev/../dev/nvidia1 none bind,optional,create=file"}, true},
		{"dots in the target over nothing", []string{"SOURCE dev/none/../nvidia1 none bind,optional,create=file"}, true},
		{"dots in the source", []string{"/dev/..SOURCE dev/nvidia1 none bind,optional,create=file"}, true},
		{"commented in quotes", []string{`" #SOURCE dev/nvidia1 none bind,create=file"`}, false},
		{"below a NUL", []string{"SOURCE srv/x none bind,create=file\x00", "SOURCE dev/nvidia1 none bind,create=file"}, false},
		{"before a NUL", []string{"SOURCE dev/nvidia1 none bind,create=file\x00,nodev", ""}, true},
		{"before a CR", []string{"SOURCE dev/nvidia1 none bind,create=file\r,nodev"}, true},
		{"create missing", []string{"SOURCE dev/nvidia1 none bind,optional"}, false},
		{"create a directory", []string{"SOURCE dev/nvidia1 none bind,optional,create=dir"}, false},
		{"commented", []string{"#SOURCE dev/nvidia1 none bind,create=file"}, false},
		{"twice", []string{"SOURCE dev/nvidia1 none bind,create=file", "SOURCE dev/nvidia1 none bind,optional,create=file"}, true},
		{"cancelled", []string{"SOURCE dev/nvidia1 none bind,create=file", ""}, false},
		{"cancelled, then again", []string{"SOURCE dev/nvidia1 none bind,create=file", "", "SOURCE dev/nvidia1 none bind,create=file"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conf := "unprivileged: 1\n"
			var config []string
			for _, v := range tt.values {
				conf += "lxc.mount.entry: " + strings.ReplaceAll(v, "SOURCE", device) + "\n"
				config = append(config, "lxc.mount.entry = "+strings.ReplaceAll(v, "SOURCE", source))
			}
			p, _ := passthrough.Of(pveconf.Parse([]byte(conf)), inv)
			if got := len(p.Devices) == 1 && p.Devices[0] == (passthrough.Device{Path: device, Major: 195, Minor: 1}); got != tt.want {
				t.Errorf("Of gives %v, want the device: %v", p.Devices, tt.want)
			}
			c := lxctest.Start(t, lxctest.Config{
				CTID:    ctid,
				Devices: []lxctest.Device{{Path: "/dev/source", Major: 195, Minor: 1}},
				Lines:   config,
			})
			out := c.Run(t, "(exec 3<>"+device+") 2>&1; true")
			if got := strings.Contains(out, "No such device or address"); got != tt.want {
				t.Errorf("in the container: %v, want %v; opening says %q", got, tt.want, out)
			}
		})
	}
}
