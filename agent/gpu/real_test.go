//go:build gpu

package gpu_test

import (
	"cmp"
	"encoding/json"
	"encoding/xml"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/nvml"
	"phoenix.internal/agent/nvml/nvmltest"
)

var update = flag.Bool("update", false, "keep what this machine says in testdata/real")

// smiLog is what `nvidia-smi -q -x` prints.
type smiLog struct {
	DriverVersion string `xml:"driver_version"`
	CUDAVersion   string `xml:"cuda_version"`
	GPUs          []struct {
		ID     string `xml:"id,attr"` // "00000000:01:00.0"
		Name   string `xml:"product_name"`
		UUID   string `xml:"uuid"`
		Minor  string `xml:"minor_number"`
		Memory string `xml:"fb_memory_usage>total"` // "16311 MiB"
		MIG    string `xml:"mig_mode>current_mig"`  // "Enabled", "Disabled", "N/A"
		Next   string `xml:"mig_mode>pending_mig"`
		Device []struct {
			Index   int    `xml:"index"`
			GPU     int    `xml:"gpu_instance_id"`
			Compute int    `xml:"compute_instance_id"`
			Memory  string `xml:"fb_memory_usage>total"`
		} `xml:"mig_devices>mig_device"`
	} `xml:"gpu"`
}

// TestRealGPUs runs where there is an NVIDIA driver:
//
//	go test -tags gpu -run TestRealGPUs -v [-update] ./agent/gpu
//
// or `go test -c -tags gpu` and CGO_ENABLED=1 go build ./agent/cmd/phoenix-nvml elsewhere, and there, with the path of
// the helper in PHOENIX_NVML and, where the linker does not find it, that of libnvidia-ml.so.1 in PHOENIX_NVML_LIBRARY,
// gpu.test -test.run TestRealGPUs -test.v.
//
// It would show that NVML through phoenix-nvml, /proc and /sys, and `nvidia-smi -q -x` tell the same indices, UUIDs,
// addresses, minors, names, sizes of memory and MIG devices; that the nodes in /dev have the majors of /proc/devices; that
// Prepare makes uvm's nodes and leaves right ones alone; and that the helper holds no device between two requests.
func TestRealGPUs(t *testing.T) {
	smi, err := exec.LookPath("nvidia-smi")
	if err != nil {
		t.Fatalf("no GPU here to compare with: %v", err)
	}
	text, err := exec.Command(smi, "-q", "-x").Output()
	if err != nil {
		t.Fatalf("nvidia-smi -q -x: %v\n%s", err, text)
	}
	var said smiLog
	if err := xml.Unmarshal(text, &said); err != nil {
		t.Fatalf("nvidia-smi -q -x: %v", err)
	}
	helper := os.Getenv("PHOENIX_NVML")
	if helper == "" {
		helper = nvmltest.Helper(t)
	}
	client := &nvml.Client{Program: helper, Library: os.Getenv("PHOENIX_NVML_LIBRARY")}
	defer client.Close()
	report, err := client.Scan(t.Context(), said.DriverVersion)
	if err != nil {
		t.Fatalf("NVML: %v", err)
	}
	scanner := &gpu.Scanner{SMI: "/nonexistent"}
	alone, err := scanner.Scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	merged, err := (&gpu.Scanner{NVML: client, SMI: "/nonexistent"}).Scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keep(t, said.DriverVersion+".xml", text)
	for name, v := range map[string]any{".nvml.json": report, ".proc.json": alone, ".merged.json": merged} {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s\n%s", name, b)
		keep(t, said.DriverVersion+name, append(b, '\n'))
	}

	compareNVML(t, &said, report)
	if _, err := os.Stat("/proc/driver/nvidia/gpus"); err != nil {
		t.Logf("not compared with /proc, which is not a driver's here: %v", err)
	} else {
		compareProc(t, &said, alone)
		compareProc(t, &said, merged)
	}
	compareNodes(t, alone)

	var wanted gpu.Want
	for _, g := range alone.GPUs {
		if g.Served() {
			wanted.GPUs = append(wanted.GPUs, gpu.Ref{Minor: g.Minor})
		}
	}
	if len(wanted.GPUs) > 0 {
		created, err := scanner.Prepare(t.Context(), wanted)
		t.Logf("prepare makes %q", created)
		if err != nil {
			t.Errorf("prepare: %v", err)
		}
		if created, err := scanner.Prepare(t.Context(), wanted); err != nil || created != nil {
			t.Errorf("second prepare: %q, %v, want nothing to do", created, err)
		}
	}
	if held := devicesOfChildren(t); held != nil {
		t.Errorf("between two requests the helper has %q open", held)
	}
}

// compareNVML compares the helper's report with nvidia-smi, card by card.
func compareNVML(t *testing.T, said *smiLog, report *nvml.Report) {
	if report.DriverVersion != said.DriverVersion || report.CUDAVersion != said.CUDAVersion || len(report.GPUs) != len(said.GPUs) {
		t.Fatalf("NVML has driver %s, CUDA %s and %d GPUs, nvidia-smi %s, %s and %d", report.DriverVersion, report.CUDAVersion, len(report.GPUs),
			said.DriverVersion, said.CUDAVersion, len(said.GPUs))
	}
	for i, want := range said.GPUs {
		got := report.GPUs[i]
		minor := -1
		if got.Minor != nil {
			minor = *got.Minor
		}
		if got.Index != i || got.UUID != want.UUID || got.PCIAddress != address(want.ID) || got.Name != want.Name ||
			strconv.Itoa(minor) != want.Minor || got.MemoryMiB != mib(want.Memory) {
			t.Errorf("GPU %d: NVML says %+v, nvidia-smi %+v", i, got, want)
		}
		mode := [2]string{"N/A", "N/A"}
		if got.MIG != nil {
			words := map[bool]string{true: "Enabled", false: "Disabled"}
			mode = [2]string{words[got.MIG.Current], words[got.MIG.Pending]}
		}
		if mode != [2]string{want.MIG, want.Next} {
			t.Errorf("GPU %d: its MIG mode is %v, for nvidia-smi %v and %v", i, mode, want.MIG, want.Next)
		}
		var wantMIG, gotMIG []nvml.MIGDevice
		for _, d := range want.Device {
			wantMIG = append(wantMIG, nvml.MIGDevice{Index: d.Index, GPUInstance: d.GPU, ComputeInstance: d.Compute, MemoryMiB: mib(d.Memory)})
		}
		for _, d := range got.MIGDevices {
			if d.UUID == "" || d.Profile == "" {
				t.Errorf("GPU %d: a MIG device without UUID or profile: %+v", i, d)
			}
			d.UUID, d.Profile = "", ""
			gotMIG = append(gotMIG, d)
		}
		if diff := gocmp.Diff(wantMIG, gotMIG); diff != "" {
			t.Errorf("GPU %d: MIG devices (-nvidia-smi +NVML):\n%s", i, diff)
		}
	}
}

// compareProc compares a scan with nvidia-smi.
func compareProc(t *testing.T, said *smiLog, inv *gpu.Inventory) {
	if inv.DriverVersion != said.DriverVersion {
		t.Errorf("driver %s, for nvidia-smi %s", inv.DriverVersion, said.DriverVersion)
	}
	for i, want := range said.GPUs {
		j := slices.IndexFunc(inv.GPUs, func(g gpu.GPU) bool { return g.PCIAddress == address(want.ID) })
		if j < 0 {
			t.Errorf("GPU %s is in nvidia-smi alone", want.ID)
			continue
		}
		got := inv.GPUs[j]
		if got.Index != i || got.UUID != want.UUID || strconv.Itoa(got.Minor) != want.Minor || got.Model != want.Name || len(got.MIG) != len(want.Device) {
			t.Errorf("GPU %d: %+v, nvidia-smi says %+v", i, got, want)
		}
	}
}

// compareNodes says which nodes in /dev are not what /proc/devices says that they should be.
func compareNodes(t *testing.T, inv *gpu.Inventory) {
	nodes := slices.Clone(inv.Shared)
	for _, g := range inv.GPUs {
		nodes = append(nodes, g.Nodes...)
	}
	for _, n := range nodes {
		var st unix.Stat_t
		if err := unix.Lstat(n.Path, &st); err != nil {
			t.Logf("%s: %v", n.Path, err)
		} else if int(unix.Major(st.Rdev)) != n.Major || int(unix.Minor(st.Rdev)) != n.Minor {
			t.Errorf("%s is %d:%d, want %d:%d", n.Path, unix.Major(st.Rdev), unix.Minor(st.Rdev), n.Major, n.Minor)
		}
	}
}

// devicesOfChildren returns the driver's devices that this process's children have open.
func devicesOfChildren(t *testing.T) []string {
	children, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var held []string
	for _, path := range children {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		for pid := range strings.FieldsSeq(string(b)) {
			fds, err := filepath.Glob("/proc/" + pid + "/fd/*")
			if err != nil {
				t.Fatal(err)
			}
			for _, fd := range fds {
				if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "/dev/nvidia") {
					held = append(held, to)
				}
			}
		}
	}
	return held
}

// keep writes a file of testdata/real if it is asked for.
func keep(t *testing.T, name string, b []byte) {
	if !*update {
		return
	}
	if err := os.MkdirAll("testdata/real", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata/real", name), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// address is a PCI address of nvidia-smi as the kernel writes it.
func address(id string) string {
	domain, rest, _ := strings.Cut(strings.ToLower(id), ":")
	return cmp.Or(strings.TrimPrefix(domain, "0000"), "0000") + ":" + rest
}

// mib reads "16311 MiB"; -1: it is not that.
func mib(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSuffix(s, " MiB"), 10, 64)
	if err != nil {
		return -1
	}
	return n
}
