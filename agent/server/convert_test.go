package server

import (
	"testing"

	"phoenix.internal/agent/passthrough"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// Every kind of problem has a value in the API, and every value a kind.
func TestProblemKindsAreComplete(t *testing.T) {
	sent := make(map[typev1.ProblemKind]bool)
	for kind := passthrough.DeviceGone; kind <= passthrough.Privileged; kind++ {
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
