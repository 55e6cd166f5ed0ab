package bootguard

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/statefile"
)

// waits says whether an error is one of Proxmox's file system that goes away while a cluster forms.
func waits(err error) bool {
	for _, passing := range []error{
		confstore.ErrNotMounted, confstore.ErrNoQuorum, confstore.ErrBusy, confstore.ErrDisconnected, confstore.ErrNoAnswer,
	} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

// await calls fn, and calls it again until its error is not one that goes away by waiting, or the deadline is over.
func await[T any](ctx context.Context, deadline time.Time, fn func() (T, error)) (T, error) {
	timeout := time.NewTimer(time.Until(deadline))
	defer timeout.Stop()
	retry := time.NewTicker(250 * time.Millisecond)
	defer retry.Stop()
	for {
		v, err := fn()
		if err == nil || !waits(err) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, errors.Join(err, ctx.Err())
		case <-timeout.C:
			return v, err
		case <-retry.C:
		}
	}
}

// A boot is what the guard remembers: the boot in which it did its work.
type boot struct {
	ID string `json:"boot_id"`
}

// Done says whether the guard has done its work in this boot.
func (g *Guard) Done() bool {
	var done boot
	return statefile.Load(g.file(), &done) == nil && done.ID != "" && done.ID == g.boot()
}

func (g *Guard) mark() error {
	if g.Done() {
		return nil
	}
	return statefile.Save(g.file(), boot{g.boot()})
}

func (g *Guard) file() string { return filepath.Join(g.Containers.StateDir, "boot-guard.json") }

// boot is the kernel's name of this boot; empty if it does not say.
func (g *Guard) boot() string {
	b, err := os.ReadFile(filepath.Join(cmp.Or(g.Proc, "/proc"), "sys/kernel/random/boot_id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
