package gpu

import (
	"context"
	"encoding/xml"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// addMIGNames adds what only NVIDIA's library knows of MIG devices, the UUIDs first of all, as nvidia-smi tells it: for a
// node where the library itself was not asked. It is asked once for each division.
func (s *Scanner) addMIGNames(ctx context.Context, inv *Inventory) {
	key := inv.key()
	unnamed := false
	for _, g := range inv.GPUs {
		for _, m := range g.MIG {
			key += fmt.Sprintf(" %s/%d/%d", g.PCIAddress, m.Instance.GPU, m.Instance.Compute)
			unnamed = unnamed || m.UUID == ""
		}
	}
	if !unnamed {
		return
	}
	names := askSMI(ctx, s, &s.migNames, key, askMIGNames)
	for i := range inv.GPUs {
		inv.GPUs[i].name(names[inv.GPUs[i].UUID])
	}
}

// name adds what is told of its MIG devices.
func (g *GPU) name(told []MIGDevice) {
	for i := range g.MIG {
		m := &g.MIG[i]
		j := slices.IndexFunc(told, func(t MIGDevice) bool { return t.Instance == m.Instance })
		if j < 0 || m.UUID != "" {
			continue
		}
		m.Index, m.UUID, m.Profile = told[j].Index, told[j].UUID, told[j].Profile
		g.from(fromSMI, "mig_devices")
	}
}

// askMIGNames asks nvidia-smi twice: the list has the UUIDs and the profiles by the numbers of the MIG devices, the long
// answer the instances by these numbers. The names are by the UUID of the GPU.
func askMIGNames(smi smi) map[string][]MIGDevice {
	const most = 4 << 20
	list, err := smi.output(most, "-L")
	if err != nil {
		return nil
	}
	long, err := smi.output(most, "-q", "-x")
	if err != nil {
		return nil
	}
	return joinMIG(parseList(list), parseInstances(long))
}

// joinMIG puts both together by the GPU's UUID and the number of the MIG device, and leaves out what only one has.
func joinMIG(listed []listedMIG, instances map[string]map[int]Instance) map[string][]MIGDevice {
	names := map[string][]MIGDevice{}
	for _, l := range listed {
		if in, ok := instances[l.gpu][l.index]; ok {
			names[l.gpu] = append(names[l.gpu], MIGDevice{Index: l.index, UUID: l.uuid, Profile: l.profile, Instance: in})
		}
	}
	return names
}

// A listedMIG is a line of nvidia-smi -L below that of its GPU.
type listedMIG struct {
	gpu, uuid, profile string
	index              int
}

var (
	listedGPUPattern = regexp.MustCompile(`^GPU [0-9]+: .*\(UUID: (GPU-[0-9A-Fa-f-]{36})\)$`)
	listedMIGPattern = regexp.MustCompile(`^MIG ([0-9a-z.+]+) +Device +([0-9]{1,3}): \(UUID: (MIG-[0-9A-Za-z/-]{1,80})\)$`)
)

// parseList reads nvidia-smi -L.
func parseList(b []byte) []listedMIG {
	var all []listedMIG
	gpu := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if m := listedGPUPattern.FindStringSubmatch(line); m != nil {
			gpu = "GPU-" + strings.ToLower(m[1][len("GPU-"):])
		} else if m := listedMIGPattern.FindStringSubmatch(line); m != nil && gpu != "" {
			index, _ := strconv.Atoi(m[2]) // at most three digits
			uuid := m[3]
			if !strings.HasPrefix(uuid, "MIG-GPU-") { // those of old drivers are no UUIDs, but a path
				uuid = "MIG-" + strings.ToLower(uuid[len("MIG-"):])
			}
			all = append(all, listedMIG{gpu: gpu, uuid: uuid, profile: m[1], index: index})
		}
	}
	return all
}

// parseInstances reads nvidia-smi -q -x: the instances of MIG devices by the UUID of their GPU and their number.
func parseInstances(b []byte) map[string]map[int]Instance {
	var log struct {
		GPUs []struct {
			UUID string `xml:"uuid"`
			MIG  []struct {
				Index   *int `xml:"index"`
				GPU     *int `xml:"gpu_instance_id"`
				Compute *int `xml:"compute_instance_id"`
			} `xml:"mig_devices>mig_device"`
		} `xml:"gpu"`
	}
	if err := xml.Unmarshal(b, &log); err != nil {
		return nil
	}
	all := map[string]map[int]Instance{}
	for _, g := range log.GPUs {
		uuid := strings.TrimSpace(g.UUID)
		if !strings.HasPrefix(uuid, "GPU-") {
			continue
		}
		uuid = "GPU-" + strings.ToLower(uuid[len("GPU-"):])
		all[uuid] = map[int]Instance{}
		for _, m := range g.MIG {
			if m.Index != nil && m.GPU != nil && m.Compute != nil {
				all[uuid][*m.Index] = Instance{GPU: *m.GPU, Compute: *m.Compute}
			}
		}
	}
	return all
}
