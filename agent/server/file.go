package server

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"phoenix.internal/agent/transfer"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// Limits of the kernel, less the NUL.
const (
	maxFilePathBytes = 4095
	maxFileNameBytes = 255
	maxID            = 1<<32 - 2
)

// Files copies files into and out of containers.
type Files interface {
	Push(ctx context.Context, ctid int32, target transfer.Target) (*transfer.Push, error)
	Pull(ctx context.Context, ctid int32, source transfer.Source, start func(transfer.Info) error, w io.Writer) (transfer.Digest, error)
}

type fileServer struct {
	agentv1.UnimplementedFileServiceServer
	node  *Node
	execs *execServer // with which transfers share the limits
}

func (s *fileServer) Push(stream agentv1.FileService_PushServer) error {
	first, err := receiveFirst(stream.Recv)
	if err != nil {
		return err
	}
	start := first.GetInput().GetStart()
	if start == nil {
		return invalid("input", "the first message must be start")
	}
	target, err := targetOf(start)
	if err != nil {
		return err
	}
	leave, instance, err := s.enter(stream.Context(), start.GetCtid())
	if err != nil {
		return err
	}
	defer leave()
	t := &fileLog{node: s.node, ctid: start.GetCtid(), path: target.Path}
	err = s.push(stream, t, target, instance)
	t.write(stream.Context(), "file pushed", err)
	return ofCTID(start.GetCtid(), err)
}

// ofCTID gives an error its CTID, unless it is a status already.
func ofCTID(ctid int32, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return &ctidError{ctid, err}
}

func (s *fileServer) push(stream agentv1.FileService_PushServer, t *fileLog, target transfer.Target, instance string) error {
	p, err := s.node.Files.Push(stream.Context(), t.ctid, target)
	if err != nil {
		return err
	}
	defer p.Close()
	t.path = p.Path
	if err := stream.Send(pushResponse(&typev1.FilePushOutput{Output: &typev1.FilePushOutput_Ready{Ready: &typev1.FilePushReady{
		Path: p.Path, PartialBytes: p.Partial.Size, PartialSha256: p.Partial.SHA256, Instance: instance,
	}}})); err != nil {
		return err
	}
	// A Recv returns when this handler has, at the latest; so does the goroutine.
	type result struct {
		done    transfer.Done
		resumed int64
		err     error
	}
	received := make(chan result, 1)
	go func() {
		var r result
		r.done, r.resumed, r.err = receiveFile(stream, p)
		received <- r
	}()
	var r result
	select {
	case r = <-received:
	case <-p.Failed(): // the caller need not say anything for that
		select {
		case r = <-received: // it may be that what ended well
		default:
			r.err = p.Err()
		}
	}
	if r.err != nil {
		return r.err
	}
	t.digest, t.resumed = r.done.Digest, r.resumed
	return stream.Send(pushResponse(&typev1.FilePushOutput{Output: &typev1.FilePushOutput_Done{Done: &typev1.FilePushDone{
		Path: r.done.Path, End: endOf(r.done.Digest), ResumedBytes: r.resumed,
	}}}))
}

func pushResponse(out *typev1.FilePushOutput) *agentv1.PushResponse {
	return &agentv1.PushResponse{Output: out}
}

// receiveFile passes the caller's file on.
func receiveFile(stream agentv1.FileService_PushServer, p *transfer.Push) (done transfer.Done, resumed int64, err error) {
	for begun := false; ; begun = true {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return done, 0, invalid("input", "the stream ended before end")
		}
		if err != nil {
			return done, 0, err
		}
		switch in := req.GetInput().GetInput().(type) {
		case *typev1.FilePushInput_Begin:
			resumed = in.Begin.GetOffset()
			if begun || resumed != 0 && resumed != p.Partial.Size {
				return done, 0, invalid("input.begin", "%d is neither 0 nor partial_bytes, or begin came before", resumed)
			}
			err = p.Begin(resumed)
		case *typev1.FilePushInput_Data:
			if !begun {
				return done, 0, invalid("input", "data before begin")
			}
			if len(in.Data) > transfer.Chunk {
				return done, 0, invalid("input.data", "%d bytes in one message; at most %d are allowed", len(in.Data), transfer.Chunk)
			}
			_, err = p.Write(in.Data)
		case *typev1.FilePushInput_End:
			if !begun {
				return done, 0, invalid("input", "end before begin")
			}
			whole, err := digestOf("input.end", in.End.GetSize(), in.End.GetSha256())
			if err != nil {
				return done, 0, err
			}
			done, err = p.Commit(whole)
			return done, resumed, err
		default:
			return done, 0, invalid("input", "only the first message may be start")
		}
		if err != nil {
			return done, 0, err
		}
	}
}

func (s *fileServer) Pull(req *agentv1.PullRequest, stream agentv1.FileService_PullServer) error {
	pull := req.GetPull()
	if err := checkCTID(pull.GetCtid()); err != nil {
		return err
	}
	if err := checkFilePath("pull.path", pull.GetPath()); err != nil {
		return err
	}
	source := transfer.Source{Path: pull.GetPath()}
	if pull.GetPartialBytes() != 0 {
		var err error
		if source.Partial, err = digestOf("pull.partial_sha256", pull.GetPartialBytes(), pull.GetPartialSha256()); err != nil {
			return err
		}
	}
	leave, instance, err := s.enter(stream.Context(), pull.GetCtid())
	if err != nil {
		return err
	}
	defer leave()
	t := &fileLog{node: s.node, ctid: pull.GetCtid(), path: pull.GetPath()}
	err = s.pull(stream, t, source, instance)
	t.write(stream.Context(), "file pulled", err)
	return ofCTID(pull.GetCtid(), err)
}

func (s *fileServer) pull(stream agentv1.FileService_PullServer, t *fileLog, source transfer.Source, instance string) error {
	send := func(out *typev1.FilePullOutput) error {
		return stream.Send(&agentv1.PullResponse{Output: out})
	}
	whole, err := s.node.Files.Pull(stream.Context(), t.ctid, source, func(info transfer.Info) error {
		t.resumed = info.Offset
		return send(&typev1.FilePullOutput{Output: &typev1.FilePullOutput_Start{Start: &typev1.FilePullStart{
			Offset: info.Offset, Size: info.Size, Mode: int32(info.Mode), ModifyTime: timestamppb.New(info.ModTime), Instance: instance,
		}}})
	}, writerFunc(func(b []byte) (int, error) {
		return len(b), send(&typev1.FilePullOutput{Output: &typev1.FilePullOutput_Data{Data: b}})
	}))
	if err != nil {
		return err
	}
	t.digest = whole
	return send(&typev1.FilePullOutput{Output: &typev1.FilePullOutput_End{End: endOf(whole)}})
}

// enter counts a transfer, of a container that runs.
func (s *fileServer) enter(ctx context.Context, ctid int32) (leave func(), instance string, err error) {
	leave, err = s.execs.enter(ctid)
	if err != nil {
		return nil, "", err
	}
	running, err := s.node.Containers.Running(ctx, ctid)
	if err != nil {
		leave()
		return nil, "", &ctidError{ctid, err}
	}
	return leave, running.Instance, nil
}

// A fileLog is the line about one transfer: which file went where, and what it was.
type fileLog struct {
	node    *Node
	ctid    int32
	path    string
	digest  transfer.Digest
	resumed int64
}

func (t *fileLog) write(ctx context.Context, what string, err error) {
	attrs := []any{"ctid", t.ctid, "path", t.path, "peer", caller(ctx), "request_id", requestID(ctx)}
	if err != nil {
		what = strings.Replace(what, "file ", "file not ", 1)
		attrs = append(attrs, "err", err)
	} else {
		attrs = append(attrs, "bytes", t.digest.Size, "resumed_bytes", t.resumed, "sha256", hex.EncodeToString(t.digest.SHA256))
	}
	t.node.Log.Info(what, attrs...)
}

// targetOf checks what a push asks for.
func targetOf(start *typev1.FilePushStart) (transfer.Target, error) {
	t := transfer.Target{
		Path: start.GetPath(), Name: start.GetName(), IntoDirectory: start.GetIntoDirectory(),
		Size: -1, Mode: uint32(start.GetMode()), NoResume: start.GetNoResume(),
	}
	if err := checkCTID(start.GetCtid()); err != nil {
		return t, err
	}
	if err := checkFilePath("start.path", t.Path); err != nil {
		return t, err
	}
	if len(t.Name) > maxFileNameBytes || strings.ContainsAny(t.Name, "/\x00") || t.Name == "." || t.Name == ".." {
		return t, invalid("start.name", "%.80q is not a name of at most %d bytes", t.Name, maxFileNameBytes)
	}
	if start.GetMode() < 0 || start.GetMode() > 0o777 {
		return t, invalid("start.mode", "%#o is not between 0 and 0777", start.GetMode())
	}
	if start.Size != nil {
		if t.Size = start.GetSize(); t.Size < 0 {
			return t, invalid("start.size", "%d is less than 0", t.Size)
		}
	}
	if o := start.GetOwner(); o != nil {
		if o.GetUid() < 0 || o.GetUid() > maxID || o.GetGid() < 0 || o.GetGid() > maxID {
			return t, invalid("start.owner", "%d:%d are not numbers from 0 to %d", o.GetUid(), o.GetGid(), int64(maxID))
		}
		t.Owner = &transfer.Owner{UID: o.GetUid(), GID: o.GetGid()}
	}
	if at := start.GetModifyTime(); at != nil {
		if err := at.CheckValid(); err != nil {
			return t, invalid("start.modify_time", "%v", err)
		}
		t.ModTime = at.AsTime()
	}
	return t, nil
}

func checkFilePath(field, path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return invalid(field, "%.80q is not an absolute path", path)
	case strings.ContainsRune(path, 0):
		return invalid(field, "%.80q holds a NUL", path)
	case len(path) > maxFilePathBytes:
		return invalid(field, "%d bytes are more than %d", len(path), maxFilePathBytes)
	}
	return nil
}

func digestOf(field string, size int64, sha256 []byte) (transfer.Digest, error) {
	if size < 0 || len(sha256) != 32 {
		return transfer.Digest{}, invalid(field, "%d bytes with a digest of %d bytes; a SHA-256 has 32", size, len(sha256))
	}
	return transfer.Digest{Size: size, SHA256: sha256}, nil
}

func endOf(d transfer.Digest) *typev1.FileEnd {
	return &typev1.FileEnd{Size: d.Size, Sha256: d.SHA256}
}
