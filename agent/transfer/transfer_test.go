package transfer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/lxctest"
	"phoenix.internal/agent/transfer"
)

func TestMain(m *testing.M) { lxctest.Main(m) }

// newMover returns a mover with a helper program of its own.
func newMover(t *testing.T) *transfer.Mover {
	t.Helper()
	program := filepath.Join(t.TempDir(), "helper")
	build := exec.Command("go", "build", "-o", program, "./testdata/helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	return &transfer.Mover{Attacher: attach.Attacher{Helper: &attach.Helper{Path: program}}}
}

// random returns so many bytes that do not repeat, the same each time.
func random(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func digest(b []byte) transfer.Digest {
	sum := sha256.Sum256(b)
	return transfer.Digest{Size: int64(len(b)), SHA256: sum[:]}
}

// push writes content, going on where an earlier push of it ended, and returns where that was.
func push(ctx context.Context, m *transfer.Mover, ctid int32, target transfer.Target, content []byte) (resumed int64, path string, err error) {
	p, err := m.Push(ctx, ctid, target)
	if err != nil {
		return 0, "", err
	}
	defer p.Close()
	if n := p.Partial.Size; n > 0 && n <= int64(len(content)) && bytes.Equal(digest(content[:n]).SHA256, p.Partial.SHA256) {
		resumed = n
	}
	if err := p.Begin(resumed); err != nil {
		return resumed, "", err
	}
	if _, err := p.Write(content[resumed:]); err != nil {
		return resumed, "", err
	}
	done, err := p.Commit(digest(content))
	if err == nil && !bytes.Equal(done.Digest.SHA256, digest(content).SHA256) {
		err = fmt.Errorf("the digest is %x", done.Digest.SHA256)
	}
	return resumed, done.Path, err
}

// pull reads a file, of which had is there already.
func pull(ctx context.Context, m *transfer.Mover, ctid int32, path string, had []byte) (info transfer.Info, content []byte, err error) {
	var got bytes.Buffer
	source := transfer.Source{Path: path}
	if len(had) > 0 {
		source.Partial = digest(had)
	}
	whole, err := m.Pull(ctx, ctid, source, func(i transfer.Info) error {
		info = i
		got.Write(had[:i.Offset])
		return nil
	}, &got)
	if err == nil && (whole.Size != int64(got.Len()) || !bytes.Equal(whole.SHA256, digest(got.Bytes()).SHA256)) {
		err = fmt.Errorf("%d bytes arrived, and the digest is of %d others", got.Len(), whole.Size)
	}
	return info, got.Bytes(), err
}

func file(path string) transfer.Target { return transfer.Target{Path: path, Size: -1, Mode: 0o644} }

func TestSizes(t *testing.T) {
	lxctest.Require(t)
	m := newMover(t)
	for _, unprivileged := range []bool{false, true} {
		t.Run(fmt.Sprintf("unprivileged %v", unprivileged), func(t *testing.T) {
			c := lxctest.Start(t, lxctest.Config{Unprivileged: unprivileged})
			for _, size := range []int{0, 1, 32<<10 - 1, 32 << 10, 32<<10 + 1, 5_000_000} {
				content := random(size)
				if _, path, err := push(t.Context(), m, c.CTID, file("/tmp/a file"), content); err != nil || path != "/tmp/a file" {
					t.Fatalf("push %d bytes: %q, %v", size, path, err)
				}
				if b, err := os.ReadFile(c.Rootfs + "/tmp/a file"); err != nil || !bytes.Equal(b, content) {
					t.Errorf("push %d bytes: %d other bytes are there, %v", size, len(b), err)
				}
				info, got, err := pull(t.Context(), m, c.CTID, "/tmp/a file", nil)
				if err != nil || !bytes.Equal(got, content) || info.Size != int64(size) || info.Mode != 0o644 {
					t.Errorf("pull %d bytes: %+v, %d other bytes, %v", size, info, len(got), err)
				}
			}
			if got := c.Run(t, "ls -A /tmp"); got != "a file\n" {
				t.Errorf("/tmp holds %q, want only the file", got)
			}
		})
	}
}

// The mode and the owner are those asked for; without an owner, those of the file that is replaced, or root's.
func TestModeOwnerAndTime(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{Unprivileged: true})
	m := newMover(t)
	c.Run(t, "echo old >/tmp/old; chown 33:34 /tmp/old; chmod 600 /tmp/old")
	at := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	for _, target := range []transfer.Target{
		{Path: "/tmp/new", Mode: 0o4751},
		{Path: "/tmp/old", Mode: 0o640},
		{Path: "/tmp/owned", Mode: 0o600, Owner: &transfer.Owner{UID: 1000, GID: 65535}, ModTime: at},
	} {
		if _, _, err := push(t.Context(), m, c.CTID, target, []byte("x")); err != nil {
			t.Errorf("%s: %v", target.Path, err)
		}
	}
	got := c.Run(t, "stat -c '%n %a %u:%g' /tmp/new /tmp/old /tmp/owned; stat -c %Y /tmp/owned")
	want := "/tmp/new 751 0:0\n/tmp/old 640 33:34\n/tmp/owned 600 1000:65535\n" + fmt.Sprintln(at.Unix())
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	info, _, err := pull(t.Context(), m, c.CTID, "/tmp/owned", nil)
	if err != nil || info.Mode != 0o600 || !info.ModTime.Equal(at) {
		t.Errorf("pull: %+v, %v", info, err)
	}
	if _, _, err := push(t.Context(), m, c.CTID, transfer.Target{Path: "/tmp/x", Owner: &transfer.Owner{UID: 65536}}, nil); err == nil ||
		err.Error() != "/tmp/x: the container has no owner 65536:0: it is beyond its map of numbers" {
		t.Errorf("an owner that is not mapped: %v", err)
	}
}

// cases are the paths that a push or a pull meets. The commands of their container make them.
const makeCases = `set -e; cd /tmp
mkfifo fifo; mkdir dir dir/sub dir/old; echo content >plain
ln -s plain link; ln -s /tmp/dir dirlink; ln -s nowhere dangling; ln -s loop loop; ln -s /dev/null nulllink
truncate -s 8796093022208 huge
mkdir ro full; mount -t tmpfs -o ro none ro; mount -t tmpfs -o size=1m none full
echo mounted >mounted; mount --bind plain mounted
mkdir dir/.file.phoenix-partial
`

func TestPushPlaces(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	m := newMover(t)
	c.Run(t, makeCases)
	long := strings.Repeat("n", 255)
	for _, test := range []struct {
		name   string
		target transfer.Target
		size   int
		path   string // where it went
		kind   transfer.Kind
		want   string // the error
	}{
		{"a new file", file("/tmp/new"), 10, "/tmp/new", "", ""},
		{"a file", file("/tmp/plain"), 10, "/tmp/plain", "", ""},
		{"a link to a file is followed", file("/tmp/link"), 10, "/tmp/plain", "", ""},
		{"into a directory", transfer.Target{Path: "/tmp/dir", Name: "x", Size: -1}, 10, "/tmp/dir/x", "", ""},
		{"into a directory by a link", transfer.Target{Path: "/tmp/dirlink/", Name: "x", IntoDirectory: true, Size: -1}, 10, "/tmp/dir/x", "", ""},
		{"the longest name", file("/tmp/" + long), 10, "/tmp/" + long, "", ""},
		{"dots in the path", file("/tmp/dir/../new"), 10, "/tmp/new", "", ""},

		{"a name that is too long", file("/tmp/n" + long), 0, "", transfer.Refused, "/tmp/n" + long + ": the name is too long for its file system"},
		{"no such directory", file("/no/such/file"), 0, "", transfer.NotFound, "/no/such/file: the container has no directory /no/such"},
		{"below a file", file("/tmp/plain/x"), 0, "", transfer.NotFound, "/tmp/plain/x: a part of its path in the container is not a directory"},
		{"a directory that is none", transfer.Target{Path: "/tmp/plain", Name: "x", IntoDirectory: true}, 0, "", transfer.Refused, "/tmp/plain: is not a directory"},
		{"a directory that is not there", transfer.Target{Path: "/tmp/none/", Name: "x"}, 0, "", transfer.NotFound, "/tmp/none/: no such directory in the container"},
		{"a directory without a name", file("/tmp/dir"), 0, "", transfer.Refused, "/tmp/dir: is a directory; give the file's path in it"},
		{"a directory of that name in a directory", transfer.Target{Path: "/tmp/dir", Name: "sub"}, 0, "", transfer.Refused, "/tmp/dir/sub: is a directory: a file does not replace it"},
		{"a FIFO", file("/tmp/fifo"), 0, "", transfer.Refused, "/tmp/fifo: is a FIFO; only regular files are replaced"},
		{"a device", file("/dev/null"), 0, "", transfer.Refused, "/dev/null: is a device; only regular files are replaced"},
		{"a link to a device", file("/tmp/nulllink"), 0, "", transfer.Refused, "/tmp/nulllink: is a device; only regular files are replaced"},
		{"a link to nothing", file("/tmp/dangling"), 0, "", transfer.Refused, "/tmp/dangling: is a link to nothing: nowhere"},
		{"a link to itself", file("/tmp/loop"), 0, "", transfer.Refused, "/tmp/loop: too many links lead from one to the next"},
		{"a read-only file system", file("/tmp/ro/x"), 0, "", transfer.Refused, "/tmp/ro/x: the file system there is read-only"},
		{"a mount point", file("/tmp/mounted"), 10, "", transfer.Refused, "/tmp/mounted: it is a mount point by itself, and cannot be replaced"},
		{"a directory in the way", file("/tmp/dir/file"), 0, "", transfer.Refused, "/tmp/dir/file: .file.phoenix-partial beside it is in the way: is a directory"},
		{"a full disk, known before", transfer.Target{Path: "/tmp/full/x", Size: 2_000_000}, 2_000_000, "", transfer.NoSpace, "/tmp/full/x: it needs 2000000 bytes more, and its file system has 1048576 free"},
		{"a full disk", file("/tmp/full/x"), 2_000_000, "", transfer.NoSpace, "/tmp/full/x: no space is left in its file system after 1048576 bytes; they are removed again"},
	} {
		t.Run(test.name, func(t *testing.T) {
			content := random(test.size)
			_, path, err := push(t.Context(), m, c.CTID, test.target, content)
			if test.want == "" {
				if err != nil || path != test.path {
					t.Fatalf("at %q, %v; want it at %s", path, err, test.path)
				}
				if b, err := os.ReadFile(inside(c, t, test.path)); err != nil || !bytes.Equal(b, content) {
					t.Errorf("%d other bytes are there, %v", len(b), err)
				}
				return
			}
			e, ok := errors.AsType[*transfer.FileError](err)
			if !ok || e.Error() != test.want || e.Kind != test.kind {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
	got := c.Run(t, "find / -xdev -name '*.phoenix-partial'; ls -A /tmp/full; readlink /tmp/link")
	if want := "/tmp/dir/.file.phoenix-partial\nplain\n"; got != want {
		t.Errorf("left behind: %q, want %q", got, want)
	}
}

func TestPullPlaces(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	m := newMover(t)
	c.Run(t, makeCases)
	for _, test := range []struct{ path, content, want string }{
		{"/tmp/plain", "content\n", ""},
		{"/tmp/link", "content\n", ""},
		{"/proc/self/comm", "3\n", ""}, // a file of no known size, of the process that reads it: /proc/self/fd/3
		{"/tmp/none", "", "/tmp/none: no such file in the container"},
		{"/tmp/plain/x", "", "/tmp/plain/x: no such file in the container: a part of the path is not a directory"},
		{"/tmp/dangling", "", "/tmp/dangling: no such file in the container"},
		{"/tmp/loop", "", "/tmp/loop: too many links lead from one to the next"},
		{"/tmp/dir", "", "/tmp/dir: is a directory; only regular files are copied"},
		{"/tmp/fifo", "", "/tmp/fifo: is a FIFO; only regular files are copied"},
		{"/dev/zero", "", "/dev/zero: is a device; only regular files are copied"},
	} {
		t.Run(test.path, func(t *testing.T) {
			_, got, err := pull(t.Context(), m, c.CTID, test.path, nil)
			if test.want == "" && (err != nil || string(got) != test.content) {
				t.Errorf("got %q, %v, want %q", got, err, test.content)
			}
			if test.want != "" && (err == nil || err.Error() != test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
	t.Run("a huge sparse file that the reader refuses", func(t *testing.T) {
		refusal := errors.New("too much")
		_, err := m.Pull(t.Context(), c.CTID, transfer.Source{Path: "/tmp/huge"}, func(info transfer.Info) error {
			if info.Size != 8<<40 {
				t.Errorf("size %d, want 8 TiB", info.Size)
			}
			return refusal
		}, io.Discard)
		if !errors.Is(err, refusal) {
			t.Errorf("got %v, want the reader's own", err)
		}
	})
}

// A link that a container puts in the way leads to where it leads there, and not to the host's file of that name.
func TestLinksStayInTheContainer(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	m := newMover(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Run(t, fmt.Sprintf("ln -s %s /tmp/link; ln -s %s /tmp/.new.phoenix-partial; ln -s /proc/1/root%s /tmp/root", secret, secret, secret))
	for _, path := range []string{"/tmp/link", "/tmp/root"} {
		if _, got, err := pull(t.Context(), m, c.CTID, path, nil); err == nil {
			t.Errorf("pull of %s gave %q", path, got)
		}
		if _, _, err := push(t.Context(), m, c.CTID, file(path), []byte("x")); err == nil {
			t.Errorf("push to %s went somewhere", path)
		}
	}
	if _, _, err := push(t.Context(), m, c.CTID, file("/tmp/new"), []byte("x")); err != nil {
		t.Error(err)
	}
	if got := c.Run(t, "cat /tmp/new; ls -A /tmp"); got != "xlink\nnew\nroot\n" {
		t.Errorf("the container holds %q", got)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "of the host" {
		t.Errorf("the host's file holds %q, %v", b, err)
	}
}

// TestKilledAndResumed ends a push at any byte, in the ways that one can end, and goes on.
func TestKilledAndResumed(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{Unprivileged: true})
	m := newMover(t)
	content := random(1_500_000)
	kept := 0
	for round := range 36 {
		at := rand.IntN(len(content) + 1)
		target := file(fmt.Sprintf("/tmp/%d", round))
		p, err := m.Push(t.Context(), c.CTID, target)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Begin(0); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write(content[:at]); err != nil {
			t.Fatal(err)
		}
		if round%2 == 0 { // the process is killed, as when its container is
			c.Run(t, "killall -9 3")
			<-p.Failed()
			if err := p.Err(); !errors.Is(err, transfer.ErrBrokenOff) {
				t.Errorf("killed after %d bytes: %v, want %v", at, err, transfer.ErrBrokenOff)
			}
		}
		p.Close() // the agent's caller is gone
		if _, err := os.Lstat(filepath.Join(c.Rootfs, target.Path)); err == nil {
			t.Fatalf("broken off after %d bytes: the file is there", at)
		}
		resumed, _, err := push(t.Context(), m, c.CTID, target, content)
		if err != nil {
			t.Fatalf("broken off after %d bytes: %v", at, err)
		}
		if resumed > int64(at) {
			t.Errorf("broken off after %d bytes, and %d were there", at, resumed)
		}
		kept += int(min(resumed, 1))
		if b, err := os.ReadFile(filepath.Join(c.Rootfs, target.Path)); err != nil || !bytes.Equal(b, content) {
			t.Fatalf("broken off after %d bytes: %d other bytes are there, %v", at, len(b), err)
		}
		c.Run(t, "rm /tmp/*")
	}
	if kept < 18 {
		t.Errorf("only %d of 36 went on where they had ended", kept)
	}
	if got := c.Run(t, "ls -A /tmp"); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

// What another file left is not gone on with, and what cannot be gone on with is not left.
func TestPartialOfAnother(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	m := newMover(t)
	content := random(100_000)
	leave := func(t *testing.T, target transfer.Target, b []byte) {
		t.Helper()
		p, err := m.Push(t.Context(), c.CTID, target)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := p.Begin(0); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	exists := func() string { return strings.TrimSpace(c.Run(t, "ls -A /tmp")) }
	t.Run("other content", func(t *testing.T) {
		leave(t, file("/tmp/x"), bytes.Repeat([]byte("y"), 200_000))
		if resumed, _, err := push(t.Context(), m, c.CTID, file("/tmp/x"), content); err != nil || resumed != 0 {
			t.Errorf("resumed at %d, %v", resumed, err)
		}
		if b, err := os.ReadFile(c.Rootfs + "/tmp/x"); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%d other bytes are there, %v", len(b), err)
		}
		c.Run(t, "rm /tmp/x")
	})
	t.Run("nothing is left of one that cannot go back", func(t *testing.T) {
		target := file("/tmp/x")
		target.NoResume = true
		p, err := m.Push(t.Context(), c.CTID, target)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(p.Begin(0), write(p, content)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Commit(digest(content[1:])); err == nil || !strings.HasPrefix(err.Error(), "/tmp/x: what arrived is not what was sent: 100000 bytes") {
			t.Errorf("a wrong digest: %v", err)
		}
		p.Close()
		if got := exists(); got != "" {
			t.Errorf("left behind: %s", got)
		}
	})
	t.Run("a file of a user of the container's", func(t *testing.T) {
		c.Run(t, "head -c 50000 /dev/zero >/tmp/.x.phoenix-partial; chmod 600 /tmp/.x.phoenix-partial; chown 5 /tmp/.x.phoenix-partial")
		p, err := m.Push(t.Context(), c.CTID, file("/tmp/x"))
		if err != nil || p.Partial.Size != 0 {
			t.Fatalf("%+v, %v; want nothing left", p, err)
		}
		p.Close()
	})
	t.Run("while another is under way", func(t *testing.T) {
		p, err := m.Push(t.Context(), c.CTID, file("/tmp/x"))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		second := make(chan error, 1)
		go func() {
			_, _, err := push(t.Context(), m, c.CTID, file("/tmp/x"), content)
			second <- err
		}()
		if err := errors.Join(p.Begin(0), write(p, content)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Commit(digest(content)); err != nil {
			t.Fatal(err)
		}
		if err := <-second; err != nil { // it has waited, and not taken the finished file for its own
			t.Error(err)
		}
		if got := exists(); got != "x" {
			t.Errorf("the container holds %q", got)
		}
	})
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

func TestPullResumed(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	m := newMover(t)
	content := random(300_000)
	if err := os.WriteFile(c.Rootfs+"/tmp/x", content, 0o644); err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(content)
	other[0]++
	for _, test := range []struct {
		name   string
		had    []byte
		offset int64
	}{
		{"a part", content[:123_456], 123_456},
		{"all of it", content, 300_000},
		{"another file", other[:200_000], 0},
		{"a longer file", append(bytes.Clone(content), 1), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			info, got, err := pull(t.Context(), m, c.CTID, "/tmp/x", test.had)
			if err != nil || info.Offset != test.offset || !bytes.Equal(got, content) {
				t.Errorf("from %d, %d bytes, %v; want from %d", info.Offset, len(got), err, test.offset)
			}
		})
	}
}

// The ends of a transfer that nobody asked for.
func TestBrokenOff(t *testing.T) {
	c := lxctest.Start(t, lxctest.Config{})
	m := newMover(t)
	begin := func(t *testing.T, ctx context.Context, m *transfer.Mover) *transfer.Push {
		t.Helper()
		p, err := m.Push(ctx, c.CTID, file("/tmp/x"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		if err := errors.Join(p.Begin(0), write(p, []byte("beginning"))); err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Run("nothing moves", func(t *testing.T) {
		p := begin(t, t.Context(), &transfer.Mover{Attacher: m.Attacher, Idle: 300 * time.Millisecond})
		<-p.Failed()
		if err := p.Err(); !errors.Is(err, transfer.ErrBrokenOff) || err.Error() != "the transfer was broken off: nothing moved for 300ms" {
			t.Error(err)
		}
	})
	t.Run("a reader that does not read", func(t *testing.T) {
		c.Run(t, "truncate -s 10M /tmp/much")
		free := make(chan struct{})
		defer close(free)
		patient := &transfer.Mover{Attacher: m.Attacher, Idle: 300 * time.Millisecond}
		_, err := patient.Pull(t.Context(), c.CTID, transfer.Source{Path: "/tmp/much"}, func(transfer.Info) error { return nil },
			writerFunc(func(b []byte) (int, error) { <-free; return len(b), nil }))
		if !errors.Is(err, transfer.ErrBrokenOff) {
			t.Error(err)
		}
	})
	t.Run("the caller goes away", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := begin(t, ctx, m)
		cancel()
		<-p.Failed()
		if err := p.Err(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("the container is stopped", func(t *testing.T) {
		p := begin(t, t.Context(), m)
		c.Stop(t)
		<-p.Failed()
		if err := p.Err(); !errors.Is(err, transfer.ErrBrokenOff) {
			t.Error(err)
		}
		if _, _, err := push(t.Context(), m, c.CTID, file("/tmp/x"), nil); !errors.Is(err, attach.ErrAttach) {
			t.Errorf("of a stopped container: %v, want %v", err, attach.ErrAttach)
		}
		c.Start(t)
		c.Run(t, "rm -f /tmp/y")
		if resumed, _, err := push(t.Context(), m, c.CTID, file("/tmp/x"), []byte("beginning and end")); err != nil || resumed != 9 {
			t.Errorf("restarted: went on at %d, %v; want 9", resumed, err)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// inside is the path on this machine of a container's file: it sees the mounts of the container.
func inside(c *lxctest.Container, t *testing.T, path string) string {
	t.Helper()
	return fmt.Sprintf("/proc/%d/root%s", c.InitPID(t), path)
}
