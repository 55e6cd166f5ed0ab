package server

import (
	"context"
	"errors"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/health"
	"phoenix.internal/agent/xid"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// The names under which grpc.health.v1 tells of the node's parts, besides those of the services.
const (
	driverHealth = "driver" // NVIDIA's kernel module
	gpuHealth    = "gpu/"   // and the PCI address
)

// healthInterval is how often the health of the services is looked at.
const healthInterval = 2 * time.Second

// watchHealth keeps the status of the services that need Proxmox's file system, of the driver and of each GPU. Without
// quorum confs can still be read, so those services serve.
func (s *Server) watchHealth(ctx context.Context) {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	seen := map[string]bool{} // GPUs; one that is gone from the bus is unfit
	for {
		err := s.node.Containers.Confs.Check()
		for _, name := range []string{agentv1.ContainerService_ServiceDesc.ServiceName, agentv1.DeviceService_ServiceDesc.ServiceName} {
			s.setHealth(name, err == nil || errors.Is(err, confstore.ErrNoQuorum))
		}
		if inv, err := s.node.Containers.GPUs.Look(ctx); err == nil {
			s.setHealth(driverHealth, inv.DriverVersion != "")
			fit := map[string]bool{}
			for _, g := range inv.GPUs {
				seen[g.PCIAddress] = true
				fit[g.PCIAddress] = g.Served() && healthStateOf(s.node.Health.Errors(g.PCIAddress)) != typev1.GpuHealthState_GPU_HEALTH_STATE_FAULT
			}
			for address := range seen {
				s.setHealth(gpuHealth+address, fit[address])
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Server) setHealth(name string, serving bool) {
	status := healthv1.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthv1.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus(name, status)
}

// devices converts what the node has of GPUs, with what is known about their health and the virtual machines that take them.
func (n *Node) devices(ctx context.Context, inv *gpu.Inventory, containers []container.Container) (*typev1.NodeDevices, error) {
	devices := devicesOf(n.Name, inv, containers)
	if len(inv.GPUs) > 0 {
		vms, err := n.Containers.VMs(ctx)
		if err != nil {
			return nil, err
		}
		addVMs(devices, vms)
	}
	for _, g := range devices.GetGpus() {
		errs := n.Health.Errors(g.GetPciAddress())
		g.Health = &typev1.GpuHealth{State: healthStateOf(errs)}
		for _, e := range errs {
			g.Health.Errors = append(g.Health.Errors, gpuErrorOf(e))
		}
	}
	return devices, nil
}

func healthStateOf(errs []health.Error) typev1.GpuHealthState {
	state := typev1.GpuHealthState_GPU_HEALTH_STATE_OK
	for _, e := range errs {
		switch {
		case e.Class.Fault():
			return typev1.GpuHealthState_GPU_HEALTH_STATE_FAULT
		case e.Class == xid.Watch || e.Class == xid.Unknown:
			state = typev1.GpuHealthState_GPU_HEALTH_STATE_WARNING
		}
	}
	return state
}

func gpuErrorOf(e health.Error) *typev1.GpuError {
	pb := &typev1.GpuError{
		Xid: int32(e.Code), Class: classOf(e.Class), Count: int32(e.Count), FirstTime: timestamppb.New(e.First), LastTime: timestamppb.New(e.Last),
		Pid: int32(e.PID), Process: text(e.Process), Ctid: e.CTID, Message: text(e.Text), Advice: e.Class.Advice(),
	}
	if e.GPUInstance >= 0 {
		instance := int32(e.GPUInstance)
		pb.GpuInstanceId = &instance
	}
	return pb
}

func classOf(c xid.Class) typev1.GpuErrorClass {
	switch c {
	case xid.Informational:
		return typev1.GpuErrorClass_GPU_ERROR_CLASS_INFORMATIONAL
	case xid.Application:
		return typev1.GpuErrorClass_GPU_ERROR_CLASS_APPLICATION
	case xid.Watch:
		return typev1.GpuErrorClass_GPU_ERROR_CLASS_WATCH
	case xid.Unknown:
		return typev1.GpuErrorClass_GPU_ERROR_CLASS_UNKNOWN
	case xid.Reset:
		return typev1.GpuErrorClass_GPU_ERROR_CLASS_RESET
	case xid.Reboot:
		return typev1.GpuErrorClass_GPU_ERROR_CLASS_REBOOT
	case xid.Support:
		return typev1.GpuErrorClass_GPU_ERROR_CLASS_SUPPORT
	}
	return typev1.GpuErrorClass_GPU_ERROR_CLASS_UNSPECIFIED
}

func (s *deviceServer) AcknowledgeGpuErrors(_ context.Context, req *agentv1.AcknowledgeGpuErrorsRequest) (*agentv1.AcknowledgeGpuErrorsResponse, error) {
	address := req.GetPciAddress()
	if address == "" {
		return nil, invalid("pci_address", "is empty")
	}
	return &agentv1.AcknowledgeGpuErrorsResponse{Forgotten: int32(s.node.Health.Acknowledge(address))}, nil
}
