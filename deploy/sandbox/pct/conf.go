package pct

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/pveconf"
	"phoenix.internal/deploy/sandbox/lxcconf"
)

func (h *Host) load(ctid int32) (*pveconf.File, error) {
	b, err := os.ReadFile(h.confPath(ctid))
	if notFound(err) {
		return nil, &statusError{
			proxmox("Configuration file 'nodes/%s/lxc/%d.conf' does not exist", h.Node, ctid),
			int(syscall.ENOENT)}
	}
	if err != nil {
		return nil, err
	}
	return pveconf.Parse(b), nil
}

// write replaces a conf the way Proxmox does: a temporary beside it, then a rename; no sync, no chmod.
func (h *Host) write(ctid int32, b []byte) error {
	path := h.confPath(ctid)
	temporary := fmt.Sprintf("%s.tmp.%d", path, os.Getpid())
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return fmt.Errorf("unable to open file '%s' - %w", temporary, err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return nil
}

// rewrite writes a conf in Proxmox's canonical form.
func (h *Host) rewrite(ctid int32, conf *pveconf.File) error {
	b, err := conf.Canonical()
	if err != nil {
		return err
	}
	return h.write(ctid, b)
}

// checkLock refuses a conf with `lock:`; "mounted" does not keep it from starting and stopping.
func checkLock(conf *pveconf.File) error {
	lock, _ := conf.Property("lock")
	if lock == "" || lock == "0" {
		return nil
	}
	return proxmox("CT is locked (%s)", lock)
}

func checkLockForStart(conf *pveconf.File) error {
	if lock, _ := conf.Property("lock"); lock == "mounted" {
		return nil
	}
	return checkLock(conf)
}

func isTemplate(conf *pveconf.File) bool {
	v, _ := conf.Property("template")
	return v == "1"
}

// locked runs fn while it holds Proxmox's lock on the conf (PVE::Tools::lock_file_full).
func (h *Host) locked(ctid int32, fn func() error) error {
	const wait = 10 * time.Second
	if err := os.MkdirAll(lockDir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(lockDir, fmt.Sprintf("pve-config-%d.lock", ctid))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("can't open lock for %s - %w", path, err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		fmt.Fprintln(h.Out, "trying to acquire lock...")
		err = waitForLock(f, wait)
		if err == nil {
			fmt.Fprintln(h.Out, " OK")
		}
	}
	if err != nil {
		return fmt.Errorf("can't lock file '%s' - %w", path, err)
	}
	return fn()
}

var errLockTimeout = errors.New("got timeout")

func waitForLock(f *os.File, wait time.Duration) error {
	deadline := time.After(wait)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-deadline:
			return errLockTimeout
		case <-tick.C:
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
				return err
			}
		}
	}
}

// checkQuorum refuses on a node without quorum. The sandbox's /etc/pve is a plain folder, whose link
// `local` always looks writable, so a test takes the quorum away in .members.
func checkQuorum() error {
	noQuorum := proxmox("cluster not ready - no quorum?")
	fi, err := os.Lstat(filepath.Join(pveDir, "local"))
	if err != nil || fi.Mode().Perm()&0o200 == 0 {
		return noQuorum
	}
	b, err := os.ReadFile(filepath.Join(pveDir, ".members"))
	if err != nil {
		return nil // as on a single host
	}
	var members struct {
		Cluster *struct {
			Quorate int `json:"quorate"`
		} `json:"cluster"`
	}
	if json.Unmarshal(b, &members) == nil && members.Cluster != nil && members.Cluster.Quorate == 0 {
		return noQuorum
	}
	return nil
}

// updateLXCConfig regenerates /var/lib/lxc/<CTID>/config, or removes it for a template
// (PVE::LXC::update_lxc_config).
func updateLXCConfig(ctid int32, conf *pveconf.File) error {
	path := filepath.Join(containerDir(ctid), "config")
	b, err := lxcconf.Generate(ctid, conf, machine())
	if err != nil {
		return err
	}
	if b == nil {
		if err := os.Remove(path); err != nil && !notFound(err) {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := fmt.Sprintf("%s.tmp.%d", path, os.Getpid())
	if err := os.WriteFile(temporary, b, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// machine is what Proxmox would find here. It has no Network: see lxcconf.WithoutNetwork.
func machine() lxcconf.Host {
	controllers := map[string]bool{}
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		for name := range strings.FieldsSeq(string(b)) {
			controllers[name] = true
		}
	}
	host := lxcconf.Host{
		Include: func(name string) bool {
			_, err := os.Stat(filepath.Join("/usr/share/lxc/config", name))
			return err == nil
		},
		Device: statDevice,
		Memory: controllers["memory"],
		CPU:    controllers["cpu"],
	}
	host.CPUs = cpus()
	return host
}

// cpus is the number of CPUs that containers may be bound to, if those are the first of the machine; else 0.
func cpus() int {
	b, err := os.ReadFile("/sys/fs/cgroup/cpuset.cpus.effective")
	if err != nil {
		return 0 // no such controller
	}
	var last int
	if _, err := fmt.Sscanf(string(b), "0-%d\n", &last); err != nil {
		return 0
	}
	return last + 1
}

// statDevice follows symlinks, as Proxmox does (PVE::LXC::Tools::get_device_mode_and_rdev).
func statDevice(path string) (lxcconf.Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == unix.ENOENT {
		return lxcconf.Device{}, proxmox("Device %s does not exist", path)
	} else if err != nil {
		return lxcconf.Device{}, proxmox("Error accessing device %s", path)
	}
	d := lxcconf.Device{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = 'c'
	case unix.S_IFBLK:
		d.Type = 'b'
	default:
		return d, proxmox("%s is not a device", path)
	}
	return d, nil
}
