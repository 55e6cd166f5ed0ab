package confstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/pveconf"
)

// helperEnv makes the test binary another process that works on the same confs.
const helperEnv = "PHOENIX_CONFSTORE_HELPER"

// atOnce lets a process end at once that the race detector was built into; by itself it waits a second.
const atOnce = "GORACE=atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(helperEnv) {
	case "lock":
		err = helperLock(os.Args[1])
	case "pmxcfs":
		err = helperPmxcfs(os.Args[1], os.Args[2])
	case "edit":
		err = helperEdit(os.Args[1])
	case "edit-once":
		err = helperEditOnce(os.Args[1])
	case "storm-edit":
		err = helperStormEdit(os.Args[1], os.Args[2])
	case "storm-proxmox":
		err = helperStormProxmox(os.Getenv(stormEnv), os.Args[3])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// helper starts another process and waits for its first line.
func helper(t testing.TB, what string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+what)
	// Its end goes with this process, and with it the other process.
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the other process says %q: %v", line, err)
	}
	return cmd
}

// kill ends another process as abruptly as can be.
func kill(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the other process ended by itself")
	}
}

// holdLock lets another process take Proxmox's lock on CTID 101 and returns its PID.
func holdLock(t testing.TB, s *confstore.Store) (pid int, unlock func()) {
	t.Helper()
	cmd := helper(t, "lock", filepath.Join(s.LockDir, "pve-config-101.lock"))
	return cmd.Process.Pid, func() { kill(t, cmd) }
}

func helperLock(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// The confs between which helperEdit goes back and forth. They are longer than a page, so that a torn one would
// show.
const killed1, killed2 = 1000, 2000

func killedConf(memory int) string {
	return fmt.Sprintf("arch: amd64\nhostname: trainer\nmemory: %d\n", memory) + strings.Repeat("lxc.environment: A="+strings.Repeat("x", 80)+"\n", 100)
}

func endWithTest() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(1)
}

// helperEdit edits for ever.
func helperEdit(root string) error {
	s := storeIn(root)
	if _, err := s.Sweep(); err != nil {
		return err
	}
	go endWithTest()
	fmt.Println("ready")
	for i := 0; ; i++ {
		memory := killed1
		if i%2 == 0 {
			memory = killed2
		}
		if _, err := s.Edit(context.Background(), 101, "", alice, setMemory(strconv.Itoa(memory))); err != nil {
			return err
		}
	}
}

// A kill -9 at any moment leaves the conf as it was or as it was to be, the lock free, and nothing temporary after
// the next start.
func TestKilledInTheMiddle(t *testing.T) {
	s := newStore(t)
	s.Keep = 5
	write(t, s, killedConf(killed1))
	start := time.Now()
	edit(t, s, alice, strconv.Itoa(killed2))
	once := time.Since(start)
	leftovers, states := 0, map[string]int{}
	deadline := time.Now().Add(3 * time.Second)
	kills := 0
	for ; kills < 200 && time.Now().Before(deadline); kills++ {
		cmd := helper(t, "edit", filepath.Dir(s.PVE))
		// Not waiting for anything in particular: the moment of the kill is to be any.
		time.Sleep(2 * once * time.Duration(kills%40) / 40)
		kill(t, cmd)
		switch got := read(t, s); got {
		case killedConf(killed1):
			states["old"]++
		case killedConf(killed2):
			states["new"]++
		default:
			t.Fatalf("kill %d: torn conf of %d bytes", kills, len(got))
		}
		removed, err := s.Sweep()
		if err != nil {
			t.Fatal(err)
		}
		leftovers += len(removed)
		wantFiles(t, s, "101.conf")
		revisions, err := s.Revisions(101)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range revisions {
			if _, _, err := s.Revision(101, r.Number); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.Edit(t.Context(), 101, "", alice, func(f *pveconf.File) error { return f.Set("memory", "3000") }); err != nil {
		t.Errorf("edit after all of it: %v", err)
	}
	t.Logf("an edit takes %v; %d kills: %v, %d left-overs swept", once, kills, states, leftovers)
	if kills >= 100 && len(states) < 2 {
		t.Errorf("%d kills, always with the same outcome: the test does not hit the middle of an edit", kills)
	}
}

// deadPID returns the PID of a process that has ended.
func deadPID(t testing.TB) string {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Skipf("PID %d is in use again", cmd.Process.Pid)
	}
	return itoa(cmd.Process.Pid)
}

func itoa(n int) string { return strconv.Itoa(n) }
