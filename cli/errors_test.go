package cli_test

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"phoenix.internal/cli"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
)

// TestAdvice goes through every reason of the API: each has advice, and the advice uses only values that travel with
// that reason.
func TestAdvice(t *testing.T) {
	metadata := documentedMetadata(t)
	var all strings.Builder
	for n := range int32(len(errorv1.Reason_name) + 1000) {
		name, ok := errorv1.Reason_name[n]
		if !ok || n == 0 {
			continue
		}
		values := map[string]string{}
		for _, key := range metadata[name] {
			values[key] = "<" + key + ">"
		}
		f := &fake{fail: failure(codes.FailedPrecondition, errorv1.Reason(n), "what happened", values)}
		got := run(t, f, nil, "nodes")
		first, advice, _ := strings.Cut(got.stderr, "\n")
		if want := "phoenix-cli: list the nodes: what happened"; first != want || got.code != 1 {
			t.Errorf("%s: got exit %d, %q, want exit 1, %q", name, got.code, first, want)
		}
		if len(strings.TrimSpace(advice)) == 0 || strings.ContainsAny(advice, "{}") {
			t.Errorf("%s: advice %q", name, advice)
		}
		fmt.Fprintf(&all, "%s\n%s", strings.TrimPrefix(name, "REASON_"), advice)
	}
	golden(t, "advice", all.String())
}

// documentedMetadata reads what travels with each reason from the comments of the contract.
func documentedMetadata(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile("../proto/phoenix/error/v1/error.proto")
	if err != nil {
		t.Fatal(err)
	}
	metadata := map[string][]string{}
	comment := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "//"); ok {
			comment += text
			continue
		}
		if name, _, ok := strings.Cut(line, " = "); ok && strings.HasPrefix(name, "REASON_") {
			_, after, _ := strings.Cut(comment, "Metadata:")
			for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(after, -1) {
				metadata[name] = append(metadata[name], m[1])
			}
		}
		comment = ""
	}
	if !slices.Contains(metadata["REASON_CONTAINER_LOCKED"], "lock") {
		t.Fatalf("the comments of error.proto were not understood: %v", metadata)
	}
	return metadata
}

func TestFailedCalls(t *testing.T) {
	for _, test := range []struct {
		name   string
		fail   error
		args   string
		stderr string
	}{
		{
			"a reason with its values",
			failure(codes.FailedPrecondition, errorv1.Reason_REASON_CONTAINER_LOCKED, "the conf of CTID 901 is locked (backup)", map[string]string{"ctid": "901", "lock": "backup"}),
			"restart 901",
			"phoenix-cli: restart CTID 901: the conf of CTID 901 is locked (backup)\n" +
				"  Wait for the operation of Proxmox (backup) to end. Only if that has crashed: pct unlock 901 on the node.\n",
		},
		{
			"findings of several lines",
			failure(codes.FailedPrecondition, errorv1.Reason_REASON_FLEET_INVALID, "fleet file f.json has 2 errors:\nf.json:1:2: a\nf.json:3:4: b", map[string]string{"path": "f.json"}),
			"plan",
			"phoenix-cli: plan: fleet file f.json has 2 errors:\n  f.json:1:2: a\n  f.json:3:4: b\n",
		},
		{
			"a message that gives the advice itself",
			failure(codes.NotFound, errorv1.Reason_REASON_RUN_NOT_FOUND, "no run \"x\"; `phoenix-cli runs` lists them", map[string]string{"run": "x"}),
			"runs watch x",
			"phoenix-cli: watch run x: no run \"x\"; `phoenix-cli runs` lists them\n",
		},
		{
			"escape sequences",
			failure(codes.NotFound, errorv1.Reason_REASON_NODE_NOT_FOUND, "node \x1b]0;x\x07", nil),
			"devices --node x",
			"phoenix-cli: list the devices: node \\x1b]0;x\\x07\n  See the names of the nodes: phoenix-cli nodes.\n",
		},
		{
			"unavailable for now", status.Error(codes.Unavailable, "state_dir: another process holds the lock"), "runs",
			"phoenix-cli: list the runs: state_dir: another process holds the lock\n  The same may succeed later.\n",
		},
		{
			"older controller", status.Error(codes.Unimplemented, "unknown method Probe"), "probe 901",
			"phoenix-cli: probe CTID 901: unknown method Probe\n  The controller is older than this phoenix-cli: install the same version of both.\n",
		},
		{
			"not allowed", status.Error(codes.PermissionDenied, "anna may not restart"), "restart 901",
			"phoenix-cli: restart CTID 901: anna may not restart\n  The certificate in tls.cert_file may not do this; ask whoever runs the fleet for one that may.\n",
		},
		{
			"deadline", status.Error(codes.DeadlineExceeded, "context deadline exceeded"), "status --timeout 5s",
			"phoenix-cli: the controller at controller.example gave no answer within 5s\n  A node that hangs keeps the others waiting: phoenix-cli health. --timeout waits longer.\n",
		},
		{
			"defect", status.Error(codes.Unknown, "nil pointer"), "apply",
			"phoenix-cli: apply: nil pointer\n  This is a defect of Phoenix; the log of the controller at controller.example says more.\n",
		},
		{
			"exec", failure(codes.FailedPrecondition, errorv1.Reason_REASON_CONTAINER_NOT_RUNNING, "CTID 901 is stopped", map[string]string{"ctid": "901", "state": "stopped"}), "exec 901 true",
			"phoenix-cli: exec in CTID 901: CTID 901 is stopped\n  Start it: pct start 901 on its node; or phoenix-cli apply --start 901 if the fleet file gives it GPUs.\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := run(t, &fake{fail: test.fail}, nil, strings.Fields(test.args)...)
			if want := (result{"", test.stderr, 1}); got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// TestKeyMayBeReadByOthers keeps the rule of the daemons for people too.
func TestKeyMayBeReadByOthers(t *testing.T) {
	files := pkitest.NewCA(t, "test").Issue(t, pkitest.Leaf{Name: "person", Purposes: []pki.Purpose{pki.Call}})
	if err := os.Chmod(files.KeyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	settings(t, "controller: a\ntls: {cert_file: "+files.CertFile+", key_file: "+files.KeyFile+", ca_file: "+files.CAFile+"}\n")
	var stderr bytes.Buffer
	p := cli.Program{In: new(bytes.Buffer), Out: new(bytes.Buffer), Err: &stderr}
	code := p.Run(t.Context(), []string{"nodes"})
	want := "phoenix-cli: settings: tls.key_file: " + files.KeyFile + ": mode 0644 lets others at the key; chmod 0600 it\n  Run: chmod 600 " + files.KeyFile + "\n"
	if code != 2 || stderr.String() != want {
		t.Errorf("got exit %d, %q\nwant exit 2, %q", code, stderr.String(), want)
	}
}
