package lxctest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary runs itself twice: as init of new mount and PID namespaces, which prepares the
// mounts and reaps orphans (the containers' monitors become its children), and below that as the
// test proper. stageEnv says which of them a process is.
const (
	stageEnv  = "PHOENIX_LXCTEST_STAGE"
	stageInit = "init"
	stageTest = "test"
)

// Main is for TestMain. It runs the tests in namespaces where containers work, and ends the process
// with their result. On a machine that cannot run containers the tests run where they are, and
// those that call [Require] are skipped.
func Main(m *testing.M) {
	// A signal that is ignored, as SIGHUP is under nohup, would be ignored in the containers too; one that is
	// caught is not.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	switch stage := os.Getenv(stageEnv); {
	case stage == stageTest || missing() != "":
		os.Exit(m.Run())
	case stage == stageInit:
		os.Exit(runInit())
	default:
		os.Exit(runNamespaces())
	}
}

// runNamespaces starts the binary as init of its own namespaces and returns its exit status.
func runNamespaces() int {
	cmd := command(stageInit)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
	}
	ignore()
	// The death signal comes when the thread that started the child ends, not the process.
	runtime.LockOSThread()
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lxctest: run the tests in new namespaces:", err)
		return 1
	}
	return 0
}

// ignore makes this process survive Ctrl-C and a closed stdout, to clean up after the tests, which do
// not. Other than with signal.Ignore, they inherit nothing of it.
func ignore() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGPIPE)
}

func command(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageEnv+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// runInit prepares the namespaces, runs the tests and removes what they left behind. It returns
// their exit status.
func runInit() int {
	ignore()
	if err := mountAll(); err != nil {
		fmt.Fprintln(os.Stderr, "lxctest: prepare the mount namespace:", err)
		return 1
	}
	cmd := command(stageTest)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "lxctest: start the tests:", err)
		return 1
	}
	status := reap(cmd.Process.Pid)
	// Tests that were cut short leave containers. Their processes would end with this one, but
	// their cgroups would stay.
	unix.Kill(-1, unix.SIGKILL)
	reap(-1)
	left, err := filepath.Glob(Path + "/*/rootfs")
	if err != nil {
		panic(err) // the pattern is bad
	}
	for _, rootfs := range left {
		ctid := filepath.Base(filepath.Dir(rootfs))
		removeCgroup("/sys/fs/cgroup/lxc.monitor." + ctid)
		removeCgroup("/sys/fs/cgroup/lxc.payload." + ctid)
	}
	return status
}

// reap waits for children until the one with this PID has ended, whose exit status it returns, or,
// for -1, until there are none.
func reap(until int) int {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // ECHILD
			return 1
		case pid == until && status.Exited():
			return status.ExitStatus()
		case pid == until:
			fmt.Fprintln(os.Stderr, "lxctest: the tests were ended by", status.Signal())
			return 128 + int(status.Signal())
		}
	}
}

// removeCgroup removes a cgroup without processes and those below it, as far as it can.
func removeCgroup(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	os.Remove(dir)
}

// mountAll makes the mount namespace private, with a /proc of the PID namespace, a pure cgroup2 at
// /sys/fs/cgroup and an empty tmpfs at Path.
func mountAll() error {
	if err := mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var below []string
	for line := range strings.Lines(string(mounts)) {
		point := strings.Fields(line)[1]
		if point == "/sys/fs/cgroup" || strings.HasPrefix(point, "/sys/fs/cgroup/") {
			below = append(below, point)
		}
	}
	for _, point := range slices.Backward(below) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			return &os.PathError{Op: "unmount", Path: point, Err: err}
		}
	}
	if err := mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0); err != nil {
		return err
	}
	if err := os.MkdirAll(Path, 0o755); err != nil {
		return err
	}
	return mount("lxctest", Path, "tmpfs", 0)
}

func mount(source, target, fstype string, flags uintptr) error {
	if err := unix.Mount(source, target, fstype, flags, ""); err != nil {
		return &os.PathError{Op: "mount " + fstype + " on", Path: target, Err: err}
	}
	return nil
}
