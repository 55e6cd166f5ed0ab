package server

import (
	"context"
	"errors"

	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
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
	devices, err := s.node.devices(ctx, inv, containers)
	if err != nil {
		return nil, err
	}
	return &agentv1.ListDevicesResponse{Devices: devices}, nil
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
	for _, g := range gpus {
		want.GPUs = append(want.GPUs, g.Ref())
	}
	if want.Graphics, want.Fabric, err = usesOf("capabilities", req.GetCapabilities()); err != nil {
		return nil, err
	}
	created, err := scanner.Prepare(ctx, want)
	if err != nil {
		return nil, err
	}
	if inv, err = scanner.Scan(ctx); err != nil {
		return nil, err
	}
	nodes, err := inv.Needs(want)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if n.State != gpu.OK {
			return nil, &gpu.NodeError{Path: n.Path, Err: errNotUsable}
		}
	}
	return &agentv1.PrepareDevicesResponse{CreatedPaths: created, Nodes: deviceNodesOf(nodes)}, nil
}

// errNotUsable says that a device node is not right although it was just prepared.
var errNotUsable = errors.New("still missing or stale after it was made; is something else managing /dev?")
