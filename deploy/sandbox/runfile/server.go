package runfile

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"
)

// A Server serves runfiles as NVIDIA's download host does, each with its ".sha256sum" beside it, and with the faults that
// it is told. Its fields may be changed between requests with [Server.Set].
type Server struct {
	mu     sync.Mutex
	faults Faults
	files  map[string][]byte // by name
	asked  []string          // the name and the range of each request for a runfile
	sent   int64             // bytes of runfiles
}

// Faults are what goes wrong.
type Faults struct {
	CutAt    int64         // bytes of an answer after which the connection ends; 0: none
	StallAt  int64         // bytes of an answer after which no more come; 0: none
	NoRanges bool          // every answer is the whole file
	NoETag   bool          // nor another validator
	WrongSum bool          // what is published is the checksum of something else
	Delay    time.Duration // before each 64 KiB
	Status   int           // instead of the file
	Redirect string        // instead of the file
}

// Set changes the faults.
func (s *Server) Set(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// Put adds a file, or changes it.
func (s *Server) Put(name string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = make(map[string][]byte)
	}
	s.files[name] = content
}

// Asked returns what was asked for since the last call: "NAME", or "NAME bytes=10-" for a part; and how many bytes of
// runfiles were sent.
func (s *Server) Asked() (requests []string, sent int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests, sent = s.asked, s.sent
	s.asked, s.sent = nil, 0
	return requests, sent
}

// ServeHTTP implements [http.Handler]. The file's directory does not matter.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, sum := strings.CutSuffix(path.Base(r.URL.Path), ".sha256sum")
	s.mu.Lock()
	f := s.faults
	content, found := s.files[name]
	if found && !sum {
		s.asked = append(s.asked, strings.TrimSpace(name+" "+r.Header.Get("Range")))
	}
	s.mu.Unlock()
	digest := sha256.Sum256(content)
	switch {
	case !found:
		http.NotFound(w, r)
		return
	case sum && f.WrongSum:
		fmt.Fprintf(w, "%064x  %s\n", 1, name)
		return
	case sum:
		fmt.Fprintf(w, "%x  %s\n", digest, name)
		return
	case f.Status != 0:
		w.WriteHeader(f.Status)
		return
	case f.Redirect != "":
		http.Redirect(w, r, f.Redirect, http.StatusFound)
		return
	}
	if f.NoRanges {
		r.Header.Del("Range")
	}
	if !f.NoETag {
		w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprintf("%x", digest[:8])))
	}
	http.ServeContent(&faulty{ResponseWriter: w, r: r, s: s, f: f}, r, "", time.Time{}, bytes.NewReader(content))
}

// faulty is an answer that may end early.
type faulty struct {
	http.ResponseWriter
	r *http.Request
	s *Server
	f Faults
	n int64
}

// Write implements [io.Writer].
func (w *faulty) Write(b []byte) (int, error) {
	const piece = 64 << 10
	total := 0
	for len(b) > 0 {
		if w.f.Delay > 0 {
			select {
			case <-w.r.Context().Done():
				return total, w.r.Context().Err()
			case <-time.After(w.f.Delay):
			}
		}
		part := b[:min(piece, len(b))]
		if end := max(w.f.CutAt, w.f.StallAt); end > 0 {
			part = part[:min(int64(len(part)), end-w.n)]
		}
		n, err := w.ResponseWriter.Write(part)
		w.n += int64(n)
		total += n
		w.s.mu.Lock()
		w.s.sent += int64(n)
		w.s.mu.Unlock()
		if err != nil {
			return total, err
		}
		if end := max(w.f.CutAt, w.f.StallAt); end > 0 && w.n >= end {
			_ = http.NewResponseController(w.ResponseWriter).Flush()
			if w.f.StallAt > 0 {
				<-w.r.Context().Done()
			}
			panic(http.ErrAbortHandler)
		}
		b = b[n:]
	}
	return total, nil
}
