package container

import (
	"fmt"
	"regexp"
	"sync"

	"phoenix.internal/agent/pveconf"
)

// A PropertyError says that a property may not be set or removed through the agent.
type PropertyError struct {
	Key, Value string
	Why        string
}

func (e *PropertyError) Error() string {
	return fmt.Sprintf("property %s: %s", e.Key, e.Why)
}

const (
	boolean  = `0|1`
	number   = `0|[1-9][0-9]{0,9}`
	dnsName  = `[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*`
	ipOrHost = `[0-9A-Za-z:.]+`
)

// properties are the keys that SetProperty takes, with the values that Proxmox accepts for them (Config.pm, confdesc).
// Not among them: what runs programs on the host (hookscript), names its files (rootfs, mpN, devN), or changes who the
// container's root is (unprivileged, features, arch, ostype).
//
// They are compiled when they are first needed: this program is started for each probe, and should start fast.
var properties = sync.OnceValue(func() map[string]*regexp.Regexp {
	return map[string]*regexp.Regexp{
		"cmode":        whole(`shell|console|tty`),
		"console":      whole(boolean),
		"cores":        whole(`[1-9][0-9]{0,3}`),
		"cpulimit":     whole(`(0|[1-9][0-9]{0,3})(\.[0-9]{1,6})?`),
		"cpuunits":     whole(number),
		"hostname":     whole(dnsName),
		"memory":       whole(`[1-9][0-9]{1,9}`),
		"nameserver":   whole(ipOrHost + `( ` + ipOrHost + `){0,3}`),
		"onboot":       whole(boolean),
		"protection":   whole(boolean),
		"searchdomain": whole(dnsName + `( ` + dnsName + `){0,5}`),
		"startup":      whole(`(order=[0-9]+|up=[0-9]+|down=[0-9]+)(,(order=[0-9]+|up=[0-9]+|down=[0-9]+)){0,2}`),
		"swap":         whole(number),
		"tags":         whole(`[a-z0-9_][a-z0-9_+.-]*(;[a-z0-9_][a-z0-9_+.-]*)*`),
		"timezone":     whole(`host|[A-Za-z]+([_+/-][A-Za-z0-9]+)*`),
		"tty":          whole(`[0-6]`),
	}
})

func whole(pattern string) *regexp.Regexp { return regexp.MustCompile(`\A(?:` + pattern + `)\z`) }

// SetProperty sets one property of Proxmox.
type SetProperty struct{ Key, Value string }

func (op SetProperty) edit(f *pveconf.File, _ *editing) error {
	pattern, ok := properties()[op.Key]
	if !ok {
		return &PropertyError{Key: op.Key, Value: op.Value, Why: "may not be set through the agent; use pct set on the node"}
	}
	if !pattern.MatchString(op.Value) {
		return &PropertyError{Key: op.Key, Value: op.Value, Why: fmt.Sprintf("%.100q is no value that Proxmox accepts", op.Value)}
	}
	if have, ok := f.Property(op.Key); ok && have == op.Value {
		return nil
	}
	return f.Set(op.Key, op.Value)
}

// UnsetProperty removes one property of Proxmox.
type UnsetProperty struct{ Key string }

func (op UnsetProperty) edit(f *pveconf.File, _ *editing) error {
	if _, ok := properties()[op.Key]; !ok || op.Key == "memory" {
		return &PropertyError{Key: op.Key, Why: "may not be removed through the agent; use pct set --delete on the node"}
	}
	f.Unset(op.Key)
	return nil
}
