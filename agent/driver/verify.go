package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"phoenix.internal/agent/attach"
)

// A Verdict is what came of using a container's driver. All of it is what the container says.
type Verdict struct {
	Problems   []string // sentences; none: all is well
	SMIVersion string   // that nvidia-smi reports; empty: none
	SMIError   string   // the problem that is with nvidia-smi itself; empty: none
	UUIDs      []string // of GPUs and MIG devices that nvidia-smi lists, sorted; not of a GPU whose MIG devices it lists
	Missing    []string // expected and not listed
	Unexpected []string // listed and not expected
	CUDA       CUDACheck
	CUDAResult int32 // of cuInit, if CUDA is CUDARan
}

// CUDACheck is how far CUDA was verified.
type CUDACheck int

// How far.
const (
	CUDANoLibrary CUDACheck = iota
	CUDANotRun              // there is a libcuda.so.1, which was not called: there is no GPU, or this machine is no x86-64
	CUDARan
)

const (
	smiTimeout = 60 * time.Second // without a persistence daemon each GPU takes seconds
	smiOutput  = 256 << 10
	mostNamed  = 8 // UUIDs in one sentence: the container can make up any number of them
)

var errTooMuch = fmt.Errorf("more than %d KiB of output", smiOutput>>10)

// Verify uses the driver of a running container: nvidia-smi has to report version and exactly the expected GPUs and MIG
// devices. That something is wrong is no error; those are an [attach.ErrAttach], an [ErrHelper] or the context's.
func (i *Installer) Verify(ctx context.Context, ctid int32, version string, expected []string) (Verdict, error) {
	s, err := i.Inspect(ctx, ctid)
	if err != nil {
		return Verdict{}, err
	}
	var v Verdict
	problem := func(format string, args ...any) { v.Problems = append(v.Problems, fmt.Sprintf(format, args...)) }
	smiProblem := func(format string, args ...any) {
		v.SMIError = fmt.Sprintf(format, args...)
		v.Problems = append(v.Problems, v.SMIError)
	}
	switch {
	case s.Kind == Absent:
		problem("the container has no driver libraries")
	case s.Kind == Incomplete:
		problem("the container's driver is incomplete; install it again")
	case s.Version != version:
		problem("the container's libraries are of %s, and the node's loaded module is %s", s.Version, version)
	}
	list, why, err := i.smi(ctx, ctid, "-L")
	if err != nil {
		return Verdict{}, err
	}
	v.UUIDs = listedUUIDs(list)
	if why != "" && len(v.UUIDs)+len(expected) > 0 { // without a GPU it has reason to fail
		smiProblem("nvidia-smi -L: %s", why)
	}
	v.Missing, v.Unexpected = without(expected, v.UUIDs), without(v.UUIDs, expected)
	if len(v.Missing) > 0 {
		problem("nvidia-smi does not list %s", some(v.Missing))
	}
	if len(v.Unexpected) > 0 {
		problem("nvidia-smi lists %s, which the container should not have", some(v.Unexpected))
	}
	if s.CUDA != "" {
		v.CUDA = CUDANotRun
		if len(v.UUIDs) > 0 {
			if err := i.verifyCUDA(ctx, ctid, &v); err != nil {
				return Verdict{}, err
			}
		}
	}
	if why != "" || len(v.UUIDs) == 0 {
		return v, nil
	}
	out, why, err := i.smi(ctx, ctid, "--query-gpu=driver_version", "--format=csv,noheader")
	if err != nil {
		return Verdict{}, err
	}
	first, _, _ := strings.Cut(string(out), "\n")
	if first = strings.TrimSpace(first); CheckVersion(first) == nil {
		v.SMIVersion = first
	}
	if why != "" {
		smiProblem("nvidia-smi --query-gpu: %s", why)
	} else if v.SMIVersion != version {
		smiProblem("nvidia-smi reports the version %q, and the node's loaded module is %s", v.SMIVersion, version)
	}
	return v, nil
}

// smi runs the container's nvidia-smi; why says what went wrong with it.
func (i *Installer) smi(ctx context.Context, ctid int32, args ...string) (out []byte, why string, err error) {
	stdout, stderr := &limited{}, &tail{max: 512}
	process, err := i.Attacher.Start(ctx, attach.Command{
		CTID: ctid, Argv: append([]string{"nvidia-smi"}, args...), Stdout: stdout, Stderr: stderr, Timeout: smiTimeout,
	})
	if err != nil {
		return nil, "", err
	}
	exit, err := process.Wait()
	switch {
	case errors.Is(err, errTooMuch):
		return nil, errTooMuch.Error(), nil
	case err != nil:
		return nil, "", err
	case exit.NotStarted:
		return nil, "the container has no such program", nil
	case exit.TimedOut:
		return nil, fmt.Sprintf("no answer within %v", smiTimeout), nil
	case exit.Code != 0:
		said := stderr.String()
		if said == "" {
			said = printable(last(bytes.TrimSpace(stdout.b)))
		}
		return stdout.b, fmt.Sprintf("status %d: %.300s", exit.Code, said), nil
	}
	return stdout.b, "", nil
}

// limited ends a program that prints more than anybody wants to know.
type limited struct{ b []byte }

// Write implements [io.Writer].
func (l *limited) Write(b []byte) (int, error) {
	if len(l.b)+len(b) > smiOutput {
		return 0, errTooMuch
	}
	l.b = append(l.b, b...)
	return len(b), nil
}

var uuidOf = regexp.MustCompile(`(?m)^(GPU|  MIG) .*\(UUID: ((?:GPU|MIG)-[0-9A-Za-z/-]{1,80})\)\s*$`)

// listedUUIDs are the devices in the output of nvidia-smi -L: a line per GPU, with lines of its MIG devices below it.
func listedUUIDs(out []byte) []string {
	var all []string
	parent := "" // of which no MIG device has been seen
	for _, m := range uuidOf.FindAllSubmatch(out, -1) {
		if string(m[1]) == "GPU" {
			if parent != "" {
				all = append(all, parent)
			}
			parent = string(m[2])
			continue
		}
		parent = ""
		all = append(all, string(m[2]))
	}
	if parent != "" {
		all = append(all, parent)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// some names the first of them.
func some(uuids []string) string {
	if more := len(uuids) - mostNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(uuids[:mostNamed], ", "), more)
	}
	return strings.Join(uuids, ", ")
}

// without returns what is in a and not in b, sorted.
func without(a, b []string) []string {
	var rest []string
	for _, x := range a {
		if !slices.Contains(b, x) {
			rest = append(rest, x)
		}
	}
	slices.Sort(rest)
	return slices.Compact(rest)
}
