package server

import (
	"context"
	"errors"
	"io"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"

	"phoenix.internal/controller/node"
)

// fileService passes files on between callers and the agent of the container's node, one message at a time in each
// direction, as Exec does.
type fileService struct {
	API
	controllerv1.UnimplementedFileServiceServer
}

func (s *fileService) Push(down controllerv1.FileService_PushServer) error {
	first, err := receiveStart(down.Recv, func(r *controllerv1.PushRequest) bool { return r.GetInput().GetStart() != nil })
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	var up agentv1.FileService_PushClient
	recv, err := answered(ctx, s.API, first.GetInput().GetStart().GetCtid(), func(n *node.Node) (_ receiver[*agentv1.PushResponse], err error) {
		if up, err = n.Files().Push(ctx); err == nil {
			_ = up.Send(&agentv1.PushRequest{Input: first.GetInput()}) // Recv says why
		}
		return up, err
	})
	if err != nil {
		return err
	}
	// It ends when Push itself has, at the latest: see Exec.
	go func() {
		if err := forwardFile(up, down); err != nil {
			cancel() // the caller is gone
		}
	}()
	return relay(recv, down.Send, func(m *agentv1.PushResponse) *controllerv1.PushResponse {
		return &controllerv1.PushResponse{Output: m.GetOutput()}
	})
}

// forwardFile sends what the caller sends, half-close included. The error is about the caller.
func forwardFile(up agentv1.FileService_PushClient, down controllerv1.FileService_PushServer) error {
	for {
		in, err := down.Recv()
		switch {
		case errors.Is(err, io.EOF):
			_ = up.CloseSend() // always nil
			return nil
		case err != nil:
			return err
		}
		if err := up.Send(&agentv1.PushRequest{Input: in.GetInput()}); err != nil {
			return nil // Recv says why
		}
	}
}

func (s *fileService) Pull(req *controllerv1.PullRequest, down controllerv1.FileService_PullServer) error {
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	recv, err := answered(ctx, s.API, req.GetPull().GetCtid(), func(n *node.Node) (receiver[*agentv1.PullResponse], error) {
		return n.Files().Pull(ctx, &agentv1.PullRequest{Pull: req.GetPull()})
	})
	if err != nil {
		return err
	}
	return relay(recv, down.Send, func(m *agentv1.PullResponse) *controllerv1.PullResponse {
		return &controllerv1.PullResponse{Output: m.GetOutput()}
	})
}
