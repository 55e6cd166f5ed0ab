package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// statePatience is how long the state directory is waited for: a child that an agent was starting when it was killed
// holds the lock until it has become another program.
const statePatience = 5 * time.Second

// A StateHeldError says that another agent works with this state directory: it would take our unfinished restarts for
// its own.
type StateHeldError struct {
	Path   string // of the lock file
	Holder string // its PID, empty if it has not said
}

func (e *StateHeldError) Error() string {
	if e.Holder == "" {
		return e.Path + " is held: another phoenix-agent runs with this state_dir"
	}
	return fmt.Sprintf("%s is held by process %s: another phoenix-agent runs with this state_dir", e.Path, e.Holder)
}

// lockState takes the state directory for this process. The kernel gives it back when the process ends.
func lockState(ctx context.Context, dir string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state_dir: %w", err)
	}
	if err := holdState(ctx, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Truncate(0), write(f, fmt.Sprintln(os.Getpid()))); err != nil {
		return nil, errors.Join(fmt.Errorf("state_dir: %w", err), f.Close())
	}
	return f, nil
}

func write(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}

func holdState(ctx context.Context, f *os.File) error {
	timeout := time.NewTimer(statePatience)
	defer timeout.Stop()
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		select {
		case <-retry.C:
			continue
		case <-ctx.Done():
		case <-timeout.C:
		}
		holder, _ := os.ReadFile(f.Name()) // it need not have said
		return &StateHeldError{Path: f.Name(), Holder: strings.TrimSpace(string(holder))}
	}
}
