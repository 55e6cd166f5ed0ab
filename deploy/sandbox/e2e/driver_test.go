package e2e_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"phoenix.internal/deploy/sandbox/runfile"
	"phoenix.internal/deploy/sandbox/sandboxtest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// The versions of the sandbox's loaded module, and of an older one.
const (
	loadedDriver = "580.105.08"
	olderDriver  = "470.256.02"
)

// A driverWorld is one node whose agent may fetch installers from a server of the test.
type driverWorld struct {
	*world
	n      *sandboxtest.Node
	server *runfile.Server
	url    string // of the directory
	client agentv1.DriverServiceClient
	gpus   []runfile.GPU
}

func newDriverWorld(t *testing.T) *driverWorld {
	t.Helper()
	w := &driverWorld{world: &world{Sandbox: sandboxtest.Up(t, sandboxtest.Options{}), t: t}, server: &runfile.Server{}}
	w.n = w.Node(1)
	w.nodes = []*sandboxtest.Node{w.n}
	lis, err := net.Listen("tcp", net.JoinHostPort(w.n.Gateway, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: w.server}
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	w.url = fmt.Sprintf("http://%s/", lis.Addr())
	config, err := os.OpenFile(filepath.Join(w.n.Dir(), "etc-phoenix", "agent.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer config.Close()
	if _, err := fmt.Fprintf(config, "driver_sources: [%q]\n", w.url); err != nil {
		t.Fatal(err)
	}
	for i, g := range w.n.GPUs {
		w.gpus = append(w.gpus, runfile.GPU{Minor: g.Minor, Model: g.Model, UUID: w.n.GPUs[i].UUID})
	}
	w.n.StartAgent()
	tlsConfig, err := w.ClientTLS(w.n.Name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+w.n.AgentAddress(), grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	w.client = agentv1.NewDriverServiceClient(conn)
	return w
}

// put makes a runfile that the server has, and returns the request for it.
func (w *driverWorld) put(version string, padding int) *agentv1.FetchInstallerRequest {
	b := runfile.New(runfile.Options{Version: version, Loaded: loadedDriver, GPUs: w.gpus, Padding: padding})
	w.server.Put(runfile.Name(version), b)
	return &agentv1.FetchInstallerRequest{
		Version: version, Url: w.url + runfile.Name(version), Sha256: fmt.Sprintf("%x", sha256.Sum256(b)),
	}
}

func (w *driverWorld) fetch(ctx context.Context, req *agentv1.FetchInstallerRequest, progress func(*typev1.DriverProgress)) (*typev1.Installer, error) {
	stream, err := w.client.FetchInstaller(ctx, req)
	if err != nil {
		return nil, err
	}
	var got *typev1.Installer
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return nil, err
		}
		if p := resp.GetProgress(); p != nil && progress != nil {
			progress(p)
		}
		got = resp.GetInstaller()
	}
}

func (w *driverWorld) install(ctx context.Context, req *agentv1.InstallDriverRequest, progress func(*typev1.DriverProgress)) (*agentv1.InstallDriverResult, error) {
	stream, err := w.client.InstallDriver(ctx, req)
	if err != nil {
		return nil, err
	}
	var got *agentv1.InstallDriverResult
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return nil, err
		}
		if p := resp.GetProgress(); p != nil && progress != nil {
			progress(p)
		}
		got = resp.GetResult()
	}
}

func (w *driverWorld) driver(t *testing.T, ctid int32) *typev1.ContainerDriver {
	t.Helper()
	resp, err := w.client.GetDriver(t.Context(), &agentv1.GetDriverRequest{Ctid: ctid})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetContainer()
}

func (w *driverWorld) verify(t *testing.T, ctid int32, uuids ...string) *typev1.DriverCheck {
	t.Helper()
	resp, err := w.client.VerifyDriver(t.Context(), &agentv1.VerifyDriverRequest{Ctid: ctid, Uuids: uuids})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetCheck()
}

// start makes and starts a container with these lines in its conf, with glibc or without.
func (w *driverWorld) start(ctid int32, glibc bool, more ...string) {
	w.t.Helper()
	w.n.Add(ctid, conf(ctid, more...))
	if glibc {
		if err := runfile.AddGlibc(w.root(ctid), 100000); err != nil {
			w.t.Fatal(err)
		}
	}
	w.n.Must("pct", "start", fmt.Sprint(ctid))
}

// root is the root file system of a container as this machine sees it.
func (w *driverWorld) root(ctid int32, path ...string) string {
	return filepath.Join(append([]string{w.n.Dir(), "var-lib-lxc", fmt.Sprint(ctid), "rootfs"}, path...)...)
}

// gpuLines pass the node's GPUs with these indexes through.
func (w *driverWorld) gpuLines(indexes ...int) []string {
	var lines []string
	for _, i := range indexes {
		path := fmt.Sprintf("dev/nvidia%d", w.n.GPUs[i].Minor)
		lines = append(lines, fmt.Sprintf("lxc.mount.entry: /%s %s none bind,optional,create=file 0 0", path, path))
	}
	return lines
}

// reasonOf is the reason of a failed call, and its metadata.
func reasonOf(err error) (string, map[string]string) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason(), info.GetMetadata()
		}
	}
	return status.Convert(err).Code().String(), nil
}

// files are the files in a container that a driver or an installation of one has left.
func (w *driverWorld) files(ctid int32) []string {
	out, _, _ := w.n.Attach(ctid, "ls -d /usr/lib/*/*nvidia* /usr/lib/*/*cuda* /usr/lib/*/*nvcuvid* /usr/bin/nvidia-* /var/lib/nvidia /var/lib/phoenix/driver/* 2>/dev/null")
	return strings.Fields(out)
}

// TestDriver installs, verifies, replaces and removes the driver of real containers.
func TestDriver(t *testing.T) {
	w := newDriverWorld(t)
	fetched := w.put(loadedDriver, 1<<20)
	older := w.put(olderDriver, 0)
	uuid := func(i int) string { return w.n.GPUs[i].UUID }

	w.start(901, true, w.gpuLines(0)...)
	if d := w.driver(t, 901); d.GetLibc() != typev1.Libc_LIBC_GLIBC || d.GetState() != typev1.DriverState_DRIVER_STATE_NONE || d.GetVersion() != "" {
		t.Fatalf("a container without a driver: %v", d)
	}
	_, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 901}, nil)
	if reason, md := reasonOf(err); reason != "INSTALLER_NOT_CACHED" || md["version"] != loadedDriver {
		t.Errorf("install what has not been fetched: %v", err)
	}
	if c := w.verify(t, 901, uuid(0)); c.GetOk() || len(c.GetMissingUuids()) != 1 {
		t.Errorf("verify without a driver: %v", c)
	}
	if _, err := w.fetch(t.Context(), fetched, nil); err != nil {
		t.Fatal(err)
	}
	var phases []typev1.DriverPhase
	result, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 901}, func(p *typev1.DriverProgress) {
		phases = append(phases, p.GetPhase())
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := result.GetDriver(); !result.GetInstalled() || d.GetState() != typev1.DriverState_DRIVER_STATE_INSTALLED || d.GetVersion() != loadedDriver || d.GetCudaVersion() != loadedDriver {
		t.Errorf("installed: %v", result)
	}
	if want := []typev1.DriverPhase{typev1.DriverPhase_DRIVER_PHASE_COPY, typev1.DriverPhase_DRIVER_PHASE_INSTALL, typev1.DriverPhase_DRIVER_PHASE_CHECK}; !slices.Equal(slices.Compact(phases), want) {
		t.Errorf("phases %v, want %v", phases, want)
	}
	if c := w.verify(t, 901, uuid(0)); !c.GetOk() || c.GetSmiVersion() != loadedDriver || !slices.Equal(c.GetUuids(), []string{uuid(0)}) || c.GetCuda() == typev1.CudaCheck_CUDA_CHECK_NO_LIBRARY {
		t.Errorf("verify: %v", c)
	}
	if c := w.verify(t, 901, uuid(1)); c.GetOk() || !slices.Equal(c.GetMissingUuids(), []string{uuid(1)}) || !slices.Equal(c.GetUnexpectedUuids(), []string{uuid(0)}) {
		t.Errorf("verify with another GPU: %v", c)
	}
	if result, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 901}, nil); err != nil || result.GetInstalled() {
		t.Errorf("install what is there: %v, %v; want nothing done", result, err)
	}

	t.Run("downgrade and upgrade", func(t *testing.T) {
		if _, err := w.fetch(t.Context(), older, nil); err != nil {
			t.Fatal(err)
		}
		for _, version := range []string{olderDriver, loadedDriver} {
			result, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 901, Version: version}, nil)
			if d := result.GetDriver(); err != nil || d.GetState() != typev1.DriverState_DRIVER_STATE_INSTALLED || d.GetVersion() != version {
				t.Errorf("install %s: %v, %v", version, result, err)
			}
			c := w.verify(t, 901, uuid(0))
			if c.GetOk() != (version == loadedDriver) {
				t.Errorf("verify %s: %v", version, c)
			}
		}
	})
	t.Run("remove", func(t *testing.T) {
		resp, err := w.client.RemoveDriver(t.Context(), &agentv1.RemoveDriverRequest{Ctid: 901})
		if err != nil || resp.GetDriver().GetState() != typev1.DriverState_DRIVER_STATE_NONE {
			t.Fatalf("remove: %v, %v", resp, err)
		}
		if got, want := w.files(901), []string{"/var/lib/phoenix/driver/lock"}; !slices.Equal(got, want) {
			t.Errorf("left behind: %q, want %q", got, want)
		}
		if _, err := w.client.RemoveDriver(t.Context(), &agentv1.RemoveDriverRequest{Ctid: 901}); err != nil {
			t.Errorf("remove what is not there: %v", err)
		}
	})
}
