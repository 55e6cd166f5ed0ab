package attach

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// loginEnv tells a program that it has executed itself again already.
const loginEnv = "PHOENIX_AS_LOGIN"

// AsLogin gives this process what a login shell of the node has, so that it passes nothing else on to the commands that
// it runs in containers: umask 022, the limits of PID 1 with 1024 open files (those are what pam_limits gives a login
// that no rule is about), no ignored or blocked signal, ordinary scheduling and OOM score. The agent's main calls it
// first. So what its unit says about limits, priorities and CPUs has no effect on the agent either.
//
// Some of it holds for a thread or for the start of a program only, so the program executes itself again, once, and
// AsLogin returns in that second run; PID, arguments, environment and open descriptors are the same. The error is about
// what this process is too weak to change, or, like no_new_privs, nobody can; the rest has been done.
func AsLogin() error {
	if failed, again := os.LookupEnv(loginEnv); again {
		os.Unsetenv(loginEnv)
		return join(text(failed), irreversible())
	}
	runtime.LockOSThread() // to the end: executing needs it only if that fails, and then it does no harm
	err := join(setLimits(), setScheduling(), setSignals())
	unix.Umask(0o022)
	failed := ""
	if err != nil {
		failed = err.Error()
	}
	path := program()
	execErr := syscall.Exec(path, os.Args, append(os.Environ(), loginEnv+"="+failed))
	return join(err, fmt.Errorf("execute %s again: %w", path, execErr))
}

// join is errors.Join for a log: the text is one line.
func join(errs ...error) error {
	var joined error
	for _, err := range errs {
		switch {
		case err == nil:
		case joined == nil:
			joined = err
		default:
			joined = fmt.Errorf("%w; %w", joined, err)
		}
	}
	return joined
}

// program returns a path of the running program, of its own if it still has it: the process is named for it.
func program() string {
	const self = "/proc/self/exe"
	path, err := os.Executable()
	if err != nil {
		return self
	}
	its, err := os.Stat(path)
	running, runningErr := os.Stat(self)
	if err != nil || runningErr != nil || !os.SameFile(its, running) {
		return self // replaced by a newer one, perhaps
	}
	return path
}

func text(s string) error {
	if s == "" {
		return nil
	}
	return errors.New(s)
}

// resources are all limits of Linux, in their order (asm-generic/resource.h).
var resources = [...]string{"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks",
	"sigpending", "msgqueue", "nice", "rtprio", "rttime"}

func setLimits() error {
	var failures []error
	for resource, name := range resources {
		var limit unix.Rlimit
		if err := unix.Prlimit(1, resource, nil, &limit); err != nil {
			failures = append(failures, fmt.Errorf("limit %s of PID 1: %w", name, err))
			continue
		}
		if resource == unix.RLIMIT_NOFILE {
			limit.Cur = min(1024, limit.Max)
		}
		if err := setLimit(resource, limit); err != nil {
			failures = append(failures, fmt.Errorf("limit %s: %w", name, err))
		}
	}
	return join(failures...)
}

func setLimit(resource int, limit unix.Rlimit) error {
	// By this function, so that the runtime forgets the number of open files that it found when it raised it.
	err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: limit.Cur, Max: limit.Max})
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	// Without CAP_SYS_RESOURCE a hard limit can only be lowered, and this one is lower already.
	var own unix.Rlimit
	if err := unix.Prlimit(0, resource, nil, &own); err != nil {
		return err
	}
	if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: min(limit.Cur, own.Max), Max: min(limit.Max, own.Max)}); err != nil {
		return err
	}
	return fmt.Errorf("it stays at most %s, PID 1 has %s, and raising it takes CAP_SYS_RESOURCE", limitText(own.Max), limitText(limit.Max))
}

func limitText(v uint64) string {
	if v == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return strconv.FormatUint(v, 10)
}

func setScheduling() error {
	var failures []error
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
		failures = append(failures, err)
	}
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0); err != nil {
		failures = append(failures, fmt.Errorf("ordinary scheduling: %w", err))
	}
	const whoProcess, classNone = 1, 0 // linux/ioprio.h
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classNone<<13); errno != 0 {
		failures = append(failures, fmt.Errorf("ordinary I/O priority: %w", errno))
	}
	var every unix.CPUSet
	every.Fill()
	if err := unix.SchedSetaffinity(0, &every); err != nil {
		failures = append(failures, fmt.Errorf("run on every CPU: %w", err))
	}
	return join(failures...)
}

func setSignals() error {
	// One that is caught is not ignored by what is executed; one that is ignored is.
	signal.Notify(make(chan os.Signal, 1))
	var none unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil); err != nil {
		return fmt.Errorf("unblock the signals: %w", err)
	}
	return nil
}

// irreversible tells what this process has lost, and with it everything that it will ever start.
func irreversible() error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	all := make(map[string]string)
	for line := range bytes.Lines(b) {
		if key, value, ok := strings.Cut(string(line), ":"); ok {
			all[key] = strings.TrimSpace(value)
		}
	}
	var failures []error
	if all["NoNewPrivs"] != "0" {
		failures = append(failures, errors.New("no_new_privs is set: set-user-ID programs will not work in commands in containers"))
	}
	if all["Seccomp"] != "0" {
		failures = append(failures, errors.New("a seccomp filter is set: commands in containers will have it too"))
	}
	if init, err := os.ReadFile("/proc/1/status"); err == nil && !bytes.Contains(init, []byte("\nCapBnd:\t"+all["CapBnd"]+"\n")) {
		failures = append(failures, fmt.Errorf("the capability bounding set is reduced to %s: commands in containers will have no more", all["CapBnd"]))
	}
	return join(failures...)
}
