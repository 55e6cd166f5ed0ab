package e2e_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"phoenix.internal/agent/pveconf"
	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// TestKill ends an agent, a controller or a CLI as kill -9 does, at many moments of an apply. Then every
// conf must be as before or as planned, every container run again once there is an agent, and the next apply
// must finish the job.
func TestKill(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*testing.T){
		"agent":                      func(t *testing.T) { killAgent(t, false) },
		"agent with its pct":         func(t *testing.T) { killAgent(t, true) },
		"controller":                 killController,
		"CLI":                        killCLI,
		"CLI that is the controller": killLocalCLI,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// killAgent kills the agent, alone or with the pct that it runs, as systemd does by default.
func killAgent(t *testing.T, withPct bool) {
	k := newKilling(t)
	k.w.StartController()
	moments := []moment{
		{"at once", k.now},
		{"revision kept", k.newRevision},
		{"conf written", k.confWritten},
		{"edit recorded", k.recorded("unproven")},
		{"restart intended", k.recorded("restart")},
		{"shutting down", k.pct("shutdown 901")},
		{"starting", k.pct("start 901")},
		{"restarted", k.says("901 on pve1: restart: done")},
		{"verifying the third", k.says("903 on pve1: verify devices: begun")},
		{"restarting the fourth", k.says("904 on pve1: restart: begun")},
	}
	if withPct {
		moments = moments[4:7]
	}
	for _, slow := range []bool{false, true} {
		if k.slowStops(slow); slow {
			moments = slices.DeleteFunc(moments, func(m moment) bool {
				return m.name != "shutting down" && m.name != "starting" && m.name != "verifying the third"
			})
		}
		for _, m := range moments {
			k.round(m.name, func() {
				apply := k.apply(m)
				var pct []int
				if withPct {
					pct = k.pctOfAgent()
					t.Logf("%s: %d processes of pct are killed", m.name, len(pct))
				}
				k.n.SignalAgent(syscall.SIGKILL)
				for _, pid := range pct {
					_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
				}
				k.confsMeant()
				k.n.StartAgent()
				k.allRun()
				apply.wait() // well or not: the controller may have got over it
			})
		}
	}
}

func killController(t *testing.T) {
	k := newKilling(t)
	k.w.StartController()
	for _, m := range []moment{
		{"at once", k.now},
		{"planned", k.says("4 containers")},
		{"patching", k.says("901 on pve1: patch conf: begun")},
		{"conf written", k.confWritten},
		{"restarting", k.says("901 on pve1: restart: begun")},
		{"starting", k.pct("start 901")},
		{"verifying", k.says("901 on pve1: verify devices: begun")},
		{"restarting the fourth", k.says("904 on pve1: restart: begun")},
	} {
		k.round(m.name, func() {
			apply := k.apply(m)
			k.w.SignalController(syscall.SIGKILL)
			apply.wait()
			k.confsMeant()
			k.allRun()
			k.w.StartController()
		})
	}
}

func killCLI(t *testing.T) {
	k := newKilling(t)
	k.w.StartController()
	for _, m := range []moment{
		{"at once", k.now},
		{"patching", k.says("901 on pve1: patch conf: begun")},
		{"starting", k.pct("start 901")},
	} {
		k.round(m.name, func() {
			k.apply(m).kill()
			k.confsMeant()
			k.allRun()
		})
	}
}

func killLocalCLI(t *testing.T) {
	k := newKilling(t)
	k.flags = k.w.local()
	for _, m := range []moment{
		{"at once", k.now},
		{"patching", k.says("901 on pve1: patch conf: begun")},
		{"conf written", k.confWritten},
		{"restarting", k.says("901 on pve1: restart: begun")},
		{"shutting down", k.pct("shutdown 901")},
		{"starting", k.pct("start 901")},
		{"verifying", k.says("902 on pve1: verify devices: begun")},
		{"restarting the fourth", k.says("904 on pve1: restart: begun")},
	} {
		k.round(m.name, func() {
			k.apply(m).kill()
			k.confsMeant()
			k.allRun()
		})
	}
}

// A killing applies two fleet files in turn.
type killing struct {
	t     *testing.T
	w     *world
	n     *sandboxtest.Node
	flags []string // of phoenix-cli

	turn      int // which fleet file is applied
	planned   [2]map[string]string
	before    map[string]string // confs at the begin of the round
	revisions int
	running   *process
}

var killFleets = [2]struct {
	entries string
	want    map[int32]string
}{
	{
		`"901": {"gpu_assignment": "0"}, "902": {"gpu_assignment": "1", "passthrough_mode": "native"},
			"903": {"gpu_assignment": "0,1"}, "904": {"gpu_assignment": "none"}`,
		map[int32]string{
			901: "nvidia0 nvidia1=ENOENT" + control, 902: "nvidia0=ENOENT nvidia1" + control,
			903: "nvidia0 nvidia1" + control, 904: "nvidia0=ENOENT nvidia1=ENOENT" + noControl,
		},
	},
	{
		`"901": {"gpu_assignment": "0,1", "passthrough_mode": "native"}, "902": {"gpu_assignment": "none"},
			"903": {"gpu_assignment": "1"}, "904": {"gpu_assignment": "0"}`,
		map[int32]string{
			901: "nvidia0 nvidia1" + control, 902: "nvidia0=ENOENT nvidia1=ENOENT" + noControl,
			903: "nvidia0=ENOENT nvidia1" + control, 904: "nvidia0 nvidia1=ENOENT" + control,
		},
	},
}

// newKilling makes the containers and learns what the confs are to be, from an apply of each fleet file that
// nobody disturbs.
func newKilling(t *testing.T) *killing {
	t.Helper()
	k := &killing{t: t, w: newNodes(t, sandboxtest.Options{})}
	k.n = k.w.nodes[0]
	for ctid := int32(901); ctid <= 904; ctid++ {
		startWith(k.n, ctid, conf(ctid))
	}
	for turn, fleet := range killFleets {
		k.w.setFleet(fleet.entries)
		local := append(k.w.local(), "--state-dir", t.TempDir()) // of this CLI, not of the one under test
		k.w.cli(append(local, "apply")...)
		k.planned[turn] = k.w.confs()
	}
	return k
}

// A moment is when to kill.
type moment struct {
	name    string
	reached func() bool
}

func (k *killing) now() bool { return true }

func (k *killing) says(words string) func() bool {
	return func() bool { return strings.Contains(k.running.output(), words) }
}

func (k *killing) pct(call string) func() bool {
	return func() bool {
		return slices.ContainsFunc(k.n.PctCalls(), func(c string) bool { return strings.HasPrefix(c, call) })
	}
}

func (k *killing) confWritten() bool {
	return k.n.Conf(901) != k.before["pve1/901.conf"]
}

func (k *killing) recorded(kind string) func() bool {
	return func() bool {
		_, err := os.Stat(filepath.Join(k.n.Dir(), "var-lib-phoenix", kind, "901.json"))
		return err == nil
	}
}

func (k *killing) newRevision() bool { return k.countRevisions() > k.revisions }

func (k *killing) countRevisions() int {
	files, err := filepath.Glob(filepath.Join(k.n.Dir(), "var-lib-phoenix", "revisions", "901", "*"))
	if err != nil {
		k.t.Fatal(err)
	}
	return len(files)
}

// slowStops makes Proxmox slow to rewrite the conf after a stop.
func (k *killing) slowStops(slow bool) {
	k.t.Helper()
	if slow {
		k.n.Must("sh", "-c", "echo 100ms >/run/pct-post-stop-delay")
	} else {
		k.n.Must("rm", "-f", "/run/pct-post-stop-delay")
	}
}

// apply begins an apply and returns at the moment.
func (k *killing) apply(m moment) *process {
	k.t.Helper()
	k.running = k.w.start(append(k.flags, "apply")...)
	eventually(k.t, m.name, m.reached)
	return k.running
}

// round runs kill in the middle of an apply of the other fleet file, and looks whether the next apply
// finishes the job.
func (k *killing) round(moment string, kill func()) {
	k.t.Helper()
	k.turn = 1 - k.turn
	k.w.setFleet(killFleets[1-k.turn].entries)
	k.before, k.revisions = k.w.confs(), k.countRevisions()
	k.n.ResetPctCalls()
	kill()
	// A run that the controller has taken up is not begun again beside itself; and it may take up to two
	// seconds to see that an agent is there again.
	var out string
	eventually(k.t, moment+": the next apply succeeds", func() bool {
		stdout, stderr, code := k.w.CLI(append(k.flags, "apply")...)
		if out = stdout + stderr; code == 0 {
			return true
		}
		if !strings.Contains(out, "works on CTID") && !strings.Contains(out, "cannot be reached") {
			k.t.Fatalf("%s: the next apply: exit status %d\n%s\nthe one that was cut off:\n%s", moment, code, out, k.running.output())
		}
		return false
	})
	for ctid, want := range killFleets[1-k.turn].want {
		reaches(k.t, k.n, ctid, want)
	}
	if got := k.w.confs(); !maps.Equal(got, k.planned[1-k.turn]) {
		k.t.Errorf("%s: confs are\n%v, want\n%v", moment, got, k.planned[1-k.turn])
	}
	k.w.noTemporaryFiles()
	k.w.inSync(k.flags...)
	starts := map[string]int{}
	for _, call := range k.n.PctCalls("start") {
		starts[call]++
	}
	k.t.Logf("%s: %v", moment, starts)
	if k.t.Failed() {
		k.t.Fatalf("%s: the apply that was cut off:\n%s\nthe next:\n%s", moment, k.running.output(), out)
	}
}

// confsMeant checks that each conf is what it was, or what is planned, or how Proxmox writes one of these.
func (k *killing) confsMeant() {
	k.t.Helper()
	for name, got := range k.w.confs() {
		meant := []string{k.before[name], k.planned[1-k.turn][name]}
		for _, conf := range meant {
			canonical, err := pveconf.Parse([]byte(conf)).Canonical()
			if err != nil {
				k.t.Fatal(err)
			}
			meant = append(meant, string(canonical))
		}
		if !slices.Contains(meant, got) {
			k.t.Errorf("%s is\n%s, want what it was:\n%s, or what is planned:\n%s", name, got, meant[0], meant[1])
		}
	}
}

// allRun waits until every container runs.
func (k *killing) allRun() {
	k.t.Helper()
	for ctid := int32(901); ctid <= 904; ctid++ {
		eventually(k.t, fmt.Sprintf("CTID %d runs again", ctid), func() bool { return k.n.Running(ctid) })
	}
}

// pctOfAgent are the pct and lxc-stop that the agent runs now, which systemd would end with it. What else pct
// starts belongs to the container's own unit.
func (k *killing) pctOfAgent() []int {
	k.t.Helper()
	agent, err := k.w.AgentPID(k.n.Name)
	if err != nil {
		k.t.Fatal(err)
	}
	var pids []int
	for _, pct := range childrenOf(agent) {
		if nameOf(pct) == "pct" {
			pids = append(pids, pct)
		}
		for _, pid := range childrenOf(pct) {
			if nameOf(pid) == "lxc-stop" {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// childrenOf are the children of a process, of all its threads; none if it has ended.
func childrenOf(pid int) []int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var pids []int
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for word := range strings.FieldsSeq(string(b)) {
			if child, err := strconv.Atoi(word); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// nameOf is the name of a process, empty if it has ended.
func nameOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
