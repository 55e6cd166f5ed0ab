package driver_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"phoenix.internal/agent/driver"
)

func TestListedUUIDs(t *testing.T) {
	const a, b, m1, m2 = "GPU-7ecf2ec7-cd3c-9a40-5b9b-1b1a7d0d4b0a", "GPU-00000000-0000-4000-8000-000000000001",
		"MIG-11111111-1111-5111-8111-111111111111", "MIG-22222222-2222-5222-8222-222222222222"
	for _, tc := range []struct {
		name, out string
		want      []string
	}{
		{"nothing", "", nil},
		{"no devices", "No devices were found\n", nil},
		{"two GPUs", "GPU 0: NVIDIA H200 (UUID: " + a + ")\nGPU 1: NVIDIA H200 (UUID: " + b + ")\n", []string{b, a}},
		{"MIG on the first", "GPU 0: NVIDIA H200 (UUID: " + a + ")\n" +
			"  MIG 1g.18gb     Device  0: (UUID: " + m1 + ")\n" +
			"  MIG 2g.35gb     Device  1: (UUID: " + m2 + ")\n" +
			"GPU 1: NVIDIA H200 (UUID: " + b + ")\n", []string{b, m1, m2}},
		{"MIG before the 470 branch", "GPU 0: A100-SXM4-40GB (UUID: " + a + ")\n  MIG 1g.5gb Device 0: (UUID: MIG-" + a + "/7/0)\n", []string{"MIG-" + a + "/7/0"}},
		{"MIG without devices that can be seen", "GPU 0: NVIDIA H200 (UUID: " + a + ")\n", []string{a}},
		{"a name with a UUID in it", "GPU 0: x (UUID: " + b + ") y (UUID: " + a + ")\n", []string{a}},
		{"lost", "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error\nGPU 1: NVIDIA H200 (UUID: " + b + ")\n", []string{b}},
		{"no final newline", "GPU 0: x (UUID: " + a + ")", []string{a}},
		{"within a line", "see GPU 0: x (UUID: " + a + ")\n", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := driver.ListedUUIDs([]byte(tc.out)); !slices.Equal(got, tc.want) {
				t.Errorf("%q gives %q, want %q", tc.out, got, tc.want)
			}
		})
	}
}

func TestDPKGPackages(t *testing.T) {
	const status = `Package: libc6
Status: install ok installed
Description: x
 Package: libcuda1

Package: libnvidia-compute-580
Status: install ok installed

Package: nvidia-utils-550
Status: deinstall ok config-files

Package: libnvidia-container1
Status: install ok installed

Package: libnvidia-egl-wayland1
Status: install ok installed

Package: nvidia-smi
Status: hold ok installed

Package: libegl-nvidia0
Status: install ok half-installed

Package: libcuda1
Status: install ok installed`
	want := []string{"libnvidia-compute-580", "nvidia-smi", "libcuda1"}
	if got := driver.DPKGPackages(strings.NewReader(status)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Each option is one that the installer says it knows: an unknown one makes it fail.
func TestFlags(t *testing.T) {
	for _, tc := range []struct {
		name, version string
		graphics      bool
		known         string
		want          string
	}{
		{"new", "580.105.08", false, "  -z, --no-nouveau-check\n      Skip it.\n  --systemd, --no-systemd\n      --no-backup is another one\n  --no-opengl-files\n",
			"--silent --no-kernel-modules --no-nouveau-check --no-systemd --no-opengl-files"},
		{"graphics", "580.105.08", true, "  --no-opengl-files\n  --no-x-check\n", "--silent --no-kernel-modules --no-x-check"},
		{"before 515", "470.256.02", false, "  --no-systemd-units\n", "--silent --no-kernel-module"},
		{"no help", "580.105.08", false, "", "--silent --no-kernel-modules"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := strings.Join(driver.Flags(tc.version, tc.graphics, []byte(tc.known)), " "); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// A process that a container has altered does not make the node or the controller busy.
func TestAnswersOfAHostileContainer(t *testing.T) {
	const line = `{"progress":{"phase":"copy","done":1,"total":2}}` + "\n"
	synctest.Test(t, func(t *testing.T) {
		told := 0
		if err := driver.Answer(strings.Repeat(line, 1000), func(driver.Progress) error { told++; return nil }); err != nil || told != 1 {
			t.Errorf("1000 lines at once: told %d times, %v; want once", told, err)
		}
	})
	for _, tc := range []struct{ name, lines string }{
		{"backwards", `{"progress":{"phase":"install"}}` + "\n" + line},
		{"a phase of the node", `{"progress":{"phase":"download"}}` + "\n"},
		{"negative", `{"progress":{"phase":"copy","done":-1}}` + "\n"},
		{"no JSON", "\n"},
		{"a long line", strings.Repeat("x", 1<<20+1)},
	} {
		if err := driver.Answer(tc.lines, func(driver.Progress) error { return nil }); !errors.Is(err, driver.ErrHelper) {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
}
