package nvidia

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// libraryDir has the host's libraries. A real host has them in the folder of its architecture; this one has little
// else in it, and belongs to ldconfig's folders too.
const libraryDir = "usr/local/lib"

// sonames of the libraries that a made-up host has: enough to tell a version and to have something to bind.
var sonames = []string{
	"libnvidia-ml.so.1", "libcuda.so.1", "libcudadebugger.so.1", "libnvidia-ptxjitcompiler.so.1", "libnvidia-nvvm.so.4",
	"libnvidia-opencl.so.1", "libnvidia-encode.so.1", "libnvcuvid.so.1",
}

var libraryPattern = regexp.MustCompile(`^(lib(?:nvidia-|cuda|nvcuvid).*\.so)\.[0-9.]+$`)

// libraries are the host's libraries, by their path below the root; there is no code in them.
func (h *Host) libraries() map[string]entry {
	all := map[string]entry{}
	if h.Libraries == "" {
		return all
	}
	for _, soname := range sonames {
		file := libraryPattern.FindStringSubmatch(soname)[1] + "." + h.Libraries
		all[libraryDir+"/"+file] = entry{content: "made up by phoenix-sandbox: " + file + "\n", mode: 0o644}
		all[libraryDir+"/"+soname] = entry{target: file}
	}
	return all
}

// layLibraries puts the libraries where they belong, and removes those of other versions.
func (t Tree) layLibraries(h *Host) error {
	want := h.libraries()
	now, err := os.ReadDir(filepath.Join(t.Root, libraryDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range now {
		if _, ok := want[libraryDir+"/"+e.Name()]; ok || !libraryPattern.MatchString(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(t.Root, libraryDir, e.Name())); err != nil {
			return err
		}
	}
	for path, e := range want {
		if err := t.put(path, e); err != nil {
			return err
		}
	}
	return nil
}
