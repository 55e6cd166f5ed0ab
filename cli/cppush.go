package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// fileChunk is how much of a file is in one message.
const fileChunk = 32 << 10

// defaultMode is of a file that comes from stdin.
const defaultMode = 0o644

// push copies a file into a container.
func (c *copying) push(ctx context.Context) (done copied, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, info, size, err := c.openSource()
	if err != nil {
		return done, err
	}
	if f, ok := r.(*os.File); ok && !c.source.standard() {
		defer f.Close()
	}
	c.size, c.kept = size, size != unknownSize
	stream, err := c.files.Push(ctx)
	if err != nil {
		return done, err
	}
	p := &pushing{copying: c, stream: stream, sum: sha256.New()}
	if err := p.send(&typev1.FilePushInput{Input: &typev1.FilePushInput_Start{Start: c.start(info)}}); err != nil {
		return done, err
	}
	out, err := stream.Recv()
	if err != nil {
		return done, err
	}
	ready := out.GetOutput().GetReady()
	offset, err := p.resume(r, ready)
	if err != nil {
		return done, err
	}
	if err := p.send(&typev1.FilePushInput{Input: &typev1.FilePushInput_Begin{Begin: &typev1.FilePushBegin{Offset: offset}}}); err != nil {
		return done, err
	}
	if err := p.content(r); err != nil {
		return done, err
	}
	if err := unchanged(r, info, c.at); err != nil {
		return done, err
	}
	end := &typev1.FileEnd{Size: c.at, Sha256: p.sum.Sum(nil)}
	if err := p.send(&typev1.FilePushInput{Input: &typev1.FilePushInput_End{End: end}}); err != nil {
		return done, err
	}
	if out, err = stream.Recv(); err != nil {
		return done, err
	}
	there := out.GetOutput().GetDone()
	if err := sameContent(there.GetEnd(), end.GetSize(), end.GetSha256()); err != nil {
		return done, err
	}
	return copied{
		Source: c.source.String(), Target: place{c.target.ctid, there.GetPath()}.String(),
		Bytes: end.GetSize(), ResumedBytes: offset, SHA256: hex.EncodeToString(end.GetSha256()),
	}, nil
}

// start says what goes where.
func (c *copying) start(info os.FileInfo) *typev1.FilePushStart {
	start := &typev1.FilePushStart{
		Ctid: c.target.ctid, Path: c.target.path, Mode: defaultMode, Owner: c.o.owner,
		IntoDirectory: c.several || strings.HasSuffix(c.target.path, "/"), NoResume: !c.kept,
	}
	if info == nil {
		return start
	}
	start.Name, start.Mode = filepath.Base(c.source.path), int32(info.Mode().Perm())
	if c.size != unknownSize {
		start.Size = &c.size
	}
	if c.o.preserve {
		start.ModifyTime = timestamppb.New(info.ModTime())
	}
	return start
}

// A pushing is a copying with its stream.
type pushing struct {
	*copying
	stream controllerv1.FileService_PushClient
	sum    hash.Hash
}

// send sends a message. If the other side has ended the call, the error is why.
func (p *pushing) send(in *typev1.FilePushInput) error {
	err := p.stream.Send(&controllerv1.PushRequest{Input: in})
	if errors.Is(err, io.EOF) {
		_, err = p.stream.Recv()
	}
	return err
}

// resume reads what is there already, if it is the beginning of this file, and returns how much that is.
func (p *pushing) resume(r io.Reader, ready *typev1.FilePushReady) (int64, error) {
	n := ready.GetPartialBytes()
	f, ok := r.(io.ReadSeeker)
	if !ok || n <= 0 || n > p.size {
		return 0, nil
	}
	if _, err := io.CopyN(p.sum, f, n); err != nil {
		return 0, err
	}
	if bytes.Equal(p.sum.Sum(nil), ready.GetPartialSha256()) {
		p.at = n
		return n, nil
	}
	p.sum.Reset()
	_, err := f.Seek(0, io.SeekStart)
	return 0, err
}

func (p *pushing) content(r io.Reader) error {
	buf := make([]byte, fileChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			p.sum.Write(buf[:n])
			if err := p.send(&typev1.FilePushInput{Input: &typev1.FilePushInput_Data{Data: buf[:n]}}); err != nil {
				return err
			}
			p.moved(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// unchanged makes sure that a file has not changed since it was opened.
func unchanged(r io.Reader, before os.FileInfo, read int64) error {
	f, ok := r.(*os.File)
	if !ok || before == nil || !before.Mode().IsRegular() {
		return nil
	}
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if read != before.Size() || now.Size() != before.Size() || !now.ModTime().Equal(before.ModTime()) {
		return &failure{err: fmt.Errorf("%s changed while it was read", f.Name()), hint: "Nothing was replaced. Repeat it when nobody writes the file."}
	}
	return nil
}
