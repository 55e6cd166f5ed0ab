package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"phoenix.internal/deploy/sandbox/pct"
	"phoenix.internal/deploy/sandbox/sandboxtest"
)

// A container stops by itself. Its conf is edited when it counts as stopped, but Proxmox's post-stop hook, which has read
// the conf and holds no lock, is yet to write it: the edit waits for that and is not lost.
func TestEditDuringThePostStopHook(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sandboxtest.Options{})
	n := w.nodes[0]
	startWith(n, 901, conf(901))
	n.SetConf(901, "onboot: yes\n"+conf(901)+"\n[pve:pending]\nswap: 256\n")
	w.setFleet(`"901": {"gpu_assignment": "0"}`)
	if err := os.WriteFile(filepath.Join(n.Dir(), pct.PostStopDelayFile), []byte("2500ms\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.Attach(901, "kill -PWR 1") // its status is that of a shell which may end with the container
	sandboxtest.Eventually(t, "it counts as stopped", func() bool { return !n.Running(901) })
	if !strings.Contains(n.Conf(901), "onboot: yes") {
		t.Log("the hook was faster than the test, which shows little then")
	}

	w.cli("apply")
	rewritten := strings.Replace(conf(901, scripted(n, 0)...), "ostype:", "onboot: 1\nostype:", 1)
	if got, want := n.Conf(901), strings.Replace(rewritten, "swap: 0", "swap: 256", 1); got != want {
		t.Errorf("conf is\n%s, want\n%s", got, want)
	}
	w.cli("apply", "--start")
	reaches(t, n, 901, "nvidia0 nvidia1=ENOENT"+control)
}
