// Pct is the sandbox's stand-in for Proxmox's pct. See deploy/sandbox/README.md.
package main

import (
	"os"

	"phoenix.internal/deploy/sandbox/pct"
)

func main() {
	os.Exit(pct.Main(pct.Host{}, os.Args[1:]))
}
