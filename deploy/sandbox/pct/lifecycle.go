package pct

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// environment is what systemd's unit gives lxc-start.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}

func (c *call) start() error {
	if _, err := c.load(c.ctid); err != nil {
		return err
	}
	if running(c.ctid) {
		return proxmox("CT %d already running", c.ctid)
	}
	if err := checkQuorum(); err != nil {
		return err
	}
	if done, err := c.request("start", "set", fmt.Sprintf("ct:%d", c.ctid), "--state", "started"); done || err != nil {
		return err
	}
	return c.locked(c.ctid, func() error { return c.startLocked(!c.on("skiplock")) })
}

// startLocked is PVE::LXC::vm_start: the lock on the conf is held.
func (c *call) startLocked(checkConfLock bool) error {
	conf, err := c.load(c.ctid)
	if err != nil {
		return err
	}
	if isTemplate(conf) {
		return proxmox("you can't start a CT if it's a template")
	}
	if checkConfLock {
		if err := checkLockForStart(conf); err != nil {
			return err
		}
	}
	if conf.Pending().Line > 0 {
		if err := conf.ApplyPending(); err != nil {
			return err
		}
		if err := c.write(c.ctid, conf.Bytes()); err != nil {
			return err
		}
	}
	if err := updateLXCConfig(c.ctid, conf); err != nil {
		return err
	}
	if c.on("skiplock") {
		if err := os.MkdirAll(filepath.Dir(skipLockFlag(c.ctid)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(skipLockFlag(c.ctid), nil, 0o644); err != nil {
			return err
		}
	}
	if err := c.runHookscript(conf, "pre-start"); err != nil {
		return err
	}
	return c.startMonitor(c.ctid)
}

// skipLockFlag tells the pre-start hook not to look at `lock:`, once.
func skipLockFlag(ctid int32) string { return fmt.Sprintf("/run/lxc/skiplock-%d", ctid) }

func stderrPath(ctid int32) string {
	return filepath.Join(runDir, fmt.Sprintf("ct-%d.stderr", ctid))
}

// startMonitor does what `systemctl start pve-container@<CTID>` and Proxmox's wait for RUNNING do.
func (h *Host) startMonitor(ctid int32) error {
	monitor, err := runMonitor(ctid)
	if err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- monitor.Wait() }() // ends with the monitor or with this process
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var giveUp <-chan time.Time
	for {
		select {
		case <-giveUp:
			return nil
		case err := <-exited:
			if err == nil {
				return nil // it ran, and its init ended by itself
			}
			h.printMonitorErrors(ctid)
			return proxmox("startup for container '%d' failed", ctid)
		case <-tick.C:
			if state(ctid) != stateRunning {
				continue
			}
			if catchesHalt(ctid) {
				return nil
			}
			if giveUp == nil {
				giveUp = time.After(initPatience)
			}
		}
	}
}

// initPatience is how long start waits for init to handle SIGPWR. Proxmox does not wait; but a shutdown
// right after the start would then be lost now and then, because the kernel drops signals that a
// container's init has no handler for, and be noticed only after its whole timeout.
const initPatience = 300 * time.Millisecond

// catchesHalt says whether init has a handler for the signal that lxc-stop asks it to halt with.
func catchesHalt(ctid int32) bool {
	pid, err := ask(ctid, commandInitPID)
	if err != nil {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", int32(pid)))
	if err != nil {
		return false
	}
	_, caught, _ := strings.Cut(string(b), "\nSigCgt:\t")
	caught, _, _ = strings.Cut(caught, "\n")
	mask, err := strconv.ParseUint(caught, 16, 64)
	return err == nil && mask&(1<<(syscall.SIGPWR-1)) != 0
}

func runMonitor(ctid int32) (*exec.Cmd, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	stderr, err := os.Create(stderrPath(ctid))
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	monitor := exec.Command("/usr/bin/lxc-start", "-F", "-n", strconv.Itoa(int(ctid)))
	monitor.Env = environment
	monitor.Dir = "/"
	monitor.Stderr = stderr
	monitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives pct, as a unit of systemd does
	return monitor, monitor.Start()
}

var logPrefix = regexp.MustCompile(`(?m)^lxc-start: \d+: (?:\.\./src/lxc/[^ :]+: )?`)

func (h *Host) printMonitorErrors(ctid int32) {
	b, err := os.ReadFile(stderrPath(ctid))
	if err != nil {
		return
	}
	b = bytes.TrimSpace(logPrefix.ReplaceAll(b, nil))
	if len(b) > 0 {
		fmt.Fprintf(h.Out, "%s\n", b)
	}
}

func (c *call) stop() error {
	if _, err := c.load(c.ctid); err != nil {
		return err
	}
	if !running(c.ctid) {
		return proxmox("CT %d not running", c.ctid)
	}
	if done, err := c.requestStop(0); done || err != nil {
		return err
	}
	return c.locked(c.ctid, func() error {
		conf, err := c.load(c.ctid)
		if err != nil {
			return err
		}
		if !c.on("skiplock") {
			if err := checkLockForStart(conf); err != nil {
				return err
			}
		}
		return c.stopLocked("--kill")
	})
}

func (c *call) shutdown() error {
	if _, err := c.load(c.ctid); err != nil {
		return err
	}
	timeout, err := c.seconds("timeout", 60)
	if err != nil {
		return err
	}
	if !running(c.ctid) {
		return proxmox("CT %d not running", c.ctid)
	}
	if done, err := c.requestStop(timeout); done || err != nil {
		return err
	}
	return c.locked(c.ctid, func() error {
		conf, err := c.load(c.ctid)
		if err != nil {
			return err
		}
		if err := checkLock(conf); err != nil {
			return err
		}
		args := []string{"--timeout", strconv.Itoa(timeout)}
		if !c.on("forceStop") {
			args = append(args, "--nokill")
		}
		return c.stopLocked(args...)
	})
}

// reboot does not look at `lock:`; the start half does, in the pre-start hook (reference 8.6).
func (c *call) reboot() error {
	if _, err := c.load(c.ctid); err != nil {
		return err
	}
	timeout, err := c.seconds("timeout", 60)
	if err != nil {
		return err
	}
	if !running(c.ctid) {
		return proxmox("CT %d not running", c.ctid)
	}
	return c.locked(c.ctid, func() error {
		if !running(c.ctid) {
			return nil
		}
		if err := c.stopLocked("--timeout", strconv.Itoa(timeout)); err != nil {
			return err
		}
		return c.startLocked(false)
	})
}

// stopLocked runs lxc-stop and returns when the monitor has exited, post-stop hook included
// (PVE::LXC::vm_stop).
func (c *call) stopLocked(args ...string) error {
	const afterwards = 60 * time.Second // for hooks; Proxmox's post-stop may be slow, but it ends
	conn, err := connect(c.ctid)
	if errors.Is(err, errNotRunning) {
		return nil
	} else if err != nil {
		return err
	}
	defer conn.Close()
	stop := exec.Command("/usr/bin/lxc-stop", append([]string{"-n", strconv.Itoa(int(c.ctid))}, args...)...)
	stop.Env = environment
	stop.Stdout, stop.Stderr = c.Out, c.Out
	if err := stop.Run(); err != nil && running(c.ctid) {
		return proxmox("container did not stop")
	}
	if err := waitForEnd(conn, afterwards); err != nil {
		return proxmox("container did not stop")
	}
	return nil
}

// exec replaces pct with lxc-attach.
func (c *call) exec() error {
	if _, err := c.load(c.ctid); err != nil {
		return err
	}
	if !running(c.ctid) {
		return proxmox("container '%d' not running!", c.ctid)
	}
	if len(c.args) == 0 {
		return &usageError{"400 not enough arguments"}
	}
	keep := "--keep-env"
	if value, ok := c.options["keep-env"]; ok && value == "0" {
		keep = "--clear-env"
	}
	argv := append([]string{"lxc-attach", "-n", strconv.Itoa(int(c.ctid)), keep, "--"}, c.args...)
	return unix.Exec("/usr/bin/lxc-attach", argv, os.Environ())
}
