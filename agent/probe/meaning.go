package probe

// An Explanation is what an outcome means, and what to do about it, as a sentence without capital and full stop each.
type Explanation struct {
	Meaning string
	Advice  string // empty if nothing is to be done
}

// String returns the meaning and the advice, divided by "; ".
func (e Explanation) String() string {
	if e.Advice == "" {
		return e.Meaning
	}
	return e.Meaning + "; " + e.Advice
}

// explanations are for a device that the conf gives.
var explanations = map[Outcome]Explanation{
	Opened: {"can be opened", ""},
	NoDriver: {"can be reached, but no driver answers: the GPU is lost, or the driver is not loaded or bound to another GPU's number",
		"look at nvidia-smi and the kernel log on the host; after a driver upgrade reboot the host or load the driver anew"},
	Denied: {"is in the container, but its device cgroup refuses it: no rule allows these numbers",
		"apply, which writes the rule, then restart the container"},
	NoPermission: {"is in the container, but its mode or owner refuses the container's root",
		"give the device node on the host mode 0666, or its devN entry mode=0666; for an unprivileged container the mode alone counts"},
	Absent: {"is not in the container: it was started before the conf gave the device, or before the node had it",
		"restart the container"},
	NotADevice: {"is an ordinary file, a directory or a link: the host lacked the device when the container started, or something in the container replaced it",
		"make sure that the host has the device (nvidia-modprobe -c 0 -u makes the nodes), then restart the container"},
	WrongNumber: {"is a device with other numbers than the host's: the driver was loaded anew since the container started, or the node was made by hand",
		"apply, then restart the container"},
	Timeout: {"did not answer in time: the driver or the GPU hangs",
		"look at the host's kernel log for Xid messages; a reset of the GPU or a reboot of the host is likely to be needed"},
	Failed: {"could not be opened",
		"look up the error number in the host's and the driver's documentation, and look at the host's kernel log"},
}

// unexpected are for a device that the conf does not give; an outcome that is not here is as it should be.
var unexpected = map[Outcome]Explanation{
	Opened: {"can be opened although the conf does not give it",
		"restart the container if its conf was changed since it started; otherwise look for a rule that allows more than one device"},
	NoDriver: {"is let through by the device cgroup although the conf does not give it",
		"restart the container if its conf was changed since it started; otherwise look for a rule that allows more than one device"},
	Timeout: {"is let through, or so it seems, although the conf does not give it: opening it did not return",
		"look at the host's kernel log; then restart the container"},
}

// outOfReach explains every other outcome of a device that the conf does not give.
var outOfReach = Explanation{"not given, and out of reach", ""}

// Explain says what a result means for a device that the conf gives, or does not.
func (r Result) Explain(given bool) Explanation {
	if !given {
		if e, ok := unexpected[r.Outcome]; ok {
			return e
		}
		return outOfReach
	}
	e, ok := explanations[r.Outcome]
	if !ok {
		e = explanations[Failed]
	}
	if r.Outcome == Failed && r.Errno != "" {
		e.Meaning += ": " + r.Errno
		if specific, ok := errnos[r.Errno]; ok {
			e.Meaning, e.Advice = e.Meaning+", "+specific.Meaning, specific.Advice
		}
	}
	return e
}

// errnos are errors that have no outcome of their own.
var errnos = map[string]Explanation{
	"EIO":    {"the driver could not start the GPU", "look at the host's kernel log for Xid or RmInitAdapter messages"},
	"EBUSY":  {"somebody has it for himself alone", "look at nvidia-smi on the host: compute mode, or a process that holds the GPU"},
	"EINTR":  {"the open was broken off", "probe again"},
	"EMFILE": {"the container's limit of open files is too low for the probe", "raise lxc.prlimit.nofile"},
	"ENFILE": {"the host has no more open files", "raise fs.file-max on the host"},
	"ENOMEM": {"the container's or the host's memory is full", "raise the container's memory, or look what uses it"},
	"ELOOP":  {"its path leads through links in a circle", "look at /dev in the container"},
	"ESTALE": {"it was exchanged while it was looked at, or the container's /proc is not the kernel's",
		"look who mounts over /dev or /proc in the container; probe again"},
	"ENOTCONN": {"a file system in the way is dead", "look at the mounts in the container"},
}
