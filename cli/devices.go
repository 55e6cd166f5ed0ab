package cli

import (
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

func (p *Program) devicesCommand() *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use:   "devices",
		Short: "List the GPUs of the nodes and their MIG devices, their device nodes and who has them",
		Args:  exactly(),
		RunE: p.connected(func(ctx context.Context, s *session, _ []string) error {
			return devices(ctx, s, node)
		}),
	}
	cmd.Flags().StringVar(&node, "node", "", "only this `NODE`")
	return cmd
}

func devices(ctx context.Context, s *session, node string) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewNodeServiceClient(s.conn).ListDevices(ctx, &controllerv1.ListDevicesRequest{Node: node})
	if err != nil {
		return fmt.Errorf("list the devices: %w", err)
	}
	if s.json {
		return errors.Join(output.WriteJSON(s.out, r), unreachable(r.GetUnreachable()))
	}
	t := output.NewTable(s.paint, "node", "GPU", "model", "memory", "bound to", "device", "numbers", "mode", "PCI address",
		"NUMA", "UUID", "CTIDs", "VMs")
	for _, n := range r.GetNodes() {
		for _, g := range n.GetGpus() {
			gpuRow(t, n.GetNode(), g)
			for _, m := range g.GetMigDevices() {
				migRow(t, n.GetNode(), g, m)
			}
		}
	}
	if err := t.Write(s.out); err != nil {
		return err
	}
	fmt.Fprintln(s.out)
	t = output.NewTable(s.paint, "node", "driver", "module", "majors", "shared device nodes")
	for _, n := range r.GetNodes() {
		driver := output.Cell{Text: n.GetDriverVersion()}
		module := "proprietary"
		if n.GetOpenKernelModule() {
			module = "open"
		}
		if driver.Text == "" {
			driver, module = output.Cell{Text: "not loaded", Color: output.Bad}, ""
		}
		t.Row(n.GetNode(), driver, module, majors(n), sharedNodes(n))
	}
	if err := t.Write(s.out); err != nil {
		return err
	}
	var problems strings.Builder
	for _, n := range r.GetNodes() {
		for _, problem := range n.GetProblems() {
			fmt.Fprintf(&problems, "%s %s\n", s.paint.Text(output.Warn, n.GetNode()+":"), output.Clean(problem))
		}
	}
	if problems.Len() > 0 {
		fmt.Fprintf(s.out, "\nProblems:\n%s", problems.String())
	}
	return unreachable(r.GetUnreachable())
}

func gpuRow(t *output.Table, node string, g *typev1.Gpu) {
	index, memory, numa := "", "", ""
	if g.GetIndex() >= 0 {
		index = strconv.Itoa(int(g.GetIndex()))
	}
	if g.MemoryMib != nil {
		memory = fmt.Sprintf("%d MiB", g.GetMemoryMib())
	}
	if g.GetNumaNode() >= 0 {
		numa = strconv.Itoa(int(g.GetNumaNode()))
	}
	bound := output.Cell{Text: strings.ReplaceAll(word(g.GetDriver()), " ", "-"), Color: output.Warn}
	if g.GetDriver() == typev1.GpuDriver_GPU_DRIVER_NVIDIA {
		bound.Color = output.Good
	}
	var path, numbers, mode output.Cell
	for _, d := range g.GetDeviceNodes() {
		path.Text = d.GetPath()
		numbers.Text = fmt.Sprintf("%d:%d", d.GetMajor(), d.GetMinor())
		mode.Text = fmt.Sprintf("%04o", d.GetMode())
		if d.GetState() != typev1.DeviceNodeState_DEVICE_NODE_STATE_OK {
			mode = output.Cell{Text: word(d.GetState()), Color: output.Bad}
		}
	}
	t.Row(node, index, g.GetModel(), memory, bound, path, numbers, mode, g.GetPciAddress(), numa, g.GetUuid(),
		joinInts(g.GetCtids()), joinInts(g.GetVms()))
}

// migRow adds a MIG device below its GPU. Of its capability nodes only one that is not usable is told.
func migRow(t *output.Table, node string, g *typev1.Gpu, m *typev1.MigDevice) {
	r := &ledgerRow{gpu: g, mig: m}
	var mode output.Cell
	for _, d := range m.GetDeviceNodes() {
		if d.GetState() != typev1.DeviceNodeState_DEVICE_NODE_STATE_OK {
			mode = output.Cell{Text: word(d.GetState()), Color: output.Bad}
		}
	}
	t.Row(node, r.name(), r.model(), r.memory(), "", "", "", mode, "", "", r.uuid(), joinInts(m.GetCtids()))
}

func majors(n *typev1.NodeDevices) string {
	var s []string
	for _, m := range n.GetMajors() {
		s = append(s, fmt.Sprintf("%s %d", m.GetName(), m.GetMajor()))
	}
	return strings.Join(s, ", ")
}

func sharedNodes(n *typev1.NodeDevices) output.Cell {
	var c output.Cell
	var s []string
	for _, d := range n.GetSharedNodes() {
		text := strings.TrimPrefix(d.GetPath(), "/dev/")
		if d.GetState() != typev1.DeviceNodeState_DEVICE_NODE_STATE_OK {
			text += " " + word(d.GetState())
			c.Color = output.Warn
		}
		s = append(s, text)
	}
	c.Text = strings.Join(s, ", ")
	return c
}
