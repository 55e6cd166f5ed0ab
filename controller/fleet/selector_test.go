package fleet_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/fleet"
)

// indexes are the selectors of these GPUs.
func indexes(of ...int) []fleet.Selector {
	var s []fleet.Selector
	for _, i := range of {
		s = append(s, fleet.Selector{Kind: fleet.ByIndex, Index: i})
	}
	return s
}

// written leaves out how a selector is written.
var written = cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Text" }, cmp.Ignore())

func TestAssignment(t *testing.T) {
	const uuid = "5b1f4c8e-0a1b-2c3d-4e5f-0123456789ab"
	for _, tt := range []struct {
		in   string
		want []fleet.Selector
		text string
	}{
		{"", nil, "none"},
		{" none ", nil, "none"},
		{"0", []fleet.Selector{{Kind: fleet.ByIndex, Text: "0"}}, "0"},
		{"GPU-" + uuid, []fleet.Selector{{Kind: fleet.ByUUID, Text: "GPU-" + uuid, ID: "GPU-" + uuid}}, "GPU-" + uuid},
		{"GPU-" + strings.ToUpper(uuid), []fleet.Selector{{Kind: fleet.ByUUID, Text: "GPU-" + strings.ToUpper(uuid), ID: "GPU-" + uuid}}, "GPU-" + uuid},
		{"GPU-5b1f", []fleet.Selector{{Kind: fleet.ByUUID, Text: "GPU-5b1f", ID: "GPU-5b1f"}}, "GPU-5b1f"},
		{"GPU-5b1f4c8e-", []fleet.Selector{{Kind: fleet.ByUUID, Text: "GPU-5b1f4c8e-", ID: "GPU-5b1f4c8e"}}, "GPU-5b1f4c8e"},
		{"MIG-" + uuid, []fleet.Selector{{Kind: fleet.ByMIGUUID, Text: "MIG-" + uuid, ID: "MIG-" + uuid}}, "MIG-" + uuid},
		{"0000:0a:00.0", []fleet.Selector{{Kind: fleet.ByAddress, Text: "0000:0a:00.0", ID: "0000:0a:00.0"}}, "0000:0a:00.0"},
		{"0A:00.0", []fleet.Selector{{Kind: fleet.ByAddress, Text: "0A:00.0", ID: "0000:0a:00.0"}}, "0000:0a:00.0"},
		{"00000001:0A:00.0", []fleet.Selector{{Kind: fleet.ByAddress, Text: "00000001:0A:00.0", ID: "0001:0a:00.0"}}, "0001:0a:00.0"},
		{"0:1", []fleet.Selector{{Kind: fleet.ByMIGIndex, Text: "0:1", MIG: 1}}, "0:1"},
		{"1g.10gb", []fleet.Selector{{Kind: fleet.ByProfile, Text: "1g.10gb", ID: "1g.10gb"}}, "1g.10gb"},
		{"1c.3g.20gb+me", []fleet.Selector{{Kind: fleet.ByProfile, Text: "1c.3g.20gb+me", ID: "1c.3g.20gb+me"}}, "1c.3g.20gb+me"},
		{"1g.10gb,1g.10gb", []fleet.Selector{
			{Kind: fleet.ByProfile, Text: "1g.10gb", ID: "1g.10gb"}, {Kind: fleet.ByProfile, Text: "1g.10gb", ID: "1g.10gb"},
		}, "1g.10gb,1g.10gb"},
		{"any:2", []fleet.Selector{{Kind: fleet.Any, Text: "any:2", Count: 2}}, "any:2"},
		{"all", []fleet.Selector{{Kind: fleet.All, Text: "all"}}, "all"},
		{"any:1, 2g.20gb ,0:1,GPU-5b, 1", []fleet.Selector{
			{Kind: fleet.ByIndex, Text: "1", Index: 1},
			{Kind: fleet.ByMIGIndex, Text: "0:1", MIG: 1},
			{Kind: fleet.ByUUID, Text: "GPU-5b", ID: "GPU-5b"},
			{Kind: fleet.ByProfile, Text: "2g.20gb", ID: "2g.20gb"},
			{Kind: fleet.Any, Text: "any:1", Count: 1},
		}, "1,0:1,GPU-5b,2g.20gb,any:1"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			got, err := fleet.Assignment(tt.in)
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Fatalf("Assignment(%q): %v (-want +got):\n%s", tt.in, err, diff)
			}
			if text := fleet.Text(got); text != tt.text {
				t.Errorf("Text of %q = %q; want %q", tt.in, text, tt.text)
			}
		})
	}
}

// TestBadAssignments has what is left to say once no index was meant; TestBadFiles has the others.
func TestBadAssignments(t *testing.T) {
	const uuid = "5b1f4c8e-0a1b-2c3d-4e5f-0123456789ab"
	for in, want := range map[string]string{
		uuid:                       `"` + uuid + `" lacks its prefix; write "GPU-` + uuid + `", or "MIG-` + uuid + `" for a MIG device`,
		"GPU-":                     `"GPU-" is no UUID; write GPU- and the digits as nvidia-smi -L shows them, or enough of them from the left to be unique on the node`,
		"GPU-5b1g":                 `"GPU-5b1g" is no UUID; write GPU- and the digits as nvidia-smi -L shows them, or enough of them from the left to be unique on the node`,
		"GPU-" + uuid + "0":        `"GPU-` + uuid + `0" is no UUID; write GPU- and the digits as nvidia-smi -L shows them, or enough of them from the left to be unique on the node`,
		"gpu-5b1f":                 `"gpu-5b1f": GPU- and MIG- are written in upper case; write "GPU-5b1f"`,
		"Mig-5b1f":                 `"Mig-5b1f": GPU- and MIG- are written in upper case; write "MIG-5b1f"`,
		"MIG-GPU-" + uuid + "/1/0": `"MIG-GPU-` + uuid + `/1/0" is how drivers before 470 name a MIG device; write the UUID that nvidia-smi -L shows, or for example "0:1"`,
		"01:00":                    `"01:00" is no PCI address without its function; write "01:00.0"; MIG device 1 of GPU 0 is "0:1"`,
		"0000:01:00":               `"0000:01:00" is no whole PCI address; write "0000:01:00.0"`,
		"1:0.0":                    `"1:0.0" is no whole PCI address; write "0000:01:00.0"`,
		"0000:01:2f.0":             `"0000:01:2f.0" is no PCI address; write it as nvidia-smi shows it, for example "0000:01:00.0"`,
		"0:256":                    `"0:256": GPU 256 is out of range; indexes go from 0 to 255`,
		"01:1":                     `"01:1": "01" has a leading zero; write "1"`,
		"0: 1":                     `"0: 1" has blanks in it; write "0:1"`,
		"1G.10GB":                  `"1G.10GB" is written in lower case; write "1g.10gb"`,
		"MIG 1g.10gb":              `"MIG 1g.10gb": a profile stands alone; write "1g.10gb"`,
		"mig-1g.10gb":              `"mig-1g.10gb": a profile stands alone; write "1g.10gb"`,
		"2x1g.10gb":                `"2x1g.10gb": a profile stands there once for each MIG device; write "1g.10gb,1g.10gb"`,
		"1g.10gb:2":                `"1g.10gb:2": a profile stands there once for each MIG device; write "1g.10gb,1g.10gb"`,
		"1g":                       `"1g" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`,
		"any":                      `"any" does not say how many; write "any:1"`,
		"any:0":                    `"any:0" does not say how many; write a number from 1 to 255 behind the colon, for example "any:1"`,
		"any:all":                  `"any:all" does not say how many; write a number from 1 to 255 behind the colon, for example "any:1"`,
		"Any:2":                    `"Any:2" is written in lower case; write "any:2"`,
		"any:1,any:2":              `"any" stands there 2 times; write "any:3"`,
		"all,0":                    `"all" stands among others; write "all" alone, or only the others`,
		"0,ALL":                    `"ALL" is written in lower case; write "all"`,
		"*":                        `"*" is not a GPU; for every GPU of the node write "all"`,
		"GPU 0":                    `"GPU 0" has more than the index; write "0"`,
		"cuda:1":                   `"cuda:1" has more than the index; write "1"`,
		"GPU-5b1f,GPU-5B1F":        `GPU-5b1f appears twice in "GPU-5b1f,GPU-5B1F"; write "GPU-5b1f"`,
		"0:1,0:1":                  `GPU 0 MIG 1 appears twice in "0:1,0:1"; write "0:1"`,
		"01:00.0,0000:01:00.0":     `0000:01:00.0 appears twice in "01:00.0,0000:01:00.0"; write "0000:01:00.0"`,
	} {
		if got, err := fleet.Assignment(in); err == nil || err.Error() != want || got != nil {
			t.Errorf("Assignment(%q) = %v, %v\nwant %s", in, got, err, want)
		}
	}
}
