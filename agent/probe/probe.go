// Package probe opens device nodes from inside a container: in its namespaces and its cgroup, as its
// root. That is the only proof that a container has a device.
//
// Nothing of the container's is used. The program that does it is this one: see [attach.Helper].
package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"
	"time"

	"phoenix.internal/agent/attach"
)

// ErrProbe is wrapped by errors that say that the helper, which the container can kill, starve or alter, gave no valid
// answer.
var ErrProbe = errors.New("no valid answer from inside the container")

// Argument is the first argument with which the agent's binary is its own helper; see [Main].
const Argument = "probe-helper"

// timeout bounds a whole probe: entering the container and every open, which run side by side.
const timeout = 10 * time.Second

// maxAnswer bounds what is read from the helper, which the container may have replaced or altered.
const maxAnswer = 1 << 20

// A Prober probes the containers of the node. Its methods may be called at the same time. The zero
// value is ready.
type Prober struct {
	Attacher attach.Attacher // its Helper is the program that goes into the container
}

// A Device is a device node to open.
type Device struct {
	Path  string `json:"path"`  // absolute, in the container
	Major int    `json:"major"` // that it should have; -1: any
	Minor int    `json:"minor"` // likewise
	// ReadOnly opens it for reading only: a capability node of NVIDIA's driver has mode 0444.
	ReadOnly bool `json:"read_only,omitempty"`
}

// A Result is what opening a device gave.
type Result struct {
	Path    string  `json:"path"`
	Outcome Outcome `json:"outcome"`
	Errno   string  `json:"errno,omitempty"` // "EPERM", for example; empty if no call failed
	Major   int     `json:"major"`           // found; -1 if the path is no device
	Minor   int     `json:"minor"`           // likewise
}

// Outcome is the kind of a result.
type Outcome string

// The outcomes.
const (
	Opened       Outcome = "opened"
	NoDriver     Outcome = "no driver"     // ENXIO, ENODEV: cgroup and mode allow it, but no driver answers
	Denied       Outcome = "denied"        // EPERM: by the device cgroup
	NoPermission Outcome = "no permission" // EACCES: by mode or owner
	Absent       Outcome = "absent"        // ENOENT, ENOTDIR
	NotADevice   Outcome = "not a device"  // an empty file left by an optional mount, a link
	WrongNumber  Outcome = "wrong number"  // a character device with other numbers; not opened
	Timeout      Outcome = "timeout"       // the open did not return in time
	Failed       Outcome = "failed"        // another error
)

var outcomes = map[Outcome]bool{Opened: true, NoDriver: true, Denied: true, NoPermission: true, Absent: true,
	NotADevice: true, WrongNumber: true, Timeout: true, Failed: true}

// Probe opens devices in a running container and returns a result for each, in their order. The
// container's root could make them say anything about its own devices, but not about more.
//
// If the container cannot be entered the error is an [attach.ErrAttach], if what it answers is of no use an [ErrProbe].
func (p *Prober) Probe(ctx context.Context, ctid int32, devices []Device) ([]Result, error) {
	results, err := p.probe(ctx, ctid, devices)
	if err != nil {
		return nil, fmt.Errorf("probe CTID %d: %w", ctid, err)
	}
	return results, nil
}

func (p *Prober) probe(ctx context.Context, ctid int32, devices []Device) ([]Result, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	program, err := p.Attacher.Program()
	if err != nil {
		return nil, err
	}
	question, err := json.Marshal(devices)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer, complaint := newAnswer(), &limited{max: 4 << 10}
	process, err := p.Attacher.Start(ctx, attach.Command{
		CTID: ctid,
		// The first of Files is descriptor 3.
		Argv:    []string{"/proc/self/fd/3", Argument},
		Files:   []*os.File{program},
		Stdin:   bytes.NewReader(question),
		Stdout:  answer,
		Stderr:  complaint,
		Timeout: timeout,
	})
	if err != nil {
		return nil, err
	}
	ended := make(chan end, 1)
	go func() {
		exit, err := process.Wait()
		ended <- end{exit, err}
	}()
	select {
	case e := <-ended:
		return e.results(answer, complaint, devices)
	case <-answer.complete:
	}
	// While the driver of a broken GPU holds one of its threads, the helper cannot end, not even by
	// SIGKILL. Its answer does not get better by waiting; attach ends what can be ended.
	select {
	case e := <-ended:
		return e.results(answer, complaint, devices)
	case <-time.After(time.Second):
		return parseAnswer(answer.bytes(), devices)
	}
}

// end is how the helper ended.
type end struct {
	exit attach.Exit
	err  error
}

func (e end) results(answer *answer, complaint *limited, devices []Device) ([]Result, error) {
	switch {
	case e.err != nil:
		return nil, e.err
	case e.exit.TimedOut:
		return nil, fmt.Errorf("%w in %v", ErrProbe, timeout)
	case e.exit.NotStarted:
		return nil, fmt.Errorf("%w: the helper cannot be executed there; is /proc mounted in the container?", ErrProbe)
	case e.exit.Code != 0:
		first, _, _ := bytes.Cut(complaint.Bytes(), []byte("\n")) // of a stack, perhaps
		return nil, fmt.Errorf("%w: the helper ended with status %d: %.400q", ErrProbe, e.exit.Code, first)
	}
	return parseAnswer(answer.bytes(), devices)
}

// parseAnswer reads the helper's results, which must be one for each device in the same order.
func parseAnswer(b []byte, devices []Device) ([]Result, error) {
	var results []Result
	if err := json.Unmarshal(b, &results); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProbe, err)
	}
	if len(results) != len(devices) {
		return nil, fmt.Errorf("%w: %d results for %d devices", ErrProbe, len(results), len(devices))
	}
	for i, r := range results {
		d := devices[i]
		wrong := d.Major >= 0 && r.Major != d.Major || d.Minor >= 0 && r.Minor != d.Minor
		if r.Path != d.Path || !outcomes[r.Outcome] || !errnoPattern.MatchString(r.Errno) || r.Outcome == Opened && wrong {
			return nil, fmt.Errorf("%w: the result for %q is not valid", ErrProbe, d.Path)
		}
	}
	return results, nil
}

var errnoPattern = regexp.MustCompile(`^[A-Z0-9]{0,32}$`)

// answer is the helper's stdout up to the end of its line.
type answer struct {
	complete chan struct{} // closed when the line has ended; nothing is kept after it

	mu   sync.Mutex
	line limited
}

func newAnswer() *answer {
	return &answer{complete: make(chan struct{}), line: limited{max: maxAnswer}}
}

func (a *answer) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-a.complete:
		return 0, fmt.Errorf("%w: output after the answer", ErrProbe)
	default:
	}
	n, err := a.line.Write(b)
	if err == nil && bytes.HasSuffix(b, []byte("\n")) {
		close(a.complete)
	}
	return n, err
}

func (a *answer) bytes() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.line.Bytes()
}

// limited keeps the first max bytes that are written to it, and refuses more.
type limited struct {
	bytes.Buffer
	max int
}

func (l *limited) Write(b []byte) (int, error) {
	if l.Len()+len(b) > l.max {
		return 0, fmt.Errorf("%w: output too long", ErrProbe)
	}
	return l.Buffer.Write(b)
}
