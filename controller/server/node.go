package server

import (
	"context"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/node"
)

type nodeService struct {
	API
	controllerv1.UnimplementedNodeServiceServer
}

func (s *nodeService) ListNodes(ctx context.Context, _ *controllerv1.ListNodesRequest) (*controllerv1.ListNodesResponse, error) {
	nodes, unreachable, err := ask(ctx, s.API, "", func(ctx context.Context, n *node.Node) (*typev1.Node, error) {
		resp, err := n.Info().GetNode(ctx, &agentv1.GetNodeRequest{})
		return resp.GetNode(), err
	})
	return &controllerv1.ListNodesResponse{Nodes: nodes, Unreachable: unreachable}, err
}

func (s *nodeService) ListDevices(ctx context.Context, req *controllerv1.ListDevicesRequest) (*controllerv1.ListDevicesResponse, error) {
	devices, unreachable, err := ask(ctx, s.API, req.GetNode(), func(ctx context.Context, n *node.Node) (*typev1.NodeDevices, error) {
		resp, err := n.Devices().ListDevices(ctx, &agentv1.ListDevicesRequest{})
		return resp.GetDevices(), err
	})
	return &controllerv1.ListDevicesResponse{Nodes: devices, Unreachable: unreachable}, err
}

func (s *nodeService) AcknowledgeGpuErrors(ctx context.Context, req *controllerv1.AcknowledgeGpuErrorsRequest) (*controllerv1.AcknowledgeGpuErrorsResponse, error) {
	n, err := s.Nodes.Node(req.GetNode())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	resp, err := n.Devices().AcknowledgeGpuErrors(ctx, &agentv1.AcknowledgeGpuErrorsRequest{PciAddress: req.GetPciAddress()})
	return &controllerv1.AcknowledgeGpuErrorsResponse{Forgotten: resp.GetForgotten()}, err
}
