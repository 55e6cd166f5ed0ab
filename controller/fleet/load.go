package fleet

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// Load reads and parses the fleet file at path. The error is about the file as such: unreadable, no regular file,
// beyond [MaxBytes], or writable by everybody, who could then decide what runs in every container.
func Load(path string) (*Fleet, []Finding, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("read fleet file: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("read fleet file: %w", err)
	case info.IsDir():
		return nil, nil, fmt.Errorf("read fleet file %s: it is a directory; name the file in it, usually phoenix_lxc_configs.json", path)
	case !info.Mode().IsRegular():
		return nil, nil, fmt.Errorf("read fleet file %s: it is not a regular file", path)
	case info.Mode().Perm()&0o002 != 0:
		return nil, nil, fmt.Errorf("read fleet file %s: everybody may write it (mode %04o); run chmod o-w %s", path, info.Mode().Perm(), path)
	case info.Size() > MaxBytes:
		return nil, nil, fmt.Errorf("read fleet file %s: %d bytes are too many; a fleet file has at most %d (8 MiB)", path, info.Size(), MaxBytes)
	}
	b, err := io.ReadAll(io.LimitReader(file, MaxBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read fleet file: %w", err)
	}
	f, findings := Parse(path, b)
	return f, findings, nil
}
