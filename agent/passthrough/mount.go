package passthrough

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// A Mount is an lxc.mount.entry as LXC reads it.
type Mount struct {
	Source   string   // as written, escapes resolved
	Target   string   // absolute in the container, cleaned
	Type     string   // of the file system; no matter for a bind
	Options  []string // in order
	Absolute bool     // the target begins with a slash: LXC ignores the entry, but see Rootfs
	Rootfs   bool     // the target is written as a path below the root file system of some container

	slash bool   // source or target end in a slash, which fits a directory only
	below string // the target below the container's root, as written
}

// rootfsPattern finds the one form of absolute target that LXC takes, for the container's own number, wherever
// it stands (lxc/conf.c, mount_entry_on_absolute_rootfs).
var rootfsPattern = regexp.MustCompile(`/var/lib/lxc/[0-9]+/rootfs`)

// ParseMount reads the value of an lxc.mount.entry as LXC does: as a line of fstab (lxc/conf.c,
// mount_file_entries; glibc, getmntent). It says false for a comment and for a line without a target.
func ParseMount(value string) (Mount, bool) {
	value = strings.TrimLeft(LXCValue(value), " \t")
	fields := strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) < 2 || strings.HasPrefix(value, "#") {
		return Mount{}, false
	}
	for i := range fields {
		fields[i] = fstabEscapes.Replace(fields[i])
	}
	m := Mount{Source: fields[0], Absolute: strings.HasPrefix(fields[1], "/")}
	target := fields[1]
	if m.Absolute {
		if at := rootfsPattern.FindStringIndex(target); at != nil {
			m.Rootfs, target = true, target[at[1]:]
		}
	}
	m.Target = path.Clean("/" + target)
	if len(fields) > 2 {
		m.Type = fields[2]
	}
	if len(fields) > 3 {
		m.Options = strings.Split(fields[3], ",")
	}
	m.below = strings.TrimLeft(target, "/")
	m.slash = strings.HasSuffix(m.Source, "/") || strings.HasSuffix(target, "/")
	return m, true
}

var fstabEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\\`, `\`)

// Has says whether m has an option.
func (m Mount) Has(option string) bool { return slices.Contains(m.Options, option) }

// Bind says whether m makes a directory or file of the node appear in the container.
func (m Mount) Bind() bool { return (m.Has("bind") || m.Has("rbind")) && !m.Has("relative") }

// leaves says whether the target climbs out of the container's root.
func (m Mount) leaves() bool {
	p := path.Clean(m.below)
	return p == ".." || strings.HasPrefix(p, "../")
}

// noDev says whether no device can be opened through m. The kernel applies nodev to a bind where the file
// system of the source has flags of its own, as /dev has on Debian; so it counts always.
func (m Mount) noDev() bool {
	nodev := false
	for _, o := range m.Options {
		nodev = o == "nodev" || o != "dev" && nodev
	}
	return nodev
}
