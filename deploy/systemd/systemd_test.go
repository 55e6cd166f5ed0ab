package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func analyze(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	return path
}

// systemd accepts every line of the units, with nothing to warn of.
func TestVerify(t *testing.T) {
	analyze := analyze(t)
	units, err := filepath.Glob("*.service")
	if err != nil || len(units) != 2 {
		t.Fatalf("units %v, %v; want two", units, err)
	}
	for _, unit := range units {
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		// The program need not be installed where the test runs.
		text := regexp.MustCompile(`/usr/local/bin/phoenix-\w+`).ReplaceAllString(string(b), "/bin/true")
		copied := filepath.Join(t.TempDir(), unit)
		if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(analyze, "verify", "--man=no", copied).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

// The controller is well shut in. The agent is not, and must not be: see docs/decisions.md.
func TestExposure(t *testing.T) {
	out, err := exec.Command(analyze(t), "security", "--offline=yes", "phoenix-controller.service").CombinedOutput()
	if err != nil && !strings.Contains(string(out), "Overall exposure level") {
		out, err = exec.Command(analyze(t), "security", "--offline=yes", "./phoenix-controller.service").CombinedOutput()
	}
	m := regexp.MustCompile(`Overall exposure level for phoenix-controller.service: ([0-9.]+)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("no exposure level: %v\n%s", err, out)
	}
	level, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	if level > 1.5 {
		t.Errorf("exposure %.1f, want at most 1.5\n%s", level, out)
	}
}

// What a unit sets, the processes in the containers inherit.
func TestAgentUnitLeaksNothingIntoContainers(t *testing.T) {
	b, err := os.ReadFile("phoenix-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	inherited := regexp.MustCompile(`(?m)^(SystemCall\w+|Restrict\w+|Protect\w+|Private\w+|NoNewPrivileges|CapabilityBoundingSet|AmbientCapabilities|MemoryDenyWriteExecute|LockPersonality|ReadWritePaths|UMask|OOMScoreAdjust|Nice|Limit\w+)=`)
	if found := inherited.FindAllString(string(b), -1); found != nil {
		t.Errorf("the unit sets %v", found)
	}
}
