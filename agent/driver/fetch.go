package driver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// expansion is how many times its size a runfile takes up when it is extracted, at most as far as we know: 580.105.08 has
// 380 MiB and gives about 1.1 GiB.
const expansion = 4

// partial is what a runfile.partial is the beginning of.
type partial struct {
	URL       string `json:"url"`
	Validator string `json:"validator"` // for If-Range: a strong ETag or a Last-Modified; of a local file its identity
	Total     int64  `json:"total"`     // -1: not known
}

// fetch brings a version into the cache, if it is not there with this checksum.
func (c *Cache) fetch(ctx context.Context, r Request, src source, prefix string, f *flight) (Entry, error) {
	if e, ok, err := c.entry(r.Version); err != nil || ok {
		return e, err
	}
	want := r.SHA256
	if want == "" {
		var err error
		if want, err = c.published(ctx, src, prefix); err != nil {
			return Entry{}, err
		}
	}
	resumed, err := c.download(ctx, r.Version, src, prefix, f)
	if err != nil {
		return Entry{}, err
	}
	e, err := c.accept(ctx, r.Version, want, f)
	if _, wrong := errors.AsType[*ChecksumError](err); wrong && resumed {
		// The beginning may be to blame: of another file, or not as it was written before the machine lost power.
		if _, err = c.download(ctx, r.Version, src, prefix, f); err == nil {
			e, err = c.accept(ctx, r.Version, want, f)
		}
	}
	if err != nil {
		return Entry{}, err
	}
	e.URL = src.text
	return e, c.unpack(ctx, &e, f)
}

var sumPattern = regexp.MustCompile(`\A([0-9a-f]{64})(?:[ \t]+\*?([^\s/]+))?\s*\z`)

// published fetches the checksum beside a runfile: a hash and a name on one line, as sha256sum prints them.
func (c *Cache) published(ctx context.Context, src source, prefix string) (string, error) {
	src.text += ".sha256sum"
	b, err := c.small(ctx, src, prefix)
	if err != nil {
		return "", &FetchError{URL: src.text, Err: err}
	}
	m := sumPattern.FindSubmatch(b)
	name := strings.TrimSuffix(path.Base(src.text), ".sha256sum")
	if m == nil || len(m[2]) > 0 && string(m[2]) != name {
		return "", &FetchError{URL: src.text, Err: fmt.Errorf("it does not hold one line with the SHA-256 of %s", name)}
	}
	return string(m[1]), nil
}

func (c *Cache) small(ctx context.Context, src source, prefix string) ([]byte, error) {
	const most = 4 << 10
	var body io.ReadCloser
	if src.path != "" {
		f, err := openLocal(src.text, prefix)
		if err != nil {
			return nil, err
		}
		body = f
	} else {
		resp, err := c.get(ctx, src.text, nil)
		if err != nil {
			return nil, err
		}
		if body = resp.Body; resp.StatusCode != http.StatusOK {
			body.Close()
			return nil, &statusError{resp.StatusCode}
		}
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, most))
}

// attempts is how often a fetch is tried in a row without a byte more.
const attempts = 4

// download completes the version's runfile.partial. resumed says whether it had a beginning.
func (c *Cache) download(ctx context.Context, version string, src source, prefix string, f *flight) (resumed bool, err error) {
	if err := os.MkdirAll(c.path(version), 0o700); err != nil {
		return false, err
	}
	file, err := os.OpenFile(c.path(version, partialName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, err
	}
	defer file.Close()
	p := &incoming{cache: c, file: file, meta: c.path(version, metaName), flight: f, version: version}
	if err := p.restore(src.text); err != nil {
		return false, err
	}
	resumed = p.have > 0
	most := p.have
	for try := 1; ; try++ {
		err := p.once(ctx, src, prefix)
		if err == nil {
			return resumed, file.Sync()
		}
		if ctx.Err() != nil {
			return resumed, context.Cause(ctx)
		}
		if invalid, ok := errors.AsType[*InvalidError](err); ok {
			return resumed, errors.Join(invalid, c.forget(version))
		}
		if p.have > most { // farther than ever: without ranges each connection begins anew, and may end anywhere
			try, most = 0, p.have
		}
		if !temporary(err) || try >= attempts {
			if p.have == 0 {
				err = errors.Join(err, c.forget(version))
			}
			return resumed, notOurs(src.text, err)
		}
		select {
		case <-ctx.Done():
			return resumed, context.Cause(ctx)
		case <-time.After(time.Duration(try*try) * 500 * time.Millisecond):
		}
	}
}

// notOurs makes a FetchError of what is not the node's own fault.
func notOurs(url string, err error) error {
	if _, ok := errors.AsType[*SpaceError](err); ok {
		return err
	}
	return &FetchError{URL: url, Err: err}
}

// temporary says whether trying again may help.
func temporary(err error) bool {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.code >= 500 || e.code == http.StatusTooManyRequests || e.code == http.StatusRequestTimeout
	}
	if _, ok := errors.AsType[*SourceError](err); ok {
		return false
	}
	_, space := errors.AsType[*SpaceError](err)
	_, file := errors.AsType[*os.PathError](err)
	return !space && !file
}

type statusError struct{ code int }

func (e *statusError) Error() string {
	return fmt.Sprintf("the server answered %d %s", e.code, http.StatusText(e.code))
}

// incoming is a runfile that grows.
type incoming struct {
	cache   *Cache
	version string
	file    *os.File
	meta    string // path of partial.json
	flight  *flight

	of   partial
	have int64
}

// restore finds out what there is. The beginning of a file from elsewhere is of no use.
func (p *incoming) restore(url string) error {
	info, err := p.file.Stat()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(p.meta)
	if err == nil && json.Unmarshal(b, &p.of) == nil && p.of.URL == url && p.of.Validator != "" {
		p.have = info.Size()
	}
	return nil
}

// begin starts anew with another file.
func (p *incoming) begin(of partial) error {
	// First nothing, so that the old description never goes with new bytes, nor the new one with old bytes.
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	p.have, p.of = 0, of
	return replaceFile(p.meta, of)
}

// once fetches what is missing, over one connection.
func (p *incoming) once(ctx context.Context, src source, prefix string) error {
	if p.have > 0 && p.have == p.of.Total {
		return nil // the checksum tells whether it is still what is wanted
	}
	body, err := p.open(ctx, src, prefix)
	if err != nil {
		return err
	}
	defer body.Close()
	limit := cmp.Or(p.cache.MaxBytes, 2<<30)
	if p.of.Total > limit {
		return &InvalidError{Version: p.version, Err: fmt.Errorf("it has %d bytes, more than %d", p.of.Total, limit)}
	}
	if p.of.Total > 0 {
		if err := p.cache.checkSpace(p.of.Total - p.have + expansion*p.of.Total); err != nil {
			return err
		}
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		if p.have+int64(n) > limit {
			return &InvalidError{Version: p.version, Err: fmt.Errorf("it has more than %d bytes", limit)}
		}
		if n > 0 {
			if _, err := p.file.WriteAt(buf[:n], p.have); err != nil {
				return err
			}
			p.have += int64(n)
			p.flight.set(Progress{Phase: Download, Done: p.have, Total: max(p.of.Total, 0)})
		}
		if errors.Is(err, io.EOF) {
			if p.of.Total >= 0 && p.have != p.of.Total {
				return fmt.Errorf("it ended after %d of %d bytes", p.have, p.of.Total)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// open opens the source at what is missing, or else at its beginning.
func (p *incoming) open(ctx context.Context, src source, prefix string) (io.ReadCloser, error) {
	if src.path != "" {
		return p.openFile(src, prefix)
	}
	header := http.Header{}
	if p.have > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", p.have))
		header.Set("If-Range", p.of.Validator)
	}
	resp, err := p.cache.get(ctx, src.text, header)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		err = p.begin(partial{URL: src.text, Validator: validator(resp.Header), Total: resp.ContentLength})
	case resp.StatusCode == http.StatusPartialContent && p.have > 0 && continues(resp.Header, p.have, p.of.Total):
	case p.have > 0 && (resp.StatusCode == http.StatusPartialContent || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable):
		resp.Body.Close()
		if err := p.begin(partial{URL: src.text, Total: -1}); err != nil {
			return nil, err
		}
		return p.open(ctx, src, prefix)
	default:
		err = &statusError{resp.StatusCode}
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

// validator returns what a later request can ask with whether the file is still the same; empty if nothing can (RFC 9110,
// 13.1.5).
func validator(h http.Header) string {
	if tag := h.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	return h.Get("Last-Modified")
}

// continues says whether a partial answer begins where we are, in a file of the same size.
func continues(h http.Header, at, total int64) bool {
	span, size, _ := strings.Cut(strings.TrimPrefix(h.Get("Content-Range"), "bytes "), "/")
	first, _, _ := strings.Cut(span, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	return err == nil && n == at && (total < 0 || size == "*" || size == strconv.FormatInt(total, 10))
}

func (p *incoming) openFile(src source, prefix string) (io.ReadCloser, error) {
	f, err := openLocal(src.path, prefix)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	of := partial{URL: src.text, Validator: fmt.Sprintf("%v %d", info.ModTime().UnixNano(), info.Size()), Total: info.Size()}
	if of != p.of || p.have > of.Total {
		if err := p.begin(of); err != nil {
			f.Close()
			return nil, err
		}
	}
	_, err = f.Seek(p.have, io.SeekStart)
	return f, err
}

// openLocal opens a regular file below an allowed directory, without following a link out of it.
func openLocal(path, prefix string) (*os.File, error) {
	root, err := os.OpenRoot(prefix)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	name, err := filepath.Rel(prefix, path)
	if err != nil {
		return nil, err
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, cmp.Or(err, error(&os.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}))
	}
	return f, nil
}

// get asks a server. Bytes that do not come in time end the connection.
func (c *Cache) get(ctx context.Context, url string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	idle := cmp.Or(c.Idle, time.Minute)
	timer := time.AfterFunc(idle, func() { cancel(fmt.Errorf("no byte for %v", idle)) })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("User-Agent", "phoenix-agent")
	client := &http.Client{Transport: c.transport(), CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) > 5 {
			return errors.New("too many redirections")
		}
		if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
			return &SourceError{URL: req.URL.String(), Why: "https leads there, and anybody on the way could replace what comes from it"}
		}
		_, _, err := c.resolve(req.URL.String())
		return err
	}}
	resp, err := client.Do(req)
	if err != nil {
		timer.Stop()
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", err, cause)
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &timedBody{body: resp.Body, ctx: ctx, timer: timer, idle: idle, cancel: cancel}
	return resp, nil
}

func (c *Cache) transport() http.RoundTripper {
	if c.Client != nil {
		return c.Client
	}
	return defaultTransport
}

// defaultTransport is http's own, with the file's own bytes and no others: no Content-Encoding.
var defaultTransport = func() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression = true
	t.DisableKeepAlives = true
	return t
}()

// timedBody is a body whose every read must give something in time.
type timedBody struct {
	body   io.ReadCloser
	ctx    context.Context // of the request, for its cause
	timer  *time.Timer
	idle   time.Duration
	cancel context.CancelCauseFunc
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.timer.Reset(b.idle)
	if err != nil && !errors.Is(err, io.EOF) && context.Cause(b.ctx) != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

func (b *timedBody) Close() error {
	b.timer.Stop()
	err := b.body.Close()
	b.cancel(nil)
	return err
}

// accept verifies a complete runfile.partial. If it is not what was asked for, nothing of it stays.
func (c *Cache) accept(ctx context.Context, version, want string, f *flight) (Entry, error) {
	name := c.path(version, partialName)
	file, err := os.Open(name)
	if err != nil {
		return Entry{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return Entry{}, err
	}
	sum, buf := sha256.New(), make([]byte, 1<<20)
	for done := int64(0); ; {
		if ctx.Err() != nil {
			return Entry{}, context.Cause(ctx)
		}
		n, err := file.Read(buf)
		sum.Write(buf[:n])
		done += int64(n)
		f.set(Progress{Phase: Verify, Done: done, Total: info.Size()})
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Entry{}, err
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return Entry{}, errors.Join(&ChecksumError{Version: version, Want: want, Got: got}, c.forget(version))
	}
	return Entry{Version: version, SHA256: want, Bytes: info.Size()}, nil
}

// forget removes what was fetched of a version, with its directory.
func (c *Cache) forget(version string) error {
	return os.RemoveAll(c.path(version))
}
