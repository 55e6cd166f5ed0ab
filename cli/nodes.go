package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func (p *Program) nodesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes and whether they answer",
		Args:  exactly(),
		RunE: p.connected(func(ctx context.Context, s *session, _ []string) error {
			return nodes(ctx, s)
		}),
	}
}

func nodes(ctx context.Context, s *session) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewNodeServiceClient(s.conn).ListNodes(ctx, &controllerv1.ListNodesRequest{})
	if err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	if s.json {
		return errors.Join(output.WriteJSON(s.out, r), unreachable(r.GetUnreachable()))
	}
	t := output.NewTable(s.paint, "node", "quorum", "Proxmox VE", "kernel", "LXC", "driver", "agent", "agent since")
	for _, n := range r.GetNodes() {
		quorum := output.Cell{Text: "yes", Color: output.Good}
		if !n.GetQuorate() {
			quorum = output.Cell{Text: "no", Color: output.Bad}
		}
		t.Row(n.GetName(), quorum, n.GetPveVersion(), n.GetKernelVersion(), n.GetLxcVersion(), n.GetDriverVersion(),
			n.GetAgentVersion(), utc(n.GetAgentStartTime()))
	}
	for _, n := range r.GetUnreachable() {
		t.Row(n.GetNode(), output.Cell{Text: "unreachable", Color: output.Bad})
	}
	return errors.Join(t.Write(s.out), unreachable(r.GetUnreachable()))
}

// unreachable returns an error for each node that is missing from an answer: a script must not take a part for the
// whole.
func unreachable(nodes []*typev1.NodeError) error {
	var errs []error
	for _, n := range nodes {
		at := ""
		if n.GetAddress() != "" && !strings.Contains(n.GetMessage(), n.GetAddress()) {
			at = " at " + n.GetAddress()
		}
		errs = append(errs, &failure{
			err:  fmt.Errorf("node %s%s: %s", n.GetNode(), at, n.GetMessage()), // the message says what to do
			hint: "What is shown lacks this node.",
		})
	}
	return errors.Join(errs...)
}
