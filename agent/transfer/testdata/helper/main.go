// Command helper is the process in the container alone, for tests: their own binary is not linked statically under the
// race detector.
package main

import (
	"os"

	"phoenix.internal/agent/transfer"
)

func main() { os.Exit(transfer.Main(os.Args[2:])) }
