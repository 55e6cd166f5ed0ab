package nvidia

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Log appends a line to the kernel's log of the host, as a record of /dev/kmsg: "3,17,1234567,-;text", that is priority,
// sequence number from 0, microseconds since the machine's start, and flags. The lines are one a record, so who reads /dev/kmsg by lines reads
// this file in the same way, but for its end, where a reader of a file has to look again.
func (t Tree) Log(text string) error {
	path := filepath.Join(t.Root, KernelLogFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	now, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &up); err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "3,%d,%d,-;%s\n", strings.Count(string(now), "\n"), up.Nano()/1000, text)
	return err
}

// bootLog is what the kernel says of the driver during a boot.
func (h *Host) bootLog() []string {
	if !h.Loaded("nvidia") {
		return nil
	}
	kind := "NVIDIA UNIX Open Kernel Module for x86_64"
	if h.Closed {
		kind = "NVIDIA UNIX x86_64 Kernel Module"
	}
	lines := []string{"NVRM: loading " + kind + "  " + h.Driver}
	for _, g := range h.GPUs {
		switch g.Fault {
		case Gone:
			lines = append(lines, lostLine(g))
		case Uninitialised:
			lines = append(lines, fmt.Sprintf("NVRM: GPU %s: RmInitAdapter failed! (0x24:0x72:1568)", g.PCI))
		}
	}
	return lines
}

func lostLine(g GPU) string {
	return fmt.Sprintf("NVRM: Xid (PCI:%s): 79, GPU has fallen off the bus.", strings.TrimSuffix(g.PCI, ".0"))
}

// Boot is what happens to a host when it is switched on: its files are laid out, the kernel's log begins, and the device
// nodes are made that udev and the first nvidia-smi make. /dev and /run must be empty of earlier ones.
func (t Tree) Boot() error {
	var h Host
	if err := t.Change(func(now *Host) error { h = *now; return nil }); err != nil {
		return err
	}
	if err := t.put(KernelLogFile, entry{mode: 0o644}); err != nil {
		return err
	}
	for _, line := range h.bootLog() {
		if err := t.Log(line); err != nil {
			return err
		}
	}
	return t.MakeNodes(h.DeviceNodes()...)
}
