// Helper is the probe's helper alone, linked statically, which a test binary under the race detector
// cannot be.
package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"phoenix.internal/agent/probe"
)

// stuck is set by the linker to make a helper that answers but does not end, as with a device whose
// open never returns.
var stuck string

func main() {
	if len(os.Args) < 2 || os.Args[1] != probe.Argument {
		os.Exit(2)
	}
	status := probe.Main(os.Args[2:])
	if stuck != "" {
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP)
		for {
			time.Sleep(time.Hour)
		}
	}
	os.Exit(status)
}
