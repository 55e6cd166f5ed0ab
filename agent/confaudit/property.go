package confaudit

import (
	"strings"

	"phoenix.internal/agent/pveconf"
)

// checkProperty judges one property.
func (s *section) checkProperty(e pveconf.Entry) {
	switch base := strings.TrimRight(e.Key, "0123456789"); {
	case base == "dev":
		s.checkDevice(e)
	case base == "mp" || e.Key == "rootfs":
		s.checkMountPoint(e)
	case e.Key == "hookscript":
		s.add(e.Line, Hook, Note, "read the script", "the hookscript %s runs on the node as root when the container starts and stops", e.Value)
	case e.Key == "ostype" && strings.Contains(e.Value, "/"):
		s.add(e.Line, Include, Danger, "write the name of an operating system", "the ostype %q makes LXC read settings from a file of that path", e.Value)
	case e.Key == "entrypoint" && e.Value != "/sbin/init":
		s.add(e.Line, Init, Note, "check that the program is meant", "the first program in the container is %q", e.Value)
	case e.Key == "features":
		s.checkFeatures(e)
	case e.Key == "lock" && s.name == "":
		s.add(e.Line, Lock, Note, "if nothing is under way, run pct unlock", "the conf is locked (%s), and Proxmox refuses to start or change the container", e.Value)
	}
}

func (s *section) checkFeatures(e pveconf.Entry) {
	var weak []string
	severity := Note
	for item := range strings.SplitSeq(e.Value, ",") {
		name, value, _ := strings.Cut(item, "=")
		switch {
		case name == "mount" && value != "":
			weak = append(weak, "mount="+value)
		case name == "nesting" && s.mapped:
			// Proxmox's own dialog sets it for every new unprivileged container, and systemd needs it.
		case name != "" && value != "" && value != "0":
			weak = append(weak, name)
			if name == "nesting" {
				severity = Warning
			}
		}
	}
	if len(weak) > 0 {
		s.add(e.Line, Feature, severity, "keep only the features that the container needs", "features that weaken the container's walls: %s", strings.Join(weak, ", "))
	}
}
