package agent_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"phoenix.internal/agent"
)

// Two agents with one state directory would finish each other's restarts.
func TestStateDirectoryIsOneAgents(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "phoenix")
	run := func() error {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // waits for nothing
		return agent.Run(ctx, agent.Config{StateDir: dir}, slog.New(slog.DiscardHandler))
	}
	// Without certificates it gets no further than that.
	if err := run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody has it: error %v, want that there is no certificate", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatalf("its lock outlived Run: %v", err)
	}
	if _, err := f.WriteString("4711\n"); err != nil {
		t.Fatal(err)
	}
	want := agent.StateHeldError{Path: f.Name(), Holder: "4711"}
	if e, ok := errors.AsType[*agent.StateHeldError](run()); !ok || *e != want {
		t.Errorf("somebody has it: %v, want %v", e, &want)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("he has ended: error %v, want that there is no certificate", err)
	}
}
