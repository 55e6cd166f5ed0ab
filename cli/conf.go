package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

func (p *Program) confCommand() *cobra.Command {
	return group("conf", "Show, compare and restore the confs of containers",
		p.confShowCommand(), p.confDiffCommand(), p.confRevisionsCommand(), p.confRestoreCommand())
}

type confShowOptions struct {
	ctid     int32
	revision int64 // 0: the conf as it is
	raw      bool
}

func (p *Program) confShowCommand() *cobra.Command {
	var o confShowOptions
	cmd := &cobra.Command{
		Use:   "show CTID",
		Short: "Show a container's conf",
		Long: `Show a container's conf, or an older revision of it. Control characters are shown as escapes; --raw gives the
file's bytes exactly.`,
		Args: ctidArgs(1, "CTID"),
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			o.ctid = mustCTID(args[0])
			return confShow(ctx, s, o)
		}),
	}
	revisionFlag(cmd, &o.revision)
	cmd.Flags().BoolVar(&o.raw, "raw", false, "write the bytes as they are")
	return cmd
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
	return writeConf(s, conf, o.raw)
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
		t.Row(strconv.FormatInt(rev.GetRevision(), 10), utc(rev.GetCreateTime()), rev.GetWho(), rev.GetWhy(),
			short(rev.GetDigest()), short(rev.GetReplacedByDigest()))
	}
	return t.Write(s.out)
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
revision of its own. A running container gets it with its next restart.`,
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
	r, err := controllerv1.NewContainerServiceClient(s.conn).RestoreRevision(ctx, &controllerv1.RestoreRevisionRequest{
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
	}
	_, errSaid := fmt.Fprintln(s.err, said)
	return errors.Join(err, errSaid)
}

// confName is the path of a conf on its node.
func confName(ctid int32) string { return fmt.Sprintf("/etc/pve/lxc/%d.conf", ctid) }
