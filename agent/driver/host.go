package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"time"
)

// LibraryVersion is the version of the node's own user space; empty if it has none.
func LibraryVersion() string { return libraryVersion(libraryDirs(), "libnvidia-ml.so.1") }

// DiskVersion asks modinfo for the version of the module that the next boot loads; empty if there is none.
func DiskVersion(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/sbin/modinfo", "-F", "version", "nvidia")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	out, err := cmd.Output()
	if _, ok := errors.AsType[*exec.ExitError](err); ok || errors.Is(err, fs.ErrNotExist) {
		return "", ctx.Err() // there is no such module
	}
	if err != nil {
		return "", fmt.Errorf("modinfo: %w", err)
	}
	version := strings.TrimSpace(string(out))
	if CheckVersion(version) != nil {
		return "", nil
	}
	return version, nil
}
