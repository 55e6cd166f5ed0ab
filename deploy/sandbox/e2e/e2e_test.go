package e2e_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"phoenix.internal/deploy/sandbox/sandboxtest"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

func TestMain(m *testing.M) { os.Exit(sandboxtest.Main(m)) }

// A world is a sandbox with an agent on each node, all of them up until the test ends.
type world struct {
	*sandboxtest.Sandbox
	t     *testing.T
	nodes []*sandboxtest.Node
	fleet string // path of the controller's fleet file
}

// newWorld lays out nodes with agents and a controller. The fleet file may be written, and changed, later.
func newWorld(t *testing.T, o sandboxtest.Options) *world {
	t.Helper()
	w := newNodes(t, o)
	w.StartController()
	return w
}

// newNodes is newWorld without a controller.
func newNodes(t *testing.T, o sandboxtest.Options) *world {
	t.Helper()
	w := &world{Sandbox: sandboxtest.Up(t, o), t: t, fleet: o.Fleet}
	for i := range w.Nodes {
		w.nodes = append(w.nodes, w.Node(i+1))
	}
	for _, n := range w.nodes {
		n.StartAgent()
		if o.Fleet != "" { // its containers may want the driver
			if err := w.FetchDriver(t.Context(), n.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if w.fleet == "" {
		w.fleet = filepath.Join(t.TempDir(), "phoenix_lxc_configs.json")
		w.configureController("fleet_file: %q\n", w.fleet)
	}
	return w
}

// configureController adds to the controller's settings; it reads them when it starts.
func (w *world) configureController(format string, args ...any) {
	w.t.Helper()
	f, err := os.OpenFile(w.ControllerConfigPath(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, format, args...); err != nil {
		w.t.Fatal(err)
	}
}

// setFleet writes the fleet file: entries are what stands in lxc_configs.
func (w *world) setFleet(entries string) {
	w.t.Helper()
	if err := os.WriteFile(w.fleet, []byte(`{"lxc_configs": {`+entries+"}}\n"), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// local are the flags for a CLI that is its own controller.
func (w *world) local() []string {
	args := []string{"--fleet", w.fleet, "--state-dir", filepath.Join(w.Dir, "cli-state"), "--features-dir", filepath.Join(w.Dir, "features")}
	for _, n := range w.nodes {
		args = append(args, "--agent", n.Name+"="+n.AgentAddress())
	}
	return args
}

// cli runs phoenix-cli, which has to succeed, and returns what it wrote to stdout.
func (w *world) cli(args ...string) string {
	w.t.Helper()
	stdout, stderr, code := w.CLI(args...)
	if code != 0 {
		w.t.Fatalf("phoenix-cli %s: exit status %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// refused runs phoenix-cli, which has to fail with this exit status and these words on stderr.
func (w *world) refused(code int, words string, args ...string) {
	w.t.Helper()
	stdout, stderr, got := w.CLI(args...)
	if got != code || !strings.Contains(stderr, words) {
		w.t.Fatalf("phoenix-cli %s: exit status %d, want %d and %q on stderr\n%s%s",
			strings.Join(args, " "), got, code, words, stdout, stderr)
	}
}

// inSync checks that "status" finds every container of the fleet file as it should be.
func (w *world) inSync(args ...string) {
	w.t.Helper()
	var r controllerv1.GetStatusResponse
	if err := protojson.Unmarshal([]byte(w.cli(append(args, "status", "--json")...)), &r); err != nil {
		w.t.Fatal(err)
	}
	if len(r.GetContainers()) == 0 {
		w.t.Fatal("status shows no container")
	}
	for _, c := range r.GetContainers() {
		if c.GetState() != controllerv1.SyncState_SYNC_STATE_IN_SYNC {
			w.t.Errorf("CTID %d is %v, want in sync: %q, probe %v %s", c.GetDesired().GetCtid(), c.GetState(), c.GetDrift(), c.GetProbe(), c.GetProbeError())
		}
	}
}

// confs are all confs of all nodes, by node and CTID.
func (w *world) confs() map[string]string {
	w.t.Helper()
	confs := map[string]string{}
	for _, n := range w.nodes {
		paths, err := filepath.Glob(filepath.Join(filepath.Dir(n.ConfPath(100)), "*.conf"))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				w.t.Fatal(err)
			}
			confs[n.Name+"/"+filepath.Base(path)] = string(b)
		}
	}
	return confs
}

// pctCalls are the calls of pct on all nodes since resetPctCalls.
func (w *world) pctCalls() []string {
	w.t.Helper()
	var calls []string
	for _, n := range w.nodes {
		calls = append(calls, n.PctCalls()...)
	}
	return calls
}

func (w *world) resetPctCalls() {
	w.t.Helper()
	for _, n := range w.nodes {
		n.ResetPctCalls()
	}
}

// ctids are the containers that a node has a conf of, ascending.
func ctids(t testing.TB, n *sandboxtest.Node) []int32 {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(n.ConfPath(100)), "*.conf"))
	if err != nil {
		t.Fatal(err)
	}
	var all []int32
	for _, path := range paths {
		ctid, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(path), ".conf"), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, int32(ctid))
	}
	slices.Sort(all)
	return all
}

// The devices that every container with a GPU needs, as reach shows them.
const control = " nvidiactl nvidia-uvm nvidia-uvm-tools"

// noControl is what reach shows of them in a container without GPU.
const noControl = " nvidiactl=ENOENT nvidia-uvm=ENOENT nvidia-uvm-tools=ENOENT"

// reach opens the node's NVIDIA devices inside a running container and tells which can be reached: by its
// name alone one that the kernel lets through, "nvidia1=EPERM" one that it does not. The sandbox has no
// driver, so ENXIO is what a device gives that can be reached.
func reach(t testing.TB, n *sandboxtest.Node, ctid int32) string {
	t.Helper()
	var names []string
	for i := range n.GPUs {
		names = append(names, fmt.Sprintf("nvidia%d", i))
	}
	names = append(names, strings.Fields(control)...)
	stdout, stderr, code := n.Attach(ctid, fmt.Sprintf(`for name in %s; do
		path=/dev/$name
		if [ -f $path ]; then echo $name=file
		elif [ ! -e $path ]; then echo $name=ENOENT
		elif why=$( (exec 3<$path) 2>&1 ); then echo $name=opened
		else case $why in
			*"No such device or address") echo $name;;
			*"Operation not permitted") echo $name=EPERM;;
			*) echo "$name=$why";;
		esac; fi
	done`, strings.Join(names, " ")))
	if code != 0 {
		t.Fatalf("open the devices in %d on %s: exit status %d: %s", ctid, n.Name, code, stderr)
	}
	return strings.Join(strings.Fields(stdout), " ")
}

// reaches checks what a container can reach.
func reaches(t testing.TB, n *sandboxtest.Node, ctid int32, want string) {
	t.Helper()
	if !n.Running(ctid) {
		t.Errorf("CTID %d on %s does not run", ctid, n.Name)
	} else if got := reach(t, n, ctid); got != want {
		t.Errorf("CTID %d on %s reaches\n%s, want\n%s\nconf:\n%s", ctid, n.Name, got, want, n.Conf(ctid))
	}
}

// conf is the conf of an unprivileged container as Proxmox writes it, with more lines at its end.
func conf(ctid int32, more ...string) string {
	return fmt.Sprintf("arch: amd64\ncores: 1\nhostname: ct%[1]d\nmemory: 512\nostype: debian\n"+
		"rootfs: local:%[1]d/vm-%[1]d-disk-0.raw,size=8G\nswap: 0\nunprivileged: 1\n", ctid) + lines(more...)
}

func lines(more ...string) string {
	if len(more) == 0 {
		return ""
	}
	return strings.Join(more, "\n") + "\n"
}

// startWith makes a container and starts it.
func startWith(n *sandboxtest.Node, ctid int32, conf string) {
	n.Add(ctid, conf)
	n.Must("pct", "start", fmt.Sprint(ctid))
}

// noTemporaryFiles checks that /etc/pve holds confs and nothing else that a program of ours might leave.
func (w *world) noTemporaryFiles() {
	w.t.Helper()
	for _, n := range w.nodes {
		root := filepath.Dir(n.ConfPath(100))
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && filepath.Ext(path) != ".conf" {
				w.t.Errorf("%s is left", path)
			}
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
}
