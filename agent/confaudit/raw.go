package confaudit

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
)

const (
	allowKey = "lxc.cgroup2.devices.allow"
	denyKey  = "lxc.cgroup2.devices.deny"
)

// checkRaw judges one lxc.* line.
func (s *section) checkRaw(e pveconf.Entry) {
	value := passthrough.LXCValue(e.Value)
	name := strings.TrimPrefix(e.Key, "lxc.")
	switch group, rest, _ := strings.Cut(name, "."); {
	case noStart(e):
		s.add(e.Line, NoStart, Warning, "remove the line", "LXC does not know %s any more, and does not start the container", e.Key)
	case group == "hook" && rest != "version":
		s.checkHook(e, rest, value)
	case group == "net":
		s.checkNet(e, rest, value)
	case group == "cgroup2":
		s.checkCgroup(e, rest, value)
	case group == "environment":
		s.checkEnvironment(e, rest, value)
	case group == "apparmor":
		s.checkAppArmor(e, rest, value)
	case name == "mount.entry":
		s.checkMount(e)
	case name == "mount.auto":
		s.checkAutoMount(e, value)
	case name == "mount.fstab" && value != "":
		s.add(e.Line, Include, Warning, "write its lines into the conf as lxc.mount.entry", "the mounts of the container stand in another file, %s, which this audit does not see", value)
	case name == "include" && value != "":
		s.checkInclude(e, value)
	case name == "idmap":
		s.checkIDMap(e, value)
	case group == "cap":
		s.checkCapabilities(e, rest, value)
	case name == "seccomp.profile":
		s.checkSeccomp(e, value)
	case name == "seccomp.notify.proxy" && value != "":
		s.add(e.Line, Seccomp, Warning, "remove the line unless you know the service", "%s decides about system calls of the container", value)
	case (name == "log.file" || name == "console.logfile") && value != "":
		s.checkLogFile(e, value)
	case name == "console.path" && value != "" && value != "none":
		s.add(e.Line, HostDevice, Warning, "remove the line", "the console of the container is %s of the node", value)
	case name == "rootfs.mount" && value != "":
		s.add(e.Line, HostPath, Warning, "remove the line", "LXC puts the container's root file system together over %s of the node", value)
	case name == "init.cmd" && value != "":
		s.add(e.Line, Init, Note, "check that the program is meant", "the first program in the container is %q", value)
	}
}

// noStart says whether LXC 3 and later refuse the key: LXC 2's names, which Proxmox accepts with a warning, and
// two that no LXC knows. cgroup v1 keys are passed over.
func noStart(e pveconf.Entry) bool {
	if e.Key == "lxc.kmsg" || e.Key == "lxc.devtty.dir" {
		return true
	}
	if strings.HasPrefix(e.Key, "lxc.cgroup.") {
		return false
	}
	// Of all that Proxmox accepts it warns of the keys of LXC 2 alone.
	warnings := pveconf.Parse([]byte(e.Key + ": x")).Warnings()
	return slices.ContainsFunc(warnings, func(w pveconf.Warning) bool { return w.Kind == pveconf.WarningValue })
}

// packaged says whether a program or file is one that Proxmox's or LXC's packages bring.
func packaged(file string) bool {
	file, _, _ = strings.Cut(file, " ")
	file = path.Clean(file)
	return strings.HasPrefix(file, "/usr/share/lxc/") || strings.HasPrefix(file, "/usr/share/lxcfs/")
}

func (s *section) checkHook(e pveconf.Entry, hook, program string) {
	const advice = "read the program, or remove the line"
	onNode := hook != "start" && hook != "mount" && hook != "pre-mount" && hook != "autodev"
	switch {
	case program == "" && (hook == "pre-start" || hook == "autodev" || hook == "post-stop"):
		s.add(e.Line, ClearedList, Warning, "remove the line", "the empty value removes Proxmox's own %s hook, without which the container does not work", hook)
	case program == "":
		s.add(e.Line, ClearedList, Note, "remove the line", "the empty value removes every %s hook above", hook)
	case packaged(program):
		s.add(e.Line, Hook, Note, "make sure that it is meant", "the %s hook %q comes with LXC", hook, program)
	case hook == "start":
		s.add(e.Line, Hook, Note, advice, "the start hook %q runs in the container before its first program", program)
	case onNode:
		s.add(e.Line, Hook, Danger, advice, "the %s hook %q runs on the node as root", hook, program)
	default:
		s.add(e.Line, Hook, s.unlessMapped(Danger, Warning), advice, "the %s hook %q runs with the rights of the container's root, in sight of the node's files", hook, program)
	}
}

func (s *section) checkNet(e pveconf.Entry, rest, value string) {
	_, option, _ := strings.Cut(rest, ".") // behind the number
	switch {
	case (option == "script.up" || option == "script.down") && value != "" && !packaged(value):
		s.add(e.Line, Hook, Danger, "read the program, or remove the line", "the network script %q runs on the node as root", value)
	case option == "type" && value == "none":
		s.add(e.Line, HostNetwork, s.unlessMapped(Danger, Warning), "give the container a network of its own (net0)", "the container has the network of the node, with every service that listens on it alone")
	case option == "type" && value == "phys":
		s.add(e.Line, HostNetwork, Warning, "use a bridge (net0) unless the container is to have the whole interface", "the container takes a network interface away from the node")
	}
}

func (s *section) checkCgroup(e pveconf.Entry, controller, value string) {
	switch {
	case controller != "devices.allow" && controller != "devices.deny":
		if value == "" {
			s.add(e.Line, ClearedList, Warning, "remove the line", "the empty value clears what Proxmox sets for %s", controller)
		}
	case value == "" && s.allowAll && controller == "devices.allow":
		s.add(e.Line, ClearedList, Note, "remove the line", "the empty value makes LXC forget the device rules above, that everything is allowed among them")
	case value == "":
		s.add(e.Line, ClearedList, Warning, "remove the line", "the empty value makes LXC forget the device rules above, Proxmox's own too")
	case controller == "devices.allow" && !s.allowAll:
		s.checkRule(e, value)
	}
}

// checkRule judges an allow rule of a privileged container for what is not NVIDIA's.
func (s *section) checkRule(e pveconf.Entry, value string) {
	r, err := passthrough.ParseRule(value)
	opens := strings.ContainsAny(r.Access, "rw")
	switch {
	case err != nil || !opens || r.Major < 0 && r.Type != 'c':
		// Package passthrough tells of what is broken; checkWhole of rules for everything.
	case r.Major < 0:
		s.add(e.Line, WildcardRule, Danger, "allow the devices that are needed one by one",
			"the rule %q lets a privileged container open the devices of every driver, the node's memory and disks among them", value)
	case r.Type != 'c' && r.Major != 7: // loop devices
		s.add(e.Line, HostDevice, Danger, "remove the line, and give the container a volume", "the rule %q lets a privileged container open disks of the node, for which it can make the device nodes", value)
	case r.Type == 'c' && r.Major == 1 && (r.Minor < 0 || r.Minor == 1 || r.Minor == 2 || r.Minor == 4):
		s.add(e.Line, HostDevice, Danger, "remove the line", "the rule %q lets a privileged container open the memory of the node", value)
	case r.Minor < 0 && r.Major != 195:
		s.add(e.Line, WildcardRule, Note, "allow the devices that are needed one by one", "the rule %q allows every device of its major", value)
	}
}

func (s *section) checkEnvironment(e pveconf.Entry, kind, value string) {
	name, _, _ := strings.Cut(value, "=")
	loader := name == "LD_PRELOAD" || name == "LD_AUDIT"
	switch {
	case kind == "hooks" && (strings.HasPrefix(name, "LD_") || name == "PATH" || name == "PERL5LIB" || name == "PERL5OPT" || name == "BASH_ENV" || name == "PYTHONPATH"):
		s.add(e.Line, Environment, Danger, "remove the line", "%s makes the hooks, which run on the node as root, load other programs", name)
	case kind != "hooks" && loader:
		s.add(e.Line, Environment, Warning, "remove the line", "%s makes every program in the container load more than its own code", name)
	case kind != "hooks" && name == "LD_LIBRARY_PATH":
		s.add(e.Line, Environment, Note, "check that the directory is meant", "%s changes which libraries the programs in the container load", name)
	}
}

func (s *section) checkAppArmor(e pveconf.Entry, option, value string) {
	switch {
	case option == "profile" && (value == "unconfined" || value == "unchanged" || value == ""):
		s.add(e.Line, AppArmor, s.unlessMapped(Danger, Warning), "remove the line", "the container runs without Proxmox's AppArmor profile")
	case option == "profile" && value != "generated":
		s.add(e.Line, AppArmor, Note, "check the profile", "the container runs under the AppArmor profile %q instead of Proxmox's", value)
	case option == "allow_incomplete" && value == "1":
		s.add(e.Line, AppArmor, Warning, "remove the line", "the container starts although AppArmor cannot confine it wholly")
	case option == "allow_nesting" && value == "1":
		s.add(e.Line, Feature, s.unlessMapped(Warning, Note), "remove the line unless containers run in the container", "the container sees the node's /proc and /sys without their covers")
	case option == "raw" && value != "" && !strings.HasPrefix(value, "deny "):
		s.add(e.Line, AppArmor, Note, "check the rule", "the AppArmor profile has a rule of its own: %q", value)
	}
}

func (s *section) checkAutoMount(e pveconf.Entry, value string) {
	if value == "" {
		s.add(e.Line, ClearedList, Warning, "remove the line", "the empty value makes LXC mount neither /proc nor /sys")
		return
	}
	for _, item := range strings.Fields(value) {
		what, options, _ := strings.Cut(item, ":")
		if options == "rw" || strings.HasPrefix(options, "rw:") {
			s.add(e.Line, AutoMount, s.unlessMapped(Warning, Note), "use "+what+":mixed", "the container can write to %s as a whole", what)
		}
	}
}

func (s *section) checkInclude(e pveconf.Entry, file string) {
	if packaged(file) {
		s.add(e.Line, Include, Note, "make sure that it is meant", "the settings of %s are in force too", file)
		return
	}
	s.add(e.Line, Include, Danger, "write its lines into the conf", "whatever settings stand in %s are in force too, hooks that run as root among them, and neither Proxmox nor this audit sees them", file)
}

// checkIDMap judges one range of an id map: type, first id in the container, first on the node, number.
func (s *section) checkIDMap(e pveconf.Entry, value string) {
	if value == "" {
		s.add(e.Line, IDMap, Danger, "remove the line, or give a map", "after the empty id map the container's root is the node's root, and the device rules allow everything")
		return
	}
	fields := strings.Fields(value)
	var first, number uint64
	var err error
	if len(fields) == 4 {
		if first, err = strconv.ParseUint(fields[2], 0, 32); err == nil {
			number, err = strconv.ParseUint(fields[3], 0, 32)
		}
	}
	if len(fields) != 4 || err != nil || fields[0] != "u" && fields[0] != "g" {
		s.add(e.Line, NoStart, Warning, "correct the line", "LXC cannot read the id map %q and does not start the container", value)
		return
	}
	kind := map[string]string{"u": "users", "g": "groups"}[fields[0]]
	const advice = "map only the ids that own the files which the container shares"
	switch {
	case number == 0:
	case first == 0:
		s.add(e.Line, IDMap, Danger, advice, "the id map gives the container the node's root among %s", kind)
	case first < 1000:
		s.add(e.Line, IDMap, Warning, advice, "the id map gives the container %s of the node's services, from %d on", kind, first)
	case first < 100000:
		s.add(e.Line, IDMap, Note, advice, "the id map gives the container %s of the node, from %d on", kind, first)
	}
}

func (s *section) checkCapabilities(e pveconf.Entry, list, value string) {
	const advice = "remove the line"
	switch {
	case list == "drop" && value == "" && s.mapped:
		s.add(e.Line, Capabilities, Note, advice, "the container's root keeps every capability over what is the container's own")
	case list == "drop" && value == "":
		s.add(e.Line, Capabilities, Danger, advice, "the container's root keeps every capability, to load kernel modules too")
	case list == "keep" && value != "" && value != "none":
		s.add(e.Line, Capabilities, s.unlessMapped(Warning, Note), advice, "the container's root has the capabilities %q instead of LXC's choice", value)
	}
}

func (s *section) checkSeccomp(e pveconf.Entry, value string) {
	switch {
	case value == "" || value == "none" || value == "/dev/null":
		s.add(e.Line, Seccomp, Warning, "remove the line", "no filter of system calls stands between the container and the kernel")
	case !packaged(value):
		s.add(e.Line, Seccomp, Note, "check the filter", "the filter of system calls is %s instead of Proxmox's", value)
	}
}

// checkLogFile judges a file that LXC's monitor writes as root. What a console prints the container decides.
func (s *section) checkLogFile(e pveconf.Entry, file string) {
	switch {
	case strings.HasPrefix(path.Clean(file), "/var/log/"):
		s.add(e.Line, HostFile, Note, "mind its size", "LXC writes to %s on the node", file)
	case e.Key == "lxc.console.logfile":
		s.add(e.Line, HostFile, Danger, "remove the line, or name a file below /var/log", "LXC writes as root to %s on the node what the container prints", file)
	default:
		s.add(e.Line, HostFile, Warning, "remove the line, or name a file below /var/log", "LXC writes as root to %s on the node", file)
	}
}
