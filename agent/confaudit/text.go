package confaudit

import (
	"strings"
	"unicode/utf8"

	"phoenix.internal/agent/pveconf"
)

// checkText reports what a value holds that a person does not see.
func (s *section) checkText(e pveconf.Entry) {
	at := strings.IndexAny(e.Value, "\r\x00")
	switch hidden := hiddenLine(e.Value); {
	case at < 0 || !reachesLXC(e):
		s.checkBytes(e)
	case hidden != "":
		s.add(e.Line, HiddenLineEnd, Danger, "remove the line, and find out who wrote it",
			"after the CR in the value of %s LXC reads a line of its own: %q", e.Key, hidden)
	case e.Value[at] == 0:
		s.add(e.Line, HiddenLineEnd, Danger, "remove the line, and find out who wrote it",
			"at the NUL in the value of %s LXC stops reading: no line below has an effect", e.Key)
	default:
		s.add(e.Line, HiddenLineEnd, Warning, "remove the CR and what follows it",
			"the value of %s ends for LXC at a CR, before %q", e.Key, e.Value[at:])
	}
}

// reachesLXC says whether Proxmox passes the value on to LXC as it is (LXC.pm, update_lxc_config). Runtime
// variables it takes apart at each NUL.
func reachesLXC(e pveconf.Entry) bool {
	switch strings.TrimRight(e.Key, "0123456789") {
	case "arch", "entrypoint", "hostname", "net", "ostype":
		return true
	case "lxc.environment.runtime":
		return !strings.Contains(e.Value, "\x00")
	}
	return strings.HasPrefix(e.Key, "lxc.")
}

// hiddenLine returns the first line that LXC reads after a CR within value and takes for a setting, or "".
// LXC ends lines at CR and LF, reads nothing after a NUL, and passes over lines that do not begin with "lxc."
// (confile.c, parse_line).
func hiddenLine(value string) string {
	value, _, _ = strings.Cut(value, "\x00")
	for i, line := range strings.Split(value, "\r") {
		if line = strings.TrimLeft(line, " \t"); i > 0 && strings.HasPrefix(line, "lxc.") {
			return line
		}
	}
	return ""
}

func (s *section) checkBytes(e pveconf.Entry) {
	const advice = "write the value anew, and look at it with cat -v"
	if !utf8.ValidString(e.Value) {
		s.add(e.Line, OddBytes, Warning, advice, "the value of %s is not UTF-8: %q", e.Key, e.Value)
		return
	}
	for _, r := range e.Value {
		switch {
		case r < 0x20 && r != '\t' || 0x7f <= r && r <= 0x9f:
			s.add(e.Line, OddBytes, Warning, advice, "the value of %s holds the control character %U, which a terminal may obey: %q", e.Key, r, e.Value)
			return
		case 0x200b <= r && r <= 0x200f || 0x202a <= r && r <= 0x202e || 0x2060 <= r && r <= 0x2069 || r == 0xfeff:
			s.add(e.Line, OddBytes, Warning, advice, "the value of %s holds %U, with which it looks other than it is: %+q", e.Key, r, e.Value)
			return
		}
	}
}
