package controller_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"

	"phoenix.internal/controller"
	"phoenix.internal/controller/client"
	"phoenix.internal/controller/nodetest"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
)

const oneContainer = `{"lxc_configs": {"901": {"name": "c901", "gpu_assignment": "0"}}}`

// A daemon is a controller with a listener on the loopback interface.
type daemon struct {
	client.Client
	stop func() // and waits for it; may be called twice
}

func serve(t *testing.T, ca *pkitest.CA, cfg controller.Config) *daemon {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- controller.Serve(ctx, cfg, l, slog.New(slog.DiscardHandler)) }()
	d := &daemon{stop: sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})}
	t.Cleanup(d.stop)
	own, err := ca.Issue(t, pkitest.Leaf{Name: "ann", Purposes: []pki.Purpose{pki.Call}}).Load(pki.Call)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := client.Dial(l.Addr().String(), own.Client(""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() }) //nolint:errcheck // nothing depends on it any more
	d.Client = client.New(conn)
	return d
}

func config(t *testing.T, ca *pkitest.CA, agents ...*nodetest.Agent) controller.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := controller.Config{
		Listen: "127.0.0.1:0", TLS: ca.Issue(t, pkitest.Leaf{Name: client.ServerName}), StateDir: filepath.Join(dir, "state"),
		FleetFile: filepath.Join(dir, "fleet.json"), Log: controller.LogConfig{Level: "info", Format: "text"},
	}
	for _, a := range agents {
		cfg.Nodes = append(cfg.Nodes, controller.Node{Name: a.Name, Address: a.Start(t, ca)})
	}
	if err := os.WriteFile(cfg.FleetFile, []byte(oneContainer), 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// apply applies and returns the ended run.
func apply(t *testing.T, runs controllerv1.RunServiceClient) *controllerv1.Run {
	t.Helper()
	s, err := runs.Apply(t.Context(), &controllerv1.ApplyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return last(t, s.Recv)
}

func last[M interface{ GetRun() *controllerv1.Run }](t *testing.T, recv func() (M, error)) (run *controllerv1.Run) {
	t.Helper()
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return run
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.GetRun() != nil {
			run = m.GetRun()
		}
	}
}

// A controller that is stopped in the middle of a run takes it up again when it is back.
func TestRunIsTakenUpAgain(t *testing.T) {
	// The step that is under way when the first controller stops does not end in time.
	defer controller.SetStopGrace(100 * time.Millisecond)()
	ca := pkitest.NewCA(t, "test CA")
	pve1 := &nodetest.Agent{Name: "pve1", GPUs: 1, Hold: make(chan struct{})}
	pve1.Add(901, true)
	cfg := config(t, ca, pve1)
	first := serve(t, ca, cfg)
	s, err := first.Runs.Apply(t.Context(), &controllerv1.ApplyRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	var id string
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetRun() != nil {
			id = m.GetRun().GetRun()
		}
		if m.GetStep().GetStep().GetKind() == controllerv1.StepKind_STEP_KIND_RESTART {
			break
		}
	}
	first.stop()
	close(pve1.Hold)

	second := serve(t, ca, cfg)
	watch, err := second.Runs.WatchRun(t.Context(), &controllerv1.WatchRunRequest{Run: id}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	run := last(t, watch.Recv)
	if run.GetState() != controllerv1.RunState_RUN_STATE_SUCCEEDED || run.GetResumptions() != 1 || run.GetWho() != "ann" {
		t.Errorf("got %v, want ann's run taken up once, and succeeded", run)
	}
	st, err := second.Fleet.GetStatus(t.Context(), &controllerv1.GetStatusRequest{Probe: true})
	if err != nil || st.GetContainers()[0].GetState() != controllerv1.SyncState_SYNC_STATE_IN_SYNC {
		t.Errorf("status %v, %v; want in sync", st, err)
	}
}

func TestNotify(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	receive := func() string {
		b := make([]byte, 100)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	ca := pkitest.NewCA(t, "test CA")
	d := serve(t, ca, config(t, ca, &nodetest.Agent{Name: "pve1"}))
	got := []string{receive()}
	d.stop()
	got = append(got, receive())
	if want := []string{"READY=1", "STOPPING=1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRunErrors(t *testing.T) {
	ca := pkitest.NewCA(t, "test CA")
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	cfg := config(t, ca, &nodetest.Agent{Name: "pve1"})
	cfg.Listen = busy.Addr().String()
	want := "listen: listen tcp " + cfg.Listen + ": bind: address already in use"
	if err := controller.Run(t.Context(), cfg); err == nil || err.Error() != want {
		t.Errorf("busy address: got %v, want %s", err, want)
	}
	cfg.Nodes = nil
	if err := controller.Run(t.Context(), cfg); err == nil || err.Error() != "nodes: none; want a list of {name, address}" {
		t.Errorf("bad configuration: got %v", err)
	}
}
