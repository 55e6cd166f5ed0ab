package confstore_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/pveconf"
)

var edits = flag.Int("edits", 500, "acknowledged edits of TestTenThousandEdits")

// The storm: four processes of ours count in the same confs, each in a line of its own, and one that does what Proxmox
// does. It is the monitor of one container, as the command line, the command socket and the state say that lxcmon looks
// at; it counts under the lock; and when the container stops it rewrites the conf without it.
const (
	stormEditors = 4
	stormFirst   = 101
	stormConfs   = 3
	stormPadding = 60 // lines, so that a conf is longer than a page
)

func stormConf(ctid int32) string {
	var b strings.Builder
	fmt.Fprintf(&b, "arch: amd64\nhostname: ct%d\nmemory: 512\nostype: debian\n", ctid)
	for i := range stormPadding {
		fmt.Fprintf(&b, "lxc.environment: PAD%d=%s\n", i, strings.Repeat("x", 80))
	}
	for slot := range stormEditors + 1 {
		fmt.Fprintf(&b, "lxc.environment: %s=0\n", stormTag(slot))
	}
	return b.String()
}

func stormTag(slot int) string { return fmt.Sprintf("WRITER%d", slot) }

// stormStore returns the store as each of the processes has it.
func stormStore(root string) *confstore.Store {
	s := storeIn(root)
	s.Keep = 5
	s.LockWait, s.StopWait = 20*time.Second, 20*time.Second
	s.Settled = lxcmon.Client{Path: filepath.Join(root, "lxc")}.Settled
	return s
}

func randomCTID() int32 { return stormFirst + rand.Int32N(stormConfs) }

// count adds one to a writer's line and says what it was. More or less than one such line is a torn conf.
func count(f *pveconf.File, slot int) (was int, err error) {
	tag, found := stormTag(slot)+"=", 0
	f.RemoveRaw(func(e pveconf.Entry) bool {
		value, ok := strings.CutPrefix(e.Value, tag)
		if ok {
			found++
			was, err = strconv.Atoi(value)
		}
		return ok
	})
	if found != 1 || err != nil {
		return 0, fmt.Errorf("%d lines %s: %w", found, tag, err)
	}
	return was, f.AppendRaw("lxc.environment", tag+strconv.Itoa(was+1))
}

// helperStormEdit edits for ever. Each line that it prints is one system call, so that what it has printed is what
// it has come to know: "edit CTID", "read CTID VALUE" for each call of the edit's function, "done CTID", or
// "unclear CTID" if whether the edit stands cannot be told.
func helperStormEdit(root, slotText string) error {
	slot, err := strconv.Atoi(slotText)
	if err != nil {
		return err
	}
	go endWithTest()
	s := stormStore(root)
	if _, err := s.Sweep(); err != nil {
		return err
	}
	for {
		ctid := randomCTID()
		fmt.Printf("edit %d\n", ctid)
		_, err := s.Edit(context.Background(), ctid, "", alice, func(f *pveconf.File) error {
			was, err := count(f, slot)
			fmt.Printf("read %d %d\n", ctid, was)
			return err
		})
		_, overwritten := errors.AsType[*confstore.DigestError](err)
		switch {
		case err == nil:
			fmt.Printf("done %d\n", ctid)
		case overwritten:
			fmt.Printf("unclear %d\n", ctid)
		default:
			return err
		}
	}
}

// helperStormProxmox is the monitor of one container from its start to the end of its post-stop hook.
func helperStormProxmox(root, ctidText string) error {
	n, err := strconv.Atoi(ctidText)
	if err != nil {
		return err
	}
	go endWithTest()
	s, ctid := storeIn(root), int32(n)
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@%s/lxc/%d/command", root, ctid)})
	if err != nil {
		return err
	}
	var state atomic.Uint64
	state.Store(uint64(lxcmon.Running))
	go acceptCommands(lis, &state)
	for range rand.IntN(30) {
		if err := proxmoxSet(s, randomCTID()); err != nil {
			return err
		}
	}
	state.Store(uint64(lxcmon.Stopping))
	lis.Close()
	f, err := s.Read(ctid)
	if err != nil {
		return err
	}
	time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond) // not for anything: this is what makes the hook dangerous
	conf := pveconf.Parse(f)
	if err := errors.Join(conf.ApplyPending(), proxmoxWrite(s, ctid, conf)); err != nil {
		return err
	}
	fmt.Printf("hook %d\n", ctid)
	return nil
}

// acceptCommands answers as LXC's monitor does. A connection on which nothing is asked stays open until the process ends.
func acceptCommands(lis *net.UnixListener, state *atomic.Uint64) {
	for {
		conn, err := lis.AcceptUnix()
		if err != nil {
			return
		}
		go func() {
			var request, answer [16]byte
			if _, err := io.ReadFull(conn, request[:]); err == nil {
				binary.NativeEndian.PutUint64(answer[8:], state.Load())
				_, _ = conn.Write(answer[:])
			}
			conn.Close()
		}()
	}
}

// proxmoxSet is pct set: under the lock, into the pending section and the main one.
func proxmoxSet(s *confstore.Store, ctid int32) error {
	lock, err := os.OpenFile(filepath.Join(s.LockDir, fmt.Sprintf("pve-config-%d.lock", ctid)), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	fmt.Printf("edit %d\n", ctid)
	b, err := s.Read(ctid)
	if err != nil {
		return err
	}
	main, _ := pveconf.Split(b)
	f := pveconf.Parse(main)
	was, err := count(f, stormEditors)
	if err != nil {
		return err
	}
	fmt.Printf("read %d %d\n", ctid, was)
	pending := fmt.Sprintf("\n[pve:pending]\nswap: %d\n", was)
	if err := proxmoxWrite(s, ctid, pveconf.Parse(append(f.Bytes(), pending...))); err != nil {
		return err
	}
	fmt.Printf("done %d\n", ctid)
	return nil
}

// proxmoxWrite is PVE::File, file_set_contents.
func proxmoxWrite(s *confstore.Store, ctid int32, f *pveconf.File) error {
	b, err := f.Canonical()
	if err != nil {
		return err
	}
	path := stormPath(s, ctid)
	temp := fmt.Sprintf("%s.tmp.%d", path, os.Getpid())
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = file.Write(b)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

func stormPath(s *confstore.Store, ctid int32) string {
	return filepath.Join(s.PVE, "nodes/pve1/lxc", fmt.Sprintf("%d.conf", ctid))
}

// A ledger follows the lines of one writer. It knows which values each of its counters can have.
type ledger struct {
	possible  map[int32]map[int]bool
	attempted map[int32][]int // by the edit that is under way

	done, unclear, again, hooks int
}

func newLedger() *ledger {
	l := &ledger{possible: make(map[int32]map[int]bool), attempted: make(map[int32][]int)}
	for ctid := int32(stormFirst); ctid < stormFirst+stormConfs; ctid++ {
		l.possible[ctid] = map[int]bool{0: true}
	}
	return l
}

// end is the end of an edit that may have been made, or not.
func (l *ledger) end() {
	for ctid, values := range l.attempted {
		for _, v := range values {
			l.possible[ctid][v] = true
		}
	}
	clear(l.attempted)
}

func (l *ledger) line(text string) error {
	var what string
	var ctid int32
	var value int
	if n, _ := fmt.Sscan(text, &what, &ctid, &value); n < 2 {
		return errors.New(text)
	}
	switch what {
	case "edit":
		l.end()
	case "read":
		tried := l.attempted[ctid]
		if !l.possible[ctid][value] && !slices.Contains(tried, value) {
			return fmt.Errorf("CTID %d: counter is %d, can only be one of %v or %v: an edit was lost", ctid, value, l.possible[ctid], tried)
		}
		if len(tried) == 0 {
			l.possible[ctid] = map[int]bool{value: true} // from here on it is known
		} else {
			l.again++
		}
		l.attempted[ctid] = append(tried, value+1)
	case "done":
		l.done++
		tried := l.attempted[ctid]
		l.possible[ctid] = map[int]bool{tried[len(tried)-1]: true}
		clear(l.attempted)
	case "unclear":
		l.unclear++
		l.end()
	case "hook":
		l.hooks++
	default:
		return errors.New(text)
	}
	return nil
}

// Whatever is killed when, no edit that was acknowledged is lost, ours or Proxmox's; no reader ever sees a torn conf; and
// nothing is left.
func TestTenThousandEdits(t *testing.T) {
	s := newStore(t)
	root := filepath.Dir(s.PVE)
	for ctid := int32(stormFirst); ctid < stormFirst+stormConfs; ctid++ {
		if err := os.WriteFile(stormPath(s, ctid), []byte(stormConf(ctid)), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), 9*time.Minute)
	defer stop()
	fail := func(format string, args ...any) {
		t.Errorf(format, args...)
		stop()
	}
	var done, reads, kills atomic.Int64
	ledgers := make([]*ledger, stormEditors+1)
	var group sync.WaitGroup
	for slot := range ledgers {
		ledgers[slot] = newLedger()
		group.Go(func() {
			for ctx.Err() == nil {
				killed, err := storm(ctx, root, slot, func(line string) error {
					before := ledgers[slot].done
					err := ledgers[slot].line(line)
					if slot < stormEditors && ledgers[slot].done > before && done.Add(1) >= int64(*edits) {
						stop()
					}
					return err
				})
				if err != nil {
					fail("writer %d: %v", slot, err)
				}
				if killed {
					kills.Add(1)
				}
				ledgers[slot].end()
			}
		})
	}
	group.Go(func() {
		for ; ctx.Err() == nil; reads.Add(1) {
			if err := whole(s, randomCTID()); err != nil {
				fail("%v", err)
			}
		}
	})
	group.Wait()

	removed, err := s.Sweep()
	if err != nil {
		t.Error(err)
	}
	wantFiles(t, s, "101.conf", "102.conf", "103.conf")
	for ctid := int32(stormFirst); ctid < stormFirst+stormConfs; ctid++ {
		if s.Held(ctid) {
			t.Errorf("the lock of CTID %d is held", ctid)
		}
		for slot, l := range ledgers {
			_, err := s.Edit(t.Context(), ctid, "", alice, func(f *pveconf.File) error {
				value, err := count(f, slot)
				if err == nil && !l.possible[ctid][value] {
					t.Errorf("CTID %d: the counter of writer %d is %d at the end, want one of %v", ctid, slot, value, l.possible[ctid])
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
		revisions, err := s.Revisions(ctid)
		if err != nil || len(revisions) == 0 {
			t.Errorf("CTID %d: revisions %v, error %v", ctid, revisions, err)
		}
		for _, r := range revisions {
			if _, _, err := s.Revision(ctid, r.Number); err != nil {
				t.Error(err)
			}
		}
	}
	total := ledger{}
	for _, l := range ledgers[:stormEditors] {
		total.unclear += l.unclear
		total.again += l.again
	}
	proxmox := ledgers[stormEditors]
	t.Logf("%d edits acknowledged; functions called again after a stop: %d; %d edits ended unclear; %d rewrites with the lock and %d without; %d kills; %d reads; %d left-overs swept",
		done.Load(), total.again, total.unclear, proxmox.done, proxmox.hooks, kills.Load(), reads.Load(), len(removed))
	if done.Load() < int64(*edits) {
		t.Errorf("%d edits, want %d", done.Load(), *edits)
	}
	if proxmox.done == 0 || proxmox.hooks == 0 || kills.Load() == 0 {
		t.Error("not everything that is to be survived has happened")
	}
}

// storm runs one writer until it is killed at a moment that is any, or ends by itself, and passes on its lines.
func storm(ctx context.Context, root string, slot int, line func(string) error) (killed bool, err error) {
	cmd := exec.Command("/proc/self/exe", root, strconv.Itoa(slot))
	cmd.Env = append(os.Environ(), helperEnv+"=storm-edit", atOnce)
	if slot == stormEditors {
		ctid := strconv.Itoa(int(randomCTID()))
		cmd.Args = []string{"lxc-start", "-F", "-n", ctid}
		cmd.Env = append(os.Environ(), helperEnv+"=storm-proxmox", stormEnv+"="+root, atOnce)
	}
	// Its end goes with this process, and with it the writer.
	if _, err := cmd.StdinPipe(); err != nil {
		return false, err
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	limited, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(500))*time.Millisecond)
	defer cancel()
	unwatch := context.AfterFunc(limited, func() { _ = cmd.Process.Kill() })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if err == nil {
			err = line(lines.Text())
		}
	}
	killed = !unwatch()
	if werr := cmd.Wait(); werr != nil && !killed {
		err = errors.Join(err, werr)
	}
	return killed, err
}

// stormEnv has the place of the confs, because the command line is that of lxc-start.
const stormEnv = "PHOENIX_CONFSTORE_STORM"

// whole reads a conf and looks whether it is one of those that somebody meant to write.
func whole(s *confstore.Store, ctid int32) error {
	b, err := s.Read(ctid)
	if err != nil {
		return err
	}
	f := pveconf.Parse(b)
	host, _ := f.Property("hostname")
	if raw := len(f.Raw()); raw != stormPadding+stormEditors+1 || host != fmt.Sprintf("ct%d", ctid) || !strings.HasSuffix(string(b), "\n") || len(f.Warnings()) != 0 {
		return fmt.Errorf("CTID %d: torn conf of %d bytes with %d raw lines, hostname %q, warnings %v", ctid, len(b), raw, host, f.Warnings())
	}
	return nil
}
