package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	errorv1 "phoenix.internal/gen/phoenix/error/v1"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/feature"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/store"
)

const domain = "phoenix.internal"

// A FieldError tells that a field of a request is missing, malformed or out of range.
type FieldError struct {
	Field, Message string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Message }

// A LimitError tells that a limit of this server is reached.
type LimitError struct {
	Limit string // what is limited
	Max   int
}

func (e *LimitError) Error() string { return fmt.Sprintf("more %s than %d", e.Limit, e.Max) }

// A RunNotFoundError tells that no run has this ID.
type RunNotFoundError struct {
	Run string
}

func (e *RunNotFoundError) Error() string {
	return fmt.Sprintf("no run %q; `phoenix-cli runs` lists them", e.Run)
}

// statusOf is the only place where a failure becomes a status. What has no case here is a defect: the caller learns
// the request ID, the log the rest.
func statusOf(err error, requestID string) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*node.Error](err); ok {
		return agentStatus(e)
	}
	if e, ok := errors.AsType[*node.NotFoundError](err); ok {
		return withReason(codes.NotFound, errorv1.Reason_REASON_CONTAINER_NOT_FOUND, err, "ctid", itoa(e.CTID))
	}
	if e, ok := errors.AsType[*node.SeveralError](err); ok {
		return withReason(codes.FailedPrecondition, errorv1.Reason_REASON_CTID_ON_SEVERAL_NODES, err,
			"ctid", itoa(e.CTID), "nodes", strings.Join(e.Nodes, ","))
	}
	if e, ok := errors.AsType[*node.UnknownError](err); ok {
		return withReason(codes.NotFound, errorv1.Reason_REASON_NODE_NOT_FOUND, err, "node", e.Name)
	}
	if e, ok := errors.AsType[*engine.FleetError](err); ok {
		return withReason(codes.FailedPrecondition, errorv1.Reason_REASON_FLEET_INVALID, shortened(e), "path", e.Path)
	}
	if e, ok := errors.AsType[*engine.UnreadableError](err); ok {
		return withReason(codes.FailedPrecondition, errorv1.Reason_REASON_FLEET_UNREADABLE, err, "path", e.Path)
	}
	if e, ok := errors.AsType[*feature.DirError](err); ok {
		return withReason(codes.FailedPrecondition, errorv1.Reason_REASON_FEATURES_UNREADABLE, err, "path", e.Dir)
	}
	if e, ok := errors.AsType[*engine.NotInFleetError](err); ok {
		return withReason(codes.NotFound, errorv1.Reason_REASON_NOT_IN_FLEET, err, "ctid", itoa(e.CTID), "path", e.Path)
	}
	if e, ok := errors.AsType[*engine.InProgressError](err); ok {
		return withReason(codes.FailedPrecondition, errorv1.Reason_REASON_RUN_IN_PROGRESS, err,
			"run", e.Run, "ctid", itoa(e.CTID))
	}
	if e, ok := errors.AsType[*RunNotFoundError](err); ok {
		return withReason(codes.NotFound, errorv1.Reason_REASON_RUN_NOT_FOUND, err, "run", e.Run)
	}
	if e, ok := errors.AsType[*store.AmbiguousError](err); ok {
		return withReason(codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, err,
			"field", "run", "prefix", e.Prefix, "runs", strings.Join(e.IDs, ","))
	}
	if e, ok := errors.AsType[*engine.RequestError](err); ok {
		return withReason(codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, err, "field", e.Field)
	}
	if e, ok := errors.AsType[*FieldError](err); ok {
		return withReason(codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, err, "field", e.Field)
	}
	if e, ok := errors.AsType[*LimitError](err); ok {
		return withReason(codes.ResourceExhausted, errorv1.Reason_REASON_LIMIT_EXCEEDED, err,
			"limit", e.Limit, "max", strconv.Itoa(e.Max))
	}
	if e, ok := errors.AsType[*store.InUseError](err); ok {
		facts := []string{"path", e.Path}
		if e.PID != 0 {
			facts = append(facts, "holder_pid", strconv.Itoa(e.PID))
		}
		return withReason(codes.Unavailable, errorv1.Reason_REASON_STATE_UNAVAILABLE, err, facts...)
	}
	if e, ok := errors.AsType[*store.UnusableError](err); ok {
		return withReason(codes.Unavailable, errorv1.Reason_REASON_STATE_UNAVAILABLE, err, "path", e.Path)
	}
	switch {
	case errors.Is(err, engine.ErrClosed):
		return withReason(codes.Unavailable, errorv1.Reason_REASON_SHUTTING_DOWN, err)
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call was canceled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call's deadline is over; ask again with a longer one")
	}
	// gRPC's own: a health check of an unknown service, a stream that its caller broke off.
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return err
	}
	return withReason(codes.Internal, errorv1.Reason_REASON_INTERNAL,
		fmt.Errorf("a defect of Phoenix; the controller's log has the details under request_id %s", requestID),
		"request_id", requestID)
}

// agentStatus passes on what an agent, or the connection to it, answered, and names the node.
func agentStatus(e *node.Error) error {
	if e.Reason == errorv1.Reason_REASON_UNSPECIFIED {
		return status.Error(e.Code, e.Error())
	}
	metadata := map[string]string{"node": e.Node}
	maps.Copy(metadata, e.Metadata)
	return withMetadata(e.Code, e.Reason, e, metadata)
}

func withReason(code codes.Code, r errorv1.Reason, err error, keysAndValues ...string) error {
	metadata := map[string]string{}
	for i := 0; i < len(keysAndValues); i += 2 {
		metadata[keysAndValues[i]] = keysAndValues[i+1]
	}
	return withMetadata(code, r, err, metadata)
}

func withMetadata(code codes.Code, r errorv1.Reason, err error, metadata map[string]string) error {
	metadata = maps.Clone(metadata)
	for key, value := range metadata {
		metadata[key] = bounded(value, maxValueInStatus)
	}
	s, detailErr := status.New(code, bounded(err.Error(), maxTextInStatus)).WithDetails(&errdetails.ErrorInfo{
		Reason: node.ReasonName(r), Domain: domain, Metadata: metadata,
	})
	if detailErr != nil { // only if a value is not UTF-8
		return status.Error(code, err.Error())
	}
	return s.Err()
}

// These keep a status, which travels as a header, short.
const (
	maxFindingsInStatus = 20
	maxTextInStatus     = 8 << 10
	maxValueInStatus    = 1 << 10
)

// bounded returns the beginning of a text, in UTF-8.
func bounded(text string, most int) string {
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + " ..."
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

func shortened(e *engine.FleetError) error {
	more := len(e.Findings) - maxFindingsInStatus
	if more <= 0 {
		return e
	}
	short := &engine.FleetError{Path: e.Path, Findings: e.Findings[:maxFindingsInStatus]}
	return fmt.Errorf("%w\nand %d more; `phoenix-cli validate` lists them all", short, more)
}

func itoa(n int32) string { return strconv.Itoa(int(n)) }
