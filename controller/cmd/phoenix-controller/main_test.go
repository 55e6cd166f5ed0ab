package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain makes the test's own binary the program under test.
func TestMain(m *testing.M) {
	if os.Getenv("PHOENIX_TEST_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestExitStatus(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("lisen: :1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		args   []string
		code   int
		stdout string // its beginning
		stderr string // its beginning
	}{
		{"version", []string{"--version"}, 0, "phoenix-controller ", ""},
		{"help", []string{"--help"}, 0, "", "Usage of "},
		{"unknown flag", []string{"--foo"}, 2, "", "flag provided but not defined: -foo\n"},
		{"argument", []string{"foo"}, 2, "", "phoenix-controller: unexpected argument \"foo\"; see --help\n"},
		{"missing configuration", []string{"--config", "/nonexistent"}, 2, "",
			"phoenix-controller: read configuration /nonexistent: no such file or directory\n"},
		{"unknown key", []string{"--config", bad}, 2, "", "phoenix-controller: read configuration " + bad + ": lisen: unknown key\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], tt.args...)
			cmd.Env = append(os.Environ(), "PHOENIX_TEST_MAIN=1")
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
				t.Fatal(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.HasPrefix(stdout.String(), tt.stdout) || !strings.HasPrefix(stderr.String(), tt.stderr) {
				t.Errorf("%q: exit %d, stdout %q, stderr %q\nwant %d, %q, %q", tt.args, code, &stdout, &stderr, tt.code, tt.stdout, tt.stderr)
			}
		})
	}
}
