package container

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/pveconf"
)

// An Item is one line of LXC's configuration of a running container.
type Item struct {
	Key, Value string
	Line       int // of the raw line of the conf on disk that says the same; 0 if there is none
}

// effectiveTimeout bounds all questions about one container's configuration.
const effectiveTimeout = 10 * time.Second

// EffectiveEntries returns what a running container was started with, whatever its conf says by now. c and conf are
// what [Manager.Get] told of it. There are none if it does not run; if another start of it runs by now, the error is an
// [*InstanceError].
func (m *Manager) EffectiveEntries(ctx context.Context, c Container, conf *pveconf.File) ([]Item, error) {
	if c.Running.Instance == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, effectiveTimeout)
	defer cancel()
	items, err := m.Runtime.Started(ctx, c.CTID)
	if err != nil && !errors.Is(err, lxcmon.ErrNotRunning) {
		return nil, fmt.Errorf("what CTID %d was started with: %w", c.CTID, err)
	}
	// The answers are those of one start only if it still runs.
	after, err := m.Runtime.Observe(ctx, c.CTID, nil)
	if err != nil {
		return nil, err
	}
	if after.Instance != c.Running.Instance {
		return nil, &InstanceError{CTID: c.CTID, Got: after.Instance}
	}
	markLines(items, conf)
	return items, nil
}

// markLines tells each item its line of the conf, each line once. Blanks do not count.
func markLines(items []Item, conf *pveconf.File) {
	lines := make(map[string][]int)
	for _, e := range conf.Raw() {
		k := e.Key + " " + strings.Join(strings.Fields(e.Value), " ")
		lines[k] = append(lines[k], e.Line)
	}
	for i, item := range items {
		k := item.Key + " " + strings.Join(strings.Fields(item.Value), " ")
		if at := lines[k]; len(at) > 0 {
			items[i].Line, lines[k] = at[0], at[1:]
		}
	}
}

// startedKeys are the keys that say what a container is and may do, in the order in which they are shown. Those that end
// in a dot stand for all below them, which LXC lists with their keys in the order of the configuration.
//
// What LXC's get_config_item answers was tried on LXC 5.0.2. It has no answer for lxc.include (whose lines are among the
// others), lxc.hook, lxc.namespace.clone and lxc.environment.runtime; and it lists lxc.cap.keep under lxc.cap.drop too,
// so that what is kept cannot be told from what is dropped. Proxmox itself only drops.
var startedKeys = []string{
	"lxc.arch", "lxc.uts.name", "lxc.rootfs.path", "lxc.rootfs.options", "lxc.init.cmd", "lxc.init.cwd", "lxc.init.uid", "lxc.init.gid",
	"lxc.execute.cmd", "lxc.idmap", "lxc.apparmor.profile", "lxc.apparmor.raw", "lxc.selinux.context", "lxc.seccomp.profile",
	"lxc.cap.drop", "lxc.no_new_privs", "lxc.cgroup.", "lxc.cgroup2.", "lxc.prlimit.", "lxc.sysctl.", "lxc.proc.",
	"lxc.mount.auto", "lxc.mount.fstab", "lxc.mount.entry", "lxc.autodev", "lxc.autodev.tmpfs.size", "lxc.tty.max", "lxc.pty.max",
	"lxc.environment", "lxc.signal.halt", "lxc.signal.reboot", "lxc.signal.stop", "lxc.monitor.unshare",
	"lxc.hook.version", "lxc.hook.pre-start", "lxc.hook.pre-mount", "lxc.hook.mount", "lxc.hook.autodev", "lxc.hook.start-host",
	"lxc.hook.start", "lxc.hook.stop", "lxc.hook.post-stop",
}

// unset is what LXC says of the keys that it always answers, where nothing was set.
var unset = map[string]string{
	"lxc.init.uid": "0", "lxc.init.gid": "0", "lxc.no_new_privs": "0", "lxc.autodev.tmpfs.size": "0", "lxc.hook.version": "0",
	"lxc.signal.halt": "0", "lxc.signal.reboot": "0", "lxc.signal.stop": "0", "lxc.monitor.unshare": "0", "lxc.pty.max": "0",
}

// networkKeys are those of one network device, below lxc.net.N.
var networkKeys = []string{
	"type", "name", "link", "flags", "hwaddr", "mtu", "veth.pair", "vlan.id", "macvlan.mode", "ipv4.address", "ipv4.gateway",
	"ipv6.address", "ipv6.gateway", "script.up", "script.down",
}

// maxNetworks is how many netN Proxmox knows (PVE::LXC::Config, MAX_LXC_NETWORKS).
const maxNetworks = 32

// Started asks the container's monitor.
func (p *Proxmox) Started(ctx context.Context, ctid int32) ([]Item, error) {
	var items []Item
	ask := func(key string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		values, err := p.LXC.ConfigItem(ctid, strings.TrimSuffix(key, "."))
		for _, v := range values {
			k := key
			if strings.HasSuffix(key, ".") {
				k, v, _ = strings.Cut(v, " = ")
			}
			if v != "" && v != unset[k] && v != "(null)" {
				items = append(items, Item{Key: k, Value: v})
			}
		}
		return err
	}
	for _, key := range startedKeys {
		if err := ask(key); err != nil {
			return nil, err
		}
	}
	types, err := p.LXC.ConfigItem(ctid, "lxc.net")
	if err != nil {
		return nil, err
	}
	// Numbers may be left out: net0 and net2 of a conf are lxc.net.0 and lxc.net.2.
	for n, found := 0, 0; n < maxNetworks && found < len(types); n++ {
		before := len(items)
		for _, key := range networkKeys {
			if err := ask(fmt.Sprintf("lxc.net.%d.%s", n, key)); err != nil {
				return nil, err
			}
			if len(items) == before {
				break // it has no type: there is no such device
			}
		}
		if len(items) > before {
			found++
		}
	}
	return items, nil
}
