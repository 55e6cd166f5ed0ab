package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func (p *Program) probeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "probe CTID",
		Short: "Open every NVIDIA device from inside a container",
		Long: `Open every NVIDIA device of the node from inside a running container, and show what happens.

Exit status: 0 if every device that the conf in force gives can be opened and no other; else 1.`,
		Args: ctidArgs(1, "CTID"),
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			return probe(ctx, s, mustCTID(args[0]))
		}),
	}
}

func probe(ctx context.Context, s *session, ctid int32) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewContainerServiceClient(s.conn).Probe(ctx, &controllerv1.ProbeRequest{Ctid: ctid})
	if err != nil {
		return fmt.Errorf("probe CTID %d: %w", ctid, err)
	}
	if s.json {
		err = output.WriteJSON(s.out, r)
	} else {
		err = writeProbe(s, r.GetResults())
	}
	if err == nil && slices.ContainsFunc(r.GetResults(), func(p *typev1.ProbeResult) bool { return !asExpected(p) }) {
		err = errQuiet
	}
	return err
}

func writeProbe(s *session, results []*typev1.ProbeResult) error {
	t := output.NewTable(s.paint, "path", "GPU", "expected", "found", "errno", "numbers", "meaning")
	for _, p := range results {
		gpu, expected, numbers := "shared", "closed", ""
		if p.GetGpuIndex() >= 0 {
			gpu = strconv.Itoa(int(p.GetGpuIndex()))
		}
		if p.GetExpected() {
			expected = "open"
		}
		if p.GetMajor() >= 0 && p.GetMinor() >= 0 {
			numbers = fmt.Sprintf("%d:%d", p.GetMajor(), p.GetMinor())
		}
		found := output.Cell{Text: probeWord(p.GetOutcome()), Color: output.Good}
		if !asExpected(p) {
			found.Color = output.Bad
		}
		t.Row(p.GetPath(), gpu, expected, found, p.GetErrno(), numbers, p.GetMessage())
	}
	return t.Write(s.out)
}
