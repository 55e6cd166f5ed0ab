// Package runfile makes stand-ins for NVIDIA's driver installers: self-extracting archives with the interface of
// NVIDIA-Linux-x86_64-VERSION.run, with an nvidia-installer in them that knows the options of the real one and installs
// libraries and an nvidia-smi, all of which do nothing real. They work in containers with a shell and coreutils, or
// busybox.
package runfile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Options say what a stand-in is.
type Options struct {
	Version string
	Loaded  string // of the node's module, which its nvidia-smi then sees; empty: Version
	GPUs    []GPU  // that its nvidia-smi lists where their device nodes are
	Extract int    // seconds that its extraction takes
	Padding int    // bytes that do not compress, for a download that takes its time
}

// A GPU is what nvidia-smi says of one.
type GPU struct {
	Minor      int
	Model      string
	UUID       string
	MIGDevices []MIGDevice // that nvidia-smi lists where their capability nodes are
}

// A MIGDevice is what nvidia-smi says of one.
type MIGDevice struct {
	Minor   int // of the node in /dev/nvidia-caps of its compute instance
	Profile string
	UUID    string
}

// Name is the name of a version's file.
func Name(version string) string { return "NVIDIA-Linux-x86_64-" + version + ".run" }

var (
	//go:embed header.sh
	header string
	//go:embed installer.sh
	installer string
	//go:embed smi.sh
	smi string
)

// libraries are the sonames of a stand-in's.
var libraries = []string{
	"libEGL_nvidia.so.0", "libcuda.so.1", "libnvcuvid.so.1", "libnvidia-cfg.so.1", "libnvidia-ml.so.1", "libnvidia-nvvm.so.4", "libnvidia-ptxjitcompiler.so.1",
}

// New makes a stand-in.
func New(o Options) []byte {
	var archive bytes.Buffer
	compressed := gzip.NewWriter(&archive)
	files := tar.NewWriter(compressed)
	add := func(name, content string, mode int64) {
		// Writing to memory does not fail.
		_ = files.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content)), Typeflag: tar.TypeReg})
		_, _ = files.Write([]byte(content))
	}
	if o.Loaded == "" {
		o.Loaded = o.Version
	}
	values := strings.NewReplacer("@VERSION@", o.Version, "@LOADED@", o.Loaded, "@EXTRACT@", strconv.Itoa(o.Extract), "@GPUS@", gpuLines(o.GPUs), "@OPTIONS@", options(o.Version))
	// The first nine lines of the real one are: what it is, the version, and seven more (nvidia-installer, parse_manifest).
	add(".manifest", "NVIDIA Accelerated Graphics Driver for Linux-x86_64\n"+o.Version+"\nstand-in\n"+strings.Repeat("-\n", 6), 0o644)
	add("nvidia-installer", values.Replace(installer), 0o755)
	add("nvidia-smi", values.Replace(smi), 0o755)
	_ = files.WriteHeader(&tar.Header{Name: "kernel/", Mode: 0o755, Typeflag: tar.TypeDir})
	add("kernel/Kbuild", "# nothing is built of it\n", 0o644)
	for _, soname := range libraries {
		name, _, _ := strings.Cut(soname, ".so.")
		add(name+".so."+o.Version, string(sharedObject(soname, "cuInit")), 0o755)
	}
	padding := make([]byte, o.Padding)
	rand.NewChaCha8([32]byte{1}).Read(padding)
	add("kernel/padding", string(padding), 0o644)
	_, _ = files.Close(), compressed.Close()
	return append([]byte(strings.ReplaceAll(values.Replace(header), "@LINES@", strconv.Itoa(strings.Count(header, "\n")+1))), archive.Bytes()...)
}

func gpuLines(gpus []GPU) string {
	var b strings.Builder
	for _, g := range gpus {
		fmt.Fprintf(&b, "gpu %d '%s' %s", g.Minor, g.Model, g.UUID)
		for _, d := range g.MIGDevices {
			fmt.Fprintf(&b, " %d:%s:%s", d.Minor, d.Profile, d.UUID)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// options are what a version's installer knows, as its help prints them (nvidia-installer, option_table.h). The year's
// versions differ: --no-kernel-modules came with 515, --rebuild-initramfs and others later.
func options(version string) string {
	all := "--silent --uninstall --advanced-options --no-nouveau-check --no-x-check --no-nvidia-modprobe --dkms --no-dkms" +
		" --no-drm --no-kernel-module-source --no-distro-scripts --no-backup --no-check-for-alternate-installs --no-rpms" +
		" --install-compat32-libs --no-install-compat32-libs --no-opengl-files --install-libglvnd --no-install-libglvnd"
	if version < "515" {
		return all + " --no-kernel-module"
	}
	return all + " --no-kernel-module --no-kernel-modules --no-peermem --systemd --no-systemd --rebuild-initramfs" +
		" --no-rebuild-initramfs --skip-depmod --skip-module-unload"
}
