package driver

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/attach"
)

// Argument is the first argument with which the agent's binary is the process in the container; see [Main].
const Argument = "driver-helper"

// What travels between the agent and that process, over its stdin and stdout: a request on a line, which for an
// installation a tar archive of the extracted files follows; and messages on a line each, the last of which has a state
// or a failure. While stdin is open the agent lives.
type (
	request struct {
		Do        string `json:"do"`
		Version   string `json:"version,omitempty"`
		Graphics  bool   `json:"graphics,omitempty"`
		TreeBytes int64  `json:"tree_bytes,omitempty"`
	}
	message struct {
		Progress *Progress `json:"progress,omitempty"`
		State    *State    `json:"state,omitempty"`
		Failure  *failure  `json:"failure,omitempty"`
		CUDA     *cuda     `json:"cuda,omitempty"`
	}
	failure struct {
		NotRemovable bool   `json:"not_removable,omitempty"`
		Message      string `json:"message"`
		Output       string `json:"output,omitempty"`
	}
)

// What can be asked for.
const (
	doInspect = "inspect"
	doInstall = "install"
	doRemove  = "remove"
	doClean   = "clean"
	doCUDA    = "cuda"
)

const installerName = "nvidia-installer"

// maxOutput is what is kept of an installer's output.
const maxOutput = 2 << 10

// Main is that process. The agent's main calls it, before anything else, when its first argument is [Argument]. It runs
// as root of a container and returns the exit status.
func Main(args []string) int {
	if status := attach.Begin(Argument, args); status != 0 {
		return status
	}
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP) // what is begun is cleaned up when nobody listens any more
	h := &helper{in: bufio.NewReaderSize(os.Stdin, 64<<10), out: json.NewEncoder(os.Stdout)}
	if err := h.serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

type helper struct {
	in  *bufio.Reader
	out *json.Encoder
}

func (h *helper) serve() error {
	line, err := h.in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	switch r.Do {
	case doInspect:
		return h.state()
	case doCUDA:
		return h.out.Encode(message{CUDA: initCUDA()})
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := h.change(ctx, r); err != nil {
		f, ok := errors.AsType[*InstallError](err)
		if !ok {
			f = &InstallError{Message: err.Error()}
		}
		return h.out.Encode(message{Failure: &failure{errors.Is(err, ErrNotRemovable), f.Message, f.Output}})
	}
	return h.state()
}

func (h *helper) state() error {
	s := inspect()
	return h.out.Encode(message{State: &s})
}

// change does what changes something, alone.
func (h *helper) change(ctx context.Context, r request) error {
	if err := os.MkdirAll(placeDir, 0o700); err != nil {
		return err
	}
	unlock, err := lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// Of one that was killed.
	if err := os.RemoveAll(workDir); err != nil {
		return err
	}
	defer os.RemoveAll(workDir)
	switch r.Do {
	case doInstall:
		return h.install(ctx, r)
	case doRemove:
		return h.remove(ctx)
	case doClean:
		return nil
	}
	return fmt.Errorf("unknown request %q", r.Do)
}

// lockWait is for an earlier process of ours whose agent has just ended.
const lockWait = 20 * time.Second

func lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(lockPath, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, errors.New("another installation is under way in the container")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (h *helper) install(ctx context.Context, r request) error {
	tree := filepath.Join(workDir, treeName)
	if err := h.unpack(tree, r.TreeBytes); err != nil {
		return fmt.Errorf("copy the installer's files: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		io.Copy(io.Discard, h.in) // ends with the agent, or with this process
		cancel()
	}()
	if err := h.out.Encode(message{Progress: &Progress{Phase: Install}}); err != nil {
		return err
	}
	installer := filepath.Join(tree, installerName)
	known, _ := run(ctx, installer, "--advanced-options") // which older ones end with another status
	log := filepath.Join(workDir, "log")
	args := append(flags(r.Version, r.Graphics, known), "--tmpdir="+workDir, "--log-file-name="+log)
	if err := setMark(r.Version); err != nil {
		return err
	}
	out, err := run(ctx, installer, args...)
	if err != nil {
		if b, _ := readSome(log, 1<<20); len(b) > 0 {
			out = append(append(out, '\n'), b...)
		}
		return &InstallError{Message: fmt.Sprintf("%s of %s: %v", installerName, r.Version, err), Output: last(out)}
	}
	if err := ldconfig(ctx); err != nil {
		return err
	}
	if err := h.out.Encode(message{Progress: &Progress{Phase: Check}}); err != nil {
		return err
	}
	var s State
	s.addLibraries()
	if s.Kind != Complete || s.Version != r.Version {
		return &InstallError{
			Message: fmt.Sprintf("%s of %s ended well, but the container has the driver %q with %d sonames that do not lead to its libraries: %s",
				installerName, r.Version, s.Version, len(s.Broken), strings.Join(s.Broken, " ")),
			Output: last(out),
		}
	}
	return clearMark()
}

// flags are what nvidia-installer is called with, of those that it says it knows: each came with some version (its
// option_table.h).
func flags(version string, graphics bool, known []byte) []string {
	wanted := []string{
		"--no-nouveau-check", "--no-x-check", "--no-nvidia-modprobe", "--no-dkms", "--no-drm", "--no-peermem",
		"--no-kernel-module-source", "--no-systemd", "--no-rebuild-initramfs", "--skip-depmod", "--no-distro-scripts",
		"--no-backup", "--no-check-for-alternate-installs", "--no-rpms", "--no-install-compat32-libs",
	}
	if !graphics {
		wanted = append(wanted, "--no-opengl-files", "--no-install-libglvnd")
	}
	all := []string{"--silent", "--no-kernel-modules"}
	branch, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(branch); err == nil && n < 515 {
		all[1] = "--no-kernel-module"
	}
	return append(all, among(known, wanted)...)
}

// among returns those of the wanted options that an installer's help describes.
func among(help []byte, wanted []string) []string {
	var words []string
	for line := range strings.Lines(string(help)) { // descriptions, which name options too, stand farther to the right
		if strings.HasPrefix(line, "  -") {
			words = append(words, strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \n,=", r) })...)
		}
	}
	return slices.DeleteFunc(wanted, func(f string) bool { return !slices.Contains(words, f) })
}

// unpack reads the archive of the extracted files.
func (h *helper) unpack(tree string, total int64) error {
	if err := os.MkdirAll(tree, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		return err
	}
	defer root.Close()
	archive, done, told := tar.NewReader(h.in), int64(0), time.Time{}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch header.Typeflag {
		case tar.TypeDir:
			err = root.Mkdir(header.Name, 0o755)
		case tar.TypeSymlink:
			err = root.Symlink(header.Linkname, header.Name)
		case tar.TypeReg:
			err = writeMember(root, header, archive)
		default:
			err = fmt.Errorf("%s has the type %q", header.Name, header.Typeflag)
		}
		if err != nil {
			return err
		}
		if done += header.Size; time.Since(told) > 200*time.Millisecond {
			told = time.Now()
			if err := h.out.Encode(message{Progress: &Progress{Copy, done, total}}); err != nil {
				return err
			}
		}
	}
}

func writeMember(root *os.Root, header *tar.Header, r io.Reader) error {
	f, err := root.OpenFile(header.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(header.Mode)&0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// remove has what NVIDIA's installer left of itself in the container remove the driver.
func (h *helper) remove(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		io.Copy(io.Discard, h.in)
		cancel()
	}()
	var s State
	s.addLibraries()
	installer := ""
	for _, dir := range []string{"/usr/bin", "/usr/local/bin", "/usr/sbin", "/bin"} {
		if info, err := os.Stat(filepath.Join(dir, installerName)); err == nil && info.Mode().IsRegular() {
			installer = filepath.Join(dir, installerName)
			break
		}
	}
	if installer == "" {
		if s.Kind == Absent {
			return clearMark()
		}
		return ErrNotRemovable
	}
	if err := os.Mkdir(workDir, 0o700); err != nil {
		return err
	}
	known, _ := run(ctx, installer, "--advanced-options")
	// The module is the node's: even a try to unload it from a privileged container is one too many.
	args := append([]string{"--uninstall", "--silent"}, among(known, []string{"--skip-module-unload", "--skip-depmod", "--no-rebuild-initramfs"})...)
	if err := setMark(""); err != nil {
		return err
	}
	out, err := run(ctx, installer, append(args, "--log-file-name="+filepath.Join(workDir, "log"))...)
	if err != nil {
		return &InstallError{Message: installerName + " --uninstall: " + err.Error(), Output: last(out)}
	}
	if err := ldconfig(ctx); err != nil {
		return err
	}
	var after State
	if after.addLibraries(); after.Kind != Absent {
		return &InstallError{Message: fmt.Sprintf("%s --uninstall ended well, but libraries of the driver %s are still there", installerName, after.Version), Output: last(out)}
	}
	return clearMark()
}

// run runs a program to its end, and returns what it printed. It ends with ctx and with this process.
func run(ctx context.Context, path string, args ...string) ([]byte, error) {
	runtime.LockOSThread() // the signal comes when the thread ends that started it
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = filepath.Dir(path)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root", "TERM=dumb", "TMPDIR=" + workDir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out := &tail{max: 256 << 10}
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	if ctx.Err() != nil {
		err = errors.New("it was broken off, for the agent or its caller went away")
	}
	return out.b, err
}

// ldconfig brings the loader's cache up to date, where the container has one.
func ldconfig(ctx context.Context) error {
	for _, path := range []string{"/sbin/ldconfig", "/usr/sbin/ldconfig"} {
		if _, err := os.Stat(path); err == nil {
			if out, err := run(ctx, path); err != nil {
				return &InstallError{Message: "ldconfig: " + err.Error(), Output: last(out)}
			}
			return nil
		}
	}
	return nil
}

// last returns the end of an output, whole lines of it.
func last(out []byte) string {
	out = bytes.TrimSpace(out)
	if len(out) > maxOutput {
		_, out, _ = bytes.Cut(out[len(out)-maxOutput:], []byte("\n"))
	}
	return strings.ToValidUTF8(string(out), "?")
}
