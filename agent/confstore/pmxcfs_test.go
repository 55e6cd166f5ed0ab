package confstore_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/confstore"
)

// A pmxcfs is a double of Proxmox's file system over FUSE, with the modes, errors and gaps of the real one
// (cfs-plug-memdb.c, dcdb.c). It lives in another process: one that serves its own system calls can stop itself.
type pmxcfs struct {
	t     testing.TB
	stdin io.Writer
	lines *bufio.Reader
}

// mountPVE mounts a double over the confs of a new store.
func mountPVE(t testing.TB) (*confstore.Store, *pmxcfs) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a mount needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("this machine has no FUSE: %v", err)
	}
	s := newStore(t)
	backing := s.PVE
	s.PVE = filepath.Join(t.TempDir(), "pve")
	if err := os.Mkdir(s.PVE, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", backing, s.PVE)
	cmd.Env = append(os.Environ(), helperEnv+"=pmxcfs")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(s.PVE, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		if err := errors.Join(cmd.Process.Kill(), cmd.Wait()); !strings.Contains(fmt.Sprint(err), "killed") {
			t.Error(err)
		}
	})
	p := &pmxcfs{t: t, stdin: stdin, lines: bufio.NewReader(stdout)}
	p.expect("ready")
	return s, p
}

func (p *pmxcfs) expect(want string) {
	p.t.Helper()
	if line, err := p.lines.ReadString('\n'); line != want+"\n" {
		p.t.Fatalf("the file system says %q, %v, want %q", line, err, want)
	}
}

func (p *pmxcfs) tell(format string, args ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.stdin, format+"\n", args...); err != nil {
		p.t.Fatal(err)
	}
	p.expect("done")
}

// fail makes an operation fail from now on; 0 makes it work again.
func (p *pmxcfs) fail(operation string, errno syscall.Errno) {
	p.t.Helper()
	p.tell("fail %s %d", operation, errno)
}

// hang makes the calls of an operation wait for resume, before they do anything.
func (p *pmxcfs) hang(operation string) { p.t.Helper(); p.tell("hang %s", operation) }

func (p *pmxcfs) resume() { p.t.Helper(); p.tell("resume") }

// overwrite lets somebody else write right after the next rename.
func (p *pmxcfs) overwrite() { p.t.Helper(); p.tell("overwrite") }

// failAfterwards lets the next rename work and report EBUSY.
func (p *pmxcfs) failAfterwards() { p.t.Helper(); p.tell("failAfterwards") }

// breakDatabase lets every write fail from now on, as a full root disk does.
func (p *pmxcfs) breakDatabase() { p.t.Helper(); p.tell("breakDatabase") }

func (p *pmxcfs) quorum(has bool) { p.t.Helper(); p.tell("quorum %t", has) }

// operations are those of FUSE (linux/fuse.h) that the double knows.
var operations = map[uint32]string{
	1: "lookup", 3: "getattr", 4: "setattr", 5: "readlink", 10: "unlink", 12: "rename", 14: "open", 15: "read", 16: "write",
	18: "release", 25: "flush", 26: "init", 27: "opendir", 28: "readdir", 29: "releasedir", 35: "create", 40: "poll",
	45: "rename", // with flags
}

// A server is the double's own process.
type server struct {
	dev  int
	root string // what it shows

	mu     sync.Mutex
	paths  map[uint64]string // by node
	nodes  map[string]uint64
	errnos map[string]syscall.Errno
	hung   map[string]chan struct{}
	quorum bool

	overwrite, failAfterwards, broken bool
}

// helperPmxcfs mounts the double and serves it until stdin ends.
func helperPmxcfs(backing, mountpoint string) error {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev)
	if err := unix.Mount("pmxcfs", mountpoint, "fuse.pmxcfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return err
	}
	s := &server{
		dev: dev, root: backing, quorum: true,
		paths: map[uint64]string{1: ""}, nodes: map[string]uint64{"": 1},
		errnos: make(map[string]syscall.Errno), hung: make(map[string]chan struct{}),
	}
	go func() {
		for request := make([]byte, 1<<18); ; {
			n, err := unix.Read(dev, request)
			if err == unix.EINTR || err == unix.ENOENT { // interrupted before it was read
				continue
			}
			if err != nil {
				return // unmounted
			}
			go s.serve(bytes.Clone(request[:n]))
		}
	}()
	fmt.Println("ready")
	for commands := bufio.NewScanner(os.Stdin); commands.Scan(); {
		s.command(strings.Fields(commands.Text()))
		fmt.Println("done")
	}
	return unix.Unmount(mountpoint, unix.MNT_DETACH) // the test is gone
}

func (s *server) command(words []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch words[0] {
	case "fail":
		n, _ := strconv.Atoi(words[2])
		s.errnos[words[1]] = syscall.Errno(n)
	case "hang":
		s.hung[words[1]] = make(chan struct{})
	case "resume":
		for _, c := range s.hung {
			close(c)
		}
		clear(s.hung)
	case "overwrite":
		s.overwrite = true
	case "failAfterwards":
		s.failAfterwards = true
	case "breakDatabase":
		s.broken = true
	case "quorum":
		s.quorum = words[1] == "true"
	}
}

func (s *server) serve(request []byte) {
	op := binary.NativeEndian.Uint32(request[4:])
	name := operations[op]
	s.mu.Lock()
	hung := s.hung[name]
	s.mu.Unlock()
	if hung != nil {
		<-hung
	}
	if op == 2 || op == 36 || op == 42 { // forget, interrupt, batch forget: no answer
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	body, errno := []byte(nil), s.errnos[name]
	if errno == 0 {
		body, errno = s.answer(op, binary.NativeEndian.Uint64(request[16:]), request[40:])
	}
	if errno != 0 {
		body = nil
	}
	out := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	out = binary.NativeEndian.AppendUint32(out, uint32(-int32(errno)))
	out = append(out, request[8:16]...)
	// The caller may be gone.
	_, _ = unix.Write(s.dev, append(out, body...))
}

func (s *server) answer(op uint32, node uint64, arg []byte) ([]byte, syscall.Errno) {
	path := filepath.Join(s.root, s.paths[node])
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(arg[at:]) }
	u64 := func(at int) uint64 { return binary.NativeEndian.Uint64(arg[at:]) }
	names := func(at int) []string { return strings.Split(strings.TrimSuffix(string(arg[at:]), "\x00"), "\x00") }
	child := func(node uint64, name string) string { return filepath.Join(s.paths[node], name) }
	// pmxcfs decides, not the mode: no write of anybody's is taken without quorum, or once the database has failed.
	refused := syscall.Errno(0)
	switch {
	case !s.quorum:
		refused = syscall.EACCES
	case s.broken:
		refused = syscall.EIO
	}
	const directIO = 1
	switch operations[op] {
	case "init":
		out := make([]byte, 64)
		binary.NativeEndian.PutUint32(out[0:], 7)
		binary.NativeEndian.PutUint32(out[4:], 31)
		binary.NativeEndian.PutUint32(out[20:], 1<<17) // max_write
		return out, 0
	case "lookup":
		return s.entry(child(node, names(0)[0]))
	case "getattr":
		attr, errno := s.attr(s.paths[node])
		return append(make([]byte, 16), attr...), errno
	case "setattr":
		return s.setattr(path, s.paths[node], u32(0), u32(68), u32(76), u32(80), int64(u64(16)), refused)
	case "readlink":
		target, err := os.Readlink(path)
		return []byte(target), errnoOf(err)
	case "open", "opendir":
		out := make([]byte, 16)
		if operations[op] == "open" {
			binary.NativeEndian.PutUint32(out[8:], directIO)
		}
		return out, 0
	case "release", "releasedir", "flush":
		return nil, 0
	case "read":
		b, err := os.ReadFile(path)
		from := min(int(u64(8)), len(b))
		return b[from:min(from+int(u32(16)), len(b))], errnoOf(err)
	case "readdir":
		return s.list(path, int(u64(8)), int(u32(16)))
	case "create":
		if refused != 0 {
			return nil, refused
		}
		at := child(node, names(16)[0])
		if s.takenElsewhere(at, "") {
			return nil, syscall.EEXIST
		}
		f, err := os.OpenFile(filepath.Join(s.root, at), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, errnoOf(err)
		}
		f.Close()
		out, errno := s.entry(at)
		opened := make([]byte, 16)
		binary.NativeEndian.PutUint32(opened[8:], directIO)
		return append(out, opened...), errno
	case "write":
		if refused != 0 {
			return nil, refused
		}
		if u64(8)+uint64(u32(16)) > confstore.MaxSize {
			return nil, syscall.EFBIG
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, errnoOf(err)
		}
		defer f.Close()
		n, err := f.WriteAt(arg[40:40+u32(16)], int64(u64(8)))
		return binary.NativeEndian.AppendUint64(nil, uint64(n)), errnoOf(err)
	case "unlink":
		if refused != 0 {
			return nil, refused
		}
		return nil, errnoOf(os.Remove(filepath.Join(s.root, child(node, names(0)[0]))))
	case "rename":
		if refused != 0 {
			return nil, refused
		}
		at := 8
		if op == 45 {
			at = 16
		}
		n := names(at)
		from, to := child(node, n[0]), child(u64(0), n[1])
		if s.takenElsewhere(to, from) {
			return nil, syscall.EEXIST
		}
		if err := os.Rename(filepath.Join(s.root, from), filepath.Join(s.root, to)); err != nil {
			return nil, errnoOf(err)
		}
		s.nodes[to], s.paths[s.nodes[from]] = s.nodes[from], to
		delete(s.nodes, from)
		if s.failAfterwards {
			s.failAfterwards = false
			return nil, syscall.EBUSY
		}
		if s.overwrite {
			s.overwrite = false
			return nil, errnoOf(os.WriteFile(filepath.Join(s.root, to), []byte("memory: 7\n"), 0o640))
		}
		return nil, 0
	case "poll":
		fmt.Fprintln(os.Stderr, "pmxcfs double: somebody polls a file")
		os.Exit(1)
	}
	return nil, syscall.ENOSYS // fsync, link, symlink, mknod, ...
}

// takenElsewhere says whether a path is that of a guest whose number another one in the cluster has. It may be the one
// that is moved there.
func (s *server) takenElsewhere(to, from string) bool {
	if !guest.MatchString(to) {
		return false
	}
	taken, _ := filepath.Glob(filepath.Join(s.root, "nodes/*/*", filepath.Base(to)))
	return slices.ContainsFunc(taken, func(path string) bool {
		return path != filepath.Join(s.root, to) && path != filepath.Join(s.root, from)
	})
}

var guest = regexp.MustCompile(`^nodes/[^/]+/(lxc|qemu-server)/[1-9][0-9]*\.conf$`)

// setattr takes no other mode and no other owner than files have anyway (cfs_fuse_chmod, cfs_fuse_chown).
func (s *server) setattr(path, rel string, valid, mode, uid, gid uint32, size int64, refused syscall.Errno) ([]byte, syscall.Errno) {
	const setMode, setUID, setGID, setSize = 1, 2, 4, 8
	switch {
	case valid&setMode != 0 && mode&0o7777 != 0o640, valid&setUID != 0 && uid != 0, valid&setGID != 0 && gid != 33:
		return nil, syscall.EPERM
	case valid&setSize != 0 && refused != 0:
		return nil, refused
	case valid&setSize != 0:
		if err := os.Truncate(path, size); err != nil {
			return nil, errnoOf(err)
		}
	}
	attr, errno := s.attr(rel)
	return append(make([]byte, 16), attr...), errno
}

// entry is struct fuse_entry_out.
func (s *server) entry(path string) ([]byte, syscall.Errno) {
	attr, errno := s.attr(path)
	if errno != 0 {
		return nil, errno
	}
	if _, ok := s.nodes[path]; !ok {
		s.nodes[path] = uint64(len(s.paths) + 1)
		s.paths[s.nodes[path]] = path
	}
	out := binary.NativeEndian.AppendUint64(nil, s.nodes[path])
	return append(append(out, make([]byte, 32)...), attr...), 0 // nothing is cached
}

// attr is struct fuse_attr.
func (s *server) attr(path string) ([]byte, syscall.Errno) {
	info, err := os.Lstat(filepath.Join(s.root, path))
	if err != nil {
		return nil, errnoOf(err)
	}
	mode := uint32(unix.S_IFREG | 0o640)
	switch {
	case info.IsDir():
		mode = unix.S_IFDIR | 0o755
	case info.Mode()&fs.ModeSymlink != 0:
		mode = unix.S_IFLNK | 0o755
	}
	if !s.quorum && path != "" {
		mode &^= 0o222
	}
	out := make([]byte, 88)
	st := info.Sys().(*syscall.Stat_t)
	binary.NativeEndian.PutUint64(out[0:], st.Ino)
	binary.NativeEndian.PutUint64(out[8:], uint64(info.Size()))
	for _, at := range []int{24, 32, 40} {
		binary.NativeEndian.PutUint64(out[at:], uint64(info.ModTime().Unix()))
	}
	binary.NativeEndian.PutUint32(out[60:], mode)
	binary.NativeEndian.PutUint32(out[64:], 1)
	binary.NativeEndian.PutUint32(out[72:], 33) // www-data
	return out, 0
}

// list is a series of struct fuse_dirent.
func (s *server) list(path string, from, size int) ([]byte, syscall.Errno) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, errnoOf(err)
	}
	var out []byte
	for i := from; i < len(entries); i++ {
		name := entries[i].Name()
		d := binary.NativeEndian.AppendUint64(nil, uint64(i+2))
		d = binary.NativeEndian.AppendUint64(d, uint64(i+1))
		d = binary.NativeEndian.AppendUint32(d, uint32(len(name)))
		d = binary.NativeEndian.AppendUint32(d, 0)
		d = append(d, name...)
		d = append(d, make([]byte, (8-len(d)%8)%8)...)
		if len(out)+len(d) > size {
			break
		}
		out = append(out, d...)
	}
	return out, 0
}

func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return syscall.EIO
}
