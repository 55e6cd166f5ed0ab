package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"phoenix.internal/controller/pki"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
)

// domain is that of the ErrorInfo which Phoenix sends (error.proto).
const domain = "phoenix.internal"

// A Reason is why a call failed.
type Reason = errorv1.Reason

// The reasons that callers in the controller branch on.
const (
	ContainerNotFound         = errorv1.Reason_REASON_CONTAINER_NOT_FOUND
	ContainerNotRunning       = errorv1.Reason_REASON_CONTAINER_NOT_RUNNING
	ContainerLocked           = errorv1.Reason_REASON_CONTAINER_LOCKED
	ContainerStopping         = errorv1.Reason_REASON_CONTAINER_STOPPING
	InstanceChanged           = errorv1.Reason_REASON_INSTANCE_CHANGED
	DigestMismatch            = errorv1.Reason_REASON_DIGEST_MISMATCH
	ConfLockTimeout           = errorv1.Reason_REASON_CONF_LOCK_TIMEOUT
	NoQuorum                  = errorv1.Reason_REASON_NO_QUORUM
	ConfFSUnavailable         = errorv1.Reason_REASON_CONF_FS_UNAVAILABLE
	GPUNotFound               = errorv1.Reason_REASON_GPU_NOT_FOUND
	InstallerNotCached        = errorv1.Reason_REASON_INSTALLER_NOT_CACHED
	InstallerUnavailable      = errorv1.Reason_REASON_INSTALLER_UNAVAILABLE
	InstallerSourceNotAllowed = errorv1.Reason_REASON_INSTALLER_SOURCE_NOT_ALLOWED
	InstallerChecksumMismatch = errorv1.Reason_REASON_INSTALLER_CHECKSUM_MISMATCH
	LibcNotSupported          = errorv1.Reason_REASON_LIBC_NOT_SUPPORTED
	DriverPackaged            = errorv1.Reason_REASON_DRIVER_PACKAGED
	ContainerTooSmall         = errorv1.Reason_REASON_CONTAINER_TOO_SMALL
	GPUBoundElsewhere         = errorv1.Reason_REASON_GPU_BOUND_ELSEWHERE
	DriverNotLoaded           = errorv1.Reason_REASON_DRIVER_NOT_LOADED
	DeviceNodeMissing         = errorv1.Reason_REASON_DEVICE_NODE_MISSING
	StopTimeout               = errorv1.Reason_REASON_STOP_TIMEOUT
	StartFailed               = errorv1.Reason_REASON_START_FAILED
	StartRolledBack           = errorv1.Reason_REASON_START_ROLLED_BACK
	PctFailed                 = errorv1.Reason_REASON_PCT_FAILED
	HAPending                 = errorv1.Reason_REASON_HA_PENDING
	HARefused                 = errorv1.Reason_REASON_HA_REFUSED
	HookFailed                = errorv1.Reason_REASON_HOOK_FAILED
	InitDied                  = errorv1.Reason_REASON_INIT_DIED
	AttachFailed              = errorv1.Reason_REASON_ATTACH_FAILED
	LimitExceeded             = errorv1.Reason_REASON_LIMIT_EXCEEDED
	Unreachable               = errorv1.Reason_REASON_NODE_UNREACHABLE
	ShuttingDown              = errorv1.Reason_REASON_SHUTTING_DOWN
)

// An Error is a call to an agent that failed. It is also a gRPC status, so that a server may pass it on as it is.
type Error struct {
	Node, Address string
	Code          codes.Code
	Reason        Reason // unspecified if neither the agent nor the connection told one
	Message       string // the agent's, or what is wrong with the connection and what to do
	Metadata      map[string]string
	cause         error // context.Canceled or DeadlineExceeded, or nil
}

func (e *Error) Error() string { return fmt.Sprintf("node %s: %s", e.Node, e.Message) }

func (e *Error) Unwrap() error { return e.cause }

// ReasonName returns the reason's name without prefix, as it travels: "DIGEST_MISMATCH"; empty if there is none.
func (e *Error) ReasonName() string { return ReasonName(e.Reason) }

// ReasonName returns the name of r without prefix; empty for the unspecified one.
func ReasonName(r Reason) string {
	if r == errorv1.Reason_REASON_UNSPECIFIED {
		return ""
	}
	return strings.TrimPrefix(r.String(), "REASON_")
}

// GRPCStatus returns the status with its ErrorInfo.
func (e *Error) GRPCStatus() *status.Status {
	s := status.New(e.Code, e.Error())
	if e.Reason == errorv1.Reason_REASON_UNSPECIFIED {
		return s
	}
	with, err := s.WithDetails(&errdetails.ErrorInfo{Reason: e.ReasonName(), Domain: domain, Metadata: e.Metadata})
	if err != nil {
		return s
	}
	return with
}

// ReasonOf returns the reason of the first [*Error] in err's tree; unspecified if there is none.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return errorv1.Reason_REASON_UNSPECIFIED
}

// wrap makes an [*Error] of what a call returned. nil and io.EOF, the end of a stream, stay.
func (n *Node) wrap(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	s := status.Convert(err)
	e := &Error{Node: n.name, Address: n.address, Code: s.Code(), Message: s.Message()}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			// A reason that this controller does not know yet stays unspecified; code and message still tell.
			e.Reason = Reason(errorv1.Reason_value["REASON_"+info.GetReason()])
			e.Metadata = maps.Clone(info.GetMetadata())
			return e
		}
	}
	switch e.Code {
	case codes.Internal, codes.Unknown, codes.ResourceExhausted, codes.DataLoss: // grpc's own, there or here
		e.Message = fmt.Sprintf("the agent at %s gave no proper answer; look at its log: journalctl -u phoenix-agent (%s)", n.address, e.Message)
	case codes.Unimplemented:
		e.Message = fmt.Sprintf("the agent at %s does not know this call; install the same version there and here (%s)", n.address, e.Message)
	case codes.Canceled:
		e.cause = context.Canceled
		e.Message = "the call was canceled"
	case codes.DeadlineExceeded:
		e.cause = context.DeadlineExceeded
		e.unreachable(fmt.Sprintf("the agent at %s did not answer in time; look at its log: journalctl -u phoenix-agent", n.address))
	case codes.Unavailable:
		e.unreachable(advice(n, e.Message))
	}
	return e
}

func (e *Error) unreachable(message string) {
	e.Reason = Unreachable
	e.Message = message
	e.Metadata = map[string]string{"node": e.Node, "address": e.Address}
}

// advice makes grpc's words about a connection readable.
func advice(n *Node, text string) string {
	text = pki.Cause(text)
	hint := pki.Explain(text, "the agent", n.serverName)
	switch {
	case hint != "":
	case strings.Contains(text, "connection refused"):
		hint = "nothing listens there; is phoenix-agent running? systemctl status phoenix-agent"
	case strings.Contains(text, "no such host"), strings.Contains(text, "server misbehaving"):
		hint = "the name is not known; check the node's address in the configuration"
	case strings.Contains(text, "no route to host"), strings.Contains(text, "network is unreachable"),
		strings.Contains(text, "i/o timeout"), strings.Contains(text, "context deadline exceeded"):
		hint = "there is no answer from this address; check the network, and that the host is up"
	case strings.Contains(text, "broken pipe"), strings.Contains(text, "connection reset"), strings.Contains(text, "EOF"):
		// In TLS 1.3 a server looks at our certificate after the client's side is done, so its alert may be overtaken by
		// the end of the connection.
		hint = "the connection was closed; is the agent being restarted, or does it refuse our certificate? journalctl -u phoenix-agent"
	default:
		hint = "the connection was lost"
	}
	return fmt.Sprintf("the agent at %s cannot be reached: %s (%s)", n.address, hint, text)
}

func (n *Node) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	n.tryAgain(ctx)
	if err := invoke(ctx, method, req, reply, conn, opts...); err != nil {
		return n.wrap(err)
	}
	return n.checkName(reply)
}

// checkName makes sure that an answer is from our node: its certificate may be good for several names. Names of hosts
// are compared without regard to case. Whoever changes a node has asked it one of these questions first.
func (n *Node) checkName(reply any) error {
	var name string
	switch r := reply.(type) {
	case *agentv1.GetNodeResponse:
		name = r.GetNode().GetName()
	case *agentv1.ListDevicesResponse:
		name = r.GetDevices().GetNode()
	case *agentv1.ListContainersResponse:
		if cs := r.GetContainers(); len(cs) > 0 {
			name = cs[0].GetNode()
		}
	case *agentv1.GetContainerResponse:
		name = r.GetContainer().GetNode()
	}
	if name == "" || strings.EqualFold(name, n.name) {
		return nil
	}
	e := &Error{Node: n.name, Address: n.address, Code: codes.Unavailable}
	e.unreachable(fmt.Sprintf(`the agent at %s is that of node %q; correct name and address of the node in our configuration, or "node" in the agent's`,
		n.address, name))
	return e
}

func (n *Node) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	n.tryAgain(ctx)
	s, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, n.wrap(err)
	}
	return &stream{ClientStream: s, node: n}, nil
}

// A stream makes an [*Error] of what its methods return.
type stream struct {
	grpc.ClientStream
	node *Node
}

func (s *stream) SendMsg(m any) error { return s.node.wrap(s.ClientStream.SendMsg(m)) }
func (s *stream) RecvMsg(m any) error { return s.node.wrap(s.ClientStream.RecvMsg(m)) }
