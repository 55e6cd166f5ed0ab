package server

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/driver"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pct"
	"phoenix.internal/agent/probe"
	"phoenix.internal/agent/transfer"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
)

// errorDomain is the domain of every ErrorInfo.
const errorDomain = "phoenix.internal"

// withReason makes a status with an ErrorInfo.
func withReason(code codes.Code, reason errorv1.Reason, message string, metadata map[string]string) error {
	st := status.New(code, bounded(text(message)))
	for key, value := range metadata {
		metadata[key] = bounded(text(value)) // protobuf refuses what is not UTF-8, and the reason would be lost
	}
	detailed, err := st.WithDetails(&errdetails.ErrorInfo{
		Reason:   strings.TrimPrefix(reason.String(), "REASON_"),
		Domain:   errorDomain,
		Metadata: metadata,
	})
	if err != nil { // only for code OK
		return st.Err()
	}
	return detailed.Err()
}

// bounded keeps a message well below the limit for headers, in which statuses travel.
func bounded(message string) string {
	const most = 2000
	if len(message) <= most {
		return message
	}
	return strings.ToValidUTF8(message[:most], "") + " ..."
}

func internal(requestID string) error {
	return withReason(codes.Internal, errorv1.Reason_REASON_INTERNAL,
		"internal error; the agent's log has it under request "+requestID, map[string]string{"request_id": requestID})
}

// shuttingDown says that the agent stops.
func shuttingDown() error {
	return withReason(codes.Unavailable, errorv1.Reason_REASON_SHUTTING_DOWN, "the agent is stopping; it is back in a moment if it is being updated", nil)
}

// invalid says that a request's field is wrong in any state.
func invalid(field, format string, args ...any) error {
	return withReason(codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD,
		field+": "+fmt.Sprintf(format, args...), map[string]string{"field": field})
}

// ctidError gives an error that does not know it its CTID.
type ctidError struct {
	ctid int32
	err  error
}

func (e *ctidError) Error() string { return e.err.Error() }
func (e *ctidError) Unwrap() error { return e.err }

// statusOf is the one place where an error becomes a status: a case for each error that a caller can act on; the rest is
// a defect of ours and shows only the request's ID.
func statusOf(requestID string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err // made by withReason, or by grpc itself
	}
	ctid := func(id int32) map[string]string { return map[string]string{"ctid": strconv.Itoa(int(id))} }
	of := int32(0)
	if e, ok := errors.AsType[*ctidError](err); ok {
		of = e.ctid
	}
	fail := func(code codes.Code, reason errorv1.Reason, md map[string]string) error {
		return withReason(code, reason, err.Error(), md)
	}
	cause, facts := startCause(err)
	if e, ok := errors.AsType[*container.RolledBackError](err); ok {
		md := ctid(e.CTID)
		md["revision"] = strconv.FormatInt(e.Revision, 10)
		if cause != errorv1.Reason_REASON_UNSPECIFIED {
			md["cause"] = strings.TrimPrefix(cause.String(), "REASON_")
		}
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_START_ROLLED_BACK, md)
	}
	start, isStart := errors.AsType[*container.StartError](err)
	switch {
	case isStart && cause == errorv1.Reason_REASON_UNSPECIFIED:
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_START_FAILED, ctid(start.CTID))
	case cause == errorv1.Reason_REASON_HA_PENDING:
		return fail(codes.Unavailable, cause, facts)
	case cause != errorv1.Reason_REASON_UNSPECIFIED:
		return fail(codes.FailedPrecondition, cause, facts)
	}
	if e, ok := errors.AsType[*container.InstanceError](err); ok {
		md := ctid(e.CTID)
		md["instance"] = e.Got
		return fail(codes.Aborted, errorv1.Reason_REASON_INSTANCE_CHANGED, md)
	}
	if e, ok := errors.AsType[*container.NotRunningError](err); ok {
		md := ctid(e.CTID)
		md["state"] = e.State.String()
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_CONTAINER_NOT_RUNNING, md)
	}
	if e, ok := errors.AsType[*container.GPUNotFoundError](err); ok {
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_GPU_NOT_FOUND,
			map[string]string{"gpu": e.GPU, "available": strings.Join(e.Available, ",")})
	}
	if e, ok := errors.AsType[*container.GPUBoundError](err); ok {
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_GPU_BOUND_ELSEWHERE,
			map[string]string{"gpu": e.GPU, "driver": e.Driver})
	}
	if e, ok := errors.AsType[*container.PropertyError](err); ok {
		return fail(codes.InvalidArgument, errorv1.Reason_REASON_PROPERTY_NOT_ALLOWED,
			map[string]string{"key": e.Key, "value": e.Value})
	}
	if e, ok := errors.AsType[*container.OptionError](err); ok {
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_LXC_OPTION_NOT_ALLOWED,
			map[string]string{"key": e.Key, "value": e.Value})
	}
	if e, ok := errors.AsType[*confstore.DigestError](err); ok {
		md := ctid(e.CTID)
		md["digest"] = e.Got
		return fail(codes.Aborted, errorv1.Reason_REASON_DIGEST_MISMATCH, md)
	}
	if e, ok := errors.AsType[*confstore.LockedError](err); ok {
		md := ctid(e.CTID)
		md["lock"] = e.Lock
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_CONTAINER_LOCKED, md)
	}
	if e, ok := errors.AsType[*pct.LockedError](err); ok {
		md := ctid(e.CTID)
		md["lock"] = e.Lock
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_CONTAINER_LOCKED, md)
	}
	if e, ok := errors.AsType[*confstore.LockTimeoutError](err); ok {
		md := ctid(e.CTID)
		md["path"] = e.Path
		if e.HolderPID > 0 {
			md["holder_pid"] = strconv.Itoa(e.HolderPID)
		}
		return fail(codes.Unavailable, errorv1.Reason_REASON_CONF_LOCK_TIMEOUT, md)
	}
	if e, ok := errors.AsType[*confstore.StoppingError](err); ok {
		md := ctid(e.CTID)
		md["written"] = strconv.FormatBool(e.Written)
		return fail(codes.Unavailable, errorv1.Reason_REASON_CONTAINER_STOPPING, md)
	}
	if e, ok := errors.AsType[*confstore.MovedError](err); ok {
		md := ctid(e.CTID)
		md["node"] = e.Node
		return fail(codes.NotFound, errorv1.Reason_REASON_CONTAINER_NOT_FOUND, md)
	}
	if e, ok := errors.AsType[*confstore.RevisionError](err); ok {
		md := ctid(e.CTID)
		md["revision"] = strconv.FormatInt(e.Number, 10)
		return fail(codes.NotFound, errorv1.Reason_REASON_REVISION_NOT_FOUND, md)
	}
	if e, ok := errors.AsType[*gpu.NodeError](err); ok {
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_DEVICE_NODE_MISSING, map[string]string{"path": e.Path})
	}
	if e, ok := errors.AsType[*passthrough.NodeError](err); ok {
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_DEVICE_NODE_MISSING, map[string]string{"path": e.Path})
	}
	if _, ok := errors.AsType[*passthrough.CutOffError](err); ok {
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_PASSTHROUGH_IMPOSSIBLE, ctid(of))
	}
	if _, ok := errors.AsType[*passthrough.FolderError](err); ok {
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_PASSTHROUGH_IMPOSSIBLE, ctid(of))
	}
	if _, ok := errors.AsType[*container.WholeError](err); ok {
		return fail(codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "gpus"})
	}
	if e, ok := errors.AsType[*passthrough.GPUError](err); ok { // it went between two looks
		available := make([]string, len(e.Have))
		for i, minor := range e.Have {
			available[i] = "minor " + strconv.Itoa(minor)
		}
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_GPU_NOT_FOUND,
			map[string]string{"gpu": "minor " + strconv.Itoa(e.Minor), "available": strings.Join(available, ",")})
	}
	if e, ok := errors.AsType[*container.StateError](err); ok {
		return fail(codes.Unavailable, errorv1.Reason_REASON_STATE_UNAVAILABLE, map[string]string{"path": e.Path})
	}
	if e, ok := errors.AsType[*confstore.RevisionDirError](err); ok {
		return fail(codes.Unavailable, errorv1.Reason_REASON_STATE_UNAVAILABLE, map[string]string{"path": e.Path})
	}
	if e, ok := errors.AsType[*transfer.FileError](err); ok {
		md := ctid(of)
		md["path"] = e.Path
		switch e.Kind {
		case transfer.NotFound:
			return fail(codes.NotFound, errorv1.Reason_REASON_FILE_NOT_FOUND, md)
		case transfer.NoSpace:
			return fail(codes.FailedPrecondition, errorv1.Reason_REASON_FILE_NO_SPACE, md)
		case transfer.Changed:
			return fail(codes.Aborted, errorv1.Reason_REASON_FILE_CHANGED, md)
		default:
			return fail(codes.FailedPrecondition, errorv1.Reason_REASON_FILE_REFUSED, md)
		}
	}
	if reason, code, md := driverReason(err, of); md != nil {
		return fail(code, reason, md)
	}
	switch {
	case errors.Is(err, transfer.ErrBrokenOff):
		return fail(codes.Unavailable, errorv1.Reason_REASON_TRANSFER_BROKEN_OFF, ctid(of))
	case errors.Is(err, confstore.ErrNotFound), errors.Is(err, pct.ErrNotFound):
		return fail(codes.NotFound, errorv1.Reason_REASON_CONTAINER_NOT_FOUND, ctid(of))
	case errors.Is(err, confstore.ErrNoQuorum), errors.Is(err, pct.ErrNoQuorum):
		return fail(codes.Unavailable, errorv1.Reason_REASON_NO_QUORUM, nil)
	case errors.Is(err, confstore.ErrNotMounted), errors.Is(err, confstore.ErrNoAnswer), errors.Is(err, confstore.ErrBusy),
		errors.Is(err, confstore.ErrDisconnected), errors.Is(err, confstore.ErrDatabase), errors.Is(err, confstore.ErrUnconfirmed):
		return fail(codes.Unavailable, errorv1.Reason_REASON_CONF_FS_UNAVAILABLE, nil)
	case errors.Is(err, confstore.ErrTooLarge):
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_CONF_TOO_LARGE, ctid(of))
	case errors.Is(err, container.ErrTemplate), errors.Is(err, pct.ErrTemplate):
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_CONTAINER_IS_TEMPLATE, ctid(of))
	case errors.Is(err, gpu.ErrDriverNotLoaded):
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_DRIVER_NOT_LOADED, nil)
	case errors.Is(err, pct.ErrStopTimeout):
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_STOP_TIMEOUT, ctid(of))
	case errors.Is(err, passthrough.ErrNoSlot):
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_PASSTHROUGH_IMPOSSIBLE, ctid(of))
	case errors.Is(err, attach.ErrNoUser):
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_USER_NOT_FOUND, ctid(of))
	case errors.Is(err, attach.ErrNoDirectory):
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_DIRECTORY_NOT_USABLE, ctid(of))
	case errors.Is(err, attach.ErrAttach), errors.Is(err, probe.ErrProbe), errors.Is(err, driver.ErrHelper):
		return fail(codes.FailedPrecondition, errorv1.Reason_REASON_ATTACH_FAILED, ctid(of))
	}
	if e, ok := errors.AsType[*pct.Error](err); ok {
		if errors.Is(err, pct.ErrLockTimeout) {
			md := ctid(e.CTID)
			md["path"] = e.LockFile()
			return fail(codes.Unavailable, errorv1.Reason_REASON_CONF_LOCK_TIMEOUT, md)
		}
		md := ctid(e.CTID)
		md["command"] = e.Command
		return fail(codes.Unavailable, errorv1.Reason_REASON_PCT_FAILED, md)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "canceled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, bounded(err.Error()))
	}
	return internal(requestID)
}

// startCause names what keeps a container from starting, or under Proxmox's HA stack from stopping, where that calls for a
// repair of its own; unspecified otherwise.
func startCause(err error) (errorv1.Reason, map[string]string) {
	md := func(ctid int32, key, value string) map[string]string {
		return map[string]string{"ctid": strconv.Itoa(int(ctid)), key: value}
	}
	if e, ok := errors.AsType[*pct.HookError](err); ok {
		return errorv1.Reason_REASON_HOOK_FAILED, md(e.CTID, "phase", e.Phase)
	}
	if e, ok := errors.AsType[*pct.DeviceError](err); ok {
		return errorv1.Reason_REASON_DEVICE_NODE_MISSING, md(e.CTID, "path", e.Path)
	}
	if e, ok := errors.AsType[*container.DiedError](err); ok {
		return errorv1.Reason_REASON_INIT_DIED, map[string]string{"ctid": strconv.Itoa(int(e.CTID))}
	}
	if e, ok := errors.AsType[*container.HAError](err); ok {
		return errorv1.Reason_REASON_HA_PENDING, md(e.CTID, "want", e.Want.String())
	}
	if e, ok := errors.AsType[*pct.Error](err); ok && errors.Is(err, pct.ErrHA) {
		return errorv1.Reason_REASON_HA_REFUSED, md(e.CTID, "command", e.Command)
	}
	return errorv1.Reason_REASON_UNSPECIFIED, nil
}
