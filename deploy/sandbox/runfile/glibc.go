package runfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// AddGlibc gives a root file system of the sandbox, which has none, the look of one with glibc: this machine's loader and
// C library, owned by owner.
func AddGlibc(root string, owner int) error {
	loaders, err := filepath.Glob("/lib*/ld-linux-*.so.?")
	if err == nil && len(loaders) == 0 {
		err = errors.New("this machine has no glibc")
	}
	if err != nil {
		return err
	}
	libraries, err := filepath.Glob("/lib/*-linux-gnu/libc.so.6")
	if err != nil {
		return err
	}
	for _, path := range append(loaders[:1], libraries...) {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(root, path)
		if filepath.Dir(path) == "/lib64" {
			to = filepath.Join(root, "lib64", filepath.Base(path))
		} else if rest, ok := cutLib(path); ok {
			to = filepath.Join(root, "usr/lib", rest)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, b, 0o755); err != nil {
			return err
		}
		for _, p := range []string{filepath.Dir(to), to} {
			if err := os.Lchown(p, owner, owner); err != nil {
				return fmt.Errorf("glibc for %s: %w", root, err)
			}
		}
	}
	return nil
}

// cutLib cuts /lib/ off, which is a link to usr/lib in those root file systems.
func cutLib(path string) (string, bool) {
	rest, err := filepath.Rel("/lib", path)
	return rest, err == nil && !filepath.IsAbs(rest) && rest[0] != '.'
}
