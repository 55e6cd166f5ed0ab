package gpu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"phoenix.internal/agent/nvml"
)

const (
	// refreshAfter is how old an answer of NVML gets while somebody scans.
	refreshAfter = 5 * time.Second
	// refreshShare bounds how much of the time NVML is asked: each time it wakes GPUs that nobody uses and that are not in
	// persistence mode, which takes one or two seconds each.
	refreshShare = 50
	// refreshPatience is how long a scan waits for a new answer if the last one is stale, as nobody scanned for a while.
	refreshPatience = time.Second
	// staleAfter is how old an answer may be that tells who uses a GPU.
	staleAfter = 30 * time.Second
)

// library is what NVML tells about one set of GPUs.
type library struct {
	key     string
	report  *nvml.Report // the latest; nil: none yet
	at      time.Time    // when it was asked for
	took    time.Duration
	err     error         // of the latest question
	next    time.Time     // when it is to be asked again
	asking  chan struct{} // closed when the question that is under way is answered; nil: none is
	patient time.Time     // until when scans wait for that
}

// addNVML adds what NVML tells, and says whether it is there. A scan waits for it only if it has never answered for this
// set of GPUs, or not for a while; else the next answer is for later scans.
func (s *Scanner) addNVML(ctx context.Context, inv *Inventory) bool {
	key := inv.key()
	if s.NVML == nil || key == "" {
		return false
	}
	for _, g := range inv.GPUs {
		for _, m := range g.MIG {
			key += fmt.Sprintf(" %s/%d/%d", g.PCIAddress, m.Instance.GPU, m.Instance.Compute)
		}
	}
	s.mu.Lock()
	l := s.library
	if l == nil || l.key != key {
		l = &library{key: key}
		s.library = l
	}
	if now := time.Now(); l.asking == nil && !now.Before(l.next) {
		l.asking = make(chan struct{})
		switch {
		case l.report == nil && l.err == nil:
			l.patient = now.Add(smiTimeout)
		case l.report != nil && l.stale(now):
			l.patient = now.Add(refreshPatience)
		}
		go s.refresh(context.WithoutCancel(ctx), l, l.asking, inv.DriverVersion)
	}
	asking, patience := l.asking, time.Until(l.patient)
	s.mu.Unlock()

	if asking != nil && patience > 0 {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-asking:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	report, err, fresh := l.report, l.err, !l.stale(time.Now())
	s.mu.Unlock()
	if report != nil {
		merge(inv, report, fresh)
	}
	return !errors.Is(err, nvml.ErrAbsent)
}

// refresh asks NVML. It ends when the client gives up on its helper or is closed.
func (s *Scanner) refresh(ctx context.Context, l *library, asking chan struct{}, driver string) {
	begin := time.Now()
	report, err := s.NVML.Scan(ctx, driver)
	s.mu.Lock()
	defer s.mu.Unlock()
	l.took, l.err = time.Since(begin), err
	if err == nil {
		l.report, l.at = report, begin
	}
	l.next = time.Now().Add(l.interval())
	l.asking = nil
	close(asking)
}

func (l *library) interval() time.Duration { return max(refreshAfter, refreshShare*l.took) }

// stale says whether the report is older than one that is refreshed all the time.
func (l *library) stale(now time.Time) bool {
	return now.Sub(l.at) > max(staleAfter, 2*l.interval())
}

// merge adds what NVML told to what /proc and sysfs tell, which it never contradicts: they are of this moment. What
// changes all the time is left out unless it is fresh.
func merge(inv *Inventory, report *nvml.Report, fresh bool) {
	for _, told := range report.GPUs {
		i := slices.IndexFunc(inv.GPUs, func(g GPU) bool {
			if told.PCIAddress == "" {
				return g.Index == told.Index
			}
			return g.PCIAddress == told.PCIAddress && g.Driver == NVIDIA
		})
		if i < 0 {
			continue
		}
		g := &inv.GPUs[i]
		if g.UUID != "" && told.UUID != "" && g.UUID != told.UUID {
			inv.Problems = append(inv.Problems, fmt.Sprintf("GPU %s is %s, but NVML says that it is %s.", g.PCIAddress, g.UUID, told.UUID))
			continue
		}
		if fresh {
			inv.Problems = append(inv.Problems, complaints(g.PCIAddress, &told)...)
		}
		if told.PCIAddress != "" {
			g.add(&told, fresh)
		}
	}
}

// complaints are the sentences for what NVML says is wrong with a GPU.
func complaints(address string, told *nvml.GPU) []string {
	var all []string
	if told.Code != 0 {
		all = append(all, fmt.Sprintf("GPU %s: NVML says: %s (code %d).", address, nvml.Text(told.Code), told.Code))
	}
	if told.RecoveryAction != nil && *told.RecoveryAction != 0 {
		all = append(all, fmt.Sprintf("GPU %s: the driver asks for: %s.", address, recovery(*told.RecoveryAction)))
	}
	if m := told.MIG; m != nil && m.Pending != m.Current {
		all = append(all, fmt.Sprintf("GPU %s: its MIG mode changes at its next reset.", address))
	}
	return all
}

// recovery is what the numbers of NVML_FI_DEV_GET_GPU_RECOVERY_ACTION mean (nvml.h).
func recovery(action int) string {
	texts := []string{
		"nothing", "a reset of the GPU", "a reboot of the node", "an end of its peer-to-peer traffic, then a reset",
		"an end of its work, then a reset", "a recovery of the IMEX domain", "a reset of its bus", "a reboot of the system",
	}
	if action < 0 || action >= len(texts) {
		return "action " + strconv.Itoa(action)
	}
	return texts[action]
}

func (g *GPU) add(told *nvml.GPU, fresh bool) {
	if g.UUID == "" && told.UUID != "" {
		g.UUID = told.UUID
		g.from(fromNVML, "uuid")
	}
	if g.Model == "" && told.Name != "" {
		g.Model = told.Name
		g.from(fromNVML, "model")
	}
	if told.MemoryMiB > 0 {
		g.MemoryMiB = told.MemoryMiB
		g.from(fromNVML, "memory_mib")
	}
	if len(told.NVLinkPeers) > 0 {
		g.NVLinkPeers = slices.Clone(told.NVLinkPeers)
		g.from(fromNVML, "nvlink_peers")
	}
	if fresh && len(told.Processes) > 0 {
		g.Processes = make([]Process, len(told.Processes))
		for i, p := range told.Processes {
			g.Processes[i] = Process{PID: p.PID}
			if p.UsedMiB != nil {
				g.Processes[i].UsedMiB = *p.UsedMiB
			}
		}
		g.from(fromNVML, "processes")
	}
	if told.MIG != nil && told.MIG.Current && !g.MIGEnabled {
		g.MIGEnabled = true
		g.from(fromNVML, "mig_enabled")
	}
	for _, d := range told.MIGDevices {
		g.addMIGDevice(d)
	}
}

// addMIGDevice adds a MIG device, or what /proc does not know about one.
func (g *GPU) addMIGDevice(told nvml.MIGDevice) {
	instance := Instance{told.GPUInstance, told.ComputeInstance}
	i, ok := slices.BinarySearchFunc(g.MIG, instance, func(m MIGDevice, in Instance) int {
		return cmp.Or(cmp.Compare(m.Instance.GPU, in.GPU), cmp.Compare(m.Instance.Compute, in.Compute))
	})
	if !ok {
		g.MIG = slices.Insert(g.MIG, i, MIGDevice{Instance: instance})
	}
	m := &g.MIG[i]
	m.Index, m.UUID, m.Profile, m.MemoryMiB = told.Index, told.UUID, told.Profile, told.MemoryMiB
	g.from(fromNVML, "mig_devices")
}
