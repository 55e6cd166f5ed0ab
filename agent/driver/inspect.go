package driver

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// State is the user-space driver of a container, and what matters for installing one.
type State struct {
	Libc          Libc     `json:"libc"`
	Kind          Kind     `json:"kind"`
	Version       string   `json:"version"`         // of libnvidia-ml, else of libcuda; empty: neither
	CUDA          string   `json:"cuda"`            // of libcuda; empty: none
	Graphics      bool     `json:"graphics"`        // the libraries for OpenGL and EGL are there too
	Broken        []string `json:"broken"`          // sonames that lead to nothing or to another version
	Packages      []string `json:"packages"`        // of the distribution with driver libraries
	FreeDiskMiB   int64    `json:"free_disk_mib"`   // of the file system that holds /usr
	FreeMemoryMiB int64    `json:"free_memory_mib"` // -1: not known
}

// Libc is a kind of C library.
type Libc string

// The C libraries.
const (
	NoLibc Libc = "none"
	Glibc  Libc = "glibc"
	Musl   Libc = "musl"
)

// Kind is how complete a driver is.
type Kind string

// The kinds.
const (
	Absent     Kind = "absent"
	Complete   Kind = "complete"
	Incomplete Kind = "incomplete" // broken off, or broken sonames
)

// inspect looks at the root file system that this process has.
func inspect() State {
	s := State{Libc: libc(), Packages: packages(), FreeMemoryMiB: freeMemory()}
	var st unix.Statfs_t
	if err := unix.Statfs("/usr", &st); err == nil {
		s.FreeDiskMiB = int64(st.Bavail) * st.Bsize >> 20
	}
	s.addLibraries()
	if _, err := os.Lstat(markPath); err == nil {
		s.Kind = Incomplete
	}
	return s
}

// libc tells the C library by the loader that the container's shell asks for, else by what loaders there are: an Alpine
// may have a glibc loader of gcompat, and a Debian musl's for cross building.
func libc() Libc {
	for _, program := range []string{"/bin/sh", "/usr/bin/env", "/sbin/init"} {
		switch loader := filepath.Base(interpreter(program)); {
		case strings.HasPrefix(loader, "ld-musl"):
			return Musl
		case strings.HasPrefix(loader, "ld-linux"), strings.HasPrefix(loader, "ld64"):
			return Glibc
		}
	}
	for _, pattern := range []string{"/lib64/ld-linux-*.so.?", "/lib/ld-linux-*.so.?"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return Glibc
		}
	}
	if found, _ := filepath.Glob("/lib/ld-musl-*.so.1"); len(found) > 0 {
		return Musl
	}
	return NoLibc
}

// openELF opens a regular file as a program or library.
func openELF(path string) (*elf.File, io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, nil, errors.New("not a regular file")
	}
	e, err := elf.NewFile(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return e, f, nil
}

// interpreter returns the loader that a program asks for; empty if it is a script, linked statically or absent.
func interpreter(path string) string {
	e, closer, err := openELF(path)
	if err != nil {
		return ""
	}
	defer closer.Close()
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			if err != nil {
				return ""
			}
			return string(bytes.TrimRight(b, "\x00"))
		}
	}
	return ""
}

// libraryDirs are the directories of libraries, each once.
func libraryDirs() []string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	dirs := []string{
		"/usr/lib/" + triplet, "/lib/" + triplet, "/usr/lib64", "/lib64", "/usr/lib", "/lib", "/usr/local/lib",
	}
	confs, _ := filepath.Glob("/etc/ld.so.conf.d/*.conf")
	for _, path := range append(confs, "/etc/ld.so.conf") {
		b, _ := readSome(path, 64<<10)
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") {
				dirs = append(dirs, filepath.Clean(line))
			}
		}
	}
	var real []string
	for _, dir := range dirs {
		if dir, err := filepath.EvalSymlinks(dir); err == nil && !slices.Contains(real, dir) {
			real = append(real, dir)
		}
	}
	return real
}

// readSome reads the beginning of a regular file.
func readSome(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// libraryPattern is a library of the driver: its version is its suffix (libnvidia-container, nvc_info.c).
var libraryPattern = regexp.MustCompile(`\Alib[A-Za-z0-9_+-]*(?:nvidia|cuda|nvcuvid|nvoptix)[A-Za-z0-9_+-]*\.so\.([0-9]{3}\.[0-9]{1,3}(?:\.[0-9]{1,3})?)\z`)

// versionOf is the version of the library that a soname in a directory leads to; empty if it leads to none.
func versionOf(dir, soname string) string {
	real, err := filepath.EvalSymlinks(filepath.Join(dir, soname))
	if err != nil {
		return ""
	}
	if m := libraryPattern.FindStringSubmatch(filepath.Base(real)); m != nil {
		return m[1]
	}
	return ""
}

// addLibraries finds the driver's libraries.
func (s *State) addLibraries() {
	dirs := libraryDirs()
	s.Version, s.CUDA = libraryVersion(dirs, "libnvidia-ml.so.1"), libraryVersion(dirs, "libcuda.so.1")
	if s.Version == "" {
		s.Version = s.CUDA
	}
	for _, soname := range []string{"libEGL_nvidia.so.0", "libGLX_nvidia.so.0"} {
		s.Graphics = s.Graphics || s.Version != "" && libraryVersion(dirs, soname) == s.Version
	}
	found := false
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.Type().IsRegular() && libraryPattern.MatchString(e.Name()) {
				found = true
				if soname := soname(filepath.Join(dir, e.Name())); soname != "" && versionOf(dir, soname) != s.Version {
					s.Broken = append(s.Broken, soname)
				}
			}
		}
	}
	slices.Sort(s.Broken)
	s.Broken = slices.Compact(s.Broken)
	switch {
	case !found && s.Version == "":
		s.Kind = Absent
	case s.Version == "" || len(s.Broken) > 0 || libraryVersion(dirs, "libnvidia-ml.so.1") == "":
		s.Kind = Incomplete
	default:
		s.Kind = Complete
	}
}

// libraryVersion is the version of the first library that a soname leads to.
func libraryVersion(dirs []string, soname string) string {
	for _, dir := range dirs {
		if v := versionOf(dir, soname); v != "" {
			return v
		}
	}
	return ""
}

// soname is the name by which programs look for a library; empty if it has none.
func soname(path string) string {
	e, closer, err := openELF(path)
	if err != nil {
		return ""
	}
	defer closer.Close()
	names, err := e.DynString(elf.DT_SONAME)
	if err != nil || len(names) == 0 || strings.ContainsRune(names[0], '/') {
		return ""
	}
	return names[0]
}

// packagePattern are packages with libraries of the driver, as Debian, Ubuntu and NVIDIA's own repository name them; the
// container toolkit and the libraries for EGL that NVIDIA does not version with the driver are none.
var (
	packagePattern = regexp.MustCompile(`\A(libnvidia-.+|libcuda1.*|libcudadebugger1|libnvcuvid1|libnvoptix1|nvidia-utils.*|nvidia-compute-utils.*|nvidia-smi|nvidia-driver.*|nvidia-alternative|cuda-drivers.*|lib(egl|gl|gles|glx).*-nvidia.*)\z`)
	otherPattern   = regexp.MustCompile(`\Alibnvidia-(container.*|egl-.+1|ml-dev)\z`)
)

// packages returns the installed packages of the distribution that have the driver's libraries, sorted.
func packages() []string {
	var all []string
	if f, err := os.OpenFile("/var/lib/dpkg/status", os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
		all = dpkgPackages(io.LimitReader(f, 64<<20))
		f.Close()
	}
	// Arch Linux has a directory for each package, NAME-VERSION-RELEASE.
	arch, _ := filepath.Glob("/var/lib/pacman/local/nvidia-utils-*")
	if len(arch) > 0 {
		all = append(all, "nvidia-utils")
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// dpkgPackages reads dpkg's status: paragraphs of fields, of which those of an installed package have a Status that ends
// in "installed".
func dpkgPackages(r io.Reader) []string {
	var all []string
	name, installed := "", false
	end := func() {
		if installed && packagePattern.MatchString(name) && !otherPattern.MatchString(name) {
			all = append(all, name)
		}
		name, installed = "", false
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if value, ok := strings.CutPrefix(line, "Package: "); ok {
			name = value
		} else if value, ok := strings.CutPrefix(line, "Status: "); ok {
			installed = strings.HasSuffix(value, " installed")
		} else if line == "" {
			end()
		}
	}
	end()
	return all
}

// freeMemory is what processes here can still get, in MiB: the cgroup's limit or the machine's memory, whichever is less.
func freeMemory() int64 {
	free := int64(-1)
	b, _ := readSome("/proc/meminfo", 64<<10)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemAvailable:" {
			if kib, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				free = kib >> 10
			}
		}
	}
	number := func(path string) (int64, bool) {
		b, err := readSome(path, 64)
		n, err2 := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return n, err == nil && err2 == nil
	}
	limit, ok := number("/sys/fs/cgroup/memory.max")
	used, ok2 := number("/sys/fs/cgroup/memory.current")
	if !ok || !ok2 {
		return free
	}
	stat, _ := readSome("/sys/fs/cgroup/memory.stat", 64<<10)
	for line := range strings.Lines(string(stat)) { // the kernel drops these when memory is asked for
		if f := strings.Fields(line); len(f) == 2 && (f[0] == "inactive_file" || f[0] == "active_file") {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			used -= n
		}
	}
	if left := max(limit-max(used, 0), 0) >> 20; free < 0 || left < free {
		return left
	}
	return free
}

// The helper's places in a container. The mark is there while an installation or removal is under way, or if it was
// broken off.
const (
	placeDir = "/var/lib/phoenix/driver"
	markPath = placeDir + "/unfinished.json"
	workDir  = placeDir + "/work"
	lockPath = placeDir + "/lock"
)

// setMark notes that an installation or removal begins.
func setMark(version string) error {
	return replaceFile(markPath, map[string]string{"version": version})
}

func clearMark() error {
	if err := os.Remove(markPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(placeDir)
}
