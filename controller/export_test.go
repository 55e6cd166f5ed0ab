package controller

import "time"

// SetStopGrace changes the time that steps have when the daemon stops, until restore is called.
func SetStopGrace(d time.Duration) (restore func()) {
	old := stopGrace
	stopGrace = d
	return func() { stopGrace = old }
}
