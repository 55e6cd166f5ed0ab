package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"phoenix.internal/controller/node"
	"phoenix.internal/controller/pki/pkitest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// An agent is a small agent behind real mutual TLS.
type agent struct {
	agentv1.UnimplementedNodeServiceServer
	agentv1.UnimplementedDeviceServiceServer
	agentv1.UnimplementedContainerServiceServer
	agentv1.UnimplementedExecServiceServer

	devices    *typev1.NodeDevices
	containers []*typev1.Container
	vms        []int32
	patch      func(*agentv1.PatchConfRequest) (*agentv1.PatchConfResponse, error)
	restart    func(*agentv1.RestartRequest, grpc.ServerStreamingServer[agentv1.RestartResponse]) error
	probe      func(*agentv1.ProbeRequest) (*agentv1.ProbeResponse, error)
	exec       func(agentv1.ExecService_ExecServer) error
	hang       bool // ListDevices never answers

	mu    sync.Mutex
	calls []string
}

func (a *agent) called(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, fmt.Sprintf(format, args...))
}

// took returns the calls so far and forgets them.
func (a *agent) took() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	calls := strings.Join(a.calls, ", ")
	a.calls = nil
	return calls
}

func (a *agent) GetNode(context.Context, *agentv1.GetNodeRequest) (*agentv1.GetNodeResponse, error) {
	return &agentv1.GetNodeResponse{Node: &typev1.Node{PveVersion: "9.1.2-sandbox"}}, nil
}

func (a *agent) ListDevices(ctx context.Context, _ *agentv1.ListDevicesRequest) (*agentv1.ListDevicesResponse, error) {
	a.called("ListDevices")
	if a.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &agentv1.ListDevicesResponse{Devices: a.devices}, nil
}

func (a *agent) PrepareDevices(_ context.Context, r *agentv1.PrepareDevicesRequest) (*agentv1.PrepareDevicesResponse, error) {
	for _, g := range r.GetGpus() {
		if g.GetIndex() > 1 {
			return nil, fail(codes.FailedPrecondition, errorv1.Reason_REASON_GPU_NOT_FOUND,
				fmt.Sprintf("no GPU %d; the node has 0, 1", g.GetIndex()), map[string]string{"gpu": "3", "available": "0,1"})
		}
	}
	return &agentv1.PrepareDevicesResponse{CreatedPaths: []string{"/dev/nvidia-uvm"}}, nil
}

func (a *agent) ListContainers(context.Context, *agentv1.ListContainersRequest) (*agentv1.ListContainersResponse, error) {
	a.called("ListContainers")
	return &agentv1.ListContainersResponse{Containers: a.containers, VmIds: a.vms}, nil
}

func (a *agent) GetContainer(_ context.Context, r *agentv1.GetContainerRequest) (*agentv1.GetContainerResponse, error) {
	a.called("GetContainer %d", r.GetCtid())
	for _, c := range a.containers {
		if c.GetCtid() == r.GetCtid() {
			return &agentv1.GetContainerResponse{Container: c}, nil
		}
	}
	return nil, fail(codes.NotFound, errorv1.Reason_REASON_CONTAINER_NOT_FOUND,
		fmt.Sprintf("no container %d", r.GetCtid()), map[string]string{"ctid": fmt.Sprint(r.GetCtid())})
}

func (a *agent) PatchConf(_ context.Context, r *agentv1.PatchConfRequest) (*agentv1.PatchConfResponse, error) {
	return a.patch(r)
}

func (a *agent) Restart(r *agentv1.RestartRequest, s grpc.ServerStreamingServer[agentv1.RestartResponse]) error {
	return a.restart(r, s)
}

func (a *agent) Probe(_ context.Context, r *agentv1.ProbeRequest) (*agentv1.ProbeResponse, error) {
	return a.probe(r)
}

func (a *agent) Exec(s agentv1.ExecService_ExecServer) error { return a.exec(s) }

func fail(code codes.Code, reason errorv1.Reason, message string, metadata map[string]string) error {
	s, err := status.New(code, message).WithDetails(&errdetails.ErrorInfo{
		Reason: node.ReasonName(reason), Domain: "phoenix.internal", Metadata: metadata,
	})
	if err != nil {
		return err
	}
	return s.Err()
}

// serve starts the agent with a certificate for name and returns its address.
func (a *agent) serve(t *testing.T, ca *pkitest.CA, name string) string {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	a.serveOn(t, ca, name, l)
	return l.Addr().String()
}

func (a *agent) serveOn(t *testing.T, ca *pkitest.CA, name string, l net.Listener) {
	t.Helper()
	creds, err := ca.Issue(t, pkitest.Leaf{Name: name}).Load()
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(creds.Server())))
	agentv1.RegisterNodeServiceServer(server, a)
	agentv1.RegisterDeviceServiceServer(server, a)
	agentv1.RegisterContainerServiceServer(server, a)
	agentv1.RegisterExecServiceServer(server, a)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) { // a test may end before it began
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// refused is an address where nothing listens.
func refused(t *testing.T) string {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	defer l.Close()
	return l.Addr().String()
}

// dial returns the agents, called with a certificate of ca.
func dial(t *testing.T, ca *pkitest.CA, cfg ...node.Config) *node.Fleet {
	t.Helper()
	creds, err := ca.Issue(t, pkitest.Leaf{Name: "phoenix-controller"}).Load()
	if err != nil {
		t.Fatal(err)
	}
	f, err := node.Dial(cfg, creds.Client(""), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// one returns the node of a single agent.
func one(t *testing.T, a *agent) *node.Node {
	t.Helper()
	ca := pkitest.NewCA(t, "test")
	n, err := dial(t, ca, node.Config{Name: "pve1", Address: a.serve(t, ca, "pve1")}).Node("pve1")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func container(ctid int32) *typev1.Container { return &typev1.Container{Ctid: ctid} }

// said is what a caller of Exec sent.
type said struct {
	start    *typev1.ExecStart
	stdin    bytes.Buffer
	messages int
	largest  int
}

func hear(s agentv1.ExecService_ExecServer) (*said, error) {
	heard := &said{}
	for {
		r, err := s.Recv()
		if err != nil {
			return heard, err
		}
		heard.messages++
		switch in := r.GetInput().GetInput().(type) {
		case *typev1.ExecInput_Start:
			heard.start = in.Start
			if !in.Start.GetStdin() {
				return heard, nil
			}
		case *typev1.ExecInput_Stdin:
			heard.stdin.Write(in.Stdin)
			heard.largest = max(heard.largest, len(in.Stdin))
		case *typev1.ExecInput_StdinEnd:
			return heard, nil
		}
	}
}

func say(s agentv1.ExecService_ExecServer, out ...*typev1.ExecOutput) error {
	for _, o := range out {
		if err := s.Send(&agentv1.ExecResponse{Output: o}); err != nil {
			return err
		}
	}
	return nil
}

func stdout(text string) *typev1.ExecOutput {
	return &typev1.ExecOutput{Output: &typev1.ExecOutput_Stdout{Stdout: []byte(text)}}
}

func stderr(text string) *typev1.ExecOutput {
	return &typev1.ExecOutput{Output: &typev1.ExecOutput_Stderr{Stderr: []byte(text)}}
}

func exit(code int32) *typev1.ExecOutput {
	return &typev1.ExecOutput{Output: &typev1.ExecOutput_Exit{Exit: &typev1.ExecExit{Code: code}}}
}
