package pct_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/deploy/sandbox/pct"
	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// conf is an unprivileged container as Proxmox writes it; lines are added where they belong.
func conf(lines ...string) string {
	return "arch: amd64\nhostname: guest\nmemory: 64\nostype: debian\nrootfs: local:vm-disk-0,size=1G\nunprivileged: 1\n" + raw(lines)
}

func privileged(lines ...string) string {
	return "arch: amd64\nhostname: guest\nmemory: 64\nostype: debian\nrootfs: local:vm-disk-0,size=1G\n" + raw(lines)
}

func raw(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// TestPct runs everything on one node, each subtest with containers of its own.
func TestPct(t *testing.T) {
	s := sandboxtest.Up(t, sandboxtest.Options{Nodes: 2})
	n := s.Node(1)
	for name, test := range map[string]func(*testing.T, *sandboxtest.Node){
		"texts and exit statuses":                        texts,
		"life of a container":                            life,
		"shutdown that the container ignores":            stubborn,
		"lock property":                                  lockProperty,
		"reboot under a lock leaves it stopped":          rebootLocked,
		"flock is waited for":                            flock,
		"pending is applied at stop":                     pendingAtStop,
		"pending is applied at start":                    pendingAtStart,
		"each stop rewrites the conf, without the flock": rewriteAtStop,
		"devN":                                       nativeDevice,
		"devN with ids and a map":                    nativeIDs,
		"devN of a missing device":                   nativeMissing,
		"devN and a raw entry for the same path":     nativeAndRaw,
		"privileged: rules decide":                   privilegedRules,
		"unprivileged: only what is bound exists":    unprivilegedDevices,
		"optional entry with a missing source":       optionalMissing,
		"reboot from inside takes the new conf":      rebootInside,
		"set and unlock":                             setAndUnlock,
		"config of sections":                         configSections,
		"post-stop can be slow":                      slowPostStop,
		"exec passes the command's status on":        execStatus,
		"empty raw hook line removes Proxmox's hook": emptyHook,
		"hookscript refuses":                         hookscript,
		"requests to the HA manager":                 highAvailability,
		"no quorum":                                  noQuorum,
	} {
		t.Run(name, func(t *testing.T) { test(t, n.For(t)) })
	}
	t.Run("the same CTID on two nodes", func(t *testing.T) { sameCTID(t, s.Node(1).For(t), s.Node(2).For(t)) })
}

// expect runs pct and compares everything it says.
func expect(t *testing.T, n *sandboxtest.Node, args, stdout, stderr string, code int) {
	t.Helper()
	gotOut, gotErr, gotCode := n.Run(append([]string{"pct"}, strings.Fields(args)...)...)
	if gotOut != stdout || gotErr != stderr || gotCode != code {
		t.Errorf("pct %s: got stdout %q, stderr %q, status %d; want %q, %q, %d", args, gotOut, gotErr, gotCode, stdout, stderr, code)
	}
}

func texts(t *testing.T, n *sandboxtest.Node) {
	n.Add(110, conf())
	n.Add(111, conf("template: 1"))
	for _, c := range []struct {
		args, stderr string
		code         int
	}{
		{"start 999", "Configuration file 'nodes/pve1/lxc/999.conf' does not exist\n", 2},
		{"status 999", "Configuration file 'nodes/pve1/lxc/999.conf' does not exist\n", 2},
		{"stop 110", "CT 110 not running\n", 255},
		{"shutdown 110", "CT 110 not running\n", 255},
		{"reboot 110", "CT 110 not running\n", 255},
		{"start 111", "you can't start a CT if it's a template\n", 255},
		{"start", "400 not enough arguments\npct start <vmid> [OPTIONS]\n", 255},
		{"start 99", "400 Parameter verification failed.\nvmid: invalid format - value does not look like a valid VM ID\npct start <vmid> [OPTIONS]\n", 255},
		{"start 110 --frob 1", "Unknown option: frob\n400 unable to parse option\npct start <vmid> [OPTIONS]\n", 255},
		{"frob 110", "ERROR: unknown command 'pct frob'\n", 255},
		{"unlock 110", "no lock found trying to remove any lock\n", 255},
	} {
		expect(t, n, c.args, "", c.stderr, c.code)
	}
	// A flag takes the next word as its value, the CTID too.
	expect(t, n, "status --verbose 110", "", "400 not enough arguments\npct status <vmid> [OPTIONS]\n", 255)
}

func life(t *testing.T, n *sandboxtest.Node) {
	n.Add(120, conf())
	n.ResetPctCalls()
	expect(t, n, "status 120", "status: stopped\n", "", 0)
	expect(t, n, "start 120", "", "", 0)
	expect(t, n, "status 120", "status: running\n", "", 0)
	expect(t, n, "start 120", "", "CT 120 already running\n", 255)
	if out := n.Must("pct", "list"); !strings.Contains(out, "120        running                 guest               \n") {
		t.Errorf("pct list: no line for 120 in\n%s", out)
	}
	cgroup := n.Must("sh", "-c", "cat /proc/$(lxc-info -n 120 -pH)/cgroup")
	if !strings.Contains(cgroup, "0::/lxc/120/ns\n") {
		t.Errorf("cgroup of init is %q, want one that ends in 0::/lxc/120/ns", cgroup)
	}
	expect(t, n, "shutdown 120 --timeout 10", "", "", 0)
	expect(t, n, "status 120", "status: stopped\n", "", 0)
	n.Must("mkdir", "-p", "/sys/fs/cgroup/lxc/120/ns") // as a command that outlived the container leaves it
	expect(t, n, "start 120", "", "", 0)
	expect(t, n, "reboot 120", "", "", 0)
	expect(t, n, "stop 120", "", "", 0)
	expect(t, n, "status 120", "status: stopped\n", "", 0)
	want := "status 120|start 120|status 120|start 120|list|shutdown 120 --timeout 10|status 120|start 120|reboot 120|stop 120|status 120"
	if got := strings.Join(n.PctCalls(), "|"); got != want {
		t.Errorf("counted calls %q, want %q", got, want)
	}
}

func stubborn(t *testing.T, n *sandboxtest.Node) {
	n.Add(130, conf("lxc.signal.halt: SIGUSR1")) // its init does not know that one
	n.Must("pct", "start", "130")
	n.Attach(130, "kill -USR1 1") // nothing happens: the kernel keeps init from signals without a handler
	expect(t, n, "shutdown 130 --timeout 1", "", "container did not stop\n", 255)
	expect(t, n, "status 130", "status: running\n", "", 0)
	expect(t, n, "shutdown 130 --timeout 1 --forceStop 1", "", "", 0)
	expect(t, n, "status 130", "status: stopped\n", "", 0)
}

func lockProperty(t *testing.T, n *sandboxtest.Node) {
	n.Add(140, conf("lock: backup"))
	expect(t, n, "start 140", "", "CT is locked (backup)\n", 255)
	expect(t, n, "set 140 --memory 128", "", "CT is locked (backup)\n", 255)
	expect(t, n, "start 140 --skiplock 1", "", "", 0)
	expect(t, n, "unlock 140", "", "", 0)
	expect(t, n, "stop 140", "", "", 0)
	expect(t, n, "start 140", "", "", 0)
	n.SetConf(140, conf("lock: snapshot"))
	expect(t, n, "stop 140", "", "CT is locked (snapshot)\n", 255)
	expect(t, n, "shutdown 140", "", "CT is locked (snapshot)\n", 255)
	expect(t, n, "status 140", "status: running\n", "", 0)
	n.SetConf(140, conf("lock: mounted"))
	expect(t, n, "shutdown 140", "", "CT is locked (mounted)\n", 255)
	expect(t, n, "stop 140", "", "", 0)
}

func rebootLocked(t *testing.T, n *sandboxtest.Node) {
	n.Add(150, conf())
	n.Must("pct", "start", "150")
	n.SetConf(150, conf("lock: backup"))
	_, stderr, code := n.Run("pct", "reboot", "150")
	if want := "startup for container '150' failed\n"; stderr != want || code != 255 {
		t.Errorf("got %q, status %d; want %q, 255", stderr, code, want)
	}
	expect(t, n, "status 150", "status: stopped\n", "", 0)
}

func flock(t *testing.T, n *sandboxtest.Node) {
	n.Add(160, conf())
	lock, err := os.OpenFile(filepath.Join(n.Dir(), "run/lock/lxc/pve-config-160.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	cmd, started := n.Command(t.Context(), "pct", "start", "160")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started()
	waiting := make([]byte, len("trying to acquire lock...\n"))
	if _, err := stdout.Read(waiting); err != nil || string(waiting) != "trying to acquire lock...\n" {
		t.Fatalf("got %q, %v while the lock is held", waiting, err)
	}
	expect(t, n, "status 160", "status: stopped\n", "", 0) // takes no lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	expect(t, n, "status 160", "status: running\n", "", 0)
}

const pending = "\n[pve:pending]\ndelete: hostname\nmemory: 128\n"

func pendingAtStop(t *testing.T, n *sandboxtest.Node) {
	n.Add(170, conf())
	n.Must("pct", "start", "170")
	n.SetConf(170, conf()+pending)
	n.Must("pct", "stop", "170")
	want := "arch: amd64\nmemory: 128\nostype: debian\nrootfs: local:vm-disk-0,size=1G\nunprivileged: 1\n"
	if got := n.Conf(170); got != want {
		t.Errorf("after the stop:\n%s\nwant:\n%s", got, want)
	}
}

func pendingAtStart(t *testing.T, n *sandboxtest.Node) {
	n.Add(171, conf()+pending)
	n.Must("pct", "start", "171")
	want := "arch: amd64\nmemory: 128\nostype: debian\nrootfs: local:vm-disk-0,size=1G\nunprivileged: 1\n"
	if got := n.Conf(171); got != want {
		t.Errorf("after the start:\n%s\nwant:\n%s", got, want)
	}
	if out, _, _ := n.Attach(171, "hostname"); out != "CT171\n" {
		t.Errorf("host name is %q, want Proxmox's default", out)
	}
}

func rewriteAtStop(t *testing.T, n *sandboxtest.Node) {
	n.Add(180, conf())
	n.Must("pct", "start", "180")
	n.SetConf(180, "unprivileged: yes\n# note: x\narch: amd64\nlxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n"+
		"bad line\nostype: debian\nrootfs: local:vm-disk-0,size=1G\n")
	lock, err := os.OpenFile(filepath.Join(n.Dir(), "run/lock/lxc/pve-config-180.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	n.Must("lxc-stop", "-k", "-n", "180")
	want := "# note%3A x\narch: amd64\nostype: debian\nrootfs: local:vm-disk-0,size=1G\nunprivileged: 1\n" +
		"lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n"
	sandboxtest.Eventually(t, "the conf is rewritten while the lock is held", func() bool { return n.Conf(180) == want })
	if fi, err := os.Stat(n.ConfPath(180)); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("mode is %v, %v; want 0640", fi.Mode(), err)
	}
}

func nativeDevice(t *testing.T, n *sandboxtest.Node) {
	n.Add(190, conf("dev0: /dev/nvidia0,mode=0666", "dev1: /dev/nvidia-uvm", "dev2: /dev/nvidia-caps/nvidia-cap2,deny-write=1"))
	n.Must("pct", "start", "190")
	out, _, _ := n.Attach(190, "stat -c '%n %F %t:%T %a %u:%g' /dev/nvidia0 /dev/nvidia-uvm /dev/nvidia-caps/nvidia-cap2")
	want := fmt.Sprintf("/dev/nvidia0 character special file %x:0 666 0:0\n/dev/nvidia-uvm character special file %x:0 660 0:0\n"+
		"/dev/nvidia-caps/nvidia-cap2 character special file %x:2 660 0:0\n", n.Majors.NVIDIA, n.Majors.UVM, n.Majors.Caps)
	if out != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
	if got := n.Open(190, "/dev/nvidia0"); got != "ENXIO" {
		t.Errorf("open nvidia0: %s, want ENXIO", got)
	}
	config, err := os.ReadFile(filepath.Join(n.Dir(), "var-lib-lxc/190/config"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		fmt.Sprintf("lxc.cgroup2.devices.allow = c %d:0 rw\n", n.Majors.NVIDIA),
		fmt.Sprintf("lxc.cgroup2.devices.allow = c %d:2 r\nlxc.cgroup2.devices.deny = c %d:2 w\n", n.Majors.Caps, n.Majors.Caps),
	} {
		if !strings.Contains(string(config), line) {
			t.Errorf("no line %q in the LXC config:\n%s", line, config)
		}
	}
}

func nativeIDs(t *testing.T, n *sandboxtest.Node) {
	n.Add(191, conf("dev0: /dev/nvidia0,gid=44,uid=7,mode=0640", "lxc.idmap: u 0 100000 65536", "lxc.idmap: g 0 100000 44",
		"lxc.idmap: g 44 44 1", "lxc.idmap: g 45 100045 65491"))
	n.Must("pct", "start", "191")
	if out, _, _ := n.Attach(191, "stat -c '%a %u:%g' /dev/nvidia0"); out != "640 7:44\n" {
		t.Errorf("got %q, want 640 7:44", out)
	}
}

func nativeMissing(t *testing.T, n *sandboxtest.Node) {
	n.Add(192, conf("dev0: /dev/nvidia7"))
	expect(t, n, "start 192", "", "Device /dev/nvidia7 does not exist\n", 255)
	expect(t, n, "status 192", "status: stopped\n", "", 0)
	expect(t, n, "set 192 --memory 128", "", "Device /dev/nvidia7 does not exist\n", 255)
	if got := n.Conf(192); !strings.Contains(got, "memory: 128\n") {
		t.Errorf("pct set reports the missing device, but must have written the conf:\n%s", got)
	}
}

func nativeAndRaw(t *testing.T, n *sandboxtest.Node) {
	n.Add(193, conf("dev0: /dev/nvidia0", "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file"))
	stdout, stderr, code := n.Run("pct", "start", "193")
	if stderr != "startup for container '193' failed\n" || code != 255 || !strings.Contains(stdout, "Failed to run autodev hooks") {
		t.Errorf("got stdout %q, stderr %q, status %d", stdout, stderr, code)
	}
	expect(t, n, "status 193", "status: stopped\n", "", 0)
}

func privilegedRules(t *testing.T, n *sandboxtest.Node) {
	gpu := n.Majors.NVIDIA
	n.Add(200, privileged(fmt.Sprintf("lxc.cgroup2.devices.allow: c %d:0 rwm", gpu),
		"lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
		"lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file"))
	n.Must("pct", "start", "200")
	if _, stderr, code := n.Attach(200, fmt.Sprintf("mknod /tmp/nvidia1 c %d 1 && mknod /tmp/nvidia0 c %d 0", gpu, gpu)); code != 0 {
		t.Fatalf("a privileged container may make any node: %s", stderr)
	}
	for path, want := range map[string]string{
		"/dev/nvidia0":   "ENXIO",  // bound and allowed
		"/tmp/nvidia0":   "ENXIO",  // its own node, allowed
		"/dev/nvidiactl": "EPERM",  // bound, no rule
		"/tmp/nvidia1":   "EPERM",  // its own node, no rule
		"/dev/nvidia1":   "ENOENT", // not bound
	} {
		if got := n.Open(200, path); got != want {
			t.Errorf("open %s: %s, want %s", path, got, want)
		}
	}
}

func unprivilegedDevices(t *testing.T, n *sandboxtest.Node) {
	gpu := n.Majors.NVIDIA
	n.Add(201, conf(fmt.Sprintf("lxc.cgroup2.devices.deny: c %d:1 rwm", gpu),
		"lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file",
		"lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file"))
	n.Must("pct", "start", "201")
	for path, want := range map[string]string{
		"/dev/nvidia0":    "ENXIO",  // allowed without any rule
		"/dev/nvidia1":    "EPERM",  // denied by the rule
		"/dev/nvidia-uvm": "ENOENT", // not bound
	} {
		if got := n.Open(201, path); got != want {
			t.Errorf("open %s: %s, want %s", path, got, want)
		}
	}
	if _, stderr, code := n.Attach(201, fmt.Sprintf("mknod /tmp/nvidia0 c %d 0", gpu)); code == 0 {
		t.Errorf("it made a device node: %s", stderr)
	}
	if out := n.Must("sh", "-c", "grep ^Uid: /proc/$(lxc-info -n 201 -pH)/status"); !strings.HasPrefix(out, "Uid:\t100000") {
		t.Errorf("its root is %q, want host id 100000", out)
	}
}

func optionalMissing(t *testing.T, n *sandboxtest.Node) {
	n.Add(202, conf("lxc.mount.entry: /dev/nvidia7 dev/nvidia7 none bind,optional,create=file"))
	n.Must("pct", "start", "202")
	if out, _, _ := n.Attach(202, "stat -c '%F %a' /dev/nvidia7"); out != "regular empty file 0\n" {
		t.Errorf("got %q, want LXC's empty regular file", out)
	}
	if got := n.Open(202, "/dev/nvidia7"); got != "regular file" {
		t.Errorf("open: %s", got)
	}
}

func rebootInside(t *testing.T, n *sandboxtest.Node) {
	n.Add(210, conf())
	n.Must("pct", "start", "210")
	first := n.Must("lxc-info", "-n", "210", "-pH")
	n.SetConf(210, conf("lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file"))
	n.Attach(210, "reboot -f")
	sandboxtest.Eventually(t, "it runs with another init", func() bool {
		again, _, _ := n.Run("lxc-info", "-n", "210", "-pH")
		return again != "" && again != first && n.Running(210)
	})
	if got := n.Open(210, "/dev/nvidia0"); got != "ENXIO" {
		t.Errorf("open nvidia0: %s, want ENXIO", got)
	}
}

func setAndUnlock(t *testing.T, n *sandboxtest.Node) {
	n.Add(220, conf())
	expect(t, n, "set 220 --memory 128 --tags gpu;ml", "", "", 0)
	expect(t, n, "set 220 --digest 0000 --memory 64", "",
		"detected modified configuration - file changed by other user? Try again.\n", 255)
	n.Must("pct", "start", "220")
	expect(t, n, "set 220 --tags x --features nesting=1 --delete nameserver", "", "", 0)
	want := "arch: amd64\nhostname: guest\nmemory: 128\nostype: debian\nrootfs: local:vm-disk-0,size=1G\ntags: x\nunprivileged: 1\n" +
		"\n[pve:pending]\ndelete: nameserver\nfeatures: nesting=1\n"
	if got := n.Conf(220); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	expect(t, n, "config 220", "arch: amd64\nfeatures: nesting=1\nhostname: guest\nmemory: 128\nostype: debian\n"+
		"rootfs: local:vm-disk-0,size=1G\ntags: x\nunprivileged: 1\n", "", 0)
	n.Must("pct", "stop", "220")
	want = "arch: amd64\nfeatures: nesting=1\nhostname: guest\nmemory: 128\nostype: debian\nrootfs: local:vm-disk-0,size=1G\ntags: x\nunprivileged: 1\n"
	if got := n.Conf(220); got != want {
		t.Errorf("after the stop got\n%s\nwant\n%s", got, want)
	}
}

func configSections(t *testing.T, n *sandboxtest.Node) {
	n.Add(225, "# notes: 50%\n"+conf("lxc.autodev: 1")+"\n[pve:pending]\ndelete: hostname\nmemory: 128\n\n[old]\n#before\narch: i386\n")
	const current = "arch: amd64\ndescription:  notes%3A 50%25%0A\nhostname: guest\nmemory: 64\nostype: debian\n" +
		"rootfs: local:vm-disk-0,size=1G\nunprivileged: 1\nlxc.autodev: 1\n"
	const merged = "arch: amd64\ndescription:  notes%3A 50%25%0A\nmemory: 128\nostype: debian\n" +
		"rootfs: local:vm-disk-0,size=1G\nunprivileged: 1\nlxc.autodev: 1\n"
	expect(t, n, "config 225", merged, "", 0)
	expect(t, n, "config 225 --current", current, "", 0)
	expect(t, n, "config 225 --snapshot old", "arch: i386\ndescription: before%0A\n", "", 0)
	expect(t, n, "config 225 --snapshot new", "", "snapshot 'new' does not exist\n", 255)
}

// Between the end of the processes and the rewrite `pct status` says stopped already, but `pct stop` returns later.
func slowPostStop(t *testing.T, n *sandboxtest.Node) {
	n.Add(245, conf())
	n.Must("pct", "start", "245")
	n.SetConf(245, "onboot: yes\n"+conf())
	delay := filepath.Join(n.Dir(), pct.PostStopDelayFile)
	if err := os.WriteFile(delay, []byte("400ms\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(delay)
	cmd, started := n.Command(t.Context(), "pct", "stop", "245")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started()
	sandboxtest.Eventually(t, "it counts as stopped", func() bool { return !n.Running(245) })
	if got, want := n.Conf(245), "onboot: yes\n"+conf(); got != want {
		t.Errorf("rewritten already:\n%s", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, want := n.Conf(245), "arch: amd64\nhostname: guest\nmemory: 64\nonboot: 1\nostype: debian\nrootfs: local:vm-disk-0,size=1G\nunprivileged: 1\n"; got != want {
		t.Errorf("after pct stop:\n%s\nwant:\n%s", got, want)
	}
}

func execStatus(t *testing.T, n *sandboxtest.Node) {
	n.Add(230, conf())
	_, stderr, code := n.Run("pct", "exec", "230", "--", "true")
	if want := "container '230' not running!\n"; stderr != want || code == 0 {
		t.Errorf("stopped: got %q, status %d; want %q", stderr, code, want)
	}
	n.Must("pct", "start", "230")
	stdout, _, code := n.Run("pct", "exec", "230", "--", "sh", "-c", "echo out; exit 7")
	if stdout != "out\n" || code != 7 {
		t.Errorf("got %q, status %d; want out, 7", stdout, code)
	}
}

func emptyHook(t *testing.T, n *sandboxtest.Node) {
	n.Add(240, conf("lxc.hook.post-stop:"))
	n.Must("pct", "start", "240")
	before := "onboot: yes\n" + n.Conf(240)
	n.SetConf(240, before)
	n.Must("pct", "stop", "240")
	if got := n.Conf(240); got != before {
		t.Errorf("without the hook nothing rewrites the conf; got\n%s", got)
	}
}

func hookscript(t *testing.T, n *sandboxtest.Node) {
	for path, text := range map[string]string{
		"pve/storage.cfg":       "dir: local\n\tpath /var/lib/vz\n\ndir: test\n\tpath /run\n",
		"run/snippets/no.sh":    "#!/bin/sh\necho \"$1 $2\"\nexit 7\n",
		"run/snippets/maybe.sh": "#!/bin/sh\nexit 0\n",
	} {
		path = filepath.Join(n.Dir(), path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.Add(260, conf("hookscript: test:snippets/no.sh"))
	expect(t, n, "start 260", "260 pre-start\n",
		"hookscript error for 260 on pre-start: command '/run/snippets/no.sh 260 pre-start' failed: exit code 7\n", 255)
	n.Add(261, conf("hookscript: test:snippets/maybe.sh"))
	expect(t, n, "start 261", "", "", 0)
}

func highAvailability(t *testing.T, n *sandboxtest.Node) {
	resources := filepath.Join(n.Dir(), "pve/ha/resources.cfg")
	if err := os.WriteFile(resources, []byte("vm: 100\n\nct: 270\n\tstate stopped\n\nct: 271\n\tstate ignored\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	n.Add(270, conf())
	n.Add(271, conf())
	expect(t, n, "start 271", "", "", 0)
	expect(t, n, "start 270", "Requesting HA start for CT 270\n", "", 0)
	if n.Running(270) {
		t.Error("it was started past the HA manager")
	}
	n.Must("pct", pct.HACommand)
	expect(t, n, "shutdown 270", "Requesting HA stop for CT 270\n", "", 0)
	if !n.Running(270) {
		t.Error("it was stopped past the HA manager, or not started by it")
	}
	n.Must("pct", pct.HACommand)
	if n.Running(270) {
		t.Error("the HA manager did not stop it")
	}
	b, err := os.ReadFile(resources)
	if want := "vm: 100\n\nct: 270\n\tstate stopped\n\nct: 271\n\tstate ignored\n"; err != nil || string(b) != want {
		t.Errorf("%s holds %q, %v; want %q", resources, b, err, want)
	}
}

func noQuorum(t *testing.T, n *sandboxtest.Node) {
	n.Add(250, conf())
	members := filepath.Join(n.Dir(), "pve/.members")
	old, err := os.ReadFile(members)
	if err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(members, old, 0o644)
	if err := os.WriteFile(members, []byte(`{"nodename":"pve1","version":3,"cluster":{"name":"lab","version":4,"nodes":3,"quorate":0}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	expect(t, n, "start 250", "", "cluster not ready - no quorum?\n", 255)
}

func sameCTID(t *testing.T, a, b *sandboxtest.Node) {
	for _, n := range []*sandboxtest.Node{a, b} {
		n.Add(300, conf("hostname: on-"+n.Name))
		n.Must("pct", "start", "300")
	}
	for _, n := range []*sandboxtest.Node{a, b} {
		if out, _, _ := n.Attach(300, "hostname"); out != "on-"+n.Name+"\n" {
			t.Errorf("%s: host name is %q", n.Name, out)
		}
	}
	start := time.Now()
	a.Must("pct", "shutdown", "300", "--timeout", "30")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a shutdown took %v", took)
	}
	if a.Running(300) || !b.Running(300) {
		t.Error("stopping 300 on pve1 must not stop 300 on pve2")
	}
}
