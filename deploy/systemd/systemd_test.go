package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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
	if err != nil || len(units) != 3 {
		t.Fatalf("units %v, %v; want three", units, err)
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

// The controller is well shut in. The boot guard needs much of the host, and no network. The agent is not shut in, and must
// not be: see docs/decisions.md.
func TestExposure(t *testing.T) {
	analyze := analyze(t)
	for unit, most := range map[string]float64{"phoenix-controller.service": 1.5, "phoenix-boot-guard.service": 6.5} {
		out, err := exec.Command(analyze, "security", "--offline=yes", unit).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "Overall exposure level") {
			out, err = exec.Command(analyze, "security", "--offline=yes", "./"+unit).CombinedOutput()
		}
		m := regexp.MustCompile(`Overall exposure level for ` + unit + `: ([0-9.]+)`).FindSubmatch(out)
		if m == nil {
			t.Fatalf("%s: no exposure level: %v\n%s", unit, err, out)
		}
		level, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		if level > most {
			t.Errorf("%s: exposure %.1f, want at most %.1f\n%s", unit, level, most, out)
		}
	}
}

// The guard runs before containers start, does not keep them from starting, and ends.
func TestGuardIsBeforeContainers(t *testing.T) {
	b, err := os.ReadFile("phoenix-boot-guard.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			unit[key] = value
		}
	}
	for key, words := range map[string]string{
		"After": "pve-cluster.service", "Before": "pve-guests.service pve-ha-lrm.service phoenix-agent.service",
		"WantedBy": "multi-user.target pve-guests.service pve-ha-lrm.service", "Type": "oneshot", "TimeoutStartSec": "5min",
	} {
		for word := range strings.FieldsSeq(words) {
			if !slices.Contains(strings.Fields(unit[key]), word) {
				t.Errorf("%s=%s, want %s in it", key, unit[key], word)
			}
		}
	}
	for _, key := range []string{"PrivateDevices", "ProtectKernelModules", "PrivateNetwork", "DevicePolicy"} {
		if value, ok := unit[key]; ok {
			t.Errorf("%s=%s keeps the guard from its work", key, value)
		}
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
