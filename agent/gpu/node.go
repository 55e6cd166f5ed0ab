package gpu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel's names of the drivers, and numbers that are fixed: the major of the GPUs and the
// minors in it that are no GPU's.
const (
	uvmDriver    = "nvidia-uvm"
	staticMajor  = 195
	maxGPUMinor  = 247
	modesetMinor = 254
	controlMinor = 255
)

// A DeviceNode is a file in /dev, as it is and as it should be.
type DeviceNode struct {
	Path         string // on the node, as "/dev/nvidia0", also if Scanner.Dev is another directory
	Major, Minor int    // that it should have; Major is -1 if its driver is not loaded
	Mode         fs.FileMode
	State        NodeState
}

// NodeState says whether a device node is usable.
type NodeState int

// The states of a device node.
const (
	OK         NodeState = iota // a character device with the right numbers
	Missing                     // no such file
	Stale                       // a character device with other numbers, left from an earlier load of the module
	NotADevice                  // something else: a file, a directory, a link
)

func (s NodeState) String() string {
	return [...]string{"ok", "missing", "stale", "not a device"}[s]
}

// ErrDriverNotLoaded says that device nodes cannot be made because a kernel module is not loaded.
var ErrDriverNotLoaded = errors.New("driver not loaded")

// A NodeError says that a device node is not usable and could not be made.
type NodeError struct {
	Path string
	Err  error
}

func (e *NodeError) Error() string { return "device node " + e.Path + ": " + e.Err.Error() }
func (e *NodeError) Unwrap() error { return e.Err }

// addNodes adds the device nodes of the GPUs and those they share.
func (s *Scanner) addNodes(inv *Inventory) {
	major := inv.Majors[NVIDIA]
	if major == 0 {
		major = staticMajor
	}
	uvm := majorOf(inv, uvmDriver)
	for i, gpu := range inv.GPUs {
		if gpu.Driver == NVIDIA && gpu.Minor >= 0 {
			inv.GPUs[i].Nodes = []DeviceNode{s.node("nvidia"+strconv.Itoa(gpu.Minor), major, gpu.Minor)}
		}
	}
	if len(inv.GPUs) > 0 || inv.DriverVersion != "" {
		inv.Shared = []DeviceNode{
			s.node("nvidia-modeset", major, modesetMinor),
			s.node("nvidia-uvm", uvm, 0),
			s.node("nvidia-uvm-tools", uvm, 1),
			s.node("nvidiactl", major, controlMinor),
		}
	}
}

// node looks at one device node.
func (s *Scanner) node(name string, major, minor int) DeviceNode {
	n := DeviceNode{Path: "/dev/" + name, Major: major, Minor: minor, State: Missing}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(s.dev(), name), &st); err != nil {
		return n
	}
	n.Mode = fs.FileMode(st.Mode & 0o777)
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFCHR:
		n.State = NotADevice
	case int(unix.Major(st.Rdev)) != major || int(unix.Minor(st.Rdev)) != minor:
		n.State = Stale
	default:
		n.State = OK
	}
	return n
}

func (n DeviceNode) addProblem(all []string) []string {
	switch n.State {
	case Missing:
		return append(all, "Device node "+n.Path+" is missing.")
	case Stale:
		return append(all, fmt.Sprintf("Device node %s is stale: its numbers are not %s.", n.Path, n.numbers()))
	case NotADevice:
		return append(all, n.Path+" is not a character device.")
	}
	return all
}

func (n DeviceNode) numbers() string {
	if n.Major < 0 {
		return "those of a loaded driver"
	}
	return fmt.Sprintf("%d:%d", n.Major, n.Minor)
}

// A Ref names a GPU by its minor, or one MIG device of it.
type Ref struct {
	Minor int
	MIG   *Instance // nil: the whole GPU
}

// A Want is what containers are to be given.
type Want struct {
	GPUs     []Ref
	Graphics bool // nvidia-modeset and the DRM nodes of the cards
	Fabric   bool // IMEX channels
}

// Prepare makes device nodes that are missing, stale or no devices: what containers need that are given these GPUs, with
// nvidiactl, nvidia-uvm and nvidia-uvm-tools. DRM nodes are the kernel's own and not made. It returns the paths of what it
// made or whose mode or owner it corrected, sorted. It loads the modules that are needed and not loaded.
//
// The errors are [ErrDriverNotLoaded] and [*NodeError]; what was made before one is returned too.
func (s *Scanner) Prepare(ctx context.Context, want Want) (created []string, err error) {
	s.preparing.Lock()
	defer s.preparing.Unlock()
	inv, err := s.scan(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare device nodes: %w", err)
	}
	if inv.DriverVersion == "" || inv.Majors[NVIDIA] == 0 {
		return nil, fmt.Errorf("prepare device nodes: nvidia: %w", ErrDriverNotLoaded)
	}
	for _, m := range []struct {
		name string
		need bool
	}{
		{uvmDriver, inv.Majors[uvmDriver] == 0},
		{drmDriver, want.Graphics && !s.loaded(drmDriver)},
	} {
		if !m.need {
			continue
		}
		if err := s.load(ctx, m.name); err != nil {
			return nil, fmt.Errorf("prepare device nodes: %s: %w: %w", m.name, ErrDriverNotLoaded, err)
		}
		if inv, err = s.scan(ctx); err != nil {
			return nil, fmt.Errorf("prepare device nodes: %w", err)
		}
	}
	if inv.Majors[uvmDriver] == 0 {
		return nil, fmt.Errorf("prepare device nodes: %s: %w", uvmDriver, ErrDriverNotLoaded)
	}
	nodes, err := inv.Needs(want)
	if err != nil {
		return nil, err
	}
	b, err := readIfExists(filepath.Join(s.proc(), "driver/nvidia/params"))
	if err != nil {
		return nil, fmt.Errorf("prepare device nodes: %w", err)
	}
	rules, capabilities := parseParams(b), s.capabilityRules(inv)
	for _, n := range nodes {
		p, ok := capabilities[n.Path]
		switch {
		case ok:
		case strings.HasPrefix(n.Path, "/dev/"+uvmDriver), strings.HasPrefix(n.Path, "/dev/"+imexDir+"/"):
			p = params{modify: true, mode: 0o666} // nvidia-modprobe does not consult the rules for these
		case strings.HasPrefix(n.Path, "/dev/dri/"):
			if n.State != OK {
				return created, &NodeError{Path: n.Path, Err: fmt.Errorf("it is %s; the kernel and udev make it when nvidia-drm is loaded", n.State)}
			}
			continue
		default:
			p = rules
		}
		changed, err := s.prepare(n, p)
		if err != nil {
			return created, &NodeError{Path: n.Path, Err: err}
		}
		if changed {
			created = append(created, n.Path)
		}
	}
	return created, nil
}

// Needs returns the nodes that containers need for what is wanted, by path, whatever their state. The error is a
// [*NodeError].
func (inv *Inventory) Needs(want Want) ([]DeviceNode, error) {
	var nodes []DeviceNode
	for _, n := range inv.Shared {
		if n.Path != "/dev/nvidia-modeset" || want.Graphics {
			nodes = append(nodes, n)
		}
	}
	for _, ref := range want.GPUs {
		i := slices.IndexFunc(inv.GPUs, func(g GPU) bool { return g.Driver == NVIDIA && g.Minor == ref.Minor })
		path := "/dev/nvidia" + strconv.Itoa(ref.Minor)
		if i < 0 || ref.Minor < 0 {
			return nil, &NodeError{Path: path, Err: errors.New("no GPU that is bound to nvidia has this minor number")}
		}
		g := inv.GPUs[i]
		nodes = append(nodes, g.Nodes...)
		if ref.MIG != nil {
			m := slices.IndexFunc(g.MIG, func(m MIGDevice) bool { return m.Instance == *ref.MIG })
			if m < 0 {
				return nil, &NodeError{Path: path, Err: fmt.Errorf("the GPU has no MIG device of GPU instance %d and compute instance %d", ref.MIG.GPU, ref.MIG.Compute)}
			}
			nodes = append(nodes, g.MIG[m].Nodes...)
		}
		if want.Graphics {
			if len(g.Graphics) == 0 {
				return nil, &NodeError{Path: "/dev/dri", Err: fmt.Errorf("GPU %s has no DRM nodes, which graphics needs", g.PCIAddress)}
			}
			nodes = append(nodes, g.Graphics...)
		}
	}
	if want.Fabric {
		if len(inv.Fabric) == 0 {
			return nil, &NodeError{Path: "/dev/" + imexDir, Err: errors.New("the driver knows of no fabric on this node")}
		}
		nodes = append(nodes, inv.Fabric...)
	}
	slices.SortFunc(nodes, func(a, b DeviceNode) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(nodes, func(a, b DeviceNode) bool { return a.Path == b.Path }), nil
}

// prepare makes one node right, the way nvidia-modprobe does, and says whether it had to. That tool
// is not run: it is not part of every installation, tells nothing about what it did, and does
// nothing at all, successfully, where the driver's parameters forbid it.
func (s *Scanner) prepare(n DeviceNode, p params) (changed bool, err error) {
	path := filepath.Join(s.dev(), strings.TrimPrefix(n.Path, "/dev/"))
	if n.State == OK {
		if !p.modify {
			return false, nil
		}
		return setMode(path, p)
	}
	if !p.modify {
		return false, fmt.Errorf("it is %s, and the driver's parameter NVreg_ModifyDeviceFiles=0 forbids making it", n.State)
	}
	if n.Major < 0 {
		return false, fmt.Errorf("it is %s, and its driver has no major", n.State)
	}
	if err := s.makeDir(filepath.Dir(path)); err != nil {
		return false, err
	}
	// Made beside and renamed: nobody sees the path without a node, or with a node that lacks its mode.
	temporary := filepath.Join(filepath.Dir(path), ".phoenix."+filepath.Base(path))
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := unix.Mknod(temporary, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(n.Major), uint32(n.Minor)))); err != nil {
		return false, &os.PathError{Op: "mknod", Path: temporary, Err: err}
	}
	_, err = setMode(temporary, p)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return false, errors.Join(err, os.Remove(temporary))
	}
	return true, s.link(n)
}

// makeDir makes the folder of capability nodes, as nvidia-modprobe does, whatever the umask.
func (s *Scanner) makeDir(dir string) error {
	if dir == filepath.Clean(s.dev()) {
		return nil
	}
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// setMode gives a node the mode and owner it should have, and says whether it had others.
func setMode(path string, p params) (changed bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if int(st.Uid) != p.uid || int(st.Gid) != p.gid {
		changed = true
		if err := os.Lchown(path, p.uid, p.gid); err != nil {
			return false, err
		}
	}
	if st.Mode&0o777 != p.mode {
		changed = true
		if err := os.Chmod(path, fs.FileMode(p.mode)); err != nil {
			return false, err
		}
	}
	return changed, nil
}

// link makes /dev/char/<major>:<minor>, which systemd looks for when it applies device rules.
func (s *Scanner) link(n DeviceNode) error {
	dir := filepath.Join(s.dev(), "char")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	link := filepath.Join(dir, fmt.Sprintf("%d:%d", n.Major, n.Minor))
	target := "../" + strings.TrimPrefix(n.Path, "/dev/")
	if now, err := os.Readlink(link); err == nil && (now == target || now == n.Path) {
		return nil
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, link)
}

// loaded says whether a module is there and ready.
func (s *Scanner) loaded(module string) bool {
	dir := filepath.Join(s.sys(), "module", strings.ReplaceAll(module, "-", "_"))
	if _, err := os.Stat(dir); err != nil {
		return false
	}
	state := readLine(dir, "initstate")
	return state == "" || state == "live"
}

// load loads a module: nvidia-uvm, for example, else waits for the first CUDA program of the host.
func (s *Scanner) load(ctx context.Context, module string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out := &limited{max: 4 << 10}
	cmd := exec.CommandContext(ctx, or(s.Modprobe, "/sbin/modprobe"), module)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("modprobe %s: %w: %q", module, err, strings.TrimSpace(string(out.b)))
	}
	return nil
}
