package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"phoenix.internal/cli/output"
	"phoenix.internal/controller/client"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
)

// A usageError is a command line or a setting that is wrong whatever the fleet is like.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// misuse makes a usageError of what cobra, or a command, says of its arguments.
func misuse(cmd *cobra.Command, err error) error {
	if _, ok := errors.AsType[*usageError](err); ok {
		return err
	}
	return &usageError{err: err, hint: fmt.Sprintf("See \"%s --help\".", cmd.CommandPath())}
}

// A failure is an error with what to do about it.
type failure struct {
	err  error
	hint string
}

func (e *failure) Error() string { return e.err.Error() }
func (e *failure) Unwrap() error { return e.err }

// A commandExit is the status that a command ended with; there is nothing to report.
type commandExit struct{ code int }

func (e *commandExit) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// A timeoutError says that an answer took too long for --timeout.
type timeoutError struct{ after time.Duration }

func (e *timeoutError) Error() string { return fmt.Sprintf("no answer within %v", e.after) }

// errQuiet fails a command whose own output has said everything.
var errQuiet = &commandExit{code: exitFailed}

// report writes err for a person: each error, and under it what to do next.
func report(w io.Writer, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			report(w, err)
		}
		return
	}
	if _, ok := err.(*commandExit); ok {
		return
	}
	hint := ""
	if e, ok := errors.AsType[*usageError](err); ok {
		hint = e.hint
	} else if e, ok := errors.AsType[*failure](err); ok {
		hint = e.hint
	}
	fmt.Fprintf(w, "phoenix-cli: %s\n", indented(err.Error()))
	if hint != "" {
		fmt.Fprintf(w, "  %s\n", indented(hint))
	}
}

// indented returns a text of several lines, the findings in a fleet file for example, so that those after the first
// stand under it.
func indented(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i, line := range lines {
		lines[i] = output.Clean(strings.TrimRight(line, " \r"))
	}
	return strings.Join(lines, "\n  ")
}

// describe turns the status of a failed call into words, with advice.
func describe(err error, c Config) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, err := range joined.Unwrap() {
			errs = append(errs, describe(err, c))
		}
		return errors.Join(errs...)
	}
	st, ok := statusOf(err)
	if !ok {
		return err
	}
	message := strings.Replace(err.Error(), st.Err().Error(), st.Message(), 1)
	f := &failure{err: &callError{message, err}}
	if reason, metadata := client.Reason(err); reason != errorv1.Reason_REASON_UNSPECIFIED {
		switch {
		case strings.Contains(message, "`phoenix-cli "): // the message says it already
		case reason == errorv1.Reason_REASON_FLEET_INVALID && strings.Contains(message, "\n"): // every error stands there
		case metadata["field"] == "run":
			f.hint = adviceFor(errorv1.Reason_REASON_RUN_NOT_FOUND, metadata)
		default:
			f.hint = adviceFor(reason, metadata)
		}
		return f
	}
	if strings.HasPrefix(st.Message(), "node ") && st.Code() != codes.PermissionDenied {
		return f // what the controller says of an agent has the advice in it
	}
	describeCode(f, st, c)
	return f
}

// A callError shows the message of a status without grpc's words around it.
type callError struct {
	message string
	err     error
}

func (e *callError) Error() string { return e.message }
func (e *callError) Unwrap() error { return e.err }

// describeCode adds to f what to do about a status without a reason: the way to the server failed, or grpc itself
// refused, or there is nothing special to say.
func describeCode(f *failure, st *status.Status, c Config) {
	who := "the controller at " + c.Controller
	if c.Local() {
		who = "the engine in this process"
	}
	switch st.Code() {
	case codes.Unavailable:
		cause, broken := connectionError(st.Message())
		inner, certificate := client.Explain(cause)
		switch {
		case !broken:
			f.hint = "The same may succeed later."
		case certificate != "":
			what, next, _ := strings.Cut(certificate, "; ")
			f.err = fmt.Errorf("%s: %s (%s)", who, what, inner)
			f.hint = sentence(next)
		default:
			f.err = fmt.Errorf("%s cannot be reached: %s", who, inner)
			f.hint = connectionAdvice(inner)
		}
	case codes.DeadlineExceeded:
		f.err = fmt.Errorf("%s gave no answer within %v", who, c.Timeout)
		f.hint = "A node that hangs keeps the others waiting: phoenix-cli health. --timeout waits longer."
	case codes.Canceled:
		f.err = errors.New("interrupted")
	case codes.Unimplemented:
		f.hint = "The controller is older than this phoenix-cli: install the same version of both."
	case codes.Unauthenticated, codes.PermissionDenied:
		f.hint = "The certificate in tls.cert_file may not do this; ask whoever runs the fleet for one that may."
	case codes.ResourceExhausted:
		f.hint = "Ask for less at once: name CTIDs, or one --node."
	case codes.Internal, codes.Unknown, codes.DataLoss:
		f.hint = "This is a defect of Phoenix; the log of " + who + " says more."
	}
}

// sentence makes a sentence of words that began in the middle of one.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// connectionAdvice says what to do about a connection to the controller that has nothing to do with certificates.
func connectionAdvice(cause string) string {
	switch {
	case strings.Contains(cause, "connection refused"):
		return "See that it runs there (systemctl status phoenix-controller), or work without it: --agent [NAME=]HOST."
	case strings.Contains(cause, "no such host"), strings.Contains(cause, "server misbehaving"):
		return "The name is not known: correct the address (--controller, PHOENIX_CONTROLLER, or controller in the settings file)."
	case strings.Contains(cause, "EOF"), strings.Contains(cause, "reset"), strings.Contains(cause, "broken pipe"):
		return "The connection broke off: see whether it is being restarted, or refuses this certificate (journalctl -u phoenix-controller)."
	default:
		return "See that the host is up and that nothing between here and there blocks the port; or work without it: --agent [NAME=]HOST."
	}
}

// connectionError returns the cause in what grpc says of a connection that it could not make, or that broke.
func connectionError(message string) (cause string, ok bool) {
	for _, sign := range []string{"connection error: desc = ", "error reading from server: "} {
		if _, after, found := strings.Cut(message, sign); found {
			if text, err := strconv.Unquote(after); err == nil {
				after = text
			}
			after = strings.TrimPrefix(after, "transport: ")
			return strings.TrimPrefix(after, "Error while dialing: "), true
		}
	}
	return message, false
}

// statusOf finds the status in the chain of err.
func statusOf(err error) (*status.Status, bool) {
	if err == nil {
		return nil, false
	}
	if e, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		return e.GRPCStatus(), true
	}
	if errors.Is(err, context.Canceled) {
		return status.FromContextError(context.Canceled), true
	}
	return nil, false
}

// adviceFor returns what to do about a reason; empty for one of a newer server. {key} in the advice stands for the
// value in the metadata.
func adviceFor(reason errorv1.Reason, metadata map[string]string) string {
	text := advice[reason]
	for key, value := range metadata {
		if key == "nodes" {
			value = strings.ReplaceAll(value, ",", ", ")
		}
		text = strings.ReplaceAll(text, "{"+key+"}", value)
	}
	// What a server left out stays as a word to fill in: CTID.
	return placeholder.ReplaceAllStringFunc(text, func(s string) string { return strings.ToUpper(strings.Trim(s, "{}")) })
}

var placeholder = regexp.MustCompile(`\{[a-z_]+\}`)

// advice says for each reason what a person does next.
var advice = map[errorv1.Reason]string{
	errorv1.Reason_REASON_INVALID_FIELD:          "Change the argument; --help says what it may be.",
	errorv1.Reason_REASON_PROPERTY_NOT_ALLOWED:   "Set it with Proxmox's own tools, such as pct set.",
	errorv1.Reason_REASON_LXC_OPTION_NOT_ALLOWED: "If you mean it, allow it in allowed_lxc_options of that node's /etc/phoenix/agent.yaml.",

	errorv1.Reason_REASON_CONTAINER_NOT_FOUND:   "See which containers there are: phoenix-cli containers; and whether every node answers: phoenix-cli health.",
	errorv1.Reason_REASON_CONTAINER_NOT_RUNNING: "Start it: pct start {ctid} on its node; or phoenix-cli apply --start {ctid} if the fleet file gives it GPUs.",
	errorv1.Reason_REASON_CONTAINER_IS_TEMPLATE: "A template never runs: take a container cloned from it.",
	errorv1.Reason_REASON_CONTAINER_LOCKED:      "Wait for the operation of Proxmox ({lock}) to end. Only if that has crashed: pct unlock {ctid} on the node.",
	errorv1.Reason_REASON_CONTAINER_STOPPING:    "Wait for the end of its stop: systemctl status pve-container@{ctid} on its node shows the hook; then repeat.",
	errorv1.Reason_REASON_INSTANCE_CHANGED:      "It was restarted meanwhile: look again, then repeat.",

	errorv1.Reason_REASON_DIGEST_MISMATCH:        "Somebody changed the conf meanwhile: look at it (phoenix-cli conf show {ctid}), then repeat.",
	errorv1.Reason_REASON_CONF_LOCK_TIMEOUT:      "Another process works on the conf: see the tasks of CTID {ctid} in Proxmox, then repeat.",
	errorv1.Reason_REASON_NO_QUORUM:              "Bring the cluster's other nodes back; pvecm status on the node says which are missing.",
	errorv1.Reason_REASON_CONF_FS_UNAVAILABLE:    "On the node: systemctl status pve-cluster. If it cannot store anything: make room on the root disk, then systemctl restart pve-cluster.",
	errorv1.Reason_REASON_CONF_TOO_LARGE:         "Shorten the conf: remove snapshots or the description.",
	errorv1.Reason_REASON_PASSTHROUGH_IMPOSSIBLE: "See its conf (phoenix-cli conf show {ctid}), and correct or remove what the message names.",
	errorv1.Reason_REASON_REVISION_NOT_FOUND:     "See those that are kept: phoenix-cli conf revisions {ctid}.",

	errorv1.Reason_REASON_GPU_NOT_FOUND:       "See the node's GPUs: phoenix-cli devices; then correct gpu_assignment in the fleet file.",
	errorv1.Reason_REASON_GPU_BOUND_ELSEWHERE: "See phoenix-cli devices; then bind GPU {gpu} to the nvidia driver, or assign another.",
	errorv1.Reason_REASON_DRIVER_NOT_LOADED:   "On the node: modprobe nvidia, and if that fails, dmesg. Without the driver no GPU can be given.",
	errorv1.Reason_REASON_DEVICE_NODE_MISSING: "On the node, as root: nvidia-smi, nvidia-modprobe -u; then look at {path}.",

	errorv1.Reason_REASON_INSTALLER_SOURCE_NOT_ALLOWED: "Correct nvidia_runfile_url in the fleet file, or add the place to driver_sources in the node's agent.yaml.",
	errorv1.Reason_REASON_INSTALLER_UNAVAILABLE:        "See whether the node reaches {url}; then repeat: it goes on with what has arrived.",
	errorv1.Reason_REASON_INSTALLER_CHECKSUM_MISMATCH:  "Correct nvidia_runfile_sha256 in the fleet file. If it is right, do not use that source: it gives another file.",
	errorv1.Reason_REASON_INSTALLER_INVALID:            "Correct nvidia_runfile_url in the fleet file: it must lead to NVIDIA's runfile of version {version}.",
	errorv1.Reason_REASON_INSTALLER_NOT_CACHED:         "An apply fetches it: phoenix-cli apply.",
	errorv1.Reason_REASON_NODE_NO_SPACE:                "Make room for {path} on the node; {needed_bytes} bytes are needed.",
	errorv1.Reason_REASON_LIBC_NOT_SUPPORTED:           "Make the container anew from a template with glibc (Debian, Ubuntu, ...); NVIDIA has no driver for musl.",
	errorv1.Reason_REASON_DRIVER_PACKAGED:              "In the container remove the packages {packages}, then repeat: phoenix-cli exec {ctid}.",
	errorv1.Reason_REASON_CONTAINER_TOO_SMALL:          "Give it more {resource}, {needed_mib} MiB at least: pct resize or pct set on its node; then repeat.",
	errorv1.Reason_REASON_DRIVER_INSTALL_FAILED:        "The message ends with what NVIDIA's installer printed. Correct that in the container, then repeat: a half-done installation is repaired.",
	errorv1.Reason_REASON_DRIVER_NOT_REMOVABLE:         "Its libraries came by another way, a package or a copy: remove them in that way.",

	errorv1.Reason_REASON_STOP_TIMEOUT:          "It still runs. Give it longer (--timeout), or leave out --no-force: then it is killed.",
	errorv1.Reason_REASON_START_FAILED:          "It is stopped. On its node, pct start {ctid} --debug says why; older confs: phoenix-cli conf revisions {ctid}.",
	errorv1.Reason_REASON_START_ROLLED_BACK:     "It runs with its old conf. What the new one changes: phoenix-cli plan {ctid}; why it did not start, the message says.",
	errorv1.Reason_REASON_PCT_FAILED:            "The message has what pct printed; Proxmox's task log says more.",
	errorv1.Reason_REASON_HA_PENDING:            "See what the HA manager does (ha-manager status on its node), then repeat.",
	errorv1.Reason_REASON_HA_REFUSED:            "On its node: ha-manager status. In the state error: ha-manager set ct:{ctid} --state disabled, correct what is wrong, then --state started.",
	errorv1.Reason_REASON_HOOK_FAILED:           "It is stopped. Correct its hookscript (pct config {ctid} on its node names it), then start it: phoenix-cli restart {ctid}.",
	errorv1.Reason_REASON_INIT_DIED:             "It is stopped. Look into its file system (pct mount {ctid} on its node) for why its init ends, then start it: phoenix-cli restart {ctid}.",
	errorv1.Reason_REASON_ATTACH_FAILED:         "See on its console that it is healthy (pct console {ctid} on its node); a restart may help: phoenix-cli restart {ctid}.",
	errorv1.Reason_REASON_USER_NOT_FOUND:        "See the container's own: phoenix-cli exec {ctid} cat /etc/passwd /etc/group; or give numbers, UID:GID.",
	errorv1.Reason_REASON_DIRECTORY_NOT_USABLE:  "Look at it from inside: phoenix-cli exec {ctid} ls -ld DIR; the user must be allowed to enter it.",
	errorv1.Reason_REASON_FILE_NOT_FOUND:        "See what is there: phoenix-cli exec {ctid} ls -la DIRECTORY.",
	errorv1.Reason_REASON_FILE_REFUSED:          "For anything but single regular files use tar: phoenix-cli exec {ctid} tar c -C DIRECTORY . | tar x",
	errorv1.Reason_REASON_FILE_NO_SPACE:         "Make room in the container (phoenix-cli exec {ctid} df), or give it more: pct resize on its node.",
	errorv1.Reason_REASON_FILE_CHANGED:          "Repeat it when nobody writes the file.",
	errorv1.Reason_REASON_TRANSFER_BROKEN_OFF:   "Give the same command again: it goes on with what has arrived.",
	errorv1.Reason_REASON_LIMIT_EXCEEDED:        "Too much at once ({limit}): wait for something to end, then repeat.",
	errorv1.Reason_REASON_NODE_UNREACHABLE:      "See whether the other nodes answer: phoenix-cli health.",
	errorv1.Reason_REASON_NODE_NOT_FOUND:        "See the names of the nodes: phoenix-cli nodes.",
	errorv1.Reason_REASON_FLEET_INVALID:         "See every error with its line: phoenix-cli validate.",
	errorv1.Reason_REASON_RUN_NOT_FOUND:         "phoenix-cli runs lists them.",
	errorv1.Reason_REASON_RUN_IN_PROGRESS:       "Watch it: phoenix-cli runs watch {run}; or end it: phoenix-cli runs cancel {run}.",
	errorv1.Reason_REASON_NOT_IN_FLEET:          "See which containers the fleet file has: phoenix-cli status. Correct the CTID, or add the container to the file.",
	errorv1.Reason_REASON_FLEET_UNREADABLE:      "Correct fleet_file in the controller's settings; with --agent, give --fleet FILE.",
	errorv1.Reason_REASON_FEATURES_UNREADABLE:   "Bring {path} back, or correct features_dir in the settings.",
	errorv1.Reason_REASON_SHUTTING_DOWN:         "Repeat it in a moment. A run goes on when the controller is back: phoenix-cli runs.",
	errorv1.Reason_REASON_STATE_UNAVAILABLE:     "Wait for the other process to end; else make room and rights for {path}, or set another state_dir.",
	errorv1.Reason_REASON_INTERNAL:              "This is a defect of Phoenix. Look for request_id {request_id} in the log: journalctl -u phoenix-controller, or -u phoenix-agent on the node.",
	errorv1.Reason_REASON_CTID_ON_SEVERAL_NODES: "plan, apply and status take the one on the node that the fleet file names (key node). For all else remove the stale conf: /etc/pve/lxc/{ctid}.conf on one of {nodes}.",
}
