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

func (s *containerService) GetContainer(ctx context.Context, req *controllerv1.GetContainerRequest) (*controllerv1.GetContainerResponse, error) {
	var resp *agentv1.GetContainerResponse
	err := s.on(ctx, req.GetCtid(), func(n *node.Node) (err error) {
		resp, err = n.Containers().GetContainer(ctx, &agentv1.GetContainerRequest{
			Ctid: req.GetCtid(), IncludeEffectiveEntries: req.GetIncludeEffectiveEntries(),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return &controllerv1.GetContainerResponse{
		Container: resp.GetContainer(), Conf: resp.GetConf(), Entries: resp.GetEntries(), Snapshots: resp.GetSnapshots(),
		Pending: resp.GetPending(), EffectiveEntries: resp.GetEffectiveEntries(),
	}, nil
}

// on calls do with the node that has the container; see [node.Fleet.On].
func (s API) on(ctx context.Context, ctid int32, do func(*node.Node) error) error {
	if err := checkCTID(ctid); err != nil {
		return err
	}
	return s.Nodes.On(ctx, ctid, do)
}

// find is for calls that a node answers also for a container that it has no more.
func (s *containerService) find(ctx context.Context, ctid int32) (*node.Node, error) {
	if err := checkCTID(ctid); err != nil {
		return nil, err
	}
	return s.Nodes.Find(ctx, ctid)
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
	recv, err := answered(ctx, s.API, req.GetCtid(), func(n *node.Node) (receiver[*agentv1.RestartResponse], error) {
		return n.Containers().Restart(ctx, &agentv1.RestartRequest{
			Ctid: req.GetCtid(), Timeout: req.GetTimeout(), NoForce: req.GetNoForce(),
			RequestId: requestName(ctx), OnBehalfOf: node.OnBehalfOf(callerOf(ctx).who),
		})
	})
	if err != nil {
		return err
	}
	return relay(recv, down.Send, func(m *agentv1.RestartResponse) *controllerv1.RestartResponse {
		return &controllerv1.RestartResponse{Progress: m.GetProgress()}
	})
}

func (s *containerService) Probe(ctx context.Context, req *controllerv1.ProbeRequest) (*controllerv1.ProbeResponse, error) {
	var resp *agentv1.ProbeResponse
	var name string
	err := s.on(ctx, req.GetCtid(), func(n *node.Node) (err error) {
		name = n.Name()
		resp, err = n.Containers().Probe(ctx, &agentv1.ProbeRequest{Ctid: req.GetCtid()})
		return err
	})
	if err != nil {
		return nil, err
	}
	return &controllerv1.ProbeResponse{Results: resp.GetResults(), Node: name}, nil
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
	var up agentv1.ExecService_ExecClient
	recv, err := answered(ctx, s.API, first.GetInput().GetStart().GetCtid(), func(n *node.Node) (_ receiver[*agentv1.ExecResponse], err error) {
		if up, err = n.Exec().Exec(ctx); err == nil {
			_ = up.Send(&agentv1.ExecRequest{Input: first.GetInput()}) // Recv says why
		}
		return up, err
	})
	if err != nil {
		return err
	}
	// Nobody can wait for this goroutine before the answer is given: its Recv returns when Exec itself has, because
	// the stream's context ends then.
	go func() {
		if err := forwardInput(up, down); err != nil {
			cancel() // the caller is gone; the other direction ends with that
		}
	}()
	return relay(recv, down.Send, func(m *agentv1.ExecResponse) *controllerv1.ExecResponse {
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

// A receiver is a stream of answers from an agent.
type receiver[M any] interface{ Recv() (M, error) }

// answered opens a stream to the agent of the container's node and waits for its first answer, which is the first that
// recv returns. What open sends may be sent to two nodes: one that has the container no more answers nothing else.
func answered[M any](ctx context.Context, api API, ctid int32, open func(*node.Node) (receiver[M], error)) (recv func() (M, error), err error) {
	err = api.on(ctx, ctid, func(n *node.Node) error {
		up, err := open(n)
		if err != nil {
			return err
		}
		first, err := up.Recv()
		begun := false
		recv = func() (M, error) {
			if !begun {
				begun = true
				return first, err
			}
			return up.Recv()
		}
		if errors.Is(err, io.EOF) {
			return nil // for who calls recv
		}
		return err
	})
	return recv, err
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

// forwardInput sends what the caller sends, half-close included. The error is about the caller: if the agent ends the
// stream, its status is found by Recv.
func forwardInput(up agentv1.ExecService_ExecClient, down controllerv1.ContainerService_ExecServer) error {
	for {
		in, err := down.Recv()
		switch {
		case errors.Is(err, io.EOF):
			_ = up.CloseSend() // always nil
			return nil
		case err != nil:
			return err
		}
		if err := up.Send(&agentv1.ExecRequest{Input: in.GetInput()}); err != nil {
			return nil
		}
	}
}

// requestName names a call of ours in the agent's log and revisions.
func requestName(ctx context.Context) string { return "controller " + callerOf(ctx).requestID }
