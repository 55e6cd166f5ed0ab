package attach

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Argument is the first argument with which the agent's binary is the launcher of a command for another user or
// directory, or for one start of a container; see [Main].
const Argument = "exec-helper"

// The launcher's descriptors, as Command.Files gives them: the program itself, and the pipe for its report.
const (
	programFD = 3
	reportFD  = 4
)

// What the launcher reports, each with a text and a line end. "started" comes right before the command is executed, and
// "exec" after that if it could not be: so a status of the command's own is never taken for the launcher's.
const (
	reportStarted   = "started"
	reportUser      = "user"
	reportDirectory = "directory"
	reportExec      = "exec"
	reportFailed    = "failed"
	reportRestarted = "restarted"
)

// maxReport bounds what is read of a report: the container's root could write to the pipe in the launcher's place.
const maxReport = 4 << 10

// launch replaces the command by the launcher, and gives back our end of the pipe for its report.
func (p *Process) launch(a Attacher, c *Command) (theirs *os.File, err error) {
	program, err := a.Program()
	if err != nil {
		return nil, err
	}
	namespace := ""
	if c.Init != (Init{}) {
		if p.pids, err = c.Init.namespace(); err != nil {
			return nil, err
		}
		if namespace, err = numbers(p.pids); err != nil {
			return nil, err
		}
	}
	p.report, theirs, err = os.Pipe()
	if err != nil {
		return nil, err
	}
	var given []string
	for _, v := range c.Env {
		name, _, _ := strings.Cut(v, "=")
		given = append(given, name)
	}
	c.Argv = append([]string{fmt.Sprintf("/proc/self/fd/%d", programFD), Argument, c.User, c.Dir, strings.Join(given, ","), namespace}, c.Argv...)
	c.Files = []*os.File{program, theirs}
	return theirs, nil
}

// namespace opens the PID namespace of the process. The error is an [ErrRestarted] if it is no more.
func (i Init) namespace() (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", i.PID))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrRestarted
	}
	if err != nil {
		return nil, err
	}
	// After the open: so it was that of this very process, which lives.
	if q, ok := readProcess(i.PID); !ok || q.dead || q.start != strconv.FormatUint(i.StartTicks, 10) {
		f.Close()
		return nil, ErrRestarted
	}
	return f, nil
}

// numbers returns the numbers by which the kernel names a namespace as long as it lives, or somebody has it open.
func numbers(namespace *os.File) (string, error) {
	info, err := namespace.Stat()
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.New("no numbers of a namespace")
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// checkNamespace returns an error if this process is in another PID namespace.
func checkNamespace(want string) error {
	f, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := numbers(f)
	if err == nil && got != want {
		err = fmt.Errorf("in PID namespace %s instead of %s", got, want)
	}
	return err
}

// launched says what became of a command that the launcher was to start. It is called when lxc-attach has ended: by then
// the launcher has written what it had to say.
func (p *Process) launched() (kind, text string) {
	defer p.report.Close()
	p.report.SetReadDeadline(time.Now()) // somebody in the container may hold the other end
	var b []byte
	if raw, err := p.report.SyscallConn(); err == nil {
		b = make([]byte, maxReport)
		raw.Control(func(fd uintptr) {
			n, err := unix.Read(int(fd), b)
			b = b[:max(n, 0)]
			if err != nil {
				b = nil
			}
		})
	}
	for line := range bytes.Lines(b) {
		k, t, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		kind, text = k, printable(t)
	}
	return kind, text
}

// Main is the launcher. The agent's main calls it, before anything else, when its first argument is [Argument]; args are
// those after it: the user, the directory, the names of the variables that the caller gave, the numbers of the PID
// namespace, and the command. It runs as
// root of a container and becomes the command; the status that it returns otherwise is for the agent, which has the
// report too.
func Main(args []string) int {
	// The container's root may trace processes of its namespaces; executing the command undoes this.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "prctl:", err)
		return 1
	}
	if len(args) < 5 {
		fmt.Fprintln(os.Stderr, "usage:", Argument, "USER DIRECTORY VARIABLES NAMESPACE COMMAND...")
		return 2
	}
	unix.CloseOnExec(programFD)
	unix.CloseOnExec(reportFD)
	report := os.NewFile(reportFD, "report")
	say := func(kind string, err error) {
		text := ""
		if err != nil {
			text = strings.ReplaceAll(err.Error(), "\n", "?")
		}
		fmt.Fprintf(report, "%s %.1000s\n", kind, text)
	}
	userName, dir, given, argv := args[0], args[1], strings.Split(args[2], ","), args[4:]
	if args[3] != "" {
		if err := checkNamespace(args[3]); err != nil {
			say(reportRestarted, err)
			return 1
		}
	}
	if userName != "" {
		u, err := findUser(userName, readSmall)
		if err != nil {
			say(reportUser, err)
			return 1
		}
		if err := u.become(given); err != nil {
			say(reportFailed, err)
			return 1
		}
	}
	if dir != "" {
		if err := os.Chdir(dir); err != nil {
			say(reportDirectory, err)
			return 1
		}
		if !slices.Contains(given, "PWD") {
			os.Setenv("PWD", dir)
		}
	}
	say(reportStarted, nil)
	err := execute(argv)
	say(reportExec, err)
	fmt.Fprintf(os.Stderr, "%s: %v\n", argv[0], err)
	if errors.Is(err, unix.ENOENT) {
		return 127
	}
	return 126
}

// become makes this process the user's, as login does.
func (u user) become(given []string) error {
	for fd := range 3 {
		// The terminal and the pipes are root's, and could not be opened by their names in /dev and /proc. It does not
		// matter if the container may not do that: a pipe made on the host is of none of its users.
		unix.Fchown(fd, u.uid, -1)
	}
	if err := syscall.Setgroups(u.groups); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setgid(u.gid); err != nil {
		return fmt.Errorf("setgid %d: %w", u.gid, err)
	}
	if err := syscall.Setuid(u.uid); err != nil {
		return fmt.Errorf("setuid %d: %w", u.uid, err)
	}
	for _, v := range []struct{ name, value string }{{"HOME", u.home}, {"USER", u.name}, {"LOGNAME", u.name}} {
		if v.value != "" && !slices.Contains(given, v.name) {
			os.Setenv(v.name, v.value)
		}
	}
	return nil
}

// execute executes the command as execvp does, which is what lxc-attach uses.
func execute(argv []string) error {
	if strings.ContainsRune(argv[0], '/') {
		return execFile(argv[0], argv)
	}
	failure := error(unix.ENOENT)
	for dir := range strings.SplitSeq(os.Getenv("PATH"), ":") {
		if dir == "" {
			dir = "."
		}
		switch err := execFile(filepath.Join(dir, argv[0]), argv); {
		case errors.Is(err, unix.EACCES):
			failure = err // unless another directory has it
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		default:
			return err
		}
	}
	return failure
}

func execFile(path string, argv []string) error {
	err := syscall.Exec(path, argv, os.Environ())
	if errors.Is(err, unix.ENOEXEC) { // a script without "#!"
		return syscall.Exec("/bin/sh", append([]string{"sh", path}, argv[1:]...), os.Environ())
	}
	return err
}

// maxFile bounds what is read of a container's file.
const maxFile = 4 << 20

// readSmall reads a regular file that the container may have put there in our way. It is empty if there is none.
func readSmall(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxFile)
	}
	return b, err
}
