package controller_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/controller"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
)

func TestSample(t *testing.T) {
	got, err := controller.ReadConfig("../deploy/config/controller.sample.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := controller.Config{
		Listen: ":7460",
		TLS: pki.Files{
			CertFile: "/etc/phoenix/tls/controller.pem", KeyFile: "/etc/phoenix/tls/controller-key.pem", CAFile: "/etc/phoenix/tls/ca.pem",
		},
		Nodes:     []controller.Node{{Name: "pve1", Address: "192.0.2.11:7461"}, {Name: "pve2", Address: "192.0.2.12:7461"}},
		FleetFile: "/etc/phoenix/phoenix_lxc_configs.json",
		StateDir:  "/var/lib/phoenix-controller",
		Log:       controller.LogConfig{Level: "info", Format: "text"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestDefaults(t *testing.T) {
	got, err := controller.ReadConfig(writeConfig(t, "{}"))
	if err != nil {
		t.Fatal(err)
	}
	want := controller.Config{
		Listen: ":7460", StateDir: "/var/lib/phoenix-controller", Log: controller.LogConfig{Level: "info", Format: "text"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("PHOENIX_CONTROLLER_LISTEN", "127.0.0.1:1")
	t.Setenv("PHOENIX_CONTROLLER_TLS_CERT_FILE", "/env/cert.pem")
	t.Setenv("PHOENIX_CONTROLLER_NODES", "a=host-a:1, b=host-b:2")
	got, err := controller.ReadConfig(writeConfig(t, "listen: :7460\ntls: {cert_file: /file/cert.pem, key_file: /file/key.pem}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := controller.Config{
		Listen:   "127.0.0.1:1",
		TLS:      pki.Files{CertFile: "/env/cert.pem", KeyFile: "/file/key.pem"},
		Nodes:    []controller.Node{{Name: "a", Address: "host-a:1"}, {Name: "b", Address: "host-b:2"}},
		StateDir: "/var/lib/phoenix-controller", Log: controller.LogConfig{Level: "info", Format: "text"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestBadFiles is about what ReadConfig refuses.
func TestBadFiles(t *testing.T) {
	tests := []struct {
		name, yaml string
		env        map[string]string
		want       string // PATH stands for the file's
	}{
		{"unknown key", "lisen: :7460", nil, "read configuration PATH: lisen: unknown key"},
		{"unknown key inside", "tls: {cert: x}", nil, "read configuration PATH: tls.cert: unknown key"},
		{"unknown key of a node", "nodes: [{name: a, adress: 'b:1'}]", nil, "read configuration PATH: nodes[0].adress: unknown key"},
		{"several unknown keys", "b: 1\na: 2\nlog: {colour: red}", nil,
			"read configuration PATH: a: unknown key\nb: unknown key\nlog.colour: unknown key"},
		{"unknown variable", "{}", map[string]string{"PHOENIX_CONTROLLER_LISTN": ":1"},
			"read configuration PATH: PHOENIX_CONTROLLER_LISTN: unknown variable of the environment"},
		{"list in place of text", "listen: [a]", nil, "read configuration PATH: listen: want text, got a list"},
		{"text in place of a section", "tls: yes", nil, "read configuration PATH: tls: want a section, got text"},
		{"node as text", "nodes: [pve1]", nil, "read configuration PATH: nodes[0]: want a section, got text"},
		{"nodes in the environment", "{}", map[string]string{"PHOENIX_CONTROLLER_NODES": "pve1"},
			`read configuration PATH: nodes: "pve1": want NAME=HOST:PORT`},
		{"two mistakes", "listen: {a: b}\nlog: [x]", nil,
			"read configuration PATH: listen: want text, got a section\nlog: want a section, got a list"},
		{"twice the same key", "listen: :1\nlisten: :2", nil,
			`read configuration PATH: yaml: unmarshal errors:
  line 2: mapping key "listen" already defined at line 1`},
		{"no YAML", "listen: [", nil, "read configuration PATH: yaml: line 1: did not find expected node content"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			path := writeConfig(t, tt.yaml)
			_, err := controller.ReadConfig(path)
			if err == nil {
				t.Fatalf("%q: no error", tt.yaml)
			}
			if got := strings.ReplaceAll(err.Error(), path, "PATH"); got != tt.want {
				t.Errorf("%q:\n got %s\nwant %s", tt.yaml, got, tt.want)
			}
		})
	}
	if _, err := controller.ReadConfig("/nonexistent/controller.yaml"); err == nil ||
		err.Error() != "read configuration /nonexistent/controller.yaml: no such file or directory" {
		t.Errorf("missing file: got %v", err)
	}
}

// TestValidate is about what Validate refuses: each row spoils one thing of a good configuration.
func TestValidate(t *testing.T) {
	files := pkitest.NewCA(t, "test CA").Issue(t, pkitest.Leaf{Name: "phoenix-controller"})
	file := writeConfig(t, "x")
	tests := []struct {
		name  string
		spoil func(*controller.Config)
		want  string
	}{
		{"nothing", func(*controller.Config) {}, ""},
		{"no port", func(c *controller.Config) { c.Listen = "localhost" }, `listen: "localhost" is not HOST:PORT`},
		{"port too big", func(c *controller.Config) { c.Listen = ":65536" }, `listen: ":65536": "65536" is not a port number`},
		{"no listen", func(c *controller.Config) { c.Listen = "" }, `listen: "" is not HOST:PORT`},
		{"no certificate", func(c *controller.Config) { c.TLS.CertFile = "" }, "tls.cert_file: not set"},
		{"missing key", func(c *controller.Config) { c.TLS.KeyFile = "/nonexistent" },
			"tls.key_file: /nonexistent: no such file or directory"},
		{"no authority", func(c *controller.Config) { c.TLS.CAFile = "" }, "tls.ca_file: not set"},
		{"no nodes", func(c *controller.Config) { c.Nodes = nil }, "nodes: none; want a list of {name, address}"},
		{"node without a name", func(c *controller.Config) { c.Nodes[0].Name = "" }, `nodes[0].name: "" is not the host name of a node`},
		{"node with a bad name", func(c *controller.Config) { c.Nodes[1].Name = "pve2.example" },
			`nodes[1].name: "pve2.example" is not the host name of a node`},
		{"node twice", func(c *controller.Config) { c.Nodes[1].Name = "pve1" }, `nodes[1].name: "pve1" is also the name of nodes[0]`},
		{"node without an address", func(c *controller.Config) { c.Nodes[0].Address = "" }, `nodes[0].address: "" is not HOST:PORT`},
		{"node without a host", func(c *controller.Config) { c.Nodes[0].Address = ":7461" }, `nodes[0].address: ":7461" has no host`},
		{"address twice", func(c *controller.Config) { c.Nodes[1].Address = "192.0.2.1:7461" },
			`nodes[1].address: "192.0.2.1:7461" is also the address of nodes[0]`},
		{"relative fleet file", func(c *controller.Config) { c.FleetFile = "fleet.json" }, `fleet_file: "fleet.json" is not an absolute path`},
		{"relative features", func(c *controller.Config) { c.FeaturesDir = "./features" },
			`features_dir: "./features" is not an absolute path`},
		{"missing features", func(c *controller.Config) { c.FeaturesDir = "/nonexistent" },
			"features_dir: stat /nonexistent: no such file or directory"},
		{"features no directory", func(c *controller.Config) { c.FeaturesDir = file }, "features_dir: " + file + " is not a directory"},
		{"no state", func(c *controller.Config) { c.StateDir = "" }, `state_dir: "" is not an absolute path`},
		{"bad level", func(c *controller.Config) { c.Log.Level = "INFO" }, `log.level: "INFO" is none of debug, info, warn, error`},
		{"bad format", func(c *controller.Config) { c.Log.Format = "xml" }, `log.format: "xml" is none of text, json`},
		{"everything at once", func(c *controller.Config) { *c = controller.Config{} }, `listen: "" is not HOST:PORT
tls.cert_file: not set
tls.key_file: not set
tls.ca_file: not set
nodes: none; want a list of {name, address}
state_dir: "" is not an absolute path
log.level: "" is none of debug, info, warn, error
log.format: "" is none of text, json`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := controller.Config{
				Listen: ":7460", TLS: files,
				Nodes:    []controller.Node{{Name: "pve1", Address: "192.0.2.1:7461"}, {Name: "pve2", Address: "192.0.2.2:7461"}},
				StateDir: "/var/lib/phoenix-controller", Log: controller.LogConfig{Level: "info", Format: "json"},
			}
			tt.spoil(&c)
			got := ""
			if err := c.Validate(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func writeConfig(t *testing.T, yaml string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "controller.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
