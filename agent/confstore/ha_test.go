package confstore_test

import (
	"os"
	"path/filepath"
	"testing"

	"phoenix.internal/agent/confstore"
)

func TestManaged(t *testing.T) {
	const resources = `# by hand
ct: 901
	group prefer-pve1
	max_restart 2
	state started

ct: 9010
	state started

vm: 902
	state started

ct: 903
	state ignored

ct: 904
`
	for _, tc := range []struct {
		name string
		file string // none if empty
		ctid int32
		want bool
	}{
		{"no HA on this cluster", "", 901, false},
		{"managed", resources, 901, true},
		{"the start of another's number", resources, 90100, false},
		{"a virtual machine's number", resources, 902, false},
		{"ignored", resources, 903, false},
		{"no state, which means started", resources, 904, true},
		{"not in it", resources, 905, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.file != "" {
				if err := os.Mkdir(filepath.Join(dir, "ha"), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "ha", "resources.cfg"), []byte(tc.file), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			store := &confstore.Store{PVE: dir}
			if got, err := store.Managed(tc.ctid); got != tc.want || err != nil {
				t.Errorf("got %v, %v; want %v", got, err, tc.want)
			}
		})
	}
}
