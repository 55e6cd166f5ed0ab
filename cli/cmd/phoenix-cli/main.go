// Command phoenix-cli shows and changes which GPUs the containers of a Proxmox VE fleet have.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"phoenix.internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second Ctrl-C ends the program as if it had never asked for signals.
	context.AfterFunc(ctx, stop)
	os.Exit(new(cli.Program).Run(ctx, os.Args[1:]))
}
