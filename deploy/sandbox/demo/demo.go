// Package demo runs Phoenix's main job in a sandbox, for a person to watch.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"phoenix.internal/deploy/sandbox"
)

// Options say what to demonstrate.
type Options struct {
	sandbox.Options
	Programs string // folder with phoenix-agent, phoenix-controller and phoenix-cli
	Out, Err io.Writer
}

// Run lays out a sandbox with the containers of a fleet file, starts an agent in each node and a
// controller, applies the fleet file, shows the status with every device probed, and applies again to
// see that nothing is restarted. A sandbox in the same folder is taken down first; the new one stays up,
// also after an error.
func Run(ctx context.Context, o Options) error {
	if o.Fleet == "" {
		return errors.New("the demo needs a fleet file: --fleet")
	}
	for _, name := range []string{"phoenix-agent", "phoenix-controller", "phoenix-cli"} {
		if _, err := os.Stat(filepath.Join(o.Programs, name)); err != nil {
			return fmt.Errorf("%w (`make build` makes it)", err)
		}
	}
	d := &demo{Options: o}
	// Before anything is taken down: a mistake in the file is told with its line, and costs nothing.
	if err := d.validate(ctx); err != nil {
		return err
	}
	if _, err := os.Stat(o.Dir); err == nil {
		d.say("taking down the sandbox that is up in %s", o.Dir)
	}
	if _, err := sandbox.Down(ctx, o.Dir, io.Discard); err != nil {
		return err
	}
	d.say("laying out %d nodes with %d GPUs each, and a container for each entry of %s", o.Nodes, o.GPUs, o.Fleet)
	var err error
	if d.sandbox, err = sandbox.Up(ctx, o.Options); err != nil {
		return err
	}
	if err := d.sandbox.Status(o.Out); err != nil {
		return err
	}
	if err := d.run(ctx); err != nil {
		d.showLogs()
		return fmt.Errorf("%w\nThe sandbox stays up for you to look at; `make demo-down` takes it down", err)
	}
	d.say("all is well. It stays up: try %s plan, containers, exec; `make demo-down` takes it down", d.program("phoenix-cli"))
	d.warnOfOwnConfig()
	return nil
}

// validate checks the fleet file as a person would.
func (d *demo) validate(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, d.program("phoenix-cli"), "--config", os.DevNull, "validate", d.Fleet)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("fleet file %s: %w\n%s", d.Fleet, err, out)
	}
	return nil
}

// warnOfOwnConfig tells that phoenix-cli will take the person's own settings before the demo's.
func (d *demo) warnOfOwnConfig() {
	dir, err := os.UserConfigDir()
	if err != nil {
		return
	}
	own := filepath.Join(dir, "phoenix", "cli.yaml")
	if _, err := os.Stat(own); err == nil {
		fmt.Fprintf(d.Out, "You have settings of your own in %s, which come first: use phoenix-cli --config %s here.\n",
			own, d.sandbox.CLIConfigPath())
	}
}

type demo struct {
	Options
	sandbox *sandbox.Sandbox
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.Out, "\n== "+format+"\n", args...) }

func (d *demo) program(name string) string { return filepath.Join(d.Programs, name) }

func (d *demo) run(ctx context.Context) error {
	d.say("starting an agent in each node, and the controller at %s", d.sandbox.Controller)
	if err := d.startAll(ctx); err != nil {
		return err
	}
	d.say("phoenix-cli apply")
	if err := d.cli(ctx, "apply"); err != nil {
		return err
	}
	d.say("phoenix-cli status --probe")
	if err := d.cli(ctx, "status", "--probe"); err != nil {
		return err
	}
	before, err := d.lifecycleCalls()
	if err != nil {
		return err
	}
	d.say("phoenix-cli apply, once more: nothing is restarted")
	if err := d.cli(ctx, "apply"); err != nil {
		return err
	}
	after, err := d.lifecycleCalls()
	if err != nil {
		return err
	}
	if len(after) > len(before) {
		return fmt.Errorf("the second apply called pct: %s", strings.Join(after[len(before):], "; "))
	}
	return nil
}

// startAll starts everything, waits until it answers, and brings the driver to each node.
func (d *demo) startAll(ctx context.Context) error {
	type party struct{ name, server, address string }
	var parties []party
	for _, n := range d.sandbox.Nodes {
		if _, err := d.sandbox.StartAgent(n.Name, d.program("phoenix-agent")); err != nil {
			return err
		}
		parties = append(parties, party{"agent of " + n.Name, n.Name, n.AgentAddress()})
	}
	if _, err := d.sandbox.StartController(d.program("phoenix-controller")); err != nil {
		return err
	}
	parties = append(parties, party{"controller", "phoenix-controller", d.sandbox.Controller})
	for _, p := range parties {
		if err := d.sandbox.AwaitServing(ctx, p.address, p.server); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for _, n := range d.sandbox.Nodes {
		if err := d.sandbox.FetchDriver(ctx, n.Name); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) cli(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, d.program("phoenix-cli"), append([]string{"--config", d.sandbox.CLIConfigPath()}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, d.Out, d.Err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("phoenix-cli %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// lifecycleCalls are the calls of pct that start or stop containers, on all nodes.
func (d *demo) lifecycleCalls() ([]string, error) {
	var all []string
	for _, n := range d.sandbox.Nodes {
		calls, err := d.sandbox.PctCalls(n.Name)
		if err != nil {
			return nil, err
		}
		for _, call := range calls {
			command, _, _ := strings.Cut(call, " ")
			if slices.Contains([]string{"start", "stop", "shutdown", "reboot"}, command) {
				all = append(all, n.Name+": pct "+call)
			}
		}
	}
	slices.Sort(all)
	return all, nil
}

// showLogs prints the end of every log, after something went wrong.
func (d *demo) showLogs() {
	const last = 2000
	logs := []string{d.sandbox.ControllerLog()}
	for _, n := range d.sandbox.Nodes {
		logs = append(logs, d.sandbox.AgentLog(n.Name))
	}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fmt.Fprintf(d.Err, "\n-- the end of %s:\n%s", path, b[max(0, len(b)-last):])
	}
}
