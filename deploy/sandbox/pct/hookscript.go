package pct

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"phoenix.internal/agent/pveconf"
)

// runHookscript runs the container's own hookscript, "<storage>:snippets/<file>", in a phase in which it may refuse
// (PVE::GuestHelpers::exec_hookscript). Of the phases the sandbox knows pre-start, the only one that can.
func (c *call) runHookscript(conf *pveconf.File, phase string) error {
	volume, ok := conf.Property("hookscript")
	if !ok {
		return nil
	}
	storage, file, _ := strings.Cut(volume, ":")
	script := filepath.Join(storagePath(storage), file)
	cmd := exec.Command(script, strconv.Itoa(int(c.ctid)), phase)
	cmd.Env = environment
	cmd.Stdout, cmd.Stderr = c.Out, c.Out
	err := cmd.Run()
	if err == nil {
		return nil
	}
	cause := err.Error()
	if cmd.ProcessState != nil {
		cause = fmt.Sprintf("exit code %d", cmd.ProcessState.ExitCode())
	}
	return proxmox("hookscript error for %d on %s: command '%s %d %s' failed: %s\n", c.ctid, phase, script, c.ctid, phase, cause)
}

// storagePath is where a storage of the kind "dir" lies, by /etc/pve/storage.cfg.
func storagePath(name string) string {
	path := "/var/lib/vz" // of the storage "local", where nothing else is said
	b, err := os.ReadFile(filepath.Join(pveDir, "storage.cfg"))
	if err != nil {
		return path
	}
	inside := false
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) != 2:
		case fields[0] == "dir:":
			inside = fields[1] == name
		case inside && fields[0] == "path":
			path = fields[1]
		}
	}
	return path
}
