package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"phoenix.internal/cli/output"
	"phoenix.internal/cli/terminal"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

// A progress is a run as its events have made it so far.
type progress struct {
	now   func() time.Time
	run   *controllerv1.Run   // nil before the first message
	began map[int32]time.Time // when the present step of a container was heard of, by this machine's clock
}

// set takes the run as the controller sees it.
func (p *progress) set(run *controllerv1.Run) {
	p.run = proto.CloneOf(run)
	if p.began == nil {
		p.began = map[int32]time.Time{}
	}
}

// apply takes one event.
func (p *progress) apply(ev *controllerv1.RunEvent) {
	c := p.container(ev.GetCtid())
	if c == nil {
		return
	}
	c.State = ev.GetContainerState()
	if ev.GetError() != "" {
		c.Error = ev.GetError()
	}
	if step := ev.GetStep(); step != nil {
		if i := int(ev.GetStepIndex()); i >= 0 && i < len(c.Steps) {
			c.Steps[i] = proto.CloneOf(step)
		}
		if step.GetState() == controllerv1.StepState_STEP_STATE_RUNNING {
			p.began[c.GetCtid()] = p.now()
		}
	}
}

func (p *progress) container(ctid int32) *controllerv1.ContainerRun {
	for _, c := range p.run.GetContainers() {
		if c.GetCtid() == ctid {
			return c
		}
	}
	return nil
}

// noView shows nothing: the messages themselves are the output.
type noView struct{}

func (noView) show(*progress)                                {}
func (noView) event(*progress, *controllerv1.RunEvent) error { return nil }
func (noView) tick(*progress) error                          { return nil }
func (noView) pause() error                                  { return nil }

// A logView writes a line for each event.
type logView struct{ s *session }

func (v *logView) show(p *progress) {
	if p.run.GetState() != controllerv1.RunState_RUN_STATE_RUNNING {
		return // the verdict follows
	}
	fmt.Fprintf(v.s.out, "%s run %s: %s\n", utc(p.run.GetCreateTime()), output.Clean(p.run.GetRun()),
		count(len(p.run.GetContainers()), "container"))
}

func (v *logView) event(p *progress, ev *controllerv1.RunEvent) error {
	c := p.container(ev.GetCtid())
	who := strings.TrimSpace(fmt.Sprintf("%d %s", ev.GetCtid(), c.GetName()))
	if c.GetNode() != "" {
		who += " on " + c.GetNode()
	}
	what := word(ev.GetContainerState())
	switch {
	case ev.GetStep() != nil:
		what = stepLine(ev.GetStep())
	case ev.GetError() != "" && !saidByStep(c, ev.GetError()):
		what += ": " + ev.GetError()
	}
	_, err := fmt.Fprintf(v.s.out, "%s %s: %s\n", utc(ev.GetTime()), output.Clean(who), output.Clean(what))
	return err
}

// stepLine says where a step is: "restart: shutting down", "restart: done after 12.3s: running with its conf in force".
func stepLine(step *controllerv1.Step) string {
	name, message := stepName(step), step.GetMessage()
	state := word(step.GetState())
	switch step.GetState() {
	case controllerv1.StepState_STEP_STATE_RUNNING:
		return name + ": " + cmp.Or(message, "begun")
	case controllerv1.StepState_STEP_STATE_UNCHANGED:
		state = "nothing to do"
	case controllerv1.StepState_STEP_STATE_SUCCEEDED:
		state = "done"
		fallthrough
	default:
		if step.GetStartTime() != nil && step.GetEndTime() != nil {
			state += " after " + duration(step.GetEndTime().AsTime().Sub(step.GetStartTime().AsTime()))
		}
	}
	if message = strings.TrimPrefix(message, name+": "); message == "" {
		return name + ": " + state
	}
	return name + ": " + state + ": " + message
}

// saidByStep tells whether the error of a container is that of its failed step, whose line stands in the log already.
func saidByStep(c *controllerv1.ContainerRun, text string) bool {
	return slices.ContainsFunc(c.GetSteps(), func(step *controllerv1.Step) bool {
		return step.GetState() == controllerv1.StepState_STEP_STATE_FAILED && step.GetMessage() != "" &&
			strings.Contains(text, step.GetMessage())
	})
}

func (v *logView) tick(*progress) error { return nil }
func (v *logView) pause() error         { return nil }

// A liveView draws a line for each container, again and again in place.
type liveView struct {
	board *terminal.Board
	size  func() (columns, rows int)
}

func (v *liveView) show(p *progress) { _ = v.draw(p) }

func (v *liveView) event(p *progress, _ *controllerv1.RunEvent) error { return v.draw(p) }

func (v *liveView) tick(p *progress) error {
	if p.run == nil {
		return nil
	}
	return v.draw(p)
}

// pause leaves the lines drawn so far where they are; a later drawing begins below them.
func (v *liveView) pause() error {
	v.board.Leave()
	return nil
}

func (v *liveView) draw(p *progress) error {
	columns, rows := v.size()
	return v.board.Draw(boardLines(p, columns, rows))
}

// boardLines returns the lines of the live view. If there are more than fit, those that move come first; on a narrow
// terminal names are cut and the node is left out, so that the state is seen.
func boardLines(p *progress, columns, rows int) []terminal.Line {
	cs := slices.Clone(p.run.GetContainers())
	if len(cs) > rows-2 {
		slices.SortStableFunc(cs, func(a, b *controllerv1.ContainerRun) int {
			return cmp.Compare(restlessness(a.GetState()), restlessness(b.GetState()))
		})
	}
	var ctids, names, nodes int
	for _, c := range cs {
		ctids = max(ctids, len(strconv.Itoa(int(c.GetCtid()))))
		names = max(names, output.Width(output.Clean(c.GetName())))
		nodes = max(nodes, output.Width(output.Clean(c.GetNode())))
	}
	names = min(names, 24, columns/5)
	narrow := columns < 60
	lines := []terminal.Line{}
	for _, c := range cs {
		color := stepColor(c.GetState())
		what, took, message := activity(p, c)
		node := terminal.Segment{Text: pad(c.GetNode(), nodes) + "  ", Color: output.Faint}
		if narrow {
			node.Text = ""
		}
		lines = append(lines, terminal.Line{
			{Text: symbol(c.GetState(), p.now()) + " ", Color: color},
			{Text: fmt.Sprintf("%*d  ", ctids, c.GetCtid())},
			{Text: pad(c.GetName(), names) + "  "},
			node,
			{Text: pad(what, 16) + " ", Color: color},
			{Text: fmt.Sprintf("%6s  ", took)},
			{Text: message, Color: output.Faint},
		})
	}
	return lines
}

// activity says what a container is at, for how long, and what there is to know.
func activity(p *progress, c *controllerv1.ContainerRun) (what, took, message string) {
	for _, step := range c.GetSteps() {
		if step.GetState() == controllerv1.StepState_STEP_STATE_RUNNING {
			began, ok := p.began[c.GetCtid()]
			if !ok {
				began = step.GetStartTime().AsTime()
			}
			return stepName(step), duration(p.now().Sub(began)), step.GetMessage()
		}
	}
	what = containerWord(c)
	if c.GetState() == controllerv1.StepState_STEP_STATE_PENDING {
		what = "waiting"
	}
	if n := len(c.GetSteps()); n > 0 {
		first, last := c.GetSteps()[0], c.GetSteps()[0]
		for _, step := range c.GetSteps() {
			if step.GetEndTime() != nil {
				last = step
			}
		}
		if first.GetStartTime() != nil && last.GetEndTime() != nil {
			took = duration(last.GetEndTime().AsTime().Sub(first.GetStartTime().AsTime()))
		}
	}
	return what, took, containerMessage(c)
}

func pad(s string, columns int) string {
	s = output.Fit(output.Clean(s), columns)
	return s + strings.Repeat(" ", columns-output.Width(s))
}

var spinner = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

func symbol(state controllerv1.StepState, now time.Time) string {
	switch state {
	case controllerv1.StepState_STEP_STATE_RUNNING:
		return string(spinner[int(now.UnixMilli()/redrawEvery.Milliseconds())%len(spinner)])
	case controllerv1.StepState_STEP_STATE_SUCCEEDED:
		return "✔"
	case controllerv1.StepState_STEP_STATE_FAILED:
		return "✘"
	case controllerv1.StepState_STEP_STATE_SKIPPED:
		return "-"
	case controllerv1.StepState_STEP_STATE_UNCHANGED:
		return "="
	default:
		return "·"
	}
}

// restlessness orders containers by how much a person wants to see them.
func restlessness(state controllerv1.StepState) int {
	return slices.Index([]controllerv1.StepState{
		controllerv1.StepState_STEP_STATE_RUNNING, controllerv1.StepState_STEP_STATE_FAILED,
		controllerv1.StepState_STEP_STATE_SKIPPED, controllerv1.StepState_STEP_STATE_PENDING,
		controllerv1.StepState_STEP_STATE_SUCCEEDED, controllerv1.StepState_STEP_STATE_UNCHANGED,
	}, state)
}
