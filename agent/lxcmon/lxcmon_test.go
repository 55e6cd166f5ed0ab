package lxcmon_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/lxctest"
)

// listenEnv makes the test binary a process that listens on the socket of that name.
const listenEnv = "PHOENIX_LXCMON_LISTEN"

func TestMain(m *testing.M) {
	if name := os.Getenv(listenEnv); name != "" {
		listenAsStranger(name)
		return
	}
	lxctest.Main(m)
}

// A monitor answers every request on the command socket of CTID 101 with the same bytes and hangs up.
type monitor struct {
	client lxcmon.Client

	mu       sync.Mutex
	requests []string // bytes of each
	uids     []uint32 // that came with them
}

// serve starts a monitor. A nil answer is none, on a connection that stays open.
func serve(t testing.TB, answer []byte) *monitor {
	t.Helper()
	// Abstract names are shared by all tests in this network namespace.
	path := filepath.Join("/phoenix-test", strconv.Itoa(os.Getpid()), strings.ReplaceAll(t.Name(), "/", "."))
	m := &monitor{client: lxcmon.Client{Path: path, Timeout: 5 * time.Second}}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "@" + path + "/101/command"})
	if err != nil {
		t.Fatal(err)
	}
	var connections sync.WaitGroup
	var open []net.Conn
	connections.Go(func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return // closed below
			}
			open = append(open, conn)
			if err := m.answer(conn, answer); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		connections.Wait()
		for _, conn := range open {
			conn.Close()
		}
	})
	return m
}

func (m *monitor) answer(conn *net.UnixConn, answer []byte) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}); cerr != nil || err != nil {
		return errors.Join(cerr, err)
	}
	request, oob := make([]byte, 1024), make([]byte, 1024)
	n, oobn, _, _, err := conn.ReadMsgUnix(request, oob)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("control messages %v: %w", messages, err)
	}
	cred, err := unix.ParseUnixCredentials(&messages[0])
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.requests = append(m.requests, string(request[:n]))
	m.uids = append(m.uids, cred.Uid)
	m.mu.Unlock()
	if answer == nil {
		return nil
	}
	// The client may hang up in the middle of a long answer.
	if _, err := conn.Write(answer); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	return conn.Close()
}

// message is struct lxc_cmd_rsp and the bytes after it.
func message(result int32, length int32, value uint64, data string) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(result))
	b = binary.NativeEndian.AppendUint32(b, uint32(length))
	b = binary.NativeEndian.AppendUint64(b, value)
	return append(b, data...)
}

func value(v uint64) []byte { return message(0, 0, v, "") }

func text(s string) []byte { return message(0, int32(len(s)), 0, s) }

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a monitor must be root")
	}
}

func TestNobodyListens(t *testing.T) {
	c := lxcmon.Client{Path: "/phoenix-test/nobody"}
	state, err := c.State(101)
	if err != nil || state != lxcmon.Stopped {
		t.Errorf("state %v, error %v", state, err)
	}
	if _, err := c.InitPID(101); !errors.Is(err, lxcmon.ErrNotRunning) {
		t.Errorf("init PID: error %v", err)
	}
	if _, err := c.ConfigItem(101, "lxc.mount.entry"); !errors.Is(err, lxcmon.ErrNotRunning) {
		t.Errorf("config item: error %v", err)
	}
}

func TestStates(t *testing.T) {
	needRoot(t)
	for number, want := range []string{"stopped", "starting", "running", "stopping", "aborting", "freezing", "frozen", "thawed"} {
		t.Run(want, func(t *testing.T) {
			state, err := serve(t, value(uint64(number))).client.State(101)
			if err != nil || state.String() != want {
				t.Errorf("state %v, error %v, want %s", state, err, want)
			}
		})
	}
	if got := lxcmon.State(8).String(); got != "state(8)" {
		t.Errorf("State(8) is %q", got)
	}
}

func TestRequests(t *testing.T) {
	needRoot(t)
	for _, test := range []struct {
		name   string
		answer []byte
		ask    func(lxcmon.Client) error
		want   string // after the header: command and length, little endian
	}{
		{
			name: "state", answer: value(2),
			ask:  func(c lxcmon.Client) error { _, err := c.State(101); return err },
			want: string(message(3, 0, 0, "")),
		},
		{
			name: "init PID", answer: value(4711),
			ask:  func(c lxcmon.Client) error { _, err := c.InitPID(101); return err },
			want: string(message(4, 0, 0, "")),
		},
		{
			name: "config item", answer: text("x\x00"),
			ask:  func(c lxcmon.Client) error { _, err := c.ConfigItem(101, "lxc.uts.name"); return err },
			want: string(message(7, 13, 0, "lxc.uts.name\x00")),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := serve(t, test.answer)
			if err := test.ask(m.client); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(m.requests, []string{test.want}) {
				t.Errorf("requests %q, want %q", m.requests, test.want)
			}
			if !slices.Equal(m.uids, []uint32{0}) {
				t.Errorf("credentials of uids %v came along", m.uids)
			}
		})
	}
}

func TestConfigItem(t *testing.T) {
	needRoot(t)
	for _, test := range []struct {
		name   string
		answer []byte
		want   []string
	}{
		{"one line", text("unconfined\x00"), []string{"unconfined"}},
		{"a list", text("c 195:0 rw\nc 195:255 rw\n\x00"), []string{"c 195:0 rw", "c 195:255 rw"}},
		{"a list without final line feed", text("a\nb\x00"), []string{"a", "b"}},
		{"unset or unknown", message(-1, 0, 0, ""), nil},
		{"empty", text("\x00"), nil},
		{"no NUL", text("a\nb"), []string{"a", "b"}},
		{"more after the NUL", text("a\x00b\n"), []string{"a"}},
		{"no data", text(""), nil},
		{"not UTF-8", text("\xff\xfe\x00"), []string{"\xff\xfe"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := serve(t, test.answer).client.ConfigItem(101, "lxc.x")
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %q, error %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestBadKeys(t *testing.T) {
	c := lxcmon.Client{Path: "/phoenix-test/nobody"}
	for _, key := range []string{"", "lxc.a\x00lxc.b"} {
		if _, err := c.ConfigItem(101, key); err == nil || errors.Is(err, lxcmon.ErrNotRunning) {
			t.Errorf("key %q: error %v", key, err)
		}
	}
}

func TestInitPIDs(t *testing.T) {
	needRoot(t)
	for _, test := range []struct {
		name   string
		answer []byte
		pid    int
		err    string
	}{
		{"running", value(4711), 4711, ""},
		{"being started", value(0), 0, "init PID of CTID 101: container is not running"},
		{"none", value(0xffffffff), 0, "init PID of CTID 101: container is not running"},
		{"none in 64 bits", value(0xffffffff_ffffffff), 0, "init PID of CTID 101: container is not running"},
		{"negative", value(0xfffffffe), 0, "init PID of CTID 101: answer 0xfffffffe is no PID"},
		{"beyond 32 bits", value(1 << 40), 0, "init PID of CTID 101: answer 0x10000000000 is no PID"},
		{"an error", message(-int32(syscall.EACCES), 0, 0, ""), 0, "init PID of CTID 101: LXC answers: permission denied"},
	} {
		t.Run(test.name, func(t *testing.T) {
			pid, err := serve(t, test.answer).client.InitPID(101)
			if pid != test.pid || errorText(err) != test.err {
				t.Errorf("PID %d, error %v, want %d, %s", pid, err, test.pid, test.err)
			}
		})
	}
}

func TestHostileAnswers(t *testing.T) {
	needRoot(t)
	for _, test := range []struct {
		name   string
		answer []byte
		want   string
	}{
		{"unknown state", value(8), "state of CTID 101: unknown state 8"},
		{"state with high bits", value(1<<32 | 2), "state of CTID 101: unknown state 4294967298"},
		{"half a header", []byte{0, 0, 0, 0, 0, 0, 0, 0}, "state of CTID 101: unexpected EOF"},
		{"length of 2 GiB", message(0, 1<<31-1, 2, "x"), "state of CTID 101: answer announces 2147483647 bytes"},
		{"one byte too long", message(0, 1<<20+1, 2, "x"), "state of CTID 101: answer announces 1048577 bytes"},
		{"negative length", message(0, -1, 2, "x"), "state of CTID 101: answer announces -1 bytes"},
		{"less than announced", message(0, 10, 2, "x"), "state of CTID 101: answer of 10 bytes: unexpected EOF"},
		{"an error", message(-int32(syscall.EINVAL), 0, 2, ""), "state of CTID 101: LXC answers: invalid argument"},
		{"the smallest number", message(-1<<31, 0, 2, ""), "state of CTID 101: LXC answers: errno 2147483648"},
		{"more than announced", append(value(2), make([]byte, 1<<16)...), ""},
		{"hangs up", []byte{}, ""}, // as a monitor does when the container has ended
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := serve(t, test.answer).client.State(101)
			if errorText(err) != test.want {
				t.Errorf("error %v\nwant  %s", err, test.want)
			}
		})
	}
}

func TestHangUpMeansStopped(t *testing.T) {
	needRoot(t)
	c := serve(t, []byte{}).client
	if state, err := c.State(101); err != nil || state != lxcmon.Stopped {
		t.Errorf("state %v, error %v", state, err)
	}
	if _, err := c.InitPID(101); !errors.Is(err, lxcmon.ErrNotRunning) {
		t.Errorf("init PID: error %v", err)
	}
}

func TestNoAnswer(t *testing.T) {
	needRoot(t)
	c := serve(t, nil).client
	c.Timeout = 20 * time.Millisecond
	if _, err := c.State(101); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// While a container is stopped, any process of the node can take the name of its socket.
func TestListenerThatIsNotRoot(t *testing.T) {
	needRoot(t)
	path := filepath.Join("/phoenix-test", strconv.Itoa(os.Getpid()), t.Name())
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = []string{listenEnv + "=@" + path + "/101/command"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "listening\n" {
		t.Fatalf("the other process says %q: %v", line, err)
	}
	_, err = lxcmon.Client{Path: path}.State(101)
	want := lxcmon.PeerError{CTID: 101, UID: 65534, PID: int32(cmd.Process.Pid)}
	if e, ok := errors.AsType[*lxcmon.PeerError](err); !ok || *e != want {
		t.Errorf("error %v, want %+v", err, want)
	}
	wantSettled(t, lxcmon.Client{Path: path}, 101, true) // nor does it hold up edits
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the other process got a request, or %v", err)
	}
}

// listenAsStranger listens until stdin ends and exits with 1 if anybody has sent a request.
func listenAsStranger(name string) {
	l, err := net.Listen("unix", name)
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	fmt.Println("listening")
	requests := make(chan int)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		b, _ := io.ReadAll(conn)
		requests <- len(b)
	}()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		os.Exit(2)
	}
	if n := <-requests; n > 0 {
		os.Exit(1)
	}
}

func FuzzAnswer(f *testing.F) {
	needRoot(f)
	for _, seed := range [][]byte{
		value(2), value(0), text("a\nb\x00"), message(-1, 0, 0, ""), message(0, -1, 0, ""), {}, {1},
		message(0, 1<<20, 0, "short"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		c := serve(t, answer).client
		if state, err := c.State(101); err == nil && (state < lxcmon.Stopped || state > lxcmon.Thawed) {
			t.Errorf("answer %q: state %d", answer, state)
		}
		if pid, err := c.InitPID(101); err == nil && pid <= 0 {
			t.Errorf("answer %q: PID %d", answer, pid)
		}
		items, err := c.ConfigItem(101, "lxc.x")
		if err != nil {
			return
		}
		for _, item := range items {
			if strings.ContainsAny(item, "\x00\n") {
				t.Errorf("answer %q: item %q", answer, item)
			}
		}
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
