package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/deploy/sandbox/nvidia"
)

// Up makes a sandbox: nodes, certificates, configurations and, with a fleet file, running containers. It
// starts no agent. What a crashed sandbox left in the folder is removed first. If Up does not succeed, it
// takes down what it made.
func Up(ctx context.Context, o Options) (*Sandbox, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := checkMachine(); err != nil {
		return nil, err
	}
	if old, err := Load(o.Dir); err == nil && old.alive() {
		return nil, fmt.Errorf("a sandbox is up in %s: take it down first", o.Dir)
	}
	if _, err := Down(ctx, o.Dir, io.Discard); err != nil {
		return nil, fmt.Errorf("remove what an earlier sandbox left: %w", err)
	}
	var fleet *fleetFile
	if o.Fleet != "" {
		var err error
		if fleet, err = readFleet(o.Fleet); err != nil {
			return nil, err
		}
	}
	s, err := newSandbox(o, fleet)
	if err != nil {
		return nil, err
	}
	if err := s.up(ctx, o, fleet); err != nil {
		_, downErr := Down(context.WithoutCancel(ctx), o.Dir, io.Discard)
		return nil, errors.Join(err, downErr)
	}
	return s, nil
}

func (o *Options) complete() error {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	var err error
	for _, path := range []*string{&o.Dir, &o.Fleet, &o.Pct, &o.FeaturesDir, &o.CLIConfig} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Nodes < 1 || o.Nodes > 16 {
		return fmt.Errorf("%d nodes: between 1 and 16 are possible", o.Nodes)
	}
	if len(o.Shapes) > o.Nodes {
		return fmt.Errorf("%d shapes for %d nodes", len(o.Shapes), o.Nodes)
	}
	if o.GPUs < 0 || o.GPUs > 16 {
		return fmt.Errorf("%d GPUs: between 0 and 16 are possible", o.GPUs)
	}
	if o.Controller == "" {
		o.Controller = "127.0.0.1:7460"
	}
	if o.Pct == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o.Pct = filepath.Join(filepath.Dir(self), "pct")
	}
	if _, err := os.Stat(o.Pct); err != nil {
		return fmt.Errorf("the sandbox's pct (`make build` makes it): %w", err)
	}
	for _, dir := range []string{"/run", "/dev", "/proc", "/sys"} {
		if strings.HasPrefix(o.Dir+"/", dir+"/") {
			return fmt.Errorf("%s: a sandbox cannot lie in %s, which its nodes replace", o.Dir, dir)
		}
	}
	if o.CLIConfig != "" {
		if _, err := os.Lstat(o.CLIConfig); err == nil && !isOurs(o.CLIConfig, o.Dir) {
			return fmt.Errorf("%s exists and is not the sandbox's: move it away, or choose another place with --cli-config", o.CLIConfig)
		}
	}
	return nil
}

// Missing says what this machine lacks for a sandbox, "" if nothing.
func Missing() string {
	if err := checkMachine(); err != nil {
		return err.Error()
	}
	return ""
}

func checkMachine() error {
	if os.Geteuid() != 0 {
		return errors.New("the sandbox needs root")
	}
	packages := map[string]string{
		"lxc-start": "lxc", "lxc-stop": "lxc", "lxc-attach": "lxc", "busybox": "busybox-static", "ip": "iproute2", "nsenter": "util-linux",
	}
	for program, name := range packages {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("the sandbox needs %s: install the package %s", program, name)
		}
	}
	_, err := cgroupOf("")
	return err
}

// alive says whether any process of the sandbox runs.
func (s *Sandbox) alive() bool {
	group, err := cgroupOf(s.Name)
	if err != nil {
		return false
	}
	pids, err := group.allPIDs()
	return err == nil && len(pids) > 0
}

func newSandbox(o Options, fleet *fleetFile) (*Sandbox, error) {
	s := &Sandbox{Dir: o.Dir, Name: nameFor(o.Dir), Controller: o.Controller, CLIConfig: o.CLIConfig, Fleet: o.Fleet, While: o.While}
	addressesOf, err := addresses(o.Dir, s.Name, o.Nodes)
	if err != nil {
		return nil, err
	}
	for i := 1; i <= o.Nodes; i++ {
		host, err := hardware(i, o)
		if err != nil {
			return nil, err
		}
		if host.Majors, err = chooseMajors(i, nvidia.Majors{}); err != nil {
			return nil, err
		}
		if fleet != nil && fleet.Driver != "" && len(o.Shapes) == 0 {
			host.SetDriver(fleet.Driver)
		}
		gateway, address := addressesOf(i)
		s.Nodes = append(s.Nodes, Node{
			Name: fmt.Sprintf("pve%d", i), Address: address.String(), Gateway: gateway.String(),
			Link: fmt.Sprintf("%s.%d", s.Name, i), Host: host,
		})
	}
	return s, nil
}

func (s *Sandbox) up(ctx context.Context, o Options, fleet *fleetFile) error {
	if err := makeDir(s.Dir); err != nil {
		return err
	}
	if err := s.save(); err != nil { // so that Down knows what there may be
		return err
	}
	if err := s.writeConfigs(o); err != nil {
		return err
	}
	for i := range s.Nodes {
		if err := s.makeNode(ctx, &s.Nodes[i], o.Pct); err != nil {
			return fmt.Errorf("node %s: %w", s.Nodes[i].Name, err)
		}
	}
	if err := s.save(); err != nil {
		return err
	}
	if fleet == nil {
		return nil
	}
	return s.populate(ctx, fleet)
}

// makeDir takes over an empty or new folder.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty, and not a sandbox's", dir)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, markerFile), nil, 0o644)
}

// makeNode makes a node's files and switches it on.
func (s *Sandbox) makeNode(ctx context.Context, n *Node, pct string) error {
	if err := n.writeFiles(s.NodeDir(n.Name), pct); err != nil {
		return err
	}
	if err := (nvidia.Tree{State: s.hardwareFile(n.Name)}).Create(n.Host); err != nil {
		return err
	}
	if err := s.writeAgentConfig(n); err != nil {
		return err
	}
	return s.startNode(ctx, n)
}

// startNode starts the process that holds a node's namespaces.
func (s *Sandbox) startNode(ctx context.Context, n *Node) error {
	if err := writeFile(filepath.Join(s.NodeDir(n.Name), "proc/boot_id"), bootID(), 0o644); err != nil {
		return err
	}
	group, err := cgroupOf(s.Name)
	if err != nil {
		return err
	}
	for _, c := range []cgroup{group.sub(n.Name, "holder"), group.sub(n.Name, "system")} {
		if err := c.create(); err != nil {
			return err
		}
	}
	group.delegate()
	dir, err := group.sub(n.Name).open()
	if err != nil {
		return err
	}
	defer dir.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	holder := exec.Command(self, "hold", "--dir", s.Dir, "--while", fmt.Sprint(s.While), n.Name)
	holder.Dir = "/"
	holder.SysProcAttr = &syscall.SysProcAttr{
		Setsid:      true,
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS,
		UseCgroupFD: true,
		CgroupFD:    int(dir.Fd()),
	}
	stdin, err := holder.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := holder.StdoutPipe()
	if err != nil {
		return err
	}
	if err := holder.Start(); err != nil {
		return fmt.Errorf("start the namespaces' holder: %w", err)
	}
	// The holder stays when this program ends: nobody waits for it but init.
	pid := holder.Process.Pid
	for _, args := range [][]string{
		{"link", "add", n.Link, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(pid)},
		{"addr", "add", n.Gateway + "/30", "dev", n.Link},
		{"link", "set", n.Link, "up"},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		return err
	}
	return awaitReady(ctx, stdout)
}

func awaitReady(ctx context.Context, stdout io.ReadCloser) error {
	type answer struct {
		line string
		err  error
	}
	answers := make(chan answer, 1)
	go func() { // ends when stdout is closed, at the latest
		line, err := bufio.NewReader(stdout).ReadString('\n')
		answers <- answer{strings.TrimSpace(line), err}
	}()
	defer stdout.Close()
	select {
	case a := <-answers:
		switch {
		case a.err != nil:
			return fmt.Errorf("the namespaces' holder ended: %w", a.err)
		case a.line != "ready":
			return errors.New(a.line)
		}
		return nil
	case <-time.After(30 * time.Second):
		return errors.New("the namespaces' holder does not answer")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isOurs says whether a configuration file was written for the sandbox in dir.
func isOurs(path, dir string) bool {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	first, _, _ := strings.Cut(string(b), "\n")
	return first == ourMark(dir)
}

func ourMark(dir string) string { return "# made by phoenix-sandbox in " + dir }
