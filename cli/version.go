package cli

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
)

// Version is set by the linker (-X phoenix.internal/cli.Version=...); empty in a build without that.
var Version string

// A build is what this program was made of.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"` // empty if unknown
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (p *Program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd.Root().PersistentFlags())
			if err != nil {
				return err
			}
			return version(cmd.Context(), p.session(c))
		},
	}
}

func version(_ context.Context, s *session) error {
	b := thisBuild()
	if s.json {
		return output.WriteValue(s.out, b)
	}
	commit := b.Commit
	if commit == "" {
		commit = "unknown"
	} else if b.Modified {
		commit += ", modified"
	}
	_, err := fmt.Fprintf(s.out, "phoenix-cli %s (commit %s) %s %s\n", b.Version, commit, b.Go, b.Platform)
	return err
}

func thisBuild() build {
	b := build{Version: Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if b.Version == "" {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	if b.Version == "" {
		b.Version = "(devel)"
	}
	return b
}
