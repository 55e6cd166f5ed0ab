package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

// settle is how long a container must be seen stopped, after a restart of ours whose end we did not see, before we start
// it: the agent finishes a restart that it has begun, and a second one on top would be a needless outage.
const settle = 10 * time.Second

// restart brings the conf into force, if it is not. Whether it is needed is decided from what the container effectively
// has now: never from whether we patched the conf (that another did it before us does not bring it into force), and not
// from the plan (somebody may have restarted it since).
func (w *worker) restart(ctx context.Context) (did, error) {
	p := newPause(retryFor)
	var stoppedSince time.Time
	for conflicts := 0; ; {
		c, err := w.look(ctx)
		if err != nil {
			return did{}, err
		}
		again, d, err := w.decide(ctx, c)
		if err != nil || !again {
			return d, err
		}
		if conflicts == maxConflicts {
			return did{}, errors.New("the container changes under our hands: something else patches or restarts it; find it, then apply again")
		}

		now := time.Now()
		switch {
		case passing(c.State):
			err = fmt.Errorf("the container is %s", c.State)
		case c.State == observed.StateStopped && w.restarting && stoppedSince.IsZero():
			stoppedSince = now
			err = errors.New("it is stopped in the middle of a restart")
		case c.State == observed.StateStopped && w.restarting && now.Sub(stoppedSince) < settle:
			err = errors.New("it is stopped in the middle of a restart")
		default:
			w.restarting = true
			stoppedSince = time.Time{}
			c, err = w.agent.Restart(ctx, node.Restart{
				CTID: w.ctid(), Instance: c.Instance, Timeout: w.run.record.Options.RestartTimeout, RequestID: w.requestID(),
				Who: w.run.record.Who,
			}, w.phase)
			switch {
			case err == nil:
				w.digest, w.started = c.Digest, c.Instance
				return succeeded("running with its conf in force")
			case node.ReasonOf(err) == node.InstanceChanged:
				conflicts++
				continue
			case !transient(err):
				return did{}, err
			}
			p.deadline = p.deadline.Add(time.Since(now)) // what the restart itself took does not count
		}
		w.progress("waiting: " + err.Error())
		if !p.wait(ctx, w.stop) {
			return did{}, fmt.Errorf("given up: %w", err)
		}
	}
}

// decide says whether to restart the container, or what the step comes to without that.
func (w *worker) decide(ctx context.Context, c observed.Container) (again bool, d did, err error) {
	if passing(c.State) {
		return true, d, nil // it is decided when it has settled
	}
	p := w.replan(c)
	if has(p, plan.PatchConf) {
		// Something else wrote the conf since we did, and to restart now would bring that into force.
		if _, err := w.patch(ctx); err != nil {
			return false, d, err
		}
		if c, err = w.look(ctx); err != nil {
			return false, d, err
		}
		p = w.replan(c)
	}
	switch {
	case len(p.Errors) > 0:
		return false, d, errors.New(sentences(p.Errors))
	case has(p, plan.Restart):
		return true, d, nil
	case c.State == observed.StateStopped && w.restarting:
		w.start = true // we stopped it
		return true, d, nil
	case c.State == observed.StateStopped:
		return false, d, errors.New("it was stopped after the plan was made; start it, or apply with start, and its conf comes into force")
	case w.restarting:
		d, err = succeeded("running with its conf in force")
		return false, d, err
	}
	d, err = unchanged("the conf is in force already")
	return false, d, err
}

// passing reports whether a container is on its way to another state.
func passing(s observed.State) bool {
	return s == observed.StateStarting || s == "stopping" || s == "aborting"
}

// phase shows where the agent is in a restart.
func (w *worker) phase(phase, message string) {
	text := strings.ReplaceAll(phase, "_", " ")
	if message != "" {
		text += ": " + message
	}
	w.progress(text)
}
