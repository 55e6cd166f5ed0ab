package nvidia

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// smi is nvidia-smi: -L (also without arguments), --query-gpu=... and --query-compute-apps=... with
// --format=csv[,noheader][,nounits], -mig 0|1, and mig -cgi PROFILES -C, -dci, -dgi, -lgi; -i chooses cards. Unlike the real one it makes
// no device nodes.
func (t *Tools) smi(args []string) int {
	h, err := t.Tree.Host()
	if err != nil {
		fmt.Fprintln(t.Err, err)
		return 1
	}
	nvml := h.nvml()
	switch nvml.ReturnCode {
	case codeNotLoaded:
		fmt.Fprint(t.Out, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "+
			"Make sure that the latest NVIDIA driver is installed and running.\n\n")
		return codeNotLoaded
	case codeMismatch:
		library := strings.Join(strings.Split(h.Libraries, ".")[:2], ".")
		fmt.Fprintf(t.Out, "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: %s\n", library)
		return codeMismatch
	}
	r := smiRun{tools: t, cards: nvml.GPUs, driver: nvml.DriverVersion, header: true, units: true}
	if err := r.parse(args, &nvml); err != nil {
		return t.usage("nvidia-smi", err.Error())
	}
	if len(r.cards) == 0 {
		fmt.Fprintln(t.Out, "No devices were found")
		return 6
	}
	return r.run()
}

// A smiRun is one call of nvidia-smi.
type smiRun struct {
	tools  *Tools
	cards  []NVMLGPU
	driver string

	fields        []string // of query
	query         string   // "--query-gpu" or "--query-compute-apps"
	header, units bool

	mode     string   // "0" or "1" of -mig
	mig      bool     // the sub-command
	profiles []string // of mig -cgi
	destroy  bool     // mig -dci or -dgi
}

type wordError string

func (e wordError) Error() string { return string(e) }

func (r *smiRun) parse(args []string, nvml *NVML) error {
	if len(args) > 0 && args[0] == "mig" {
		r.mig = true
		args = args[1:]
	}
	for len(args) > 0 {
		option, value, inline := strings.Cut(args[0], "=")
		args = args[1:]
		next := func() string {
			if !inline && len(args) > 0 {
				value, args = args[0], args[1:]
			}
			return value
		}
		switch option {
		case "--query-gpu", "--query-compute-apps":
			r.query = option
			for f := range strings.SplitSeq(next(), ",") {
				r.fields = append(r.fields, strings.TrimSpace(f))
			}
		case "--format":
			words := strings.Split(next(), ",")
			r.header, r.units = !slices.Contains(words, "noheader"), !slices.Contains(words, "nounits")
		case "-L", "--list-gpus", "-C", "--default-compute-instance", "-lgi", "--list-gpu-instances":
		case "-i", "--id":
			var chosen []NVMLGPU
			for word := range strings.SplitSeq(next(), ",") {
				g := nvml.find(word)
				if g == nil {
					return wordError(option + " " + word)
				}
				chosen = append(chosen, *g)
			}
			r.cards = chosen
		case "-mig", "--multi-instance-gpu":
			r.mode = next()
		case "-cgi", "--create-gpu-instance":
			r.profiles = strings.Split(next(), ",")
		case "-dci", "-dgi", "--destroy-compute-instance", "--destroy-gpu-instance":
			r.destroy = true
		default:
			return wordError(option)
		}
	}
	return nil
}

func (r *smiRun) run() int {
	switch {
	case r.mode != "":
		return r.setMode()
	case r.mig && len(r.profiles) > 0:
		return r.partition()
	case r.mig && r.destroy:
		return r.change(func(g *GPU) error { g.MIG.Devices = nil; return nil }, "Successfully destroyed the instances of GPU %d\n")
	case r.mig:
		return r.instances()
	case r.query == "--query-gpu":
		return r.queryGPUs()
	case r.query != "":
		r.queryProcesses()
		return 0
	}
	return r.list()
}

// list is -L.
func (r *smiRun) list() int {
	for _, g := range r.cards {
		if g.ReturnCode != 0 {
			fmt.Fprintf(r.tools.Out, "Unable to determine the device handle for GPU%d: %s: GPU is lost.  Reboot the system to recover this GPU\n",
				g.Index, g.PCI)
			return g.ReturnCode
		}
		fmt.Fprintf(r.tools.Out, "GPU %d: %s (UUID: %s)\n", g.Index, g.Name, g.UUID)
		if g.MIG == nil {
			continue
		}
		for _, d := range g.MIG.Devices {
			fmt.Fprintf(r.tools.Out, "  MIG %-15s Device %2d: (UUID: %s)\n", d.Profile, d.Index, d.UUID)
		}
	}
	return 0
}

func (r *smiRun) queryGPUs() int {
	if r.header {
		r.row(func(f string) string { return f })
	}
	code := 0
	for _, g := range r.cards {
		r.row(func(f string) string { return r.value(g, f) })
		if g.ReturnCode != 0 {
			code = g.ReturnCode
		}
	}
	return code
}

func (r *smiRun) row(value func(field string) string) {
	var values []string
	for _, f := range r.fields {
		values = append(values, value(f))
	}
	fmt.Fprintln(r.tools.Out, strings.Join(values, ", "))
}

func (r *smiRun) value(g NVMLGPU, field string) string {
	switch field { // what is known without the card
	case "index":
		return strconv.Itoa(g.Index)
	case "pci.bus_id", "gpu_bus_id":
		return g.PCI
	case "driver_version":
		return r.driver
	case "count":
		return strconv.Itoa(len(r.cards))
	}
	if g.ReturnCode != 0 {
		return "[GPU is lost]"
	}
	switch field {
	case "uuid", "gpu_uuid":
		return g.UUID
	case "name", "gpu_name":
		return g.Name
	case "memory.total":
		return r.mib(g.TotalMiB)
	case "memory.used":
		return r.mib(g.UsedMiB)
	case "memory.free":
		return r.mib(g.TotalMiB - g.UsedMiB)
	case "mig.mode.current", "mig.mode.pending":
		switch {
		case g.MIG == nil:
			return "[N/A]"
		case field == "mig.mode.current" && g.MIG.Current, field == "mig.mode.pending" && g.MIG.Pending:
			return "Enabled"
		}
		return "Disabled"
	}
	return "[N/A]"
}

func (r *smiRun) mib(n int) string {
	if r.units {
		return fmt.Sprintf("%d MiB", n)
	}
	return strconv.Itoa(n)
}

func (r *smiRun) queryProcesses() {
	if r.header {
		r.row(func(f string) string { return f })
	}
	for _, g := range r.cards {
		for _, p := range g.Processes {
			r.row(func(f string) string {
				switch f {
				case "pid":
					return strconv.Itoa(p.PID)
				case "used_memory", "used_gpu_memory":
					return r.mib(p.UsedMiB)
				case "gpu_uuid":
					return g.UUID
				case "gpu_bus_id":
					return g.PCI
				case "gpu_name":
					return g.Name
				}
				return "[N/A]"
			})
		}
	}
}

// instances is mig -lgi, of which only the lines with instances are like the real one's.
func (r *smiRun) instances() int {
	found := false
	for _, g := range r.cards {
		if g.MIG == nil {
			continue
		}
		for _, d := range g.MIG.Devices {
			fmt.Fprintf(r.tools.Out, "|  %2d  MIG %-15s %4d  %6d  |\n", g.Index, d.Profile, profileIDs[d.Profile], d.GI)
			found = true
		}
	}
	if !found {
		fmt.Fprintln(r.tools.Out, "No GPU instances found: Not Found")
		return 6
	}
	return 0
}
