package node

import (
	"context"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/controller/observed"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// Deadlines of the calls. Those of Restart and Run follow from their arguments.
const (
	getTimeout     = 10 * time.Second
	prepareTimeout = 60 * time.Second // nvidia-modprobe may load a module
	// The agent waits up to 30 s for the end of a stop before it edits a conf and again after it, 10 s for Proxmox's lock, and
	// 15 s each for the cluster file system to read and to write it. It says better than a deadline what it waits for.
	patchTimeout = 105 * time.Second
	probeTimeout = 30 * time.Second
	// What a restart needs besides the graceful shutdown: waiting for other changes, the kill, the start, and the
	// same once more if it is rolled back.
	restartSlack = 5 * time.Minute
	execSlack    = 30 * time.Second // to start the command, and to end it when its own timeout is over
)

// Container returns one container as it is now.
func (n *Node) Container(ctx context.Context, ctid int32) (observed.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	resp, err := n.Containers().GetContainer(ctx, &agentv1.GetContainerRequest{Ctid: ctid})
	if err != nil {
		return observed.Container{}, err
	}
	return Container(resp.GetContainer()), nil
}

// PVEVersion returns the version of Proxmox VE on the node; a sandbox's contains "sandbox".
func (n *Node) PVEVersion(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	resp, err := n.Info().GetNode(ctx, &agentv1.GetNodeRequest{})
	return resp.GetNode().GetPveVersion(), err
}

// Prepare checks that containers can be given these GPUs for these capabilities, and makes missing device nodes. Returns
// the paths of those it made.
func (n *Node) Prepare(ctx context.Context, gpus []observed.Ref, caps []string) (created []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	resp, err := n.Devices().PrepareDevices(ctx, &agentv1.PrepareDevicesRequest{
		Gpus: selectors(gpus), Capabilities: Capabilities(caps),
	})
	return resp.GetCreatedPaths(), err
}

// A Patch makes a container's passthrough exactly these GPUs.
type Patch struct {
	CTID         int32
	GPUs         []observed.Ref // empty removes every NVIDIA device
	Mode         observed.Mode  // raw or native
	Capabilities []string       // as in the fleet file
	Assignment   string         // its text in the fleet file, for the agent's record
	Digest       string         // of the conf that the caller planned against; empty: whatever it is
	DryRun       bool
	RequestID    string
	Who          string // who the agent is asked for; see [OnBehalfOf]
}

// A Patched is what a [Patch] did, or with DryRun would do.
type Patched struct {
	Changed       bool
	Before, After []byte
	Digest        string // of After
	Revision      int64  // that holds Before; 0 if nothing was written
}

// Patch sets the passthrough in a container's conf.
func (n *Node) Patch(ctx context.Context, p Patch) (Patched, error) {
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	r, err := n.Containers().PatchConf(ctx, setPassthrough(p))
	if err != nil {
		return Patched{}, err
	}
	return Patched{
		Changed:  r.GetChanged(),
		Before:   r.GetBefore(),
		After:    r.GetAfter(),
		Digest:   r.GetDigest(),
		Revision: r.GetRevision(),
	}, nil
}

// A Restart stops a container, if it runs, and starts it.
type Restart struct {
	CTID      int32
	Instance  string        // of the container that the caller decided on; empty: whatever runs
	Timeout   time.Duration // of the graceful shutdown
	RequestID string
	Who       string // as in [Patch]
}

// Restart restarts a container and returns it as it is then. progress is called at the beginning of each phase, with the
// phase's name in lower case ("shutting_down") and a line for a person that may be empty.
//
// When the call fails with [Unreachable] the agent may still finish the restart.
func (n *Node) Restart(ctx context.Context, r Restart, progress func(phase, message string)) (observed.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout+restartSlack)
	defer cancel()
	stream, err := n.Containers().Restart(ctx, &agentv1.RestartRequest{
		Ctid:       r.CTID,
		Timeout:    durationpb.New(r.Timeout),
		Instance:   r.Instance,
		RequestId:  r.RequestID,
		OnBehalfOf: OnBehalfOf(r.Who),
	})
	if err != nil {
		return observed.Container{}, err
	}
	var last *typev1.Container
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return observed.Container{}, err
		}
		p := resp.GetProgress()
		progress(lower(p.GetPhase().String(), "RESTART_PHASE_"), p.GetMessage())
		if p.GetContainer() != nil {
			last = p.GetContainer()
		}
	}
	if last == nil {
		return observed.Container{}, fmt.Errorf("node %s: restart of CTID %d ended without an answer", n.name, r.CTID)
	}
	return Container(last), nil
}

// An Outcome is what opening one device gave: the name of a ProbeOutcome without prefix, in lower case.
type Outcome string

// The outcomes.
const (
	Opened       Outcome = "opened"
	NoDriver     Outcome = "no_driver"     // the way to the device is open, but no driver answers
	Denied       Outcome = "denied"        // by the device cgroup
	NoPermission Outcome = "no_permission" // by mode or owner of the file
	Absent       Outcome = "absent"
	NotADevice   Outcome = "not_a_device"
	WrongNumber  Outcome = "wrong_number"
	TimedOut     Outcome = "timeout"
	Failed       Outcome = "failed"
)

// A Probed is the result of opening one device from inside a container.
type Probed struct {
	Path string
	GPU  int // index of the GPU; -1 for a device that GPUs share
	// IsMIG tells that this is a capability node: of a compute instance, or with ComputeInstance -1 of a GPU instance.
	IsMIG                        bool
	GPUInstance, ComputeInstance int

	Expected bool // whether the conf in force is meant to give it
	Outcome  Outcome
	Errno    string
	Message  string // for a person
}

// Probe opens every NVIDIA device from inside the container. instance is the one that the caller means; empty: whatever
// runs. Returns the instance that was probed.
func (n *Node) Probe(ctx context.Context, ctid int32, instance string) (results []Probed, probed string, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	resp, err := n.Containers().Probe(ctx, &agentv1.ProbeRequest{Ctid: ctid, Instance: instance})
	if err != nil {
		return nil, "", err
	}
	return Probes(resp.GetResults()), resp.GetInstance(), nil
}

// A Command is run in a container to its end.
type Command struct {
	CTID    int32
	Argv    []string
	Env     []string
	Stdin   []byte
	Timeout time.Duration
}

// An Exit is how a command ended.
type Exit struct {
	Code     int
	TimedOut bool
	// Stdout is the end of its stdout, and Output that of stdout and stderr in the order of arrival; each is at most
	// 16 KiB.
	Stdout, Output []byte
}

const (
	maxTail  = 16 << 10
	maxChunk = 32 << 10 // of stdin in one message (exec.proto)
)

// Run runs a command in a running container. A command that fails is an answer, not an error.
func (n *Node) Run(ctx context.Context, c Command) (Exit, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout+execSlack)
	defer cancel()
	stream, err := n.Exec().Exec(ctx)
	if err != nil {
		return Exit{}, err
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		// A failure to send is not looked at: a command may end before it has read its stdin, and what else went wrong
		// receive gets to know.
		_ = c.send(stream)
	}()

	exit, err := receive(stream)
	if err != nil {
		cancel() // frees a sender whose stdin nobody reads
	}
	<-sent
	if err == io.EOF {
		err = fmt.Errorf("node %s: the exec in CTID %d ended without an answer", n.name, c.CTID)
	}
	return exit, err
}

func (c Command) send(stream agentv1.ExecService_ExecClient) error {
	send := func(in *typev1.ExecInput) error { return stream.Send(&agentv1.ExecRequest{Input: in}) }
	err := send(&typev1.ExecInput{Input: &typev1.ExecInput_Start{Start: &typev1.ExecStart{
		Ctid: c.CTID, Argv: c.Argv, Env: c.Env, Stdin: len(c.Stdin) > 0, Timeout: durationpb.New(c.Timeout),
	}}})
	for rest := c.Stdin; err == nil && len(rest) > 0; {
		chunk := rest[:min(len(rest), maxChunk)]
		rest = rest[len(chunk):]
		err = send(&typev1.ExecInput{Input: &typev1.ExecInput_Stdin{Stdin: chunk}})
	}
	if err == nil && len(c.Stdin) > 0 {
		err = send(&typev1.ExecInput{Input: &typev1.ExecInput_StdinEnd{StdinEnd: &typev1.ExecStdinEnd{}}})
	}
	if err == nil {
		err = stream.CloseSend()
	}
	return err
}

// receive reads the stream to its end. io.EOF: there was no exit.
func receive(stream agentv1.ExecService_ExecClient) (exit Exit, err error) {
	ended := false
	for {
		resp, err := stream.Recv()
		if err == io.EOF && ended {
			return exit, nil
		}
		if err != nil {
			return exit, err
		}
		switch out := resp.GetOutput().GetOutput().(type) {
		case *typev1.ExecOutput_Stdout:
			exit.Stdout = tail(exit.Stdout, out.Stdout)
			exit.Output = tail(exit.Output, out.Stdout)
		case *typev1.ExecOutput_Stderr:
			exit.Output = tail(exit.Output, out.Stderr)
		case *typev1.ExecOutput_Exit:
			exit.Code, exit.TimedOut, ended = int(out.Exit.GetCode()), out.Exit.GetTimedOut(), true
		}
	}
}

// tail appends more to b and keeps the end of it.
func tail(b, more []byte) []byte {
	b = append(b, more...)
	if len(b) > maxTail {
		b = append([]byte(nil), b[len(b)-maxTail:]...)
	}
	return b
}
