// Package driver puts the user space of NVIDIA's driver into LXC containers. A [Cache] fetches the runfile of each
// version once per node, verifies and extracts it; an [Installer] copies the extracted files into containers and has
// NVIDIA's own installer install them there.
//
// What works in a container is this program: see [attach.Helper] and [Main]. The container is taken to be hostile: it
// can say anything about itself, but make nothing of it on the node.
package driver

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// Progress is how far a fetch or an installation is.
type Progress struct {
	Phase Phase `json:"phase"`
	Done  int64 `json:"done"`  // bytes
	Total int64 `json:"total"` // bytes; 0: not known
}

// A Phase is a part of a fetch or an installation.
type Phase string

// The phases: the first three of a fetch, the others of an installation.
const (
	Download Phase = "download"
	Verify   Phase = "verify"
	Extract  Phase = "extract"
	Copy     Phase = "copy"
	Install  Phase = "install"
	Check    Phase = "check"
)

// A SourceError says that an installer may not be fetched from somewhere.
type SourceError struct {
	URL     string
	Allowed []string // the prefixes that are
	Why     string   // empty: it has none of them
}

func (e *SourceError) Error() string {
	if e.Why != "" {
		return fmt.Sprintf("%s is no source of installers: %s", e.URL, e.Why)
	}
	return fmt.Sprintf("%s is no allowed source of installers: driver_sources of this agent are %q", e.URL, e.Allowed)
}

// A FetchError says that a file could not be fetched. What has arrived is kept.
type FetchError struct {
	URL string
	Err error
}

func (e *FetchError) Error() string { return fmt.Sprintf("fetch %s: %v", e.URL, e.Err) }
func (e *FetchError) Unwrap() error { return e.Err }

// A ChecksumError says that an installer is another one than asked for.
type ChecksumError struct {
	Version   string
	Want, Got string // SHA-256 in lower-case hex
	Cached    string // directory of the one that is in the cache; empty: it was being fetched, and nothing of it is left
}

func (e *ChecksumError) Error() string {
	if e.Cached != "" {
		return fmt.Sprintf("installer of %s in the node's cache has the SHA-256 %s, and should have %s; to fetch another, remove %s on the node",
			e.Version, e.Got, e.Want, e.Cached)
	}
	return fmt.Sprintf("installer of %s has the SHA-256 %s, and should have %s", e.Version, e.Got, e.Want)
}

// An InvalidError says that what was fetched is no installer of the version.
type InvalidError struct {
	Version string
	Err     error
}

func (e *InvalidError) Error() string { return fmt.Sprintf("installer of %s: %v", e.Version, e.Err) }
func (e *InvalidError) Unwrap() error { return e.Err }

// A NotCachedError says that a version has not been fetched.
type NotCachedError struct{ Version string }

func (e *NotCachedError) Error() string {
	return fmt.Sprintf("installer of %s is not in the node's cache", e.Version)
}

// A SpaceError says that a file system of the node has too little space.
type SpaceError struct {
	Path         string
	Needed, Free int64 // bytes
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("%s: %d MiB are needed, and its file system has %d free", e.Path, e.Needed>>20, e.Free>>20)
}

// A LibcError says that NVIDIA's driver cannot work in a container.
type LibcError struct{ Libc Libc }

func (e *LibcError) Error() string {
	if e.Libc == Musl {
		return "the container's C library is musl, and NVIDIA's driver works with glibc only; use a container of Debian, Ubuntu or another distribution with glibc"
	}
	return "the container has no glibc, which NVIDIA's driver needs"
}

// A PackagedError says that a container has the driver from its distribution.
type PackagedError struct{ Packages []string }

func (e *PackagedError) Error() string {
	return fmt.Sprintf("the container has the driver from packages of its distribution, which NVIDIA's installer must not be mixed with; remove them first: %s", strings.Join(e.Packages, " "))
}

// A SmallError says that a container has too little of something.
type SmallError struct {
	Resource           string // "disk" or "memory"
	NeededMiB, FreeMiB int64
}

func (e *SmallError) Error() string {
	return fmt.Sprintf("an installation needs %d MiB of %s, and the container has %d MiB free", e.NeededMiB, e.Resource, e.FreeMiB)
}

// An InstallError says that an installation or a removal went wrong in the container.
type InstallError struct {
	Message string
	Output  string // the last lines that the installer printed; printable
}

func (e *InstallError) Error() string {
	if e.Output == "" {
		return e.Message
	}
	return e.Message + ":\n" + e.Output
}

// Errors that callers branch on.
var (
	ErrNotRemovable = errors.New("the container's driver libraries were not put there by NVIDIA's installer, or that is gone; install the driver again and then remove it, or remove them by hand")
	ErrHelper       = errors.New("no valid answer from inside the container")
)

var versionPattern = regexp.MustCompile(`\A[0-9]{3}\.[0-9]{1,3}(\.[0-9]{1,3})?(-[a-z0-9]{1,16})?\z`)

// CheckVersion says what is wrong with a version given as "580.105.08".
func CheckVersion(version string) error {
	if !versionPattern.MatchString(version) {
		return fmt.Errorf("%.40q is no version of NVIDIA's driver such as 580.105.08", version)
	}
	return nil
}

// printable replaces what a terminal could take for more than a character or a line end.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
