package doctor

import (
	"fmt"
	"strings"
)

// cuda results are named in cuda.h (CUresult).
var cudaResults = map[int]string{
	2: "CUDA_ERROR_OUT_OF_MEMORY", 3: "CUDA_ERROR_NOT_INITIALIZED", 34: "CUDA_ERROR_STUB_LIBRARY",
	100: "CUDA_ERROR_NO_DEVICE", 101: "CUDA_ERROR_INVALID_DEVICE", 802: "CUDA_ERROR_SYSTEM_NOT_READY",
	803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", 804: "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", 999: "CUDA_ERROR_UNKNOWN",
}

// wantsDriver reports whether the container is to have a user-space driver, or has one all the same.
func (e *examination) wantsDriver() bool {
	return len(e.targets) > 0 && (e.Wish != nil && e.Wish.Driver || e.Driver != nil && e.Driver.Err == "" && e.Driver.State != "none")
}

// userSpace: the driver's libraries are there, of the version of the loaded module.
func (e *examination) userSpace() string {
	d := e.Driver
	switch {
	case len(e.targets) == 0:
		return e.notApplicable(noGPU)
	case e.Wish != nil && e.Wish.DriverMode == "none":
		return e.notApplicable("driver_mode is none")
	case d == nil:
		return e.notExamined("the agent was not asked")
	case d.Err != "":
		return e.notExamined(d.Err)
	case !e.wantsDriver():
		return e.notApplicable("it has no libraries of NVIDIA's driver, and the fleet file does not ask for them (feature nvidia)")
	}
	if d.Libc == "musl" {
		e.broken(Musl, "its loader is musl's", "use a container with glibc (Debian, Ubuntu): NVIDIA has no driver for musl", "NVIDIA's driver cannot work in this container: its C library is musl")
		return ""
	}
	if d.Libc == "none" && d.State == "none" {
		e.broken(NoLibc, "there is no loader of a C library in it", "use a container with glibc (Debian, Ubuntu)", "the container has no C library that NVIDIA's driver could use")
		return ""
	}
	if len(d.Packages) > 0 {
		e.warn(Packaged, "packages: "+strings.Join(d.Packages, ", "), fmt.Sprintf("phoenix-cli exec %d -- apt-get purge %s; then %s", e.CTID, strings.Join(d.Packages, " "), e.apply()),
			"packages of the distribution own driver libraries: an upgrade in the container breaks them")
	}
	install := e.installs()
	switch {
	case d.State == "none":
		e.broken(NoUserSpace, "there is no libnvidia-ml.so in it", install, "the container has no libraries of NVIDIA's driver")
	case d.Version != e.Node.Loaded:
		e.broken(VersionMismatch, fmt.Sprintf("libnvidia-ml.so.%s inside; /proc/driver/nvidia/version says %s", d.Version, e.Node.Loaded), install,
			"the driver's libraries inside are %s, and the loaded module is %s: they must be the same", orNone(d.Version), e.Node.Loaded)
	case d.State == "incomplete":
		e.broken(Incomplete, "sonames that lead nowhere: "+orNone(strings.Join(d.Broken, ", ")), install, "the driver's libraries inside are incomplete")
	}
	return fmt.Sprintf("libnvidia-ml.so.%s inside, as the loaded module", d.Version)
}

// installs is what brings the right libraries into the container.
func (e *examination) installs() string {
	if e.Wish != nil && e.Wish.Driver && e.Wish.DriverMode != "host" {
		return e.apply() + " --verify, which installs " + e.Node.Loaded + " unless it is there in full"
	}
	return fmt.Sprintf("install %s in it by the means that installed it before, or give it the feature nvidia in the fleet file and %s", e.Node.Loaded, e.apply())
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// smi: nvidia-smi inside lists exactly the assigned GPUs.
func (e *examination) smi() string {
	c := e.Check
	switch {
	case len(e.targets) == 0:
		return e.notApplicable(noGPU)
	case c == nil && !e.wantsDriver():
		return e.notApplicable("it has no libraries of NVIDIA's driver")
	case c == nil:
		return e.notExamined("the agent was not asked")
	case c.Err != "":
		return e.notExamined(c.Err)
	}
	proof := "nvidia-smi inside lists " + orNone(strings.Join(c.UUIDs, ", "))
	switch {
	case c.SMIError != "":
		e.broken(SMIFails, c.SMIError, fmt.Sprintf("phoenix-cli exec %d -- nvidia-smi shows it; %s", e.CTID, e.installs()), "nvidia-smi does not work inside")
	case len(c.Missing) > 0:
		e.broken(SMIMissing, proof, fmt.Sprintf("phoenix-cli probe %d; on %s: dmesg | grep NVRM", e.CTID, e.Node.Name), "nvidia-smi inside does not list %s", strings.Join(c.Missing, ", "))
	case len(c.Unexpected) > 0:
		e.broken(SMIMore, proof, fmt.Sprintf("%s; look for a rule that allows too much (phoenix-cli conf show %d)", e.apply(), e.CTID), "nvidia-smi inside lists %s, which is not assigned", strings.Join(c.Unexpected, ", "))
	}
	return proof
}

// cuda: cuInit succeeds, where there is a libcuda.
func (e *examination) cuda() string {
	c := e.Check
	switch {
	case len(e.targets) == 0:
		return e.notApplicable(noGPU)
	case c == nil && !e.wantsDriver():
		return e.notApplicable("it has no libraries of NVIDIA's driver")
	case c == nil || c.Err != "":
		return e.notExamined("nvidia-smi was not run")
	case c.CUDA == "no library":
		return e.notApplicable("there is no libcuda.so.1 inside")
	case c.CUDA != "ran":
		return e.notExamined("nothing inside could call cuInit")
	case c.CUDAResult != 0:
		name := cudaResults[c.CUDAResult]
		if name == "" {
			name = "see cuda.h"
		}
		e.broken(CUDAFails, fmt.Sprintf("cuInit(0) inside returned %d (%s)", c.CUDAResult, name),
			fmt.Sprintf("phoenix-cli probe %d: nvidia-uvm must open; on %s: dmesg | grep NVRM", e.CTID, e.Node.Name), "CUDA does not start inside")
		return ""
	}
	return "cuInit(0) inside returned 0"
}
