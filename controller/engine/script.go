package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"phoenix.internal/controller/feature"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
)

// How long a feature's script may run, and the small commands around it.
const (
	scriptTimeout = time.Hour
	markerTimeout = 30 * time.Second
)

// scripts returns the features that have a script.
func (e *Engine) scripts() (map[string]bool, error) {
	return feature.Scripts{Dir: e.cfg.FeaturesDir}.List()
}

// feature runs a feature's script in the container, unless the marker there says that this very script has succeeded.
func (w *worker) feature(ctx context.Context, name string) (did, error) {
	script, err := feature.Scripts{Dir: w.run.engine.cfg.FeaturesDir}.Open(name)
	if err != nil {
		return did{}, err
	}
	marker, err := w.exec(ctx, feature.ReadMarker(name), markerTimeout)
	if err != nil {
		return did{}, fmt.Errorf("read its marker: %w", err)
	}
	if feature.Holds(marker.Stdout, script.SHA256) {
		return unchanged("the script has succeeded in this container before")
	}
	exit, err := w.exec(ctx, script.Command(w.ctid(), observed.Indexes(w.plan.Desired)), scriptTimeout)
	if err != nil {
		return did{}, err
	}
	if err := failure(exit); err != nil {
		return did{}, fmt.Errorf("its script: %w", err)
	}
	written, err := w.exec(ctx, feature.WriteMarker(name, script.SHA256), markerTimeout)
	if err == nil {
		err = failure(written)
	}
	if err != nil {
		return did{}, fmt.Errorf("the script succeeded, but its marker could not be written: %w", err)
	}
	return succeeded("the script succeeded%s", after(exit.Output))
}

// healthCheck runs the declared command until it succeeds or has been tried often enough.
func (w *worker) healthCheck(ctx context.Context) (did, error) {
	check := w.run.fleet.Container(w.ctid()).HealthCheck
	if check == nil {
		return unchanged("none is declared any more")
	}
	for try := 1; ; try++ {
		exit, err := w.agent.Run(ctx, command(w.ctid(), feature.HealthCheck(check.Command), check.Timeout))
		if err == nil {
			err = failure(exit)
		}
		switch {
		case err == nil:
			return succeeded("healthy at try %d of %d%s", try, check.Retries, after(exit.Output))
		case try >= check.Retries:
			return did{}, fmt.Errorf("not healthy in %d tries, %v apart; at the last one %w", try, check.Interval, err)
		}
		w.progress(fmt.Sprintf("try %d of %d: %v", try, check.Retries, err))
		timer := time.NewTimer(check.Interval)
		select {
		case <-timer.C:
		case <-w.stop:
			timer.Stop()
			return did{}, fmt.Errorf("canceled before it was healthy; at try %d %w", try, err)
		}
	}
}

// exec runs a command that may be run again.
func (w *worker) exec(ctx context.Context, c feature.Command, timeout time.Duration) (exit node.Exit, err error) {
	err = w.retry(ctx, func() (err error) {
		exit, err = w.agent.Run(ctx, command(w.ctid(), c, timeout))
		return err
	})
	return exit, err
}

func command(ctid int32, c feature.Command, timeout time.Duration) node.Command {
	return node.Command{CTID: ctid, Argv: c.Argv, Env: c.Env, Stdin: c.Stdin, Timeout: timeout}
}

// failure returns why a command that ended did not succeed, or nil.
func failure(e node.Exit) error {
	switch {
	case e.TimedOut:
		return errors.New("it was ended because its time was over" + after(e.Output))
	case e.Code != 0:
		return fmt.Errorf("it ended with status %d%s", e.Code, after(e.Output))
	}
	return nil
}

const (
	maxLines = 5
	maxText  = 600 // bytes
)

// after returns the last lines of what a command printed, as the end of a sentence; "" if it printed nothing. What comes
// from a container must not reach a terminal as it is: control characters are left out.
func after(output []byte) string {
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(string(output), "?")) {
		line = strings.Map(func(r rune) rune {
			if r == '\t' {
				return ' '
			}
			if !unicode.IsPrint(r) {
				return -1
			}
			return r
		}, line)
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	text := strings.Join(lines[max(0, len(lines)-maxLines):], " | ")
	if len(text) > maxText {
		text = "..." + strings.ToValidUTF8(text[len(text)-maxText:], "")
	}
	return ": " + text
}
