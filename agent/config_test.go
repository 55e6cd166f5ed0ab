package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent"
	"phoenix.internal/agent/agenttest"
)

// load writes a configuration, with the paths of real certificates for CERT, KEY and CA, and loads it.
func load(t *testing.T, yaml string) (cfg agent.Config, files agenttest.Files, err error) {
	t.Helper()
	files = agenttest.NewCA(t).Issue(t, "pve1", agenttest.Server)
	yaml = strings.NewReplacer("CERT", files.CertFile, "KEY", files.KeyFile, "CA", files.CAFile).Replace(yaml)
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err = agent.LoadConfig(path)
	if err != nil {
		t.Logf("%v", err)
		err = errorText(strings.ReplaceAll(err.Error(), path, "FILE"))
	}
	return cfg, files, err
}

type errorText string

func (e errorText) Error() string { return string(e) }

const good = "node: pve1\ntls: {cert_file: CERT, key_file: KEY, ca_file: CA}\n"

func TestSampleConfig(t *testing.T) {
	sample, err := os.ReadFile("../deploy/config/agent.sample.yaml")
	if err != nil {
		t.Fatal(err)
	}
	yaml := strings.NewReplacer("/etc/phoenix/tls/agent.pem", "CERT", "/etc/phoenix/tls/agent-key.pem", "KEY",
		"/etc/phoenix/tls/ca.pem", "CA", "# node:", "node:").Replace(string(sample))
	cfg, files, err := load(t, yaml)
	if err != nil {
		t.Fatal(err)
	}
	want := agent.Config{
		Node: "pve1", Listen: ":7461", StateDir: "/var/lib/phoenix", AllowedLXCOptions: []string{},
		TLS: agent.TLSConfig(files), Log: agent.LogConfig{Level: "info", Format: "text"},
		DriverSources: []string{"https://download.nvidia.com/", "https://us.download.nvidia.com/"},
		KernelLog:     "/dev/kmsg", XIDClasses: map[string]string{},
	}
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEnvironmentWinsOverFile(t *testing.T) {
	t.Setenv("PHOENIX_AGENT_LISTEN", "127.0.0.1:9")
	t.Setenv("PHOENIX_AGENT_LOG_LEVEL", "debug")
	cfg, _, err := load(t, good+"listen: ':1'\n")
	if err != nil || cfg.Listen != "127.0.0.1:9" || cfg.Log.Level != "debug" {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

func TestBadConfig(t *testing.T) {
	for _, tc := range []struct{ name, yaml, want string }{
		{"no TLS", "node: pve1\n", "config FILE:\n" +
			"tls.cert_file: is required: the agent speaks mutual TLS only\n" +
			"tls.key_file: is required: the agent speaks mutual TLS only\n" +
			"tls.ca_file: is required: the agent speaks mutual TLS only"},
		{"no such file", "node: pve1\ntls: {cert_file: /no/cert, key_file: KEY, ca_file: CA}\n",
			"config FILE:\ntls.cert_file: /no/cert: no such file"},
		{"node with dots", strings.Replace(good, "pve1", "pve1.example.org", 1),
			"config FILE:\n" + `node: "pve1.example.org" is no host name without dots`},
		{"listen without port", good + "listen: localhost\n", "config FILE:\n" + `listen: "localhost" is not host:port`},
		{"relative state_dir", good + "state_dir: state\n", "config FILE:\n" + `state_dir: "state" is not an absolute path`},
		{"option without value", good + "allowed_lxc_options: [lxc.apparmor.profile]\n",
			"config FILE:\n" + `allowed_lxc_options[0]: "lxc.apparmor.profile" is not lxc.KEY=VALUE`},
		{"sources of drivers", good + "driver_sources: ['https://x', 'ftp://x/', 'https://u@x/', relative/, 'https://x/../', 'file:///srv/x/', /srv/x/]\n",
			"config FILE:\n" + `driver_sources[0]: "https://x" does not end in /` + "\n" +
				`driver_sources[1]: "ftp://x/" is neither http, https nor file, nor an absolute path` + "\n" +
				`driver_sources[2]: "https://u@x/" has more than a scheme, a host and a plain path` + "\n" +
				`driver_sources[3]: "relative/" is neither http, https nor file, nor an absolute path` + "\n" +
				`driver_sources[4]: "https://x/../" its path is not written plainly`},
		{"log level", good + "log: {level: loud}\n", "config FILE:\n" + `log.level: "loud" is none of debug, info, warn, error`},
		{"log format", good + "log: {format: xml}\n", "config FILE:\n" + `log.format: "xml" is neither text nor json`},
		{"relative nvml_program", good + "nvml_program: phoenix-nvml\n", "config FILE:\n" + `nvml_program: "phoenix-nvml" is not an absolute path`},
		{"relative kernel_log", good + "kernel_log: kmsg\n", "config FILE:\n" + `kernel_log: "kmsg" is not an absolute path`},
		{"classes of XIDs", good + "xid_classes: {\"63\": fatal, x: reset}\n",
			"config FILE:\n" + `xid_classes.63: "fatal" is none of [informational application watch unknown reset reboot support]` + "\n" + `xid_classes: "x" is no XID`},
		{"several at once", good + "listen: x\nlog: {format: xml}\n",
			"config FILE:\n" + `listen: "x" is not host:port` + "\n" + `log.format: "xml" is neither text nor json`},
		{"unknown key", good + "lisen: ':1'\n", "config FILE: decoding failed due to the following error(s):\n\n'' has invalid keys: lisen"},
		{"a list for a text", good + "state_dir: [a]\n",
			"config FILE: decoding failed due to the following error(s):\n\n'state_dir' expected type 'string', got unconvertible type '[]interface {}'"},
		{"no YAML", "node: [\n", "config FILE: While parsing config: yaml: line 1: did not find expected node content"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := load(t, tc.yaml)
			if err == nil || err.Error() != tc.want {
				t.Errorf("got\n%v\nwant\n%s", err, tc.want)
			}
		})
	}
}
