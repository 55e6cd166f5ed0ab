// Package transfer copies single regular files into and out of LXC containers. A process inside the container opens
// them, in its namespaces and as its root, so the container's links lead to where they lead in the container, and no path
// of the container's is ever resolved on the host. That process is this program: see [attach.Helper] and [Main].
//
// The container is taken to be hostile: it can end or starve that process, give any content and any answer, but make
// nothing of it on the host.
package transfer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"phoenix.internal/agent/attach"
)

// ErrBrokenOff is wrapped by errors about a transfer that ended before the file did, and that may be continued by the
// same transfer again.
var ErrBrokenOff = errors.New("the transfer was broken off")

// A Kind is what is wrong with a file in a container.
type Kind string

// The kinds.
const (
	NotFound Kind = "not found" // the file, or the directory for it
	Refused  Kind = "refused"   // not a regular file, or its file system refuses
	NoSpace  Kind = "no space"
	Changed  Kind = "changed" // the content while it was copied
)

// A FileError tells why a file in a container cannot be read or written. Nothing is left of it there, other than of what
// is only broken off.
type FileError struct {
	Kind    Kind   `json:"kind"`
	Path    string `json:"path"`
	Message string `json:"message"` // about the path; holds no control characters
}

func (e *FileError) Error() string { return e.Path + ": " + e.Message }

// A Target is a file to be written.
type Target struct {
	Path string `json:"path"` // absolute; a directory if the file goes into it as Name
	Name string `json:"name,omitempty"`

	IntoDirectory bool      `json:"into_directory,omitempty"` // Path must be a directory
	Size          int64     `json:"size"`                     // -1: not known
	Mode          uint32    `json:"mode"`                     // permission bits
	Owner         *Owner    `json:"owner,omitempty"`          // nil: of the file that is replaced, or root's
	ModTime       time.Time `json:"mod_time,omitzero"`        // zero: none given
	NoResume      bool      `json:"no_resume,omitempty"`      // overwrite what an earlier transfer left, leave nothing
}

// Owner is an owner and a group in the container's numbers.
type Owner struct {
	UID int64 `json:"uid"`
	GID int64 `json:"gid"`
}

// A Source is a file to be read.
type Source struct {
	Path    string `json:"path"`    // absolute
	Partial Digest `json:"partial"` // of the beginning that the reader has already
}

// A Digest is a number of bytes and their SHA-256.
type Digest struct {
	Size   int64  `json:"size"`
	SHA256 []byte `json:"sha256"`
}

func (d Digest) check() error {
	if d.Size < 0 || len(d.SHA256) != sha256.Size && (d.Size != 0 || len(d.SHA256) != 0) {
		return protocol("no SHA-256 of so many bytes")
	}
	return nil
}

// Info is what is known of a file before its content.
type Info struct {
	Offset  int64     `json:"offset"` // where the content begins: after the reader's part, or 0
	Size    int64     `json:"size"`   // 0 also for one whose file system does not tell
	Mode    uint32    `json:"mode"`   // permission bits
	ModTime time.Time `json:"mod_time"`
}

// Done is what became of a [Target].
type Done struct {
	Path   string `json:"path"` // with links followed and the name added
	Digest Digest `json:"digest"`
}

// An Attacher starts our own program inside containers.
type Attacher interface {
	Start(ctx context.Context, c attach.Command) (*attach.Process, error)
	Program() (*os.File, error)
}

// A Mover copies files of the node's containers. Its methods may be called at the same time.
type Mover struct {
	Attacher Attacher
	Idle     time.Duration // without progress, after which a transfer is broken off; 0: 5 min
}

// longest bounds a transfer.
const longest = 24 * time.Hour

// A Push is a file on its way into a container. Only Failed and Close may be called at the same time as others.
type Push struct {
	session *session
	// Path is the file's path in the container, and Partial what an earlier transfer left of it.
	Path    string
	Partial Digest
}

// Push begins to write a file in a running container. The caller goes on with Begin, Write and Commit, and calls Close in
// any case. When ctx is done the transfer is broken off. The errors are a [*FileError], an [ErrBrokenOff], an
// [attach.ErrAttach] or the context's.
func (m *Mover) Push(ctx context.Context, ctid int32, target Target) (*Push, error) {
	s, err := m.start(ctx, ctid, nil)
	if err != nil {
		return nil, err
	}
	p := &Push{session: s}
	var r ready
	err = s.send(kindRequest, request{Push: &target})
	if err == nil {
		err = s.receive(kindReady, &r)
	}
	if err == nil {
		err = r.Partial.check()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	p.Path, p.Partial = printable(r.Path), r.Partial
	return p, nil
}

// Begin says where the content goes on: after Partial, or at 0.
func (p *Push) Begin(offset int64) error {
	return p.session.send(kindBegin, begin{offset})
}

// Write implements [io.Writer], for the content.
func (p *Push) Write(b []byte) (int, error) {
	n := 0
	for len(b) > n {
		chunk := b[n:min(n+Chunk, len(b))]
		if err := p.session.write(kindData, chunk); err != nil {
			return n, err
		}
		n += len(chunk)
	}
	return n, nil
}

// Commit puts the file in its place, if it is whole.
func (p *Push) Commit(whole Digest) (Done, error) {
	var done Done
	err := p.session.send(kindEnd, whole)
	if err == nil {
		err = p.session.receive(kindDone, &done)
	}
	if err == nil {
		err = done.Digest.check()
	}
	if err != nil {
		return Done{}, err
	}
	done.Path = printable(done.Path)
	return done, nil
}

// Failed is closed when the transfer has ended, or cannot go on; Err then says why.
func (p *Push) Failed() <-chan struct{} { return p.session.failed }

// Err is why the transfer ended.
func (p *Push) Err() error { return p.session.err() }

// Close ends the transfer, if it has not ended, and the process in the container.
func (p *Push) Close() { p.session.close() }

// Pull reads a file in a running container: it calls start with what is known of it, and writes its content to w, from
// the offset on, in pieces of at most [Chunk] bytes. The digest is of the whole file. Errors are those of [Mover.Push]
// and those of start and w.
//
// A Write that blocks makes the container wait, at most for Idle. Then Pull returns, while the Write may go on.
func (m *Mover) Pull(ctx context.Context, ctid int32, source Source, start func(Info) error, w io.Writer) (Digest, error) {
	in := &incoming{start: start, w: w}
	s, err := m.start(ctx, ctid, in)
	if err != nil {
		return Digest{}, err
	}
	defer s.close()
	var whole Digest
	err = s.send(kindRequest, request{Pull: &source})
	if err == nil {
		err = s.receive(kindEnd, &whole)
	}
	if err == nil {
		err = whole.check()
	}
	if err != nil {
		return Digest{}, err
	}
	if !in.started {
		return Digest{}, protocol("nothing about the file")
	}
	return whole, nil
}

// incoming is where the frames of a pull go.
type incoming struct {
	start   func(Info) error
	w       io.Writer
	started bool
}

func (in *incoming) frame(k kind, payload []byte) error {
	switch {
	case k == kindStart && !in.started:
		var info Info
		if err := json.Unmarshal(payload, &info); err != nil {
			return protocol("%v", err)
		}
		if info.Offset < 0 || info.Size < 0 {
			return protocol("a size less than 0")
		}
		in.started = true
		info.Mode &= 0o777
		return in.start(info)
	case k == kindData && in.started:
		_, err := in.w.Write(payload)
		return err
	}
	return protocol("a frame of kind %q", k)
}

// The values of frames that nobody else sees.
type (
	request struct {
		Push *Target `json:"push,omitempty"`
		Pull *Source `json:"pull,omitempty"`
	}
	ready struct {
		Path    string `json:"path"`
		Partial Digest `json:"partial"`
	}
	begin struct {
		Offset int64 `json:"offset"`
	}
)

func (m *Mover) idle() time.Duration { return cmp.Or(m.Idle, 5*time.Minute) }

// printable replaces what a terminal could take for more than a character, and bounds the text.
func printable(text string) string {
	const most = 4 << 10
	if len(text) > most {
		text = text[:most]
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
