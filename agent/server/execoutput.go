package server

import (
	"io"
	"slices"
	"sync"
	"time"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// How much output a message holds. grpc takes buffers of 4, 16 or 1024 KiB (mem.DefaultBufferPool), and below 1 KiB just
// what it needs; several wait for a caller that does not read. Each of these fits into its buffer together with the
// message's headers, and the largest into one HTTP/2 frame.
const (
	smallOutput  = 512
	exactOutput  = 1<<10 - 64
	mediumOutput = 4<<10 - 64
	outputChunk  = 16<<10 - 64
)

// outputs sends the command's output. Send blocks while the caller does not read: that is the back-pressure we want.
type outputs struct {
	mu     sync.Mutex
	stream agentv1.ExecService_ExecServer
	ended  bool // the exit, which is the last message, was sent

	once  sync.Once
	stuck chan struct{} // closed when the caller has left output unread for too long
}

func (o *outputs) giveUp() { o.once.Do(func() { close(o.stuck) }) }

func (o *outputs) send(out *typev1.ExecOutput) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return nil
	}
	o.ended = out.GetExit() != nil
	unread := time.AfterFunc(maxUnread, o.giveUp)
	defer unread.Stop()
	return o.stream.Send(&agentv1.ExecResponse{Output: out})
}

func (o *outputs) writer(wrap func([]byte) *typev1.ExecOutput) io.Writer {
	return writerFunc(func(b []byte) (int, error) {
		n := 0
		for chunk := range slices.Chunk(b, outputChunk) {
			out := wrap(chunk)
			if missing := paddedSize(len(chunk)) - len(chunk); missing > 0 {
				out.Padding = padding[:missing]
			}
			if err := o.send(out); err != nil {
				return n, err
			}
			n += len(chunk)
		}
		return n, nil
	})
}

var padding [outputChunk]byte

// paddedSize returns to how many bytes a message with n bytes of output is padded: to what it takes of memory anyway.
// Else a command that writes byte by byte could make us and the caller hold many times what the windows allow, which
// count only what is sent.
func paddedSize(n int) int {
	switch {
	case n <= smallOutput:
		return smallOutput // with some hundred bytes for the message's own
	case n <= exactOutput:
		return n
	case n <= mediumOutput:
		return mediumOutput
	}
	return outputChunk
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
