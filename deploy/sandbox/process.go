package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// StartAgent starts an agent, the program at this path, in a node. It goes on when the caller ends; it
// ends with the sandbox. What it prints goes to AgentLog. The caller may wait for it.
func (s *Sandbox) StartAgent(node, program string) (*exec.Cmd, error) {
	cmd, closer, err := s.Command(context.Background(), node, program, "--config", "/etc/phoenix/agent.yaml")
	if err != nil {
		return nil, err
	}
	defer closer.Close()
	return cmd, s.startDaemon(cmd, node+"-agent")
}

// StartController starts a controller on this machine, outside of the nodes, as StartAgent does.
func (s *Sandbox) StartController(program string) (*exec.Cmd, error) {
	group, err := cgroupOf(s.Name)
	if err != nil {
		return nil, err
	}
	group = group.sub("controller")
	if err := group.create(); err != nil {
		return nil, err
	}
	dir, err := group.open()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	cmd := exec.Command(program, "--config", s.ControllerConfigPath())
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return cmd, s.startDaemon(cmd, "controller")
}

func (s *Sandbox) startDaemon(cmd *exec.Cmd, name string) error {
	log, err := os.OpenFile(s.logPath(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return os.WriteFile(s.pidPath(name), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644)
}

func (s *Sandbox) logPath(name string) string { return filepath.Join(s.Dir, logDir, name+".log") }
func (s *Sandbox) pidPath(name string) string { return filepath.Join(s.Dir, logDir, name+".pid") }

// AgentLog is what a node's agents printed.
func (s *Sandbox) AgentLog(node string) string { return s.logPath(node + "-agent") }

// ControllerLog is what the controllers printed.
func (s *Sandbox) ControllerLog() string { return s.logPath("controller") }

// ErrNoProcess says that the agent or controller does not run.
var ErrNoProcess = errors.New("it does not run")

// AgentPID is the process of a node's agent.
func (s *Sandbox) AgentPID(node string) (int, error) { return s.pid(node + "-agent") }

// ControllerPID is the process of the controller.
func (s *Sandbox) ControllerPID() (int, error) { return s.pid("controller") }

func (s *Sandbox) pid(name string) (int, error) {
	b, err := os.ReadFile(s.pidPath(name))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, ErrNoProcess)
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		return 0, err
	}
	group, err := cgroupOf(s.Name)
	if err != nil {
		return 0, err
	}
	// The number may have been given to another process since.
	pids, err := group.allPIDs()
	if err != nil || !slices.Contains(pids, pid) {
		return 0, errors.Join(fmt.Errorf("%s: %w", name, ErrNoProcess), err)
	}
	return pid, nil
}

// PctCalls are the calls of pct in a node since Up or the last ResetPctCalls: the words after its name.
func (s *Sandbox) PctCalls(node string) ([]string, error) {
	b, err := os.ReadFile(s.pctCalls(node))
	if err != nil {
		return nil, err
	}
	var calls []string
	for line := range strings.Lines(string(b)) {
		_, call, _ := strings.Cut(strings.TrimRight(line, "\n"), " ") // after the time
		calls = append(calls, call)
	}
	return calls, nil
}

// ResetPctCalls forgets the calls of pct in a node.
func (s *Sandbox) ResetPctCalls(node string) error { return os.Truncate(s.pctCalls(node), 0) }

func (s *Sandbox) pctCalls(node string) string {
	return filepath.Join(s.NodeDir(node), "run", callsName)
}
