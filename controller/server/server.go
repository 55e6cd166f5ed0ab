// Package server is the controller's API over gRPC: the services of phoenix.controller.v1 on top of planning, engine
// and nodes, and what stands around every call.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

// A Server answers calls until it is told to stop.
type Server struct {
	grpc   *grpc.Server
	health *health.Server
	stop   context.CancelFunc // ends the streams that only watch
}

// New returns a server for the network: every caller needs a certificate that settings accept, and is known by the
// name in it.
func New(api API, settings *tls.Config) *Server {
	return newServer(api, "", grpc.Creds(credentials.NewTLS(settings)))
}

// NewLocal returns a server for a pipe inside one process, so there is no transport security; who names its user. It
// must not be given a network listener.
func NewLocal(api API, who string) *Server {
	return newServer(api, who)
}

func newServer(api API, who string, options ...grpc.ServerOption) *Server {
	log := api.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	stopping, stop := context.WithCancel(context.Background())
	g := guard{log: log, who: who, stopping: stopping}
	options = append(options,
		grpc.UnaryInterceptor(g.unary),
		grpc.StreamInterceptor(g.stream),
		grpc.StatsHandler(streamCounter{}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(maxStreams+1), // see streamCounter
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxRecvMsgSize(maxFleetBytes+64<<10), // see checkSize
		grpc.MaxSendMsgSize(maxSendBytes),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: maxConnectionIdle,
			MaxConnectionAge:  maxConnectionAge,
			Time:              keepaliveTime,
			Timeout:           keepaliveTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinTime, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	s := &Server{grpc: grpc.NewServer(options...), health: health.NewServer(), stop: stop}

	controllerv1.RegisterFleetServiceServer(s.grpc, &fleetService{API: api})
	controllerv1.RegisterRunServiceServer(s.grpc, &runService{API: api, stopping: stopping})
	controllerv1.RegisterNodeServiceServer(s.grpc, &nodeService{API: api})
	controllerv1.RegisterContainerServiceServer(s.grpc, &containerService{API: api})
	controllerv1.RegisterFileServiceServer(s.grpc, &fileService{API: api})
	controllerv1.RegisterDoctorServiceServer(s.grpc, &doctorService{API: api})
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	for name := range s.grpc.GetServiceInfo() {
		s.health.SetServingStatus(name, grpc_health_v1.HealthCheckResponse_SERVING)
	}
	return s
}

// Serve answers the calls of l until ctx is done. Then it reports itself as not serving, ends the streams that only
// watch, and gives the other calls the time of grace before it breaks them off. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener, grace time.Duration) error {
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	s.health.Shutdown()
	s.stop()
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.grpc.GracefulStop()
	}()
	select {
	case <-graceful:
	case <-time.After(grace):
		s.grpc.Stop()
		<-graceful
	}
	if err := <-served; !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
		return err
	}
	return nil
}
