// Command phoenix-agent is the daemon on each Proxmox VE host.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/driver"
	"phoenix.internal/agent/probe"
	"phoenix.internal/agent/transfer"
)

func main() {
	if len(os.Args) > 1 { // inside a container?
		switch os.Args[1] {
		case probe.Argument:
			os.Exit(probe.Main(os.Args[2:]))
		case driver.Argument:
			os.Exit(driver.Main(os.Args[2:]))
		case transfer.Argument:
			os.Exit(transfer.Main(os.Args[2:]))
		case attach.Argument:
			os.Exit(attach.Main(os.Args[2:]))
		}
	}
	os.Exit(run())
}

// guard is the word for the work of a boot, which a unit of its own does before containers start.
const guard = "boot-guard"

func run() int {
	args, guards := os.Args[1:], false
	if len(args) > 0 && args[0] == guard {
		args, guards = args[1:], true
	}
	path := flag.String("config", "/etc/phoenix/agent.yaml", "configuration `file`")
	version := flag.Bool("version", false, "print the version and exit")
	_ = flag.CommandLine.Parse(args) // it exits on an error
	if *version {
		fmt.Println("phoenix-agent", agent.Version())
		return 0
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "phoenix-agent: unexpected argument %q; everything is set in the configuration file\n", flag.Arg(0))
		return 2
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "phoenix-agent:", err)
		return 2
	}
	log := cfg.Logger(os.Stderr)
	work := agent.Run
	if guards {
		work = agent.GuardBoot // it runs no command in a container
	} else if err := attach.AsLogin(); err != nil {
		log.Warn("commands in containers inherit what one from a login would not have", "err", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := work(ctx, cfg, log); err != nil {
		fmt.Fprintln(os.Stderr, "phoenix-agent:", err)
		return 1
	}
	return 0
}
