package pct

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"phoenix.internal/agent/pveconf"
)

func (c *call) unlock() error {
	return c.locked(c.ctid, func() error {
		conf, err := c.load(c.ctid)
		if err != nil {
			return err
		}
		if lock, _ := conf.Property("lock"); lock == "" {
			return proxmox("no lock found trying to remove any lock")
		}
		conf.Unset("lock")
		return c.rewrite(c.ctid, conf)
	})
}

// atOnce are the options that a running container takes into its main section at once; all others
// wait in [pve:pending] (reference/proxmox-lxc.md 9.1). Limits change only in the file.
var atOnce = []string{
	"description", "onboot", "startup", "protection", "hostname", "hookscript", "cores", "tags", "lock",
	"memory", "swap", "cpulimit", "cpuunits",
}

var deletableAtOnce = []string{"swap", "cpulimit", "cpuunits"}

func (c *call) set() error {
	if _, err := c.load(c.ctid); err != nil {
		return err
	}
	digest := c.options["digest"]
	remove := strings.FieldsFunc(c.options["delete"], func(r rune) bool { return strings.ContainsRune(",; \t", r) })
	delete(c.options, "digest")
	delete(c.options, "delete")
	if len(c.options) == 0 && len(remove) == 0 {
		return proxmox("no options specified")
	}
	for _, key := range remove {
		if slices.Contains([]string{"memory", "rootfs", "ostype", "unprivileged"}, key) {
			return proxmox("unable to delete required option '%s'", key)
		}
	}
	return c.locked(c.ctid, func() error {
		conf, err := c.load(c.ctid)
		if err != nil {
			return err
		}
		if err := checkLock(conf); err != nil {
			return err
		}
		if digest != "" && digest != conf.Digest() {
			return proxmox("detected modified configuration - file changed by other user? Try again.")
		}
		if conf, err = c.change(conf, remove); err != nil {
			return err
		}
		if err := c.rewrite(c.ctid, conf); err != nil {
			return err
		}
		return updateLXCConfig(c.ctid, conf)
	})
}

// change sets and removes options in the main section, or in [pve:pending] where they must wait.
func (c *call) change(conf *pveconf.File, remove []string) (*pveconf.File, error) {
	live := running(c.ctid)
	pending := pendingSection(conf)
	for key, value := range c.options {
		check := pveconf.Parse(conf.Bytes())
		if err := check.Set(key, value); err != nil {
			return nil, &usageError{"400 Parameter verification failed.\n" + key + ": " + err.Error()}
		}
		if !live || slices.Contains(atOnce, key) {
			conf = check
			delete(pending.set, key)
		} else {
			pending.set[key] = value
		}
		pending.remove = slices.DeleteFunc(pending.remove, func(k string) bool { return k == key })
	}
	for _, key := range remove {
		delete(pending.set, key)
		if !live || slices.Contains(deletableAtOnce, key) {
			conf.Unset(key)
		} else if !slices.Contains(pending.remove, key) {
			pending.remove = append(pending.remove, key)
		}
	}
	return withPending(conf, pending)
}

type pendingChanges struct {
	set    map[string]string
	remove []string
	raw    []pveconf.Entry
}

func pendingSection(conf *pveconf.File) pendingChanges {
	section := conf.Pending()
	p := pendingChanges{set: map[string]string{}, raw: section.Raw}
	for _, e := range section.Properties {
		if e.Key == "delete" {
			p.remove = strings.FieldsFunc(e.Value, func(r rune) bool { return strings.ContainsRune(",; \t", r) })
			continue
		}
		p.set[e.Key] = e.Value
	}
	return p
}

var (
	pendingHeader = regexp.MustCompile(`(?i)^\[pve:pending\]\s*$`)
	sectionHeader = regexp.MustCompile(`^\[[A-Za-z][A-Za-z0-9_-]+\]\s*$`)
)

// withPending returns the conf with its [pve:pending] section replaced, in canonical form.
func withPending(conf *pveconf.File, p pendingChanges) (*pveconf.File, error) {
	b, err := conf.Canonical()
	if err != nil {
		return nil, err
	}
	var main, snapshots strings.Builder
	out := &main
	skip := false
	for line := range strings.Lines(string(b)) {
		if pendingHeader.MatchString(line) {
			skip = true
		} else if sectionHeader.MatchString(line) {
			skip, out = false, &snapshots
		}
		if !skip {
			out.WriteString(line)
		}
	}
	if len(p.set) > 0 || len(p.remove) > 0 || len(p.raw) > 0 {
		main.WriteString("\n[pve:pending]\n")
		if len(p.remove) > 0 {
			p.set["delete"] = strings.Join(p.remove, ",")
		}
		for key, value := range p.set {
			fmt.Fprintf(&main, "%s: %s\n", key, value)
		}
		for _, e := range p.raw {
			fmt.Fprintf(&main, "%s: %s\n", e.Key, e.Value)
		}
	}
	return pveconf.Parse([]byte(main.String() + "\n" + snapshots.String())), nil
}
