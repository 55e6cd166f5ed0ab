// Package health follows the kernel's log and judges, from the errors that NVIDIA's driver reported there since the
// boot, which GPUs are fit for new work. It needs no NVML, so it works also where the driver's library does not fit.
package health

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/statefile"
	"phoenix.internal/agent/xid"
)

// A Monitor keeps the errors of the node's GPUs. Log must be set; [Monitor.Run] fills it, and the other methods may be
// called at the same time.
type Monitor struct {
	KernelLog string            // records as /dev/kmsg gives them; empty: /dev/kmsg. Of a regular file the growth is read too
	Proc      string            // empty: /proc
	File      string            // where the errors are kept while the agent does not run
	Classes   map[int]xid.Class // overrides of xid.Event.Class
	// Present lists, by PCI address, the GPUs that the driver serves now. A GPU with a fault that was gone and is back has
	// been reset.
	Present func(context.Context) ([]string, error)
	Log     *slog.Logger

	saving sync.Mutex // held while File is written

	mu    sync.Mutex
	state state
	dirty bool
}

// state is what File holds.
type state struct {
	BootID   string          `json:"boot_id"`
	Sequence int64           `json:"sequence"` // of the last record that was read
	Errors   []Error         `json:"errors"`   // oldest first
	Gone     map[string]bool `json:"gone"`     // GPUs with errors that the driver did not serve when we looked last
}

// An Error is one kind of error of one GPU, however often it came.
type Error struct {
	xid.Event           // the latest
	Class     xid.Class `json:"class"`
	Count     int       `json:"count"` // how often it came
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
	CTID      int32     `json:"ctid"` // container of the process of the latest; 0: none, or it had ended
}

// maxErrors bounds the kinds of errors that are kept: a GPU that fails in every way must not fill the disk.
const maxErrors = 256

// How often the file is written if there is something new, and the GPUs with faults are looked for.
const (
	saveInterval    = time.Second
	presentInterval = 5 * time.Second
)

// Run follows the kernel's log until ctx ends. Without one it keeps what it knows, says so once, and waits.
func (m *Monitor) Run(ctx context.Context) error {
	if err := m.load(); err != nil {
		return err
	}
	records := make(chan record)
	followed := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { followed <- follow(ctx, m.kernelLog(), records) }()

	save, look := time.NewTicker(saveInterval), time.NewTicker(presentInterval)
	defer save.Stop()
	defer look.Stop()
	for {
		select {
		case r := <-records:
			m.take(ctx, r)
		case <-save.C:
			m.save()
		case <-look.C:
			m.lookForReset(ctx)
		case err := <-followed:
			if ctx.Err() == nil {
				m.Log.Warn("kernel log not followed: errors of GPUs are not seen", "path", m.kernelLog(), "err", err)
				<-ctx.Done()
			}
			m.save()
			return nil
		}
	}
}

func (m *Monitor) kernelLog() string {
	if m.KernelLog == "" {
		return "/dev/kmsg"
	}
	return m.KernelLog
}

func (m *Monitor) proc() string {
	if m.Proc == "" {
		return "/proc"
	}
	return m.Proc
}

// load reads what an earlier agent saw. Errors of another boot are over: each GPU was initialised anew.
func (m *Monitor) load() error {
	boot, err := os.ReadFile(filepath.Join(m.proc(), "sys/kernel/random/boot_id"))
	if err != nil {
		return fmt.Errorf("identify this boot: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var last state
	if err := statefile.Load(m.File, &last); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.Log.Warn("record of GPU errors not read; the kernel's log is read from its beginning", "err", err)
	}
	m.state = state{BootID: strings.TrimSpace(string(boot)), Sequence: -1, Gone: map[string]bool{}}
	if last.BootID == m.state.BootID {
		m.state.Sequence, m.state.Errors = last.Sequence, last.Errors
		for address := range last.Gone {
			m.state.Gone[address] = true
		}
	}
	return nil
}

func (m *Monitor) save() {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	dirty, now := m.dirty, m.state
	now.Errors, now.Gone = slices.Clone(now.Errors), maps.Clone(now.Gone)
	m.dirty = false
	m.mu.Unlock()
	if !dirty {
		return
	}
	if err := statefile.Save(m.File, now); err != nil {
		m.Log.Warn("record of GPU errors not written", "err", err)
		m.mu.Lock()
		m.dirty = true
		m.mu.Unlock()
	}
}

// take handles one record of the kernel's log.
func (m *Monitor) take(ctx context.Context, r record) {
	e, ok := xid.Parse(r.message)
	if !ok {
		return
	}
	ctid := m.containerOf(e.PID)
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.sequence <= m.state.Sequence {
		return // the log begins anew with each reader
	}
	m.state.Sequence, m.dirty = r.sequence, true
	got := Error{Event: e, Class: m.classOf(e), Count: 1, First: r.time, Last: r.time, CTID: ctid}
	i := slices.IndexFunc(m.state.Errors, func(old Error) bool {
		return old.PCIAddress == e.PCIAddress && old.Code == e.Code && old.GPUInstance == e.GPUInstance
	})
	if i >= 0 {
		old := m.state.Errors[i]
		got.Count, got.First = old.Count+1, old.First
		if got.Class == xid.Watch && (old.Class.Fault() || r.time.Sub(old.Last) < xid.RepeatWindow) {
			got.Class = xid.Reset
		}
		m.state.Errors = slices.Delete(m.state.Errors, i, i+1)
	}
	if e.Recovered() {
		m.state.Errors = slices.DeleteFunc(m.state.Errors, func(old Error) bool {
			return old.PCIAddress == e.PCIAddress && (old.Class == xid.Reset || old.Class == xid.Reboot)
		})
	}
	if len(m.state.Errors) == maxErrors {
		m.state.Errors = slices.Delete(m.state.Errors, m.expendable(), m.expendable()+1)
	}
	m.state.Errors = append(m.state.Errors, got)
	level := slog.LevelInfo
	if got.Class.Fault() {
		level = slog.LevelError
	}
	m.Log.Log(ctx, level, "GPU error", "gpu", e.PCIAddress, "xid", e.Code, "class", got.Class.String(), "count", got.Count, "pid", e.PID, "ctid", got.CTID)
}

// expendable is the index of the oldest error that is no fault, or else of the oldest.
func (m *Monitor) expendable() int {
	return max(0, slices.IndexFunc(m.state.Errors, func(e Error) bool { return !e.Class.Fault() }))
}

func (m *Monitor) classOf(e xid.Event) xid.Class {
	if c, ok := m.Classes[e.Code]; ok {
		return c
	}
	return e.Class()
}

// containerOf returns the container of a process; 0 if it is in none or has ended.
func (m *Monitor) containerOf(pid int) int32 {
	if pid <= 0 {
		return 0
	}
	b, err := os.ReadFile(filepath.Join(m.proc(), strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return 0
	}
	return lxcmon.ContainerOf(b)
}

// lookForReset clears what is known about GPUs that were gone and are back: the driver initialises a GPU when it takes
// it, after a reset or when the module is loaded.
func (m *Monitor) lookForReset(ctx context.Context) {
	m.mu.Lock()
	faulty := slices.ContainsFunc(m.state.Errors, func(e Error) bool { return e.Class.Fault() })
	if !faulty && len(m.state.Gone) > 0 {
		// Nobody looks now: a GPU with its next fault may have been back for long.
		clear(m.state.Gone)
		m.dirty = true
	}
	m.mu.Unlock()
	if !faulty {
		return
	}
	present, err := m.Present(ctx)
	if err != nil {
		return // ListDevices tells
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range slices.Clone(m.state.Errors) {
		switch address := e.PCIAddress; {
		case !slices.Contains(present, address):
			m.dirty = m.dirty || !m.state.Gone[address]
			m.state.Gone[address] = true
		case m.state.Gone[address]:
			m.clearLocked(address)
			m.Log.Info("GPU is back: its errors are over", "gpu", address)
		}
	}
}

func (m *Monitor) clearLocked(pciAddress string) (cleared int) {
	before := len(m.state.Errors)
	m.state.Errors = slices.DeleteFunc(m.state.Errors, func(e Error) bool { return e.PCIAddress == pciAddress })
	m.dirty = m.dirty || len(m.state.Errors) < before
	delete(m.state.Gone, pciAddress) // its next error is a new one
	return before - len(m.state.Errors)
}

// Acknowledge forgets the errors of a GPU, because somebody has seen to it, and returns how many there were.
func (m *Monitor) Acknowledge(pciAddress string) int {
	m.mu.Lock()
	n := m.clearLocked(pciAddress)
	m.mu.Unlock()
	m.save()
	return n
}

// Errors returns what is known about a GPU, oldest first.
func (m *Monitor) Errors(pciAddress string) []Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []Error
	for _, e := range m.state.Errors {
		if e.PCIAddress == pciAddress {
			errs = append(errs, e)
		}
	}
	return errs
}
