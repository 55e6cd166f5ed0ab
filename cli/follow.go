package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"phoenix.internal/cli/output"
	"phoenix.internal/cli/terminal"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

// redrawEvery is the time between two drawings of the live view, and minRows the least height it takes.
const (
	redrawEvery = 100 * time.Millisecond
	minRows     = 4
)

// A runMessage is a message of Apply or of WatchRun.
type runMessage interface {
	proto.Message
	GetRun() *controllerv1.Run
	GetStep() *controllerv1.RunEvent
}

// A follower shows a run while it goes on, until it ends.
type follower[M runMessage] struct {
	*session
	what  string // what is being done, for errors
	recv  func() (M, error)
	stop  func() // makes recv return
	owned bool   // whether the run ends with this process, so that an interrupt must cancel it first
	view  runView
}

// A runView shows the run that a follower follows.
type runView interface {
	show(*progress)                                // the run as it is now
	event(*progress, *controllerv1.RunEvent) error // a step began or ended
	tick(*progress) error                          // time has passed
	pause() error                                  // something else is going to be written
}

// follow receives until the run has ended and returns an error if not every container is as it should be.
func (f *follower[M]) follow(ctx context.Context) error {
	type received struct {
		m   M
		err error
	}
	messages := make(chan received)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			m, err := f.recv()
			select {
			case messages <- received{m, err}:
			case <-done:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() { close(done); f.stop(); <-ended }()

	if f.view = f.newView(); f.json {
		f.view = noView{}
	}
	defer f.view.pause()
	ticks := time.NewTicker(redrawEvery)
	defer ticks.Stop()
	p := &progress{now: f.now}
	interrupted := ctx.Done()
	for {
		select {
		case r := <-messages:
			if errors.Is(r.err, io.EOF) {
				return f.verdict(p)
			}
			if r.err != nil {
				return f.lost(p, r.err)
			}
			if err := f.take(p, r.m); err != nil {
				return err
			}
		case <-ticks.C:
			if err := f.view.tick(p); err != nil {
				return err
			}
		case <-interrupted:
			interrupted = nil
			if err := f.interrupt(ctx, p); err != nil {
				return err
			}
		}
	}
}

func (f *follower[M]) take(p *progress, m M) error {
	if f.json {
		if err := output.WriteJSONLine(f.out, m); err != nil {
			return err
		}
	}
	if run := m.GetRun(); run != nil {
		p.set(run)
		f.view.show(p)
	}
	if ev := m.GetStep(); ev != nil {
		p.apply(ev)
		return f.view.event(p, ev)
	}
	return nil
}

// interrupt is what Ctrl-C means. It returns an error if the command ends now.
func (f *follower[M]) interrupt(ctx context.Context, p *progress) error {
	if err := f.view.pause(); err != nil {
		return err
	}
	if p.run == nil {
		return &failure{
			err:  fmt.Errorf("%s: interrupted before an answer came", f.what),
			hint: "A run may have begun nevertheless: see phoenix-cli runs.",
		}
	}
	id := p.run.GetRun()
	if !f.owned {
		return &failure{
			err:  fmt.Errorf("interrupted; run %s goes on in the controller", id),
			hint: fmt.Sprintf("Watch it: phoenix-cli runs watch %s; end it: phoenix-cli runs cancel %s.", id, id),
		}
	}
	f.warn("interrupted: the steps under way finish, no more begin; Ctrl-C again ends at once")
	// The run is this process's own: leaving now would leave a container half-way.
	ctx, cancel := f.call(context.WithoutCancel(ctx))
	defer cancel()
	if _, err := controllerv1.NewRunServiceClient(f.conn).CancelRun(ctx, &controllerv1.CancelRunRequest{Run: id}); err != nil {
		return fmt.Errorf("cancel run %s: %w", id, err)
	}
	return nil
}

// lost is the end of the stream before the end of the run.
func (f *follower[M]) lost(p *progress, err error) error {
	if p.run == nil {
		return fmt.Errorf("%s: %w", f.what, err)
	}
	id := p.run.GetRun()
	return errors.Join(fmt.Errorf("follow run %s: %w", id, err), &failure{
		err:  fmt.Errorf("how run %s ends is not known here", id),
		hint: fmt.Sprintf("See phoenix-cli runs show %s.", id),
	})
}

// verdict tells how the run ended.
func (f *follower[M]) verdict(p *progress) error {
	if p.run == nil {
		return fmt.Errorf("%s: the answer ended before the run began", f.what)
	}
	run := p.run
	if err := f.view.pause(); err != nil {
		return err
	}
	if !f.json {
		if err := writeVerdict(f.session, run); err != nil {
			return err
		}
	}
	if run.GetState() == controllerv1.RunState_RUN_STATE_SUCCEEDED {
		return nil
	}
	var errs []error
	for _, c := range run.GetContainers() {
		if c.GetError() != "" {
			errs = append(errs, fmt.Errorf("CTID %d: %s", c.GetCtid(), c.GetError()))
		}
	}
	return errors.Join(append(errs, &failure{
		err:  fmt.Errorf("run %s %s: %s", run.GetRun(), word(run.GetState()), tally(run)),
		hint: fmt.Sprintf("Every step: phoenix-cli runs show %s. An apply repeated begins where this one ended.", run.GetRun()),
	})...)
}

func writeVerdict(s *session, run *controllerv1.Run) error {
	writeNotes(s, run)
	for _, w := range run.GetWarnings() {
		fmt.Fprintln(s.out, s.paint.Text(output.Warn, "warning: "+w))
	}
	_, err := fmt.Fprintf(s.out, "%s %s: %s\n", output.Clean("run "+run.GetRun()),
		s.paint.Text(runColor(run.GetState()), word(run.GetState())), tally(run))
	return err
}

// writeNotes writes each note once, with the CTIDs of the containers that it is about.
func writeNotes(s *session, run *controllerv1.Run) {
	var notes []string
	about := map[string][]string{}
	for _, c := range run.GetContainers() {
		for _, note := range c.GetNotes() {
			if about[note] == nil {
				notes = append(notes, note)
			}
			about[note] = append(about[note], strconv.Itoa(int(c.GetCtid())))
		}
	}
	for _, note := range notes {
		fmt.Fprintln(s.out, s.paint.Text(output.Faint, fmt.Sprintf("note: %s (%s)", note, strings.Join(about[note], ", "))))
	}
}

// newView returns the live view if both streams are the person's terminal and it has room, else the log.
func (f *follower[M]) newView() runView {
	_, rows, ok := terminal.Size(f.out)
	if !ok || rows < minRows || !terminal.Is(f.err) || os.Getenv("TERM") == "dumb" {
		return &logView{f.session}
	}
	size := func() (columns, rows int) {
		columns, rows, ok := terminal.Size(f.out)
		if !ok {
			return 80, 24
		}
		return columns, rows
	}
	return &liveView{board: terminal.NewBoard(f.out, f.paint, size), size: size}
}
