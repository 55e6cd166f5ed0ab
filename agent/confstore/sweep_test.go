//go:build linux && amd64

package confstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/confstore"
)

// helperEditOnce makes one edit between two marks and says what it thinks became of it.
func helperEditOnce(root string) error {
	s := storeIn(root)
	mark()
	_, err := s.Edit(context.Background(), 101, "", alice, setMemory("4096"))
	mark()
	fmt.Printf("%t\n%v", confstore.MayHaveWritten(err), err)
	return nil
}

// mark is a system call that nothing else makes.
func mark() { _, _, _ = unix.RawSyscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0) }

// fileCalls are the system calls that are counted: those on files. The others are the Go runtime's own.
var fileCalls = map[uint64]string{
	unix.SYS_OPENAT: "openat", unix.SYS_READ: "read", unix.SYS_WRITE: "write", unix.SYS_CLOSE: "close", unix.SYS_FLOCK: "flock",
	unix.SYS_FSYNC: "fsync", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_FSTAT: "fstat", unix.SYS_GETDENTS64: "getdents64",
	unix.SYS_READLINKAT: "readlinkat", unix.SYS_FCNTL: "fcntl", unix.SYS_LSEEK: "lseek",
}

// traceEdit runs helperEditOnce under ptrace and calls at with the number, from 0, and the name of each counted call of the
// edit, in all threads, before the kernel gets it. With an errno the call fails instead; SIGKILL ends the process there.
func traceEdit(t *testing.T, root string, at func(n int, name string) (syscall.Errno, bool)) (output string) {
	t.Helper()
	runtime.LockOSThread() // ptrace knows threads
	defer runtime.UnlockOSThread()
	stdout, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	cmd := exec.Command("/proc/self/exe", root)
	cmd.Env = append(os.Environ(), helperEnv+"=edit-once", atOnce)
	cmd.Stdout = stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		t.Skipf("this machine does not let processes be traced: %v", err)
	}
	pid := cmd.Process.Pid
	defer cmd.Process.Release()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	options := unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := errors.Join(unix.PtraceSetOptions(pid, options), unix.PtraceSyscall(pid, 0)); err != nil {
		t.Fatal(err)
	}
	marks, n := 0, 0
	inCall := make(map[int]bool)
	fail := make(map[int]syscall.Errno)
	for {
		tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if ws.Exited() || ws.Signaled() {
			if tid == pid {
				break
			}
			continue
		}
		signal := 0
		switch stop := ws.StopSignal(); {
		case stop == unix.SIGTRAP|0x80:
			var regs unix.PtraceRegs
			if err := unix.PtraceGetRegs(tid, &regs); err != nil {
				continue // it has been killed
			}
			inCall[tid] = !inCall[tid]
			if errno := fail[tid]; !inCall[tid] && errno != 0 {
				regs.Rax = uint64(-int64(errno))
				_ = unix.PtraceSetRegs(tid, &regs)
				delete(fail, tid)
			}
			if !inCall[tid] {
				break
			}
			if regs.Orig_rax == unix.SYS_PERSONALITY {
				marks++
			}
			name, ok := fileCalls[regs.Orig_rax]
			if marks != 1 || !ok {
				break
			}
			errno, kill := at(n, name)
			n++
			if kill {
				_ = unix.Kill(pid, unix.SIGKILL)
				continue
			}
			if errno != 0 {
				fail[tid] = errno
				regs.Orig_rax = ^uint64(0)
				_ = unix.PtraceSetRegs(tid, &regs)
			}
		case stop == unix.SIGTRAP || stop == unix.SIGSTOP: // a new thread, and the event of it
		default:
			signal = int(stop)
		}
		_ = unix.PtraceSyscall(tid, signal) // it may have been killed
	}
	b, err := os.ReadFile(stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// callsOfEdit are the names of the counted calls of an undisturbed edit.
func callsOfEdit(t *testing.T) []string {
	t.Helper()
	var calls []string
	s := newStore(t)
	out := traceEdit(t, filepath.Dir(s.PVE), func(_ int, name string) (syscall.Errno, bool) {
		calls = append(calls, name)
		return 0, false
	})
	if out != "false\n<nil>" || read(t, s) != edited {
		t.Fatalf("undisturbed edit: %q, conf %q", out, read(t, s))
	}
	if len(calls) < 30 || !slices.Contains(calls, "renameat") {
		t.Fatalf("calls of an edit: %q", calls)
	}
	return calls
}

// complete says whether every case is to be run. The tests of each change make do with a sample.
func complete() bool { return *edits >= 10000 }

// A kill -9 at every system call of an edit leaves the old conf or the new one, and nothing that is in the way.
func TestKilledAtEverySystemCall(t *testing.T) {
	calls := callsOfEdit(t)
	states, leftovers := map[string]int{}, 0
	kills := 0
	for n := range calls {
		if !complete() && n%3 != 0 {
			continue
		}
		kills++
		s := newStore(t)
		killed := ""
		traceEdit(t, filepath.Dir(s.PVE), func(i int, name string) (syscall.Errno, bool) {
			if i == n {
				killed = name
			}
			return 0, i == n
		})
		switch got := read(t, s); got {
		case conf:
			states["old"]++
		case edited:
			states["new"]++
		default:
			t.Errorf("killed at call %d, %s: torn conf %q", n, killed, got)
		}
		if s.Held(101) {
			t.Errorf("killed at call %d, %s: the lock is held", n, killed)
		}
		removed, err := s.Sweep()
		if err != nil {
			t.Errorf("killed at call %d, %s: %v", n, killed, err)
		}
		leftovers += len(removed)
		wantFiles(t, s, "101.conf")
		r, err := s.Edit(t.Context(), 101, "", alice, setMemory("1024"))
		if err != nil || !strings.Contains(string(r.After), "memory: 1024\n") {
			t.Errorf("killed at call %d, %s: the next edit: %+v, error %v", n, killed, r, err)
		}
		revisions, err := s.Revisions(101)
		if err != nil || len(revisions) < 1 || len(revisions) > 2 {
			t.Errorf("killed at call %d, %s: revisions %v, error %v", n, killed, revisions, err)
		}
		for _, r := range revisions {
			if _, _, err := s.Revision(101, r.Number); err != nil {
				t.Errorf("killed at call %d, %s: %v", n, killed, err)
			}
		}
		wantNoRevisionTemps(t, s)
	}
	t.Logf("killed at %d of %d system calls: %v, %d left-overs swept", kills, len(calls), states, leftovers)
	if states["old"] == 0 || states["new"] == 0 || leftovers == 0 {
		t.Error("the kills do not meet the middle of an edit")
	}
}

func wantNoRevisionTemps(t *testing.T, s *confstore.Store) {
	t.Helper()
	confs, err := filepath.Glob(filepath.Join(s.RevisionDir, "101/*"))
	if err != nil {
		t.Fatal(err)
	}
	revisions, err := s.Revisions(101)
	if err != nil || len(confs) != 2*len(revisions) {
		t.Errorf("%q are more than the files of %d revisions, error %v", confs, len(revisions), err)
	}
}

// Every call that changes something fails with everything that pmxcfs or a disk answers.
func TestErrorAtEverySystemCall(t *testing.T) {
	calls := callsOfEdit(t)
	cases, outcomes := 0, map[string]int{}
	for n, call := range calls {
		if !slices.Contains([]string{"openat", "write", "fsync", "renameat", "mkdirat"}, call) {
			continue
		}
		for i, errno := range []syscall.Errno{unix.EACCES, unix.ENOSPC, unix.EIO, unix.EFBIG, unix.EBUSY, unix.ENOTCONN} {
			if !complete() && i != n%6 {
				continue
			}
			cases++
			s := newStore(t)
			out := traceEdit(t, filepath.Dir(s.PVE), func(i int, _ string) (syscall.Errno, bool) {
				if i == n {
					return errno, false
				}
				return 0, false
			})
			unclear, text, _ := strings.Cut(out, "\n")
			got := read(t, s)
			switch {
			case text == "<nil>" && unclear == "false" && got == edited:
				outcomes["edited all the same"]++
			case text != "<nil>" && unclear == "false" && got == conf:
				outcomes["untouched"]++
				wantNoRevisionTemps(t, s)
				if revisions, err := s.Revisions(101); err != nil || len(revisions) != 0 {
					t.Errorf("%v at call %d, %s: revisions %v, error %v", errno, n, call, revisions, err)
				}
			case text != "<nil>" && unclear == "true" && (got == conf || got == edited):
				outcomes["said to be unclear"]++
			default:
				t.Errorf("%v at call %d, %s: conf %q after %q", errno, n, call, got, out)
			}
			wantFiles(t, s, "101.conf")
			if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("1024")); err != nil {
				t.Errorf("%v at call %d, %s: the next edit: %v", errno, n, call, err)
			}
		}
	}
	t.Logf("%d errors: %v", cases, outcomes)
}
