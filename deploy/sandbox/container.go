package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"phoenix.internal/agent/pveconf"
	"phoenix.internal/deploy/sandbox/lxcconf"
	"phoenix.internal/deploy/sandbox/runfile"
)

// populate makes a container for each entry of the fleet file, with a C library as Debian's templates have, and starts
// those that can be started.
func (s *Sandbox) populate(ctx context.Context, fleet *fleetFile) error {
	withGPU := 0
	placed := fleet.spread(s.Nodes)
	if err := runfile.AddGlibc(s.glibc(), 0); err != nil {
		return err
	}
	for _, c := range fleet.Containers {
		leftovers := len(c.GPUs) > 0 && withGPU%3 == 0
		if len(c.GPUs) > 0 {
			withGPU++
		}
		n := placed[c.CTID]
		if err := s.AddContainer(n.Name, c.CTID, []byte(c.conf(leftovers))); err != nil {
			return err
		}
		if err := s.addGlibc(n.Name, c.CTID, c.Unprivileged); err != nil {
			return fmt.Errorf("C library of %d: %w", c.CTID, err)
		}
		if c.HealthCheck != "" {
			if err := s.addHealthCheck(n.Name, c.CTID, c.HealthCheck, c.Unprivileged); err != nil {
				return err
			}
		}
		n.CTIDs = append(n.CTIDs, c.CTID)
	}
	if err := s.save(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range s.Nodes {
		group.Go(func() error {
			for _, ctid := range n.CTIDs {
				if err := s.run(ctx, n.Name, "/usr/sbin/pct", "start", fmt.Sprint(ctid)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// run runs a command in a node to its end; its output is in the error.
func (s *Sandbox) run(ctx context.Context, node string, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	cmd, closer, err := s.Command(ctx, node, argv...)
	if err != nil {
		return err
	}
	defer closer.Close()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("node %s: %s: %w: %s", node, strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// AddContainer makes a stopped container: its conf as given, and a root file system from busybox, owned
// by the ids that the conf maps its root to.
func (s *Sandbox) AddContainer(node string, ctid int32, conf []byte) error {
	if _, err := s.Node(node); err != nil {
		return err
	}
	owner := 0
	if lxcconf.Unprivileged(pveconf.Parse(conf)) {
		owner = firstID
	}
	root := s.Rootfs(node, ctid)
	if err := makeRootfs(root, s.busybox(), owner); err != nil {
		return fmt.Errorf("root file system of %d: %w", ctid, err)
	}
	return os.WriteFile(s.ConfPath(node, ctid), conf, 0o640)
}

// Rootfs is a container's root file system as this machine sees it.
func (s *Sandbox) Rootfs(node string, ctid int32) string {
	return filepath.Join(s.NodeDir(node), "var-lib-lxc", fmt.Sprint(ctid), "rootfs")
}

// firstID is the host's id of the root user of an unprivileged container.
const firstID = 100000

// busybox is the sandbox's copy of the program; the containers' are hard links to it.
func (s *Sandbox) busybox() string { return filepath.Join(s.Dir, "busybox") }

// initScript is a container's init. It ends at once when LXC asks it to halt.
const initScript = `#!/bin/sh
# The sandbox's init: SIGPWR is lxc-stop's request to halt.
trap 'exit 0' PWR TERM
hostname "$(cat /etc/hostname)" 2>/dev/null
while :; do sleep 86400 & wait $!; done
`

func makeRootfs(root, busybox string, owner int) error {
	if _, err := os.Stat(busybox); errors.Is(err, os.ErrNotExist) {
		program, err := exec.LookPath("busybox")
		if err != nil {
			return err
		}
		// By another process: one that another goroutine starts now would inherit our descriptor for writing, and until it
		// executes its own program nobody can execute this one (ETXTBSY).
		if out, err := exec.Command("cp", "--", program, busybox).CombinedOutput(); err != nil {
			return fmt.Errorf("copy %s: %w: %s", program, err, out)
		}
	}
	for _, dir := range []string{
		"usr/bin", "usr/sbin", "usr/lib", "dev", "proc", "sys", "etc", "tmp", "root", "run", "home", "mnt", "opt", "srv",
		"var/lib", "var/log", "var/tmp", "usr/local/bin",
	} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list busybox's applets: %w", err)
	}
	links := map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "var/run": "../run"}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" && applet != "init" {
			links["usr/bin/"+applet] = "busybox"
		}
	}
	for path, target := range links {
		if err := os.Symlink(target, filepath.Join(root, path)); err != nil {
			return err
		}
	}
	if err := os.Link(busybox, filepath.Join(root, "usr/bin/busybox")); err != nil {
		return err
	}
	for path, content := range map[string]string{
		"usr/sbin/init":  initScript,
		"etc/passwd":     "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":      "root:x:0:\nvideo:x:44:\nnogroup:x:65534:\n",
		"etc/os-release": "ID=sandbox\nPRETTY_NAME=\"Phoenix sandbox (busybox)\"\n",
		"etc/hostname":   "",
		"etc/hosts":      "127.0.0.1 localhost\n",
	} {
		mode := os.FileMode(0o644)
		if path == "usr/sbin/init" {
			mode = 0o755
		}
		if err := writeFile(filepath.Join(root, path), content, mode); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if owner == 0 {
		return nil
	}
	return filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || path == filepath.Join(root, "usr/bin/busybox") {
			return err
		}
		return os.Lchown(path, owner, owner)
	})
}

// standIn stands for the program of a declared health check that busybox lacks.
const standIn = "#!/bin/sh\necho \"the sandbox's stand-in for $0: it always succeeds\"\nexit 0\n"

// addHealthCheck makes sure that the first word of a health check's command is a program.
func (s *Sandbox) addHealthCheck(node string, ctid int32, command string, unprivileged bool) error {
	words := strings.Fields(command)
	if len(words) == 0 {
		return nil
	}
	path := words[0]
	if !strings.Contains(path, "/") {
		path = "/usr/bin/" + path
	}
	if !strings.HasPrefix(path, "/") || slices.Contains(strings.Split(path, "/"), "..") {
		return nil
	}
	path = filepath.Join(s.Rootfs(node, ctid), path)
	if _, err := os.Lstat(path); err == nil {
		return nil // an applet of busybox
	}
	if err := writeFile(path, standIn, 0o755); err != nil {
		return err
	}
	if !unprivileged {
		return nil
	}
	for root := s.Rootfs(node, ctid); path != root; path = filepath.Dir(path) {
		if err := os.Lchown(path, firstID, firstID); err != nil {
			return err
		}
	}
	return nil
}
