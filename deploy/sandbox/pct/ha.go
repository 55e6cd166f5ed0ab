package pct

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// HACommand is the hidden sub-command that stands for Proxmox's HA manager at work: it starts and stops what was
// requested so far, once, and ends.
const HACommand = "sandbox-ha"

// HAResources is where Proxmox's HA manager keeps what it manages: a line "ct: 901", and below it an indented
// "state started".
const HAResources = pveDir + "/ha/resources.cfg"

// states are the requested states of the containers that the HA manager manages (PVE::HA::Config, vm_is_ha_managed).
func states() (map[int32]string, error) {
	b, err := os.ReadFile(HAResources)
	if notFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	all := map[int32]string{}
	var ctid int32 // 0 in the section of something else
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) != 2:
		case fields[0] == "ct:":
			n, err := strconv.ParseInt(fields[1], 10, 32)
			if err != nil {
				return nil, err
			}
			ctid = int32(n)
			all[ctid] = "started"
		case strings.HasSuffix(fields[0], ":"):
			ctid = 0
		case fields[0] == "state" && ctid != 0:
			all[ctid] = fields[1]
		}
	}
	for ctid, state := range all {
		if state == "ignored" {
			delete(all, ctid)
		}
	}
	return all, nil
}

// request passes a start or a stop on to the HA manager if that manages the container.
func (c *call) request(what string, args ...string) (passedOn bool, err error) {
	if c.forHA {
		return false, nil
	}
	all, err := states()
	if _, managed := all[c.ctid]; err != nil || !managed {
		return false, err
	}
	fmt.Fprintf(c.Out, "Requesting HA %s for CT %d\n", what, c.ctid)
	cmd := exec.Command("/usr/sbin/ha-manager", args...)
	cmd.Stdout, cmd.Stderr = c.Out, c.Out
	if err := cmd.Run(); err != nil {
		return true, proxmox("command 'ha-manager %s' failed: exit code %d", strings.Join(args, " "), cmd.ProcessState.ExitCode())
	}
	return true, nil
}

func (c *call) requestStop(timeoutSeconds int) (passedOn bool, err error) {
	return c.request("stop", "crm-command", "stop", fmt.Sprintf("ct:%d", c.ctid), strconv.Itoa(timeoutSeconds))
}

// HAManager is Proxmox's ha-manager, of which it knows "set ct:<CTID> --state <state>" and "crm-command stop ct:<CTID>
// <timeout>"; it returns the exit status.
func HAManager(out io.Writer, args []string) int {
	var err error
	switch {
	case len(args) == 4 && args[0] == "set" && args[2] == "--state":
		err = setState(args[1], args[3])
	case len(args) == 4 && args[0] == "crm-command" && args[1] == "stop":
		err = setState(args[2], "stopped")
	default:
		err = fmt.Errorf("ERROR: unknown command 'ha-manager %s'", strings.Join(args, " "))
	}
	if err != nil {
		fmt.Fprintln(out, err)
		return exitTask
	}
	return 0
}

func setState(resource, state string) error {
	if err := checkQuorum(); err != nil {
		return err
	}
	ctid, err := strconv.ParseInt(strings.TrimPrefix(resource, "ct:"), 10, 32)
	if err != nil {
		return err
	}
	all, err := states()
	if err != nil {
		return err
	}
	if _, ok := all[int32(ctid)]; !ok {
		return proxmox("no such resource '%s'", resource)
	}
	old, err := os.ReadFile(HAResources)
	if err != nil {
		return err
	}
	var b strings.Builder
	inside := false
	for line := range strings.Lines(string(old)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && strings.HasSuffix(fields[0], ":"):
			b.WriteString(line)
			if inside = strings.Join(fields, "") == resource; inside {
				fmt.Fprintf(&b, "\tstate %s\n", state)
			}
		case !inside || len(fields) == 0 || fields[0] != "state":
			b.WriteString(line)
		}
	}
	temporary := filepath.Join(filepath.Dir(HAResources), fmt.Sprintf(".resources.cfg.%d", os.Getpid()))
	if err := os.WriteFile(temporary, []byte(b.String()), 0o640); err != nil {
		return err
	}
	return os.Rename(temporary, HAResources)
}

// actForHA brings each managed container into its requested state.
func (h *Host) actForHA() int {
	all, err := states()
	status := h.finish(command{}, err)
	for ctid, state := range all {
		c := &call{Host: h, ctid: ctid, options: map[string]string{}, forHA: true}
		switch {
		case state == "started" && !running(ctid):
			err = c.start()
		case state == "stopped" && running(ctid):
			err = c.shutdown()
		default:
			continue
		}
		status = max(status, h.finish(command{}, err))
	}
	return status
}
