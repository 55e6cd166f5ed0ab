package fleet_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/fleet"
)

func TestParse(t *testing.T) {
	const in = `{
  "nvidia_driver_version": "580.76.05",
  "nvidia_runfile_url": "https://mirror/580.76.05/NVIDIA-Linux-x86_64-580.76.05.run",
  "nvidia_runfile_sha256": "5B1F4C8E5B1F4C8E5B1F4C8E5B1F4C8E5B1F4C8E5B1F4C8E5B1F4C8E5B1F4C8E",
  "passthrough_mode": "native", "gpu_policy": "exclusive", "driver_mode": "none",
  "lxc_configs": {
    "910": {
      "name": "vllm", "node": "pve1", "gpu_assignment": "1, 0", "passthrough_mode": "raw",
      "gpu_policy": "shared", "gpu_capabilities": "graphics", "driver_mode": "host",
      "clone_from_ctid": 901, "dependencies": ["920", 901], "features": ["nvidia", "vllm"],
      "health_check": {"command": "pidof init", "retries": 5, "interval": 10, "timeout": 7}
    },
    "901": {"name": null, "gpu_assignment": null, "dependencies": null, "features": null, "health_check": null},
    "920": {"gpu_assignment": "none", "health_check": {"command": "true"}}
  }
}`
	f, findings := fleet.Parse("fleet.json", []byte(in))
	if len(findings) > 0 {
		t.Errorf("findings: %v; want none", findings)
	}
	want := &fleet.Fleet{
		Path:          "fleet.json",
		SHA256:        "b3e0834f022d5b2cdd54d66729790b1078c8ed19aef636cbc2ab590ffe12954c",
		Mode:          fleet.ModeNative,
		Policy:        fleet.PolicyExclusive,
		DriverMode:    fleet.DriverNone,
		DriverVersion: "580.76.05",
		Runfile:       "https://mirror/580.76.05/NVIDIA-Linux-x86_64-580.76.05.run",
		RunfileSHA256: "5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e5b1f4c8e",
		Containers: []fleet.Container{
			{CTID: 901, Mode: fleet.ModeNative, Policy: fleet.PolicyExclusive, Capabilities: []string{"compute"}, DriverMode: fleet.DriverNone, Line: 13},
			{
				CTID: 910, Name: "vllm", Node: "pve1", GPUs: indexes(0, 1), Mode: fleet.ModeRaw,
				Policy: fleet.PolicyShared, Capabilities: []string{"compute", "graphics"}, DriverMode: fleet.DriverHost,
				CloneFrom: 901, Dependencies: []int32{920, 901}, Features: []string{"nvidia", "vllm"},
				HealthCheck: &fleet.HealthCheck{Command: "pidof init", Retries: 5, Interval: 10 * time.Second, Timeout: 7 * time.Second},
				Line:        7,
			},
			{
				CTID: 920, Mode: fleet.ModeNative, Policy: fleet.PolicyExclusive, Capabilities: []string{"compute"}, DriverMode: fleet.DriverNone, Line: 14,
				HealthCheck: &fleet.HealthCheck{Command: "true", Retries: 3, Interval: 5 * time.Second, Timeout: 30 * time.Second},
			},
		},
	}
	if diff := cmp.Diff(want, f, written); diff != "" {
		t.Errorf("fleet (-want +got):\n%s", diff)
	}
}

// A container with an error is left out, so that nobody takes it for one without GPUs; the others stay.
func TestParseLeavesOutContainersWithErrors(t *testing.T) {
	f, findings := fleet.Parse("f.json", []byte(`{"lxc_configs": {"901": {"gpu_assignment": "x"}, "902": {"gpu_assignment": "1"}}}`))
	if fleet.Valid(findings) {
		t.Errorf("findings %v are valid", findings)
	}
	if len(f.Containers) != 1 || f.Containers[0].CTID != 902 {
		t.Errorf("containers: %+v; want 902 only", f.Containers)
	}
	if c := f.Container(902); c == nil || fleet.Text(c.GPUs) != "1" {
		t.Errorf("Container(902) = %+v", c)
	}
	if c := f.Container(901); c != nil {
		t.Errorf("Container(901) = %+v; want nil", c)
	}
}

// Failure 5: "0, 1" with a space, "", "none", null, a trailing comma, a duplicate. (An index that does not exist on the
// node is the plan's matter.)
func TestFailure05Assignment(t *testing.T) {
	for _, tt := range []struct {
		value string // of gpu_assignment, as JSON; empty for no such key
		want  string // in its canonical form
		err   string // part of the finding
	}{
		{value: ``, want: "none"},
		{value: `null`, want: "none"},
		{value: `""`, want: "none"},
		{value: `"  "`, want: "none"},
		{value: `"none"`, want: "none"},
		{value: `" none "`, want: "none"},
		{value: `"0"`, want: "0"},
		{value: `"1"`, want: "1"},
		{value: `"0,1"`, want: "0,1"},
		{value: `"0, 1"`, want: "0,1"},
		{value: `" 0\t,\t1 "`, want: "0,1"},
		{value: `"10,2,0"`, want: "0,2,10"},
		{value: `"255"`, want: "255"},
		{value: `1`, want: "1", err: "a number is taken for one index"},
		{value: `"0,1,"`, err: "has a comma at the end"},
		{value: `"0,0"`, err: "GPU 0 appears twice"},
	} {
		t.Run(tt.value, func(t *testing.T) {
			in := in901("")
			if tt.value != "" {
				in = in901(`"gpu_assignment": ` + tt.value)
			}
			f, findings := fleet.Parse("f.json", []byte(in))
			switch {
			case tt.err == "" && len(findings) > 0:
				t.Errorf("findings: %v; want none", findings)
			case tt.err != "" && (len(findings) != 1 || !strings.Contains(findings[0].String(), tt.err)):
				t.Errorf("findings: %v; want %q", findings, tt.err)
			}
			if !fleet.Valid(findings) {
				return
			}
			if c := f.Container(901); c == nil || fleet.Text(c.GPUs) != tt.want {
				t.Errorf("container = %+v; want GPUs %s", c, tt.want)
			}
		})
	}
}

// Failure 12: a dependency that is a VM, or a container that no node has. The file alone cannot tell, so it is a
// warning; the plan says which.
func TestFailure12UnknownDependency(t *testing.T) {
	f, findings := fleet.Parse("f.json", []byte(in901(`"dependencies": ["1002"]`)))
	want := "f.json:3:26: warning: containers 901: dependencies: 1002 is not in this file: a VM, or a container that is not managed; nothing waits for it"
	if len(findings) != 1 || findings[0].String() != want {
		t.Errorf("findings: %v; want %s", findings, want)
	}
	if c := f.Container(901); c == nil || !slices.Equal(c.Dependencies, []int32{1002}) {
		t.Errorf("container = %+v; want it with the dependency 1002", c)
	}
}

// Containers of a cycle cannot be planned; one that only waits for them can be read.
func TestCycleIsLeftOut(t *testing.T) {
	f, findings := fleet.Parse("f.json", []byte(`{"lxc_configs": {"901": {"dependencies": [902]}, "902": {"dependencies": [901]}, "903": {"dependencies": [901]}}}`))
	if fleet.Valid(findings) || len(f.Containers) != 1 || f.Containers[0].CTID != 903 {
		t.Errorf("containers %+v, findings %v; want 903 alone, and an error", f.Containers, findings)
	}
}

// Brackets in a string are no nesting, whatever quotes stand before them.
func TestBracketsInStrings(t *testing.T) {
	in := in901(`"name": "\"` + strings.Repeat("[", 100) + `\\"`)
	if f, findings := fleet.Parse("f.json", []byte(in)); len(findings) > 0 || len(f.Containers) != 1 {
		t.Errorf("Parse(%s): %v", in, findings)
	}
}

func TestHostileFiles(t *testing.T) {
	containers := func(n int) string {
		var s strings.Builder
		for i := range n {
			fmt.Fprintf(&s, "%q:{},", fmt.Sprint(100+i))
		}
		return `{"lxc_configs":{` + strings.TrimSuffix(s.String(), ",") + "}}"
	}
	for _, tt := range []struct {
		name, in, want string
	}{
		{"100 MB", strings.Repeat(" ", 100<<20), "f.json: 104857600 bytes are too many; a fleet file has at most 8388608 (8 MiB)"},
		{"depth of 10,000", `{"a":` + strings.Repeat("[", 10_000), "f.json:1:69: objects and lists are nested deeper than 64 levels"},
		{"depth in what is no JSON", strings.Repeat("}{[", 1000), "f.json:1:195: objects and lists are nested deeper than 64 levels"},
		{"two million values", `{"a":[` + strings.Repeat("1,", 2_000_000) + "1]}", "f.json: more than 1000000 values"},
		{"20,001 containers", containers(20_001), "f.json:1:209217: lxc_configs: 20001 containers are too many; a fleet file has at most 20000"},
		{"assignment of 1 MB", in901(`"gpu_assignment": "` + strings.Repeat("0,", 1<<19) + `"`), `f.json:3:27: containers 901: gpu_assignment: 524289 elements in "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,"...; a container has at most 256 GPUs`},
		{"assignment of one long digit string", in901(`"gpu_assignment": "` + strings.Repeat("0", 1<<20) + `"`), "f.json:3:27: containers 901: gpu_assignment: \"" + strings.Repeat("0", 60) + "\"... has a leading zero; write \"0\""},
		{"cut within a letter", in901(`"gpu_assignment": "` + strings.Repeat("ü", 100) + `"`), "f.json:3:27: containers 901: gpu_assignment: \"" + strings.Repeat("ü", 30) + "\"... is not a GPU; write indexes such as \"0,1\", a UUID, a PCI address, \"any:1\", \"all\" or \"none\""},
		{"long key", in901(`"` + strings.Repeat("k", 1<<20) + `": 1`), "f.json:3:9: warning: containers 901: unknown key \"" + strings.Repeat("k", 60) + "\"..."},
		{"long number", in901(`"health_check": {"command": "true", "retries": ` + strings.Repeat("9", 1<<20) + `}`), "f.json:3:56: containers 901: health_check.retries: 99999999999999999999... is out of range; want an integer from 1 to 100"},
		{"long name", in901(`"name": "` + strings.Repeat("n", 254) + `"`), "f.json:3:17: containers 901: name: 254 bytes are too many; a name has at most 253"},
		{"long feature", in901(`"features": ["` + strings.Repeat("f", 129) + `"]`), "f.json:3:22: containers 901: features: 129 bytes are too many; the name of a feature has at most 128"},
		{"long command", in901(`"health_check": {"command": "` + strings.Repeat("c", 65537) + `"}`), "f.json:3:37: containers 901: health_check.command: 65537 bytes are too many; a command has at most 65536"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := processorTime(t)
			_, findings := fleet.Parse("f.json", []byte(tt.in))
			if len(findings) != 1 || findings[0].String() != tt.want {
				t.Errorf("findings: %.300v\nwant %s", findings, tt.want)
			}
			// Far more than it takes: what is caught is quadratic work. Not by the clock, which a busy machine stretches.
			if took := processorTime(t) - start; took > 10*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// processorTime returns what this process has used.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func TestManyFindingsAreCut(t *testing.T) {
	var errors, warnings strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&errors, `"%d": {"gpu_assignment": "x"},`, 1000+i)
		fmt.Fprintf(&warnings, `"unknown%d": 1,`, i)
	}
	_, findings := fleet.Parse("f.json", []byte(`{"lxc_configs": {`+errors.String()+`"901": {`+warnings.String()+`"name": "x"}}}`))
	if len(findings) != 2002 {
		t.Fatalf("%d findings; want 2002", len(findings))
	}
	last := []string{findings[2000].String(), findings[2001].String()}
	want := []string{"f.json: 2000 more errors are not shown", "f.json: warning: 2000 more warnings are not shown"}
	if !slices.Equal(last, want) {
		t.Errorf("the last two are %q; want %q", last, want)
	}
}

// A chain as long as a fleet file can be is no cycle, and closed it is one.
func TestLongChains(t *testing.T) {
	chain := func(closed bool) []byte {
		var b bytes.Buffer
		b.WriteString(`{"lxc_configs":{`)
		for i := range fleet.MaxContainers {
			to := 1001 + i
			if i == fleet.MaxContainers-1 {
				to = 1000
			}
			if i < fleet.MaxContainers-1 || closed {
				fmt.Fprintf(&b, `"%d":{"dependencies":[%d]},`, 1000+i, to)
			} else {
				fmt.Fprintf(&b, `"%d":{},`, 1000+i)
			}
		}
		b.Truncate(b.Len() - 1)
		b.WriteString("}}")
		return b.Bytes()
	}
	f, findings := fleet.Parse("f.json", chain(false))
	if len(findings) > 0 || len(f.Containers) != fleet.MaxContainers {
		t.Errorf("open: %.300v, %d containers", findings, len(f.Containers))
	}
	_, findings = fleet.Parse("f.json", chain(true))
	want := "f.json:1:41: containers 1000: dependencies: cycle: 1000 depends on 1001, 1001 depends on 1002, 1002 depends on 1003, 1003 depends on 1004, 1004 depends on 1005, 1005 depends on 1006, 1006 depends on 1007, 1007 depends on 1008, 1008 depends on 1009, (19990 more), 20999 depends on 1000; remove one of these"
	if len(findings) != 1 || findings[0].String() != want {
		t.Errorf("closed: %.500v\nwant %s", findings, want)
	}
}

// fleetFiles is the directory with the files that Phoenix is made for. They are other people's and not in the repository;
// CI has them.
func fleetFiles(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("PHOENIX_FLEET_FILES")
	if dir == "" {
		t.Skip("PHOENIX_FLEET_FILES names no directory of fleet files")
	}
	return dir
}

func TestSharedFiles(t *testing.T) {
	for _, tt := range []struct {
		file       string
		containers int
		gpus       map[int32]string
		findings   int // all of them warnings of a dependency on VM 1002
	}{
		{"phoenix_lxc_configs-2025-09-23.json", 15, map[int32]string{
			901: "0,1", 903: "0,1", 920: "0,1", 950: "0", 951: "0", 955: "0", 957: "1",
		}, 0},
		{"phoenix_lxc_configs-2025-11-25.json", 12, map[int32]string{
			901: "0,1", 910: "0,1", 911: "0", 912: "1", 801: "0", 802: "0", 914: "0", 917: "0",
		}, 5},
	} {
		t.Run(tt.file, func(t *testing.T) {
			f, findings, err := fleet.Load(filepath.Join(fleetFiles(t), tt.file))
			if err != nil {
				t.Fatal(err)
			}
			if !fleet.Valid(findings) || len(findings) != tt.findings {
				t.Errorf("findings: %v; want %d warnings", findings, tt.findings)
			}
			for _, finding := range findings {
				if !strings.Contains(finding.Message, "1002 is not in this file") {
					t.Errorf("finding: %s", finding)
				}
			}
			gpus := map[int32]string{}
			for _, c := range f.Containers {
				if c.GPUs != nil {
					gpus[c.CTID] = fleet.Text(c.GPUs)
				}
			}
			if diff := cmp.Diff(tt.gpus, gpus); diff != "" || len(f.Containers) != tt.containers {
				t.Errorf("%d containers, want %d; GPUs (-want +got):\n%s", len(f.Containers), tt.containers, diff)
			}
		})
	}
}
