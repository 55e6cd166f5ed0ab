package server

import (
	"testing"
	"time"
)

// SetUnreadGrace changes a limit for one test.
func SetUnreadGrace(t *testing.T, d time.Duration) {
	old := unreadGrace
	unreadGrace = d
	t.Cleanup(func() { unreadGrace = old })
}

// SetStartWait changes a limit for one test.
func SetStartWait(t *testing.T, d time.Duration) {
	old := startWait
	startWait = d
	t.Cleanup(func() { startWait = old })
}
