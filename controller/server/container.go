package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"

	"phoenix.internal/controller/node"
)

// containerService passes calls on to the agent of the container's node.
type containerService struct {
	API
	controllerv1.UnimplementedContainerServiceServer
}

func (s *containerService) ListContainers(ctx context.Context, req *controllerv1.ListContainersRequest) (*controllerv1.ListContainersResponse, error) {
	found, unreachable, err := s.containers(ctx, req.GetNode())
	if err != nil {
		return nil, err
	}
	return &controllerv1.ListContainersResponse{Containers: found, Unreachable: unreachable}, nil
}

func (s *containerService) find(ctx context.Context, ctid int32) (*node.Node, error) {
	if err := checkCTID(ctid); err != nil {
		return nil, err
	}
	return s.Nodes.Find(ctx, ctid)
}

func (s *containerService) GetContainer(ctx context.Context, req *controllerv1.GetContainerRequest) (*controllerv1.GetContainerResponse, error) {
	n, err := s.find(ctx, req.GetCtid())
	if err != nil {
		return nil, err
	}
	resp, err := n.Containers().GetContainer(ctx, &agentv1.GetContainerRequest{
		Ctid: req.GetCtid(), IncludeEffectiveEntries: req.GetIncludeEffectiveEntries(),
	})
	if err != nil {
		return nil, err
	}
	return &controllerv1.GetContainerResponse{
		Container: resp.GetContainer(), Conf: resp.GetConf(), Entries: resp.GetEntries(), Snapshots: resp.GetSnapshots(),
		Pending: resp.GetPending(), EffectiveEntries: resp.GetEffectiveEntries(),
	}, nil
}

func (s *containerService) ListRevisions(ctx context.Context, req *controllerv1.ListRevisionsRequest) (*controllerv1.ListRevisionsResponse, error) {
	n, err := s.find(ctx, req.GetCtid())
	if err != nil {
		return nil, err
	}
	resp, err := n.Containers().ListRevisions(ctx, &agentv1.ListRevisionsRequest{Ctid: req.GetCtid()})
	if err != nil {
		return nil, err
	}
	return &controllerv1.ListRevisionsResponse{Revisions: resp.GetRevisions()}, nil
}

func (s *containerService) GetRevision(ctx context.Context, req *controllerv1.GetRevisionRequest) (*controllerv1.GetRevisionResponse, error) {
	n, err := s.find(ctx, req.GetCtid())
	if err != nil {
		return nil, err
	}
	resp, err := n.Containers().GetRevision(ctx, &agentv1.GetRevisionRequest{Ctid: req.GetCtid(), Revision: req.GetRevision()})
	if err != nil {
		return nil, err
	}
	return &controllerv1.GetRevisionResponse{Revision: resp.GetRevision(), Conf: resp.GetConf()}, nil
}

func (s *containerService) RestoreRevision(ctx context.Context, req *controllerv1.RestoreRevisionRequest) (*controllerv1.RestoreRevisionResponse, error) {
	n, err := s.find(ctx, req.GetCtid())
	if err != nil {
		return nil, err
	}
	resp, err := n.Containers().RestoreRevision(ctx, &agentv1.RestoreRevisionRequest{
		Ctid: req.GetCtid(), Revision: req.GetRevision(), Digest: req.GetDigest(), DryRun: req.GetDryRun(),
		RequestId: requestName(ctx), OnBehalfOf: node.OnBehalfOf(callerOf(ctx).who),
	})
	if err != nil {
		return nil, err
	}
	return &controllerv1.RestoreRevisionResponse{Before: resp.GetBefore(), After: resp.GetAfter(), Digest: resp.GetDigest()}, nil
}

func (s *containerService) Restart(req *controllerv1.RestartRequest, down controllerv1.ContainerService_RestartServer) error {
	ctx, cancel := context.WithTimeout(down.Context(), restartStreamTimeout)
	defer cancel()
	n, err := s.find(ctx, req.GetCtid())
	if err != nil {
		return err
	}
	up, err := n.Containers().Restart(ctx, &agentv1.RestartRequest{
		Ctid: req.GetCtid(), Timeout: req.GetTimeout(), NoForce: req.GetNoForce(),
		RequestId: requestName(ctx), OnBehalfOf: node.OnBehalfOf(callerOf(ctx).who),
	})
	if err != nil {
		return err
	}
	return relay(up.Recv, down.Send, func(m *agentv1.RestartResponse) *controllerv1.RestartResponse {
		return &controllerv1.RestartResponse{Progress: m.GetProgress()}
	})
}

func (s *containerService) Probe(ctx context.Context, req *controllerv1.ProbeRequest) (*controllerv1.ProbeResponse, error) {
	n, err := s.find(ctx, req.GetCtid())
	if err != nil {
		return nil, err
	}
	resp, err := n.Containers().Probe(ctx, &agentv1.ProbeRequest{Ctid: req.GetCtid()})
	if err != nil {
		return nil, err
	}
	return &controllerv1.ProbeResponse{Results: resp.GetResults(), Node: n.Name()}, nil
}

// Exec passes messages both ways, one at a time in each direction, so that flow control reaches from the command to
// the caller and back, and nothing is buffered here.
func (s *containerService) Exec(down controllerv1.ContainerService_ExecServer) error {
	first, err := receiveStart(down.Recv, func(r *controllerv1.ExecRequest) bool { return r.GetInput().GetStart() != nil })
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	n, err := s.find(ctx, first.GetInput().GetStart().GetCtid())
	if err != nil {
		return err
	}
	up, err := n.Exec().Exec(ctx)
	if err != nil {
		return err
	}
	// Nobody can wait for this goroutine before the answer is given: its Recv returns when Exec itself has, because
	// the stream's context ends then.
	go func() {
		if err := forwardInput(up, first, down); err != nil {
			cancel() // the caller is gone; the other direction ends with that
		}
	}()
	return relay(up.Recv, down.Send, func(m *agentv1.ExecResponse) *controllerv1.ExecResponse {
		return &controllerv1.ExecResponse{Output: m.GetOutput()}
	})
}

// receiveStart returns the first message of a stream, which must be a start and come in time.
func receiveStart[M any](recv func() (M, error), isStart func(M) bool) (first M, err error) {
	received := make(chan struct{})
	var m M
	var recvErr error
	go func() { // ends with the handler at the latest
		defer close(received)
		m, recvErr = recv()
	}()
	late := time.NewTimer(startWait)
	defer late.Stop()
	select {
	case <-received:
	case <-late.C:
		return first, &FieldError{Field: "input.start", Message: fmt.Sprintf("it did not come within %v", startWait)}
	}
	switch {
	case errors.Is(recvErr, io.EOF):
		return first, &FieldError{Field: "input.start", Message: "the stream ended before it"}
	case recvErr != nil:
		return first, recvErr
	case !isStart(m):
		return first, &FieldError{Field: "input.start", Message: "it must be the first message"}
	}
	return m, nil
}

// relay sends what it receives until that ends.
func relay[In, Out any](recv func() (In, error), send func(Out) error, of func(In) Out) error {
	for {
		in, err := recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := send(of(in)); err != nil {
			return err
		}
	}
}

// forwardInput sends first and then what the caller sends, half-close included. The error is about the caller: if the
// agent ends the stream, its status is found by Recv.
func forwardInput(up agentv1.ExecService_ExecClient, first *controllerv1.ExecRequest, down controllerv1.ContainerService_ExecServer) error {
	for in := first; ; {
		if err := up.Send(&agentv1.ExecRequest{Input: in.GetInput()}); err != nil {
			return nil
		}
		var err error
		in, err = down.Recv()
		switch {
		case errors.Is(err, io.EOF):
			_ = up.CloseSend() // always nil
			return nil
		case err != nil:
			return err
		}
	}
}

// requestName names a call of ours in the agent's log and revisions.
func requestName(ctx context.Context) string { return "controller " + callerOf(ctx).requestID }
