package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

// maxParallel is how many containers of a node the API works on at once.
const maxParallel = 64

type applyOptions struct {
	ctids          ctidSet
	start, verify  bool
	acceptMoved    bool
	restartTimeout time.Duration
	parallel       int32
}

func (p *Program) applyCommand() *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use:   "apply [CTID...]",
		Short: "Bring the containers to what the fleet file says",
		Long: `Bring all containers of the fleet file, or those named, to what the file says, and prove it: check the devices, patch
the conf, restart if what a container has differs from its conf, open its devices inside it, run its features and its
health check. What is right already is left alone, so a second apply does nothing. "plan" shows it beforehand.

On a terminal there is a line for each container; elsewhere a line for each step that begins or ends.
Ctrl-C leaves a run of the controller going on ("runs watch", "runs cancel"). With --agent the run is this program's
own: Ctrl-C lets the steps under way finish and begins no more.

Exit status: 0 if every container is as it should be; else 1.`,
		Example: `  phoenix-cli plan                   what would be done
  phoenix-cli apply                  the whole fleet
  phoenix-cli apply 901 902          only these
  phoenix-cli apply --start 911      also start it, if it is stopped
  phoenix-cli apply --verify         open every device again, also where nothing has changed
  phoenix-cli apply --agent pve1 --agent pve2 --fleet phoenix_lxc_configs.json    without a controller`,
		Args: ctidsArgs,
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			o.ctids.add(args)
			return apply(ctx, s, o)
		}),
	}
	o.ctids.flag(cmd.Flags())
	f := cmd.Flags()
	f.BoolVar(&o.start, "start", false, "start stopped containers that have GPUs assigned")
	f.BoolVar(&o.verify, "verify", false, "verify the devices also where nothing has changed")
	f.BoolVar(&o.acceptMoved, "accept-moved", false, acceptMovedUsage)
	f.DurationVar(&o.restartTimeout, "restart-timeout", defaultShutdown, "time for each graceful shutdown, at most 10m; then it is killed")
	f.Int32Var(&o.parallel, "parallel", 4, "work on `N` containers of a node at once, at most 64")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if o.parallel < 1 || o.parallel > maxParallel {
			return misuse(cmd, fmt.Errorf("--parallel %d: must be from 1 to %d", o.parallel, maxParallel))
		}
		return misuseIf(cmd, checkDuration("restart-timeout", o.restartTimeout, time.Second, maxShutdown))
	}
	return cmd
}

func apply(ctx context.Context, s *session, o applyOptions) error {
	// follow decides what the end of ctx means for the run.
	stream, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r, err := controllerv1.NewRunServiceClient(s.conn).Apply(stream, &controllerv1.ApplyRequest{
		Ctids: o.ctids, Start: o.start, Verify: o.verify, AcceptMoved: o.acceptMoved,
		RestartTimeout: durationpb.New(o.restartTimeout), ParallelPerNode: o.parallel,
	})
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	f := follower[*controllerv1.ApplyResponse]{session: s, what: "apply", recv: r.Recv, stop: cancel, owned: s.local}
	return f.follow(ctx)
}

// runWatch is apply of a run that somebody else began: to stop watching does nothing to it.
func runWatch(ctx context.Context, s *session, id string) error {
	stream, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r, err := controllerv1.NewRunServiceClient(s.conn).WatchRun(stream, &controllerv1.WatchRunRequest{Run: id})
	if err != nil {
		return fmt.Errorf("watch run %s: %w", id, err)
	}
	f := follower[*controllerv1.WatchRunResponse]{session: s, what: "watch run " + id, recv: r.Recv, stop: cancel}
	return f.follow(ctx)
}
