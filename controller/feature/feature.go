// Package feature knows the scripts that set up features in containers, how a script and a health check are run there,
// and how to see that a feature holds. It runs nothing itself: it gives the commands.
package feature

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxBytes is the size that a script may have.
const MaxBytes = 1 << 20

// ErrNotFound is returned for a feature that has no script.
var ErrNotFound = errors.New("no such script")

// A DirError tells that the directory of the scripts cannot be read.
type DirError struct {
	Dir string
	Err error
}

func (e *DirError) Error() string { return fmt.Sprintf("features_dir: %s: %v", e.Dir, e.Err) }

// Unwrap returns the cause.
func (e *DirError) Unwrap() error { return e.Err }

var filePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,127}\.sh$`)

// Scripts is a directory of scripts, each named for its feature with ".sh". An empty Dir has none.
type Scripts struct {
	Dir string
}

// A Script is one script, read and checked.
type Script struct {
	Feature string
	SHA256  string // of Content, lower-case hex
	Content []byte
	Shell   []string // interpreter with its options, from the first line
}

// List returns the features that have a script. Whether a script may be used is seen by [Scripts.Open]. Fails with a
// [*DirError].
func (s Scripts) List() (map[string]bool, error) {
	features := map[string]bool{}
	if s.Dir == "" {
		return features, nil
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		if p, ok := errors.AsType[*fs.PathError](err); ok {
			err = p.Err // without the path
		}
		return nil, &DirError{Dir: s.Dir, Err: err}
	}
	for _, e := range entries {
		if name := e.Name(); checkFile(name) == nil && !e.IsDir() {
			features[strings.TrimSuffix(name, ".sh")] = true
		}
	}
	return features, nil
}

// Open reads the script of a feature. It refuses names that could lead out of the directory, symbolic links, what is
// no regular file, more than [MaxBytes], and scripts that somebody else than root and the caller's user may change. It
// returns [ErrNotFound] if there is none.
func (s Scripts) Open(feature string) (*Script, error) {
	name := feature + ".sh"
	if err := checkFile(name); err != nil {
		return nil, fmt.Errorf("script of feature %q: %w", feature, err)
	}
	if s.Dir == "" {
		return nil, fmt.Errorf("script of feature %s: no features_dir is set: %w", feature, ErrNotFound)
	}
	content, err := read(s.Dir, name)
	if err != nil {
		return nil, fmt.Errorf("script %s in %s: %w", name, s.Dir, err)
	}
	shell, err := check(content)
	if err != nil {
		return nil, fmt.Errorf("script %s in %s: %w", name, s.Dir, err)
	}
	sum := sha256.Sum256(content)
	return &Script{Feature: feature, SHA256: hex.EncodeToString(sum[:]), Content: content, Shell: shell}, nil
}

func checkFile(name string) error {
	if !filePattern.MatchString(name) || strings.Contains(name, "..") {
		return errors.New(`not a name; use a to z, 0 to 9, ".", "_" and "-", at most 128, beginning with a letter or digit and without two dots in a row`)
	}
	return nil
}

func read(dir, name string) ([]byte, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := checkOwner(d); err != nil {
		return nil, fmt.Errorf("the directory %w", err)
	}
	// O_NONBLOCK: a FIFO must not hold us up before it is seen to be one.
	fd, err := unix.Openat2(int(d.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNotFound
	case errors.Is(err, unix.ELOOP):
		return nil, errors.New("it is a symbolic link; put the file itself there")
	case err != nil:
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	}
	if err := checkOwner(f); err != nil {
		return nil, fmt.Errorf("it %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(content) > MaxBytes:
		return nil, fmt.Errorf("it is larger than %d bytes (1 MiB)", MaxBytes)
	}
	return content, nil
}

// checkOwner makes sure that only root and the caller's own user may change a file.
func checkOwner(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("cannot be looked at: %w", err)
	}
	switch {
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("belongs to user %d; it must belong to root or to user %d", st.Uid, os.Geteuid())
	case st.Mode&0o022 != 0:
		return fmt.Errorf("may be written by its group or by everybody (mode %04o); run chmod go-w", st.Mode&0o7777)
	}
	return nil
}
