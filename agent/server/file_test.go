package server_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"phoenix.internal/agent/agenttest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

func pushStream(t *testing.T, n *agenttest.Node) agentv1.FileService_PushClient {
	t.Helper()
	stream, err := agentv1.NewFileServiceClient(n.Dial(t)).Push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func pushStart(start *typev1.FilePushStart) *typev1.FilePushInput {
	return &typev1.FilePushInput{Input: &typev1.FilePushInput_Start{Start: start}}
}

func pushBegin(offset int64) *typev1.FilePushInput {
	return &typev1.FilePushInput{Input: &typev1.FilePushInput_Begin{Begin: &typev1.FilePushBegin{Offset: offset}}}
}

func pushData(b []byte) *typev1.FilePushInput {
	return &typev1.FilePushInput{Input: &typev1.FilePushInput_Data{Data: b}}
}

func pushEnd(size int64, sha256 []byte) *typev1.FilePushInput {
	return &typev1.FilePushInput{Input: &typev1.FilePushInput_End{End: &typev1.FileEnd{Size: size, Sha256: sha256}}}
}

// pushAll sends messages, reads the answers to the end, and returns the last.
func pushAll(stream agentv1.FileService_PushClient, inputs ...*typev1.FilePushInput) (last *typev1.FilePushOutput, err error) {
	for _, in := range inputs {
		if err := stream.Send(&agentv1.PushRequest{Input: in}); err != nil {
			break // Recv says why
		}
	}
	_ = stream.CloseSend() // always nil
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return last, err
		}
		last = resp.GetOutput()
	}
}

func TestPushAndPull(t *testing.T) {
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	varlib := n.MakeVarLib(901)
	content := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	sum := sha256.Sum256(content)
	inputs := []*typev1.FilePushInput{pushStart(&typev1.FilePushStart{Ctid: 901, Path: "/var/lib", Name: "x", Mode: 0o640}), pushBegin(0)}
	for rest := content; len(rest) > 0; {
		chunk := rest[:min(len(rest), 32<<10)]
		rest = rest[len(chunk):]
		inputs = append(inputs, pushData(chunk))
	}
	last, err := pushAll(pushStream(t, n), append(inputs, pushEnd(int64(len(content)), sum[:]))...)
	if done := last.GetDone(); err != nil || done.GetPath() != "/var/lib/x" || !bytes.Equal(done.GetEnd().GetSha256(), sum[:]) {
		t.Fatalf("push: %v, %v", last, err)
	}
	if b, err := os.ReadFile(filepath.Join(varlib, "x")); err != nil || !bytes.Equal(b, content) {
		t.Errorf("%d other bytes are there, %v", len(b), err)
	}

	half := sha256.Sum256(content[:80_000])
	stream, err := agentv1.NewFileServiceClient(n.Dial(t)).Pull(t.Context(), &agentv1.PullRequest{
		Pull: &typev1.FilePull{Ctid: 901, Path: "/var/lib/x", PartialBytes: 80_000, PartialSha256: half[:]},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	var start *typev1.FilePullStart
	var end *typev1.FileEnd
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch out := resp.GetOutput().GetOutput().(type) {
		case *typev1.FilePullOutput_Start:
			start = out.Start
		case *typev1.FilePullOutput_Data:
			got = append(got, out.Data...)
		case *typev1.FilePullOutput_End:
			end = out.End
		}
	}
	if start.GetOffset() != 80_000 || start.GetSize() != 160_000 || start.GetMode() != 0o640 || start.GetInstance() == "" {
		t.Errorf("start of the pull: %v", start)
	}
	if !bytes.Equal(got, content[80_000:]) || !bytes.Equal(end.GetSha256(), sum[:]) {
		t.Errorf("the pull gave %d bytes and %v", len(got), end)
	}
}

func TestPushRefusals(t *testing.T) {
	n := newNode(t)
	n.PutConf(902, plain)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	varlib := n.MakeVarLib(901)
	x := func(start *typev1.FilePushStart) *typev1.FilePushInput {
		start.Ctid = 901
		if start.Path == "" {
			start.Path = "/var/lib/x"
		}
		return pushStart(start)
	}
	one := []byte("x")
	for _, tc := range []struct {
		name   string
		inputs []*typev1.FilePushInput
		code   codes.Code
		text   string
	}{
		{"nothing", nil, codes.InvalidArgument, "input: the stream ended before start"},
		{"no start", []*typev1.FilePushInput{pushData(one)}, codes.InvalidArgument, "input: the first message must be start"},
		{"no CTID", []*typev1.FilePushInput{pushStart(&typev1.FilePushStart{Path: "/x"})}, codes.InvalidArgument, "ctid: 0 is not between 100 and 999999999"},
		{"a relative path", []*typev1.FilePushInput{x(&typev1.FilePushStart{Path: "x"})}, codes.InvalidArgument, `start.path: "x" is not an absolute path`},
		{"NUL in the path", []*typev1.FilePushInput{x(&typev1.FilePushStart{Path: "/x\x00"})}, codes.InvalidArgument, `start.path: "/x\x00" holds a NUL`},
		{"a long path", []*typev1.FilePushInput{x(&typev1.FilePushStart{Path: "/" + strings.Repeat("x", 4095)})}, codes.InvalidArgument, "start.path: 4096 bytes are more than 4095"},
		{"a name with a slash", []*typev1.FilePushInput{x(&typev1.FilePushStart{Name: "../x"})}, codes.InvalidArgument, `start.name: "../x" is not a name of at most 255 bytes`},
		{"the parent as a name", []*typev1.FilePushInput{x(&typev1.FilePushStart{Name: ".."})}, codes.InvalidArgument, `start.name: ".." is not a name of at most 255 bytes`},
		{"a mode that sets the user", []*typev1.FilePushInput{x(&typev1.FilePushStart{Mode: 0o4755})}, codes.InvalidArgument, "start.mode: 04755 is not between 0 and 0777"},
		{"the owner that means none", []*typev1.FilePushInput{x(&typev1.FilePushStart{Owner: &typev1.FileOwner{Uid: 1<<32 - 1}})}, codes.InvalidArgument, "start.owner: 4294967295:0 are not numbers from 0 to 4294967294"},
		{"data before begin", []*typev1.FilePushInput{x(&typev1.FilePushStart{}), pushData(one)}, codes.InvalidArgument, "input: data before begin"},
		{"begin in the middle of nothing", []*typev1.FilePushInput{x(&typev1.FilePushStart{}), pushBegin(7)}, codes.InvalidArgument, "input.begin: 7 is neither 0 nor partial_bytes, or begin came before"},
		{"too much at once", []*typev1.FilePushInput{x(&typev1.FilePushStart{}), pushBegin(0), pushData(make([]byte, 32<<10+1))}, codes.InvalidArgument, "input.data: 32769 bytes in one message; at most 32768 are allowed"},
		{"no end", []*typev1.FilePushInput{x(&typev1.FilePushStart{}), pushBegin(0)}, codes.InvalidArgument, "input: the stream ended before end"},
		{"no digest", []*typev1.FilePushInput{x(&typev1.FilePushStart{}), pushBegin(0), pushEnd(0, one)}, codes.InvalidArgument, "input.end: 0 bytes with a digest of 1 bytes; a SHA-256 has 32"},
		{"another digest", []*typev1.FilePushInput{x(&typev1.FilePushStart{}), pushBegin(0), pushData(one), pushEnd(1, make([]byte, 32))}, codes.Aborted,
			"/var/lib/x: what arrived is not what was sent: 1 bytes with SHA-256 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881 instead of 1 with " + strings.Repeat("0", 64)},
		{"a container that does not run", []*typev1.FilePushInput{pushStart(&typev1.FilePushStart{Ctid: 902, Path: "/x"})}, codes.FailedPrecondition, "CTID 902: container does not run (stopped)"},
		{"a container that is not there", []*typev1.FilePushInput{pushStart(&typev1.FilePushStart{Ctid: 999, Path: "/x"})}, codes.NotFound, "conf of CTID 999: no such container on this node"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			last, err := pushAll(pushStream(t, n), tc.inputs...)
			if status.Code(err) != tc.code || status.Convert(err).Message() != tc.text {
				t.Errorf("got %v, %v\nwant %v: %s", last, err, tc.code, tc.text)
			}
		})
	}
	if names, err := filepath.Glob(varlib + "/.*"); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

// Transfers and commands share their limits.
func TestTransfersCountAsExecs(t *testing.T) {
	n := newNode(t)
	if err := n.Runtime.Start(t.Context(), 901); err != nil {
		t.Fatal(err)
	}
	n.MakeVarLib(901)
	client := agentv1.NewFileServiceClient(n.Dial(t))
	for i := range 8 {
		stream, err := client.Push(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := pushStart(&typev1.FilePushStart{Ctid: 901, Path: "/var/lib/" + string(rune('a'+i))})
		if err := stream.Send(&agentv1.PushRequest{Input: start}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil { // ready
			t.Fatal(err)
		}
	}
	stream := execStream(t, n)
	send(t, stream, startCommand(&typev1.ExecStart{Ctid: 901, Argv: []string{"true"}}))
	if _, _, exit, err := collect(stream); status.Code(err) != codes.ResourceExhausted || reason(t, err) != "LIMIT_EXCEEDED" {
		t.Errorf("a command beside eight pushes: %v, %v", exit, err)
	}
}
