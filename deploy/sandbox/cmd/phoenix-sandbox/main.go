// Phoenix-sandbox lays out pretend Proxmox hosts with real LXC containers on one Debian machine. See
// deploy/sandbox/README.md.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"phoenix.internal/deploy/sandbox"
	"phoenix.internal/deploy/sandbox/demo"
	"phoenix.internal/deploy/sandbox/nvidia"
)

// Namespaces belong to threads; commands that change them rely on running in the process's main one.
func init() { runtime.LockOSThread() }

func main() {
	if name := filepath.Base(os.Args[0]); nvidia.Knows(name) { // in a node
		tools := nvidia.Tools{Tree: sandbox.NodeTree(), Machine: sandbox.CoveredPrograms, Out: os.Stdout, Err: os.Stderr}
		os.Exit(tools.Main(name, os.Args[1:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "phoenix-sandbox: %v\n", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "phoenix-sandbox",
		Short:         "Pretend Proxmox hosts with real LXC containers, on this machine",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	dir := root.PersistentFlags().String("dir", sandbox.DefaultDir, "folder of the sandbox")
	root.AddCommand(up(dir), runDemo(dir), down(dir), status(dir), enter(dir), confAdd(dir), reboot(dir), fault(dir), hold(dir))
	return root
}

func options(cmd *cobra.Command) *sandbox.Options {
	o := &sandbox.Options{}
	flags := cmd.Flags()
	flags.IntVar(&o.Nodes, "nodes", 2, "number of nodes: pve1, pve2, ...")
	flags.IntVar(&o.GPUs, "gpus", 2, "made-up GPUs of each node")
	flags.StringSliceVar(&o.Shapes, "shape", nil, "what pve1, pve2, ... have of GPUs and driver, instead of --gpus: "+strings.Join(nvidia.Shapes(), ", "))
	flags.BoolVar(&o.ReverseMinors, "reverse-minors", false, "on pve2, pve4, ... the GPUs' minors run against their order")
	flags.StringVar(&o.Fleet, "fleet", "", "fleet file; a running container is made for each entry")
	flags.StringVar(&o.Pct, "pct", "", "program that becomes the nodes' /usr/sbin/pct (default: pct beside this program)")
	flags.StringVar(&o.FeaturesDir, "features", "", "features_dir of the controller (default: samples)")
	flags.StringVar(&o.Controller, "controller", "127.0.0.1:7460", "address of the controller")
	flags.IntVar(&o.While, "while", 0, "end everything when the process with this PID ends")
	flags.StringVar(&o.CLIConfig, "cli-config", "", "write a configuration for phoenix-cli there, until down")
	return o
}

func up(dir *string) *cobra.Command {
	cmd := &cobra.Command{Use: "up", Short: "Make the nodes, and the containers of a fleet file", Args: cobra.NoArgs}
	o := options(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.Dir = *dir
		s, err := sandbox.Up(cmd.Context(), *o)
		if err != nil {
			return err
		}
		return s.Status(cmd.OutOrStdout())
	}
	return cmd
}

func runDemo(dir *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "demo", Short: "Apply a fleet file to a new sandbox with agents and a controller", Args: cobra.NoArgs,
	}
	o := options(cmd)
	if err := cmd.Flags().Set("cli-config", sandbox.DefaultCLIConfig); err != nil {
		panic(err)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.Dir = *dir
		self, err := os.Executable()
		if err != nil {
			return err
		}
		return demo.Run(cmd.Context(), demo.Options{
			Options: *o, Programs: filepath.Dir(self), Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(),
		})
	}
	return cmd
}

func down(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End and remove everything, and check that nothing is left", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := sandbox.Down(cmd.Context(), *dir, cmd.OutOrStdout())
			if err != nil {
				return err
			}
			if !found {
				fmt.Fprintf(cmd.OutOrStdout(), "nothing is there: %s\n", *dir)
				return nil
			}
			fmt.Fprintln(cmd.OutOrStdout(), "nothing is left")
			return nil
		},
	}
}

func status(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the nodes and their containers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := sandbox.Load(*dir)
			if err != nil {
				return err
			}
			return s.Status(cmd.OutOrStdout())
		},
	}
}

func enter(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "enter NODE [-- COMMAND...]", Short: "Run a command in a node; without one, a shell", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := sandbox.Load(*dir)
			if err != nil {
				return err
			}
			argv := args[1:]
			if len(argv) == 0 {
				argv = []string{"/bin/sh"}
			}
			return s.Enter(args[0], argv)
		},
	}
}

func confAdd(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "conf-add NODE CTID FILE", Short: "Make a stopped container with FILE as its conf", Args: cobra.ExactArgs(3),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := sandbox.Load(*dir)
			if err != nil {
				return err
			}
			var ctid int32
			if _, err := fmt.Sscan(args[1], &ctid); err != nil {
				return fmt.Errorf("CTID %q: %w", args[1], err)
			}
			conf, err := os.ReadFile(args[2])
			if err != nil {
				return err
			}
			return s.AddContainer(args[0], ctid, conf)
		},
	}
}

// hold is the process that holds a node's namespaces; see sandbox.HoldNode.
func hold(dir *string) *cobra.Command {
	var while int
	cmd := &cobra.Command{
		Use: "hold NODE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
			if unix.Getpid() != unix.Gettid() {
				return fmt.Errorf("not on the main thread")
			}
			s, err := sandbox.Load(*dir)
			if err != nil {
				return err
			}
			return sandbox.HoldNode(s, args[0], while, os.Stdin, os.Stdout)
		},
	}
	cmd.Flags().IntVar(&while, "while", 0, "process to wait for")
	return cmd
}
