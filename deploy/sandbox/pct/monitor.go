package pct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Commands and states of LXC's command socket (lxc/commands.h, lxc/state.h; reference/proxmox-lxc.md 8.11).
const (
	commandState   = 3
	commandInitPID = 4

	stateStopped = 0
	stateRunning = 2
)

var errNotRunning = errors.New("not running")

// connect opens the command socket of a container's monitor. It stays open until the monitor exits,
// post-stop hooks included.
func connect(ctid int32) (*net.UnixConn, error) {
	name := fmt.Sprintf("@%s/%d/command", lxcDir, ctid)
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: name})
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, errNotRunning
	}
	return c, err
}

// ask sends one command to the monitor and returns the 8 bytes of its answer.
func ask(ctid int32, command uint32) (uint64, error) {
	c, err := connect(ctid)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return 0, err
	}
	var request, answer [16]byte
	binary.NativeEndian.PutUint32(request[:], command)
	if _, err := c.Write(request[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(answer[8:]), nil
}

// state is stateStopped where nobody answers.
func state(ctid int32) uint64 {
	s, err := ask(ctid, commandState)
	if err != nil {
		return stateStopped
	}
	return s
}

// running is Proxmox's test (PVE::LXC::check_running): somebody listens on the command socket.
func running(ctid int32) bool {
	c, err := connect(ctid)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// waitForEnd reads until the monitor has gone.
func waitForEnd(c *net.UnixConn, timeout time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}
