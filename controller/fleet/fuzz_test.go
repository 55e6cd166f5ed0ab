package fleet_test

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/fleet"
)

// FuzzParse: nothing panics; every place is in the file; a file that encoding/json refuses has an error; what is read
// is within the limits and in order; and a second reading gives the same.
func FuzzParse(f *testing.F) {
	sample, err := os.ReadFile("../../deploy/config/phoenix_lxc_configs.sample.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	for _, s := range []string{
		"", "{}", "[", `{"lxc_configs": {"901": {"gpu_assignment": "0, 1", "clone_from_ctid": 902}, "902": {"dependencies": ["901"]}}}`,
		`{"lxc_configs": {"901": {"health_check": {"command": "x", "retries": 1e3}, "features": ["a", "a", 1], "name": "\ud800"}}}`,
		`{"a": 1, "a": [{"b": {"c": [[[]]]}}], "vms": 1}`, "\xef\xbb\xbf{}", `{"lxc_configs": {"٩٠١": NaN}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, findings := fleet.Parse("f", b)
		lines := bytes.Split(b, []byte("\n"))
		for _, finding := range findings {
			if finding.Line > len(lines) || finding.Line > 0 && finding.Column > len(lines[finding.Line-1])+1 || finding.Line > 0 && finding.Column < 1 {
				t.Errorf("finding %s is outside of the file", finding)
			}
			if strings.ContainsAny(finding.String(), "\x00\n\r\x1b") {
				t.Errorf("finding %q would not print as one line", finding)
			}
		}
		if !json.Valid(b) && fleet.Valid(findings) {
			t.Error("it is not JSON, and there is no error")
		}
		for i, c := range got.Containers {
			if c.CTID < 100 || i > 0 && got.Containers[i-1].CTID >= c.CTID {
				t.Errorf("CTID %d at %d", c.CTID, i)
			}
			for j, gpu := range c.GPUs {
				if gpu.Index < 0 || gpu.Index > 255 || gpu.Kind == 0 || j > 0 && c.GPUs[j-1].Kind > gpu.Kind {
					t.Errorf("CTID %d: GPUs %v", c.CTID, c.GPUs)
				}
			}
			if c.Mode != fleet.ModeRaw && c.Mode != fleet.ModeNative {
				t.Errorf("CTID %d: mode %q", c.CTID, c.Mode)
			}
		}
		if _, again := fleet.Parse("f", b); !slices.Equal(findings, again) {
			t.Errorf("findings %v, then %v", findings, again)
		}
	})
}

// FuzzAssignment: what is accepted has one canonical form, which reads the same.
func FuzzAssignment(f *testing.F) {
	for _, s := range []string{"", "none", "0", "0, 1", "0,1,", ",,", "-1", "0-3", "all", "٠", "GPU-1", "0000:01:00.0", "007", "0:1,1g.10gb,any:2", "2x1g.10gb", "MIG-GPU-1/1/0", "1:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		gpus, err := fleet.Assignment(s)
		if err != nil {
			if gpus != nil || strings.ContainsAny(err.Error(), "\x00\n\r\x1b") {
				t.Errorf("Assignment(%q) = %v, %q", s, gpus, err)
			}
			return
		}
		again, err := fleet.Assignment(fleet.Text(gpus))
		if err != nil || !cmp.Equal(again, gpus, written) {
			t.Errorf("Assignment(%q) = %v; its canonical form gives %v, %v", s, gpus, again, err)
		}
	})
}
