package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func (p *Program) healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Check the controller's services, every node and every GPU",
		Long: `Check that the controller's services answer, and every node's agent, and what the kernel's log of each node has told
about its GPUs since the boot.

Exit status: 0 if all is well; 1 if a service or a node does not answer, a node has no quorum, or a GPU has a fault.`,
		Args: exactly(),
		RunE: p.connected(func(ctx context.Context, s *session, _ []string) error {
			return health(ctx, s)
		}),
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "ack NODE GPU",
		Short: "Forget the errors of a GPU that somebody has seen to",
		Long: `Forget the errors of a GPU because somebody has seen to it: it counts as fit for new work, until the kernel's log tells of
another error. GPU is the index that nvidia-smi shows, the UUID, or the PCI address. A reboot of the node does the same.`,
		Args: exactly("NODE", "GPU"),
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			return acknowledge(ctx, s, args[0], args[1])
		}),
	})
	return cmd
}

// acknowledge forgets the errors of a GPU.
func acknowledge(ctx context.Context, s *session, node, gpu string) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	nodes := controllerv1.NewNodeServiceClient(s.conn)
	devices, err := nodes.ListDevices(ctx, &controllerv1.ListDevicesRequest{Node: node})
	if err == nil {
		err = unreachable(devices.GetUnreachable())
	}
	if err != nil {
		return fmt.Errorf("look for GPU %s: %w", gpu, err)
	}
	var have []string
	for _, n := range devices.GetNodes() {
		for _, g := range n.GetGpus() {
			if gpu != strconv.Itoa(int(g.GetIndex())) && !strings.EqualFold(gpu, g.GetUuid()) && !strings.EqualFold(gpu, g.GetPciAddress()) {
				have = append(have, gpuName(g))
				continue
			}
			r, err := nodes.AcknowledgeGpuErrors(ctx, &controllerv1.AcknowledgeGpuErrorsRequest{Node: node, PciAddress: g.GetPciAddress()})
			if err != nil {
				return fmt.Errorf("forget the errors of %s: %w", gpuName(g), err)
			}
			if s.json {
				return output.WriteJSON(s.out, r)
			}
			fmt.Fprintf(s.out, "%s of %s: %s forgotten\n", gpuName(g), node, count(int(r.GetForgotten()), "kind")+" of errors")
			return nil
		}
	}
	return &failure{
		err:  fmt.Errorf("node %s has no GPU %s", node, gpu),
		hint: "It has " + strings.Join(have, ", ") + ".",
	}
}

// gpuName is how people find a GPU on its node.
func gpuName(g *typev1.Gpu) string {
	if g.GetIndex() < 0 {
		return "GPU " + g.GetPciAddress()
	}
	return fmt.Sprintf("GPU %d (%s)", g.GetIndex(), g.GetPciAddress())
}

// serviceNames are the services of the controller's API.
var serviceNames = []string{
	controllerv1.FleetService_ServiceDesc.ServiceName,
	controllerv1.RunService_ServiceDesc.ServiceName,
	controllerv1.NodeService_ServiceDesc.ServiceName,
	controllerv1.ContainerService_ServiceDesc.ServiceName,
}

// A serviceHealth is the health of one service of the controller.
type serviceHealth struct {
	Service string `json:"service"`
	Status  string `json:"status"` // of grpc.health.v1
}

func health(ctx context.Context, s *session) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	services, err := checkServices(ctx, s)
	if err != nil {
		return fmt.Errorf("check the controller: %w", err)
	}
	nodes, err := controllerv1.NewNodeServiceClient(s.conn).ListNodes(ctx, &controllerv1.ListNodesRequest{})
	if err != nil {
		return fmt.Errorf("check the nodes: %w", err)
	}
	devices, err := controllerv1.NewNodeServiceClient(s.conn).ListDevices(ctx, &controllerv1.ListDevicesRequest{})
	if err != nil {
		return fmt.Errorf("check the GPUs: %w", err)
	}
	if s.json {
		rawNodes, err := output.RawJSON(nodes)
		if err != nil {
			return err
		}
		rawDevices, err := output.RawJSON(devices)
		if err != nil {
			return err
		}
		if err := output.WriteValue(s.out, struct {
			Services []serviceHealth `json:"services"`
			Nodes    json.RawMessage `json:"nodes"`
			Devices  json.RawMessage `json:"devices"`
		}{services, rawNodes, rawDevices}); err != nil {
			return err
		}
	} else if err := writeHealth(s, services, nodes, devices); err != nil {
		return err
	}
	return errors.Join(unhealthy(services, nodes, devices), unreachable(nodes.GetUnreachable()))
}

func checkServices(ctx context.Context, s *session) ([]serviceHealth, error) {
	var services []serviceHealth
	for _, name := range serviceNames {
		r, err := healthv1.NewHealthClient(s.conn).Check(ctx, &healthv1.HealthCheckRequest{Service: name})
		state := r.GetStatus()
		switch {
		case status.Code(err) == codes.NotFound:
			state = healthv1.HealthCheckResponse_SERVICE_UNKNOWN
		case err != nil:
			return nil, err
		}
		services = append(services, serviceHealth{Service: name, Status: state.String()})
	}
	return services, nil
}

func writeHealth(s *session, services []serviceHealth, nodes *controllerv1.ListNodesResponse, devices *controllerv1.ListDevicesResponse) error {
	t := output.NewTable(s.paint, "what", "health", "remarks")
	for _, h := range services {
		color := output.Bad
		if h.Status == healthv1.HealthCheckResponse_SERVING.String() {
			color = output.Good
		}
		t.Row(h.Service, output.Cell{Text: h.Status, Color: color})
	}
	for _, n := range nodes.GetNodes() {
		health, remarks := output.Cell{Text: "SERVING", Color: output.Good}, output.Cell{}
		if !n.GetQuorate() {
			health = output.Cell{Text: "NO_QUORUM", Color: output.Bad}
		}
		if n.GetDriverVersion() == "" {
			remarks = output.Cell{Text: "nvidia driver not loaded", Color: output.Warn}
		}
		t.Row("node "+n.GetName(), health, remarks)
	}
	for _, n := range devices.GetNodes() {
		for _, g := range n.GetGpus() {
			t.Row(n.GetNode()+" "+gpuName(g), gpuHealth(g), gpuRemarks(g))
		}
	}
	for _, n := range nodes.GetUnreachable() {
		t.Row("node "+n.GetNode(), output.Cell{Text: "UNREACHABLE", Color: output.Bad}, n.GetMessage())
	}
	return t.Write(s.out)
}

func gpuHealth(g *typev1.Gpu) output.Cell {
	c := output.Cell{Text: strings.ToUpper(word(g.GetHealth().GetState()))}
	switch g.GetHealth().GetState() {
	case typev1.GpuHealthState_GPU_HEALTH_STATE_OK:
		c.Color = output.Good
	case typev1.GpuHealthState_GPU_HEALTH_STATE_WARNING:
		c.Color = output.Warn
	case typev1.GpuHealthState_GPU_HEALTH_STATE_FAULT:
		c.Color = output.Bad
	}
	return c
}

// gpuRemarks tells of the errors of a GPU, the gravest classes first, and whom they hit.
func gpuRemarks(g *typev1.Gpu) string {
	errs := slices.Clone(g.GetHealth().GetErrors())
	slices.SortStableFunc(errs, func(a, b *typev1.GpuError) int { return int(b.GetClass()) - int(a.GetClass()) })
	var remarks []string
	for _, e := range errs {
		r := fmt.Sprintf("XID %d (%s)", e.GetXid(), word(e.GetClass()))
		if e.GetCount() > 1 {
			r += fmt.Sprintf(" %d times", e.GetCount())
		}
		if e.GpuInstanceId != nil {
			r += fmt.Sprintf(", MIG instance %d", e.GetGpuInstanceId())
		}
		if e.GetCtid() != 0 {
			r += fmt.Sprintf(", %s in %d", cmp.Or(e.GetProcess(), "a process"), e.GetCtid())
		}
		remarks = append(remarks, r)
	}
	return strings.Join(remarks, "; ")
}

// unhealthy returns an error for each part that answers but does not serve.
func unhealthy(services []serviceHealth, nodes *controllerv1.ListNodesResponse, devices *controllerv1.ListDevicesResponse) error {
	var errs []error
	for _, h := range services {
		if h.Status != healthv1.HealthCheckResponse_SERVING.String() {
			errs = append(errs, &failure{
				err:  fmt.Errorf("service %s is %s", h.Service, h.Status),
				hint: "See the controller's log: journalctl -u phoenix-controller.",
			})
		}
	}
	for _, n := range nodes.GetNodes() {
		if !n.GetQuorate() {
			errs = append(errs, &failure{
				err:  fmt.Errorf("node %s has no quorum: no conf can be written, no container started", n.GetName()),
				hint: adviceFor(errorv1.Reason_REASON_NO_QUORUM, nil),
			})
		}
	}
	for _, n := range devices.GetNodes() {
		for _, g := range n.GetGpus() {
			if g.GetHealth().GetState() == typev1.GpuHealthState_GPU_HEALTH_STATE_FAULT {
				errs = append(errs, gpuFault(n.GetNode(), g))
			}
		}
	}
	return errors.Join(errs...)
}

// gpuFault says what is wrong with a GPU that has a fault, who has it, and what to do about the gravest error.
func gpuFault(node string, g *typev1.Gpu) error {
	gravest := slices.MaxFunc(g.GetHealth().GetErrors(), func(a, b *typev1.GpuError) int { return int(a.GetClass()) - int(b.GetClass()) })
	who := "no container has it"
	if len(g.GetCtids()) > 0 {
		who = "CTIDs that have it: " + joinInts(g.GetCtids())
	}
	return &failure{
		err: fmt.Errorf("%s of node %s has XID %d: %s; %s", gpuName(g), node, gravest.GetXid(), output.Clean(gravest.GetMessage()), who),
		hint: gravest.GetAdvice() + fmt.Sprintf(" A reboot, a reset that takes the GPU from the driver, or phoenix-cli health ack %s %s makes it fit again.",
			node, g.GetPciAddress()),
	}
}
