package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"phoenix.internal/agent/pveconf"
	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func (p *Program) confCommand() *cobra.Command {
	return group("conf", "Show, compare, judge and restore the confs of containers",
		p.confShowCommand(), p.confDiffCommand(), p.confAuditCommand(), p.confRevisionsCommand(), p.confRestoreCommand(),
		p.confInspectCommand(), p.confCanonicalCommand())
}

type confShowOptions struct {
	ctid      int32
	revision  int64 // 0: the conf as it is
	raw       bool
	canonical bool
	effective bool
}

func (p *Program) confShowCommand() *cobra.Command {
	var o confShowOptions
	cmd := &cobra.Command{
		Use:   "show CTID",
		Short: "Show a container's conf, or what a running container was started with",
		Long: `Show a container's conf, or an older revision of it. Control characters are shown as escapes; --raw gives the
file's bytes exactly.

With --canonical it is shown as Proxmox will write it the next time it writes it: at a stop of the container, or at any
pct set. With --effective the configuration is shown that the running container was started with, as LXC has it; what
the conf says by now may differ, and which of its raw lines are not in force is told on stderr.

Exit status: 1 also if Proxmox could not write the conf, or with --effective if the container does not run.`,
		Args: ctidArgs(1, "CTID"),
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			o.ctid = mustCTID(args[0])
			return confShow(ctx, s, o)
		}),
	}
	revisionFlag(cmd, &o.revision)
	cmd.Flags().BoolVar(&o.raw, "raw", false, "write the bytes as they are")
	cmd.Flags().BoolVar(&o.canonical, "canonical", false, "as Proxmox will write it the next time")
	cmd.Flags().BoolVar(&o.effective, "effective", false, "what the running container was started with")
	excludeEachOther(cmd, "effective", "canonical")
	excludeEachOther(cmd, "effective", "revision")
	excludeEachOther(cmd, "canonical", "json")
	return cmd
}

// excludeEachOther makes it a misuse to give both flags.
func excludeEachOther(cmd *cobra.Command, a, b string) {
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed(a) && cmd.Flags().Changed(b) {
			return misuse(cmd, fmt.Errorf("--%s and --%s exclude each other", a, b))
		}
		if check == nil {
			return nil
		}
		return check(cmd, args)
	}
}

func revisionFlag(cmd *cobra.Command, revision *int64) {
	cmd.Flags().Int64Var(revision, "revision", 0, "the `REVISION` of this number; see conf revisions")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("revision") && *revision < 1 {
			return misuse(cmd, fmt.Errorf("--revision %d: revisions are numbered from 1", *revision))
		}
		return nil
	}
}

func confShow(ctx context.Context, s *session, o confShowOptions) error {
	if o.effective {
		return confShowEffective(ctx, s, o)
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	client := controllerv1.NewContainerServiceClient(s.conn)
	var conf []byte
	if o.revision > 0 {
		r, err := client.GetRevision(ctx, &controllerv1.GetRevisionRequest{Ctid: o.ctid, Revision: o.revision})
		if err != nil {
			return fmt.Errorf("read revision %d of CTID %d: %w", o.revision, o.ctid, err)
		}
		if s.json {
			return output.WriteJSON(s.out, r)
		}
		conf = r.GetConf()
	} else {
		r, err := client.GetContainer(ctx, &controllerv1.GetContainerRequest{Ctid: o.ctid})
		if err != nil {
			return fmt.Errorf("read the conf of CTID %d: %w", o.ctid, err)
		}
		if s.json {
			return output.WriteJSON(s.out, r)
		}
		conf = r.GetConf()
	}
	if o.canonical {
		var err error
		if conf, err = pveconf.Parse(conf).Canonical(); err != nil {
			return fmt.Errorf("CTID %d: %w", o.ctid, err)
		}
	}
	return writeConf(s, conf, o.raw)
}

func confShowEffective(ctx context.Context, s *session, o confShowOptions) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewContainerServiceClient(s.conn).GetContainer(ctx, &controllerv1.GetContainerRequest{
		Ctid: o.ctid, IncludeEffectiveEntries: true,
	})
	if err != nil {
		return fmt.Errorf("read what CTID %d was started with: %w", o.ctid, err)
	}
	if r.GetContainer().GetEffective() == nil {
		return &failure{fmt.Errorf("CTID %d does not run (%s): nothing is in force", o.ctid, word(r.GetContainer().GetState())),
			fmt.Sprintf("What it will be started with: phoenix-cli conf show %d.", o.ctid)}
	}
	if len(r.GetEffectiveEntries()) == 0 {
		return &failure{fmt.Errorf("node %s does not tell what CTID %d was started with", r.GetContainer().GetNode(), o.ctid),
			"The agent there, or the controller, is older than this phoenix-cli: install the same version of all."}
	}
	if s.json {
		return output.WriteJSON(s.out, r)
	}
	var b strings.Builder
	for _, e := range r.GetEffectiveEntries() {
		line := e.GetKey() + " = " + e.GetValue()
		if !o.raw {
			line = output.Clean(line)
		}
		b.WriteString(line + "\n")
	}
	if _, err := io.WriteString(s.out, b.String()); err != nil {
		return err
	}
	missing := notInForce(r)
	for _, e := range missing {
		s.warn("line %d of the conf is not in force: %s: %s", e.GetLine(), e.GetKey(), e.GetValue())
	}
	if len(missing) > 0 {
		s.warn("a restart brings the conf into force: phoenix-cli restart %d", o.ctid)
	}
	return nil
}

// notInForce returns the raw lines of the conf that the container was not started with. Only of some keys can that be
// told: LXC brings the values of others into a form of its own.
func notInForce(r *controllerv1.GetContainerResponse) []*typev1.ConfEntry {
	inForce := map[int32]bool{}
	for _, e := range r.GetEffectiveEntries() {
		inForce[e.GetLine()] = true
	}
	var missing []*typev1.ConfEntry
	for _, e := range r.GetEntries() {
		for _, prefix := range []string{"lxc.cgroup2.", "lxc.environment", "lxc.hook.", "lxc.idmap", "lxc.mount.entry"} {
			if strings.HasPrefix(e.GetKey(), prefix) && e.GetKey() != "lxc.environment.runtime" && !inForce[e.GetLine()] {
				missing = append(missing, e)
			}
		}
	}
	return missing
}

func writeConf(s *session, conf []byte, raw bool) error {
	if raw {
		_, err := s.out.Write(conf)
		return err
	}
	text := output.CleanLines(string(conf))
	if text != string(conf) {
		s.warn("the conf has control characters, shown as escapes; --raw writes them as they are")
	}
	_, err := fmt.Fprint(s.out, text)
	return err
}

func (p *Program) confRevisionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revisions CTID",
		Short: "List the kept revisions of a conf, newest first",
		Args:  ctidArgs(1, "CTID"),
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			return confRevisions(ctx, s, mustCTID(args[0]))
		}),
	}
}

func confRevisions(ctx context.Context, s *session, ctid int32) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	r, err := controllerv1.NewContainerServiceClient(s.conn).ListRevisions(ctx, &controllerv1.ListRevisionsRequest{Ctid: ctid})
	if err != nil {
		return fmt.Errorf("list the revisions of CTID %d: %w", ctid, err)
	}
	if s.json {
		return output.WriteJSON(s.out, r)
	}
	t := output.NewTable(s.paint, "revision", "replaced", "by", "why", "digest", "replaced by digest")
	for _, rev := range r.GetRevisions() {
		t.Row(strconv.FormatInt(rev.GetRevision(), 10), utc(rev.GetCreateTime()), author(rev), rev.GetWhy(),
			short(rev.GetDigest()), short(rev.GetReplacedByDigest()))
	}
	return t.Write(s.out)
}

// author says who replaced a conf: the identity that the agent saw, and before it who that said it acted for.
func author(rev *typev1.Revision) string {
	if rev.GetOnBehalfOf() == "" {
		return rev.GetWho()
	}
	return fmt.Sprintf("%s (%s)", rev.GetOnBehalfOf(), rev.GetWho())
}

// short cuts a digest to what tells it from the others of one conf.
func short(digest string) string { return digest[:min(len(digest), 12)] }

type confRestoreOptions struct {
	ctid     int32
	revision int64
	dryRun   bool
}

func (p *Program) confRestoreCommand() *cobra.Command {
	var o confRestoreOptions
	cmd := &cobra.Command{
		Use:   "restore CTID REVISION",
		Short: "Make an older revision the conf again",
		Long: `Make the content of an older revision the conf again, and show the difference. The conf as it was is kept as a
revision of its own. A running container gets it with its next restart: whether one is pending is told.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := ctidArgs(2, "CTID", "REVISION")(cmd, args); err != nil {
				return err
			}
			_, err := parseRevision(args[1])
			return misuseIf(cmd, err)
		},
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			var err error
			o.ctid = mustCTID(args[0])
			if o.revision, err = parseRevision(args[1]); err != nil {
				return err
			}
			return confRestore(ctx, s, o)
		}),
	}
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "show the difference, change nothing")
	return cmd
}

func confRestore(ctx context.Context, s *session, o confRestoreOptions) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	client := controllerv1.NewContainerServiceClient(s.conn)
	r, err := client.RestoreRevision(ctx, &controllerv1.RestoreRevisionRequest{
		Ctid: o.ctid, Revision: o.revision, DryRun: o.dryRun,
	})
	if err != nil {
		return fmt.Errorf("restore revision %d of CTID %d: %w", o.revision, o.ctid, err)
	}
	if s.json {
		return output.WriteJSON(s.out, r)
	}
	name := confName(o.ctid)
	err = output.WriteDiff(s.out, s.paint, "", name, fmt.Sprintf("%s (revision %d)", name, o.revision), r.GetBefore(), r.GetAfter())
	said := fmt.Sprintf("CTID %d: revision %d is the conf again.", o.ctid, o.revision)
	switch {
	case string(r.GetBefore()) == string(r.GetAfter()):
		said = fmt.Sprintf("CTID %d: the conf has the content of revision %d already.", o.ctid, o.revision)
	case o.dryRun:
		said = fmt.Sprintf("CTID %d: nothing changed (--dry-run).", o.ctid)
	default:
		said += inForceWhen(ctx, client, o.ctid)
	}
	_, errSaid := fmt.Fprintln(s.err, said)
	return errors.Join(err, errSaid)
}

// inForceWhen says, as the end of a line, when a conf that was just written comes into force.
func inForceWhen(ctx context.Context, client controllerv1.ContainerServiceClient, ctid int32) string {
	r, err := client.GetContainer(ctx, &controllerv1.GetContainerRequest{Ctid: ctid})
	switch c := r.GetContainer(); {
	case err != nil:
		return " A container that runs gets it with its next restart."
	case c.GetRestartPending():
		return fmt.Sprintf(" It runs with other devices: restart pending (phoenix-cli restart %d).", ctid)
	case c.GetEffective() != nil:
		return fmt.Sprintf(" It runs, and a restart brings it into force (phoenix-cli restart %d).", ctid)
	}
	return ""
}

// confName is the path of a conf on its node.
func confName(ctid int32) string { return fmt.Sprintf("/etc/pve/lxc/%d.conf", ctid) }
