package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// pull copies a file out of a container.
func (c *copying) pull(ctx context.Context) (done copied, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	to := &pulled{copying: c, w: c.s.out, sum: sha256.New(), target: "-"}
	if !c.target.standard() {
		if to.target, err = c.targetFile(); err != nil {
			return done, err
		}
		if err := to.open(); err != nil {
			return done, err
		}
		defer func() { err = errors.Join(err, to.close()) }()
	}
	pull := &typev1.FilePull{Ctid: c.source.ctid, Path: c.source.path}
	if to.had > 0 {
		pull.PartialBytes, pull.PartialSha256 = to.had, to.sum.Sum(nil)
	}
	stream, err := c.files.Pull(ctx, &controllerv1.PullRequest{Pull: pull})
	if err != nil {
		return done, err
	}
	end, err := to.receive(stream)
	if err != nil {
		return done, err
	}
	if err := sameContent(end, c.at, to.sum.Sum(nil)); err != nil {
		to.useless = true
		return done, err
	}
	if to.partial != nil {
		if err := to.finish(); err != nil {
			return done, err
		}
	}
	return copied{
		Source: c.source.String(), Target: to.target,
		Bytes: c.at, ResumedBytes: to.start.GetOffset(), SHA256: hex.EncodeToString(end.GetSha256()),
	}, nil
}

// targetFile is the path of the file here: in a directory under its own name, and with links followed.
func (c *copying) targetFile() (string, error) {
	target := c.target.path
	info, err := os.Stat(target)
	switch {
	case err == nil && info.IsDir():
		target = filepath.Join(target, path.Base(path.Clean(c.source.path)))
		if info, err = os.Stat(target); err == nil && info.IsDir() {
			return "", fmt.Errorf("%s is a directory: a file does not replace it", target)
		}
	case c.several, strings.HasSuffix(target, "/"):
		return "", fmt.Errorf("%s is no directory", target)
	}
	switch {
	case err == nil && !info.Mode().IsRegular():
		return "", &failure{err: fmt.Errorf("%s is no regular file", target), hint: "To write to it: phoenix-cli cp " + c.source.String() + " - > " + target}
	case err == nil:
		return filepath.EvalSymlinks(target)
	case !errors.Is(err, os.ErrNotExist):
		return "", err
	}
	if link, err := os.Readlink(target); err == nil {
		return "", fmt.Errorf("%s is a link to nothing: %s", target, link)
	}
	return target, nil
}

// A pulled is a file that grows here.
type pulled struct {
	*copying
	target  string // its path once it is whole, or "-"
	w       io.Writer
	partial *os.File // nil: stdout
	had     int64    // how much of it is there already
	sum     hash.Hash
	start   *typev1.FilePullStart
	useless bool // the partial file cannot be gone on with
	placed  bool // it has taken the target's place
}

func (p *pulled) partialPath() string {
	dir, name := filepath.Split(p.target)
	if name = "." + name + ".phoenix-partial"; len(name) > 255 {
		sum := sha256.Sum256([]byte(name))
		name = "." + hex.EncodeToString(sum[:]) + ".phoenix-partial"
	}
	return dir + name
}

// open opens the partial file, and reads what is in it.
func (p *pulled) open() error {
	name := p.partialPath()
	flags := os.O_RDWR | os.O_CREATE | os.O_EXCL
	if info, err := os.Lstat(name); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode() == 0o600 && int(st.Uid) == os.Geteuid() && st.Nlink == 1 {
			flags = os.O_RDWR | syscall.O_NOFOLLOW
		} else if err := os.Remove(name); err != nil { // somebody else's
			return err
		}
	}
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("%s: another copy to it is under way", p.target), f.Close())
	}
	p.partial, p.w, p.kept = f, f, true
	p.had, err = io.Copy(p.sum, f)
	if err != nil {
		return errors.Join(err, p.close())
	}
	return nil
}

func (p *pulled) receive(stream controllerv1.FileService_PullClient) (*typev1.FileEnd, error) {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the answer ended before the file did")
		}
		if err != nil {
			return nil, err
		}
		switch out := r.GetOutput().GetOutput().(type) {
		case *typev1.FilePullOutput_Start:
			if err := p.begin(out.Start); err != nil {
				return nil, err
			}
		case *typev1.FilePullOutput_Data:
			if _, err := p.w.Write(out.Data); err != nil {
				p.useless = errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
				return nil, err
			}
			p.sum.Write(out.Data)
			p.moved(len(out.Data))
		case *typev1.FilePullOutput_End:
			return out.End, nil
		}
	}
}

func (p *pulled) begin(start *typev1.FilePullStart) error {
	p.start, p.size, p.at = start, start.GetSize(), start.GetOffset()
	if p.partial == nil {
		return nil
	}
	if p.at != p.had { // it is another file
		p.sum.Reset()
		if err := p.partial.Truncate(0); err != nil {
			return err
		}
		if _, err := p.partial.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(p.partial.Fd()), &st); err == nil && st.Blocks > 0 {
		if free := int64(st.Bavail) * int64(st.Bsize); p.size-p.at > free {
			p.useless = true
			return fmt.Errorf("%s: it needs %d bytes more, and its file system has %d free", p.target, p.size-p.at, free)
		}
	}
	return nil
}

// finish puts the whole file in its place.
func (p *pulled) finish() error {
	mode := os.FileMode(p.start.GetMode()) & 0o777
	if !p.o.preserve {
		mask := syscall.Umask(0)
		syscall.Umask(mask)
		mode &^= os.FileMode(mask)
	}
	if err := p.partial.Sync(); err != nil {
		return err
	}
	if err := p.partial.Chmod(mode); err != nil {
		return err
	}
	if at := p.start.GetModifyTime().AsTime(); p.o.preserve {
		if err := os.Chtimes(p.partial.Name(), at, at); err != nil {
			return err
		}
	}
	if err := os.Rename(p.partial.Name(), p.target); err != nil {
		return err
	}
	p.placed = true
	return nil
}

// close closes the partial file, and removes it if it is of no use.
func (p *pulled) close() error {
	info, err := p.partial.Stat()
	if err == nil && !p.placed && (info.Size() == 0 || p.useless) {
		err = os.Remove(p.partial.Name())
	}
	return errors.Join(err, p.partial.Close())
}
