// Command phoenix-agent is the daemon on each Proxmox VE host.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"phoenix.internal/agent"
	"phoenix.internal/agent/probe"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == probe.Argument {
		os.Exit(probe.Main(os.Args[2:])) // we are inside a container
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
	// A signal that is ignored here, as SIGHUP is under nohup, would be ignored by every command in a container too; one
	// that is caught is not.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := agent.Run(ctx, cfg, cfg.Logger(os.Stderr)); err != nil {
		fmt.Fprintln(os.Stderr, "phoenix-agent:", err)
		return 1
	}
	return 0
}
