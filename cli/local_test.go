package cli_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"phoenix.internal/cli"
	"phoenix.internal/controller/nodetest"
	"phoenix.internal/controller/pki/pkitest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// TestWithoutController works through the engine in this process, with a pretended agent on the other side.
func TestWithoutController(t *testing.T) {
	ca := pkitest.NewCA(t, "fleet")
	person(t, ca)
	agent := &nodetest.Agent{Name: "pve1", GPUs: 2, OnExec: echo}
	agent.Add(901, true)
	agent.Add(950, true, 0)
	address := agent.Start(t, ca)
	fleet := filepath.Join(t.TempDir(), "fleet.json")
	if err := os.WriteFile(fleet, []byte(`{"lxc_configs": {
		"901": {"name": "cuda", "gpu_assignment": "0,1"},
		"950": {"name": "other", "gpu_assignment": "0"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	call := func(t *testing.T, args string) result {
		t.Helper()
		var stdout, stderr bytes.Buffer
		p := cli.Program{In: strings.NewReader("typed"), Out: &stdout, Err: &stderr}
		code := p.Run(t.Context(), append([]string{"--agent", "pve1=" + address, "--fleet", fleet, "--state-dir", state}, strings.Fields(args)...))
		return result{stdout.String(), stderr.String(), code}
	}
	for _, step := range []struct {
		args string
		code int
		want []string // in stdout, in this order
		err  string   // the beginning of stderr
	}{
		{args: "validate", want: []string{fleet + ": valid: 2 containers, 0 errors"}},
		{args: "status --no-probe --exit-code", code: 1, want: []string{"901", "DRIFT", "0,1 raw", "none", "950", "in sync"}},
		{args: "plan 901", want: []string{"901 cuda on pve1: GPUs none -> 0,1", "patch conf: add GPU 0, add GPU 1", "restart", "+++ /etc/pve/lxc/901.conf (planned)"}},
		{args: "apply", want: []string{"901 cuda on pve1: patch conf", "restart: done after", "verify devices: done after", "succeeded: "}},
		{args: "apply", want: []string{"succeeded: 2 unchanged"}},
		{args: "status --exit-code", want: []string{"901", "in sync", "0,1 raw", "0,1 raw", "0,1 raw", "0,1 open"}},
		{args: "runs", want: []string{"succeeded", "2 unchanged", "succeeded"}},
		{args: "probe 901", want: []string{"/dev/nvidia0", "open"}},
		{args: "restart 901", want: []string{"shutting down", "running with GPUs 0,1"}},
		{args: "conf diff 901 950", want: []string{"GPU", "configured", "0,1 raw", "0 raw"}},
		{args: "exec -i 901 cat", code: 7, want: []string{"typed"}},
		{args: "health", want: []string{"phoenix.controller.v1.RunService", "SERVING", "node pve1", "SERVING"}},
		{args: "status 999", code: 1, err: "phoenix-cli: compare with the fleet file: "},
		{args: "probe 999", code: 1, err: "phoenix-cli: probe CTID 999: "},
		{args: "runs show nothing", code: 1, err: "phoenix-cli: show run nothing: no run \"nothing\""},
		{args: "devices --node pve9", code: 1, err: "phoenix-cli: list the devices: "},
	} {
		got := call(t, step.args)
		rest := got.stdout
		ok := got.code == step.code && strings.HasPrefix(got.stderr, step.err) && (step.err != "" || got.stderr == "")
		for _, want := range step.want {
			var found bool
			if _, rest, found = strings.Cut(rest, want); !found {
				t.Errorf("phoenix-cli %s: no %q in its place", step.args, want)
				ok = false
			}
		}
		if !ok {
			t.Errorf("phoenix-cli %s: exit %d, want %d\n%s\nstderr:\n%s", step.args, got.code, step.code, got.stdout, got.stderr)
		}
	}
}

// echo is cat: it sends its stdin back, and exits with 7.
func echo(s agentv1.ExecService_ExecServer) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		var out *typev1.ExecOutput
		switch in := m.GetInput().GetInput().(type) {
		case *typev1.ExecInput_Start:
			out = &typev1.ExecOutput{Output: &typev1.ExecOutput_Started{Started: &typev1.ExecStarted{}}}
		case *typev1.ExecInput_Stdin:
			out = &typev1.ExecOutput{Output: &typev1.ExecOutput_Stdout{Stdout: in.Stdin}}
		case *typev1.ExecInput_StdinEnd:
			return s.Send(&agentv1.ExecResponse{Output: &typev1.ExecOutput{Output: &typev1.ExecOutput_Exit{Exit: done(7)}}})
		}
		if err := s.Send(&agentv1.ExecResponse{Output: out}); err != nil {
			return err
		}
	}
}
