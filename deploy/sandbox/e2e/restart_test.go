package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"phoenix.internal/deploy/sandbox/pct"
	"phoenix.internal/deploy/sandbox/sandboxtest"
)

const (
	deafInit = "#!/bin/sh\ntrap '' PWR TERM\nwhile :; do sleep 86400; done\n"
	deadInit = "#!/bin/sh\nexit 3\n"
	// diesWithGPU is an init that does not get along with GPU 0.
	diesWithGPU = "#!/bin/sh\n[ ! -e /dev/nvidia0 ] || exit 3\ntrap 'exit 0' PWR TERM\nwhile :; do sleep 86400 & wait $!; done\n"
	// refusesGPU0 is a hookscript that does not let the container start with GPU 0.
	refusesGPU0 = "#!/bin/sh\n! grep -q nvidia0 /etc/pve/lxc/$1.conf || { echo no GPU for $1 before it is paid; exit 2; }\n"
)

// Every end of a restart that was asked for, and of one that an apply needs: what a person reads, whether the container
// that ran before runs, and what pct was called for.
func TestEndsOfARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	hook := func(text string) func(*testing.T, int32) {
		return func(t *testing.T, ctid int32) {
			n.For(t).SetConf(ctid, strings.Replace(n.Conf(ctid), "hostname:", fmt.Sprintf("hookscript: test:snippets/%d.sh\nhostname:", ctid), 1))
			write(t, filepath.Join(n.Dir(), fmt.Sprintf("run/snippets/%d.sh", ctid)), text, 0o755)
		}
	}
	init := func(text string) func(*testing.T, int32) {
		return func(t *testing.T, ctid int32) {
			write(t, filepath.Join(w.Rootfs(n.Name, ctid), "usr/sbin/init"), text, 0o755)
		}
	}
	line := func(line string) func(*testing.T, int32) {
		return func(t *testing.T, ctid int32) { n.For(t).SetConf(ctid, n.Conf(ctid)+line+"\n") }
	}
	dev := func(path string) func(*testing.T, int32) {
		return func(t *testing.T, ctid int32) {
			n.For(t).SetConf(ctid, strings.Replace(n.Conf(ctid), "hostname:", "dev0: "+path+"\nhostname:", 1))
		}
	}
	write(t, filepath.Join(n.Dir(), "pve/storage.cfg"), "dir: test\n\tpath /run\n\tcontent snippets\n", 0o640)
	n.Must("touch", "/dev/nothing")

	tests := []struct {
		name   string
		before func(t *testing.T, ctid int32) // made while no container runs
		while  func(t *testing.T, ctid int32) // while it runs
		args   []string                       // the CTID is added
		code   int
		says   []string // on stderr; %d is the CTID
		runs   bool
		same   bool // and was not stopped
		calls  string
	}{
		{name: "deaf, by force", before: init(deafInit), args: []string{"restart", "--timeout", "1s"}, runs: true, calls: "shutdown stop start"},
		{name: "deaf, and not by force", before: init(deafInit), args: []string{"restart", "--timeout", "1s", "--no-force"}, code: 1,
			says: []string{"pct shutdown %d: exit status 255: container did not stop", "It still runs. Give it longer (--timeout), or leave out --no-force"},
			runs: true, same: true, calls: "shutdown"},
		{name: "locked by a backup", while: func(t *testing.T, ctid int32) {
			n.For(t).SetConf(ctid, strings.Replace(n.Conf(ctid), "memory:", "lock: backup\nmemory:", 1))
		}, args: []string{"restart"}, code: 1,
			says: []string{`CTID %d is locked by Proxmox (lock: "backup")`, "Only if that has crashed: pct unlock %d on the node."}, runs: true, same: true},
		{name: "lock held by another process", while: func(t *testing.T, ctid int32) { holdLock(t, n, ctid) }, args: []string{"restart"}, code: 1,
			says: []string{"pct shutdown %d: exit status 255: another process holds Proxmox's lock on the conf",
				"can't lock file '/run/lock/lxc/pve-config-%d.lock' - got timeout", "see the tasks of CTID %d in Proxmox"},
			runs: true, same: true, calls: "shutdown"},
		{name: "hookscript refuses", while: hook("#!/bin/sh\necho not today\nexit 2\n"), args: []string{"restart"}, code: 1,
			says: []string{"CTID %d did not start: pct start %d: exit status 255: hookscript of CTID %d failed in its phase pre-start",
				`command '/run/snippets/%d.sh %d pre-start' failed: exit code 2"; "not today"`, "It is stopped. Correct its hookscript (pct config %d on its node names it)"},
			calls: "shutdown start"},
		{name: "hookscript refuses the new conf", before: hook(refusesGPU0), args: []string{"apply"}, code: 1,
			says: []string{"CTID %d did not start with its new conf", "hookscript of CTID %d failed in its phase pre-start", `"no GPU for %d before it is paid"`,
				"is its conf again and it runs with that", "the container runs with its old conf; correct its hookscript, then apply again"},
			runs: true, calls: "shutdown start start"},
		{name: "device missing", while: dev("/dev/nowhere"), args: []string{"restart"}, code: 1,
			says: []string{"device node /dev/nowhere: the node does not have it, and with dev0 in its conf the container could not start again"},
			runs: true, same: true},
		{name: "no device at its path", while: dev("/dev/nothing"), args: []string{"restart"}, code: 1,
			says: []string{"device node /dev/nothing: it is no device, and with dev0 in its conf the container could not start again"},
			runs: true, same: true},
		{name: "LXC cannot start it", while: line("lxc.mount.entry: /nowhere nowhere none bind,create=dir"), args: []string{"restart"}, code: 1,
			says: []string{"CTID %d did not start: pct start %d: exit status 255: LXC could not start the container",
				`No such file or directory - Failed to mount \"/nowhere\"`, "It is stopped. On its node, pct start %d --debug says why"},
			calls: "shutdown start"},
		{name: "dies at once", while: init(deadInit), args: []string{"restart"}, code: 1,
			says:  []string{"CTID %d did not start: CTID %d came up, but its init ended at once", "It is stopped. Look into its file system (pct mount %d on its node)"},
			calls: "shutdown start"},
		{name: "dies at once with the new conf", before: init(diesWithGPU), args: []string{"apply"}, code: 1,
			says: []string{"CTID %d did not start with its new conf (CTID %d came up, but its init ended at once)",
				"the container runs with its old conf; see what the new one puts in the way of its init"},
			runs: true, calls: "shutdown start start"},
		{name: "well", args: []string{"restart"}, runs: true, calls: "shutdown start"},
		{name: "well, with a new conf", args: []string{"apply"}, runs: true, calls: "shutdown start"},
	}
	var fleet []string
	for i, tc := range tests {
		ctid := int32(901 + i)
		fleet = append(fleet, fmt.Sprintf(`"%d": {"gpu_assignment": "0"}`, ctid))
		n.Add(ctid, conf(ctid))
		if tc.before != nil {
			tc.before(t, ctid)
		}
		n.Must("pct", "start", fmt.Sprint(ctid))
	}
	w.setFleet(strings.Join(fleet, ","))
	n.ResetPctCalls()
	for i, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n, ctid := n.For(t), int32(901+i)
			if tc.while != nil {
				tc.while(t, ctid)
			}
			init := n.Must("lxc-info", "-n", fmt.Sprint(ctid), "-p", "-H")
			stdout, stderr, code := w.CLI(append(tc.args, fmt.Sprint(ctid))...)
			if code != tc.code {
				t.Errorf("exit status %d, want %d:\n%s%s", code, tc.code, stdout, stderr)
			}
			for _, words := range tc.says {
				if words = strings.ReplaceAll(words, "%d", fmt.Sprint(ctid)); !strings.Contains(stderr, words) {
					t.Errorf("%q is not on stderr:\n%s", words, stderr)
				}
			}
			now, _, _ := n.Run("lxc-info", "-n", fmt.Sprint(ctid), "-p", "-H")
			if runs := strings.TrimSpace(now) != ""; runs != tc.runs || tc.same && now != init {
				t.Errorf("init is %q and was %q; want it running: %v, the same: %v", now, init, tc.runs, tc.same)
			}
			if got := callsFor(n, ctid); got != tc.calls {
				t.Errorf("calls of pct: %q, want %q", got, tc.calls)
			}
		})
	}
}

// write writes a file, with the folders above it.
func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// holdLock holds Proxmox's lock on a conf until the test ends.
func holdLock(t *testing.T, n *sandboxtest.Node, ctid int32) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(n.Dir(), fmt.Sprintf("run/lock/lxc/pve-config-%d.lock", ctid)), os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
}

// callsFor are the commands of pct for one container since ResetPctCalls, in a line.
func callsFor(n *sandboxtest.Node, ctid int32) string {
	var commands []string
	for _, call := range n.PctCalls() {
		if words := strings.Fields(call); slices.Contains(words, fmt.Sprint(ctid)) {
			commands = append(commands, words[0])
		}
	}
	return strings.Join(commands, " ")
}

// Two restarts at once: one does it, and the other is told that it was done.
func TestTwoRestartsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	n.Add(901, conf(901))
	write(t, filepath.Join(w.Rootfs(n.Name, 901), "usr/sbin/init"), deafInit, 0o755)
	n.Must("pct", "start", "901")
	n.ResetPctCalls()

	first := w.start("restart", "901", "--timeout", "2s")
	first.await("shutting down")
	second := w.start("restart", "901")
	if code := first.wait(); code != 0 {
		t.Errorf("the first: exit status %d\n%s", code, first.output())
	}
	if code := second.wait(); code != 1 || !strings.Contains(second.output(), "CTID 901 was started anew since it was looked at") {
		t.Errorf("the second: exit status %d, want 1\n%s", code, second.output())
	}
	if got, want := callsFor(n, 901), "shutdown stop start"; got != want {
		t.Errorf("calls of pct: %q, want %q", got, want)
	}
	if !n.Running(901) {
		t.Error("901 does not run")
	}
}

// Under Proxmox's HA stack pct only passes on requests: the restart waits until the HA manager has carried them out.
func TestRestartUnderHA(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	resources := filepath.Join(n.Dir(), "pve/ha/resources.cfg")
	write(t, resources, "ct: 901\n\tstate started\n", 0o640)
	w.setFleet(`"901": {"gpu_assignment": "0"}`)
	n.ResetPctCalls()

	apply := w.start("apply")
	for _, state := range []string{"stopped", "started"} {
		eventually(t, "the HA manager is to have it "+state, func() bool {
			b, err := os.ReadFile(resources)
			return err == nil && strings.Contains(string(b), "state "+state)
		})
		if state == "stopped" && !n.Running(901) {
			t.Error("it was stopped past the HA manager")
		}
		n.Must("pct", pct.HACommand)
	}
	if code := apply.wait(); code != 0 {
		t.Errorf("apply: exit status %d\n%s", code, apply.output())
	}
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
	if got, want := callsFor(n, 901), "shutdown start"; got != want {
		t.Errorf("calls of pct: %q, want %q", got, want)
	}

	// Without a quorum ha-manager refuses.
	write(t, filepath.Join(n.Dir(), "pve/.members"), `{"nodename":"pve1","version":3,"cluster":{"name":"lab","version":4,"nodes":3,"quorate":0}}`, 0o640)
	w.refused(1, "pct shutdown 901: exit status 255: Proxmox's HA stack refused the request", "restart", "901")
	w.refused(1, "On its node: ha-manager status.", "restart", "901")
	if !n.Running(901) {
		t.Error("901 does not run")
	}
}
