package lxcmon_test

import (
	"testing"

	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/lxctest"
)

func BenchmarkState(b *testing.B) {
	ct := lxctest.Start(b, lxctest.Config{})
	for b.Loop() {
		if state, err := (lxcmon.Client{}).State(ct.CTID); err != nil || state != lxcmon.Running {
			b.Fatal(state, err)
		}
	}
}
