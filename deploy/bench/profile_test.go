package bench_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// profiled builds the programs anew with testdata/profile.go in them: what is shipped can write no profile.
func (h *host) profiled() {
	h.t.Helper()
	if err := os.MkdirAll(*profiles, 0o755); err != nil {
		h.t.Fatal(err)
	}
	dir, err := filepath.Abs(*profiles)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Setenv("PHOENIX_BENCH_PROFILES", dir)
	added, err := filepath.Abs("testdata/profile.go")
	if err != nil {
		h.t.Fatal(err)
	}
	for program, source := range map[string]string{
		"phoenix-agent": "agent/cmd/phoenix-agent", "phoenix-controller": "controller/cmd/phoenix-controller", "phoenix-cli": "cli/cmd/phoenix-cli",
	} {
		source, err := filepath.Abs("../../" + source)
		if err != nil {
			h.t.Fatal(err)
		}
		overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(source, "profile.go"): added}})
		if err != nil {
			h.t.Fatal(err)
		}
		file := filepath.Join(h.t.TempDir(), "overlay.json")
		h.write(file, string(overlay))
		cmd := exec.Command("go", "build", "-trimpath", "-overlay", file, "-o", h.Program(program), source)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			h.t.Fatalf("build %s to be profiled: %v\n%s", program, err, out)
		}
	}
}

// profile begins CPU profiles of agent and controller, which the returned function ends and names for the case.
func (h *host) profile(t *testing.T, name string) (end func()) {
	t.Helper()
	if *profiles == "" {
		return func() {}
	}
	toggle := func() {
		for _, pid := range []func() (int, error){func() (int, error) { return h.AgentPID(h.node.Name) }, h.ControllerPID} {
			n, err := pid()
			if err == nil {
				err = syscall.Kill(n, syscall.SIGUSR1)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	toggle()
	return func() {
		toggle()
		for _, program := range []string{"phoenix-agent", "phoenix-controller"} {
			path := filepath.Join(*profiles, program+".pprof")
			sandboxtest.Eventually(t, "there is "+path, func() bool {
				_, err := os.Stat(path)
				return err == nil
			})
			if err := os.Rename(path, filepath.Join(*profiles, strings.ReplaceAll(name, " ", "-")+"-"+program+".pprof")); err != nil {
				t.Fatal(err)
			}
		}
	}
}
