package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func (p *Program) containersCommand() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use:   "containers",
		Short: "List the containers of the nodes, with the GPUs they have",
		Args:  exactly(),
		RunE: p.connected(func(ctx context.Context, s *session, _ []string) error {
			return containers(ctx, s, node)
		}),
	}
	cmd.Flags().StringVar(&node, "node", "", "only this `NODE`")
	return cmd
}

func containers(ctx context.Context, s *session, node string) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewContainerServiceClient(s.conn).ListContainers(ctx, &controllerv1.ListContainersRequest{Node: node})
	if err != nil {
		return fmt.Errorf("list the containers: %w", err)
	}
	if s.json {
		return errors.Join(output.WriteJSON(s.out, r), unreachable(r.GetUnreachable()))
	}
	t := output.NewTable(s.paint, "CTID", "hostname", "node", "state", "configured", "mode", "effective", "remarks")
	for _, c := range r.GetContainers() {
		t.Row(strconv.Itoa(int(c.GetCtid())), c.GetHostname(), c.GetNode(),
			output.Cell{Text: word(c.GetState()), Color: stateColor(c.GetState())},
			cmp.Or(gpus(c.GetConfigured()), "none"), word(c.GetConfigured().GetMode()), effective(c), remarks(c))
	}
	if err := t.Write(s.out); err != nil {
		return err
	}
	writeProblems(s, r.GetContainers())
	return unreachable(r.GetUnreachable())
}

// effective shows the GPUs that a container really has: empty if it does not run, "none" if it runs without.
func effective(c *typev1.Container) output.Cell {
	cell := output.Cell{Text: gpus(c.GetEffective())}
	if c.GetEffective() != nil && cell.Text == "" {
		cell.Text = "none"
	}
	if c.GetRestartPending() {
		cell.Color = output.Warn
	}
	return cell
}

func remarks(c *typev1.Container) output.Cell {
	var s []string
	if c.GetTemplate() {
		s = append(s, "template")
	}
	if !c.GetUnprivileged() {
		s = append(s, "privileged")
	}
	var cell output.Cell
	if c.GetLock() != "" {
		s, cell.Color = append(s, "locked ("+c.GetLock()+")"), output.Warn
	}
	if c.GetRestartPending() {
		s, cell.Color = append(s, "restart pending"), output.Warn
	}
	if n := len(c.GetProblems()); n > 0 {
		s, cell.Color = append(s, count(n, "problem")), output.Warn
	}
	cell.Text = strings.Join(s, ", ")
	return cell
}

// writeProblems lists the problems of containers, each with what to do.
func writeProblems(s *session, cs []*typev1.Container) {
	first := true
	for _, c := range cs {
		for _, p := range c.GetProblems() {
			if first {
				fmt.Fprintf(s.out, "\nProblems:\n")
				first = false
			}
			where := strconv.Itoa(int(c.GetCtid()))
			if p.GetLine() > 0 {
				where += fmt.Sprintf(" line %d", p.GetLine())
			}
			text := p.GetMessage() + "; " + cmp.Or(p.GetAdvice(), "an apply mends it")
			fmt.Fprintf(s.out, "%s %s\n", s.paint.Text(output.Warn, where+":"), output.Clean(text))
		}
	}
}
