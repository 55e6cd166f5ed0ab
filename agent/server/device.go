package server

import (
	"context"

	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

type deviceServer struct {
	agentv1.UnimplementedDeviceServiceServer
	node *Node
}

func (s *deviceServer) ListDevices(ctx context.Context, _ *agentv1.ListDevicesRequest) (*agentv1.ListDevicesResponse, error) {
	containers, inv, err := s.node.Containers.Configured(ctx)
	if err != nil {
		return nil, err
	}
	return &agentv1.ListDevicesResponse{Devices: s.node.devices(inv, containers)}, nil
}

func (s *deviceServer) PrepareDevices(ctx context.Context, req *agentv1.PrepareDevicesRequest) (*agentv1.PrepareDevicesResponse, error) {
	if len(req.GetGpus()) == 0 {
		return nil, invalid("gpus", "at least one is required")
	}
	selectors, err := selectorsOf("gpus", req.GetGpus())
	if err != nil {
		return nil, err
	}
	scanner := s.node.Containers.GPUs
	inv, err := scanner.Scan(ctx)
	if err != nil {
		return nil, err
	}
	gpus, err := container.Resolve(inv, selectors)
	if err != nil {
		return nil, err
	}
	var want gpu.Want
	wanted := make(map[string]bool)
	for _, g := range gpus {
		want.GPUs = append(want.GPUs, g.Ref())
		for _, n := range g.GPU.Nodes {
			wanted[n.Path] = true
		}
	}
	created, err := scanner.Prepare(ctx, want)
	if err != nil {
		return nil, err
	}
	if inv, err = scanner.Scan(ctx); err != nil {
		return nil, err
	}
	resp := &agentv1.PrepareDevicesResponse{CreatedPaths: created}
	for _, n := range inv.Shared {
		if container.Needed(n.Path) {
			resp.Nodes = append(resp.Nodes, deviceNodeOf(n))
		}
	}
	for _, g := range inv.GPUs {
		for _, n := range g.Nodes {
			if wanted[n.Path] {
				resp.Nodes = append(resp.Nodes, deviceNodeOf(n))
			}
		}
	}
	for _, n := range resp.Nodes {
		if n.GetState() != typev1.DeviceNodeState_DEVICE_NODE_STATE_OK {
			return nil, &gpu.NodeError{Path: n.GetPath(), Err: errNotUsable}
		}
	}
	sortNodes(resp.Nodes)
	return resp, nil
}
