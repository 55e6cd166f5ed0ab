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

func run() int {
	path := flag.String("config", "/etc/phoenix/agent.yaml", "configuration `file`")
	version := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
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
	if err := attach.AsLogin(); err != nil {
		log.Warn("commands in containers inherit what one from a login would not have", "err", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := agent.Run(ctx, cfg, log); err != nil {
		fmt.Fprintln(os.Stderr, "phoenix-agent:", err)
		return 1
	}
	return 0
}
