package attach_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
)

var execs = flag.Int("execs", 300, "how many commands TestManyExecs runs")

// Target R7: commands with random output, every status and signal, and cancels at random times. No byte is lost, no
// status wrong, nothing hangs, nothing survives, and nothing is left of it all. The form of the target is
//
//	go test ./agent/attach -run TestManyExecs -timeout 1h -execs 10000
//
// in which one output in 500 has up to 256 MiB; the short form has every status too, and outputs of up to 1 MiB.
func TestManyExecs(t *testing.T) {
	helper, err := os.ReadFile(newHelper(t))
	if err != nil {
		t.Fatal(err)
	}
	var containers []*lxctest.Container
	for _, unprivileged := range []bool{false, true} {
		c := lxctest.Start(t, lxctest.Config{Unprivileged: unprivileged})
		if err := os.WriteFile(filepath.Join(c.Rootfs, "bin/helper"), helper, 0o755); err != nil {
			t.Fatal(err)
		}
		containers = append(containers, c)
	}
	// The first exec opens what stays open for good.
	if _, _, _, err := run(t, attach.Command{CTID: containers[0].CTID, Argv: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	fdsBefore, childrenBefore := descriptors(t), children(t)

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var counts counts
	var group errgroup.Group
	group.SetLimit(4)
	begin := time.Now()
	for i := range *execs {
		e := anExec(i, random)
		group.Go(func() error {
			if err := e.run(t.Context(), containers[i%len(containers)].CTID, &counts); err != nil {
				t.Errorf("exec %d (%+v): %v", i, e, err)
			}
			return nil
		})
	}
	group.Wait()
	t.Logf("%d commands in %v: %d bytes compared, %d ended by a signal of their own, %d cancelled (%d of them had ended before)",
		*execs, time.Since(begin).Round(time.Second), counts.bytes.Load(), counts.signalled.Load(), counts.cancelled.Load(), counts.late.Load())
	for _, c := range containers {
		if left := survivors(t, c); left != nil {
			t.Errorf("left in CTID %d: %q", c.CTID, left)
		}
	}
	// The threads and pipes of the last command may just be going.
	waitFor(t, func() bool { return descriptors(t) <= fdsBefore })
	if got := children(t); got != childrenBefore {
		t.Errorf("%d children, %d before", got, childrenBefore)
	}
	if counts.signalled.Load() == 0 || counts.cancelled.Load() == counts.late.Load() || counts.bytes.Load() == 0 {
		t.Errorf("the commands were not varied: %+v", &counts)
	}
}

type counts struct{ bytes, signalled, cancelled, late atomic.Int64 }

// An execution is what one command shall do.
type execution struct {
	seed, stdout, stderr int64
	code, signal         int
	cancel               time.Duration // 0: not
}

// fatal are the signals that end a process.
var fatal = []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31}

func anExec(i int, random *rand.Rand) execution {
	most := float64(1 << 20)
	if *execs >= 10000 && i%500 == 0 {
		most = 256 << 20
	}
	size := func() int64 { return int64(math.Exp(random.Float64()*math.Log(most))) - 1 }
	e := execution{seed: int64(i), stdout: size(), stderr: size(), code: i % 256}
	switch {
	case i >= 256 && i%8 == 1, *execs < 512 && i%11 == 3 && i >= 256:
		e.signal = fatal[random.IntN(len(fatal))]
	case i >= 256 && i%8 == 5:
		e.cancel = time.Duration(1 + random.Int64N(int64(30*time.Millisecond)))
	}
	return e
}

func (e execution) run(ctx context.Context, ctid int32, counts *counts) error {
	// A hang ends the test, not the machine.
	ctx, stop := context.WithTimeout(ctx, 5*time.Minute)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cancelled := errors.New("cancelled by the test")
	if e.cancel > 0 {
		timer := time.AfterFunc(e.cancel, func() { cancel(cancelled) })
		defer timer.Stop()
	}
	stdout, stderr := newSum(e.stdout), newSum(e.stderr)
	p, err := attach.Attacher{}.Start(ctx, attach.Command{CTID: ctid, Stdout: stdout, Stderr: stderr, Argv: []string{"helper", "produce",
		strconv.FormatInt(e.seed, 10), strconv.FormatInt(e.stdout, 10), strconv.FormatInt(e.stderr, 10), strconv.Itoa(e.code), strconv.Itoa(e.signal)}})
	if err != nil {
		return err
	}
	exit, err := p.Wait()
	if len(exit.Survivors) > 0 {
		return fmt.Errorf("survivors %v", exit.Survivors)
	}
	if e.cancel > 0 {
		counts.cancelled.Add(1)
		if errors.Is(err, cancelled) {
			return nil
		}
		counts.late.Add(1)
	}
	want := attach.Exit{Code: e.code, OutputComplete: true, NotStarted: exit.NotStarted}
	if e.signal != 0 {
		counts.signalled.Add(1)
		want.Code = 128 + e.signal
	}
	if err != nil || !same(exit, want) || exit.NotStarted {
		return fmt.Errorf("%+v, %v, want %+v", exit, err, want)
	}
	counts.bytes.Add(stdout.n + stderr.n)
	return errors.Join(stdout.check(), stderr.check())
}

// A sum compares the SHA-256 of so many bytes with the one that follows them.
type sum struct {
	size, n int64
	hash    interface {
		Write([]byte) (int, error)
		Sum([]byte) []byte
	}
	theirs []byte
}

func newSum(size int64) *sum { return &sum{size: size, hash: sha256.New()} }

func (s *sum) Write(b []byte) (int, error) {
	mine := min(int64(len(b)), max(0, s.size-s.n))
	s.hash.Write(b[:mine])
	if len(s.theirs) <= sha256.Size {
		s.theirs = append(s.theirs, b[mine:]...)
	}
	s.n += int64(len(b))
	return len(b), nil
}

func (s *sum) check() error {
	if s.n != s.size+sha256.Size {
		return fmt.Errorf("%d bytes came, want %d", s.n, s.size+sha256.Size)
	}
	if ours := s.hash.Sum(nil); !bytes.Equal(ours, s.theirs) {
		return fmt.Errorf("SHA-256 %x outside, %x inside", ours, s.theirs)
	}
	return nil
}

// descriptors counts the open descriptors of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// children counts the children of this process, those not reaped too.
func children(t *testing.T) int {
	t.Helper()
	n := 0
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no list of children: %v", err)
	}
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
		n += len(bytes.Fields(b))
	}
	return n
}
