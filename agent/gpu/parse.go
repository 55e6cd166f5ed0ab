package gpu

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"
)

// parseDevices reads the majors of drivers from /proc/devices: of its character section only, as the
// block section repeats numbers. Of a name that stands there twice the first major counts. Drivers
// before the 550 branch register the GPUs as nvidia-frontend; they are under "nvidia" too.
func parseDevices(b []byte) map[string]int {
	majors := map[string]int{}
	inside := false
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasSuffix(strings.TrimSpace(line), ":") {
			inside = strings.TrimSpace(line) == "Character devices:"
			continue
		}
		major, err := strconv.Atoi(fields[0])
		if !inside || len(fields) != 2 || err != nil || major <= 0 {
			continue
		}
		if _, ok := majors[fields[1]]; !ok {
			majors[fields[1]] = major
		}
	}
	if frontend, ok := majors["nvidia-frontend"]; ok && majors["nvidia"] == 0 {
		majors["nvidia"] = frontend
	}
	return majors
}

var versionPattern = regexp.MustCompile(`^\d{2,4}\.\d{1,4}(\.\d{1,4})?`)

// parseVersion reads /proc/driver/nvidia/version.
func parseVersion(b []byte) (version string, open bool) {
	line, _, _ := strings.Cut(string(b), "\n")
	return firstVersion(line), strings.Contains(line, "Open Kernel Module")
}

// firstVersion returns the first word that is a version, without a suffix such as "-grid".
func firstVersion(line string) string {
	for word := range strings.FieldsSeq(line) {
		version := versionPattern.FindString(word)
		if rest := word[len(version):]; version != "" && (rest == "" || rest[0] == '-') {
			return version
		}
	}
	return ""
}

// information is what the driver tells about one GPU.
type information struct {
	model, uuid string
	minor       int // -1: unknown
	excluded    bool
}

var uuidPattern = regexp.MustCompile(`^GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// parseInformation reads /proc/driver/nvidia/gpus/*/information. Which keys there are depends on the
// driver's branch, and until it has initialised the GPU once, some values are question marks.
func parseInformation(b []byte) information {
	info := information{minor: -1}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "Model":
			if !strings.Contains(value, "??") {
				info.model = strings.ToValidUTF8(value, "\uFFFD")
			}
		case "GPU UUID":
			// Printed in lower case, but compared with what people write.
			if prefix, rest, ok := strings.Cut(value, "-"); ok {
				value = prefix + "-" + strings.ToLower(rest)
			}
			if uuidPattern.MatchString(value) {
				info.uuid = value
			}
		case "Device Minor":
			if minor, err := strconv.Atoi(value); err == nil && minor >= 0 && minor <= maxGPUMinor {
				info.minor = minor
			}
		case "GPU Excluded":
			info.excluded = value == "Yes"
		}
	}
	return info
}

// params are the driver's rules for device nodes.
type params struct {
	modify   bool // whether tools may touch the nodes of the GPUs
	mode     uint32
	uid, gid int
}

// parseParams reads /proc/driver/nvidia/params; what it lacks has the driver's default.
func parseParams(b []byte) params {
	p := params{modify: true, mode: 0o666}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 31)
		if err != nil {
			continue
		}
		switch strings.TrimSpace(key) {
		case "ModifyDeviceFiles":
			p.modify = n != 0
		case "DeviceFileMode":
			p.mode = uint32(n) & 0o777
		case "DeviceFileUID":
			p.uid = int(n)
		case "DeviceFileGID":
			p.gid = int(n)
		}
	}
	return p
}

var addressPattern = regexp.MustCompile(`^([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])$`)

// parseAddress returns a PCI address as the kernel writes it: lower case, a domain of at least four
// digits. NVML and nvidia-smi write eight.
func parseAddress(s string) (string, bool) {
	m := addressPattern.FindStringSubmatch(strings.ToLower(s))
	if m == nil {
		return "", false
	}
	domain := m[1]
	for len(domain) > 4 && domain[0] == '0' {
		domain = domain[1:]
	}
	return domain + ":" + m[2] + ":" + m[3] + "." + m[4], true
}

// compareAddresses compares addresses by number: a longer domain is a larger one.
func compareAddresses(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

// parseMemory reads what nvidia-smi prints for pci.bus_id,memory.total: MiB by PCI address. Lines
// without a number, "[N/A]" for example, are left out.
func parseMemory(b []byte) map[string]int64 {
	sizes := map[string]int64{}
	for line := range strings.Lines(string(b)) {
		bus, value, _ := strings.Cut(line, ",")
		address, ok := parseAddress(strings.TrimSpace(bus))
		size, err := strconv.ParseInt(strings.TrimSpace(value), 10, 32)
		if ok && err == nil && size > 0 {
			sizes[address] = size
		}
	}
	return sizes
}
