package server

import (
	"testing"

	"phoenix.internal/agent/container"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/probe"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// Every kind of problem has a value in the API, and every value a kind.
func TestProblemKindsAreComplete(t *testing.T) {
	sent := make(map[typev1.ProblemKind]bool)
	for kind := passthrough.DeviceGone; kind <= passthrough.MIGWhole; kind++ {
		value, ok := problemKinds[kind]
		if !ok {
			t.Errorf("kind %d has no value in the API", kind)
		}
		sent[value] = true
	}
	for number, name := range typev1.ProblemKind_name {
		if number != 0 && !sent[typev1.ProblemKind(number)] {
			t.Errorf("%s is sent for no kind", name)
		}
	}
}

// A result says what it means and what to do.
func TestProbeMessage(t *testing.T) {
	for _, test := range []struct {
		name     string
		outcome  probe.Outcome
		expected bool
		want     string
	}{
		{"well", probe.Opened, true, "can be opened"},
		{"absent", probe.Absent, true, "is not in the container: it was started before the conf gave the device, or before the node had it; restart the container"},
		{"rightly absent", probe.Absent, false, "not given, and out of reach"},
		{"given by nobody", probe.Opened, false, "can be opened although the conf does not give it; " +
			"restart the container if its conf was changed since it started; otherwise look for a rule that allows more than one device"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := probeResultOf(probe.Result{Outcome: test.outcome}, container.ProbeDevice{Expected: test.expected}).GetMessage(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
