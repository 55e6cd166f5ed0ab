package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/cli/output"
	"phoenix.internal/cli/terminal"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// Limits of the API.
const (
	stdinChunk     = 32<<10 - 64 // at most 32 KiB; so it fits with its headers into grpc's buffers of that size
	maxTerminal    = 4096
	defaultTimeout = time.Hour
	maxTimeout     = 24 * time.Hour
	maxEnv         = 64
	maxArgv        = 256
	maxUser        = 128
	maxPath        = 4096
)

// insistence is how often a signal must come until it ends the call instead of going to the command.
const insistence = 3

// signalWait is how long a signal may wait behind stdin that the command does not read; then it ends the call. It is
// longer than the 2 s that the agent gives a command to begin.
var signalWait = 3 * time.Second

type execOptions struct {
	ctid          int32
	argv, env     []string
	stdin, tty    bool
	noStdin       bool
	user, workdir string
	timeout, idle time.Duration
	many          manyOptions
}

func (p *Program) execCommand() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use: `exec [-i | -n] [-t] [-u USER] [-w DIR] [-e NAME=VALUE] CTID [--] COMMAND [ARG...]
  phoenix-cli exec {--all | --node NODE | --gpu N} [-u USER] [-w DIR] [-e NAME=VALUE] [--] COMMAND [ARG...]`,
		Short: "Run a command in a container, or in many",
		Long: `Run a command in a running container, with its streams, and exit with its status.

No shell is involved: take "sh -c '...'" for one. stdin goes to the command, as with ssh, if it is a pipe or a file; in a
loop over lines of stdin that would take the lines, so give -n there. With -t the command gets a terminal; -it is a
session in it. Signals go to the command; one that comes three times, or cannot pass the stdin that the command leaves
unread, ends the call, and the command with it. SIGTERM or SIGHUP ends a session at once.

With --all, --node or --gpu the command is run in every running container, or in those of a node, or in those that have
GPU N in force; with several, in those that meet all of them. Each line of output begins with CTID and node. Containers
that do not run are skipped.

Exit status: the command's own, 128 plus the number of the signal that ended it, 126 if it cannot be executed, 127 if
it is not there; 1, with a message, if there is no answer from it. In many containers: 0 if all exited with 0, else 1.`,
		Example: `  phoenix-cli exec 901 nvidia-smi
  phoenix-cli exec -it 901 bash
  tar c . | phoenix-cli exec -w /srv 901 tar x
  phoenix-cli exec --gpu 0 -- nvidia-smi -L`,
		Args: func(cmd *cobra.Command, args []string) error { return execArgs(cmd, o.many.asked(), args) },

		DisableFlagsInUseLine: true, // the flags stand before the CTID
		RunE: p.connected(func(ctx context.Context, s *session, args []string) error {
			if o.many.asked() {
				o.argv = args
				return executeMany(ctx, s, o)
			}
			o.ctid, o.argv = mustCTID(args[0]), commandOf(args)
			o.stdin = o.stdin || !o.noStdin && terminal.IsPiped(s.in)
			return execute(ctx, s, o)
		}),
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what stands after the CTID is the command's
	f.BoolVarP(&o.stdin, "stdin", "i", false, "send stdin to the command, also from a terminal")
	f.BoolVarP(&o.noStdin, "no-stdin", "n", false, "never read stdin: the command's is empty")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&o.user, "user", "u", "", "run it as `USER`[:GROUP], names or numbers of the container; default root")
	f.StringVarP(&o.workdir, "workdir", "w", "", "run it in this `DIR` of the container; default /")
	f.StringArrayVarP(&o.env, "env", "e", nil, "variable `NAME=VALUE` for the command; repeatable")
	f.DurationVar(&o.timeout, "timeout", defaultTimeout, "end the command after this time, at most 24h")
	f.DurationVar(&o.idle, "idle-timeout", 0, "end the command when nothing went in or out for so long, at most 24h; 0: never")
	o.many.flags(f)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return misuseIf(cmd, o.check(cmd)) }
	return cmd
}

func execArgs(cmd *cobra.Command, many bool, args []string) error {
	argv := args
	if !many {
		if len(args) == 0 {
			return misuse(cmd, errors.New("exec: CTID and COMMAND are missing"))
		}
		if _, err := parseCTID(args[0]); err != nil {
			return misuse(cmd, err)
		}
		if len(args) > 1 && args[1] != "--" && strings.HasPrefix(args[1], "-") {
			return misuse(cmd, fmt.Errorf("%q stands after the CTID: flags of exec stand before it", args[1]))
		}
		argv = commandOf(args)
	}
	if len(argv) == 0 || argv[0] == "" {
		return misuse(cmd, errors.New("exec: COMMAND is missing"))
	}
	if len(argv) > maxArgv {
		return misuse(cmd, fmt.Errorf("exec: %d arguments are more than %d", len(argv), maxArgv))
	}
	return nil
}

// commandOf returns the command after the CTID and an optional "--".
func commandOf(args []string) []string {
	argv := args[1:]
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	return argv
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

func (o *execOptions) check(cmd *cobra.Command) error {
	for _, e := range o.env {
		if !envName.MatchString(e) {
			return fmt.Errorf("--env %q is not NAME=VALUE", e)
		}
	}
	if len(o.env) > maxEnv {
		return fmt.Errorf("--env: %d variables are more than %d", len(o.env), maxEnv)
	}
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON && o.tty {
		return errors.New("--json and --tty exclude each other")
	}
	if o.stdin && o.noStdin {
		return errors.New("--stdin and --no-stdin exclude each other")
	}
	if len(o.user) > maxUser || o.user != "" && !userName.MatchString(o.user) {
		return fmt.Errorf("--user %q is not USER or USER:GROUP", o.user)
	}
	if o.workdir != "" && (o.workdir[0] != '/' || len(o.workdir) > maxPath) {
		return fmt.Errorf("--workdir %q is not an absolute path", o.workdir)
	}
	return errors.Join(
		checkDuration("timeout", o.timeout, time.Second, maxTimeout),
		checkDuration("idle-timeout", o.idle, 0, maxTimeout),
		o.many.check(cmd, o))
}

var userName = regexp.MustCompile(`^[^\x00-\x20\x7f,/:]+(:[^\x00-\x20\x7f,/:]+)?$`)

// start returns the message that begins the command in a container.
func (o execOptions) start(ctid int32) *typev1.ExecStart {
	start := &typev1.ExecStart{
		Ctid: ctid, Argv: o.argv, Env: o.env, Tty: o.tty, Stdin: o.stdin, Timeout: durationpb.New(o.timeout),
		User: o.user, WorkingDirectory: o.workdir,
	}
	if o.idle > 0 {
		start.IdleTimeout = durationpb.New(o.idle)
	}
	return start
}

// execute runs a command and returns its status as a commandExit.
func execute(ctx context.Context, s *session, o execOptions) (err error) {
	// Signals belong to the command, which may want to end in its own way.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	start := o.start(o.ctid)
	if o.tty {
		if !terminal.Is(s.in) {
			return &failure{err: errors.New("--tty: stdin is not a terminal"), hint: "Leave out -t."}
		}
		start.Size = terminalSize(s)
	}
	// Before the command can begin, so that no signal is lost between the two.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)
	stream, err := controllerv1.NewContainerServiceClient(s.conn).Exec(ctx)
	if err != nil {
		return fmt.Errorf("exec in CTID %d: %w", o.ctid, err)
	}
	if err := stream.Send(&controllerv1.ExecRequest{Input: &typev1.ExecInput{Input: &typev1.ExecInput_Start{Start: start}}}); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("exec in CTID %d: %w", o.ctid, err)
	}
	if o.tty && o.stdin {
		restore, err := terminal.Raw(s.in.(*os.File))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, restore()) }()
	}
	in := execInput{send: stream.Send, cancel: cancel, inputs: make(chan *typev1.ExecInput), waiting: make(chan *time.Timer, maxWaiting)}
	finish, err := in.start(ctx, s, o, signals)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, finish()) }()
	exit, err := receive(stream, s, in.signalled)
	if err != nil {
		return fmt.Errorf("exec in CTID %d: %w", o.ctid, err)
	}
	return ended(s, o, exit)
}

// receive copies the output of a command until it ends.
func receive(stream controllerv1.ContainerService_ExecClient, s *session, signalled func()) (*typev1.ExecExit, error) {
	return eachOutput(stream, func(r *controllerv1.ExecResponse) (err error) {
		if r.GetOutput().GetSignalled() != nil {
			signalled()
		}
		if s.json {
			return output.WriteJSONLine(s.out, r)
		}
		switch out := r.GetOutput().GetOutput().(type) {
		case *typev1.ExecOutput_Stdout:
			_, err = s.out.Write(out.Stdout)
		case *typev1.ExecOutput_Stderr:
			_, err = s.err.Write(out.Stderr)
		}
		return err
	})
}

// eachOutput calls do for each message about a command, and returns how the command ended.
func eachOutput(stream controllerv1.ContainerService_ExecClient, do func(*controllerv1.ExecResponse) error) (*typev1.ExecExit, error) {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the answer ended before the command did")
		}
		if err != nil {
			return nil, err
		}
		if out := r.GetOutput(); out != nil {
			out.Padding = nil // tells nothing to anybody who reads JSON
		}
		if err := do(r); err != nil {
			return nil, err
		}
		if exit := r.GetOutput().GetExit(); exit != nil {
			return exit, nil
		}
	}
}

// ended passes on how a command ended.
func ended(s *session, o execOptions, exit *typev1.ExecExit) error {
	for _, remark := range remarksOn(o, exit) {
		s.warn("exec in CTID %d: %s", o.ctid, remark)
	}
	if exit.GetCode() == 0 {
		return nil
	}
	return &commandExit{code: int(exit.GetCode())}
}

// notFound is the status of a command that is not there, as shells have it.
const notFound = 127

// remarksOn returns what a person should know about the end of a command besides its status.
func remarksOn(o execOptions, exit *typev1.ExecExit) []string {
	var remarks []string
	if exit.GetNotStarted() && exit.GetCode() == notFound {
		// The kernel says ENOENT for both, and whoever sees the file does not think of the second.
		remarks = append(remarks, "the container has no such program, or lacks what that needs to start: "+
			"the loader of its C library (a program for glibc in a container with musl, or the other way round) or the interpreter of a script")
	}
	if exit.GetTimedOut() {
		remarks = append(remarks, fmt.Sprintf("the command was ended because its time of %v was over; --timeout gives more", o.timeout))
	}
	if exit.GetIdledOut() {
		remarks = append(remarks, fmt.Sprintf("the command was ended because nothing went in or out for %v (--idle-timeout)", o.idle))
	}
	if !exit.GetOutputComplete() {
		remarks = append(remarks, "the output may lack its end: a process that the command left behind still holds it")
	}
	for _, p := range exit.GetSurvivors() {
		remarks = append(remarks, fmt.Sprintf("left behind, and still running: %s (PID %d on the node)", p.GetCommand(), p.GetPid()))
	}
	if n := exit.GetMoreSurvivors(); n > 0 {
		remarks = append(remarks, fmt.Sprintf("left behind, and still running: %d more", n))
	}
	return remarks
}

// An execInput sends what goes to a command. Only one goroutine may send on a stream, so all others hand it their
// messages.
type execInput struct {
	send    func(*controllerv1.ExecRequest) error
	cancel  context.CancelFunc
	inputs  chan *typev1.ExecInput
	waiting chan *time.Timer // for each signal that the command may not have got yet: what ends the call
}

// start begins to send and returns what ends it.
func (in *execInput) start(ctx context.Context, s *session, o execOptions, signals <-chan os.Signal) (finish func() error, err error) {
	endStdin := func() error { return nil }
	ctx, cancel := context.WithCancel(ctx)
	if o.stdin {
		if endStdin, err = in.startStdin(ctx, s.in); err != nil {
			cancel()
			return nil, err
		}
	}
	sent, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sent)
		in.sendAll(ctx)
	}()
	go func() {
		defer close(watched)
		in.watch(ctx, s, o, signals)
	}()
	return func() error {
		cancel()
		in.cancel() // a Send that waits for the other side's window returns
		<-watched
		<-sent
		return endStdin()
	}, nil
}

// startStdin begins to read stdin and returns what ends that, after ctx has ended. A reader that is no file, as only
// tests have, is not waited for.
func (in *execInput) startStdin(ctx context.Context, stdin io.Reader) (end func() error, err error) {
	f, ok := stdin.(*os.File)
	if !ok {
		go in.readStdin(ctx, stdin)
		return func() error { return nil }, nil
	}
	input, err := terminal.NewInput(f)
	if err != nil {
		return nil, err
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		in.readStdin(ctx, input)
	}()
	return func() error {
		err := input.Stop()
		<-read
		return errors.Join(err, input.Close())
	}, nil
}

func (in *execInput) sendAll(ctx context.Context) {
	for {
		select {
		case m := <-in.inputs:
			if in.send(&controllerv1.ExecRequest{Input: m}) != nil {
				return // Recv says why
			}
		case <-ctx.Done():
			return
		}
	}
}

// put hands a message to the sender; false if the call has ended.
func (in *execInput) put(ctx context.Context, m *typev1.ExecInput) bool {
	select {
	case in.inputs <- m:
		return true
	case <-ctx.Done():
		return false
	}
}

func (in *execInput) readStdin(ctx context.Context, r io.Reader) {
	buf := make([]byte, stdinChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 && !in.put(ctx, &typev1.ExecInput{Input: &typev1.ExecInput_Stdin{Stdin: append([]byte(nil), buf[:n]...)}}) {
			return
		}
		if err != nil { // also a terminal that is gone is an end
			in.put(ctx, &typev1.ExecInput{Input: &typev1.ExecInput_StdinEnd{StdinEnd: &typev1.ExecStdinEnd{}}})
			return
		}
	}
}

// forwarded are the signals that concern an exec. A write to a pipe that nobody reads must fail instead of killing this
// process, which has a terminal to restore.
var forwarded = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGPIPE,
}

// signalNames are the signals that are passed on to the command, by the names of the API.
var signalNames = map[os.Signal]string{
	syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT",
	syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2",
}

func (in *execInput) watch(ctx context.Context, s *session, o execOptions, signals <-chan os.Signal) {
	times := map[os.Signal]int{}
	for {
		select {
		case sig := <-signals:
			switch {
			case sig == syscall.SIGPIPE: // the write fails with EPIPE, and the terminal is restored on the way out
			case sig == syscall.SIGWINCH:
				if size := terminalSize(s); o.tty && size != nil {
					in.put(ctx, &typev1.ExecInput{Input: &typev1.ExecInput_Resize{Resize: size}})
				}
			case o.tty && o.stdin && (sig == syscall.SIGTERM || sig == syscall.SIGHUP):
				in.cancel() // keys are data in a session, so somebody else wants it to end; shells ignore SIGTERM
				return
			default:
				if times[sig]++; times[sig] >= insistence {
					in.cancel()
					return
				}
				if o.stdin {
					in.waiting <- time.AfterFunc(signalWait, in.cancel)
				}
				in.put(ctx, &typev1.ExecInput{Input: &typev1.ExecInput_Signal{Signal: &typev1.ExecSignal{Name: signalNames[sig]}}})
			}
		case <-ctx.Done():
			return
		}
	}
}

// maxWaiting is as many signals as go to the command before one ends the call.
const maxWaiting = (insistence - 1) * 6

// signalled says that the command has got the first of the signals that wait.
func (in *execInput) signalled() {
	select {
	case late := <-in.waiting:
		late.Stop()
	default: // more often than there were signals
	}
}

// terminalSize returns the size of the person's terminal, nil if it does not tell.
func terminalSize(s *session) *typev1.TerminalSize {
	columns, rows, ok := terminal.Size(s.in)
	if !ok {
		return nil
	}
	return &typev1.TerminalSize{Columns: int32(min(columns, maxTerminal)), Rows: int32(min(rows, maxTerminal))}
}
