package server

import (
	"testing"
	"time"
)

// SetStartWait changes a limit for one test.
func SetStartWait(t *testing.T, d time.Duration) {
	old := startWait
	startWait = d
	t.Cleanup(func() { startWait = old })
}

// StatusOf is tested by itself: most of its cases need a broken world to be reached by a call.
var StatusOf = statusOf

// KindProto is tested for every kind.
var KindProto = kindProto

// Fit is tested by itself: agents with such confs are no use otherwise.
var Fit = fit
