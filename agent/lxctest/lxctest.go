// Package lxctest runs real LXC containers for tests, on any Linux machine where the tests are root
// and LXC and busybox-static are installed. A test that needs more than the machine has is skipped
// with the reason.
//
// [Main] moves the test process into namespaces of its own, where /sys/fs/cgroup is a pure cgroup2
// mount (elsewhere LXC ignores lxc.cgroup2.devices.*) and /var/lib/lxc a tmpfs. When the test
// process ends, however it ends, the kernel ends the containers and drops the mounts.
package lxctest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Path is the LXC path of all containers: Proxmox's, private to the test process.
const Path = "/var/lib/lxc"

// firstID is the host's id of the root user of an unprivileged container, as on Proxmox.
const firstID = 100000

// Config says how a container is made. The zero value is a privileged container without devices.
type Config struct {
	CTID         int32    // 0: a random one
	Unprivileged bool     // ids are mapped to 100000..165535, and its own cgroup allows every device, as on Proxmox
	Devices      []Device // bound into the container the way raw passthrough does
	Lines        []string // further lines of the LXC config, "key = value"
	Init         string   // body of the shell script that is init; default: idles, ends at SIGPWR
}

// A Device is a device node given to a container.
type Device struct {
	Path         string // in the container, below /dev
	Major, Minor int
	Mode         fs.FileMode // of the host's node; 0: 0666
	Denied       bool        // no cgroup rule for it
	NoSource     bool        // the host has no such node: LXC leaves an empty regular file
}

// A Container is a container that runs until the end of its test.
type Container struct {
	CTID   int32
	Rootfs string // path of its root file system on the host
	Config string // path of its LXC config
}

// Start makes a container and starts it. It is stopped and removed when the test ends. Start skips
// the test if the machine cannot run containers, and ends it if the container does not start.
func Start(t testing.TB, cfg Config) *Container {
	t.Helper()
	c := New(t, cfg)
	c.Start(t)
	return c
}

// New is Start without starting the container.
func New(t testing.TB, cfg Config) *Container {
	t.Helper()
	Require(t)
	if cfg.CTID == 0 {
		cfg.CTID = 100_000_000 + rand.Int32N(899_999_999)
	}
	dir := filepath.Join(Path, strconv.Itoa(int(cfg.CTID)))
	c := &Container{CTID: cfg.CTID, Rootfs: filepath.Join(dir, "rootfs"), Config: filepath.Join(dir, "config")}
	t.Cleanup(func() {
		c.Stop(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove container %d: %v", c.CTID, err)
		}
	})
	if err := errors.Join(makeRootfs(c.Rootfs, cfg), makeConfig(c, dir, cfg)); err != nil {
		t.Fatalf("make container %d: %v", c.CTID, err)
	}
	return c
}

// Require skips the test unless containers can run, and ends it if Main was forgotten.
func Require(t testing.TB) {
	t.Helper()
	if reason := missing(); reason != "" {
		t.Skip(reason)
	}
	if os.Getenv(stageEnv) != stageTest {
		t.Fatal("TestMain does not call lxctest.Main")
	}
}

// missing says what this machine lacks for running containers; "" if nothing.
func missing() string {
	if os.Geteuid() != 0 {
		return "real LXC containers need root"
	}
	for _, tool := range []string{"lxc-start", "lxc-stop", "lxc-attach", "lxc-info", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "real LXC containers need " + tool + ", which is not installed"
		}
	}
	return ""
}

const defaultInit = `trap 'exit 0' PWR
while :; do sleep 86400 & wait $!; done
`

// makeRootfs lays out a directory that a container can run from: busybox and its applets.
func makeRootfs(root string, cfg Config) error {
	for _, dir := range []string{"bin", "sbin", "usr/bin", "usr/sbin", "dev", "proc", "sys", "etc", "tmp", "root", "run", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list busybox's applets: %w", err)
	}
	if cfg.Init == "" {
		cfg.Init = defaultInit
	}
	for path, content := range map[string]string{
		"bin/busybox": string(program),
		"sbin/init":   "#!/bin/sh\n" + cfg.Init,
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":   "root:x:0:\n",
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(content), 0o755); err != nil {
			return err
		}
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet == "busybox" || applet == "init" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			return err
		}
	}
	if !cfg.Unprivileged {
		return nil
	}
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, firstID, firstID)
	})
}

// makeConfig writes the LXC config, with the parts of Proxmox's that matter to devices, and makes
// the host's nodes.
func makeConfig(c *Container, dir string, cfg Config) error {
	// common.conf denies all devices but the pseudo ones.
	lines := []string{"lxc.include = /usr/share/lxc/config/common.conf"}
	if cfg.Unprivileged {
		lines = append(lines,
			"lxc.include = /usr/share/lxc/config/userns.conf",
			"lxc.cgroup2.devices.allow = a", // Proxmox's userns.conf.d/01-pve.conf
			fmt.Sprintf("lxc.idmap = u 0 %d 65536", firstID),
			fmt.Sprintf("lxc.idmap = g 0 %d 65536", firstID))
	}
	lines = append(lines,
		fmt.Sprintf("lxc.uts.name = ct%d", c.CTID),
		"lxc.rootfs.path = dir:"+c.Rootfs,
		"lxc.init.cmd = /sbin/init",
		"lxc.net.0.type = empty",
		"lxc.apparmor.profile = unconfined",
	)
	for i, d := range cfg.Devices {
		source := filepath.Join(dir, fmt.Sprintf("dev%d", i))
		if !d.NoSource {
			if err := makeNode(source, d); err != nil {
				return err
			}
		}
		lines = append(lines, fmt.Sprintf("lxc.mount.entry = %s %s none bind,optional,create=file 0 0", source, strings.TrimPrefix(d.Path, "/")))
		if !d.Denied {
			lines = append(lines, fmt.Sprintf("lxc.cgroup2.devices.allow = c %d:%d rw", d.Major, d.Minor))
		}
	}
	lines = append(lines, cfg.Lines...)
	return os.WriteFile(c.Config, []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

func makeNode(path string, d Device) error {
	mode := d.Mode
	if mode == 0 {
		mode = 0o666
	}
	if err := unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))); err != nil {
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	return os.Chmod(path, mode) // mknod's mode is subject to the umask
}

// Start starts the container, which must not run, and waits until it does.
func (c *Container) Start(t testing.TB) {
	t.Helper()
	log := c.Config + ".log"
	if _, err := c.tool("lxc-start", "-d", "-o", log, "-l", "INFO"); err != nil {
		b, _ := os.ReadFile(log)
		t.Fatalf("start container %d: %v\n%s", c.CTID, err, b)
	}
	if _, err := c.tool("lxc-wait", "-s", "RUNNING", "-t", "5"); err != nil {
		t.Fatalf("wait for container %d: %v", c.CTID, err)
	}
}

// Stop kills the container if it runs.
func (c *Container) Stop(t testing.TB) {
	t.Helper()
	out, err := c.tool("lxc-stop", "-k")
	if err != nil && !strings.Contains(out, "is not running") {
		t.Errorf("stop container %d: %v", c.CTID, err)
	}
}

// InitPID returns the process id of the running container's init.
func (c *Container) InitPID(t testing.TB) int {
	t.Helper()
	out, err := c.tool("lxc-info", "-p", "-H")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("init PID of container %d: %v", c.CTID, err)
	}
	return pid
}

// Run runs a shell command in the container and returns its stdout and stderr together. It ends the
// test if the command fails.
func (c *Container) Run(t testing.TB, command string) string {
	t.Helper()
	out, err := c.tool("lxc-attach", "--clear-env", "--", "/bin/sh", "-c", command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tool runs one of LXC's tools on the container and returns what it printed. The tool's output goes
// to a file, because lxc-start leaves a daemon that would hold a pipe open.
func (c *Container) tool(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f, err := os.CreateTemp("", "lxctest")
	if err != nil {
		return "", err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	args = append([]string{"-P", Path, "-n", strconv.Itoa(int(c.CTID))}, args...)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	out, readErr := os.ReadFile(f.Name())
	if err == nil {
		err = readErr
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), err
}
