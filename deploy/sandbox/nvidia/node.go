package nvidia

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A DeviceNode is a character device in /dev.
type DeviceNode struct {
	Path         string // "/dev/nvidia0"
	Major, Minor int
	Mode         fs.FileMode
}

// The minors of the GPUs' major that are no GPU's.
const (
	controlMinor = 255
	modesetMinor = 254
)

// DeviceNodes are the nodes that a host has on which everything that is loaded has been used once: by nvidia-smi,
// a CUDA program, a display and, for MIG, somebody who partitioned the cards.
func (h *Host) DeviceNodes() []DeviceNode {
	var nodes []DeviceNode
	if h.Loaded("nvidia") {
		nodes = append(nodes, h.controlNode(), h.capNode(configMinor, 0o400), h.capNode(monitorMinor, 0o444))
	}
	if h.Loaded("nvidia") && h.Fabric {
		nodes = append(nodes, h.capNode(fabricMinor, 0o400), h.capNode(imexMinor, 0o400),
			DeviceNode{"/dev/nvidia-caps-imex-channels/channel0", h.Majors.IMEX, 0, 0o666})
	}
	if h.Loaded("nvidia_modeset") {
		nodes = append(nodes, h.modesetNode())
	}
	if h.Loaded("nvidia_uvm") {
		nodes = append(nodes, h.uvmNodes()...)
	}
	for _, g := range h.listed() {
		nodes = append(nodes, h.gpuNode(g.Minor))
		if h.Loaded("nvidia_drm") {
			nodes = append(nodes,
				DeviceNode{fmt.Sprintf("/dev/dri/card%d", g.Card), h.Majors.DRM, g.Card, 0o660},
				DeviceNode{fmt.Sprintf("/dev/dri/renderD%d", g.render()), h.Majors.DRM, g.render(), 0o660})
		}
	}
	return append(nodes, h.migNodes()...)
}

// migNodes are the nodes of the MIG devices that there are.
func (h *Host) migNodes() []DeviceNode {
	var nodes []DeviceNode
	for _, g := range h.listed() {
		for _, d := range g.MIG.Devices {
			nodes = append(nodes, h.capNode(giMinor(g.Minor, d.GI), 0o444), h.capNode(ciMinor(g.Minor, d.GI, d.CI), 0o444))
		}
	}
	return nodes
}

func (h *Host) controlNode() DeviceNode {
	return DeviceNode{"/dev/nvidiactl", h.Majors.NVIDIA, controlMinor, 0o666}
}

func (h *Host) modesetNode() DeviceNode {
	return DeviceNode{"/dev/nvidia-modeset", h.Majors.NVIDIA, modesetMinor, 0o666}
}

func (h *Host) gpuNode(minor int) DeviceNode {
	return DeviceNode{fmt.Sprintf("/dev/nvidia%d", minor), h.Majors.NVIDIA, minor, 0o666}
}

func (h *Host) uvmNodes() []DeviceNode {
	return []DeviceNode{{"/dev/nvidia-uvm", h.Majors.UVM, 0, 0o666}, {"/dev/nvidia-uvm-tools", h.Majors.UVM, 1, 0o666}}
}

func (h *Host) capNode(minor int, mode fs.FileMode) DeviceNode {
	return DeviceNode{fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor), h.Majors.Caps, minor, mode}
}

// MakeNodes makes device nodes as nvidia-modprobe does: a path that is something else, or has other numbers, is
// replaced; mode and owner are put right. Where /dev/char is, it has a link to each.
func (t Tree) MakeNodes(nodes ...DeviceNode) error {
	for _, n := range nodes {
		if err := t.makeNode(n); err != nil {
			return fmt.Errorf("make device node %s: %w", n.Path, err)
		}
	}
	return nil
}

func (t Tree) makeNode(n DeviceNode) error {
	path := filepath.Join(t.Root, n.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	number := unix.Mkdev(uint32(n.Major), uint32(n.Minor))
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || uint64(st.Rdev) != number {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := unix.Mknod(path, unix.S_IFCHR|uint32(n.Mode), int(number)); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chmod(path, n.Mode), os.Lchown(path, 0, 0)); err != nil {
		return err
	}
	char := filepath.Join(t.Root, "dev/char")
	if _, err := os.Stat(char); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	link := filepath.Join(char, fmt.Sprintf("%d:%d", n.Major, n.Minor))
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(".."+strings.TrimPrefix(n.Path, "/dev"), link)
}

// capabilityNode reads a capability file of /proc and says which node it stands for, nil if its nodes are not to
// be made.
func (t Tree) capabilityNode(h *Host, path string) (*DeviceNode, error) {
	values, err := t.values(path)
	if err != nil {
		return nil, err
	}
	if values["DeviceFileModify"] == 0 {
		return nil, nil
	}
	n := h.capNode(values["DeviceFileMinor"], fs.FileMode(values["DeviceFileMode"]))
	return &n, nil
}

// values reads lines "key: number".
func (t Tree) values(path string) (map[string]int, error) {
	b, err := os.ReadFile(filepath.Join(t.Root, path))
	if err != nil {
		return nil, err
	}
	values := map[string]int{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
			values[key] = n
		}
	}
	return values, nil
}
