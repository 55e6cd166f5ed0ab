// Phoenix-controller is the daemon that applies fleet files. See deploy/config/controller.sample.yaml.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"phoenix.internal/controller"
)

func main() {
	config := flag.String("config", "/etc/phoenix/controller.yaml", "configuration `file`")
	version := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	switch {
	case *version:
		fmt.Println("phoenix-controller", controller.Version())
		return
	case flag.NArg() > 0:
		fmt.Fprintf(os.Stderr, "phoenix-controller: unexpected argument %q; see --help\n", flag.Arg(0))
		os.Exit(2)
	}
	cfg, err := controller.ReadConfig(*config)
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil {
		fail(err, 2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := controller.Run(ctx, cfg); err != nil {
		fail(err, 1)
	}
}

func fail(err error, code int) {
	fmt.Fprintln(os.Stderr, "phoenix-controller:", err)
	os.Exit(code)
}
