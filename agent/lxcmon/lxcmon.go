// Package lxcmon asks the monitor process of a running container about it, over LXC's command socket: no process is
// started, and an answer takes well under a millisecond. The protocol is lxc/commands.h and commands.c of LXC 5; one
// command per connection.
package lxcmon

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRunning is returned for a container that has no init process.
var ErrNotRunning = errors.New("container is not running")

// PeerError says that the process which listens on the command socket is not root's, or is in a container. The socket has
// an abstract name, so while a container is stopped anybody in the node's network namespace can take it.
type PeerError struct {
	CTID   int32
	UID    uint32
	PID    int32
	Cgroup string // of a process in a container
}

func (e *PeerError) Error() string {
	if e.Cgroup != "" {
		return fmt.Sprintf("command socket of CTID %d belongs to process %d in the cgroup %q of a container, not to a monitor", e.CTID, e.PID, e.Cgroup)
	}
	return fmt.Sprintf("command socket of CTID %d belongs to process %d of uid %d, not to root", e.CTID, e.PID, e.UID)
}

// A Client asks the monitors of one node's containers. Its methods may be called concurrently.
type Client struct {
	Path    string        // LXC's directory, part of the name of each socket; empty means /var/lib/lxc
	Timeout time.Duration // for a whole question and answer; 0 means 2 s
	Proc    string        // root of procfs; empty means /proc
}

func (c Client) path() string { return cmp.Or(c.Path, "/var/lib/lxc") }

func (c Client) timeout() time.Duration { return cmp.Or(c.Timeout, 2*time.Second) }

// Numbers of commands: lxc_cmd_t in lxc/commands.h.
const (
	cmdGetState      = 3
	cmdGetInitPID    = 4
	cmdGetConfigItem = 7
)

// State returns the state of a container. One whose monitor is gone is Stopped, although Proxmox's post-stop hook,
// which rewrites the conf, may still be at work.
func (c Client) State(ctid int32) (State, error) {
	a, err := c.ask(ctid, cmdGetState, nil)
	if errors.Is(err, ErrNotRunning) {
		return Stopped, nil
	}
	if err != nil {
		return Stopped, fmt.Errorf("state of CTID %d: %w", ctid, err)
	}
	if err := a.failure(); err != nil {
		return Stopped, fmt.Errorf("state of CTID %d: %w", ctid, err)
	}
	if a.value > uint64(Thawed) {
		return Stopped, fmt.Errorf("state of CTID %d: unknown state %d", ctid, a.value)
	}
	return State(a.value), nil
}

// InitPID returns the PID of a container's init in the namespace of its monitor, which is the node's. It wraps
// [ErrNotRunning] if there is none. The process may end, and its PID be reused, at any time.
func (c Client) InitPID(ctid int32) (int, error) {
	a, err := c.ask(ctid, cmdGetInitPID, nil)
	if err == nil {
		err = a.failure()
	}
	if err != nil {
		return 0, fmt.Errorf("init PID of CTID %d: %w", ctid, err)
	}
	pid := int32(a.value)
	if a.value == 0 || pid == -1 { // being started, or being stopped
		return 0, fmt.Errorf("init PID of CTID %d: %w", ctid, ErrNotRunning)
	}
	if pid < 0 || a.value>>32 != 0 {
		return 0, fmt.Errorf("init PID of CTID %d: answer %#x is no PID", ctid, a.value)
	}
	return int(pid), nil
}

// ConfigItem returns the value of key in the configuration that the container was started with, whatever its conf
// says now. A key that can be given several times has one element for each. It is empty if the key is not set, or
// not known to LXC. The error wraps [ErrNotRunning] if nothing runs.
func (c Client) ConfigItem(ctid int32, key string) ([]string, error) {
	if key == "" || strings.ContainsRune(key, 0) {
		return nil, fmt.Errorf("config item of CTID %d: bad key %q", ctid, key)
	}
	a, err := c.ask(ctid, cmdGetConfigItem, append([]byte(key), 0))
	if err != nil {
		return nil, fmt.Errorf("config item %s of CTID %d: %w", key, ctid, err)
	}
	if a.result == -1 { // unset or unknown: lxc_cmd_get_config_item_callback
		return nil, nil
	}
	if err := a.failure(); err != nil {
		return nil, fmt.Errorf("config item %s of CTID %d: %w", key, ctid, err)
	}
	text, _, _ := bytes.Cut(a.data, []byte{0})
	text = bytes.TrimSuffix(text, []byte{'\n'})
	if len(text) == 0 {
		return nil, nil
	}
	return strings.Split(string(text), "\n"), nil
}

// An answer is struct lxc_cmd_rsp and the bytes after it.
type answer struct {
	result int32 // 0, or a negative errno
	value  uint64
	data   []byte
}

func (a answer) failure() error {
	if a.result < 0 {
		return fmt.Errorf("LXC answers: %w", syscall.Errno(-int64(a.result)))
	}
	return nil
}

// maxData bounds what is read of an answer. The longest of use is a list of mount entries.
const maxData = 1 << 20

// ask sends one command. ErrNotRunning means that nobody listens, or that the monitor went away meanwhile.
func (c Client) ask(ctid int32, command int32, data []byte) (answer, error) {
	deadline := time.Now().Add(c.timeout())
	conn, err := c.dial(ctid, deadline)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return answer{}, err
	}

	// struct lxc_cmd_req: int cmd, int datalen, and a pointer that means nothing to the other side.
	request := make([]byte, 16, 16+len(data))
	binary.NativeEndian.PutUint32(request[0:], uint32(command))
	binary.NativeEndian.PutUint32(request[4:], uint32(len(data)))
	if _, err := conn.Write(append(request, data...)); err != nil {
		return answer{}, gone(err)
	}
	var head [16]byte // struct lxc_cmd_rsp: int ret, int datalen, void *data
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return answer{}, gone(err)
	}
	a := answer{
		result: int32(binary.NativeEndian.Uint32(head[0:])),
		value:  binary.NativeEndian.Uint64(head[8:]),
	}
	n := int32(binary.NativeEndian.Uint32(head[4:]))
	if n < 0 || n > maxData {
		return answer{}, fmt.Errorf("answer announces %d bytes", n)
	}
	a.data = make([]byte, n)
	if _, err := io.ReadFull(conn, a.data); err != nil {
		return answer{}, fmt.Errorf("answer of %d bytes: %w", n, err)
	}
	return a, nil
}

// gone turns an end of the connection without any answer into ErrNotRunning: a monitor closes its socket, with
// those who wait on it, when the container has ended.
func gone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return ErrNotRunning
	}
	return err
}

func (c Client) dial(ctid int32, deadline time.Time) (*net.UnixConn, error) {
	name := "@" + filepath.Join(c.path(), strconv.Itoa(int(ctid)), "command")
	d := net.Dialer{Deadline: deadline, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		// LXC takes the caller's credentials from the message, so they must travel with it.
		if cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := d.Dial("unix", name)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	unixConn := conn.(*net.UnixConn)
	if err := checkPeer(unixConn, ctid); err != nil {
		conn.Close()
		return nil, err
	}
	return unixConn, nil
}

// checkPeer makes sure that root listens, and not in a container. The PID proves nothing: it is that of the process that called listen,
// which for a daemonised lxc-start is not the monitor any more.
func checkPeer(conn *net.UnixConn, ctid int32) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var pid int
	var cgroup string
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		pid, cgroup = peerInContainer(int(fd))
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("credentials of the peer: %w", err)
	}
	if cred.Uid != 0 {
		return &PeerError{CTID: ctid, UID: cred.Uid, PID: cred.Pid}
	}
	if cgroup != "" {
		return &PeerError{CTID: ctid, UID: cred.Uid, PID: int32(pid), Cgroup: cgroup}
	}
	return nil
}
