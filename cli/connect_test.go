package cli_test

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"phoenix.internal/cli"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
)

// real runs phoenix-cli with its own way to a controller.
func real(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	p := cli.Program{In: new(bytes.Buffer), Out: &stdout, Err: &stderr}
	code := p.Run(t.Context(), args)
	return result{stdout.String(), stderr.String(), code}
}

// secure serves the fake over TCP with mutual TLS and returns its address.
func (f *fake) secure(t *testing.T, files pki.Files) string {
	t.Helper()
	c, err := files.Load(pki.Serve)
	if err != nil {
		t.Fatal(err)
	}
	on, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.listen(t, on, grpc.Creds(credentials.NewTLS(c.Server())))
	return on.Addr().String()
}

// person writes settings that hold only a client's certificate of this authority.
func person(t *testing.T, ca *pkitest.CA) {
	t.Helper()
	files := ca.Issue(t, pkitest.Leaf{Name: "anna", Purposes: []pki.Purpose{pki.Call}})
	settings(t, "tls: {cert_file: "+files.CertFile+", key_file: "+files.KeyFile+", ca_file: "+files.CAFile+"}\n")
}

func TestConnect(t *testing.T) {
	ours := pkitest.NewCA(t, "ours")
	controller := pkitest.Leaf{Name: "phoenix-controller", Purposes: []pki.Purpose{pki.Serve}}
	person(t, ours)

	t.Run("mutual TLS", func(t *testing.T) {
		got := real(t, "nodes", "--controller", (&fake{}).secure(t, ours.Issue(t, controller)))
		if got.code != 0 || got.stderr != "" || !strings.Contains(got.stdout, "pve1  yes") {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		got := real(t, "nodes", "--controller", "127.0.0.1:1")
		want := result{"", "phoenix-cli: the controller at 127.0.0.1:1 cannot be reached: connection refused\n" +
			"  See that it runs there (systemctl status phoenix-controller), or work without it: --agent [NAME=]HOST.\n", 1}
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
	t.Run("controller of another authority", func(t *testing.T) {
		theirs := pkitest.NewCA(t, "theirs")
		address := (&fake{}).secure(t, theirs.Issue(t, controller))
		got := real(t, "nodes", "--controller", address)
		want := result{"", "phoenix-cli: the controller at " + address + ": the controller's certificate is from another authority " +
			"(certificate signed by unknown authority)\n  Check tls.ca_file here and tls.cert_file there.\n", 1}
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
	t.Run("not a controller", func(t *testing.T) {
		address := (&fake{}).secure(t, ours.Issue(t, pkitest.Leaf{Name: "pve1"}))
		got := real(t, "nodes", "--controller", address)
		want := result{"", "phoenix-cli: the controller at " + address + ": another host answers, or the controller's certificate is not made " +
			"for the name \"phoenix-controller\" (certificate is valid for pve1, localhost, not phoenix-controller)\n" +
			"  Check the address here and tls.cert_file there.\n", 1}
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
	t.Run("agent that does not answer", func(t *testing.T) {
		got := real(t, "nodes", "--agent", "pve1=127.0.0.1:1", "--state-dir", t.TempDir())
		if got.code != 1 || !strings.Contains(got.stdout, "pve1  unreachable") ||
			!strings.HasPrefix(got.stderr, "phoenix-cli: node pve1: the agent at 127.0.0.1:1 cannot be reached: ") {
			t.Errorf("got %+v", got)
		}
	})
}

// TestValidateAlone checks a fleet file with neither settings nor a controller.
func TestValidateAlone(t *testing.T) {
	settings(t, "")
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.json", `{"lxc_configs": {"901": {"name": "cuda", "gpu_assignment": "0,1"}}}`)
	bad := write("bad.json", `{"lxc_configs": {"901": {"name": "cuda", "gpu_assignment": "0,x"}}}`)
	empty := write("empty.json", "")

	if got := real(t, "validate", good); got.code != 0 || got.stderr != "" ||
		!strings.HasSuffix(got.stdout, good+": valid: 1 container, 0 errors, 0 warnings\n") {
		t.Errorf("good file: got %+v", got)
	}
	for path, start := range map[string]string{bad: ":1:60: containers 901: gpu_assignment: ", empty: ": the file is empty"} {
		got := real(t, "validate", path)
		if got.code != 1 || got.stderr != "" || !strings.HasPrefix(got.stdout, path+start) || !strings.Contains(got.stdout, ": not valid: ") {
			t.Errorf("%s: got %+v", filepath.Base(path), got)
		}
	}
	var stdout bytes.Buffer
	p := cli.Program{In: strings.NewReader(`{"lxc_configs": {}}`), Out: &stdout, Err: new(bytes.Buffer)}
	if code := p.Run(t.Context(), []string{"validate", "-"}); code != 0 || !strings.Contains(stdout.String(), "stdin: valid") {
		t.Errorf("stdin: got exit %d, %q", code, stdout.String())
	}
}
