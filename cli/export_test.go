package cli

import (
	"testing"
	"time"
)

// SetSignalWait changes a limit for one test.
func SetSignalWait(t *testing.T, d time.Duration) {
	old := signalWait
	signalWait = d
	t.Cleanup(func() { signalWait = old })
}
