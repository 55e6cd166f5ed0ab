// Pct is the sandbox's stand-in for Proxmox's pct and, under that name, for ha-manager. See deploy/sandbox/README.md.
package main

import (
	"os"
	"path/filepath"

	"phoenix.internal/deploy/sandbox/pct"
)

func main() {
	if filepath.Base(os.Args[0]) == "ha-manager" {
		os.Exit(pct.HAManager(os.Stderr, os.Args[1:]))
	}
	os.Exit(pct.Main(pct.Host{}, os.Args[1:]))
}
