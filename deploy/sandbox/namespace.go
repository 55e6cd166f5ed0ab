package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inside is where a node's namespaces keep what no Proxmox host has: the node's own files, what its
// mounts cover, and a /proc and a /sys with nothing mounted over them. The kernel lets an unprivileged
// container mount proc and sysfs only if its parent has such a pair.
const inside = "/run/sandbox"

// HoldNode makes the namespaces of a node from within and holds them until it is killed. It is the body
// of the hidden command "phoenix-sandbox hold", which Up starts in new mount, network and host name
// namespaces and in the node's cgroup; the calling goroutine must be on the process's main thread.
//
// It reads a line from in when its network interface is there, and writes a line to out when it is done:
// "ready", or what went wrong. When the process while has ended, it ends everything in the node.
func HoldNode(s *Sandbox, name string, while int, in io.Reader, out io.Writer) error {
	err := holdNode(s, name, in)
	if err != nil {
		fmt.Fprintln(out, err)
		return err
	}
	fmt.Fprintln(out, "ready")
	if while == 0 {
		select {}
	}
	if err := awaitEnd(while); err != nil {
		return err
	}
	return os.WriteFile("/sys/fs/cgroup/cgroup.kill", []byte("1"), 0)
}

// awaitEnd returns when a process has ended.
func awaitEnd(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func holdNode(s *Sandbox, name string, in io.Reader) error {
	n, err := s.Node(name)
	if err != nil {
		return err
	}
	if _, err := bufio.NewReader(in).ReadString('\n'); err != nil {
		return fmt.Errorf("wait for the network: %w", err)
	}
	// The root of the new cgroup namespace is where the process is now; the cgroup itself must stay
	// empty, or it could not give controllers to the containers.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("new cgroup namespace: %w", err)
	}
	group, err := cgroupOf(s.Name)
	if err != nil {
		return err
	}
	group = group.sub(name)
	if err := group.sub("holder").enter(); err != nil {
		return err
	}
	group.delegate()
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := n.mount(s.NodeDir(name)); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", n.Address + "/30", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return nil
}

// mount builds the node's view of the file system. dir is the folder of the node's files.
func (n *Node) mount(dir string) error {
	m := &mounter{}
	m.mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	m.bind(dir+"/run", "/run")
	m.mount("tmpfs", inside, "tmpfs", 0, "mode=0755")
	m.bind(dir, m.dir(inside+"/node"))
	dir = inside + "/node"                      // the old name may soon be covered
	self := m.file(inside + "/phoenix-sandbox") // this program, wherever it is
	m.bind("/proc/self/exe", self)
	m.mount("proc", m.dir(inside+"/proc"), "proc", 0, "")
	m.mount("sysfs", m.dir(inside+"/sys"), "sysfs", 0, "")

	m.bind(dir+"/proc/driver", "/proc/driver")
	m.bind(dir+"/proc/devices", "/proc/devices")
	// LXC puts containers beside the cgroup of the machine's init, which lies outside of this namespace.
	m.bind(dir+"/proc/1/cgroup", "/proc/1/cgroup")
	m.bind(dir+"/proc/boot_id", "/proc/sys/kernel/random/boot_id")

	m.mount("sysfs", "/sys", "sysfs", 0, "")
	m.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "")
	// Without sight of AppArmor LXC leaves it alone: the sandbox has none of Proxmox's profiles.
	m.extend("/sys/module", inside+"/sys/module", map[string]string{
		"nvidia": "", "nvidia_uvm": "", "nvidia_modeset": "", "nvidia_drm": "", "apparmor": "",
	})
	m.extend("/sys/bus", inside+"/sys/bus", map[string]string{"pci": dir + "/pci"})

	m.devices()

	m.extend("/etc", m.keep("/etc"), map[string]string{
		"pve": dir + "/pve", "phoenix": dir + "/etc-phoenix", "hostname": dir + "/etc/hostname", "hosts": dir + "/etc/hosts",
		"pve-release": dir + "/etc/pve-release",
	})
	m.extend("/usr/sbin", m.keep("/usr/sbin"), map[string]string{"pct": dir + "/sbin/pct", "ha-manager": dir + "/sbin/pct", "modprobe": self, "modinfo": self})
	m.extend("/usr/bin", m.keep("/usr/bin"), map[string]string{
		"nvidia-smi": self, "nvidia-modprobe": self, "phoenix-nvml": self, "pveversion": dir + "/bin/pveversion",
	})
	m.extend("/usr/local/lib", m.keep("/usr/local/lib"), nil) // for the driver's libraries
	m.extend("/usr/share/lxc/config", m.keep("/usr/share/lxc/config"), map[string]string{
		"common.conf.d": dir + "/lxc-config/common.conf.d", "userns.conf.d": dir + "/lxc-config/userns.conf.d",
	})
	m.extend("/var/lib", m.keep("/var/lib"), map[string]string{
		"lxc": dir + "/var-lib-lxc", "phoenix": dir + "/var-lib-phoenix",
		filepath.Base(installersDir): dir + "/installers",
	})
	if m.err != nil {
		return m.err
	}
	return NodeTree().Boot()
}

// devices makes the node's /dev: a tmpfs with this machine's basic devices bound into it.
func (m *mounter) devices() {
	dev := m.dir(inside + "/dev")
	m.mount("tmpfs", dev, "tmpfs", 0, "mode=0755")
	for _, name := range []string{
		"null", "zero", "full", "random", "urandom", "tty", "console", "fuse", "net/tun", "kmsg",
	} {
		if _, err := os.Stat("/dev/" + name); err != nil {
			continue
		}
		m.bind("/dev/"+name, m.file(dev+"/"+name))
	}
	// Terminals of its own: a bound ptmx does not find the bound pts beside it.
	m.mount("devpts", m.dir(dev+"/pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,gid=5,mode=0620,ptmxmode=0666")
	m.link("pts/ptmx", dev+"/ptmx")
	m.mount("tmpfs", m.dir(dev+"/shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		m.link(target, dev+"/"+name)
	}
	m.dir(dev + "/char") // for links by number
	m.mount(dev, "/dev", "", unix.MS_MOVE, "")
}

// A mounter does one step after the other and remembers the first that did not work.
type mounter struct{ err error }

func (m *mounter) do(what string, err error) {
	if m.err == nil && err != nil {
		m.err = fmt.Errorf("%s: %w", what, err)
	}
}

func (m *mounter) mount(source, target, fstype string, flags uintptr, data string) {
	if m.err == nil {
		m.do("mount "+fstype+" on "+target, unix.Mount(source, target, fstype, flags, data))
	}
}

func (m *mounter) bind(source, target string) {
	m.mount(source, target, "", unix.MS_BIND|unix.MS_REC, "")
}

func (m *mounter) dir(path string) string {
	if m.err == nil {
		m.do("make folder", os.MkdirAll(path, 0o755))
	}
	return path
}

func (m *mounter) file(path string) string {
	m.dir(filepath.Dir(path))
	if m.err == nil {
		m.do("make file", os.WriteFile(path, nil, 0o644))
	}
	return path
}

func (m *mounter) link(target, path string) {
	if m.err == nil {
		m.do("make link", os.Symlink(target, path))
	}
}

// keep binds a folder that is about to be covered to a place where it stays visible.
func (m *mounter) keep(path string) string {
	kept := m.dir(inside + "/covered" + path)
	m.bind(path, kept)
	return kept
}

// extend covers a folder with a tmpfs that has a link to each entry of covered, and own entries besides:
// name to what is bound there, "" to hide a name. So a node has files that this machine lacks, and the
// machine's own folder stays as it is.
func (m *mounter) extend(path, covered string, own map[string]string) {
	if m.err != nil {
		return
	}
	entries, err := os.ReadDir(covered)
	if err != nil {
		m.do("read what "+path+" covers", err)
		return
	}
	m.mount("tmpfs", path, "tmpfs", 0, "mode=0755")
	for _, e := range entries {
		if _, ok := own[e.Name()]; !ok {
			m.link(filepath.Join(covered, e.Name()), filepath.Join(path, e.Name()))
		}
	}
	for name, source := range own {
		if source == "" {
			continue
		}
		info, err := os.Stat(source)
		if err != nil {
			m.do("extend "+path, err)
			return
		}
		target := filepath.Join(path, name)
		if info.IsDir() {
			m.dir(target)
		} else {
			m.file(target)
		}
		m.bind(source, target)
	}
}

// ip runs the tool of that name in the caller's network namespace.
func ip(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// holder is the process that holds a node's namespaces.
func (s *Sandbox) holder(node string) (int, error) {
	group, err := cgroupOf(s.Name)
	if err != nil {
		return 0, err
	}
	pids, err := group.sub(node, "holder").pids()
	if err != nil || len(pids) != 1 {
		return 0, errors.Join(fmt.Errorf("node %s is not up: nothing holds its namespaces", node), err)
	}
	return pids[0], nil
}

// Command prepares a command that will run in a node's namespaces and cgroup, with "/" as its folder.
// The caller closes what it gets as second result after the command has started.
func (s *Sandbox) Command(ctx context.Context, node string, argv ...string) (*exec.Cmd, io.Closer, error) {
	args, err := s.nsenter(node, argv)
	if err != nil {
		return nil, nil, err
	}
	group, err := cgroupOf(s.Name)
	if err != nil {
		return nil, nil, err
	}
	dir, err := group.sub(node, "system").open()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.WaitDelay = 5 * time.Second
	return cmd, dir, nil
}

// Enter replaces the calling process with a command in a node.
func (s *Sandbox) Enter(node string, argv []string) error {
	args, err := s.nsenter(node, argv)
	if err != nil {
		return err
	}
	group, err := cgroupOf(s.Name)
	if err != nil {
		return err
	}
	if err := group.sub(node, "system").enter(); err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, args, os.Environ())
}

func (s *Sandbox) nsenter(node string, argv []string) ([]string, error) {
	pid, err := s.holder(node)
	if err != nil {
		return nil, err
	}
	return append([]string{
		"nsenter", fmt.Sprintf("--target=%d", pid), "--mount", "--net", "--uts", "--cgroup", "--"}, argv...), nil
}
