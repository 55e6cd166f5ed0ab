// Helper is the probe's helper alone, linked statically, which a test binary under the race detector
// cannot be.
package main

import (
	"os"

	"phoenix.internal/agent/probe"
)

func main() {
	if len(os.Args) < 2 || os.Args[1] != probe.Argument {
		os.Exit(2)
	}
	os.Exit(probe.Main(os.Args[2:]))
}
