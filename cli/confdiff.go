package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

type confDiffOptions struct {
	ctid     int32
	other    int32 // 0 with revision
	revision int64 // 0 with other
	all      bool
}

func (p *Program) confDiffCommand() *cobra.Command {
	var o confDiffOptions
	cmd := &cobra.Command{
		Use:   "diff CTID (CTID | --revision N)",
		Short: "Compare two containers by meaning, or a conf with an older revision",
		Long: `Compare two containers by what their confs mean: GPUs first, then the state, then properties, then raw lines. Only
what differs is shown. What is bound to differ between any two containers (hostname, addresses, volumes, description)
is left out unless --all is given.

With --revision a container's conf is compared with an older revision of it, line by line.`,
		Args: ctidArgs(1, "CTID", "CTID"),
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			o.ctid = mustCTID(args[0])
			if o.revision > 0 {
				return confDiffRevision(ctx, s, o)
			}
			o.other = mustCTID(args[1])
			return confDiff(ctx, s, o)
		}),
	}
	revisionFlag(cmd, &o.revision)
	cmd.Flags().BoolVar(&o.all, "all", false, "also what is bound to differ")
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return err
		}
		if o.revision > 0 && len(args) == 2 {
			return misuse(cmd, fmt.Errorf("%s: a second CTID and --revision exclude each other", nameOf(cmd)))
		}
		if o.revision == 0 && len(args) == 1 {
			return misuse(cmd, fmt.Errorf("%s: a second CTID or --revision is missing", nameOf(cmd)))
		}
		return nil
	}
	return cmd
}

func confDiffRevision(ctx context.Context, s *session, o confDiffOptions) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	client := controllerv1.NewContainerServiceClient(s.conn)
	old, err := client.GetRevision(ctx, &controllerv1.GetRevisionRequest{Ctid: o.ctid, Revision: o.revision})
	if err != nil {
		return fmt.Errorf("read revision %d of CTID %d: %w", o.revision, o.ctid, err)
	}
	now, err := client.GetContainer(ctx, &controllerv1.GetContainerRequest{Ctid: o.ctid})
	if err != nil {
		return fmt.Errorf("read the conf of CTID %d: %w", o.ctid, err)
	}
	if s.json {
		if err := output.WriteJSONLine(s.out, old); err != nil {
			return err
		}
		return output.WriteJSONLine(s.out, now)
	}
	if string(old.GetConf()) == string(now.GetConf()) {
		_, err := fmt.Fprintf(s.out, "The conf of CTID %d is the same as revision %d.\n", o.ctid, o.revision)
		return err
	}
	name := confName(o.ctid)
	return output.WriteDiff(s.out, s.paint, "", fmt.Sprintf("%s (revision %d)", name, o.revision), name, old.GetConf(), now.GetConf())
}

func confDiff(ctx context.Context, s *session, o confDiffOptions) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	client := controllerv1.NewContainerServiceClient(s.conn)
	var cs [2]*controllerv1.GetContainerResponse
	for i, ctid := range []int32{o.ctid, o.other} {
		var err error
		if cs[i], err = client.GetContainer(ctx, &controllerv1.GetContainerRequest{Ctid: ctid}); err != nil {
			return fmt.Errorf("read the conf of CTID %d: %w", ctid, err)
		}
	}
	if s.json {
		if err := output.WriteJSONLine(s.out, cs[0]); err != nil {
			return err
		}
		return output.WriteJSONLine(s.out, cs[1])
	}
	differences := compare(cs[0], cs[1], o.all)
	if len(differences) == 0 {
		_, err := fmt.Fprintf(s.out, "CTID %d and CTID %d do not differ.\n", o.ctid, o.other)
		return err
	}
	t := output.NewTable(s.paint, "", "what", fmt.Sprint(o.ctid), fmt.Sprint(o.other))
	for _, d := range differences {
		t.Row(d.part, d.what, output.Cell{Text: d.a, Color: output.Bad}, output.Cell{Text: d.b, Color: output.Good})
	}
	return t.Write(s.out)
}

// A difference is one thing in which two containers differ; an empty side has no such thing.
type difference struct {
	part string // "GPU", "state", "conf", "raw"
	what string
	a, b string
}

// compare returns the differences of two containers, the GPU part first.
func compare(a, b *controllerv1.GetContainerResponse, all bool) []difference {
	d := differences{}
	d.gpus(a.GetContainer(), b.GetContainer())
	d.state(a.GetContainer(), b.GetContainer())
	d.conf("conf", properties(a.GetEntries(), all), properties(b.GetEntries(), all))
	if all {
		d.add("conf", "snapshots", strings.Join(a.GetSnapshots(), ", "), strings.Join(b.GetSnapshots(), ", "))
	}
	d.conf("pending", properties(a.GetPending(), all), properties(b.GetPending(), all))
	d.raw(a.GetEntries(), b.GetEntries())
	return d
}

type differences []difference

func (d *differences) add(part, what, a, b string) {
	if a != b {
		*d = append(*d, difference{part, what, a, b})
	}
}

func (d *differences) gpus(a, b *typev1.Container) {
	d.add("GPU", "configured", passthroughText(a.GetConfigured()), passthroughText(b.GetConfigured()))
	d.add("GPU", "effective", effectively(a), effectively(b))
	d.add("GPU", "restart pending", yesNo(a.GetRestartPending()), yesNo(b.GetRestartPending()))
	d.devices("device", a.GetConfigured(), b.GetConfigured())
	if a.GetEffective() != nil && b.GetEffective() != nil {
		d.devices("effective device", a.GetEffective(), b.GetEffective())
	}
	kinds := func(c *typev1.Container) map[string]string {
		m := map[string]string{}
		for _, p := range c.GetProblems() {
			m["problem: "+word(p.GetKind())] = p.GetMessage()
		}
		return m
	}
	pa, pb := kinds(a), kinds(b)
	for _, kind := range keys(pa, pb) {
		if (pa[kind] == "") != (pb[kind] == "") { // the same problem in other words is no difference
			d.add("GPU", kind, pa[kind], pb[kind])
		}
	}
}

func effectively(c *typev1.Container) string {
	if c.GetEffective() == nil {
		return word(c.GetState())
	}
	return passthroughText(c.GetEffective())
}

func (d *differences) devices(what string, a, b *typev1.Passthrough) {
	numbers := func(p *typev1.Passthrough) map[string]string {
		m := map[string]string{}
		for _, dev := range p.GetDevices() {
			text := "given"
			if dev.GetMajor() >= 0 && dev.GetMinor() >= 0 {
				text = fmt.Sprintf("%d:%d", dev.GetMajor(), dev.GetMinor())
			}
			m[dev.GetPath()] = text
		}
		return m
	}
	na, nb := numbers(a), numbers(b)
	for _, path := range keys(na, nb) {
		d.add("GPU", what+" "+path, na[path], nb[path])
	}
}

func (d *differences) state(a, b *typev1.Container) {
	d.add("state", "node", a.GetNode(), b.GetNode())
	d.add("state", "state", word(a.GetState()), word(b.GetState()))
	d.add("state", "lock", a.GetLock(), b.GetLock())
	d.add("state", "template", yesNo(a.GetTemplate()), yesNo(b.GetTemplate()))
	d.add("state", "unprivileged", yesNo(a.GetUnprivileged()), yesNo(b.GetUnprivileged()))
}

// conf compares properties. Those that are lists of options, net0 for example, are compared option by option.
func (d *differences) conf(part string, a, b map[string]string) {
	for _, key := range keys(a, b) {
		va, vb := a[key], b[key]
		if va == "" || vb == "" || !strings.Contains(va+vb, "=") || !listed(key) {
			d.add(part, key, va, vb)
			continue
		}
		oa, ob := options(va), options(vb)
		for _, option := range keys(oa, ob) {
			d.add(part, key+" "+option, oa[option], ob[option])
		}
	}
}

// raw compares the lxc.* lines as sets: their order matters to LXC only between lines of one key, and then seldom.
func (d *differences) raw(a, b []*typev1.ConfEntry) {
	lines := func(entries []*typev1.ConfEntry) map[string]int {
		m := map[string]int{}
		for _, e := range entries {
			if strings.HasPrefix(e.GetKey(), "lxc.") {
				m[e.GetKey()+": "+strings.Join(strings.Fields(e.GetValue()), " ")]++
			}
		}
		return m
	}
	la, lb := lines(a), lines(b)
	for _, line := range keys(la, lb) {
		key, value, _ := strings.Cut(line, ": ")
		d.add("raw", key, times(value, la[line]), times(value, lb[line]))
	}
}

func times(value string, n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return value
	default:
		return fmt.Sprintf("%s (%d times)", value, n)
	}
}

// properties returns the properties by key, without what is bound to differ between two containers.
func properties(entries []*typev1.ConfEntry, all bool) map[string]string {
	m := map[string]string{}
	for _, e := range entries {
		key, value := e.GetKey(), e.GetValue()
		if strings.HasPrefix(key, "lxc.") || key == "lock" || key == "template" || key == "unprivileged" {
			continue // shown as raw lines, or as state
		}
		if !all {
			if slices.Contains([]string{"hostname", "description", "parent", "digest"}, key) {
				continue
			}
			value = withoutIdentity(key, value)
		}
		m[key] = value
	}
	return m
}

// listed tells whether a property is a list of options, comma separated.
func listed(key string) bool {
	name := strings.TrimRight(key, "0123456789")
	return slices.Contains([]string{"net", "mp", "rootfs", "dev", "features", "unused", "startup"}, name)
}

// withoutIdentity leaves out of a property what names this container and no other.
func withoutIdentity(key, value string) string {
	name := strings.TrimRight(key, "0123456789")
	var kept []string
	for i, option := range strings.Split(value, ",") {
		k, _, assigned := strings.Cut(option, "=")
		switch {
		case name == "net" && slices.Contains([]string{"hwaddr", "ip", "ip6"}, k),
			(name == "rootfs" || name == "mp") && i == 0 && !assigned, // the volume
			(name == "rootfs" || name == "mp") && k == "volume":
		default:
			kept = append(kept, option)
		}
	}
	if len(kept) == 0 {
		return "(volume)"
	}
	return strings.Join(kept, ",")
}

// options returns the options of a list; the one without a name is called "value".
func options(value string) map[string]string {
	m := map[string]string{}
	for option := range strings.SplitSeq(value, ",") {
		k, v, ok := strings.Cut(option, "=")
		if !ok {
			k, v = "value", option
		}
		m[k] = v
	}
	return m
}

// keys returns the keys of both maps, in order: numbers within names by their value, so dev2 stands before dev10.
func keys[V any](a, b map[string]V) []string {
	all := slices.Collect(maps.Keys(a))
	all = slices.AppendSeq(all, maps.Keys(b))
	slices.SortFunc(all, func(x, y string) int {
		nx, ny := strings.TrimRight(x, "0123456789"), strings.TrimRight(y, "0123456789")
		return cmp.Or(cmp.Compare(nx, ny), cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
	})
	return slices.Compact(all)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
