package container_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/passthrough"
)

// A host pretends to run containers: a monitor answers on each command socket, and a procfs has their init.
type host struct {
	t    testing.TB
	dir  string
	proc string
}

func newHost(t testing.TB) *host {
	h := &host{t: t, dir: t.TempDir(), proc: t.TempDir()}
	h.write("sys/kernel/random/boot_id", "b007\n")
	h.write("stat", "cpu 1 2\nbtime 1700000000\n")
	return h
}

func (h *host) write(rel, text string) {
	h.t.Helper()
	path := filepath.Join(h.proc, rel)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) runtime() *container.Proxmox {
	return &container.Proxmox{LXC: lxcmon.Client{Path: h.dir, Timeout: time.Second}, Proc: h.proc}
}

// run makes a container run, with an init of the same number and the state that LXC would tell. It returns the directory
// that is its root.
func (h *host) run(ctid int32, state lxcmon.State) (root string) {
	h.t.Helper()
	h.write(fmt.Sprintf("%d/stat", ctid), fmt.Sprintf("%d (in) it) S 1 1 1 0 -1 4194560 1 1 0 0 0 0 0 0 20 0 1 0 4711 0 0\n", ctid))
	root = filepath.Join(h.proc, fmt.Sprint(ctid), "root")
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	lis, err := net.Listen("unix", fmt.Sprintf("@%s/%d/command", h.dir, ctid))
	if err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan struct{})
	h.t.Cleanup(func() {
		lis.Close()
		<-ended
	})
	go func() {
		defer close(ended)
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			answer(conn, ctid, state)
			conn.Close()
		}
	}()
	return root
}

func answer(conn net.Conn, ctid int32, state lxcmon.State) {
	var request, response [16]byte
	if _, err := io.ReadFull(conn, request[:]); err != nil {
		return
	}
	key := make([]byte, binary.NativeEndian.Uint32(request[4:]))
	if _, err := io.ReadFull(conn, key); err != nil {
		return
	}
	var data []byte
	switch binary.NativeEndian.Uint32(request[:]) {
	case 3:
		binary.NativeEndian.PutUint64(response[8:], uint64(state))
	case 4:
		binary.NativeEndian.PutUint64(response[8:], uint64(ctid))
	case 7:
		if strings.HasPrefix(string(key), "lxc.idmap") {
			data = []byte("u 0 100000 65536\n\x00")
		} else {
			binary.NativeEndian.PutUint32(response[0:], 0xffffffff)
		}
	}
	binary.NativeEndian.PutUint32(response[4:], uint32(len(data)))
	_, _ = conn.Write(append(response[:], data...))
}

func TestProxmoxObserve(t *testing.T) {
	h := newHost(t)
	root := h.run(901, lxcmon.Running)
	if err := os.WriteFile(filepath.Join(root, "dev/nvidia0"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.DevNull, filepath.Join(root, "dev/nvidia1")); err != nil { // the host's, if it were followed
		t.Fatal(err)
	}
	got, err := h.runtime().Observe(t.Context(), 901, []string{"/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia2"})
	if err != nil {
		t.Fatal(err)
	}
	want := container.Running{
		State: lxcmon.Running, InitPID: 901, StartTicks: 4711, Instance: "b007:901:4711", StartTime: time.Unix(1700000047, 110_000_000), UserNS: true,
		Found: map[string]container.File{
			"/dev/nvidia0": {Kind: container.Other}, "/dev/nvidia1": {Kind: container.Other}, "/dev/nvidia2": {Kind: container.Absent},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// LXC tells the end of a freeze as a state of its own; the container runs then.
func TestProxmoxObserveAfterAFreeze(t *testing.T) {
	h := newHost(t)
	for ctid, tc := range map[int32]struct{ lxc, want lxcmon.State }{
		901: {lxcmon.Thawed, lxcmon.Running}, 902: {lxcmon.Freezing, lxcmon.Frozen}, 903: {lxcmon.Stopping, lxcmon.Stopping},
	} {
		h.run(ctid, tc.lxc)
		got, err := h.runtime().Observe(t.Context(), ctid, nil)
		if err != nil || got.State != tc.want || (got.Instance == "") != (tc.want == lxcmon.Stopping) {
			t.Errorf("LXC says %v: got %v, %q, %v; want %v", tc.lxc, got.State, got.Instance, err, tc.want)
		}
	}
}

// What a container does to its own /dev must not hide it from us.
func TestProxmoxObserveAHostileDev(t *testing.T) {
	long := strings.Repeat("a/", 1500)
	for name, target := range map[string]string{
		"a link in a circle":        "dev",
		"a link with a name beyond": strings.Repeat("x", 300),
		"links too long together":   long + "l",
		"a link to a magic link":    "/proc/self/root/dev",
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			root := h.run(901, lxcmon.Running)
			if err := os.Remove(filepath.Join(root, "dev")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, filepath.Join(root, "dev")); err != nil {
				t.Fatal(err)
			}
			got, err := h.runtime().Observe(t.Context(), 901, []string{"/dev/null"})
			if err != nil || got.Found["/dev/null"].Kind != container.Absent {
				t.Errorf("got %v, %v; want absent", got.Found, err)
			}
		})
	}
}

// A monitor that does not answer costs its own container the observation, and no other.
func TestListWithAMonitorThatDoesNotAnswer(t *testing.T) {
	n := newNode(t)
	h := newHost(t)
	n.PutConf(901, withGPU0)
	n.PutConf(902, plain)
	h.run(902, lxcmon.Running)
	lis, err := net.Listen("unix", "@"+h.dir+"/901/command") // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	n.Manager.Runtime = h.runtime()
	list, _, err := n.Manager.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("got %+v, %v; want two containers", list, err)
	}
	c := list[0]
	if c.CTID != 901 || c.Running.State != container.Unknown || !hasProblem(c, passthrough.Unreadable) || !cmp.Equal(gpus(&c.Configured), []int{0}) {
		t.Errorf("got %+v; want CTID 901 in an unknown state with what its conf gives", c)
	}
	if list[1].Running.State != lxcmon.Running {
		t.Errorf("the other container: %+v", list[1].Running)
	}
	configured, _, err := n.Manager.Configured(t.Context())
	if err != nil || len(configured) != 2 || configured[0].CTID != 901 || !cmp.Equal(gpus(&configured[0].Configured), []int{0}) {
		t.Errorf("Configured: %+v, %v; want what both confs give, however they run", configured, err)
	}
}

func BenchmarkList(b *testing.B) {
	for _, count := range []int{100, 1000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			n := agenttest.New(b, agenttest.Options{GPUs: 2})
			h := newHost(b)
			for i := range count {
				n.PutConf(int32(1000+i), withGPU0)
				h.run(int32(1000+i), lxcmon.Running)
			}
			n.Manager.Runtime = h.runtime()
			for b.Loop() {
				if _, _, err := n.Manager.List(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
