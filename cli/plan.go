package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

type planOptions struct {
	ctids         ctidSet
	start, verify bool
	acceptMoved   bool
}

func (p *Program) planCommand() *cobra.Command {
	var o planOptions
	cmd := &cobra.Command{
		Use:   "plan [CTID...]",
		Short: "Show what apply would do: the steps, and each conf's diff",
		Long: `Show what apply would do, for all containers of the fleet file or those named: the steps in their order, and
how the conf would change. Nothing is changed.

Exit status: 0, also if there is something to do; 1 if a container cannot be planned or a node does not answer.`,
		Args: ctidsArgs,
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			o.ctids.add(args)
			return planFleet(ctx, s, o)
		}),
	}
	o.ctids.flag(cmd.Flags())
	cmd.Flags().BoolVar(&o.start, "start", false, "start stopped containers that have GPUs assigned")
	cmd.Flags().BoolVar(&o.verify, "verify", false, "verify the devices also where nothing has changed")
	cmd.Flags().BoolVar(&o.acceptMoved, "accept-moved", false, acceptMovedUsage)
	return cmd
}

const acceptMovedUsage = "take each index for the GPU that it means now, also if it was another one when it was last applied"

func planFleet(ctx context.Context, s *session, o planOptions) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewRunServiceClient(s.conn).Plan(ctx, &controllerv1.PlanRequest{
		Ctids: o.ctids, Start: o.start, Verify: o.verify, AcceptMoved: o.acceptMoved,
	})
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	if s.json {
		err = output.WriteJSON(s.out, r)
	} else {
		err = writePlan(s, r.GetPlan())
	}
	err = errors.Join(err, unreachable(r.GetPlan().GetUnreachable()))
	for _, c := range r.GetPlan().GetContainers() {
		for _, e := range c.GetErrors() {
			err = errors.Join(err, fmt.Errorf("CTID %d: %s", c.GetCtid(), e))
		}
	}
	return err
}

func writePlan(s *session, plan *controllerv1.Plan) error {
	for _, w := range plan.GetWarnings() {
		fmt.Fprintln(s.out, s.paint.Text(output.Warn, "warning: "+w))
	}
	var change, check, same, failed int
	for i, c := range plan.GetContainers() {
		if i > 0 || len(plan.GetWarnings()) > 0 {
			fmt.Fprintln(s.out)
		}
		switch {
		case len(c.GetErrors()) > 0:
			failed++
		case slices.ContainsFunc(c.GetSteps(), changes):
			change++
		case len(c.GetSteps()) > 0:
			check++
		default:
			same++
		}
		if err := writeContainerPlan(s, c); err != nil {
			return err
		}
	}
	asShouldBe := "as they should be"
	if same == 1 {
		asShouldBe = "as it should be"
	}
	summary := fmt.Sprintf("%s to change, %d to check, %d %s, %d that cannot be planned.",
		count(change, "container"), check, same, asShouldBe, failed)
	if change+check+failed == 0 {
		summary = fmt.Sprintf("Nothing to do: %s %s.", count(same, "container"), asShouldBe)
	}
	_, err := fmt.Fprintf(s.out, "\n%s\n", summary)
	return err
}

// changes reports whether a step is planned because something differs. Scripts and checks are there at each apply.
func changes(step *controllerv1.PlannedStep) bool {
	switch step.GetKind() {
	case controllerv1.StepKind_STEP_KIND_CHECK_DEVICES, controllerv1.StepKind_STEP_KIND_VERIFY_DEVICES,
		controllerv1.StepKind_STEP_KIND_INSTALL_DRIVER, controllerv1.StepKind_STEP_KIND_VERIFY_DRIVER,
		controllerv1.StepKind_STEP_KIND_FEATURE, controllerv1.StepKind_STEP_KIND_HEALTH_CHECK:
		return false
	}
	return true
}

func writeContainerPlan(s *session, c *controllerv1.ContainerPlan) error {
	head := fmt.Sprintf("%d %s", c.GetCtid(), c.GetName())
	if c.GetNode() != "" {
		head += " on " + c.GetNode()
	}
	fmt.Fprintf(s.out, "%s: %s\n", s.paint.Text(output.Bold, head), gpuChange(s, c))
	for _, e := range c.GetErrors() {
		fmt.Fprintf(s.out, "  %s\n", s.paint.Text(output.Bad, "error: "+e))
	}
	for _, note := range c.GetNotes() {
		fmt.Fprintf(s.out, "  %s\n", s.paint.Text(output.Faint, "note: "+note))
	}
	if len(c.GetSteps()) == 0 && len(c.GetErrors()) == 0 {
		fmt.Fprintln(s.out, "  nothing to do")
	}
	if after := c.GetAfter(); len(after) > 0 && len(c.GetSteps()) > 0 {
		fmt.Fprintf(s.out, "  after %s:\n", joinInts(after))
	}
	for i, step := range c.GetSteps() {
		fmt.Fprintf(s.out, "  %d. %s", i+1, s.paint.Text(output.Info, stepName(step)))
		if step.GetReason() != "" {
			fmt.Fprintf(s.out, ": %s", output.Clean(step.GetReason()))
		}
		fmt.Fprintln(s.out)
	}
	conf := confName(c.GetCtid())
	return output.WriteDiff(s.out, s.paint, "    ", conf, conf+" (planned)", c.GetConfBefore(), c.GetConfAfter())
}

func gpuChange(s *session, c *controllerv1.ContainerPlan) string {
	was, is := assignedGPUs(c.GetConfiguredGpus()), assignedGPUs(c.GetDesiredGpus())
	if len(c.GetErrors()) > 0 {
		is = c.GetGpuAssignment() // what it comes to may not be known
	}
	if was == is {
		return gpuText(is)
	}
	noun := "GPUs"
	if len(c.GetConfiguredGpus()) == 1 && len(c.GetDesiredGpus()) == 1 {
		noun = "GPU"
	}
	return fmt.Sprintf("%s %s -> %s", noun, s.paint.Text(output.Bad, was), s.paint.Text(output.Good, is))
}

// stepName names a planned step, or a step of a run.
func stepName(step interface {
	GetKind() controllerv1.StepKind
	GetFeature() string
}) string {
	name := word(step.GetKind())
	if step.GetFeature() != "" {
		name += " " + step.GetFeature()
	}
	return name
}
