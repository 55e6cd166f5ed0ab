package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"

	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// A container moves to another node between the plan and the apply: it gets that node's GPU, of the same
// index and, on pve2, of another minor.
func TestMigration(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{Nodes: 2, ReverseMinors: true})
	from, to := w.nodes[0], w.nodes[1]
	startWith(from, 901, conf(901))
	w.setFleet(`"901": {"gpu_assignment": "0"}`)
	if out := w.cli("plan"); !strings.Contains(out, "on pve1: GPUs none -> 0") {
		t.Errorf("plan:\n%s", out)
	}
	from.Must("pct", "stop", "901")
	for _, move := range [][2]string{
		{filepath.Join(from.Dir(), "var-lib-lxc", "901"), filepath.Join(to.Dir(), "var-lib-lxc", "901")},
		{from.ConfPath(901), to.ConfPath(901)},
	} {
		if err := os.Rename(move[0], move[1]); err != nil {
			t.Fatal(err)
		}
	}
	to.Must("pct", "start", "901")

	w.cli("apply")
	reaches(t, to, 901, "nvidia0=ENOENT nvidia1"+control)
	if _, err := os.Stat(from.ConfPath(901)); err == nil {
		t.Error("there is a conf on pve1 again")
	}
	w.inSync()
}

// A privileged container may make device nodes; that of a GPU that is not its own it cannot open.
func TestPrivileged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, privileged(conf(901)))
	w.setFleet(`"901": {"gpu_assignment": "0"}`)
	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)

	n.Must("lxc-attach", "-n", "901", "--", "mknod", "-m", "666", "/dev/nvidia1", "c", fmt.Sprint(n.Majors.NVIDIA), "1")
	reaches(t, n, 901, "nvidia0 nvidia1=EPERM"+control)
	w.cli("probe", "901")
	w.inSync()
}

// An apply changes the mode in both directions and comes back to the same bytes. The container has its
// devices already, so it goes on running; it has them after its next start, too.
func TestModes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	raw := conf(901, scripted(n, 0)...)
	native := strings.Replace(conf(901), "hostname:", "dev0: /dev/nvidia0,mode=0666\ndev1: /dev/nvidiactl,mode=0666\n"+
		"dev2: /dev/nvidia-uvm,mode=0666\ndev3: /dev/nvidia-uvm-tools,mode=0666\nhostname:", 1)
	for _, tt := range []struct {
		mode, want string
		starts     int
	}{{"raw", raw, 1}, {"native", native, 0}, {"raw", raw, 0}} {
		w.setFleet(`"901": {"gpu_assignment": "0", "passthrough_mode": "` + tt.mode + `"}`)
		n.ResetPctCalls()
		w.cli("apply")
		reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
		if got := n.Conf(901); got != tt.want {
			t.Errorf("mode %s: conf is\n%s, want\n%s", tt.mode, got, tt.want)
		}
		if calls := n.PctCalls("start"); len(calls) != tt.starts {
			t.Errorf("mode %s: calls of pct: %q, want %d starts", tt.mode, n.PctCalls(), tt.starts)
		}
		w.inSync()
		w.cli("restart", "901")
		reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
		w.inSync()
	}
}

// A stopped container is patched and stays stopped, unless it is to be started.
func TestStopped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	n.Add(901, conf(901))
	w.setFleet(`"901": {"gpu_assignment": "1"}`)

	if out := w.cli("apply"); !strings.Contains(out, "note: it is stopped") || !strings.Contains(out, "--start") {
		t.Errorf("no note says that the container is stopped, and how to start it:\n%s", out)
	}
	if got, want := n.Conf(901), conf(901, scripted(n, 1)...); got != want {
		t.Errorf("conf is\n%s, want\n%s", got, want)
	}
	if calls := n.PctCalls(); len(calls) > 0 || n.Running(901) {
		t.Errorf("calls of pct: %q, want none", calls)
	}
	w.inSync()

	w.cli("apply", "--start")
	reaches(t, n, 901, "nvidia0=ENOENT nvidia1"+control)
	w.inSync()
}

// A hook of other times makes a file where Proxmox is to put a native device: the container does not start
// with its new conf. It runs with the old one again, and the error says why.
func TestRollBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	n.Must("sh", "-c", `printf '#!/bin/sh\ntouch "$LXC_ROOTFS_MOUNT/dev/nvidia0"\n' >/run/old-gpu-hook && chmod 755 /run/old-gpu-hook`)
	before := conf(901, "lxc.hook.mount: /run/old-gpu-hook")
	startWith(n, 901, before)
	w.setFleet(`"901": {"gpu_assignment": "0", "passthrough_mode": "native"}`)

	stdout, stderr, code := w.CLI("apply")
	if code != 1 || !strings.Contains(stderr, "did not start with its new conf") || !strings.Contains(stderr, "startup for container '901' failed") {
		t.Errorf("apply: exit status %d, want 1, and Proxmox's words on stderr:\n%s%s", code, stdout, stderr)
	}
	if got := n.Conf(901); got != before {
		t.Errorf("conf is\n%s, want the old one:\n%s", got, before)
	}
	reaches(t, n, 901, "nvidia0=file nvidia1=ENOENT"+noControl)
	w.noTemporaryFiles()

	w.setFleet(`"901": {"gpu_assignment": "0"}`) // a bind mount does not mind the file
	w.cli("apply")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
}

// exec passes stdin, stdout, stderr and the exit status; with -t the command has a terminal.
func TestExec(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	phoenix := func(args ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), w.Program("phoenix-cli"), append([]string{"--config", w.CLIConfigPath()}, args...)...)
	}

	in := bytes.Repeat([]byte("a line\x00\xff\r\n"), 100_000)
	var out, errOut bytes.Buffer
	cmd := phoenix("exec", "-i", "901", "--", "sh", "-c", "cat; echo done >&2; exit 7")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errOut
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 7 {
		t.Errorf("exec: %v, want exit status 7", err)
	}
	if !bytes.Equal(out.Bytes(), in) {
		t.Errorf("stdout has %d bytes, want the %d of stdin", out.Len(), len(in))
	}
	if errOut.String() != "done\n" {
		t.Errorf("stderr is %q, want %q", errOut.String(), "done\n")
	}

	cmd = phoenix("exec", "-it", "901", "--", "sh", "-c", "test -t 0 && test -t 1 && echo on $(tty) with $(stty size)")
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	b, _ := io.ReadAll(terminal) // EIO when the program has ended
	if err := cmd.Wait(); err != nil {
		t.Errorf("exec -it: %v\n%s", err, b)
	}
	if got := string(b); !strings.Contains(got, "on /dev/pts/") || !strings.Contains(got, "with 33 101") {
		t.Errorf("exec -it says %q", got)
	}

	w.refused(127, "", "exec", "901", "--", "no-such-program")
	w.refused(1, "CTID 999", "exec", "999", "--", "true")
}

// One container works and one does not: conf diff shows what differs, by meaning.
func TestConfDiff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901, scripted(n, 0, 1)...))
	startWith(n, 950, strings.ReplaceAll(conf(950, scripted(n, 0)...), "memory: 512", "memory: 1024"))
	out := w.cli("conf", "diff", "901", "950")
	for _, want := range []string{"0,1 raw", "0 raw", "memory", "1024", fmt.Sprintf("c %d:1 rwm", n.Majors.NVIDIA), "/dev/nvidia1"} {
		if !strings.Contains(out, want) {
			t.Errorf("conf diff lacks %q:\n%s", want, out)
		}
	}
	for _, unwanted := range []string{"hostname", "rootfs", "swap", "/dev/nvidiactl"} {
		if strings.Contains(out, unwanted) {
			t.Errorf("conf diff shows %q, which does not differ or is bound to:\n%s", unwanted, out)
		}
	}
}

// restart tells its phases, and the container is another instance afterwards.
func TestRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	pid := n.Must("lxc-info", "-n", "901", "-p", "-H")
	out := w.cli("restart", "901", "--json")
	at := -1
	for _, phase := range []string{"SHUTTING_DOWN", "STARTING", "RUNNING"} {
		if next := strings.Index(out, `"RESTART_PHASE_`+phase+`"`); next <= at {
			t.Errorf("phase %s is not told, or not in its turn:\n%s", phase, out)
		} else {
			at = next
		}
	}
	if again := n.Must("lxc-info", "-n", "901", "-p", "-H"); again == pid {
		t.Errorf("init is still %s", pid)
	}

	// A container that does not stop is killed in the end.
	const deaf = "#!/bin/sh\ntrap '' PWR TERM\nwhile :; do sleep 86400; done\n"
	if err := os.WriteFile(filepath.Join(w.Rootfs(n.Name, 901), "usr/sbin/init"), []byte(deaf), 0o755); err != nil {
		t.Fatal(err)
	}
	w.cli("restart", "901")
	w.refused(1, "", "restart", "901", "--timeout", "1s", "--no-force")
	if out := w.cli("restart", "901", "--timeout", "1s", "--json"); !strings.Contains(out, "RESTART_PHASE_FORCING") {
		t.Errorf("the kill is not told:\n%s", out)
	}
	if !n.Running(901) {
		t.Error("901 does not run")
	}
}

// To look at a hundred containers, running and stopped, takes no call of pct.
func TestManyContainers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	var entries []string
	for ctid := int32(901); ctid <= 1000; ctid++ {
		if ctid <= 903 {
			startWith(n, ctid, conf(ctid, scripted(n, 0)...))
		} else {
			n.SetConf(ctid, conf(ctid, scripted(n, 0)...)) // stopped, and without a root file system
		}
		entries = append(entries, fmt.Sprintf(`"%d": {"gpu_assignment": "0"}`, ctid))
	}
	w.setFleet(strings.Join(entries, ","))
	n.ResetPctCalls()
	for _, args := range [][]string{{"containers"}, {"devices"}, {"plan"}, {"status"}} {
		out := w.cli(args...)
		if args[0] == "containers" && (strings.Count(out, "running") != 3 || strings.Count(out, "stopped") != 97) {
			t.Errorf("containers:\n%s", out)
		}
	}
	if calls := n.PctCalls(); len(calls) > 0 {
		t.Errorf("calls of pct: %q, want none", calls)
	}
}

// An agent that is killed may leave its port to a child for a moment. The next one waits for it.
func TestAgentWaitsForItsPort(t *testing.T) {
	t.Parallel()
	s := sandboxtest.Up(t, sandboxtest.Options{})
	n := s.Node(1)
	holder, started := n.Command(t.Context(), "busybox", "nc", "-l", "-p", "7461")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	started()
	eventually(t, "the port is in use", func() bool { return strings.Contains(n.Must("ss", "-ltn"), ":7461 ") })

	agent, err := s.StartAgent(n.Name, s.Program("phoenix-agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Wait()
	defer agent.Process.Kill()
	eventually(t, "the agent finds the port in use", func() bool {
		log, err := os.ReadFile(s.AgentLog(n.Name))
		return err == nil && strings.Contains(string(log), "address in use")
	})
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	if err := s.AwaitServing(t.Context(), n.AgentAddress(), n.Name); err != nil {
		t.Fatal(err)
	}
}
