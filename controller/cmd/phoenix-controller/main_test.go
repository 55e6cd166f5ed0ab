package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"phoenix.internal/controller/pki/pkitest"
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

// The daemon tells systemd that it is ready, and ends well when it is told to.
func TestTerminate(t *testing.T) {
	dir := t.TempDir()
	files := pkitest.NewCA(t, "test CA").Issue(t, pkitest.Leaf{Name: "phoenix-controller"})
	config := filepath.Join(dir, "controller.yaml")
	yaml := fmt.Sprintf(`
listen: 127.0.0.1:0
tls: {cert_file: %q, key_file: %q, ca_file: %q}
nodes: [{name: pve1, address: "127.0.0.1:1"}]
state_dir: %q
`, files.CertFile, files.KeyFile, files.CAFile, filepath.Join(dir, "state"))
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()

	cmd := exec.CommandContext(t.Context(), os.Args[0], "--config", config)
	cmd.Env = append(os.Environ(), "PHOENIX_TEST_MAIN=1", "NOTIFY_SOCKET="+socket)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := systemd.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, readErr := systemd.Read(b)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v; stderr:\n%s", err, &stderr)
	}
	if readErr != nil || string(b[:n]) != "READY=1" {
		t.Errorf("systemd heard %q, %v; want READY=1; stderr:\n%s", b[:n], readErr, &stderr)
	}
}
