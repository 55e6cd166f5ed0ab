package nvml

import (
	"os"
	"time"
)

// SetNow has a client read the time for its waits between tries from now.
func (c *Client) SetNow(now func() time.Time) { c.now = now }

// HelperPID returns the process of the helper; 0: none was started.
func (c *Client) HelperPID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.helper == nil {
		return 0
	}
	return c.helper.process.Pid
}

// Undying gives the client a helper that was killed and does not go, as one that hangs in the kernel.
func (c *Client) Undying(driver string, ended *os.Process) {
	h := &helper{driver: driver, process: ended, gone: make(chan struct{})}
	h.kill()
	c.helper = h
}

// Parse is what a client makes of a line from the helper.
var Parse = parse
