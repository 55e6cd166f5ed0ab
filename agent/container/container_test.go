package container_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pct"
)

const plain = `arch: amd64
hostname: trainer
memory: 512
ostype: debian
rootfs: local:subvol-901-disk-0,size=8G
unprivileged: 1
`

const withGPU0 = plain + `lxc.cgroup2.devices.allow: c 195:0 rwm
lxc.cgroup2.devices.allow: c 195:255 rwm
lxc.cgroup2.devices.allow: c 511:0 rwm
lxc.cgroup2.devices.allow: c 511:1 rwm
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file
`

func newNode(t *testing.T) *agenttest.Node {
	return agenttest.New(t, agenttest.Options{GPUs: 2})
}

func index(i int) container.Selector { return container.Selector{Index: &i} }

func give(gpus ...int) container.SetPassthrough {
	op := container.SetPassthrough{Mode: passthrough.ModeRaw}
	for _, g := range gpus {
		op.GPUs = append(op.GPUs, index(g))
	}
	return op
}

var tester = confstore.Author{Who: "tester", Why: "test"}

func patch(t *testing.T, n *agenttest.Node, ops ...container.Operation) confstore.Result {
	t.Helper()
	res, err := n.Manager.Patch(t.Context(), 901, "", false, tester, ops...)
	if err != nil {
		t.Fatalf("patch: %v", err)
	}
	return res
}

func get(t *testing.T, n *agenttest.Node) container.Container {
	t.Helper()
	c, _, err := n.Manager.Get(t.Context(), 901)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func start(t *testing.T, n *agenttest.Node) {
	t.Helper()
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
}

// gpus are the indexes of a passthrough's GPUs.
func gpus(p *passthrough.Passthrough) []int {
	var out []int
	if p != nil {
		for _, g := range p.GPUs {
			out = append(out, g.Index)
		}
	}
	return out
}

func silent(container.Phase, string) {}

// The shell scripts had two writers: the second found the entries there, saw nothing to change, and skipped the restart,
// so the container never got its devices.
func TestFailure01_SecondWriterSeesNothingToChangeYetRestartIsPending(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	if res := patch(t, n, give(0)); !res.Changed {
		t.Fatal("the first edit changed nothing")
	}
	if res := patch(t, n, give(0)); res.Changed {
		t.Fatalf("the second edit changed the conf again:\n%s", res.After)
	}
	c := get(t, n)
	if !c.RestartPending {
		t.Errorf("no restart pending: configured %v, effective %v", gpus(&c.Configured), gpus(c.Effective))
	}
	if _, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Second}, silent); err != nil {
		t.Fatal(err)
	}
	c = get(t, n)
	if got := gpus(c.Effective); c.RestartPending || !cmp.Equal(got, []int{0}) {
		t.Errorf("after the restart: effective %v, pending %v; want [0], false", got, c.RestartPending)
	}
}

func TestFailure06_FewerGPUsLeaveNoEntryBehind(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	patch(t, n, give(0, 1))
	patch(t, n, give(0))
	if diff := cmp.Diff(withGPU0, n.Conf(901)); diff != "" {
		t.Errorf("conf after 0,1 and then 0 (-want +got):\n%s", diff)
	}
	patch(t, n, give())
	if diff := cmp.Diff(plain, n.Conf(901)); diff != "" {
		t.Errorf("conf after none (-want +got):\n%s", diff)
	}
}

// A host reboot takes nvidia-uvm's device node away until something uses CUDA.
func TestFailure10_NodeMissingAfterBootIsNoRestartThatWouldNotHelp(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, withGPU0)
	n.RemoveNode("nvidia-uvm")
	start(t, n)
	c := get(t, n)
	if c.RestartPending {
		t.Error("a restart is pending although the device node is missing on the host")
	}
	if !hasProblem(c, passthrough.GhostFile) {
		t.Errorf("no ghost file among the problems: %+v", c.Problems)
	}
	n.MakeNode("nvidia-uvm", 511, 0)
	if c := get(t, n); !c.RestartPending {
		t.Error("no restart pending although the device node is back")
	}
}

// Where a GPU was taken away from the conf and its device node is missing on the host, the container still has it.
func TestRestartPendingForAGPUThatIsTakenAwayWhileItsNodeIsMissing(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, withGPU0)
	start(t, n)
	patch(t, n, give())
	n.RemoveNode("nvidia0")
	if c := get(t, n); !c.RestartPending {
		t.Errorf("no restart pending: configured %v, effective %v", gpus(&c.Configured), gpus(c.Effective))
	}
}

func TestRestartPending(t *testing.T) {
	privileged := strings.Replace(withGPU0, "unprivileged: 1\n", "", 1)
	native := plain + "dev0: /dev/nvidia0,mode=0666\ndev1: /dev/nvidiactl,mode=0666\ndev2: /dev/nvidia-uvm,mode=0666\ndev3: /dev/nvidia-uvm-tools,mode=0666\n"
	caps := withGPU0 + "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir\n"
	for _, tc := range []struct {
		name            string
		started, edited string
		want            bool
	}{
		{"nothing changed", withGPU0, withGPU0, false},
		{"a comment", withGPU0, "# hello\n" + withGPU0, false},
		{"the order of lines", withGPU0, strings.Replace(withGPU0, "lxc.cgroup2.devices.allow: c 195:0 rwm\n", "", 1) + "lxc.cgroup2.devices.allow: c 195:0 rwm\n", false},
		{"from raw to native with the same devices", withGPU0, native, false},
		{"native, nothing changed", native, native, false},
		{"native, one device less", native, strings.Replace(native, "dev0: /dev/nvidia0,mode=0666\n", "", 1), true},
		{"a rule that means nothing to an unprivileged container", withGPU0, withGPU0 + "lxc.cgroup2.devices.allow: c 195:1 rwm\n", false},
		{"a denial", withGPU0, withGPU0 + "lxc.cgroup2.devices.deny: c 195:0 rwm\n", true},
		{"a rule alone gives a privileged container the device", privileged, privileged + "lxc.cgroup2.devices.allow: c 195:1 rwm\n", true},
		{"a wildcard rule goes from a privileged container", privileged + "lxc.cgroup2.devices.allow: c 195:* rwm\n", privileged, true},
		{"privileged, nothing changed", privileged, privileged, false},
		{"a mount in a snapshot", withGPU0, withGPU0 + "\n[s1]\nlxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file\n", false},
		{"a directory that the inventory does not know", withGPU0, caps, false},
		{"raw id map instead of the property", withGPU0,
			strings.Replace(withGPU0, "unprivileged: 1\n", "", 1) + "lxc.idmap: u 0 100000 65536\nlxc.idmap: g 0 100000 65536\n", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.PutConf(901, tc.started)
			start(t, n)
			n.PutConf(901, tc.edited)
			if c := get(t, n); c.RestartPending != tc.want {
				t.Errorf("pending %v, want %v; configured %+v\neffective %+v", c.RestartPending, tc.want, c.Configured, c.Effective)
			}
		})
	}
}

// What stands at the path of a device that the conf does not give is the container's own affair.
func TestGhostFilesAreOnlyWhereTheConfGivesADevice(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, withGPU0)
	n.RemoveNode("nvidia0")
	start(t, n)
	if c := get(t, n); !hasProblem(c, passthrough.GhostFile) {
		t.Errorf("no ghost file among the problems: %+v", c.Problems)
	}
	n.PutConf(901, plain)
	if c := get(t, n); hasProblem(c, passthrough.GhostFile) {
		t.Errorf("a ghost file where nothing is given: %+v", c.Problems)
	}
}

func hasProblem(c container.Container, kind passthrough.Kind) bool {
	for _, p := range c.Problems {
		if p.Kind == kind {
			return true
		}
	}
	return false
}

func TestPatchRefuses(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	n.PutConf(902, strings.Replace(plain, "memory", "lock: backup\nmemory", 1))
	three := 3
	for _, tc := range []struct {
		name string
		ctid int32
		op   container.Operation
		want string
	}{
		{"a GPU that the node lacks", 901, container.SetPassthrough{GPUs: []container.Selector{{Index: &three}}, Mode: passthrough.ModeRaw},
			"no GPU 3; the node has 0, 1"},
		{"a GPU by an unknown UUID", 901, container.SetPassthrough{GPUs: []container.Selector{{UUID: "GPU-x"}}, Mode: passthrough.ModeRaw},
			"no GPU GPU-x; the node has 0, 1"},
		{"an option that is not allowed", 901, container.SetOption{Key: "lxc.apparmor.profile", Value: "unconfined"},
			"lxc.apparmor.profile = unconfined is not in this agent's allowed_lxc_options"},
		{"a hook", 901, container.SetOption{Key: "lxc.hook.pre-start", Value: "/x"},
			"lxc.hook.pre-start = /x is not in this agent's allowed_lxc_options"},
		{"a property that runs programs", 901, container.SetProperty{Key: "hookscript", Value: "local:snippets/x"},
			"property hookscript: may not be set through the agent; use pct set on the node"},
		{"a property value with a line end", 901, container.SetProperty{Key: "hostname", Value: "a\rlxc.hook.pre-start = /x"},
			`property hostname: "a\rlxc.hook.pre-start = /x" is no value that Proxmox accepts`},
		{"memory cannot be removed", 901, container.UnsetProperty{Key: "memory"},
			"property memory: may not be removed through the agent; use pct set --delete on the node"},
		{"a locked container", 902, give(0), `CTID 902 is locked by Proxmox (lock: "backup")`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := n.Conf(tc.ctid)
			_, err := n.Manager.Patch(t.Context(), tc.ctid, "", false, tester, tc.op)
			if err == nil || !strings.HasSuffix(err.Error(), tc.want) {
				t.Errorf("got %v, want ... %s", err, tc.want)
			}
			if diff := cmp.Diff(before, n.Conf(tc.ctid)); diff != "" {
				t.Errorf("a refused edit changed the conf:\n%s", diff)
			}
		})
	}
}

func TestPatchProperties(t *testing.T) {
	n := newNode(t)
	n.Manager.AllowedOptions = []string{"lxc.apparmor.profile=unconfined"}
	n.PutConf(901, plain)
	patch(t, n,
		container.SetProperty{Key: "cores", Value: "4"},
		container.SetProperty{Key: "memory", Value: "1024"},
		container.UnsetProperty{Key: "hostname"},
		container.SetOption{Key: "lxc.apparmor.profile", Value: "unconfined"})
	want := `arch: amd64
cores: 4
memory: 1024
ostype: debian
rootfs: local:subvol-901-disk-0,size=8G
unprivileged: 1
lxc.apparmor.profile: unconfined
`
	if diff := cmp.Diff(want, n.Conf(901)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPreviewWritesNothing(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	n.RemoveNode("nvidia0") // made before the real edit
	res, err := n.Manager.Patch(t.Context(), 901, "", true, tester, give(0))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(withGPU0, string(res.After)); diff != "" {
		t.Errorf("preview (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(plain, n.Conf(901)); diff != "" {
		t.Errorf("the preview wrote:\n%s", diff)
	}
}

func TestRestart(t *testing.T) {
	t.Run("goes through its phases", func(t *testing.T) {
		n := newNode(t)
		n.PutConf(901, plain)
		start(t, n)
		var phases []container.Phase
		c, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Second},
			func(p container.Phase, _ string) { phases = append(phases, p) })
		if err != nil {
			t.Fatal(err)
		}
		if want := []container.Phase{container.Waiting, container.ShuttingDown, container.Starting}; !cmp.Equal(phases, want) {
			t.Errorf("phases %v, want %v", phases, want)
		}
		if c.Running.State != lxcmon.Running {
			t.Errorf("state %v, want running", c.Running.State)
		}
	})
	t.Run("is starting while it is down", func(t *testing.T) {
		n := newNode(t)
		n.PutConf(901, plain)
		start(t, n)
		var states []lxcmon.State
		look := func(container.Phase, string) {
			c, _, err := n.Manager.Get(t.Context(), 901)
			if err != nil {
				t.Fatal(err)
			}
			states = append(states, c.Running.State)
		}
		if _, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Second}, look); err != nil {
			t.Fatal(err)
		}
		if want := []lxcmon.State{lxcmon.Running, lxcmon.Running, lxcmon.Starting}; !cmp.Equal(states, want) {
			t.Errorf("before, during the shutdown and after it the state is %v, want %v", states, want)
		}
	})
	t.Run("kills what does not stop", func(t *testing.T) {
		n := newNode(t)
		n.PutConf(901, plain)
		start(t, n)
		n.Runtime.IgnoreShutdown(true)
		if _, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Millisecond}, silent); err != nil {
			t.Fatal(err)
		}
		want := []string{"start 901", "shutdown 901", "stop 901", "start 901"}
		if diff := cmp.Diff(want, n.Runtime.Calls()); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
	t.Run("leaves it running without force", func(t *testing.T) {
		n := newNode(t)
		n.PutConf(901, plain)
		start(t, n)
		before := get(t, n).Running.Instance
		n.Runtime.IgnoreShutdown(true)
		_, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Millisecond, NoForce: true}, silent)
		if !errors.Is(err, pct.ErrStopTimeout) {
			t.Errorf("got %v, want ErrStopTimeout", err)
		}
		if after := get(t, n).Running.Instance; after != before {
			t.Errorf("instance %q, want %q", after, before)
		}
	})
	t.Run("not of another instance", func(t *testing.T) {
		n := newNode(t)
		n.PutConf(901, plain)
		start(t, n)
		_, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{Instance: "an older one"}, silent)
		if _, ok := errors.AsType[*container.InstanceError](err); !ok {
			t.Errorf("got %v, want an InstanceError", err)
		}
		if calls := n.Runtime.Calls(); len(calls) != 1 {
			t.Errorf("calls %v, want only the first start", calls)
		}
	})
	t.Run("not of a template", func(t *testing.T) {
		n := newNode(t)
		n.PutConf(901, "arch: amd64\ntemplate: 1\n")
		_, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{}, silent)
		if !errors.Is(err, container.ErrTemplate) {
			t.Errorf("got %v, want ErrTemplate", err)
		}
	})
	t.Run("not while locked", func(t *testing.T) {
		n := newNode(t)
		n.PutConf(901, plain)
		start(t, n)
		n.PutConf(901, "lock: backup\n"+plain)
		_, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{}, silent)
		if _, ok := errors.AsType[*confstore.LockedError](err); !ok {
			t.Errorf("got %v, want a LockedError", err)
		}
		if get(t, n).Running.State != lxcmon.Running {
			t.Error("the container was stopped although it cannot start again")
		}
	})
	t.Run("not with a devN that could not start again", func(t *testing.T) {
		n := newNode(t)
		n.PutConf(901, plain)
		start(t, n)
		n.PutConf(901, "dev8: /dev/nope,mode=0666\n"+plain)
		_, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{}, silent)
		if missing, ok := errors.AsType[*gpu.NodeError](err); !ok || missing.Path != "/dev/nope" {
			t.Errorf("got %v, want a NodeError of /dev/nope", err)
		}
		if get(t, n).Running.State != lxcmon.Running {
			t.Error("the container was stopped although it cannot start again")
		}
	})
	t.Run("finishes although its caller left", func(t *testing.T) {
		n := newNode(t)
		n.PutConf(901, plain)
		start(t, n)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := n.Manager.Restart(ctx, 901, container.RestartOptions{Timeout: time.Second}, func(p container.Phase, _ string) {
			if p == container.ShuttingDown {
				cancel()
			}
		})
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if get(t, n).Running.State != lxcmon.Running {
			t.Error("the container is down")
		}
	})
}

// refuseGPU is a start that fails with any GPU entry.
func refuseGPU(_ int32, conf string) error {
	if strings.Contains(conf, "nvidia0") {
		return errors.New("no such device")
	}
	return nil
}

func TestRestartRollsBackAConfOfOurs(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	patch(t, n, container.SetProperty{Key: "cores", Value: "4"})
	patch(t, n, give(0)) // a second edit before the start: the way back leads before the first
	n.Runtime.RefuseStart(refuseGPU)
	_, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Second}, silent)
	rolledBack, ok := errors.AsType[*container.RolledBackError](err)
	if !ok {
		t.Fatalf("got %v, want a RolledBackError", err)
	}
	if !strings.Contains(err.Error(), "no such device") || rolledBack.Revision != 1 {
		t.Errorf("got revision %d and %q; want 1 and the error of the start", rolledBack.Revision, err)
	}
	if diff := cmp.Diff(plain, n.Conf(901)); diff != "" {
		t.Errorf("conf (-want +got):\n%s", diff)
	}
	if get(t, n).Running.State != lxcmon.Running {
		t.Error("the container is down")
	}
}

func TestRestartDoesNotRollBackSomebodyElsesConf(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	patch(t, n, give(0))
	theirs := strings.Replace(withGPU0, "memory: 512", "memory: 2048", 1)
	n.PutConf(901, theirs)
	n.Runtime.RefuseStart(refuseGPU)
	_, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Second}, silent)
	if _, ok := errors.AsType[*container.StartError](err); !ok {
		t.Fatalf("got %v, want a StartError", err)
	}
	if diff := cmp.Diff(theirs, n.Conf(901)); diff != "" {
		t.Errorf("conf (-want +got):\n%s", diff)
	}
}

// An agent that ends between stop and start leaves its intent; the next one starts the container.
func TestRecoverStartsWhatAnEarlierAgentStopped(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	start(t, n)
	n.Runtime.RefuseStart(func(int32, string) error { panic("killed here") })
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the restart went past the kill")
			}
		}()
		_, _ = n.Manager.Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Second}, silent)
	}()
	n.Runtime.RefuseStart(nil)
	next := &container.Manager{
		Confs: n.Manager.Confs, GPUs: n.Manager.GPUs, Runtime: n.Runtime, StateDir: n.Manager.StateDir, Log: n.Manager.Log,
	}
	finish, err := next.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if get(t, n).Running.State != lxcmon.Running {
		t.Error("the container is still down")
	}
	if finish, err = next.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	calls := len(n.Runtime.Calls())
	if err := finish(t.Context()); err != nil || len(n.Runtime.Calls()) != calls {
		t.Errorf("a second recovery acted again: %v, %v", n.Runtime.Calls()[calls:], err)
	}
}
