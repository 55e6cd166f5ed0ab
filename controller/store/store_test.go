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

func TestBoltNotADatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runs.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("no database\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Open of another file = %v, want an error with its path", err)
	}
}
