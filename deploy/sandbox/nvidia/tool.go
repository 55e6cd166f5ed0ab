package nvidia

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Tools is the driver's programs on one host.
type Tools struct {
	Tree     Tree
	Machine  string // folder of the machine's own modprobe and modinfo, for modules that are not the driver's; "": it has none
	Out, Err io.Writer
}

// Tools that Main stands in for, by name.
var tools = map[string]func(*Tools, []string) int{
	"nvidia-smi":      (*Tools).smi,
	"nvidia-modprobe": (*Tools).nvidiaModprobe,
	"modprobe":        (*Tools).modprobe,
	"modinfo":         (*Tools).modinfo,
	"phoenix-nvml":    (*Tools).phoenixNVML,
}

// Knows says whether a program of this name is one of the tools.
func Knows(name string) bool { return tools[name] != nil }

// Main runs the tool of this name and returns its exit status.
func (t *Tools) Main(name string, args []string) int { return tools[name](t, args) }

// nvidiaModprobe is nvidia-modprobe: it loads modules and makes device nodes. It says nothing and exits with 1 if
// something does not work.
func (t *Tools) nvidiaModprobe(args []string) int {
	var minors []int
	var capabilities []string
	work := "nvidia"
	for len(args) > 0 {
		option, value := args[0], ""
		args = args[1:]
		if long, v, ok := strings.Cut(option, "="); ok && strings.HasPrefix(option, "--") {
			option, value = long, v
		} else if strings.HasPrefix(option, "-c") && len(option) > 2 { // -c0
			option, value = "-c", option[2:]
		} else if (option == "-c" || option == "-f") && len(args) > 0 {
			value, args = args[0], args[1:]
		}
		switch option {
		case "-c", "--create-nvidia-device-file":
			minor, err := strconv.Atoi(value)
			if err != nil {
				return t.usage("nvidia-modprobe", option+" "+value)
			}
			minors = append(minors, minor)
		case "-f", "--nvidia-capability-file":
			capabilities = append(capabilities, value)
		case "-u", "--unified-memory":
			work = "nvidia-uvm"
		case "-m", "--modeset":
			work = "nvidia-modeset"
		case "-l", "--nvlink":
			work = "nvidia-nvlink"
		case "-s", "--nvswitch":
			work = "nvidia-nvswitch"
		case "-a", "--auto-online-movable":
		default:
			return t.usage("nvidia-modprobe", option)
		}
	}
	if err := t.prepare(work, minors, capabilities); err != nil {
		return 1
	}
	return 0
}

// errNoSwitch is for what needs a machine with NVSwitches.
var errNoSwitch = errors.New("no NVSwitch on this host")

func (t *Tools) prepare(work string, minors []int, capabilities []string) error {
	module := map[string]string{"nvidia-uvm": "nvidia_uvm", "nvidia-modeset": "nvidia_modeset"}[work]
	if module == "" {
		module = "nvidia"
	}
	var h Host
	err := t.Tree.Change(func(now *Host) error {
		err := now.Load(module)
		h = *now
		return err
	})
	if err != nil {
		return err
	}
	var nodes []DeviceNode
	switch work {
	case "nvidia-uvm":
		if slices.Contains(minors, 0) {
			nodes = h.uvmNodes()
		}
		return t.Tree.MakeNodes(nodes...)
	case "nvidia-nvswitch":
		return errNoSwitch
	case "nvidia-nvlink":
		return t.Tree.MakeNodes(DeviceNode{"/dev/nvidia-nvlink", h.Majors.NVLink, 0, 0o666})
	case "nvidia-modeset":
		nodes = append(nodes, h.modesetNode())
	}
	for _, minor := range minors {
		if minor == controlMinor {
			nodes = append(nodes, h.controlNode())
		} else {
			nodes = append(nodes, h.gpuNode(minor))
		}
	}
	params, err := t.Tree.values("/proc/driver/nvidia/params")
	if err != nil {
		return err
	}
	if params["ModifyDeviceFiles"] == 0 {
		nodes = nil // and yet it succeeds
	}
	for _, path := range capabilities {
		n, err := t.Tree.capabilityNode(&h, path)
		if err != nil {
			return err
		}
		if n != nil {
			nodes = append(nodes, *n)
		}
	}
	return t.Tree.MakeNodes(nodes...)
}

func (t *Tools) usage(tool, word string) int {
	fmt.Fprintf(t.Err, "the sandbox's %s does not know %s\n", tool, word)
	return 2
}

// modprobe loads and with -r removes the driver's modules; others are left to the machine's own.
func (t *Tools) modprobe(args []string) int {
	remove := false
	var names []string
	for _, arg := range args {
		switch {
		case arg == "-r" || arg == "--remove":
			remove = true
		case !strings.HasPrefix(arg, "-"):
			names = append(names, strings.ReplaceAll(arg, "-", "_"))
		}
	}
	for _, name := range names {
		_, ours := modules[name]
		if !ours && name != "vfio_pci" {
			return t.machines("modprobe", args, func() int { return t.notFound(name) })
		}
		err := t.Tree.Change(func(h *Host) error {
			switch {
			case !ours:
				return nil // it is a part of this kernel
			case remove:
				return h.Unload(name)
			}
			return h.Load(name)
		})
		switch {
		case err != nil && remove:
			fmt.Fprintf(t.Err, "modprobe: FATAL: Module %s is in use.\n", name)
			return 1
		case err != nil:
			return t.notFound(name)
		}
	}
	return 0
}

func (t *Tools) notFound(module string) int {
	var u unix.Utsname
	_ = unix.Uname(&u) // it cannot fail
	fmt.Fprintf(t.Err, "modprobe: FATAL: Module %s not found in directory /lib/modules/%s\n",
		strings.ReplaceAll(module, "_", "-"), unix.ByteSliceToString(u.Release[:]))
	return 1
}

// modinfo knows -F version of the driver's modules, which is the version that the next boot loads.
func (t *Tools) modinfo(args []string) int {
	h, err := t.Tree.Host()
	if err != nil {
		fmt.Fprintln(t.Err, err)
		return 1
	}
	name := ""
	if len(args) > 0 {
		name = strings.ReplaceAll(args[len(args)-1], "-", "_")
	}
	notFound := func() int {
		fmt.Fprintf(t.Err, "modinfo: ERROR: Module %s not found.\n", name)
		return 1
	}
	_, ours := modules[name]
	switch {
	case !ours:
		return t.machines("modinfo", args, notFound)
	case h.OnDisk == "":
		return notFound()
	case len(args) != 3 || args[0] != "-F" || args[1] != "version":
		return t.usage("modinfo", strings.Join(args, " "))
	}
	fmt.Fprintln(t.Out, h.OnDisk)
	return 0
}

// machines runs the machine's own tool of this name; otherwise is what to do if it has none.
func (t *Tools) machines(name string, args []string, otherwise func() int) int {
	path := filepath.Join(t.Machine, name)
	if _, err := os.Stat(path); t.Machine == "" || err != nil {
		return otherwise()
	}
	cmd := exec.Command(path, args...)
	cmd.Args[0] = "/sbin/" + name // it may be one program with many names
	cmd.Stdout, cmd.Stderr = t.Out, t.Err
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	} else if err != nil {
		fmt.Fprintln(t.Err, err)
		return 1
	}
	return 0
}
