package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
)

// writeFiles lays out what the namespaces of a node then show at its place: pve is /etc/pve, proc/driver
// is /proc/driver, and so on (namespace.go).
func (n *Node) writeFiles(dir, pct string) error {
	devices, err := os.ReadFile("/proc/devices")
	if err != nil {
		return err
	}
	files := map[string]string{
		"proc/devices":                         string(devices),
		"proc/1/cgroup":                        "0::/init.scope\n",
		"lxc-config/common.conf.d/01-pve.conf": hooksConf,
		"lxc-config/userns.conf.d/01-pve.conf": usernsConf,
		"etc/pve-release":                      "9.1-sandbox\n",
		"etc/hostname":                         n.Name + "\n",
		"etc/hosts":                            fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", n.Address, n.Name),
		"pve/.members":                         fmt.Sprintf("{ \"nodename\": %q, \"version\": 0 }\n", n.Name),
		"pve/.vmlist":                          "{ \"version\": 1, \"ids\": {} }\n",
		"pve/storage.cfg":                      "dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl,snippets\n",
		"run/" + callsName:                     "",
	}
	for path, content := range files {
		if err := writeFile(filepath.Join(dir, path), content, 0o644); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(dir, "bin/pveversion"), pveversionScript, 0o755); err != nil {
		return err
	}
	if err := copyFile(pct, filepath.Join(dir, "sbin/pct"), 0o755); err != nil {
		return err
	}
	for _, path := range append([]string{
		"pve/nodes/" + n.Name + "/lxc", "pve/nodes/" + n.Name + "/qemu-server", "pve/priv", "pve/ha",
		"proc/driver", "pci/devices", "pci/drivers", "var-lib-lxc", "var-lib-phoenix", "installers", "etc-phoenix/tls",
	}, runDirs...) {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			return err
		}
	}
	links := map[string]string{
		"pve/local": "nodes/" + n.Name, "pve/lxc": "nodes/" + n.Name + "/lxc", "pve/qemu-server": "nodes/" + n.Name + "/qemu-server",
	}
	for path, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, path)); err != nil {
			return err
		}
	}
	return nil
}

// runDirs is what a node's /run has after a boot.
var runDirs = []string{"run/lock/lxc", "run/pve", "run/sandbox"}

// callsName is the file of pct.CallsFile.
const callsName = "pct-calls"

// hooksConf adds the hooks that Proxmox adds to every container (pve-container's lxc-pve.conf).
const hooksConf = `lxc.hook.pre-start = /usr/sbin/pct sandbox-hook
lxc.hook.autodev = /usr/sbin/pct sandbox-hook
lxc.hook.post-stop = /usr/sbin/pct sandbox-hook
`

// usernsConf is what Proxmox adds to unprivileged containers (lxc-pve-userns.conf): every device is allowed.
const usernsConf = `lxc.cgroup2.devices.deny =
lxc.cgroup2.devices.allow =
lxc.cgroup2.devices.allow = a
`

const pveversionScript = "#!/bin/sh\necho 'pve-manager/9.1-sandbox/0123456789abcdef (running kernel: '$(uname -r)')'\n"

func writeFile(path, content string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), mode)
}

func copyFile(from, to string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return writeFile(to, string(b), mode)
}
