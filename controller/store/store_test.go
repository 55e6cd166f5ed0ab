package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller/store"
	"phoenix.internal/controller/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return &store.Memory{} })
}

func TestBolt(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, filepath.Join(t.TempDir(), "runs.db")) })
}

func open(t *testing.T, path string) *store.Bolt {
	t.Helper()
	s, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBoltSurvives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "runs.db")
	s := open(t, path)
	want := storetest.Sample("r1")
	if err := errors.Join(s.SaveRun(want), s.SetVerified(901, "key"), s.Close()); err != nil {
		t.Fatal(err)
	}

	s = open(t, path)
	defer s.Close()
	got, err := s.Run("r1")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Run after reopening: %v, -want +got:\n%s", err, diff)
	}
	keys, err := s.Verified()
	if err != nil || keys[901] != "key" {
		t.Errorf("Verified after reopening = %v, %v", keys, err)
	}
	for name, mode := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): os.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != mode {
			t.Errorf("mode of %s = %v, %v, want %v", name, info.Mode(), err, mode)
		}
	}
}

func TestBoltInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runs.db")
	s := open(t, path)
	defer s.Close()
	_, err := store.Open(path)
	e, ok := errors.AsType[*store.InUseError](err)
	if !ok || e.PID != os.Getpid() || e.Path != path {
		t.Fatalf("Open = %#v, want an InUseError with our PID %d", err, os.Getpid())
	}
	if got := err.Error(); !strings.Contains(got, "runs.db is in use by process ") || !strings.Contains(got, "state_dir") {
		t.Errorf("error %q does not say who has the file and what to do", got)
	}
}

func TestBoltUnusable(t *testing.T) {
	dir := t.TempDir()
	text, closed := filepath.Join(dir, "text.db"), filepath.Join(dir, "closed.db")
	if err := os.WriteFile(text, []byte(strings.Repeat("no database\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, closed)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		do         func(path string) error
		want       string
	}{
		{"another file", text, opening, text + " cannot be used: invalid database"},
		{"a directory", dir, opening, dir + " cannot be used: is a directory"},
		{"below a file", text + "/runs.db", opening, text + "/runs.db cannot be used: mkdir " + text + ": not a directory"},
		{"a write that fails", closed, func(string) error { return s.SetVerified(901, "key") },
			"save the verification of CTID 901: " + closed + " cannot be used: database not open"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.do(tt.path)
			e, ok := errors.AsType[*store.UnusableError](err)
			if !ok || e.Path != tt.path || err.Error() != tt.want {
				t.Errorf("got %T %v\nwant an UnusableError %s", err, err, tt.want)
			}
		})
	}
}

func opening(path string) error {
	_, err := store.Open(path)
	return err
}
