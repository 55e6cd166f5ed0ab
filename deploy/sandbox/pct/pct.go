// Package pct is the sandbox's stand-in for Proxmox's pct: it drives real LXC containers from Proxmox
// confs, with the texts, exit statuses, locks and rewrites of pve-container 6.1 (reference/proxmox-lxc.md,
// chapters 4, 6 to 9). The README of deploy/sandbox lists what it leaves out.
package pct

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Host is where pct finds things. The zero value is the real places.
type Host struct {
	Node string    // default: the host name up to the first dot
	Out  io.Writer // data, and whatever a worker prints; default os.Stdout
	Err  io.Writer // the final error; default os.Stderr
}

const (
	pveDir  = "/etc/pve"
	lxcDir  = "/var/lib/lxc"
	lockDir = "/run/lock/lxc"
	runDir  = "/run/pve"

	// CallsFile gets a line for each call of pct: when, and the arguments.
	CallsFile = "/run/pct-calls"
	// PostStopDelayFile makes the post-stop hook wait between reading the conf and rewriting it, as a slow
	// Proxmox host does; it holds a duration such as "300ms".
	PostStopDelayFile = "/run/pct-post-stop-delay"
)

// exitTask is the exit status of a worker whose task failed, and of wrong usage.
const exitTask = 255

// A usageError ends with the synopsis of the command.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// proxmoxError is a message in Proxmox's own words, which callers know; they are not in our style.
type proxmoxError string

func (e proxmoxError) Error() string { return string(e) }

// proxmox makes a proxmoxError.
func proxmox(format string, args ...any) error { return proxmoxError(fmt.Sprintf(format, args...)) }

// A statusError has an exit status of its own.
type statusError struct {
	error
	status int
}

// A call is one run of pct.
type call struct {
	*Host
	ctid    int32
	options map[string]string
	args    []string // what is left after the CTID
	forHA   bool     // from the HA stack itself
}

type command struct {
	synopsis string
	options  map[string]kind
	anyCTID  bool // takes no CTID
	run      func(*call) error
}

type kind int

const (
	text kind = iota
	flag      // takes an optional value, as all booleans of pct do
)

var commands = map[string]command{
	"start": {
		"pct start <vmid> [OPTIONS]",
		map[string]kind{"skiplock": flag, "debug": flag}, false, (*call).start},
	"stop": {
		"pct stop <vmid> [OPTIONS]",
		map[string]kind{"skiplock": flag, "overrule-shutdown": flag}, false, (*call).stop},
	"shutdown": {
		"pct shutdown <vmid> [OPTIONS]",
		map[string]kind{"timeout": text, "forceStop": flag}, false, (*call).shutdown},
	"reboot": {
		"pct reboot <vmid> [OPTIONS]",
		map[string]kind{"timeout": text}, false, (*call).reboot},
	"status": {
		"pct status <vmid> [OPTIONS]",
		map[string]kind{"verbose": flag}, false, (*call).status},
	"list": {"pct list", nil, true, (*call).list},
	"config": {
		"pct config <vmid> [OPTIONS]",
		map[string]kind{"current": flag, "snapshot": text}, false, (*call).config},
	"unlock": {"pct unlock <vmid>", nil, false, (*call).unlock},
	"set":    {"pct set <vmid> [OPTIONS]", nil, false, (*call).set},
	"exec": {
		"pct exec <vmid> [<extra-args>] [OPTIONS]",
		map[string]kind{"keep-env": flag}, false, (*call).exec},
}

// Main runs pct with args, the words after its name, and returns its exit status.
func Main(h Host, args []string) int {
	if h.Out == nil {
		h.Out = os.Stdout
	}
	if h.Err == nil {
		h.Err = os.Stderr
	}
	if h.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			fmt.Fprintln(h.Err, err)
			return exitTask
		}
		h.Node, _, _ = strings.Cut(name, ".")
	}
	// On Proxmox systemd starts the monitor, and pmxcfs decides the mode of confs: neither has the caller's umask.
	syscall.Umask(0o022)
	if len(args) > 0 && args[0] == HookCommand {
		return h.hook(args[1:])
	}
	if len(args) > 0 && args[0] == HACommand {
		return h.actForHA()
	}
	countCall(args)
	if len(args) == 0 {
		fmt.Fprintln(h.Err, "ERROR: no command specified")
		return exitTask
	}
	cmd, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(h.Err, "ERROR: unknown command 'pct %s'\n", args[0])
		return exitTask
	}
	c := &call{Host: &h}
	err := c.parse(args[0], cmd, args[1:])
	if err == nil {
		err = cmd.run(c)
	}
	return h.finish(cmd, err)
}

func (h *Host) finish(cmd command, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(h.Err, strings.TrimRight(err.Error(), "\n"))
	if _, ok := errors.AsType[*usageError](err); ok {
		fmt.Fprintln(h.Err, cmd.synopsis)
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	return exitTask
}

// countCall appends to CallsFile. A node without it is not the sandbox's, and pct works all the same.
func countCall(args []string) {
	f, err := os.OpenFile(CallsFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "%s %s\n", time.Now().UTC().Format(time.RFC3339Nano), strings.Join(args, " "))
}

// parse reads "[CTID] [options]", options anywhere before "--", as PVE::JSONSchema::get_options does.
func (c *call) parse(name string, cmd command, args []string) error {
	c.options = map[string]string{}
	var words []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			c.args = args
			break
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			words = append(words, arg)
			continue
		}
		option, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		kind, known := cmd.options[option]
		if !known && name != "set" {
			return &usageError{"Unknown option: " + option + "\n400 unable to parse option"}
		}
		switch {
		case hasValue:
		case len(args) > 0 && !strings.HasPrefix(args[0], "-"):
			value, args = args[0], args[1:]
		case kind == flag:
			value = "1"
		default:
			return &usageError{"Option " + option + " requires an argument\n400 unable to parse option"}
		}
		c.options[option] = value
	}
	if cmd.anyCTID {
		return nil
	}
	if len(words) == 0 {
		return &usageError{"400 not enough arguments"}
	}
	ctid, err := strconv.ParseInt(words[0], 10, 32)
	if err != nil || ctid < 100 || ctid > 999999999 || words[0][0] == '0' {
		return &usageError{"400 Parameter verification failed.\nvmid: invalid format - value does not look like a valid VM ID"}
	}
	c.ctid = int32(ctid)
	c.args = append(words[1:], c.args...)
	return nil
}

func (c *call) on(option string) bool {
	switch strings.ToLower(c.options[option]) {
	case "1", "on", "yes", "true":
		return true
	}
	return false
}

// seconds is an option that holds a whole number of seconds.
func (c *call) seconds(option string, fallback int) (int, error) {
	value, ok := c.options[option]
	if !ok {
		return fallback, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return 0, &usageError{"400 Parameter verification failed.\n" + option + ": type check ('integer') failed - got '" + value + "'"}
	}
	return n, nil
}

// names of the files of one container.
func (h *Host) confPath(ctid int32) string {
	return filepath.Join(pveDir, "nodes", h.Node, "lxc", fmt.Sprintf("%d.conf", ctid))
}

func containerDir(ctid int32) string { return filepath.Join(lxcDir, strconv.Itoa(int(ctid))) }

func notFound(err error) bool { return errors.Is(err, fs.ErrNotExist) }
