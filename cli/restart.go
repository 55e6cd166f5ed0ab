package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// The time for a graceful shutdown that the API takes.
const (
	defaultShutdown = time.Minute
	maxShutdown     = 10 * time.Minute
)

type restartOptions struct {
	ctid    int32
	timeout time.Duration
	noForce bool
}

func (p *Program) restartCommand() *cobra.Command {
	var o restartOptions
	cmd := &cobra.Command{
		Use:   "restart CTID",
		Short: "Restart a container: gracefully, then by force",
		Long: `Restart a container: shut it down gracefully, kill it if that takes too long, and start it. If it does not come up
with a conf of ours, the old conf goes back and the container is started with that.`,
		Args: ctidArgs(1, "CTID"),
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			o.ctid = mustCTID(args[0])
			return restart(ctx, s, o)
		}),
	}
	cmd.Flags().DurationVar(&o.timeout, "timeout", defaultShutdown, "time for the graceful shutdown, at most 10m; 0 kills at once")
	cmd.Flags().BoolVar(&o.noForce, "no-force", false, "never kill it: fail, and leave it running")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		return misuseIf(cmd, checkDuration("timeout", o.timeout, 0, maxShutdown))
	}
	return cmd
}

func restart(ctx context.Context, s *session, o restartOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := controllerv1.NewContainerServiceClient(s.conn).Restart(ctx, &controllerv1.RestartRequest{
		Ctid: o.ctid, Timeout: durationpb.New(o.timeout), NoForce: o.noForce,
	})
	start := s.now()
	var last *typev1.RestartProgress
	for err == nil {
		var r *controllerv1.RestartResponse
		if r, err = stream.Recv(); err != nil {
			break
		}
		last = r.GetProgress()
		if s.json {
			err = output.WriteJSONLine(s.out, r)
		} else {
			writePhase(s, o.ctid, last, s.now().Sub(start))
		}
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("restart CTID %d: %w", o.ctid, err)
	}
	if last.GetPhase() != typev1.RestartPhase_RESTART_PHASE_RUNNING {
		return fmt.Errorf("restart CTID %d: the answer ended before the container ran", o.ctid)
	}
	return nil
}

func writePhase(s *session, ctid int32, p *typev1.RestartProgress, after time.Duration) {
	color := output.Info
	switch p.GetPhase() {
	case typev1.RestartPhase_RESTART_PHASE_RUNNING:
		color = output.Good
	case typev1.RestartPhase_RESTART_PHASE_FORCING, typev1.RestartPhase_RESTART_PHASE_ROLLING_BACK:
		color = output.Warn
	}
	fmt.Fprintf(s.out, "%d %6s  %s", ctid, duration(after), s.paint.Text(color, word(p.GetPhase())))
	if p.GetMessage() != "" {
		fmt.Fprintf(s.out, ": %s", output.Clean(p.GetMessage()))
	}
	if c := p.GetContainer(); c != nil {
		fmt.Fprintf(s.out, " with %s", gpuText(gpus(c.GetEffective())))
	}
	fmt.Fprintln(s.out)
}

// checkDuration says what is wrong with the value of a flag.
func checkDuration(flag string, d, least, most time.Duration) error {
	if d < least || d > most {
		return fmt.Errorf("--%s %v: must be from %v to %v", flag, d, least, most)
	}
	return nil
}

func misuseIf(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return misuse(cmd, err)
}
