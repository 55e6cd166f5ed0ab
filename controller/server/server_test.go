package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"

	"phoenix.internal/controller/client"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
	"phoenix.internal/controller/server"
)

var services = []string{
	"grpc.health.v1.Health",
	"grpc.reflection.v1.ServerReflection",
	"grpc.reflection.v1alpha.ServerReflection",
	"phoenix.controller.v1.ContainerService",
	"phoenix.controller.v1.DoctorService",
	"phoenix.controller.v1.FileService",
	"phoenix.controller.v1.FleetService",
	"phoenix.controller.v1.NodeService",
	"phoenix.controller.v1.RunService",
}

func TestHandshake(t *testing.T) {
	f := start(t, "")
	foreign := pkitest.NewCA(t, "test CA") // of the same name
	caller := func(ca *pkitest.CA, l pkitest.Leaf) *tls.Config {
		l.Name = "ann"
		files := ca.Issue(t, l)
		pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
		if err != nil {
			t.Fatal(err)
		}
		own := load(t, f.ca.Issue(t, pkitest.Leaf{Name: "x"}), pki.Call).Client(client.ServerName)
		own.Certificates = []tls.Certificate{pair}
		return own
	}
	good := func() *tls.Config { return caller(f.ca, pkitest.Leaf{Purposes: []pki.Purpose{pki.Call}}) }
	with := func(change func(*tls.Config)) *tls.Config {
		c := good()
		change(c)
		return c
	}
	tests := []struct {
		name   string
		caller *tls.Config // nil: plaintext
		want   string      // in the error; empty: the server answers
	}{
		{"caller's certificate", good(), ""},
		{"plaintext", nil, "EOF"},
		{"TLS 1.2", with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), "protocol version not supported"},
		{"no certificate", with(func(c *tls.Config) { c.Certificates = nil }), "certificate required"},
		{"certificate of another authority", caller(foreign, pkitest.Leaf{}), "unknown certificate authority"},
		{"certificate only to serve", caller(f.ca, pkitest.Leaf{Purposes: []pki.Purpose{pki.Serve}}), "bad certificate"},
		{"expired certificate", caller(f.ca, pkitest.Leaf{NotAfter: time.Now().Add(-time.Minute)}), "expired certificate"},
		{"HTTP/1.1", with(func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }), "EOF"},
		{"no protocol", with(func(c *tls.Config) { c.NextProtos = nil }), "EOF"},
		{"another name of the server", with(func(c *tls.Config) { c.ServerName = "pve1" }), "not pve1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := greet(t, f.address, tt.caller)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v, want an answer", err)
			case tt.want != "" && err == nil:
				t.Errorf("the server answered; want %q", tt.want)
			case tt.want != "" && !strings.Contains(err.Error(), tt.want):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// greet begins HTTP/2 and reads the server's first frame.
func greet(t *testing.T, address string, settings *tls.Config) error {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if settings != nil {
		c = tls.Client(c, settings)
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return err
	}
	frame, err := http2.NewFramer(c, c).ReadFrame()
	if err != nil {
		if settings == nil { // what came is no frame, but TLS
			return io.EOF
		}
		return err
	}
	if _, ok := frame.(*http2.SettingsFrame); !ok {
		t.Errorf("the first frame is %v, want SETTINGS", frame)
	}
	return nil
}

func TestHealth(t *testing.T) {
	f := start(t, "")
	health := grpc_health_v1.NewHealthClient(f.conn)
	for _, name := range append([]string{""}, services...) {
		resp, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: name})
		if err != nil || resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v, %v; want SERVING", name, resp.GetStatus(), err)
		}
	}
	_, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "phoenix.controller.v1.Nothing"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("unknown service: %v, want NotFound", err)
	}
}

func TestHealthWhileStopping(t *testing.T) {
	f := start(t, "")
	watch, err := grpc_health_v1.NewHealthClient(f.conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{
		Service: "phoenix.controller.v1.RunService",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{
		grpc_health_v1.HealthCheckResponse_SERVING, grpc_health_v1.HealthCheckResponse_NOT_SERVING,
	} {
		resp, err := watch.Recv()
		if err != nil || resp.GetStatus() != want {
			t.Fatalf("got %v, %v; want %v", resp.GetStatus(), err, want)
		}
		go f.stop()
	}
}

// A watcher of the health hears that the server stops, and does not hold it up.
func TestStopWithHealthWatcher(t *testing.T) {
	ca := pkitest.NewCA(t, "test CA")
	own := load(t, ca.Issue(t, pkitest.Leaf{Name: client.ServerName}), pki.Serve, pki.Call)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.New(server.API{}, own.Server()).Serve(ctx, l, time.Minute) }()
	conn, err := client.Dial(l.Addr().String(), own.Client(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	watch, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	stop()
	resp, err := watch.Recv()
	if err != nil || resp.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("got %v, %v; want NOT_SERVING", resp, err)
	}
	_, err = watch.Recv()
	wantReason(t, "the end", err, codes.Unavailable, errorv1.Reason_REASON_SHUTTING_DOWN, nil)
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// Both versions have the same messages; grpcurl still speaks the older one where a server has it.
func TestReflection(t *testing.T) {
	f := start(t, "")
	for _, version := range []string{"v1", "v1alpha"} {
		t.Run(version, func(t *testing.T) {
			s, err := f.conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
				"/grpc.reflection."+version+".ServerReflection/ServerReflectionInfo")
			if err != nil {
				t.Fatal(err)
			}
			ask := func(req *reflectionv1.ServerReflectionRequest) *reflectionv1.ServerReflectionResponse {
				resp := &reflectionv1.ServerReflectionResponse{}
				if err := errors.Join(s.SendMsg(req), s.RecvMsg(resp)); err != nil {
					t.Fatal(err)
				}
				return resp
			}
			list := ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
			var got []string
			for _, s := range list.GetListServicesResponse().GetService() {
				got = append(got, s.GetName())
			}
			if !slices.Equal(got, services) {
				t.Errorf("got %q, want %q", got, services)
			}
			file := ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{
				FileContainingSymbol: "phoenix.controller.v1.FleetService.ValidateFleet",
			}})
			if len(file.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
				t.Errorf("got %v, want the file", file)
			}
		})
	}
}

func TestMessageLimits(t *testing.T) {
	f := start(t, "")
	const mib = 1 << 20
	file := func(size int) error {
		_, err := f.Fleet.ValidateFleet(t.Context(), &controllerv1.ValidateFleetRequest{Content: make([]byte, size)})
		return err
	}
	run := func(size int) error {
		_, err := f.Runs.GetRun(t.Context(), &controllerv1.GetRunRequest{Run: strings.Repeat("x", size)})
		return err
	}
	if err := file(8 * mib); err != nil {
		t.Errorf("fleet file of 8 MiB: %v", err)
	}
	for name, err := range map[string]error{
		"fleet file of 8 MiB and a byte":   file(8*mib + 1),
		"other message of more than 4 MiB": run(4 * mib),
	} {
		reason, values := client.Reason(err)
		if status.Code(err) != codes.ResourceExhausted || reason != errorv1.Reason_REASON_LIMIT_EXCEEDED || values["max"] == "" {
			t.Errorf("%s: got %v with %v %v; want ResourceExhausted, LIMIT_EXCEEDED with max", name, err, reason, values)
		}
	}
	if err := file(10 * mib); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("fleet file of 10 MiB: %v, want ResourceExhausted", err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", 17<<10))
	if _, err := f.Fleet.ValidateFleet(ctx, &controllerv1.ValidateFleetRequest{Name: "x"}); err == nil {
		t.Error("headers of 17 KiB were taken")
	}
}

func TestStreamLimit(t *testing.T) {
	f := start(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	open := func() error {
		s, err := grpc_health_v1.NewHealthClient(f.conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			return err
		}
		_, err = s.Recv()
		return err
	}
	for i := range 256 {
		if err := open(); err != nil {
			t.Fatalf("stream %d: %v", i+1, err)
		}
	}
	err := open()
	if reason, values := client.Reason(err); reason != errorv1.Reason_REASON_LIMIT_EXCEEDED || values["max"] != "256" {
		t.Errorf("stream 257: got %v with %v %v; want LIMIT_EXCEEDED with max 256", err, reason, values)
	}
}

func TestConnectionLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := server.Limit(inner)
	accepted := make(chan net.Conn, 100)
	var accepting = make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var conns []net.Conn
	for range 16 {
		dial()
		conns = append(conns, <-accepted)
	}
	refused := dial()
	if _, err := refused.Read(make([]byte, 1)); err == nil {
		t.Error("connection 17 of one address stays open")
	}
	conns[0].Close()
	conns[0].Close() // counts once
	dial()
	<-accepted
	refused = dial()
	if _, err := refused.Read(make([]byte, 1)); err == nil {
		t.Error("after one was closed and one opened, connection 17 stays open")
	}
	inner.Close()
	<-accepting
}

func TestPanic(t *testing.T) {
	f := &fixture{ca: pkitest.NewCA(t, "test CA"), log: &buffer{}}
	own := load(t, f.ca.Issue(t, pkitest.Leaf{Name: client.ServerName}), pki.Serve, pki.Call)
	f.serve(t, server.New(server.API{Log: textLog(f.log)}, own.Server())) // without an engine every call panics
	conn, err := client.Dial(f.address, own.Client(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var header metadata.MD
	_, err = client.New(conn).Runs.ListRuns(t.Context(), &controllerv1.ListRunsRequest{}, grpc.Header(&header))
	reason, values := client.Reason(err)
	if status.Code(err) != codes.Internal || reason != errorv1.Reason_REASON_INTERNAL {
		t.Fatalf("got %v with %v, want Internal", err, reason)
	}
	id := values["request_id"]
	if !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(id) {
		t.Errorf("request ID %q", id)
	}
	want := "a defect of Phoenix; the controller's log has the details under request_id " + id
	if got := status.Convert(err).Message(); got != want {
		t.Errorf("got message %q, want %q", got, want)
	}
	f.stop()
	if log := f.log.String(); !strings.Contains(log, "request_id="+id) || !strings.Contains(log, "goroutine ") {
		t.Errorf("the log lacks the request ID or the stack:\n%s", log)
	}
}

func TestLogLine(t *testing.T) {
	f := start(t, "")
	if _, err := f.Fleet.ValidateFleet(t.Context(), &controllerv1.ValidateFleetRequest{Name: "x", Content: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	_, err := f.Runs.ListRuns(t.Context(), &controllerv1.ListRunsRequest{Limit: -1})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	f.stop()
	lines := strings.Split(strings.TrimSpace(f.log.String()), "\n")
	want := []string{
		`^time=\S+ level=INFO msg=rpc method=/phoenix.controller.v1.FleetService/ValidateFleet request_id=[0-9a-f]{16} peer=ann address=127.0.0.1:\d+ code=OK took=\S+$`,
		`^time=\S+ level=INFO msg=rpc method=/phoenix.controller.v1.RunService/ListRuns request_id=[0-9a-f]{16} peer=ann address=127.0.0.1:\d+ code=InvalidArgument took=\S+ err="limit: -1 is out of range; 1 to 1000"$`,
	}
	if len(lines) != len(want) {
		t.Fatalf("got %d lines, want %d:\n%s", len(lines), len(want), f.log)
	}
	for i := range want {
		if !regexp.MustCompile(want[i]).MatchString(lines[i]) {
			t.Errorf("got  %s\nwant %s", lines[i], want[i])
		}
	}
}

// A server that is told to stop before it has begun just stops.
func TestStopAtOnce(t *testing.T) {
	ca := pkitest.NewCA(t, "test CA")
	own := load(t, ca.Issue(t, pkitest.Leaf{Name: client.ServerName}), pki.Serve)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := server.New(server.API{}, own.Server()).Serve(ctx, l, time.Second); err != nil {
			t.Fatal(err)
		}
	}
}
