package server_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"phoenix.internal/controller/client"
	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/nodetest"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
	"phoenix.internal/controller/server"
	"phoenix.internal/controller/store"
)

// A fixture is a controller with a real listener in front of pretended nodes.
type fixture struct {
	client.Client
	conn    *grpc.ClientConn
	ca      *pkitest.CA
	address string
	agents  []string // addresses
	fleet   string   // path of the fleet file
	log     *buffer
	stop    func() // stops the server and waits for it; may be called twice
}

// start serves the agents with the text as fleet file. The caller's certificate is for "ann".
func start(t *testing.T, fleetFile string, agents ...*nodetest.Agent) *fixture {
	t.Helper()
	f := &fixture{ca: pkitest.NewCA(t, "test CA"), fleet: filepath.Join(t.TempDir(), "fleet.json"), log: &buffer{}}
	if fleetFile != "" {
		write(t, f.fleet, fleetFile)
	}
	var nodes []node.Config
	for _, a := range agents {
		f.agents = append(f.agents, a.Start(t, f.ca))
		nodes = append(nodes, node.Config{Name: a.Name, Address: f.agents[len(f.agents)-1]})
	}
	own := load(t, f.ca.Issue(t, pkitest.Leaf{Name: client.ServerName}), pki.Serve, pki.Call)
	log := textLog(f.log)
	dialled, err := node.Dial(nodes, own.Client(""), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close() }) //nolint:errcheck // nothing depends on it any more
	runs, err := store.Open(filepath.Join(t.TempDir(), "controller.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { runs.Close() }) //nolint:errcheck // likewise
	eng := engine.New(engine.Config{FleetFile: f.fleet, Agents: engine.Nodes(dialled), Store: runs, Log: log})
	t.Cleanup(eng.Close)
	f.serve(t, server.New(server.API{Nodes: dialled, Engine: eng, Log: log}, own.Server()))

	f.conn, err = client.Dial(f.address, load(t, f.ca.Issue(t, pkitest.Leaf{Name: "ann", Purposes: []pki.Purpose{pki.Call}}), pki.Call).Client(""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.conn.Close() }) //nolint:errcheck // likewise
	f.Client = client.New(f.conn)
	return f
}

func (f *fixture) serve(t *testing.T, s *server.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, 100*time.Millisecond) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(f.stop)
}

func load(t *testing.T, files pki.Files, purposes ...pki.Purpose) *pki.Credentials {
	t.Helper()
	c, err := files.Load(purposes...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A buffer may be written and read at the same time.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func textLog(b *buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
