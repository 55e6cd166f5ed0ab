// Package cli is phoenix-cli. It speaks only the controller's API, phoenix.controller.v1: to a controller over mutual
// TLS, or to the same services inside its own process, which then ask the agents.
//
// Each noun has its file. A command's run function takes its options and a [session], not cobra, and returns an error;
// what a person reads about it is made in errors.go, in one place.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"phoenix.internal/cli/output"
	"phoenix.internal/cli/terminal"
)

// Exit statuses. exec passes on the status of its command besides.
const (
	exitDone    = 0
	exitFailed  = 1
	exitMisused = 2
)

// A Program is phoenix-cli with what it touches of its surroundings. The zero value is the real one.
type Program struct {
	In       io.Reader // nil: os.Stdin
	Out, Err io.Writer // nil: os.Stdout and os.Stderr
	// Connect reaches the controller's API; nil: over the network or in this process, as the settings say.
	Connect func(context.Context, Config) (*Conn, error)
	// Now tells the time, for what is shown as elapsed; nil: time.Now.
	Now func() time.Time
}

// Run runs one command line, without the program's name, and returns the exit status. When ctx ends, the command ends.
func (p *Program) Run(ctx context.Context, args []string) int {
	if p.In == nil {
		p.In = os.Stdin
	}
	if p.Out == nil {
		p.Out = os.Stdout
	}
	if p.Err == nil {
		p.Err = os.Stderr
	}
	if p.Connect == nil {
		p.Connect = connect
	}
	if p.Now == nil {
		p.Now = time.Now
	}
	root := p.root()
	root.SetArgs(args)
	root.SetIn(p.In)
	root.SetOut(p.Out)
	root.SetErr(p.Err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if strings.HasPrefix(err.Error(), "unknown command ") { // cobra has no type for it
		err = misuse(cmd, errors.New(strings.ReplaceAll(err.Error(), "\n\nDid you mean this?\n\t", "; did you mean ")))
	}
	report(p.Err, err)
	if e, ok := errors.AsType[*commandExit](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitMisused
	}
	return exitFailed
}

func (p *Program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "phoenix-cli",
		Short: "Give NVIDIA GPUs to the LXC containers of a Proxmox VE fleet, and see that they work there",
		Long: `phoenix-cli gives NVIDIA GPUs to the LXC containers of a Proxmox VE fleet, and shows that they work there.

It talks to a controller (--controller), or works without one and asks the agents itself (--agent). Settings come
from flags, then from PHOENIX_* variables, then from a file; see docs/cli.md.

Exit status: 0 done, 1 failed, 2 misused. exec passes on the status of the command it ran.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return writeFirstSteps(cmd)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return misuse(cmd, err) })
	globalFlags(root.PersistentFlags())
	for _, g := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{everyDay, []*cobra.Command{p.validateCommand(), p.planCommand(), p.applyCommand(), p.statusCommand(), p.runsCommand()}},
		{"The nodes:", []*cobra.Command{p.nodesCommand(), p.gpusCommand(), p.devicesCommand(), p.containersCommand(), p.healthCommand()}},
		{"One container:", []*cobra.Command{p.confCommand(), p.probeCommand(), p.doctorCommand(), p.restartCommand(), p.execCommand(), p.cpCommand()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, cmd := range g.commands {
			cmd.GroupID = g.title
			root.AddCommand(cmd)
		}
	}
	root.AddCommand(p.versionCommand())
	strict(root)
	return root
}

// everyDay is the group of the commands that are used most.
const everyDay = "The fleet:"

// Commands stand in the help in the order of use, not of the alphabet.
func init() { cobra.EnableCommandSorting = false }

// writeFirstSteps says what phoenix-cli is and what is used most, to one who typed only its name.
func writeFirstSteps(root *cobra.Command) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n\n", root.Short)
	for _, cmd := range root.Commands() {
		if cmd.GroupID == everyDay {
			fmt.Fprintf(&b, "  %s %-10s %s\n", root.Name(), cmd.Name(), cmd.Short)
		}
	}
	fmt.Fprintf(&b, "\nAll commands and flags: %s --help. More of one: %[1]s COMMAND --help.\n", root.Name())
	_, err := io.WriteString(root.OutOrStdout(), b.String())
	return err
}

// strict makes misuse of cobra's own commands an error, as of all others.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Run = nil
			cmd.RunE = func(help *cobra.Command, args []string) error {
				cmd, rest, err := root.Find(args)
				if err != nil || len(rest) > 0 {
					return misuse(root, fmt.Errorf("help: there is no command %q", strings.Join(args, " ")))
				}
				return cmd.Help()
			}
		case "completion":
			cmd.Args = cobra.ArbitraryArgs
			cmd.RunE = needsCommand(cmd.Commands())
		}
	}
}

// A session is what a command works with: its streams, how to write, and whom to ask.
type session struct {
	in       io.Reader
	out, err io.Writer
	json     bool
	paint    output.Paint // of out
	errPaint output.Paint // of err
	timeout  time.Duration
	now      func() time.Time

	conn      grpc.ClientConnInterface // nil in commands that ask nobody
	local     bool                     // whether the engine runs in this process
	fleetFile string                   // what to call the fleet file that is in use
}

// call returns the context of one call that is answered at once.
func (s *session) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.timeout, &timeoutError{s.timeout})
}

// warn writes a line for a person.
func (s *session) warn(format string, args ...any) {
	fmt.Fprintf(s.err, "phoenix-cli: %s\n", output.Clean(fmt.Sprintf(format, args...)))
}

// session returns a session that has no connection yet.
func (p *Program) session(c Config) *session {
	return &session{
		in: p.In, out: p.Out, err: p.Err,
		json:     c.JSON,
		paint:    output.Paint(c.colored(terminal.Is(p.Out))),
		errPaint: output.Paint(c.colored(terminal.Is(p.Err))),
		timeout:  c.Timeout,
		now:      p.Now,
	}
}

// A runFunc carries out a command.
type runFunc func(ctx context.Context, s *session, args []string) error

// connected makes a cobra function of run: it reads the settings, connects, runs, and closes the connection.
func (p *Program) connected(run runFunc) func(*cobra.Command, []string) error {
	return p.with((*Config).Validate, func(*Config) {}, run)
}

// offline is connected for a command that needs no fleet: the engine in this process answers it, without agents.
func (p *Program) offline(run runFunc) func(*cobra.Command, []string) error {
	return p.with((*Config).ValidateOffline, func(c *Config) { c.Controller, c.Agents = "", nil }, run)
}

// alone is connected for a command that asks nobody at all.
func (p *Program) alone(run runFunc) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := loadConfig(cmd.Root().PersistentFlags())
		if err != nil {
			return err
		}
		if err := c.ValidateOffline(); err != nil {
			return err
		}
		return run(cmd.Context(), p.session(c), args)
	}
}

func (p *Program) with(check func(*Config) error, change func(*Config), run runFunc) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		c, err := loadConfig(cmd.Root().PersistentFlags())
		if err != nil {
			return err
		}
		if err := check(&c); err != nil {
			return err
		}
		change(&c)
		s := p.session(c)
		// The connection outlives ctx: a command that ends because of a signal may have something to say first.
		conn, err := p.Connect(context.WithoutCancel(cmd.Context()), c)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, conn.Close()) }()
		s.conn, s.local, s.fleetFile = conn, c.Local(), "the controller's fleet file"
		if s.local {
			s.fleetFile = c.FleetFile
		}
		return describe(run(cmd.Context(), s, args), c)
	}
}

// group returns a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, RunE: needsCommand(commands)}
	cmd.AddCommand(commands...)
	return cmd
}

// needsCommand refuses a command without one of those it holds.
func needsCommand(commands []*cobra.Command) func(*cobra.Command, []string) error {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name())
	}
	all := strings.Join(names, ", ")
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return misuse(cmd, fmt.Errorf("unknown command %q for %q; it has %s", args[0], nameOf(cmd), all))
		}
		return misuse(cmd, fmt.Errorf("%s needs a command: %s", nameOf(cmd), all))
	}
}
