package gpu_test

import (
	"regexp"
	"strings"
	"testing"

	"phoenix.internal/agent/gpu"
)

func FuzzParseDevices(f *testing.F) {
	f.Add([]byte(devices))
	f.Add([]byte("Character devices:\n\n195 nvidia\n"))
	f.Add([]byte("Character devices:\n-1 nvidia\n0 nvidia-uvm\n99999999999999999999 nvidia-caps\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, major := range gpu.ParseDevices(b) {
			if major <= 0 || name == "" || strings.ContainsAny(name, " \t\n") {
				t.Errorf("%q: %q has major %d", b, name, major)
			}
			if !strings.Contains(string(b), "Character devices:") {
				t.Errorf("%q: %q without a section of character devices", b, name)
			}
		}
	})
}

func FuzzParseInformation(f *testing.F) {
	f.Add([]byte(information(uuidA, "0")))
	f.Add([]byte("GPU UUID: GPU-????????-????-????-????-????????????\nDevice Minor: -1\n"))
	pattern := regexp.MustCompile(`^(GPU(-[0-9a-f]+){5})?$`)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, uuid, minor, _ := gpu.ParseInformation(b)
		if !pattern.MatchString(uuid) || minor < -1 || minor > 247 {
			t.Errorf("%q: UUID %q, minor %d", b, uuid, minor)
		}
	})
}

func FuzzParseVersion(f *testing.F) {
	for _, s := range []string{openVersion, closedVersion, "570.148.08-grid", "NVRM version: 1", "5800.1.2.3"} {
		f.Add([]byte(s))
	}
	pattern := regexp.MustCompile(`^[0-9.]*$`)
	f.Fuzz(func(t *testing.T, b []byte) {
		version, _ := gpu.ParseVersion(b)
		if !pattern.MatchString(version) || !strings.Contains(string(b), version) {
			t.Errorf("%q: version %q", b, version)
		}
		if again, _ := gpu.ParseVersion([]byte(version)); again != version {
			t.Errorf("%q: version %q is read as %q", b, version, again)
		}
	})
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"0000:01:00.0", "00000000:0A:00.0", "10000:01:00.7", "01:00.0", "0000:01:00.8"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		address, ok := gpu.ParseAddress(s)
		if !ok {
			return
		}
		if again, ok := gpu.ParseAddress(address); !ok || again != address {
			t.Errorf("%q is %q, which is %q, %v", s, address, again, ok)
		}
	})
}

func FuzzParseMemory(f *testing.F) {
	f.Add([]byte("00000000:01:00.0, 16311\n00000000:81:00.0, [N/A]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for address, size := range gpu.ParseMemory(b) {
			if again, ok := gpu.ParseAddress(address); !ok || again != address || size <= 0 {
				t.Errorf("%q: %q has %d MiB", b, address, size)
			}
		}
	})
}

func FuzzParseParams(f *testing.F) {
	f.Add([]byte("ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n"))
	f.Add([]byte("DeviceFileMode: 4294967295\nDeviceFileUID: -1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if mode, uid, gid := gpu.ParseParams(b); mode&^0o777 != 0 || uid < 0 || gid < 0 {
			t.Errorf("%q: mode %o, uid %d, gid %d", b, mode, uid, gid)
		}
	})
}
