// Package server is the agent's gRPC API: it checks requests, calls the packages that do the work, and converts
// their values and errors. Nothing else in the agent sees generated types.
package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpchealth "google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/driver"
	"phoenix.internal/agent/health"
	"phoenix.internal/agent/probe"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
)

// Limits of the threat model, section 8.
const (
	maxReceiveBytes  = 1 << 20
	maxSendBytes     = 4 << 20
	maxHeaderBytes   = 16 << 10
	streamWindow     = 128 << 10
	connWindow       = 4 << 20
	handshakeTimeout = 5 * time.Second
	// One more than the interceptor lets through, so that the caller gets an answer with a reason instead of a
	// silent wait for a free stream.
	maxStreams = 64
)

// A Prober opens devices from inside a container.
type Prober interface {
	Probe(ctx context.Context, ctid int32, devices []probe.Device) ([]probe.Result, error)
}

// An Attacher starts processes inside containers.
type Attacher interface {
	Start(ctx context.Context, c attach.Command) (*attach.Process, error)
}

// A Node is what the API serves. All fields must be set.
type Node struct {
	Name       string
	Version    string // of the agent
	Started    time.Time
	Containers *container.Manager
	Prober     Prober
	Attacher   Attacher
	Files      Files
	Drivers    *driver.Installer
	Health     *health.Monitor
	Facts      Facts
	Log        *slog.Logger
}

// A Server serves the API of one node.
type Server struct {
	grpc   *grpc.Server
	health *grpchealth.Server
	events *events
	node   *Node
}

// New builds a server. tlsConfig must demand client certificates; see [TLS].
func New(node *Node, tlsConfig *tls.Config) *Server {
	limit := newStreamLimit(maxStreams - 1)
	s := &Server{
		node: node,
		grpc: grpc.NewServer(
			grpc.Creds(credentials.NewTLS(tlsConfig)),
			grpc.ConnectionTimeout(handshakeTimeout),
			grpc.MaxRecvMsgSize(maxReceiveBytes),
			grpc.MaxSendMsgSize(maxSendBytes),
			grpc.MaxHeaderListSize(maxHeaderBytes),
			grpc.MaxConcurrentStreams(maxStreams),
			grpc.StaticStreamWindowSize(streamWindow),
			grpc.StaticConnWindowSize(connWindow),
			grpc.KeepaliveParams(keepalive.ServerParameters{
				MaxConnectionIdle: 15 * time.Minute,
				MaxConnectionAge:  time.Hour, // calls under way go on; new ones meet the certificates of the day
				Time:              30 * time.Second,
				Timeout:           10 * time.Second,
			}),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 20 * time.Second, PermitWithoutStream: true}),
			grpc.ChainUnaryInterceptor(unaryLog(node.Log), limit.unary),
			grpc.ChainStreamInterceptor(streamLog(node.Log), limit.stream),
		),
		health: grpchealth.NewServer(),
		events: newEvents(node),
	}
	agentv1.RegisterNodeServiceServer(s.grpc, &nodeServer{node: node, events: s.events})
	agentv1.RegisterDeviceServiceServer(s.grpc, &deviceServer{node: node})
	agentv1.RegisterContainerServiceServer(s.grpc, newContainerServer(node))
	execs := newExecServer(node)
	agentv1.RegisterExecServiceServer(s.grpc, execs)
	agentv1.RegisterFileServiceServer(s.grpc, &fileServer{node: node, execs: execs})
	agentv1.RegisterDriverServiceServer(s.grpc, &driverServer{node: node, execs: execs})
	healthv1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, healthv1.HealthCheckResponse_SERVING)
	}
	return s
}

// Serve serves until ctx ends; calls that are under way then have drainTimeout to finish. Restarts are not broken off.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	watchCtx, stopWatching := context.WithCancel(ctx)
	var watches sync.WaitGroup
	watches.Go(func() { s.events.run(watchCtx) })
	watches.Go(func() { s.watchHealth(watchCtx) })
	watches.Go(func() {
		if err := s.node.Health.Run(watchCtx); err != nil {
			s.node.Log.Error("errors of GPUs are not seen", "err", err)
		}
	})
	defer func() {
		stopWatching()
		watches.Wait()
	}()
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.drain()
	})
	err := s.grpc.Serve(limitConns(lis, s.node.Log))
	if !stop() {
		<-stopped // Serve returns as soon as the drain begins
		return nil
	}
	return err
}

const drainTimeout = 20 * time.Second

func (s *Server) drain() {
	s.health.Shutdown()
	s.events.close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-time.After(drainTimeout):
		s.node.Log.Warn("calls still under way are ended", "after", drainTimeout)
		s.grpc.Stop()
		<-done
	}
}
