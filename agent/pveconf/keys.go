package pveconf

import (
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// rawNames is the table of lxc.* keys that Proxmox accepts by name (PVE::LXC::Config,
// is_valid_lxc_conf_key, pve-container 6.1.10), without the prefix "lxc.".
var rawNames = set(`
	mount.entry mount.fstab mount.auto autodev rootfs.mount
	hook.pre-start hook.pre-mount hook.mount hook.autodev hook.start hook.stop hook.post-stop hook.clone
	hook.destroy hook.version
	apparmor.profile apparmor.allow_incomplete apparmor.allow_nesting apparmor.raw selinux.context
	seccomp.profile seccomp.notify.proxy seccomp.notify.cookie cap.drop cap.keep idmap
	init.cmd init.cwd init.uid init.gid init.groups
	signal.halt signal.reboot signal.stop
	environment environment.runtime environment.hooks
	pty.max tty.max console.path console.logfile log.level log.file kmsg devtty.dir
	include arch uts.name group start.auto start.delay start.order
	sysctl.fs.mqueue sysctl.kernel.msgmax sysctl.kernel.msgmnb sysctl.kernel.msgmni sysctl.kernel.sem
	sysctl.kernel.shmall sysctl.kernel.shmmax sysctl.kernel.shmmni sysctl.kernel.shm_rmid_forced`)

// rawDeprecated are LXC 2's names, without the prefix "lxc.": Proxmox passes them on with a warning, and
// LXC then refuses to start.
var rawDeprecated = set(`
	aa_profile aa_allow_incomplete console devttydir haltsignal rebootsignal stopsignal id_map init_cmd
	loglevel logfile mount
	network.type network.flags network.link network.mtu network.name network.hwaddr network.ipv4
	network.ipv6 network.ipv4.gateway network.ipv6.gateway network.script.up network.script.down
	pts se_context seccomp tty utsname`)

// rawKey says whether Proxmox accepts the lxc.* key, and what it warns about.
func rawKey(key string) (ok bool, warning string) {
	name := strings.TrimPrefix(key, "lxc.")
	switch {
	case strings.HasPrefix(name, "limit."):
		return true, key + " is deprecated; LXC knows only lxc.prlimit"
	case rawDeprecated[name]:
		return true, key + " is a key of LXC 2; the container does not start with it"
	case name == "rootfs.path":
		return false, key + " is made from the property rootfs; Proxmox ignores this line"
	case name == "rootfs.options":
		return false, key + " is not supported; Proxmox ignores this line"
	case rawNames[name]:
		return true, ""
	case strings.HasPrefix(name, "cgroup."):
		return true, key + " is for cgroup v1 and has no effect with cgroup v2"
	case strings.HasPrefix(name, "cgroup2."), strings.HasPrefix(name, "prlimit."), strings.HasPrefix(name, "net."):
		return true, ""
	}
	return false, "Proxmox does not allow " + key + ", ignores this line and drops it when it next writes the conf"
}

// Property types of Proxmox's schema (PVE::LXC::Config, confdesc). Keys with a trailing "N" stand for a
// row of numbered keys.
var (
	booleans = set(`console debug onboot protection template unprivileged`)
	integers = set(`cores cpuunits memory snaptime swap tty`)
	numbers  = set(`cpulimit`)
	texts    = set(`arch cmode description entrypoint env features hookscript hostname lock nameserver
		ostype parent rootfs searchdomain startup tags timezone`)
	numbered = map[string]int{"dev": 255, "mp": 255, "net": 31, "unused": 255} // the highest number
)

var numberPattern = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)

var errUnknownProperty = errors.New("Proxmox does not know this property")

// checkType returns value as Proxmox normalises it (check_type). Proxmox keeps a value for which there is
// an error as it is, with a warning. It checks no enumerations and no limits of numbers.
func checkType(key, value string) (string, error) {
	switch {
	case !knownProperty(key):
		return value, errUnknownProperty
	case strings.ContainsAny(value, "\r\n"):
		return value, fmt.Errorf("the value of %s holds a line end", key)
	case booleans[key]:
		switch is, ok := boolean(value); {
		case !ok:
			return value, fmt.Errorf("%s wants a boolean (0 or 1), not %q", key, value)
		case is:
			return "1", nil
		}
		return "0", nil
	case integers[key]:
		return normalInteger(key, value)
	case numbers[key] && !numberPattern.MatchString(value):
		return value, fmt.Errorf("%s wants a number, not %q", key, value)
	}
	return value, checkFormat(key, strings.TrimRight(key, "0123456789"), value)
}

func knownProperty(key string) bool {
	if booleans[key] || integers[key] || numbers[key] || texts[key] {
		return true
	}
	base := strings.TrimRight(key, "0123456789")
	highest, ok := numbered[base]
	digits := key[len(base):]
	n, err := strconv.Atoi(digits)
	return ok && err == nil && n <= highest && (n == 0 && len(digits) == 1 || digits[0] != '0')
}

// isNumbered says whether key is base with a number.
func isNumbered(key, base string) bool {
	digits, ok := strings.CutPrefix(key, base)
	return ok && isDigits(digits)
}

// normalInteger is Perl's int() of a run of digits: exact up to 64 bits, beyond them a float with 15
// digits.
func normalInteger(key, value string) (string, error) {
	if value == "" || strings.Trim(value, "0123456789") != "" {
		return value, fmt.Errorf("%s wants a whole number, not %q", key, value)
	}
	n, _ := new(big.Int).SetString(value, 10)
	if n.IsUint64() {
		return n.String(), nil
	}
	float, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return "Inf", nil // beyond the range of a float
	}
	return strconv.FormatFloat(float, 'g', 15, 64), nil
}

func set(words string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(words) {
		m[w] = true
	}
	return m
}
