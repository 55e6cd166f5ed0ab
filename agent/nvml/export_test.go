package nvml

import "time"

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

// Parse is what a client makes of a line from the helper.
var Parse = parse
