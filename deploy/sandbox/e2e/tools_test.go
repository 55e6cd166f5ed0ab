package e2e_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// TestGRPCTools uses grpcurl and grpc-health-probe on an agent and a controller, as their documentation says.
func TestGRPCTools(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	curl, healthProbe := goTool(t, "grpcurl"), goTool(t, "grpc-health-probe")
	identity := []string{w.PKI("ca.pem"), w.PKI("cli.pem"), w.PKI("cli-key.pem")}

	for _, server := range []struct {
		name, address string
		services      []string
		describe      string // a symbol
		described     string // part of its description
		unary, data   string
		answer        string
		stream        string
		streamData    string
		streamed      string
	}{
		{
			name: n.Name, address: n.AgentAddress(),
			services: []string{
				"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
				"phoenix.agent.v1.ContainerService", "phoenix.agent.v1.DeviceService", "phoenix.agent.v1.ExecService", "phoenix.agent.v1.NodeService",
			},
			describe: "phoenix.agent.v1.ContainerService.PatchConf", described: "rpc PatchConf ( .phoenix.agent.v1.PatchConfRequest )",
			unary: "phoenix.agent.v1.ContainerService/GetContainer", data: `{"ctid": 901}`, answer: `"hostname": "ct901"`,
			stream: "phoenix.agent.v1.ContainerService/Restart", streamData: `{"ctid": 901, "timeout": "10s"}`, streamed: "RESTART_PHASE_RUNNING",
		},
		{
			name: "phoenix-controller", address: w.Controller,
			services: []string{
				"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
				"phoenix.controller.v1.ContainerService", "phoenix.controller.v1.FleetService", "phoenix.controller.v1.NodeService", "phoenix.controller.v1.RunService",
			},
			describe: "phoenix.controller.v1.PlanRequest", described: "message PlanRequest {",
			unary: "phoenix.controller.v1.ContainerService/GetContainer", data: `{"ctid": 901}`, answer: `"hostname": "ct901"`,
			stream: "phoenix.controller.v1.RunService/Apply", streamData: `{}`, streamed: "RUN_STATE_SUCCEEDED",
		},
	} {
		w.setFleet(`"901": {"gpu_assignment": "0"}`)
		grpcurl := func(args ...string) (string, bool) {
			return tool(t, curl, append([]string{
				"-cacert", identity[0], "-cert", identity[1], "-key", identity[2], "-servername", server.name,
			}, args...)...)
		}
		says := func(want string, args ...string) {
			t.Helper()
			if out, ok := grpcurl(args...); !ok || !strings.Contains(out, want) {
				t.Errorf("%s: grpcurl %s: want %q in\n%s", server.name, strings.Join(args, " "), want, out)
			}
		}
		out, ok := grpcurl(server.address, "list")
		if !ok {
			t.Errorf("%s: grpcurl list:\n%s", server.name, out)
		}
		for _, service := range server.services {
			if !strings.Contains(out, service+"\n") {
				t.Errorf("%s: grpcurl list lacks %s:\n%s", server.name, service, out)
			}
		}
		says(server.described, server.address, "describe", server.describe)
		says(server.answer, "-d", server.data, server.address, server.unary)
		says(server.streamed, "-d", server.streamData, server.address, server.stream)

		for what, args := range map[string][]string{
			"plaintext":           {"-plaintext"},
			"without certificate": {"-cacert", identity[0], "-servername", server.name},
			"any server":          {"-insecure"},
		} {
			if out, ok := tool(t, curl, append(args, "-max-time", "5", server.address, "list")...); ok {
				t.Errorf("%s: grpcurl %s is served:\n%s", server.name, what, out)
			}
		}

		probe := func(args ...string) (string, bool) {
			return tool(t, healthProbe, append([]string{"-addr", server.address, "-connect-timeout", "2s"}, args...)...)
		}
		mutual := []string{
			"-tls", "-tls-ca-cert", identity[0], "-tls-client-cert", identity[1], "-tls-client-key", identity[2], "-tls-server-name", server.name,
		}
		for _, service := range append([]string{""}, server.services[2:]...) {
			if out, ok := probe(append(mutual, "-service", service)...); !ok || !strings.Contains(out, "status: SERVING") {
				t.Errorf("%s: health of %q: %s", server.name, service, out)
			}
		}
		for what, args := range map[string][]string{
			"plaintext":           nil,
			"without certificate": {"-tls", "-tls-ca-cert", identity[0], "-tls-server-name", server.name},
			"unknown service":     append(mutual, "-service", "phoenix.unknown.v1.Service"),
		} {
			if out, ok := probe(args...); ok {
				t.Errorf("%s: grpc-health-probe %s says it is healthy: %s", server.name, what, out)
			}
		}
	}
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control) // by the Apply above
}

// goTool builds a tool that tools/go.mod pins, or finds it in Go's cache.
func goTool(t *testing.T, name string) string {
	t.Helper()
	build := exec.Command("go", "tool", "-modfile=tools/go.mod", "-n", name)
	build.Dir = "../../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	build.Stderr = &stderr
	path, err := build.Output()
	if err != nil {
		t.Fatalf("go tool %s: %v\n%s", name, err, &stderr)
	}
	return strings.TrimSpace(string(path))
}

// tool runs a program and returns all that it wrote, and whether it succeeded.
func tool(t *testing.T, program string, args ...string) (out string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	return string(b), err == nil
}
