// Package nvmltest stands in for NVIDIA's management library where there is no GPU: a library written in C that the
// real phoenix-nvml loads, and that tells what a text says. It needs gcc.
//
// Each line of the text is one of
//
//	init CODE|segfault|abort|exit|hang                    what becomes of nvmlInit; without it, it succeeds
//	driver VERSION
//	cuda 13000
//	print TEXT                                            printed by nvmlInit on standard output
//	leak PATH                                             opened by nvmlInit and never closed
//	gpu UUID DDDD:BB:SS.0 MINOR MIB USED_MIB NAME         in the order of indices; a minor of -1 or 0 MIB is "not supported"
//	link I J                                              NVLink between two indices
//
// and, about the GPU before it,
//
//	mig CURRENT PENDING                                   0 or 1 each; without it, MIG is not supported
//	migdevice INDEX UUID GI CI MIB PROFILE
//	process C|G PID MIB                                   -1 MIB is "not available"
//	recovery ACTION                                       without it, the field is not supported
//	code CODE                                             what every call about it returns; with 15 it cannot even be opened
//	misbehaves CODE|segfault|abort|exit|hang              when asked for its memory
package nvmltest

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

//go:embed testdata/libnvidia-ml.c
var source string

// Conf is the name of the file beside the library that holds the text. It is read at each nvmlInit.
const Conf = "nvml.conf"

// Compile makes the library at path. Options are further ones for gcc: -DOLD leaves out the functions that are missing
// in old drivers.
func Compile(path string, options ...string) error {
	cmd := exec.Command("gcc", append([]string{"-shared", "-fPIC", "-O1", "-w", "-x", "c", "-", "-o", path, "-ldl"}, options...)...)
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile a stand-in for libnvidia-ml: %w: %s", err, out)
	}
	return nil
}

// compiled holds the libraries that this process has compiled, by their options.
var compiled = struct {
	sync.Mutex
	libraries map[string][]byte
}{libraries: map[string][]byte{}}

// Library returns the path of a library that tells what text says. Where gcc is missing the test is skipped.
func Library(t *testing.T, text string, options ...string) string {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("gcc is not installed: no stand-in for libnvidia-ml")
	}
	path := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	key := strings.Join(options, " ")
	compiled.Lock()
	defer compiled.Unlock()
	if compiled.libraries[key] == nil {
		if err := Compile(path, options...); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		compiled.libraries[key] = b
	}
	if err := os.WriteFile(path, compiled.libraries[key], 0o755); err != nil {
		t.Fatal(err)
	}
	Tell(t, path, text)
	return path
}

// Tell has a library tell something else from its next initialisation on.
func Tell(t *testing.T, library, text string) {
	t.Helper()
	// Renamed into its place: the library may be reading.
	path := filepath.Join(filepath.Dir(library), Conf)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// Helper returns the path of a phoenix-nvml made from this tree. Where cgo or gcc is missing the test is skipped.
func Helper(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("gcc is not installed: no phoenix-nvml")
	}
	program, err := build()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "phoenix-nvml")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// build makes the helper once for all tests of the process.
var build = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "nvmltest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "phoenix-nvml")
	cmd := exec.Command("go", "build", "-o", path, "phoenix.internal/agent/cmd/phoenix-nvml")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build phoenix-nvml: %w: %s", err, out)
	}
	return os.ReadFile(path)
})
