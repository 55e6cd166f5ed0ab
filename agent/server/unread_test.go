package server_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"phoenix.internal/agent/agenttest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// What may hold output that nobody reads.
const (
	kernelPipe   = 64 << 10 // between a command and the agent
	heldByAgent  = 256 << 10
	clientWindow = 64 << 10 // of this test's client, which is in the same process as the agent
)

// TestExecUnreadOutput holds the agent to its bound where nobody reads an output of two gigabytes, and one that comes byte
// by byte before it: of one command, and of all that a node runs at a time. It counts what the commands could write until
// they had to wait, and what this process has come to hold by then. A slow machine can only make both smaller.
func TestExecUnreadOutput(t *testing.T) {
	// A number that no other process on this machine has in its command line.
	head := []string{"head", "-c", strconv.FormatInt(2<<30+rand.Int64N(1<<20), 10), "/dev/zero"}
	t.Run("two gigabytes", func(t *testing.T) { testUnreadOutput(t, head, head) })
	t.Run("byte by byte", func(t *testing.T) {
		const bytes = "i=0; while [ $i -lt 20000 ]; do printf x; i=$((i+1)); done; exec "
		testUnreadOutput(t, []string{"sh", "-c", bytes + strings.Join(head, " ")}, head)
	})
}

// testUnreadOutput runs a command that becomes another one before its output ends.
func testUnreadOutput(t *testing.T, argv, becomes []string) {
	n := agenttest.New(t, agenttest.Options{})
	for ctid := int32(901); ctid <= 908; ctid++ {
		n.PutConf(ctid, plain)
		if err := n.Runtime.Start(t.Context(), ctid); err != nil {
			t.Fatal(err)
		}
	}
	var clients []agentv1.ExecServiceClient // one connection has not enough streams
	for range 2 {
		conn, err := grpc.NewClient(n.Address, grpc.WithTransportCredentials(credentials.NewTLS(n.CA.ClientTLS(t, "tester", n.Name))),
			grpc.WithNoProxy(), grpc.WithStaticStreamWindowSize(clientWindow), grpc.WithStaticConnWindowSize(64<<20))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		clients = append(clients, agentv1.NewExecServiceClient(conn))
	}
	run := func(ctid int32, argv ...string) agentv1.ExecService_ExecClient {
		t.Helper()
		stream, err := clients[ctid%2].Exec(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		send(t, stream, startCommand(&typev1.ExecStart{Ctid: ctid, Argv: argv}))
		if _, err := stream.Recv(); err != nil { // started
			t.Fatal(err)
		}
		return stream
	}
	if _, _, _, err := collect(run(901, "head", "-c", "2000000", "/dev/zero")); err != nil { // fills the pools of buffers
		t.Fatal(err)
	}
	before := heldBytes()

	run(901, argv...)
	written := awaitBlocked(t, becomes, 1)
	held := heldBytes() - before
	t.Logf("one command could write %d KiB; %d KiB held", written>>10, held>>10)
	if most := int64(kernelPipe + heldByAgent + clientWindow); written > most {
		t.Errorf("one command could write %d KiB, want at most %d", written>>10, most>>10)
	}

	for i := range int32(63) {
		run(901+(i+1)%8, argv...)
	}
	written = awaitBlocked(t, becomes, 64)
	held = heldBytes() - before
	t.Logf("64 commands could write %d KiB; %d KiB held, those of the client among them", written>>10, held>>10)
	if most := int64(64 * (kernelPipe + heldByAgent + clientWindow)); written > most {
		t.Errorf("64 commands could write %d KiB, want at most %d", written>>10, most>>10)
	}
	if most := int64(64 * (heldByAgent + clientWindow)); held > most {
		t.Errorf("%d KiB are held, want at most %d", held>>10, most>>10)
	}
}

// heldBytes returns what this process holds in heap and stacks.
func heldBytes() int64 {
	runtime.GC()
	runtime.GC() // what lies in pools survives one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// awaitBlocked waits until so many processes with this command line have written something and then nothing for a
// while, and returns how much they have in all.
func awaitBlocked(t *testing.T, argv []string, processes int) (written int64) {
	t.Helper()
	const still = 20
	for unchanged := 0; unchanged < still; {
		time.Sleep(25 * time.Millisecond)
		now, found := writtenBy(t, argv)
		if found != processes || now == 0 || now != written {
			unchanged = 0
		} else {
			unchanged++
		}
		written = now
	}
	return written
}

// writtenBy returns how many processes with this command line have written something, and how much.
func writtenBy(t *testing.T, argv []string) (bytes int64, processes int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join(argv, "\x00") + "\x00"
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || string(line) != want {
			continue
		}
		io, err := os.ReadFile(dir + "/io")
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		var n int64
		if _, rest, ok := strings.Cut(string(io), "\nwchar: "); ok {
			fmt.Sscan(rest, &n)
		}
		if bytes += n; n > 0 {
			processes++
		}
	}
	return bytes, processes
}
