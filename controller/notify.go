package controller

import (
	"fmt"
	"net"
	"os"
)

// notify tells systemd a state (sd_notify(3)): one datagram to the socket that NOTIFY_SOCKET names; nothing if it
// names none. A name that begins with "@" is abstract, which the net package understands.
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
