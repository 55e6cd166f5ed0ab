package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/pki"
)

// A caller is who makes a call, and the name of the call in the log.
type caller struct {
	who       string // identity in the certificate, or the user's name in the CLI's own process
	address   string
	requestID string
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// A guard stands around every call: it names the caller, bounds the call, survives a panic, turns the error into a
// status and writes the call's one line of log.
type guard struct {
	log *slog.Logger
	who string // of callers without a certificate; only in the CLI's own process
	// stopping is done when the server stops.
	stopping context.Context
}

func (g guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
	err = g.around(ctx, info.FullMethod, func(ctx context.Context) error {
		if err := checkSize(info.FullMethod, req); err != nil {
			return err
		}
		timeout := maxUnaryTimeout
		if _, ok := ctx.Deadline(); !ok {
			timeout = unaryTimeout
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if resp, err = h(ctx, req); err != nil {
			return err
		}
		return checkAnswer(resp)
	})
	return resp, err
}

func (g guard) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	return g.around(s.Context(), info.FullMethod, func(ctx context.Context) error {
		if strings.HasPrefix(info.FullMethod, grpcOwn) {
			return g.untilStop(ctx, func(ctx context.Context) error {
				return h(srv, &guardedStream{ServerStream: s, ctx: ctx, method: info.FullMethod})
			})
		}
		return h(srv, &guardedStream{ServerStream: s, ctx: ctx, method: info.FullMethod})
	})
}

// grpcOwn begins the methods for health checks and reflection.
const grpcOwn = "/grpc."

// untilStop ends a watch over the health soon after it could tell that the server stops, which it would hold up.
func (g guard) untilStop(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.stopping, func() {
		select {
		case <-time.After(lastWord):
			cancel()
		case <-ctx.Done():
		}
	})()
	err := call(ctx)
	if err != nil && g.stopping.Err() != nil {
		return engine.ErrClosed
	}
	return err
}

type guardedStream struct {
	grpc.ServerStream
	ctx    context.Context
	method string
}

func (s *guardedStream) Context() context.Context { return s.ctx }

func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return checkSize(s.method, m)
}

func (s *guardedStream) SendMsg(m any) error {
	if err := checkAnswer(m); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

func (g guard) around(ctx context.Context, method string, call func(context.Context) error) (err error) {
	c := g.caller(ctx)
	ctx = context.WithValue(ctx, callerKey{}, c)
	start := time.Now()
	defer func() {
		if r := recover(); r != nil {
			g.log.LogAttrs(ctx, slog.LevelError, "panic in a call", slog.String("method", method),
				slog.String("request_id", c.requestID), slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
			err = fmt.Errorf("panic: %v", r)
		}
		cause := err
		err = statusOf(cause, c.requestID)
		g.line(ctx, method, c, time.Since(start), status.Code(err), cause)
	}()
	leave, ok := enter(ctx)
	if !ok {
		return &LimitError{Limit: "streams per connection", Max: maxStreams}
	}
	defer leave()
	// The header cannot fail here: nothing was sent yet.
	_ = grpc.SetHeader(ctx, metadata.Pairs("request-id", c.requestID))
	return call(ctx)
}

func (g guard) caller(ctx context.Context) caller {
	var id [8]byte
	rand.Read(id[:]) //nolint:errcheck // never fails
	c := caller{who: g.who, requestID: hex.EncodeToString(id[:])}
	if p, ok := peer.FromContext(ctx); ok {
		c.address = p.Addr.String()
		if t, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(t.State.PeerCertificates) > 0 {
			c.who = pki.Identity(t.State.PeerCertificates[0])
		}
	}
	return c
}

func (g guard) line(ctx context.Context, method string, c caller, took time.Duration, code codes.Code, err error) {
	level := slog.LevelInfo
	switch {
	case code == codes.Internal || code == codes.Unknown || code == codes.DataLoss:
		level = slog.LevelError
	case code == codes.Unavailable || code == codes.ResourceExhausted || code == codes.DeadlineExceeded:
		level = slog.LevelWarn
	case strings.HasPrefix(method, grpcOwn): // asked often
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("request_id", c.requestID), slog.String("peer", c.who),
		slog.String("address", c.address), slog.String("code", code.String()), slog.Duration("took", took),
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	g.log.LogAttrs(ctx, level, "rpc", attrs...)
}

// checkSize holds every message but an uploaded fleet file to the smaller limit; the transport knows only one.
func checkSize(method string, m any) error {
	if method == controllerv1.FleetService_ValidateFleet_FullMethodName {
		return nil
	}
	if m, ok := m.(proto.Message); ok && proto.Size(m) > maxReceiveBytes {
		return &LimitError{Limit: "bytes in a message", Max: maxReceiveBytes}
	}
	return nil
}

// checkAnswer refuses what the transport would refuse without a reason.
func checkAnswer(m any) error {
	if m, ok := m.(proto.Message); ok && proto.Size(m) > maxSendBytes {
		return &LimitError{Limit: "bytes in the answer", Max: maxSendBytes}
	}
	return nil
}
