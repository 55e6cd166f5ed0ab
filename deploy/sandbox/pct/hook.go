package pct

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/pveconf"
	"phoenix.internal/deploy/sandbox/lxcconf"
)

// HookCommand is the hidden sub-command that LXC calls: as its hooks it gets the CTID, "lxc" and the
// name of the hook.
const HookCommand = "sandbox-hook"

func (h *Host) hook(args []string) int {
	err := errors.New("usage: pct " + HookCommand + " <CTID> lxc <hook>")
	if len(args) == 3 {
		var ctid int
		if ctid, err = strconv.Atoi(args[0]); err == nil {
			err = h.runHook(int32(ctid), args[2])
		}
	}
	if err != nil {
		fmt.Fprintln(h.Err, err)
		return 1
	}
	return 0
}

func (h *Host) runHook(ctid int32, name string) error {
	switch name {
	case "pre-start":
		return h.preStart(ctid)
	case "autodev":
		return autodev(ctid, os.Getenv("LXC_ROOTFS_MOUNT"))
	case "post-stop":
		return h.postStop(ctid, os.Getenv("LXC_TARGET"))
	case "restart":
		return h.restart(ctid)
	}
	return fmt.Errorf("unknown hook %q", name)
}

func passthroughDir(ctid int32) string { return filepath.Join(containerDir(ctid), "passthrough") }
func rebootMarker(ctid int32) string   { return filepath.Join(containerDir(ctid), "reboot") }

// preStart runs on the host, in the monitor's own mount namespace (lxc-pve-prestart-hook).
func (h *Host) preStart(ctid int32) error {
	if err := checkQuorum(); err != nil {
		return err
	}
	conf, err := h.load(ctid)
	if err != nil {
		return err
	}
	if err := os.Remove(skipLockFlag(ctid)); err != nil { // usually because it is not there
		if err := checkLockForStart(conf); err != nil {
			return err
		}
	}
	for _, tree := range []string{"lxc", "lxc.monitor"} {
		removeCgroups(filepath.Join("/sys/fs/cgroup", tree, strconv.Itoa(int(ctid))))
	}
	if err := os.Remove(rebootMarker(ctid)); err != nil && !notFound(err) {
		return err
	}
	if err := makePassthrough(ctid, conf); err != nil {
		return err
	}
	return writeHostname(ctid, conf)
}

// removeCgroups removes what a container that died left, and what a command in it kept LXC from removing: LXC starts no
// container whose cgroup is there. One in use stays.
func removeCgroups(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeCgroups(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir)
}

// makePassthrough makes the nodes of devN on a tmpfs that only the monitor and the container see.
func makePassthrough(ctid int32, conf *pveconf.File) error {
	devices, err := lxcconf.Passthrough(conf)
	if err != nil || len(devices) == 0 {
		return err
	}
	dir := passthroughDir(ctid)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=8k,mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	users, err := idMap(conf, 'u')
	if err != nil {
		return err
	}
	groups, err := idMap(conf, 'g')
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, p := range devices {
		d, err := statDevice(p.Path)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, p.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := makeNode(path, d, p, users, groups); err != nil {
			return fmt.Errorf("make device node %s: %w", path, err)
		}
		fmt.Fprintf(&list, "%c:%d:%d:%s\n", d.Type, d.Major, d.Minor, p.Path)
	}
	return os.WriteFile(filepath.Join(dir, "devices"), []byte(list.String()), 0o644)
}

func makeNode(path string, d lxcconf.Device, p pveconf.Device, users, groups idRanges) error {
	mode := uint64(0o660)
	var uid, gid int
	var err error
	if p.Mode != "" {
		if mode, err = strconv.ParseUint(p.Mode, 8, 32); err != nil {
			return err
		}
	}
	if p.UID != "" {
		if uid, err = strconv.Atoi(p.UID); err != nil {
			return err
		}
	}
	if p.GID != "" {
		if gid, err = strconv.Atoi(p.GID); err != nil {
			return err
		}
	}
	kind := uint32(unix.S_IFCHR)
	if d.Type == 'b' {
		kind = unix.S_IFBLK
	}
	if err := unix.Mknod(path, kind|uint32(mode), int(unix.Mkdev(d.Major, d.Minor))); err != nil {
		return err
	}
	return errors.Join(unix.Chmod(path, uint32(mode)), unix.Chown(path, users.host(uid), groups.host(gid)))
}

// An idRange maps count ids of the container from first to ids of the host.
type idRange struct{ first, host, count int }

type idRanges []idRange

// idMap reads the raw id map, or Proxmox's own (PVE::LXC::parse_id_maps).
func idMap(conf *pveconf.File, kind byte) (idRanges, error) {
	var ranges idRanges
	for _, e := range conf.Raw() {
		if e.Key != "lxc.idmap" {
			continue
		}
		var r idRange
		var k string
		if _, err := fmt.Sscan(e.Value, &k, &r.first, &r.host, &r.count); err != nil {
			return nil, fmt.Errorf("failed to parse id map: %s", e.Value)
		}
		if k == string(kind) || k == "b" {
			ranges = append(ranges, r)
		}
	}
	if len(ranges) == 0 && lxcconf.Unprivileged(conf) {
		ranges = idRanges{{0, 100000, 65536}}
	}
	return ranges, nil
}

// host is the id on the host; one outside the map is used as it is, as by Proxmox.
func (rs idRanges) host(id int) int {
	for _, r := range rs {
		if id >= r.first && id < r.first+r.count {
			return r.host + id - r.first
		}
	}
	return id
}

// writeHostname is all that the sandbox does of Proxmox's preparation of the guest (LXC/Setup.pm).
func writeHostname(ctid int32, conf *pveconf.File) error {
	name, ok := conf.Property("hostname")
	if !ok {
		name = fmt.Sprintf("CT%d", ctid)
	}
	root, err := os.OpenRoot(filepath.Join(containerDir(ctid), "rootfs"))
	if err != nil {
		return err
	}
	defer root.Close()
	err = root.WriteFile("etc/hostname", []byte(name+"\n"), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a root file system without /etc
	}
	return err
}

// autodev runs in the container's namespaces, before its root is the root (lxc-pve-autodev-hook).
func autodev(ctid int32, rootfs string) error {
	if rootfs == "" {
		return errors.New("LXC_ROOTFS_MOUNT is not set")
	}
	dir := passthroughDir(ctid)
	list, err := os.Open(filepath.Join(dir, "devices"))
	if notFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer list.Close()
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 4)
		if len(fields) != 4 {
			return fmt.Errorf("%s: bad line %q", list.Name(), lines.Text())
		}
		path := fields[3]
		if strings.Contains(path, "..") || strings.ContainsAny(path, " \t") {
			fmt.Fprintf(os.Stderr, "skipping device with invalid path: %s\n", path)
			continue
		}
		if err := bindNode(filepath.Join(dir, path), filepath.Join(rootfs, path)); err != nil {
			return err
		}
	}
	return lines.Err()
}

func bindNode(source, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(target, unix.S_IFREG, 0); err != nil {
		return fmt.Errorf("make mount point %s: %w", target, err)
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount of %s to %s failed: %w", source, target, err)
	}
	return nil
}

// postStop applies pending changes and rewrites the conf, without taking the lock on it, as Proxmox
// does at every stop (lxc-pve-poststop-hook).
func (h *Host) postStop(ctid int32, target string) error {
	conf, err := h.load(ctid)
	if err != nil {
		return err
	}
	if b, err := os.ReadFile(PostStopDelayFile); err == nil {
		if d, err := time.ParseDuration(strings.TrimSpace(string(b))); err == nil {
			<-time.After(d)
		}
	}
	if err := conf.ApplyPending(); err != nil {
		return err
	}
	if err := h.rewrite(ctid, conf); err != nil {
		return err
	}
	if err := updateLXCConfig(ctid, conf); err != nil {
		return err
	}
	if target != "reboot" {
		return nil
	}
	if err := os.WriteFile(rebootMarker(ctid), nil, 0o644); err != nil {
		return err
	}
	if err := queueRestart(ctid); err != nil {
		return err
	}
	return errors.New("the reboot becomes a stop and a start")
}

// monitorFD is where the restart finds a pidfd of the monitor that is about to end.
const monitorFD = 3

// queueRestart does what `systemctl restart --no-block` does from the unit's stop wrapper.
func queueRestart(ctid int32) error {
	fd, err := unix.PidfdOpen(os.Getppid(), 0) // LXC's shell replaces itself with the hook
	if err != nil {
		return fmt.Errorf("open the monitor: %w", err)
	}
	monitor := os.NewFile(uintptr(fd), "monitor")
	defer monitor.Close()
	again := exec.Command("/proc/self/exe", HookCommand, strconv.Itoa(int(ctid)), "lxc", "restart")
	again.Env = environment
	again.Dir = "/"
	again.ExtraFiles = []*os.File{monitor}
	again.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return again.Start()
}

// restart waits for the monitor that wanted a reboot to end, and starts the container anew.
func (h *Host) restart(ctid int32) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: monitorFD, Events: unix.POLLIN}}, -1)
		if err == nil {
			return h.startMonitor(ctid)
		}
		if err != unix.EINTR {
			return fmt.Errorf("wait for the monitor of %d: %w", ctid, err)
		}
	}
}
