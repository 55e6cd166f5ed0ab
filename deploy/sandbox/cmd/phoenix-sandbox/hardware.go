package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"phoenix.internal/deploy/sandbox"
	"phoenix.internal/deploy/sandbox/nvidia"
)

func reboot(dir *string) *cobra.Command {
	var o sandbox.RebootOptions
	cmd := &cobra.Command{
		Use: "reboot NODE", Short: "Cut a node's power and boot it: new majors, onboot containers, the agent", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := sandbox.Load(*dir)
			if err != nil {
				return err
			}
			return s.Reboot(cmd.Context(), args[0], o, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Driver, "driver", "", "version of the driver that the boot loads (default: as before)")
	flags.BoolVar(&o.LoseUVM, "lose-uvm", false, "from now on nothing loads nvidia-uvm at boot")
	flags.StringVar(&o.Agent, "agent", "", "program of the agent (default: that of the running one)")
	flags.BoolVar(&o.NoAgent, "no-agent", false, "do not start the agent, only its boot guard")
	return cmd
}

func fault(dir *string) *cobra.Command {
	cmd := &cobra.Command{Use: "fault", Short: "Change the GPUs or the driver of a node that is up"}
	reload := false
	upgrade := onTree(dir, "upgrade NODE VERSION", "Install another version of the driver", 2, func(t nvidia.Tree, args []string) error {
		return t.Upgrade(args[0], reload)
	})
	upgrade.Flags().BoolVar(&reload, "reload", false, "load it at once, not at the next boot")
	cmd.AddCommand(
		onTree(dir, "lose NODE GPU", "Let a GPU, by its position on the bus, fall off it", 2, func(t nvidia.Tree, args []string) error {
			gpu, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("GPU %q: %w", args[0], err)
			}
			return t.Lose(gpu)
		}),
		onTree(dir, "bind NODE GPU DRIVER", "Give a GPU to another driver, vfio-pci for example", 3, func(t nvidia.Tree, args []string) error {
			gpu, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("GPU %q: %w", args[0], err)
			}
			return t.Bind(gpu, args[1])
		}),
		onTree(dir, "remove NODE PATH", "Remove a device node", 2, func(t nvidia.Tree, args []string) error {
			return os.Remove(filepath.Join(t.Root, args[0]))
		}),
		onTree(dir, "log NODE TEXT", "Write a line into the kernel's log", 2, func(t nvidia.Tree, args []string) error {
			return t.Log(args[0])
		}),
		upgrade,
	)
	return cmd
}

// onTree is a command whose first argument is a node.
func onTree(dir *string, use, short string, args int, run func(nvidia.Tree, []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(args),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := sandbox.Load(*dir)
			if err != nil {
				return err
			}
			tree, err := s.Tree(args[0])
			if err != nil {
				return err
			}
			return run(tree, args[1:])
		},
	}
}
