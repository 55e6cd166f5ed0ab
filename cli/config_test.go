package cli_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"phoenix.internal/cli"
	"phoenix.internal/controller/pki/pkitest"
)

// configOf returns the settings that a command line works with, or what it says of them.
func configOf(t *testing.T, args ...string) (cli.Config, string) {
	t.Helper()
	var c cli.Config
	var stderr bytes.Buffer
	f := &fake{}
	serve := f.serve(t)
	p := cli.Program{
		In: new(bytes.Buffer), Out: new(bytes.Buffer), Err: &stderr,
		Connect: func(ctx context.Context, got cli.Config) (*cli.Conn, error) {
			c = got
			return serve(ctx, got)
		},
	}
	p.Run(t.Context(), append(args, "nodes"))
	return c, stderr.String()
}

func TestSettingsPrecedence(t *testing.T) {
	files := pkitest.NewCA(t, "test").Issue(t, pkitest.Leaf{Name: "person"})
	tls := "tls: {cert_file: " + files.CertFile + ", key_file: " + files.KeyFile + ", ca_file: " + files.CAFile + "}\n"
	for _, test := range []struct {
		name string
		file string
		env  map[string]string
		args []string
		want cli.Config
	}{
		{
			name: "file", file: "controller: a:1\ncolor: never\ntimeout: 5s\n",
			want: cli.Config{Controller: "a:1", Color: "never", Timeout: 5 * time.Second},
		},
		{
			name: "variable beats file", file: "controller: a:1\ntimeout: 5s\n",
			env:  map[string]string{"PHOENIX_CONTROLLER": "b", "PHOENIX_TIMEOUT": "6s"},
			want: cli.Config{Controller: "b", Color: "auto", Timeout: 6 * time.Second},
		},
		{
			name: "flag beats variable", file: "controller: a:1\n",
			env:  map[string]string{"PHOENIX_CONTROLLER": "b", "PHOENIX_TIMEOUT": "6s"},
			args: []string{"--controller", "c", "--timeout", "7s", "--json"},
			want: cli.Config{Controller: "c", Color: "auto", Timeout: 7 * time.Second, JSON: true},
		},
		{
			name: "agents as a flag beat a controller in the file", file: "controller: a:1\nfleet_file: /f.json\n",
			args: []string{"--agent", "pve1=10.0.0.1", "--agent", "pve2.example:7000"},
			want: cli.Config{Agents: []string{"pve1=10.0.0.1", "pve2.example:7000"}, FleetFile: "/f.json", Color: "auto", Timeout: 2 * time.Minute},
		},
		{
			name: "a controller as a variable beats agents in the file", file: "agents: [pve1, pve2]\n",
			env:  map[string]string{"PHOENIX_CONTROLLER": "b"},
			want: cli.Config{Controller: "b", Color: "auto", Timeout: 2 * time.Minute},
		},
		{
			name: "several agents in a variable", env: map[string]string{"PHOENIX_AGENTS": "pve1,pve2=10.0.0.2"},
			want: cli.Config{Agents: []string{"pve1", "pve2=10.0.0.2"}, Color: "auto", Timeout: 2 * time.Minute},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			settings(t, tls+test.file)
			for k, v := range test.env {
				t.Setenv(k, v)
			}
			got, stderr := configOf(t, test.args...)
			if stderr != "" {
				t.Fatalf("stderr: %s", stderr)
			}
			test.want.TLS = files
			ignore := cmpopts.IgnoreFields(cli.Config{}, "File")
			if diff := cmp.Diff(test.want, got, ignore, cmpopts.IgnoreUnexported(cli.Config{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSettingsFileIsFound(t *testing.T) {
	settings(t, "")
	t.Setenv("PHOENIX_CONFIG", "")
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Chdir(t.TempDir())
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, trap := range []string{"cli.yaml", "phoenix/cli.yaml", ".phoenix/cli.yaml"} { // never from the working directory
		write(trap, "color: trap\n")
	}
	files := pkitest.NewCA(t, "test").Issue(t, pkitest.Leaf{Name: "person"})
	for from, to := range map[string]string{files.CertFile: "cert.pem", files.KeyFile: "key.pem", files.CAFile: "ca.pem"} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		write(filepath.Join(home, "phoenix", to), string(b))
	}
	path := filepath.Join(home, "phoenix", "cli.yaml")
	write(path, "agents: [pve1]\nfleet_file: fleet.json\ntls: {cert_file: cert.pem, key_file: key.pem, ca_file: ca.pem}\n")

	got, stderr := configOf(t)
	if stderr != "" {
		t.Fatalf("stderr: %s", stderr)
	}
	if got.File != path {
		t.Errorf("read %q, want %q", got.File, path)
	}
	if want := filepath.Join(home, "phoenix", "fleet.json"); got.FleetFile != want {
		t.Errorf("fleet_file is %q, want %q: relative to the settings file", got.FleetFile, want)
	}
}

func TestBadSettings(t *testing.T) {
	keys := "  The keys are controller, agents, tls.cert_file, tls.key_file, tls.ca_file, fleet_file, features_dir, state_dir, color, timeout.\n"
	noTLS := "  Give --tls-cert or PHOENIX_TLS_CERT_FILE.\n  Give --tls-key or PHOENIX_TLS_KEY_FILE.\n  Give --tls-ca or PHOENIX_TLS_CA_FILE.\n"
	none := "phoenix-cli: no controller and no agent is configured\n" +
		"  Give one of three: a flag (--controller HOST, or --agent [NAME=]HOST to work without a controller), " +
		"a variable (PHOENIX_CONTROLLER or PHOENIX_AGENTS), or a line \"controller: HOST\" in /home/anna/.config/phoenix/cli.yaml or /etc/phoenix/cli.yaml.\n"
	for _, test := range []struct {
		name, file string
		stderr     string // with FILE for the path of the settings file
	}{
		{"nothing", "", none},
		{"nothing under a key", "controller:\ntls:\n", none},
		{"unknown keys", "foo: 1\ntls: {cert: x}\n", "phoenix-cli: settings file FILE: 2 problems\n  foo: unknown key\n  tls.cert: unknown key\n" + keys},
		{"a group that is a text", "tls: x\n", "phoenix-cli: settings file FILE: tls: unknown key\n" + keys},
		{"no YAML", "a: [\n", "phoenix-cli: settings file FILE: While parsing config: yaml: line 1: did not find expected node content\n" +
			"  Correct it, or name another with --config or PHOENIX_CONFIG.\n"},
		{"a number for a time", "timeout: 5\n", "phoenix-cli: settings file FILE: timeout: 5 is not a text\n" + keys},
		{"a word for a time", "timeout: soon\n", "phoenix-cli: settings: timeout: \"soon\" is not a time with its unit, as 30s is\n  Correct FILE.\n"},
		{"a list for a text", "controller: [a]\n", "phoenix-cli: settings file FILE: controller: [a] is not a text\n" + keys},
		{"a text for a list", "agents: a,b\n", "phoenix-cli: settings file FILE: agents: not a list of [NAME=]HOST\n" + keys},
		{"numbers in a list", "agents: [1]\n", "phoenix-cli: settings file FILE: agents: not a list of [NAME=]HOST\n" + keys},
		{"no certificate", "controller: a\n", "phoenix-cli: settings: 3 problems\n  tls.cert_file: not set\n  tls.key_file: not set\n  tls.ca_file: not set\n" + noTLS},
		{"everything at once", "controller: 'a b'\nagents: [x]\ncolor: pink\ntimeout: -1s\ntls: {key_file: /nonexistent}\n",
			"phoenix-cli: settings: 7 problems\n" +
				"  color: \"pink\" is not auto, always or never\n" +
				"  timeout: -1s is not more than 0\n" +
				"  controller, agents: both are set\n" +
				"  controller: \"a b\" is not HOST or HOST:PORT\n" +
				"  tls.cert_file: not set\n" +
				"  tls.key_file: /nonexistent: no such file or directory\n" +
				"  tls.ca_file: not set\n" +
				"  Leave one of them out of FILE.\n  Correct FILE.\n  Give --tls-cert or PHOENIX_TLS_CERT_FILE.\n" +
				"  Put the right file there, or name another in FILE.\n  Give --tls-ca or PHOENIX_TLS_CA_FILE.\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := settings(t, test.file)
			t.Setenv("HOME", "/home/anna")
			t.Setenv("XDG_CONFIG_HOME", "")
			var stdout, stderr bytes.Buffer
			p := cli.Program{In: new(bytes.Buffer), Out: &stdout, Err: &stderr}
			code := p.Run(t.Context(), []string{"nodes"})
			got := strings.ReplaceAll(stderr.String(), file, "FILE")
			if code != 2 || got != test.stderr || stdout.Len() > 0 {
				t.Errorf("with %q:\ngot  exit %d, stdout %q\n%s\nwant exit 2\n%s", test.file, code, stdout.String(), got, test.stderr)
			}
		})
	}
}

// TestColour covers who decides: the flag, then NO_COLOR, then whether it is a terminal (see TestLiveProgress).
func TestColour(t *testing.T) {
	for _, test := range []struct {
		args    string
		noColor string
		want    bool
	}{
		{"validate", "", false},
		{"validate --color auto", "", false},
		{"validate --color always", "", true},
		{"validate --color always", "1", true},
		{"validate --color never", "", false},
	} {
		t.Run(test.args+" NO_COLOR="+test.noColor, func(t *testing.T) {
			f := &fake{}
			settle(t)
			t.Setenv("NO_COLOR", test.noColor)
			var stdout bytes.Buffer
			p := cli.Program{In: new(bytes.Buffer), Out: &stdout, Err: new(bytes.Buffer), Connect: f.serve(t)}
			p.Run(t.Context(), strings.Fields(test.args))
			if stdout.Len() == 0 {
				t.Fatal("no output")
			}
			if got := strings.Contains(stdout.String(), "\x1b["); got != test.want {
				t.Errorf("colour %t, want %t: %q", got, test.want, stdout.String())
			}
		})
	}
}
