package confaudit

import "strconv"

// Kind classifies findings.
type Kind int

// The kinds of findings.
const (
	HiddenLineEnd Kind = iota // LXC reads other lines than Proxmox and a person do
	OddBytes                  // control characters, or bytes that are not UTF-8
	Hook                      // a program that runs on the node
	Include                   // settings that stand in another file
	WildcardRule              // a device rule for more than single devices
	PrivilegedGPU             // GPUs in a privileged container
	Privileged                // the container's root is the node's
	IDMap                     // ids of the node that the container's are mapped to
	AppArmor                  // another AppArmor profile than Proxmox's
	Seccomp                   // another filter of system calls than Proxmox's
	Capabilities              // other capabilities than Proxmox's
	HostPath                  // a part of the node's file system that should stay the node's
	HostDevice                // a device that is as good as the node itself
	HostNetwork               // the node's own network
	HostFile                  // a file of the node that LXC writes to
	AutoMount                 // kernel file systems, writable
	ClearedList               // an empty value, which clears a list of Proxmox's
	Environment               // variables that change what a program loads
	Init                      // another first program
	Feature                   // a feature that weakens the container's walls
	RawInPending              // raw lines that replace those of the main section
	Rollback                  // NVIDIA entries that a rollback brings back
	NoStart                   // the container does not start
	NoEffect                  // a line that does not do what it looks like
	BadValue                  // a value or key that Proxmox objects to, and keeps
	DroppedLine               // a line that Proxmox drops when it next writes the conf
	LostSection               // a section of which Proxmox reads nothing
	Unreadable                // Proxmox cannot read or write the conf
	Lock                      // the conf is locked
)

var kinds = [...]string{
	HiddenLineEnd: "hidden-line-end",
	OddBytes:      "odd-bytes",
	Hook:          "hook",
	Include:       "include",
	WildcardRule:  "wildcard-rule",
	PrivilegedGPU: "privileged-gpu",
	Privileged:    "privileged",
	IDMap:         "id-map",
	AppArmor:      "apparmor",
	Seccomp:       "seccomp",
	Capabilities:  "capabilities",
	HostPath:      "host-path",
	HostDevice:    "host-device",
	HostNetwork:   "host-network",
	HostFile:      "host-file",
	AutoMount:     "auto-mount",
	ClearedList:   "cleared-list",
	Environment:   "environment",
	Init:          "init",
	Feature:       "feature",
	RawInPending:  "raw-in-pending",
	Rollback:      "rollback",
	NoStart:       "no-start",
	NoEffect:      "no-effect",
	BadValue:      "bad-value",
	DroppedLine:   "dropped-line",
	LostSection:   "lost-section",
	Unreadable:    "unreadable",
	Lock:          "lock",
}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kinds) {
		return "Kind(" + strconv.Itoa(int(k)) + ")"
	}
	return kinds[k]
}
