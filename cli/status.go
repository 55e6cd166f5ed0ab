package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

type statusOptions struct {
	ctids    ctidSet
	probe    bool
	noProbe  bool
	exitCode bool
}

func (p *Program) statusCommand() *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status [CTID...]",
		Short: "Compare the containers with the fleet file: desired, configured, effective, probed",
		Long: `Compare what each container of the fleet file is to have with what its conf gives it (configured), what it
really has (effective), and which devices can be opened inside it (probed). Nothing is changed.

STATE is in sync, drift (they differ), in progress (a run works on it), missing (no node has it) or unknown (its
node does not answer). A probed GPU is open, refused, absent, or open (no driver): the way to it is free, but nothing
answers there.

Exit status: 0, also with drift unless --exit-code is given; 1 if a node does not answer.`,
		Args: ctidsArgs,
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			o.ctids.add(args)
			return fleetStatus(ctx, s, o)
		}),
	}
	o.ctids.flag(cmd.Flags())
	cmd.Flags().BoolVar(&o.probe, "probe", true, "open each device inside the running containers")
	cmd.Flags().BoolVar(&o.noProbe, "no-probe", false, "open no devices: quicker")
	cmd.Flags().BoolVar(&o.exitCode, "exit-code", false, "exit with 1 if a container is not in sync")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("probe") && cmd.Flags().Changed("no-probe") {
			return misuse(cmd, errors.New("--probe and --no-probe exclude each other"))
		}
		return nil
	}
	return cmd
}

func fleetStatus(ctx context.Context, s *session, o statusOptions) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewFleetServiceClient(s.conn).GetStatus(ctx, &controllerv1.GetStatusRequest{
		Ctids: o.ctids, Probe: o.probe && !o.noProbe,
	})
	if err != nil {
		return fmt.Errorf("compare with the fleet file: %w", err)
	}
	if s.json {
		err = output.WriteJSON(s.out, r)
	} else {
		err = writeStatus(s, r)
	}
	err = errors.Join(err, unreachable(r.GetUnreachable()))
	if err == nil && o.exitCode && slices.ContainsFunc(r.GetContainers(), outOfSync) {
		err = errQuiet
	}
	return err
}

func outOfSync(c *controllerv1.ContainerStatus) bool {
	return c.GetState() != controllerv1.SyncState_SYNC_STATE_IN_SYNC
}

func writeStatus(s *session, r *controllerv1.GetStatusResponse) error {
	t := output.NewTable(s.paint, "CTID", "name", "node", "state", "desired", "configured", "effective", "probed")
	for _, c := range r.GetContainers() {
		node := c.GetObserved().GetNode()
		if node == "" {
			node = c.GetDesired().GetNode()
		}
		t.Row(strconv.Itoa(int(c.GetDesired().GetCtid())), c.GetDesired().GetName(), node, syncState(c),
			desired(c), configured(c.GetObserved()), running(c.GetObserved()), probed(c))
	}
	if err := t.Write(s.out); err != nil {
		return err
	}
	writeDrift(s, r)
	if len(r.GetUnmanaged()) > 0 {
		fmt.Fprintf(s.out, "\nNot in the fleet file, but with a GPU:\n")
		for _, c := range r.GetUnmanaged() {
			fmt.Fprintf(s.out, "%s %s\n", s.paint.Text(output.Warn, fmt.Sprintf("%d:", c.GetCtid())),
				output.Clean(fmt.Sprintf("%s on %s, %s, %s", c.GetHostname(), c.GetNode(), word(c.GetState()), gpuText(gpus(c.GetConfigured())))))
		}
	}
	return nil
}

// writeDrift says under the table what the marks in it mean.
func writeDrift(s *session, r *controllerv1.GetStatusResponse) {
	var b strings.Builder
	for _, c := range r.GetContainers() {
		ctid := c.GetDesired().GetCtid()
		line := func(color output.Color, text string) {
			fmt.Fprintf(&b, "%s %s\n", s.paint.Text(color, fmt.Sprintf("%d:", ctid)), output.Clean(text))
		}
		for _, d := range c.GetDrift() {
			line(output.Warn, d)
		}
		if c.GetProbeError() != "" {
			line(output.Warn, "not probed: "+c.GetProbeError())
		}
		for _, p := range c.GetProbe() {
			// While a restart is pending a probe only says so again, for each device.
			if !asExpected(p) && p.GetMessage() != "" && !c.GetObserved().GetRestartPending() {
				line(output.Bad, p.GetPath()+": "+p.GetMessage())
			}
		}
		if c.GetRun() != "" {
			line(output.Info, "run "+c.GetRun()+" works on it")
		}
	}
	if b.Len() > 0 {
		fmt.Fprintf(s.out, "\n%s", b.String())
	}
}

func syncState(c *controllerv1.ContainerStatus) output.Cell {
	cell := output.Cell{Text: word(c.GetState())}
	switch c.GetState() {
	case controllerv1.SyncState_SYNC_STATE_IN_SYNC:
		cell.Color = output.Good
	case controllerv1.SyncState_SYNC_STATE_IN_PROGRESS:
		cell.Color = output.Info
	case controllerv1.SyncState_SYNC_STATE_DRIFT:
		cell = output.Cell{Text: "DRIFT", Color: output.Warn}
	case controllerv1.SyncState_SYNC_STATE_MISSING:
		cell = output.Cell{Text: "MISSING", Color: output.Bad}
	default:
		cell.Color = output.Bad
	}
	return cell
}

// desired, configured and running show GPUs with the mode, "none" for no GPU, and nothing if there is nothing to say.

func desired(c *controllerv1.ContainerStatus) string {
	assignment := c.GetDesired().GetGpuAssignment()
	if assignment == "none" {
		return assignment
	}
	text := shortUUIDs(assignment)
	if is := assignedGPUs(c.GetDesiredGpus()); is != assignment && len(c.GetDesiredGpus()) > 0 {
		text += " (" + is + ")"
	}
	return text + " " + word(c.GetDesired().GetMode())
}

func configured(c *typev1.Container) string {
	if c == nil {
		return ""
	}
	return passthroughText(c.GetConfigured())
}

func running(c *typev1.Container) output.Cell {
	switch {
	case c == nil:
		return output.Cell{}
	case c.GetEffective() == nil:
		return output.Cell{Text: word(c.GetState()), Color: output.Faint}
	case c.GetRestartPending():
		return output.Cell{Text: passthroughText(c.GetEffective()), Color: output.Warn}
	default:
		return output.Cell{Text: passthroughText(c.GetEffective())}
	}
}

func passthroughText(p *typev1.Passthrough) string {
	if len(p.GetGpus()) == 0 {
		if len(p.GetDevices()) > 0 {
			return "none, but " + count(len(p.GetDevices()), "device")
		}
		return "none"
	}
	return strings.TrimSpace(gpus(p) + " " + word(p.GetMode())) // what is in effect has no mode
}

// probed sums up a probe: the GPUs by what happened, in the order of the first of each, and shared devices only if
// they are not as expected.
func probed(c *controllerv1.ContainerStatus) output.Cell {
	if len(c.GetProbe()) == 0 {
		if c.GetProbeError() != "" {
			return output.Cell{Text: "not probed", Color: output.Warn}
		}
		return output.Cell{}
	}
	return probeSummary(c.GetProbe())
}

func probeSummary(results []*typev1.ProbeResult) output.Cell {
	cell := output.Cell{Color: output.Good}
	type part struct {
		outcome string
		names   []string
	}
	var parts []part
	add := func(outcome, name string) {
		i := slices.IndexFunc(parts, func(p part) bool { return p.outcome == outcome })
		if i < 0 {
			i = len(parts)
			parts = append(parts, part{outcome: outcome})
		}
		parts[i].names = append(parts[i].names, name)
	}
	results = slices.Clone(results)
	slices.SortStableFunc(results, func(a, b *typev1.ProbeResult) int {
		// What is meant to be there first; then the GPUs by index; the shared devices last.
		return orderOf(a) - orderOf(b)
	})
	for _, p := range results {
		outcome := probeWord(p.GetOutcome())
		if !asExpected(p) {
			cell.Color = output.Bad
			outcome = strings.ToUpper(outcome)
		}
		switch {
		case p.GetGpuIndex() >= 0 && !strings.HasPrefix(p.GetPath(), "/dev/dri/") && !strings.HasPrefix(p.GetPath(), "/dev/nvidia-caps/"):
			add(outcome, strconv.Itoa(int(p.GetGpuIndex())))
		case !asExpected(p):
			add(outcome, strings.TrimPrefix(p.GetPath(), "/dev/"))
		}
	}
	var s []string
	for _, p := range parts {
		s = append(s, strings.Join(p.names, ",")+" "+p.outcome)
	}
	if cell.Text = strings.Join(s, "; "); cell.Text == "" {
		cell.Text = "as expected"
	}
	return cell
}

func orderOf(p *typev1.ProbeResult) int {
	order := int(p.GetGpuIndex())
	if order < 0 {
		order = 1 << 20
	}
	if !p.GetExpected() {
		order += 1 << 10
	}
	return order
}

func probeWord(o typev1.ProbeOutcome) string {
	switch o {
	case typev1.ProbeOutcome_PROBE_OUTCOME_OPENED:
		return "open"
	case typev1.ProbeOutcome_PROBE_OUTCOME_NO_DRIVER:
		return "open (no driver)"
	case typev1.ProbeOutcome_PROBE_OUTCOME_DENIED:
		return "refused"
	default:
		return word(o)
	}
}

// asExpected tells whether a probe found what the conf in force means to give: an open device, or none. An open that
// no driver answers counts as open: access is what a container is given.
func asExpected(p *typev1.ProbeResult) bool {
	open := p.GetOutcome() == typev1.ProbeOutcome_PROBE_OUTCOME_OPENED ||
		p.GetOutcome() == typev1.ProbeOutcome_PROBE_OUTCOME_NO_DRIVER
	return open == p.GetExpected()
}
