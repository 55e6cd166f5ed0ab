package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"

	"phoenix.internal/cli/output"
	"phoenix.internal/cli/terminal"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

const (
	defaultParallel = 8
	maxPerNode      = 32 // an agent runs at most 64 commands, not all of them ours
	maxAtOnce       = 128
	// maxLine is how much of a line is held back until its end comes.
	maxLine = 64 << 10
)

// manyOptions choose the containers for one command in many.
type manyOptions struct {
	all      bool
	nodes    []string
	gpus     []int32
	parallel int
}

func (o *manyOptions) flags(f *pflag.FlagSet) {
	f.BoolVar(&o.all, "all", false, "in every running container")
	f.StringArrayVar(&o.nodes, "node", nil, "in the running containers of `NODE`; repeatable")
	f.Int32SliceVar(&o.gpus, "gpu", nil, "in the running containers that have GPU `N` in force; repeatable")
	f.IntVar(&o.parallel, "parallel", defaultParallel, "with many containers: how many at a time on each node, at most 32")
}

func (o *manyOptions) asked() bool { return o.all || len(o.nodes) > 0 || len(o.gpus) > 0 }

func (o *manyOptions) check(cmd *cobra.Command, all *execOptions) error {
	if !o.asked() {
		if cmd.Flags().Changed("parallel") {
			return errors.New("--parallel needs --all, --node or --gpu")
		}
		return nil
	}
	if all.tty || all.stdin {
		return errors.New("--stdin and --tty are for one container, not for --all, --node or --gpu")
	}
	if o.parallel < 1 || o.parallel > maxPerNode {
		return fmt.Errorf("--parallel %d: must be from 1 to %d", o.parallel, maxPerNode)
	}
	return nil
}

// A target is a container of many, and what became of the command there.
type target struct {
	*typev1.Container
	begun   bool
	exit    *typev1.ExecExit // nil: there is no answer
	err     error
	skipped bool // it does not run
}

// executeMany runs a command in many containers at once.
func executeMany(ctx context.Context, s *session, o execOptions) error {
	targets, missing, err := o.many.find(ctx, s)
	if err != nil {
		return err
	}
	m := &manyExec{session: s, options: o}
	ctx, m.stop = context.WithCancelCause(ctx)
	defer m.stop(nil)
	m.run(ctx, targets)
	if err := m.report(targets, missing); err != nil {
		return err
	}
	return m.judge(ctx, targets, missing)
}

// find asks for the containers that are meant, and for the nodes that did not answer.
func (o *manyOptions) find(ctx context.Context, s *session) (targets []*target, missing []*typev1.NodeError, err error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	nodes := o.nodes
	if len(nodes) == 0 {
		nodes = []string{""}
	}
	slices.Sort(nodes)
	for _, node := range slices.Compact(nodes) {
		r, err := controllerv1.NewContainerServiceClient(s.conn).ListContainers(ctx, &controllerv1.ListContainersRequest{Node: node})
		if err != nil {
			return nil, nil, fmt.Errorf("list the containers: %w", err)
		}
		missing = append(missing, r.GetUnreachable()...)
		for _, c := range r.GetContainers() {
			running := c.GetState() == typev1.ContainerState_CONTAINER_STATE_RUNNING
			switch {
			case c.GetTemplate():
			case len(o.gpus) == 0:
				targets = append(targets, &target{Container: c, skipped: !running})
			case running && o.hasGPU(c.GetEffective()):
				targets = append(targets, &target{Container: c})
			case !running && o.hasGPU(c.GetConfigured()): // it would be meant if it ran
				targets = append(targets, &target{Container: c, skipped: true})
			}
		}
	}
	slices.SortFunc(targets, func(a, b *target) int { return int(a.GetCtid() - b.GetCtid()) })
	return targets, missing, nil
}

func (o *manyOptions) hasGPU(p *typev1.Passthrough) bool {
	return slices.ContainsFunc(p.GetGpus(), func(g *typev1.GpuRef) bool { return slices.Contains(o.gpus, g.GetIndex()) })
}

// A manyExec runs one command in many containers.
type manyExec struct {
	*session
	options execOptions
	stop    context.CancelCauseFunc

	mu sync.Mutex // of both outputs, so that lines stay whole
}

// run runs the command in all targets that are not skipped, so many at a time on each node and in all.
func (m *manyExec) run(ctx context.Context, targets []*target) {
	inAll := make(chan struct{}, maxAtOnce)
	byNode := map[string]chan struct{}{}
	for _, t := range targets {
		byNode[t.GetNode()] = make(chan struct{}, m.options.many.parallel)
	}
	var running sync.WaitGroup
	for _, t := range targets {
		if t.skipped {
			continue
		}
		onNode := byNode[t.GetNode()]
		running.Go(func() {
			for _, places := range []chan struct{}{onNode, inAll} {
				select {
				case places <- struct{}{}:
					defer func() { <-places }()
				case <-ctx.Done():
					return
				}
			}
			if ctx.Err() != nil {
				return
			}
			t.begun = true
			t.exit, t.err = m.one(ctx, t)
		})
	}
	running.Wait()
}

// one runs the command in one container.
func (m *manyExec) one(ctx context.Context, t *target) (*typev1.ExecExit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := controllerv1.NewContainerServiceClient(m.conn).Exec(ctx)
	if err != nil {
		return nil, err
	}
	start := m.options.start(t.GetCtid())
	if len(m.options.many.gpus) > 0 {
		start.Instance = t.GetInstance() // it was chosen for what this one has
	}
	// What goes wrong here Recv tells.
	_ = stream.Send(&controllerv1.ExecRequest{Input: &typev1.ExecInput{Input: &typev1.ExecInput_Start{Start: start}}})
	_ = stream.CloseSend()
	if m.json {
		return eachOutput(stream, func(r *controllerv1.ExecResponse) error {
			raw, err := output.RawJSON(r.GetOutput())
			if err != nil {
				return err
			}
			return m.writeJSON(manyLine{CTID: t.GetCtid(), Node: t.GetNode(), Output: raw})
		})
	}
	prefix := fmt.Sprintf("%d %s ", t.GetCtid(), output.Clean(t.GetNode()))
	stdout := &lines{put: m.writer(m.out, prefix)}
	stderr := &lines{put: m.writer(m.err, prefix)}
	exit, err := eachOutput(stream, func(r *controllerv1.ExecResponse) error {
		return errors.Join(stdout.write(r.GetOutput().GetStdout()), stderr.write(r.GetOutput().GetStderr()))
	})
	return exit, errors.Join(err, stdout.end(), stderr.end())
}

// A manyLine is one line of JSON about one container or node.
type manyLine struct {
	CTID   int32           `json:"ctid,omitempty"`
	Node   string          `json:"node"`
	Output json.RawMessage `json:"output,omitempty"`
	Error  string          `json:"error,omitempty"`
	State  string          `json:"state,omitempty"` // of a container that was skipped
}

func (m *manyExec) writeJSON(line manyLine) error {
	b, err := json.Marshal(line)
	if err != nil {
		return err
	}
	return m.write(m.out, append(b, '\n'))
}

// write writes whole lines. When nobody reads them any more, all commands are to end.
func (m *manyExec) write(to io.Writer, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := to.Write(b); err != nil {
		m.stop(err)
		return err
	}
	return nil
}

// writer returns a function that writes a line with its prefix. A line that goes on with the one before it has "+" in
// place of "|". A terminal is not given what would drive it.
func (m *manyExec) writer(to io.Writer, prefix string) func(line []byte, goesOn bool) error {
	clean := terminal.Is(to)
	return func(line []byte, goesOn bool) error {
		mark := "| "
		if goesOn {
			mark = "+ "
		}
		text := string(line)
		if clean {
			text = output.CleanLines(strings.TrimSuffix(text, "\r"))
		}
		return m.write(to, []byte(prefix+mark+text+"\n"))
	}
}

// lines cuts a stream into lines of at most maxLine bytes.
type lines struct {
	put    func(line []byte, goesOn bool) error
	rest   []byte // without a line end yet
	goesOn bool   // rest is of the line that was put last
}

func (l *lines) write(b []byte) error {
	for len(b) > 0 {
		line, after, ended := bytes.Cut(b, []byte("\n"))
		if room := maxLine - len(l.rest); len(line) > room {
			line, after, ended = b[:room], b[room:], false
		}
		l.rest, b = append(l.rest, line...), after
		if !ended && len(b) == 0 {
			return nil
		}
		if err := l.flush(!ended); err != nil {
			return err
		}
	}
	return nil
}

func (l *lines) flush(goesOn bool) error {
	err := l.put(l.rest, l.goesOn)
	l.rest, l.goesOn = l.rest[:0], goesOn
	return err
}

// end writes a last line without a line end.
func (l *lines) end() error {
	if len(l.rest) == 0 {
		return nil
	}
	return l.flush(false)
}

// report tells on stderr, and with --json on stdout, what became of each container that has no output of its own to
// tell it, and how many succeeded.
func (m *manyExec) report(targets []*target, missing []*typev1.NodeError) error {
	done, begun, notBegun := 0, 0, 0
	var skipped []string
	byCode := map[int32][]string{}
	for _, t := range targets {
		ctid := strconv.Itoa(int(t.GetCtid()))
		switch {
		case t.skipped:
			skipped = append(skipped, fmt.Sprintf("%s (%s)", ctid, word(t.GetState())))
			if err := m.jsonOnly(manyLine{CTID: t.GetCtid(), Node: t.GetNode(), State: t.GetState().String()}); err != nil {
				return err
			}
			continue
		case !t.begun:
			notBegun++
			continue
		}
		begun++
		if t.err != nil {
			message := messageOf(t.err)
			m.warn("CTID %s on %s: %s", ctid, t.GetNode(), message)
			if err := m.jsonOnly(manyLine{CTID: t.GetCtid(), Node: t.GetNode(), Error: message}); err != nil {
				return err
			}
			continue
		}
		for _, remark := range remarksOn(m.options, t.exit) {
			m.warn("CTID %s on %s: %s", ctid, t.GetNode(), remark)
		}
		if code := t.exit.GetCode(); code == 0 {
			done++
		} else {
			byCode[code] = append(byCode[code], ctid)
		}
	}
	for _, code := range slices.Sorted(maps.Keys(byCode)) {
		m.warn("exit status %d: %s", code, strings.Join(byCode[code], ", "))
	}
	if len(skipped) > 0 {
		m.warn("skipped: %s", strings.Join(skipped, ", "))
	}
	if notBegun > 0 {
		m.warn("not begun in %s", count(notBegun, "container"))
	}
	if begun > 0 {
		m.warn("succeeded in %d of %s", done, count(begun+notBegun, "container"))
	}
	for _, n := range missing {
		if err := m.jsonOnly(manyLine{Node: n.GetNode(), Error: n.GetMessage()}); err != nil {
			return err
		}
	}
	return nil
}

func (m *manyExec) jsonOnly(line manyLine) error {
	if !m.json {
		return nil
	}
	return m.writeJSON(line)
}

// messageOf returns what a failed call says, without grpc's words.
func messageOf(err error) string {
	st, ok := statusOf(err)
	if !ok {
		return err.Error()
	}
	if st.Code() == codes.Canceled {
		return "interrupted"
	}
	return st.Message()
}

// judge returns nil if the command succeeded in all containers that were meant.
func (m *manyExec) judge(ctx context.Context, targets []*target, missing []*typev1.NodeError) error {
	if err := unreachable(missing); err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause // stdout is gone
	}
	if !slices.ContainsFunc(targets, func(t *target) bool { return !t.skipped }) {
		return &failure{err: errors.New("exec: none of the containers that are meant runs"), hint: "See them: phoenix-cli containers."}
	}
	for _, t := range targets {
		if !t.skipped && (t.err != nil || t.exit.GetCode() != 0 || !t.begun) {
			return errQuiet
		}
	}
	return nil
}
