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
