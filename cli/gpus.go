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
	"google.golang.org/protobuf/proto"

	"phoenix.internal/cli/output"
	"phoenix.internal/controller/client"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

type gpusOptions struct {
	node   string
	unused bool
}

func (p *Program) gpusCommand() *cobra.Command {
	var o gpusOptions
	cmd := &cobra.Command{
		Use:   "gpus",
		Short: "List every GPU with the containers that are to have it, have it and use it",
		Long: `List every GPU of the nodes, and every MIG device, with the CTIDs

  assigned     to which the fleet file gives it
  configured   whose confs give it
  effective    that run and really have it
  in use by    whose processes use it now; "host" is a process outside of all containers

and with what is wrong where these differ. What uses a GPU is known only where the node has NVML.

Exit status: 0, whatever the remarks; 1 if a node does not answer.`,
		Args: exactly(),
		RunE: p.connected(func(ctx context.Context, s *session, _ []string) error {
			return ledger(ctx, s, o)
		}),
	}
	cmd.Flags().StringVar(&o.node, "node", "", "only this `NODE`")
	cmd.Flags().BoolVar(&o.unused, "unused", false, "only what no conf gives to a container")
	return cmd
}

// A ledgerRow is a GPU or a MIG device, with everybody who has to do with it.
type ledgerRow struct {
	node string
	gpu  *typev1.Gpu
	mig  *typev1.MigDevice // nil: the whole GPU

	exclusive                       []int32 // of those it is assigned to
	assigned, configured, effective []int32 // CTIDs, ascending
	processes                       []*typev1.GpuProcess
	remarks                         []ledgerRemark
}

// A ledgerRemark is something that a person should know about a row.
type ledgerRemark struct {
	Kind  string  `json:"kind"`
	Text  string  `json:"text"`
	CTIDs []int32 `json:"ctids"` // whom it is about
	color output.Color
}

// observed is what the ledger is made of.
type observed struct {
	devices    *controllerv1.ListDevicesResponse
	containers *controllerv1.ListContainersResponse
	status     *controllerv1.GetStatusResponse // nil: there is no fleet file that can be read
	noFleet    error                           // why
}

func ledger(ctx context.Context, s *session, o gpusOptions) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	seen, err := observe(ctx, s, o.node)
	if err != nil {
		return err
	}
	rows := ledgerRows(seen)
	if o.unused {
		rows = unusedRows(rows)
	}
	missing := slices.Concat(seen.devices.GetUnreachable(), seen.containers.GetUnreachable())
	slices.SortFunc(missing, func(a, b *typev1.NodeError) int { return strings.Compare(a.GetNode(), b.GetNode()) })
	missing = slices.CompactFunc(missing, func(a, b *typev1.NodeError) bool { return a.GetNode() == b.GetNode() })
	if s.json {
		err = writeLedgerJSON(s, rows, seen.noFleet, missing)
	} else {
		err = writeLedger(s, rows, seen)
	}
	return errors.Join(err, unreachable(missing))
}

func observe(ctx context.Context, s *session, node string) (seen observed, err error) {
	seen.devices, err = controllerv1.NewNodeServiceClient(s.conn).ListDevices(ctx, &controllerv1.ListDevicesRequest{Node: node})
	if err != nil {
		return seen, fmt.Errorf("list the GPUs: %w", err)
	}
	seen.containers, err = controllerv1.NewContainerServiceClient(s.conn).ListContainers(ctx, &controllerv1.ListContainersRequest{Node: node})
	if err != nil {
		return seen, fmt.Errorf("list the containers: %w", err)
	}
	seen.status, err = controllerv1.NewFleetServiceClient(s.conn).GetStatus(ctx, &controllerv1.GetStatusRequest{})
	switch reason, _ := client.Reason(err); reason {
	case errorv1.Reason_REASON_FLEET_UNREADABLE, errorv1.Reason_REASON_FLEET_INVALID:
		seen.status, seen.noFleet, err = nil, err, nil
	}
	if err != nil {
		return seen, fmt.Errorf("compare with the fleet file: %w", err)
	}
	return seen, nil
}

// ledgerRows returns the GPUs by node and PCI address, each followed by its MIG devices.
func ledgerRows(seen observed) []*ledgerRow {
	var rows []*ledgerRow
	for _, n := range seen.devices.GetNodes() {
		for _, g := range n.GetGpus() {
			rows = append(rows, &ledgerRow{node: n.GetNode(), gpu: g, processes: g.GetProcesses()})
			for _, m := range g.GetMigDevices() {
				rows = append(rows, &ledgerRow{node: n.GetNode(), gpu: g, mig: m})
			}
		}
	}
	byCTID := make(map[int32]*typev1.Container)
	for _, c := range seen.containers.GetContainers() {
		byCTID[c.GetCtid()] = c
	}
	managed := make(map[int32]bool)
	for _, c := range seen.status.GetContainers() {
		managed[c.GetDesired().GetCtid()] = true
	}
	for _, r := range rows {
		for _, c := range seen.status.GetContainers() {
			if c.GetObserved().GetNode() != r.node || !slices.ContainsFunc(c.GetDesiredGpus(), r.isAssigned) {
				continue
			}
			r.assigned = append(r.assigned, c.GetDesired().GetCtid())
			if c.GetDesired().GetGpuPolicy() == controllerv1.GpuPolicy_GPU_POLICY_EXCLUSIVE {
				r.exclusive = append(r.exclusive, c.GetDesired().GetCtid())
			}
		}
		for _, c := range seen.containers.GetContainers() {
			if c.GetNode() != r.node {
				continue
			}
			if slices.ContainsFunc(c.GetConfigured().GetGpus(), r.is) {
				r.configured = append(r.configured, c.GetCtid())
			}
			if slices.ContainsFunc(c.GetEffective().GetGpus(), r.is) {
				r.effective = append(r.effective, c.GetCtid())
			}
			r.addProcesses(c)
		}
		r.remark(seen.status != nil, managed, byCTID)
	}
	return rows
}

// is tells whether a container that has ref has this.
func (r *ledgerRow) is(ref *typev1.GpuRef) bool {
	return r.matches(ref.GetUuid(), ref.GetIndex(), ref.GpuInstanceId != nil, ref.GetGpuInstanceId(), ref.GetComputeInstanceId())
}

// isAssigned tells whether an assignment of a means this.
func (r *ledgerRow) isAssigned(a *controllerv1.AssignedGpu) bool {
	return r.matches(a.GetUuid(), a.GetIndex(), a.GetMig() != nil, a.GetMig().GetGpuInstanceId(), a.GetMig().GetComputeInstanceId())
}

// matches compares UUIDs where both are known: an index may have gone to another card between two answers.
func (r *ledgerRow) matches(uuid string, index int32, mig bool, gpuInstance, computeInstance int32) bool {
	if mig != (r.mig != nil) || mig && (r.mig.GetGpuInstanceId() != gpuInstance || r.mig.GetComputeInstanceId() != computeInstance) {
		return false
	}
	if uuid != "" && r.gpu.GetUuid() != "" {
		return uuid == r.gpu.GetUuid()
	}
	return index >= 0 && index == r.gpu.GetIndex()
}

// addProcesses adds to a MIG device the processes of a container that has no other one of the same GPU; of several, nothing
// tells which a process uses. The row of the GPU has them all.
func (r *ledgerRow) addProcesses(c *typev1.Container) {
	if r.mig == nil || !slices.ContainsFunc(c.GetEffective().GetGpus(), r.is) {
		return
	}
	of := 0
	for _, ref := range c.GetEffective().GetGpus() {
		if ref.GetIndex() == r.gpu.GetIndex() {
			of++
		}
	}
	if of > 1 {
		return
	}
	for _, p := range r.gpu.GetProcesses() {
		if p.GetCtid() == c.GetCtid() {
			r.processes = append(r.processes, p)
		}
	}
}

// remark says where what is meant, written, in force and in use differ.
func (r *ledgerRow) remark(fleet bool, managed map[int32]bool, containers map[int32]*typev1.Container) {
	add := func(color output.Color, kind, text string, ctids ...int32) {
		r.remarks = append(r.remarks, ledgerRemark{Kind: kind, Text: text, CTIDs: ctids, color: color})
	}
	about := func(color output.Color, kind, text string, ctids []int32) {
		if len(ctids) > 0 {
			add(color, kind, text+" "+joinInts(ctids), ctids...)
		}
	}
	for _, vmid := range r.gpu.GetVms() {
		add(output.Warn, "vm_conf", fmt.Sprintf("taken by VM %d at its start", vmid))
	}
	switch driver := r.gpu.GetDriver(); driver {
	case typev1.GpuDriver_GPU_DRIVER_NVIDIA:
	case typev1.GpuDriver_GPU_DRIVER_VFIO_PCI:
		add(output.Warn, "vm", "bound to vfio-pci: for a VM")
	default:
		add(output.Warn, "no_driver", "not bound to nvidia: "+cmp.Or(word(driver), "unknown"))
	}

	waiting, absent := divide(without(r.configured, r.effective), func(ctid int32) bool { return containers[ctid].GetRestartPending() })
	about(output.Warn, "restart_pending", "restart pending:", waiting)
	about(output.Bad, "not_effective", "given by the conf, but not there:", slices.DeleteFunc(absent, func(ctid int32) bool {
		return containers[ctid].GetEffective() == nil // it does not run
	}))
	about(output.Warn, "not_configured", "there until a restart, but not given by the conf:", without(r.effective, r.configured))
	has := union(r.configured, r.effective)
	if fleet {
		about(output.Warn, "not_applied", "not applied:", without(r.assigned, r.configured))
		given, foreign := divide(has, func(ctid int32) bool { return managed[ctid] })
		about(output.Warn, "not_assigned", "not assigned to", without(given, r.assigned))
		about(output.Warn, "not_in_fleet", "not in the fleet file:", foreign)
	}
	if len(r.exclusive) > 0 {
		others := without(union(r.assigned, has), r.exclusive[:1])
		about(output.Bad, "not_exclusive", fmt.Sprintf("exclusive to %d, but also of", r.exclusive[0]), others)
	}
	if r.mig == nil && r.gpu.GetMigEnabled() {
		about(output.Bad, "mig_enabled", "divided by MIG, of no use whole:", has)
		return // its processes have MIG devices
	}
	var users []int32
	for _, p := range r.processes {
		if p.GetCtid() != 0 {
			users = union(users, []int32{p.GetCtid()})
		}
	}
	about(output.Bad, "not_given", "used without being given to", without(users, r.effective))
}

// without returns those of a that are not in b.
func without(a, b []int32) []int32 {
	_, rest := divide(a, func(n int32) bool { return slices.Contains(b, n) })
	return rest
}

// union returns what is in a or b, ascending.
func union(a, b []int32) []int32 {
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(a, b))))
}

// divide returns those of ns for which is holds, and the others.
func divide(ns []int32, is func(int32) bool) (those, others []int32) {
	for _, n := range ns {
		if is(n) {
			those = append(those, n)
		} else {
			others = append(others, n)
		}
	}
	return those, others
}

// unusedRows leaves out what is configured, and GPUs of which a MIG device is.
func unusedRows(rows []*ledgerRow) []*ledgerRow {
	taken := make(map[*typev1.Gpu]bool)
	for _, r := range rows {
		taken[r.gpu] = taken[r.gpu] || len(r.configured) > 0
	}
	return slices.DeleteFunc(rows, func(r *ledgerRow) bool {
		return len(r.configured) > 0 || r.mig == nil && taken[r.gpu]
	})
}

func writeLedger(s *session, rows []*ledgerRow, seen observed) error {
	t := output.NewTable(s.paint, "node", "GPU", "model", "UUID", "memory", "health", "policy", "assigned", "configured",
		"effective", "in use by", "remarks")
	for _, r := range rows {
		t.Row(r.node, r.name(), r.model(), shortUUIDs(r.uuid()), r.memory(), gpuHealth(r.gpu), r.policy(),
			joinInts(r.assigned), joinInts(r.configured), joinInts(r.effective), r.users(), r.remarkCell())
	}
	if err := t.Write(s.out); err != nil {
		return err
	}
	writeGone(s, seen)
	if seen.noFleet != nil {
		first, _, _ := strings.Cut(describe(seen.noFleet, Config{}).Error(), "\n") // validate shows all of a file's mistakes
		s.warn("what is assigned is not known: %s", first)
	}
	return nil
}

// writeGone names the containers that are to have or have GPUs which are in no row.
func writeGone(s *session, seen observed) {
	var b strings.Builder
	line := func(ctid int32, text string) {
		fmt.Fprintf(&b, "%s %s\n", s.paint.Text(output.Warn, fmt.Sprintf("%d:", ctid)), output.Clean(text))
	}
	here := make(map[int32]bool)
	for _, c := range seen.containers.GetContainers() {
		here[c.GetCtid()] = true
		for _, ref := range c.GetConfigured().GetGpus() {
			if ref.GetIndex() < 0 {
				line(c.GetCtid(), fmt.Sprintf("its conf gives /dev/nvidia%d, which is no GPU of %s", ref.GetMinor(), c.GetNode()))
			}
		}
	}
	for _, c := range seen.status.GetContainers() {
		is := c.GetDesired()
		if here[is.GetCtid()] && is.GetGpuAssignment() != "none" &&
			!slices.ContainsFunc(c.GetDesiredGpus(), func(g *controllerv1.AssignedGpu) bool { return g.GetIndex() >= 0 }) {
			line(is.GetCtid(), fmt.Sprintf("the fleet file assigns %s, which %s cannot give; phoenix-cli plan %d says why",
				shortUUIDs(is.GetGpuAssignment()), c.GetObserved().GetNode(), is.GetCtid()))
		}
	}
	if b.Len() > 0 {
		fmt.Fprintf(s.out, "\nIn no row:\n%s", b.String())
	}
}

// name is how the fleet file names it: "0", "0:1" for a MIG device; the PCI address if it has no index.
func (r *ledgerRow) name() string {
	if r.gpu.GetIndex() < 0 {
		return r.gpu.GetPciAddress()
	}
	name := strconv.Itoa(int(r.gpu.GetIndex()))
	switch {
	case r.mig == nil:
		return name
	case r.mig.GetIndex() < 0:
		return fmt.Sprintf("%s:instance %d/%d", name, r.mig.GetGpuInstanceId(), r.mig.GetComputeInstanceId())
	}
	return fmt.Sprintf("%s:%d", name, r.mig.GetIndex())
}

func (r *ledgerRow) model() string {
	if r.mig != nil {
		return strings.TrimSpace("MIG " + r.mig.GetProfile())
	}
	return r.gpu.GetModel()
}

func (r *ledgerRow) uuid() string {
	if r.mig != nil {
		return r.mig.GetUuid()
	}
	return r.gpu.GetUuid()
}

// memory is what its processes use, if they tell, of the total.
func (r *ledgerRow) memory() string {
	total := r.gpu.MemoryMib
	if r.mig != nil {
		total = r.mig.MemoryMib
	}
	text := ""
	if total != nil {
		text = fmt.Sprintf("%d MiB", *total)
	}
	if used := r.used(); used > 0 {
		text = fmt.Sprintf("%d/%s", used, cmp.Or(text, "? MiB"))
	}
	return text
}

// used is the memory in MiB that its processes tell of; 0 if none does.
func (r *ledgerRow) used() (mib int64) {
	for _, p := range r.processes {
		mib += p.GetUsedMib()
	}
	return mib
}

func (r *ledgerRow) policy() string {
	switch {
	case len(r.exclusive) > 0:
		return "exclusive"
	case len(r.assigned) > 0:
		return "shared"
	}
	return ""
}

// users shows each container once, and each process that is in none.
func (r *ledgerRow) users() string {
	var ctids []int32
	host := 0
	for _, p := range r.processes {
		if p.GetCtid() == 0 {
			host++
			continue
		}
		ctids = union(ctids, []int32{p.GetCtid()})
	}
	text := joinInts(ctids)
	switch {
	case host > 0 && text != "":
		return text + ",host"
	case host > 0:
		return "host"
	}
	return text
}

func (r *ledgerRow) remarkCell() output.Cell {
	var cell output.Cell
	var s []string
	for _, m := range r.remarks {
		s = append(s, m.Text)
		if cell.Color != output.Bad {
			cell.Color = m.color
		}
	}
	cell.Text = strings.Join(s, "; ")
	return cell
}

// ledgerJSON is a ledgerRow as docs/cli.md has it.
type ledgerJSON struct {
	Node       string            `json:"node"`
	Name       string            `json:"name"`
	UUID       string            `json:"uuid"`
	GPU        json.RawMessage   `json:"gpu,omitempty"`
	MIGDevice  json.RawMessage   `json:"mig_device,omitempty"`
	Policy     string            `json:"policy"`
	Assigned   []int32           `json:"assigned"` // nil: unknown
	Configured []int32           `json:"configured"`
	Effective  []int32           `json:"effective"`
	Processes  []json.RawMessage `json:"processes"`
	Remarks    []ledgerRemark    `json:"remarks"`
}

func writeLedgerJSON(s *session, rows []*ledgerRow, noFleet error, missing []*typev1.NodeError) error {
	answer := struct {
		GPUs        []ledgerJSON      `json:"gpus"`
		FleetError  string            `json:"fleet_error"`
		Unreachable []json.RawMessage `json:"unreachable"`
	}{GPUs: []ledgerJSON{}}
	if noFleet != nil {
		answer.FleetError = describe(noFleet, Config{}).Error()
	}
	var err error
	if answer.Unreachable, err = rawList(missing); err != nil {
		return err
	}
	for _, r := range rows {
		j := ledgerJSON{Node: r.node, Name: r.name(), UUID: r.uuid(), Policy: r.policy(),
			Configured: r.configured, Effective: r.effective, Remarks: slices.Clone(r.remarks)}
		for _, list := range []*[]int32{&j.Configured, &j.Effective} {
			*list = append([]int32{}, *list...) // [], not null
		}
		if noFleet == nil {
			j.Assigned = append([]int32{}, r.assigned...)
		}
		if j.Remarks == nil {
			j.Remarks = []ledgerRemark{}
		}
		for i := range j.Remarks {
			j.Remarks[i].CTIDs = append([]int32{}, j.Remarks[i].CTIDs...)
		}
		if r.mig != nil {
			j.MIGDevice, err = output.RawJSON(r.mig)
		} else {
			j.GPU, err = output.RawJSON(r.gpu)
		}
		if err != nil {
			return err
		}
		if j.Processes, err = rawList(r.processes); err != nil {
			return err
		}
		answer.GPUs = append(answer.GPUs, j)
	}
	return output.WriteValue(s.out, answer)
}

// rawList returns messages as a JSON list that is never null.
func rawList[M proto.Message](messages []M) ([]json.RawMessage, error) {
	list := []json.RawMessage{}
	for _, m := range messages {
		raw, err := output.RawJSON(m)
		if err != nil {
			return nil, err
		}
		list = append(list, raw)
	}
	return list, nil
}
