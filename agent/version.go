package agent

import "runtime/debug"

// version is set by the linker: -X phoenix.internal/agent.version=v0.1.0.
var version string

// Version returns the version of this build: what the linker was told, else what the go command recorded.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
