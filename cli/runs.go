package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

func (p *Program) runsCommand() *cobra.Command {
	var limit int32
	cmd := &cobra.Command{
		Use:   "runs",
		Short: "List the recorded runs, newest first; show, watch and cancel them",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return misuse(cmd, fmt.Errorf("unknown command %q for \"runs\"; it has cancel, show, watch", args[0]))
			}
			return nil
		},
		RunE: p.connected(func(ctx context.Context, s *session, _ []string) error {
			return runs(ctx, s, limit)
		}),
	}
	cmd.Flags().Int32Var(&limit, "limit", 20, "the newest `N`, at most 1000")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if limit < 1 || limit > 1000 {
			return misuse(cmd, fmt.Errorf("--limit %d: must be from 1 to 1000", limit))
		}
		return nil
	}
	cmd.AddCommand(
		p.runCommand("show", "Show one run with its steps", runShow),
		p.runCommand("watch", "Follow a run until it ends", runWatch),
		p.runCommand("cancel", "Let a run end the steps under way and start no more", runCancel),
	)
	return cmd
}

func (p *Program) runCommand(verb, short string, run func(context.Context, *session, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " RUN",
		Short: short,
		Long:  short + ".\n\nRUN is the ID of a run, or a beginning of it that no other run has.",
		Args:  exactly("RUN"),
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			return run(ctx, s, args[0])
		}),
	}
}

func runs(ctx context.Context, s *session, limit int32) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewRunServiceClient(s.conn).ListRuns(ctx, &controllerv1.ListRunsRequest{Limit: limit})
	if err != nil {
		return fmt.Errorf("list the runs: %w", err)
	}
	if s.json {
		return output.WriteJSON(s.out, r)
	}
	t := output.NewTable(s.paint, "run", "state", "begun", "took", "who", "containers")
	for _, run := range r.GetRuns() {
		t.Row(run.GetRun(), output.Cell{Text: word(run.GetState()), Color: runColor(run.GetState())}, utc(run.GetCreateTime()),
			elapsed(run.GetCreateTime(), run.GetEndTime(), s.now()), run.GetWho(), tally(run))
	}
	return t.Write(s.out)
}

func runShow(ctx context.Context, s *session, id string) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewRunServiceClient(s.conn).GetRun(ctx, &controllerv1.GetRunRequest{Run: id})
	if err != nil {
		return fmt.Errorf("show run %s: %w", id, err)
	}
	if s.json {
		return output.WriteJSON(s.out, r)
	}
	return writeRun(s, r.GetRun())
}

func runCancel(ctx context.Context, s *session, id string) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewRunServiceClient(s.conn).CancelRun(ctx, &controllerv1.CancelRunRequest{Run: id})
	if err != nil {
		return fmt.Errorf("cancel run %s: %w", id, err)
	}
	if s.json {
		return output.WriteJSON(s.out, r)
	}
	_, err = fmt.Fprintf(s.out, "Run %s: the steps under way finish, no more begin.\n", output.Clean(id))
	return err
}

// writeRun shows a run with every step.
func writeRun(s *session, run *controllerv1.Run) error {
	fmt.Fprintf(s.out, "%s %s, begun %s", s.paint.Text(output.Bold, "run "+run.GetRun()),
		s.paint.Text(runColor(run.GetState()), word(run.GetState())), utc(run.GetCreateTime()))
	if run.GetWho() != "" {
		fmt.Fprintf(s.out, " by %s", output.Clean(run.GetWho()))
	}
	fmt.Fprintf(s.out, ", took %s\n", elapsed(run.GetCreateTime(), run.GetEndTime(), s.now()))
	if run.GetResumptions() > 0 {
		fmt.Fprintf(s.out, "taken up again %s after a crash\n", count(int(run.GetResumptions()), "time"))
	}
	for _, w := range run.GetWarnings() {
		fmt.Fprintln(s.out, s.paint.Text(output.Warn, "warning: "+w))
	}
	fmt.Fprintln(s.out)
	t := output.NewTable(s.paint, "CTID", "name", "node", "step", "state", "took", "message")
	for _, c := range run.GetContainers() {
		ctid := fmt.Sprint(c.GetCtid())
		t.Row(ctid, c.GetName(), c.GetNode(), "", output.Cell{Text: containerWord(c), Color: stepColor(c.GetState())},
			"", containerMessage(c))
		for _, step := range c.GetSteps() {
			t.Row(ctid, c.GetName(), c.GetNode(), stepName(step),
				output.Cell{Text: word(step.GetState()), Color: stepColor(step.GetState())},
				elapsed(step.GetStartTime(), step.GetEndTime(), s.now()), step.GetMessage())
		}
	}
	return t.Write(s.out)
}

// containerWord names the state of a container in a run. One without steps had nothing to do.
func containerWord(c *controllerv1.ContainerRun) string {
	if len(c.GetSteps()) == 0 && c.GetState() == controllerv1.StepState_STEP_STATE_UNCHANGED {
		return "nothing to do"
	}
	return word(c.GetState())
}

func containerMessage(c *controllerv1.ContainerRun) string {
	if c.GetError() != "" {
		return c.GetError()
	}
	return strings.Join(c.GetNotes(), "; ")
}

// tally counts the containers of a run by state.
func tally(run *controllerv1.Run) string {
	counts := map[controllerv1.StepState]int{}
	for _, c := range run.GetContainers() {
		counts[c.GetState()]++
	}
	var s []string
	for _, state := range []controllerv1.StepState{
		controllerv1.StepState_STEP_STATE_SUCCEEDED, controllerv1.StepState_STEP_STATE_UNCHANGED,
		controllerv1.StepState_STEP_STATE_RUNNING, controllerv1.StepState_STEP_STATE_PENDING,
		controllerv1.StepState_STEP_STATE_FAILED, controllerv1.StepState_STEP_STATE_SKIPPED,
	} {
		if n := counts[state]; n > 0 {
			s = append(s, fmt.Sprintf("%d %s", n, word(state)))
		}
	}
	return strings.Join(s, ", ")
}

func runColor(state controllerv1.RunState) output.Color {
	switch state {
	case controllerv1.RunState_RUN_STATE_SUCCEEDED:
		return output.Good
	case controllerv1.RunState_RUN_STATE_RUNNING:
		return output.Info
	case controllerv1.RunState_RUN_STATE_FAILED:
		return output.Bad
	default:
		return output.Warn
	}
}

func stepColor(state controllerv1.StepState) output.Color {
	switch state {
	case controllerv1.StepState_STEP_STATE_SUCCEEDED:
		return output.Good
	case controllerv1.StepState_STEP_STATE_RUNNING:
		return output.Info
	case controllerv1.StepState_STEP_STATE_FAILED:
		return output.Bad
	case controllerv1.StepState_STEP_STATE_SKIPPED:
		return output.Warn
	default:
		return output.Faint
	}
}
