package server

import (
	"context"
	"crypto/rand"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	errorv1 "phoenix.internal/gen/phoenix/error/v1"
)

type requestIDKey struct{}

// requestID is the identity of the call in the log.
func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// caller is the identity in the peer's certificate: its URI, or its common name.
func caller(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return ""
	}
	cert := info.State.PeerCertificates[0]
	if len(cert.URIs) > 0 {
		return cert.URIs[0].String()
	}
	return cert.Subject.CommonName
}

func unaryLog(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
		ctx = context.WithValue(ctx, requestIDKey{}, rand.Text())
		defer observe(ctx, log, info.FullMethod, time.Now(), &err)
		return handler(ctx, req)
	}
}

func streamLog(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		ctx := context.WithValue(ss.Context(), requestIDKey{}, rand.Text())
		defer observe(ctx, log, info.FullMethod, time.Now(), &err)
		return handler(srv, &contextStream{ServerStream: ss, ctx: ctx})
	}
}

type contextStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *contextStream) Context() context.Context { return s.ctx }

// observe turns what a handler returned, or its panic, into a status, and writes the one log line of the call.
func observe(ctx context.Context, log *slog.Logger, method string, start time.Time, err *error) {
	panicked := recover()
	if panicked != nil {
		log.Error("handler panicked", "method", method, "request_id", requestID(ctx), "panic", panicked, "stack", string(debug.Stack()))
		*err = internal(requestID(ctx))
	}
	cause := *err
	*err = statusOf(requestID(ctx), cause)
	code := status.Code(*err)
	level := slog.LevelInfo
	switch {
	case code == codes.Internal || code == codes.Unknown:
		level = slog.LevelError
	case strings.HasPrefix(method, "/grpc."), isRead(method):
		level = slog.LevelDebug
	}
	attrs := []any{"method", method, "code", code.String(), "duration", time.Since(start), "peer", caller(ctx), "request_id", requestID(ctx)}
	if cause != nil {
		attrs = append(attrs, "err", cause)
	}
	log.Log(ctx, level, "rpc", attrs...)
}

// isRead says whether a method changes nothing, so that its success is worth no line of the ordinary log.
func isRead(method string) bool {
	name := method[strings.LastIndexByte(method, '/')+1:]
	return strings.HasPrefix(name, "Get") || strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Watch")
}

// A streamLimit bounds the calls under way per connection.
type streamLimit struct {
	max int
	mu  sync.Mutex
	n   map[string]int // by the peer's address
}

func newStreamLimit(max int) *streamLimit { return &streamLimit{max: max, n: make(map[string]int)} }

func (l *streamLimit) enter(ctx context.Context) (leave func(), err error) {
	addr := ""
	if p, ok := peer.FromContext(ctx); ok {
		addr = p.Addr.String()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n[addr] >= l.max {
		return nil, withReason(codes.ResourceExhausted, errorv1.Reason_REASON_LIMIT_EXCEEDED,
			"too many calls at once on one connection; wait for one to end",
			map[string]string{"limit": "streams_per_connection"})
	}
	l.n[addr]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.n[addr]--; l.n[addr] == 0 {
			delete(l.n, addr)
		}
	}, nil
}

func (l *streamLimit) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	leave, err := l.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return handler(ctx, req)
}

func (l *streamLimit) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	leave, err := l.enter(ss.Context())
	if err != nil {
		return err
	}
	defer leave()
	return handler(srv, ss)
}
