package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

func (p *Program) doctorCommand() *cobra.Command {
	var ctids ctidSet
	cmd := &cobra.Command{
		Use:   "doctor [CTID...]",
		Short: "Say why a container has no GPU, what proves it, and what mends it",
		Long: `Walk the chain from the node's card and driver over the conf and the running container to CUDA, and say which link is
broken first, what proves it, and the command that mends it. Nothing is changed; in running containers devices are opened.

Without CTIDs every container of the fleet file, every other that has GPUs, and every node is examined, and only what is
wrong is shown; stopped containers do not count then. docs/doctor.md explains each fault, whose name stands in brackets.

Exit status: 0 if nothing is broken, also if there are warnings; else 1.`,
		Args: ctidsArgs,
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			ctids.add(args)
			return doctor(ctx, s, ctids)
		}),
	}
	ctids.flag(cmd.Flags())
	return cmd
}

func doctor(ctx context.Context, s *session, ctids ctidSet) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewDoctorServiceClient(s.conn).Diagnose(ctx, &controllerv1.DiagnoseRequest{Ctids: ctids})
	if err != nil {
		return fmt.Errorf("examine the containers: %w", err)
	}
	switch {
	case s.json:
		err = output.WriteJSON(s.out, r)
	case len(ctids) > 0:
		for i, d := range r.GetContainers() {
			if i > 0 && err == nil {
				_, err = fmt.Fprintln(s.out)
			}
			if err == nil {
				err = writeDiagnosis(s, d)
			}
		}
	default:
		writeRound(s, r)
	}
	if err == nil && !r.GetHealthy() {
		err = errQuiet
	}
	return err
}

// writeDiagnosis shows the whole chain of one container.
func writeDiagnosis(s *session, d *controllerv1.Diagnosis) error {
	fmt.Fprintln(s.out, s.paint.Text(output.Bold, patient(d)))
	t := output.NewTable(s.paint, "link", "state", "proof")
	for _, l := range d.GetLinks() {
		t.Row(l.GetLink(), linkState(l.GetState()), l.GetProof())
	}
	if err := t.Write(s.out); err != nil {
		return err
	}
	for _, f := range d.GetFindings() {
		fmt.Fprintln(s.out)
		writeDoctorFinding(s, "", f)
	}
	if d.GetHealthy() && len(d.GetFindings()) == 0 {
		fmt.Fprintf(s.out, "\n%s\n", s.paint.Text(output.Good, "Nothing is wrong."))
	}
	return nil
}

// patient names a container: "901 trainer on pve1".
func patient(d *controllerv1.Diagnosis) string {
	text := fmt.Sprint(d.GetCtid())
	if d.GetName() != "" {
		text += " " + d.GetName()
	}
	if d.GetNode() != "" {
		text += " on " + d.GetNode()
	}
	return text
}

func linkState(state controllerv1.DoctorLinkState) output.Cell {
	c := output.Cell{Text: word(state)}
	switch state {
	case controllerv1.DoctorLinkState_DOCTOR_LINK_STATE_OK:
		c.Color = output.Good
	case controllerv1.DoctorLinkState_DOCTOR_LINK_STATE_BROKEN:
		c = output.Cell{Text: "BROKEN", Color: output.Bad}
	default:
		c.Color = output.Faint
	}
	return c
}

func writeDoctorFinding(s *session, whose string, f *controllerv1.DoctorFinding) {
	color := output.Bad
	if f.GetSeverity() == controllerv1.Severity_SEVERITY_WARNING {
		color, whose = output.Warn, whose+"warning: "
	}
	fmt.Fprintf(s.out, "%s%s [%s]\n", s.paint.Text(color, whose), output.Clean(f.GetMessage()), f.GetFault())
	if f.GetProof() != "" {
		fmt.Fprintf(s.out, "  proof:  %s\n", output.Clean(f.GetProof()))
	}
	fmt.Fprintf(s.out, "  remedy: %s\n", output.Clean(f.GetRemedy()))
}

// writeRound shows what is wrong in the fleet, and counts the rest.
func writeRound(s *session, r *controllerv1.DiagnoseResponse) {
	for _, n := range r.GetNodes() {
		writeDoctorFinding(s, "node "+n.GetNode()+": ", n.GetFinding())
	}
	healthy, broken, stopped := 0, 0, 0
	for _, d := range r.GetContainers() {
		findings := d.GetFindings()
		switch {
		case d.GetHealthy():
			healthy++
		case d.GetStopped():
			stopped++
			findings = findings[1:]
		default:
			broken++
		}
		for _, f := range findings {
			writeDoctorFinding(s, patient(d)+": ", f)
		}
	}
	parts := []string{fmt.Sprintf("%d healthy", healthy), fmt.Sprintf("%d broken", broken)}
	if stopped > 0 {
		parts = append(parts, fmt.Sprintf("%d stopped", stopped))
	}
	fmt.Fprintf(s.out, "%s: %s.\n", count(len(r.GetContainers()), "container"), strings.Join(parts, ", "))
}
