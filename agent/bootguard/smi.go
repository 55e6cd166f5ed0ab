package bootguard

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// smiTimeout bounds each call of nvidia-smi. Switching MIG on takes seconds, and so does waking each card.
const smiTimeout = 45 * time.Second

// smi runs nvidia-smi. One that hangs in the kernel cannot be killed; it is not waited for.
func (r *run) smi(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, smiTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, cmp.Or(r.SMI, "/usr/bin/nvidia-smi"), args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	type answer struct {
		out []byte
		err error
	}
	done := make(chan answer, 1)
	go func() {
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		done <- answer{out.Bytes(), err}
	}()
	select {
	case a := <-done:
		if a.err != nil {
			return "", fmt.Errorf("nvidia-smi %s: %w: %q", strings.Join(args, " "), a.err, strings.TrimSpace(string(a.out)))
		}
		return string(a.out), nil
	case <-ctx.Done():
		return "", fmt.Errorf("nvidia-smi %s: %w", strings.Join(args, " "), ctx.Err())
	}
}
