package controller_test

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"

	"phoenix.internal/controller"
	"phoenix.internal/controller/client"
	"phoenix.internal/controller/nodetest"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
	"phoenix.internal/controller/store"
)

func local(t *testing.T, cfg controller.LocalConfig) client.Client {
	t.Helper()
	conn, closeAll, err := controller.Local(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeAll(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return client.New(conn)
}

// A fleet file can be checked with nothing at all, and nothing is left behind.
func TestLocalValidates(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	t.Setenv("XDG_STATE_HOME", state)
	c := local(t, controller.LocalConfig{})
	resp, err := c.Fleet.ValidateFleet(t.Context(), &controllerv1.ValidateFleetRequest{Name: "x.json", Content: []byte(oneContainer)})
	if err != nil || !resp.GetValid() || len(resp.GetContainers()) != 1 {
		t.Errorf("got %v, %v; want one valid container", resp, err)
	}
	if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory: %v, want none", err)
	}
}

func TestLocalApplies(t *testing.T) {
	ca := pkitest.NewCA(t, "test CA")
	pve1 := &nodetest.Agent{Name: "pve1", GPUs: 1}
	pve1.Add(901, true)
	cfg := config(t, ca, pve1)
	state := t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	own := controller.LocalConfig{
		Agents: cfg.Nodes, TLS: ca.Issue(t, pkitest.Leaf{Name: "ann", Purposes: []pki.Purpose{pki.Call}}), FleetFile: cfg.FleetFile,
	}
	run := apply(t, local(t, own).Runs)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if run.GetState() != controllerv1.RunState_RUN_STATE_SUCCEEDED || run.GetWho() != me.Username {
		t.Errorf("got %v, want success for %s", run, me.Username)
	}
	if _, err := os.Stat(filepath.Join(state, "phoenix", "controller.db")); err != nil {
		t.Error(err)
	}
	if l := listeners(t); len(l) != 1 { // the pretended agent's
		t.Errorf("%d listeners %q, want only the agent's", len(l), l)
	}
}

// listeners returns the TCP sockets on which this process listens, as lines of /proc/net/tcp.
func listeners(t *testing.T) (lines []string) {
	t.Helper()
	own := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			own[link] = true
		}
	}
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			const listen, state, inode = "0A", 3, 9
			if f := strings.Fields(line); len(f) > inode && f[state] == listen && own[fmt.Sprintf("socket:[%s]", f[inode])] {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// While another process has the store, what needs it says so, and what does not works.
func TestLocalStoreInUse(t *testing.T) {
	dir := t.TempDir()
	other, err := store.Open(filepath.Join(dir, "controller.db"))
	if err != nil {
		t.Fatal(err)
	}
	c := local(t, controller.LocalConfig{StateDir: dir})
	_, err = c.Runs.ListRuns(t.Context(), &controllerv1.ListRunsRequest{})
	if want := fmt.Sprintf("is in use by process %d", os.Getpid()); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want Unavailable with %q", err, want)
	}
	if _, err := c.Nodes.ListNodes(t.Context(), &controllerv1.ListNodesRequest{}); err != nil {
		t.Errorf("ListNodes: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Runs.ListRuns(t.Context(), &controllerv1.ListRunsRequest{}); err != nil {
		t.Errorf("after the other has gone: %v", err)
	}
}

func TestLocalMarksInterrupted(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "controller.db"))
	if err != nil {
		t.Fatal(err)
	}
	err = s.SaveRun(store.Run{ID: "r1", State: store.RunRunning, Created: time.Unix(1, 0), Containers: []store.Container{
		{CTID: 901, State: store.StepRunning, Steps: []store.Step{{Kind: 1, State: store.StepRunning}}},
	}})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	c := local(t, controller.LocalConfig{StateDir: dir})
	resp, err := c.Runs.GetRun(t.Context(), &controllerv1.GetRunRequest{Run: "r"})
	if err != nil || resp.GetRun().GetState() != controllerv1.RunState_RUN_STATE_INTERRUPTED {
		t.Errorf("got %v, %v; want it interrupted", resp, err)
	}
}

func TestLocalErrors(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name string
		cfg  controller.LocalConfig
		want string
	}{
		{"agents without certificates", controller.LocalConfig{Agents: []controller.Node{{Name: "pve1", Address: "192.0.2.1:7461"}}},
			"tls.cert_file: not set\ntls.key_file: not set\ntls.ca_file: not set"},
		{"bad agent", controller.LocalConfig{Agents: []controller.Node{{Name: "pve1", Address: "192.0.2.1"}}},
			"agents[0].address: \"192.0.2.1\" is not HOST:PORT\ntls.cert_file: not set\ntls.key_file: not set\ntls.ca_file: not set"},
		{"missing features", controller.LocalConfig{FeaturesDir: dir + "/none"},
			"features_dir: open " + dir + "/none: no such file or directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := controller.Local(t.Context(), tt.cfg)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
}

// A run whose process closes in the middle is not left behind as running.
func TestLocalCloseInterrupts(t *testing.T) {
	ca := pkitest.NewCA(t, "test CA")
	pve1 := &nodetest.Agent{Name: "pve1", GPUs: 1, Hold: make(chan struct{})}
	pve1.Add(901, true)
	cfg := config(t, ca, pve1)
	own := controller.LocalConfig{
		Agents: cfg.Nodes, FleetFile: cfg.FleetFile, StateDir: t.TempDir(),
		TLS: ca.Issue(t, pkitest.Leaf{Name: "ann", Purposes: []pki.Purpose{pki.Call}}),
	}
	conn, closeAll, err := controller.Local(t.Context(), own)
	if err != nil {
		t.Fatal(err)
	}
	s, err := client.New(conn).Runs.Apply(t.Context(), &controllerv1.ApplyRequest{})
	for err == nil {
		var m *controllerv1.ApplyResponse
		m, err = s.Recv()
		if m.GetStep().GetStep().GetKind() == controllerv1.StepKind_STEP_KIND_RESTART {
			break
		}
	}
	if err := errors.Join(err, closeAll()); err != nil {
		t.Fatal(err)
	}
	state, err := store.Open(filepath.Join(own.StateDir, "controller.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	runs, err := state.Runs(0)
	if err != nil || len(runs) != 1 || runs[0].State != store.RunInterrupted {
		t.Errorf("got %v, %v; want one that is interrupted", runs, err)
	}
}
