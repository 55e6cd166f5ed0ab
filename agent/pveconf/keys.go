package pveconf

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// rawNames are the lxc.* keys that Proxmox accepts by name (PVE::LXC::Config, is_valid_lxc_conf_key,
// pve-container 6.1.10), without the prefix "lxc.", and whether they are deprecated: those are LXC 2's, which
// Proxmox passes on with a warning, and with which LXC then refuses to start.
var rawNames = table(map[bool]string{false: `
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
	sysctl.kernel.shmall sysctl.kernel.shmmax sysctl.kernel.shmmni sysctl.kernel.shm_rmid_forced`,
	true: `
	aa_profile aa_allow_incomplete console devttydir haltsignal rebootsignal stopsignal id_map init_cmd
	loglevel logfile mount
	network.type network.flags network.link network.mtu network.name network.hwaddr network.ipv4
	network.ipv6 network.ipv4.gateway network.ipv6.gateway network.script.up network.script.down
	pts se_context seccomp tty utsname`,
})

// rawKey says whether Proxmox accepts the lxc.* key, and what it warns about.
func rawKey(key string) (ok bool, warning string) {
	name := strings.TrimPrefix(key, "lxc.")
	deprecated, named := rawNames[name]
	switch {
	case named && !deprecated, strings.HasPrefix(name, "cgroup2."), strings.HasPrefix(name, "prlimit."), strings.HasPrefix(name, "net."):
		return true, ""
	case named:
		return true, key + " is a key of LXC 2; the container does not start with it"
	case strings.HasPrefix(name, "limit."):
		return true, key + " is deprecated; LXC knows only lxc.prlimit"
	case strings.HasPrefix(name, "cgroup."):
		return true, key + " is for cgroup v1 and has no effect with cgroup v2"
	case name == "rootfs.path":
		return false, key + " is made from the property rootfs; Proxmox ignores this line"
	case name == "rootfs.options":
		return false, key + " is not supported; Proxmox ignores this line"
	}
	return false, "Proxmox does not allow " + key + ", ignores this line and drops it when it next writes the conf"
}

// A propertyType is one of Proxmox's schema (PVE::LXC::Config, confdesc).
type propertyType int

const (
	typeUnknown propertyType = iota
	typeBoolean
	typeInteger
	typeNumber
	typeText
)

var propertyTypes = table(map[propertyType]string{
	typeBoolean: `console debug onboot protection template unprivileged`,
	typeInteger: `cores cpuunits memory snaptime swap tty`,
	typeNumber:  `cpulimit`,
	typeText: `arch cmode description entrypoint env features hookscript hostname lock nameserver
		ostype parent rootfs searchdomain startup tags timezone`,
})

// numberedProperties are texts whose keys are numbered from 0 to this number.
var numberedProperties = map[string]int{"dev": 255, "mp": 255, "net": 31, "unused": 255}

func typeOf(key string) propertyType {
	if t, ok := propertyTypes[key]; ok {
		return t
	}
	base := baseOf(key)
	highest, ok := numberedProperties[base]
	digits := key[len(base):]
	n, err := strconv.Atoi(digits)
	if ok && err == nil && n <= highest && (n == 0 && len(digits) == 1 || digits[0] != '0') {
		return typeText
	}
	return typeUnknown
}

// baseOf returns a key without the number at its end.
func baseOf(key string) string {
	for key != "" && isDigit(key[len(key)-1]) {
		key = key[:len(key)-1]
	}
	return key
}

var numberPattern = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)

var errUnknownProperty = errors.New("Proxmox does not know this property")

// checkType returns value as Proxmox normalises it (check_type). Proxmox keeps a value for which there is
// an error as it is, with a warning. It checks no enumerations and no limits of numbers.
func checkType(key, value string) (string, error) {
	t := typeOf(key)
	switch {
	case t == typeUnknown:
		return value, errUnknownProperty
	case strings.ContainsAny(value, "\r\n"):
		return value, fmt.Errorf("the value of %s holds a line end", key)
	case t == typeBoolean:
		switch is, ok := boolean(value); {
		case !ok:
			return value, fmt.Errorf("%s wants a boolean (0 or 1), not %q", key, value)
		case is:
			return "1", nil
		}
		return "0", nil
	case t == typeInteger:
		return normalInteger(key, value)
	case t == typeNumber && !numberPattern.MatchString(value):
		return value, fmt.Errorf("%s wants a number, not %q", key, value)
	}
	return value, checkFormat(key, baseOf(key), value)
}

// normalInteger is Perl's int() of a run of digits: exact up to 64 bits, beyond them a float with 15
// digits.
func normalInteger(key, value string) (string, error) {
	if !isDigits(value) {
		return value, fmt.Errorf("%s wants a whole number, not %q", key, value)
	}
	if n, err := strconv.ParseUint(value, 10, 64); err == nil {
		if value[0] != '0' {
			return value, nil
		}
		return strconv.FormatUint(n, 10), nil
	}
	float, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return "Inf", nil // beyond the range of a float
	}
	return strconv.FormatFloat(float, 'g', 15, 64), nil
}

func set(words string) map[string]bool {
	return table(map[bool]string{true: words})
}

// table maps each word to the value it stands beside.
func table[V comparable](words map[V]string) map[string]V {
	m := map[string]V{}
	for v, list := range words {
		for w := range strings.FieldsSeq(list) {
			m[w] = v
		}
	}
	return m
}
