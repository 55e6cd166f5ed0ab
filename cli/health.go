package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
)

func (p *Program) healthCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Check the controller's services and every node",
		Long: `Check that the controller's services answer, and every node's agent.

Exit status: 0 if all is well; 1 if a service or a node does not answer, or a node has no quorum.`,
		Args: exactly(),
		RunE: p.connected(func(ctx context.Context, s *session, _ []string) error {
			return health(ctx, s)
		}),
	}
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
	if s.json {
		raw, err := output.RawJSON(nodes)
		if err != nil {
			return err
		}
		if err := output.WriteValue(s.out, struct {
			Services []serviceHealth `json:"services"`
			Nodes    json.RawMessage `json:"nodes"`
		}{services, raw}); err != nil {
			return err
		}
	} else if err := writeHealth(s, services, nodes); err != nil {
		return err
	}
	return errors.Join(unhealthy(services, nodes), unreachable(nodes.GetUnreachable()))
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

func writeHealth(s *session, services []serviceHealth, nodes *controllerv1.ListNodesResponse) error {
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
	for _, n := range nodes.GetUnreachable() {
		t.Row("node "+n.GetNode(), output.Cell{Text: "UNREACHABLE", Color: output.Bad}, n.GetMessage())
	}
	return t.Write(s.out)
}

// unhealthy returns an error for each part that answers but does not serve.
func unhealthy(services []serviceHealth, nodes *controllerv1.ListNodesResponse) error {
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
	return errors.Join(errs...)
}
