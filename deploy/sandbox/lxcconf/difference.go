package lxcconf

// A Difference is a kind of line in which the sandbox's LXC config is unlike Proxmox's.
type Difference struct {
	Prefix string // of the line
	Why    string
}

// LeftOut are lines of Proxmox that [Generate] never makes. Raw lines of the conf it always copies, these too.
var LeftOut = []Difference{
	{"lxc.apparmor.", "AppArmor is hidden from LXC in a node: a machine without it could not start a container with these lines"},
	{"lxc.seccomp.", "Proxmox writes its own profile beside the config; LXC's, which common.conf names, stays in force"},
}

// WithoutNetwork are lines of Proxmox that [Generate] does not make for a [Host] without a Network.
var WithoutNetwork = []Difference{
	{"lxc.net.", "a node has no bridges and no lxcnetaddbr; netN is checked, but for its MTU against the bridge's, and not acted upon"},
}

// AddedWithoutNetwork are lines that [Generate] makes in their place.
var AddedWithoutNetwork = []Difference{
	{"lxc.net.0.type = empty", "without any lxc.net line a container would share the node's network"},
}
