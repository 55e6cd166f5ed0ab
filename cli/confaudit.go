package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"phoenix.internal/agent/confaudit"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

type confAuditOptions struct {
	ctids []int32 // empty: all
	node  string  // empty: all
}

func (p *Program) confAuditCommand() *cobra.Command {
	var o confAuditOptions
	var files bool
	cmd := &cobra.Command{
		Use:   "audit [CTID...] | audit --files FILE...",
		Short: "Tell what is dangerous, odd or without effect in confs",
		Long: `Tell what is dangerous, odd or without effect in the confs of containers: line ends hidden in values, programs that
run on the node, files and devices of the node that are given away, wildcard device rules, GPUs in privileged
containers, lines that Proxmox drops. Without CTIDs all containers of all nodes are looked at. Nothing is changed.

With --files the arguments are files ("-" is stdin), and nobody is asked: it needs no controller, no agent and no
settings.

Each finding is a line: CTID:LINE: SEVERITY (KIND): what it is; what to do. A danger gives the node away, a warning
weakens the container's walls or does not do what it says, a note is worth knowing.

Exit status: 0 if there is nothing worse than a note; else 1, also if a node or a conf is missing from the answer.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if files && len(args) == 0 {
				return misuse(cmd, fmt.Errorf("%s --files: FILE is missing", nameOf(cmd)))
			}
			if files {
				return nil
			}
			return ctidsArgs(cmd, args)
		},
		PreRunE: func(cmd *cobra.Command, args []string) error {
			if o.node != "" && len(args) > 0 {
				return misuse(cmd, fmt.Errorf("%s: CTIDs and --node exclude each other", nameOf(cmd)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if files {
				return p.alone(confAuditFiles)(cmd, args)
			}
			return p.connected(func(ctx context.Context, s *session, args []string) error {
				var set ctidSet
				o.ctids = set.add(args)
				return confAudit(ctx, s, o)
			})(cmd, args)
		},
	}
	cmd.Flags().StringVar(&o.node, "node", "", "all containers of this `NODE`")
	cmd.Flags().BoolVar(&files, "files", false, "the arguments are files, not CTIDs")
	excludeEachOther(cmd, "files", "node")
	return cmd
}

// An audited is one conf with what there is to say about it. The JSON names of it and of [remark] are documented.
type audited struct {
	CTID     int32    `json:"ctid,omitempty"` // or File
	Node     string   `json:"node,omitempty"`
	File     string   `json:"file,omitempty"`
	Digest   string   `json:"digest"`
	Findings []remark `json:"findings"`
}

// A remark is one thing to say about a conf.
type remark struct {
	Line     int    `json:"line"`    // from 1; 0 if it is about no single line
	Section  string `json:"section"` // empty for the main section, else "pve:pending" or the snapshot's name
	Severity string `json:"severity"`
	Kind     string `json:"kind"`
	Message  string `json:"message"`
	Advice   string `json:"advice"`

	severity confaudit.Severity
}

func confAuditFiles(ctx context.Context, s *session, paths []string) error {
	var confs []audited
	var errs []error
	for _, path := range paths {
		name, b, err := s.readConf(ctx, path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		f := pveconf.Parse(b)
		confs = append(confs, audited{File: name, Digest: f.Digest(), Findings: remarksOffline(f)})
	}
	return writeAudit(s, confs, nil, errors.Join(errs...))
}

// remarksOffline returns what can be said about a conf without its node.
func remarksOffline(f *pveconf.File) []remark {
	_, offline := passthrough.Offline(f)
	problems := make([]*typev1.Problem, len(offline))
	for i, p := range offline {
		problems[i] = &typev1.Problem{Kind: typev1.ProblemKind(p.Kind), Message: p.Message, Line: int32(p.Line), Advice: p.Advice}
	}
	return remarksOf(f, problems)
}

// confsAtOnce bounds the confs that are asked for at the same time.
const confsAtOnce = 8

func confAudit(ctx context.Context, s *session, o confAuditOptions) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	client := controllerv1.NewContainerServiceClient(s.conn)
	ctids, listed := o.ctids, len(o.ctids) == 0
	var missing []*typev1.NodeError
	if listed {
		r, err := client.ListContainers(ctx, &controllerv1.ListContainersRequest{Node: o.node})
		if err != nil {
			return fmt.Errorf("list the containers: %w", err)
		}
		for _, c := range r.GetContainers() {
			ctids = append(ctids, c.GetCtid())
		}
		ctids = slices.Compact(ctids) // one that is on two nodes is listed twice, and fails below
		missing = r.GetUnreachable()
	}
	confs, errs := make([]*audited, len(ctids)), make([]error, len(ctids))
	var calls errgroup.Group
	calls.SetLimit(confsAtOnce)
	for i, ctid := range ctids {
		calls.Go(func() error {
			confs[i], errs[i] = auditOne(ctx, client, ctid)
			if listed && status.Code(errs[i]) == codes.NotFound {
				errs[i] = nil // it is gone since it was listed
			}
			return nil
		})
	}
	_ = calls.Wait() // nil: what fails is in errs
	var found []audited
	for _, c := range confs {
		if c != nil {
			found = append(found, *c)
		}
	}
	return writeAudit(s, found, missing, errors.Join(errs...))
}

func auditOne(ctx context.Context, client controllerv1.ContainerServiceClient, ctid int32) (*audited, error) {
	r, err := client.GetContainer(ctx, &controllerv1.GetContainerRequest{Ctid: ctid})
	if err != nil {
		return nil, fmt.Errorf("read the conf of CTID %d: %w", ctid, err)
	}
	f := pveconf.Parse(r.GetConf())
	return &audited{
		CTID: ctid, Node: r.GetContainer().GetNode(), Digest: f.Digest(), Findings: remarksOf(f, r.GetContainer().GetProblems()),
	}, nil
}

// writeAudit writes what was found, and returns what makes the command fail: what could not be looked at, and what was
// found.
func writeAudit(s *session, confs []audited, missing []*typev1.NodeError, failed error) error {
	var err error
	switch {
	case s.json:
		err = writeAuditJSON(s, confs, missing)
	case len(confs) > 0 || failed == nil:
		err = writeAuditText(s, confs)
	}
	err = errors.Join(err, failed, unreachable(missing))
	worse := func(c audited) bool {
		return slices.ContainsFunc(c.Findings, func(r remark) bool { return r.severity > confaudit.Note })
	}
	if err == nil && slices.ContainsFunc(confs, worse) {
		err = errQuiet
	}
	return err
}

func writeAuditText(s *session, confs []audited) error {
	var b strings.Builder
	tally := map[confaudit.Severity]int{}
	for _, c := range confs {
		where := c.File
		if where == "" {
			where = strconv.Itoa(int(c.CTID))
		}
		for _, r := range c.Findings {
			b.WriteString(r.text(s.paint, where) + "\n")
			tally[r.severity]++
		}
	}
	fmt.Fprintf(&b, "%s: %s, %s, %s\n", count(len(confs), "conf"), count(tally[confaudit.Danger], "danger"),
		count(tally[confaudit.Warning], "warning"), count(tally[confaudit.Note], "note"))
	_, err := io.WriteString(s.out, b.String())
	return err
}

// text returns a remark as a line for people; where names the conf, and may be empty.
func (r remark) text(paint output.Paint, where string) string {
	color := map[confaudit.Severity]output.Color{confaudit.Note: output.Info, confaudit.Warning: output.Warn, confaudit.Danger: output.Bad}[r.severity]
	place := where
	if r.Line > 0 {
		place = strings.TrimPrefix(fmt.Sprintf("%s:%d", where, r.Line), ":")
	}
	if place != "" {
		place += ": "
	}
	kind := r.Kind
	if r.Section != "" {
		kind += " in [" + r.Section + "]"
	}
	message := r.Message
	if r.Advice != "" {
		message += "; " + r.Advice
	}
	return output.Clean(place) + paint.Text(color, r.Severity) + " " + output.Clean(fmt.Sprintf("(%s): %s", kind, message))
}

func writeAuditJSON(s *session, confs []audited, missing []*typev1.NodeError) error {
	type nodeError struct {
		Node    string `json:"node"`
		Address string `json:"address"`
		Message string `json:"message"`
	}
	answer := struct {
		Confs       []audited   `json:"confs"`
		Unreachable []nodeError `json:"unreachable"`
	}{append([]audited{}, confs...), []nodeError{}}
	for _, n := range missing {
		answer.Unreachable = append(answer.Unreachable, nodeError{n.GetNode(), n.GetAddress(), n.GetMessage()})
	}
	return output.WriteValue(s.out, answer)
}

// covered says which findings in a conf's bytes say the same as a problem that is about the same line, or for what stands
// in a snapshot or is pending, the same section.
var covered = map[typev1.ProblemKind][]confaudit.Kind{
	typev1.ProblemKind_PROBLEM_KIND_HIDDEN_LINE:       {confaudit.HiddenLineEnd, confaudit.OddBytes},
	typev1.ProblemKind_PROBLEM_KIND_INVALID_LINE:      {confaudit.DroppedLine, confaudit.LostSection, confaudit.NoStart},
	typev1.ProblemKind_PROBLEM_KIND_WILDCARD_RULE:     {confaudit.WildcardRule, confaudit.HostPath},
	typev1.ProblemKind_PROBLEM_KIND_PRIVILEGED:        {confaudit.PrivilegedGPU},
	typev1.ProblemKind_PROBLEM_KIND_MODE_CONFLICT:     {confaudit.NoStart},
	typev1.ProblemKind_PROBLEM_KIND_NO_EFFECT:         {confaudit.NoEffect},
	typev1.ProblemKind_PROBLEM_KIND_ENTRY_IN_SNAPSHOT: {confaudit.Rollback},
	typev1.ProblemKind_PROBLEM_KIND_ENTRY_IN_PENDING:  {confaudit.RawInPending},
}

// remarksOf returns what there is to say about a conf, by line and the worst first: what stands in its bytes, the
// problems that passthrough has with it, and the lines that Proxmox loses. What was said is not said again.
func remarksOf(f *pveconf.File, problems []*typev1.Problem) []remark {
	found := confaudit.Findings(f)
	all := []remark{}
	add := func(line int, section string, severity confaudit.Severity, kind, message, advice string) {
		all = append(all, remark{line, section, severity.String(), kind, message, advice, severity})
	}
	for _, x := range found {
		add(x.Line, x.Section, x.Severity, x.Kind.String(), x.Message, x.Advice)
	}
	said := func(line int, section string, kinds []confaudit.Kind) bool {
		return slices.ContainsFunc(found, func(x confaudit.Finding) bool {
			return slices.Contains(kinds, x.Kind) && (x.Line == line || section != "" && x.Section == section)
		})
	}
	for _, p := range problems {
		line := int(p.GetLine())
		if section := sectionAt(f, line); !said(line, section, covered[p.GetKind()]) {
			add(line, section, severityOf(p.GetKind()), strings.ReplaceAll(word(p.GetKind()), " ", "-"), p.GetMessage(),
				cmp.Or(p.GetAdvice(), "an apply mends it"))
		}
	}
	for _, w := range f.Warnings() { // findings are about the other kinds
		section := sectionAt(f, w.Line)
		switch {
		case w.Kind == pveconf.WarningLost && !said(w.Line, "", []confaudit.Kind{confaudit.RawInPending, confaudit.LostSection}):
			add(w.Line, section, confaudit.Warning, "lost-line", w.Text, "correct the line or remove it")
		case w.Kind == pveconf.WarningStart && !said(w.Line, "", []confaudit.Kind{confaudit.NoStart}):
			add(w.Line, section, confaudit.Warning, confaudit.NoStart.String(), w.Text, "correct the line")
		}
	}
	slices.SortStableFunc(all, func(a, b remark) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(b.severity, a.severity))
	})
	return all
}

// severityOf ranks a problem: a hidden line is an attack, and some are only worth knowing.
func severityOf(kind typev1.ProblemKind) confaudit.Severity {
	switch kind {
	case typev1.ProblemKind_PROBLEM_KIND_HIDDEN_LINE:
		return confaudit.Danger
	case typev1.ProblemKind_PROBLEM_KIND_ENTRY_IN_SNAPSHOT, typev1.ProblemKind_PROBLEM_KIND_DUPLICATE_ENTRY:
		return confaudit.Note
	}
	return confaudit.Warning
}

// sectionAt returns the name of the section that a line stands in; empty for the main section.
func sectionAt(f *pveconf.File, line int) string {
	name, header := "", 0
	for _, s := range append(f.Snapshots(), f.Pending()) {
		if header < s.Line && s.Line <= line {
			name, header = s.Name, s.Line
		}
	}
	return name
}
