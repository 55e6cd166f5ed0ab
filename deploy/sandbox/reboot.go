package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
	"phoenix.internal/deploy/sandbox/nvidia"
)

// RebootOptions say what is different after a reboot.
type RebootOptions struct {
	Driver  string // version that is installed before, so that the boot loads it; "": no other
	LoseUVM bool   // from now on a boot does not load nvidia_uvm
	Agent   string // program of the agent; default: that of the agent that runs; "" and none runs: no guard, no agent
	NoAgent bool   // the agent is not started, only its boot guard
}

// Reboot is the reboot of a node that lost its power: all its processes end at once, /run and /dev are new, the driver's
// dynamic majors and the boot's ID are others, MIG is off. Then comes what a boot starts, in this order: the agent's boot
// guard, the containers with onboot, the agent. What goes wrong there is told to out and in the error, and the boot goes on.
func (s *Sandbox) Reboot(ctx context.Context, node string, o RebootOptions, out io.Writer) error {
	n, err := s.Node(node)
	if err != nil {
		return err
	}
	if o.Agent == "" {
		o.Agent = s.agentProgram(node)
	}
	if err := s.powerOff(n); err != nil {
		return fmt.Errorf("node %s: end everything: %w", node, err)
	}
	if err := s.changeForBoot(n, o); err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	if err := s.startNode(ctx, n); err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	var failed []error
	step := func(what string, err error) {
		said := "done"
		if err != nil {
			failed = append(failed, err)
			said = err.Error()
		}
		fmt.Fprintf(out, "%s: %s: %s\n", node, what, said)
	}
	if o.Agent != "" {
		step("boot guard", s.bootGuard(ctx, node, o.Agent))
	}
	ctids, err := s.onboot(node)
	if err != nil {
		return err
	}
	for _, ctid := range ctids {
		step(fmt.Sprintf("start %d", ctid), s.run(ctx, node, "/usr/sbin/pct", "start", fmt.Sprint(ctid)))
	}
	if o.Agent != "" && !o.NoAgent {
		_, err := s.StartAgent(node, o.Agent)
		step("start agent", err)
		if err == nil && o.Driver != "" && s.Fleet != "" {
			step("fetch driver "+o.Driver, s.fetchWhenServing(ctx, n))
		}
	}
	return errors.Join(failed...)
}

// fetchWhenServing is FetchDriver for an agent that has just been started.
func (s *Sandbox) fetchWhenServing(ctx context.Context, n *Node) error {
	if err := s.AwaitServing(ctx, n.AgentAddress(), n.Name); err != nil {
		return err
	}
	return s.FetchDriver(ctx, n.Name)
}

// agentProgram is the path of the program of the node's agent, "" if none runs.
func (s *Sandbox) agentProgram(node string) string {
	pid, err := s.AgentPID(node)
	if err != nil {
		return ""
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	return path
}

// powerOff ends all processes of a node, and with them its namespaces.
func (s *Sandbox) powerOff(n *Node) error {
	group, err := cgroupOf(s.Name)
	if err != nil {
		return err
	}
	if err := group.sub(n.Name).kill(patience); err != nil {
		return err
	}
	if err := group.sub(n.Name).remove(patience); err != nil {
		return err
	}
	link := "/sys/class/net/" + n.Link
	return poll(patience, func() error { // it goes by itself soon, and may go while it is being deleted
		if _, err := os.Stat(link); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := ip("link", "delete", n.Link); err != nil {
			return err
		}
		return fmt.Errorf("network interface %s is still there", n.Link)
	})
}

// changeForBoot makes the node's files those of the next boot.
func (s *Sandbox) changeForBoot(n *Node, o RebootOptions) error {
	dir := s.NodeDir(n.Name)
	entries, err := os.ReadDir(filepath.Join(dir, "run"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == callsName { // a test looks at the calls before and after
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, "run", e.Name())); err != nil {
			return err
		}
	}
	for _, path := range runDirs {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile("/proc/devices", filepath.Join(dir, "proc/devices"), 0o644); err != nil {
		return err
	}
	tree := nvidia.Tree{State: s.hardwareFile(n.Name)}
	host, err := tree.Host()
	if err != nil {
		return err
	}
	if o.Driver != "" {
		host.OnDisk, host.Libraries = o.Driver, o.Driver
	}
	if o.LoseUVM {
		host.UVMAtBoot = false
	}
	number, err := strconv.Atoi(strings.TrimPrefix(n.Name, "pve"))
	if err != nil {
		return err
	}
	host.Boot()
	if host.Majors, err = chooseMajors(number, host.Majors); err != nil {
		return err
	}
	n.Host = host
	return tree.Create(host)
}

// bootGuard runs the agent's boot guard in the node, if this agent has one.
func (s *Sandbox) bootGuard(ctx context.Context, node, agent string) error {
	err := s.run(ctx, node, agent, "boot-guard", "--config", "/etc/phoenix/agent.yaml")
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 2 && strings.Contains(err.Error(), `unexpected argument "boot-guard"`) {
		return nil
	}
	return err
}

// onboot are the containers that pve-guests.service starts, in its order: by order of the property startup, those
// without one last, then by CTID (PVE::API2::Nodes, get_start_stop_list).
func (s *Sandbox) onboot(node string) ([]int32, error) {
	type start struct {
		order int
		ctid  int32
	}
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(s.ConfPath(node, 0)), "*.conf"))
	if err != nil {
		return nil, err
	}
	var starts []start
	for _, path := range paths {
		ctid, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(path), ".conf"), 10, 32)
		if err != nil {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		conf := pveconf.Parse(b)
		if on, _ := conf.Property("onboot"); !slices.Contains([]string{"1", "yes", "on", "true"}, strings.ToLower(on)) {
			continue
		}
		st := start{math.MaxInt, int32(ctid)}
		startup, _ := conf.Property("startup")
		for word := range strings.SplitSeq(startup, ",") {
			if order, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(word), "order=")); err == nil {
				st.order = order
			}
		}
		starts = append(starts, st)
	}
	slices.SortFunc(starts, func(a, b start) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.ctid, b.ctid))
	})
	ctids := make([]int32, len(starts))
	for i, st := range starts {
		ctids[i] = st.ctid
	}
	return ctids, nil
}
