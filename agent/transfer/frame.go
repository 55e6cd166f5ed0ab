package transfer

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A frame is what travels between the agent and its process in the container, over the pipes that are the latter's stdin
// and stdout: a byte for its kind, the length of its payload in four bytes, big endian, and the payload.
type kind byte

// The kinds. All but data carry a value as JSON.
const (
	kindRequest kind = 'q' // a Target or a Source; the first frame
	kindReady   kind = 'r' // a ready
	kindBegin   kind = 'b' // a begin
	kindStart   kind = 's' // an Info
	kindData    kind = 'd' // bytes of the file
	kindEnd     kind = 'e' // a Digest
	kindDone    kind = 'o' // a Done
	kindBusy    kind = 'w' // nothing: the process works on what makes no bytes move
	kindFailed  kind = 'f' // a FileError; the last frame
)

// Chunk is the most bytes of a file in one frame.
const Chunk = 32 << 10

// maxPayload bounds a payload: a request with a path of 4095 bytes, each of which JSON may need six for.
const maxPayload = 64 << 10

const headerBytes = 5

// A frameWriter writes frames, each in one Write.
type frameWriter struct {
	w   io.Writer
	buf []byte
}

func (w *frameWriter) write(k kind, payload []byte) error {
	w.buf = append(w.buf[:0], byte(k))
	w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(len(payload)))
	w.buf = append(w.buf, payload...)
	_, err := w.w.Write(w.buf)
	return err
}

func (w *frameWriter) value(k kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.write(k, b)
}

// A frameReader reads frames; a payload is good until the next one.
type frameReader struct {
	r   io.Reader
	buf [maxPayload]byte
}

// read returns io.EOF at the end, also in the middle of a frame.
func (r *frameReader) read() (kind, []byte, error) {
	header := r.buf[:headerBytes]
	if err := readFull(r.r, header); err != nil {
		return 0, nil, err
	}
	k, size := kind(header[0]), binary.BigEndian.Uint32(header[1:])
	if size > maxPayload {
		return 0, nil, errors.New("a frame is too long")
	}
	payload := r.buf[:size]
	return k, payload, readFull(r.r, payload)
}

func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

// value reads a frame of this kind into v.
func (r *frameReader) value(want kind, v any) error {
	k, payload, err := r.read()
	if err != nil {
		return err
	}
	if k != want {
		return fmt.Errorf("a frame of kind %q instead of %q", k, want)
	}
	return json.Unmarshal(payload, v)
}

// A frameSplitter is an [io.Writer] that hands on the frames in what is written to it. What writes to it may be hostile.
type frameSplitter struct {
	frame func(kind, []byte) error
	rest  []byte // of a frame that is not complete
}

// Write implements [io.Writer].
func (s *frameSplitter) Write(b []byte) (int, error) {
	s.rest = append(s.rest, b...)
	at := 0
	for {
		rest := s.rest[at:]
		if len(rest) < headerBytes {
			break
		}
		size := int(binary.BigEndian.Uint32(rest[1:]))
		if size > maxPayload || kind(rest[0]) == kindData && size > Chunk {
			return 0, protocol("a frame of %d bytes", size)
		}
		if len(rest) < headerBytes+size {
			break
		}
		if err := s.frame(kind(rest[0]), rest[headerBytes:headerBytes+size]); err != nil {
			return 0, err
		}
		at += headerBytes + size
	}
	s.rest = append(s.rest[:0], s.rest[at:]...)
	return len(b), nil
}
