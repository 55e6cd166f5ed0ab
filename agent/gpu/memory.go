package gpu

import (
	"context"
	"errors"
	"os/exec"
	"time"
)

// smiTimeout bounds the wait for nvidia-smi.
const smiTimeout = 5 * time.Second

// memory is the answer of nvidia-smi about one set of GPUs.
type memory struct {
	key    string
	waited context.Context // done when nobody waits for the answer any more
	done   chan struct{}   // closed when sizes is set
	sizes  map[string]int64
}

// addMemory adds the memory sizes, if nvidia-smi tells, where NVML is not there. A scan goes on without them: nvidia-smi may
// not be installed, and one that waits for a broken GPU cannot even be killed.
func (s *Scanner) addMemory(ctx context.Context, inv *Inventory) {
	key := inv.key()
	if key == "" {
		return
	}
	path := or(s.SMI, "/usr/bin/nvidia-smi")
	if _, err := exec.LookPath(path); err != nil {
		return
	}
	s.mu.Lock()
	m := s.memory
	if m == nil || m.key != key {
		m = &memory{key: key, done: make(chan struct{})}
		s.memory = m
		// The answer is for all later scans, so it does not end with this one.
		var cancel context.CancelFunc
		m.waited, cancel = context.WithTimeout(context.WithoutCancel(ctx), smiTimeout)
		go m.query(path, cancel)
	}
	s.mu.Unlock()

	select {
	case <-m.done:
	case <-m.waited.Done():
	case <-ctx.Done():
	}
	select {
	case <-m.done:
		for i := range inv.GPUs {
			if size, ok := m.sizes[inv.GPUs[i].PCIAddress]; ok {
				inv.GPUs[i].MemoryMiB = size
				inv.GPUs[i].from(FromSMI, "memory_mib")
			}
		}
	default:
	}
}

// key tells apart drivers and sets of GPUs that the driver serves. It is empty if there is none.
func (inv *Inventory) key() string {
	key := inv.DriverVersion
	for _, gpu := range inv.GPUs {
		if gpu.Driver == NVIDIA {
			key += " " + gpu.PCIAddress + "=" + gpu.UUID
		}
	}
	if inv.DriverVersion == "" || key == inv.DriverVersion {
		return ""
	}
	return key
}

// query asks nvidia-smi. It ends when the process does, which is killed after smiTimeout.
func (m *memory) query(path string, cancel context.CancelFunc) {
	defer cancel()
	defer close(m.done)
	out := &limited{max: 64 << 10}
	cmd := exec.CommandContext(m.waited, path, "--query-gpu=pci.bus_id,memory.total", "--format=csv,noheader,nounits")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdout = out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return
	}
	m.sizes = parseMemory(out.b)
}

var errTooLong = errors.New("output too long")

// limited keeps what is written to it, and refuses more than max bytes.
type limited struct {
	b   []byte
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(l.b)+len(p) > l.max {
		return 0, errTooLong
	}
	l.b = append(l.b, p...)
	return len(p), nil
}
