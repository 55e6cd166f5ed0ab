package driver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"phoenix.internal/agent/driver"
	"phoenix.internal/deploy/sandbox/runfile"
)

const version = "580.105.08"

// A world is a cache and a server that it may fetch from.
type world struct {
	*driver.Cache
	server *runfile.Server
	url    string // of the runfile
	sum    string // of the runfile
	file   []byte
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{server: &runfile.Server{}, file: runfile.New(runfile.Options{Version: version, Padding: 300 << 10})}
	w.server.Put(runfile.Name(version), w.file)
	http := httptest.NewTLSServer(w.server)
	t.Cleanup(http.Close)
	w.url = http.URL + "/" + version + "/" + runfile.Name(version)
	w.sum = fmt.Sprintf("%x", sha256.Sum256(w.file))
	w.Cache = &driver.Cache{Dir: filepath.Join(t.TempDir(), "driver"), Sources: []string{http.URL + "/"}, Client: http.Client().Transport}
	return w
}

func (w *world) fetch(t *testing.T) (driver.Entry, error) {
	t.Helper()
	return w.Fetch(t.Context(), driver.Request{Version: version, URL: w.url}, nil)
}

// complete checks that the version is in the cache as it should be.
func (w *world) complete(t *testing.T) {
	t.Helper()
	entries, err := w.List()
	if err != nil || len(entries) != 1 || entries[0].SHA256 != w.sum || entries[0].Version != version || entries[0].Bytes != int64(len(w.file)) {
		t.Fatalf("the cache has %+v, %v; want %s with SHA-256 %s", entries, err, version, w.sum)
	}
	got := names(t, filepath.Join(w.Dir, version))
	if want := []string{"entry.json", "tree"}; !slices.Equal(got, want) {
		t.Errorf("the version's directory has %q, want %q", got, want)
	}
	if _, err := os.Stat(filepath.Join(w.Dir, version, "tree", "libnvidia-ml.so."+version)); err != nil {
		t.Error(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestFetch(t *testing.T) {
	w := newWorld(t)
	e, err := w.fetch(t)
	if err != nil {
		t.Fatal(err)
	}
	w.complete(t)
	if e.TreeBytes < 300<<10 || e.URL != w.url || e.Fetched.IsZero() {
		t.Errorf("entry %+v", e)
	}
	w.server.Asked()
	if _, err := w.fetch(t); err != nil {
		t.Error(err)
	}
	if asked, _ := w.server.Asked(); len(asked) != 0 {
		t.Errorf("a version that is there was asked for again: %q", asked)
	}
	_, err = w.Fetch(t.Context(), driver.Request{Version: version, URL: w.url, SHA256: strings.Repeat("0", 64)}, nil)
	if e, ok := errors.AsType[*driver.ChecksumError](err); !ok || e.Got != w.sum || !strings.HasSuffix(e.Error(), "to fetch another, remove "+w.Dir+"/"+version+" on the node") {
		t.Errorf("another checksum than that of the cached one: %v", err)
	}
}

// However many ask at the same time, one request is sent; who leaves does not end it for the others.
func TestFetchedOnce(t *testing.T) {
	w := newWorld(t)
	w.server.Set(runfile.Faults{Delay: 10 * time.Millisecond})
	first, leave := context.WithCancel(t.Context())
	defer leave()
	var all sync.WaitGroup
	for i := range 10 {
		ctx := t.Context()
		if i == 0 {
			ctx = first
		}
		all.Go(func() {
			_, err := w.Fetch(ctx, driver.Request{Version: version, URL: w.url}, func(p driver.Progress) error {
				if i == 1 {
					leave()
				}
				return nil
			})
			if i > 0 && err != nil || i == 0 && err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	all.Wait()
	w.complete(t)
	asked, sent := w.server.Asked()
	if len(asked) != 1 || sent != int64(len(w.file)) {
		t.Errorf("%d bytes were sent for %q, want %d for one request", sent, asked, len(w.file))
	}
}

// A download that is cut at any byte goes on from there, and every byte is sent once.
func TestResumes(t *testing.T) {
	size := int64(len(newWorld(t).file))
	for _, cut := range []int64{1, 2, 1000, 64 << 10, 64<<10 + 1, size / 2, size - 1} {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			w := newWorld(t)
			stop(t, w, cut)
			partial, err := os.ReadFile(filepath.Join(w.Dir, version, "runfile.partial"))
			if err != nil || !bytes.Equal(partial, w.file[:cut]) {
				t.Fatalf("what is left are not the first %d bytes of the file: %d bytes, %v", cut, len(partial), err)
			}
			w.server.Set(runfile.Faults{})
			w.server.Asked()
			if _, err := w.fetch(t); err != nil {
				t.Fatal(err)
			}
			w.complete(t)
			asked, sent := w.server.Asked()
			if want := fmt.Sprintf("%s bytes=%d-", runfile.Name(version), cut); len(asked) != 1 || asked[0] != want || sent != size-cut {
				t.Errorf("%d bytes were sent for %q, want %d for %q", sent, asked, size-cut, want)
			}
		})
	}
}

// stop begins a fetch and leaves it when n bytes are there.
func stop(t *testing.T, w *world, n int64) {
	t.Helper()
	left := errors.New("left")
	w.server.Set(runfile.Faults{StallAt: n})
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := w.Fetch(ctx, driver.Request{Version: version, URL: w.url}, func(p driver.Progress) error {
		if p.Phase == driver.Download && p.Done >= n {
			cancel(left)
		}
		return nil
	})
	if !errors.Is(err, left) {
		t.Fatalf("the fetch ended with %v before it was left", err)
	}
}

// What a server does wrong costs time and nothing else.
func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cut    int64 // where an earlier fetch was left
		faults runfile.Faults
		asked  []string // the ranges; nil: they depend on the time
	}{
		{"stops in the middle", 0, runfile.Faults{StallAt: 200 << 10}, nil},
		{"cut again and again", 0, runfile.Faults{CutAt: 100 << 10}, []string{"", " bytes=102400-", " bytes=204800-", " bytes=307200-"}},
		{"no ranges", 1000, runfile.Faults{NoRanges: true}, []string{" bytes=1000-"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			if tc.faults.StallAt > 0 {
				w.Idle = 200 * time.Millisecond
			}
			if tc.cut > 0 {
				stop(t, w, tc.cut)
				w.server.Asked()
			}
			w.server.Set(tc.faults)
			if _, err := w.fetch(t); err != nil {
				t.Fatal(err)
			}
			w.complete(t)
			if tc.asked == nil {
				return
			}
			var want []string
			for _, r := range tc.asked {
				want = append(want, runfile.Name(version)+r)
			}
			if asked, _ := w.server.Asked(); !slices.Equal(asked, want) {
				t.Errorf("asked for %q, want %q", asked, want)
			}
		})
	}
}

// A file that changes while nobody looks is fetched from its beginning.
func TestChangedBetween(t *testing.T) {
	for _, tc := range []struct {
		name   string
		faults runfile.Faults // of the server before
	}{
		{"with an ETag", runfile.Faults{}},
		{"without a validator", runfile.Faults{NoETag: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			f := tc.faults
			f.StallAt = 1000
			w.server.Set(f)
			left, cancel := context.WithCancel(t.Context())
			if _, err := w.Fetch(left, driver.Request{Version: version, URL: w.url}, func(p driver.Progress) error {
				if p.Done >= 1000 {
					cancel()
				}
				return nil
			}); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			w.file = runfile.New(runfile.Options{Version: version, Padding: 400 << 10})
			w.sum = fmt.Sprintf("%x", sha256.Sum256(w.file))
			w.server.Put(runfile.Name(version), w.file)
			w.server.Set(tc.faults)
			if _, err := w.fetch(t); err != nil {
				t.Fatal(err)
			}
			w.complete(t)
		})
	}
}

// A beginning that is not what it was written as, as after a power cut, shows in the checksum; then all of it is fetched.
func TestSpoiltBeginning(t *testing.T) {
	w := newWorld(t)
	stop(t, w, 1000)
	path := filepath.Join(w.Dir, version, "runfile.partial")
	if err := os.WriteFile(path, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	w.server.Set(runfile.Faults{})
	w.server.Asked()
	if _, err := w.fetch(t); err != nil {
		t.Fatal(err)
	}
	w.complete(t)
	want := []string{runfile.Name(version) + " bytes=1000-", runfile.Name(version)}
	if asked, _ := w.server.Asked(); !slices.Equal(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}
}

// What cannot become an installer leaves nothing.
func TestLeavesNothing(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(w *world) driver.Request
		wrong   func(err error) bool
	}{
		{"wrong published checksum", func(w *world) driver.Request {
			w.server.Set(runfile.Faults{WrongSum: true})
			return driver.Request{}
		}, is[*driver.ChecksumError]},
		{"wrong given checksum", func(w *world) driver.Request {
			return driver.Request{SHA256: strings.Repeat("0", 64)}
		}, is[*driver.ChecksumError]},
		{"too large", func(w *world) driver.Request {
			w.MaxBytes = int64(len(w.file)) - 1
			return driver.Request{}
		}, is[*driver.InvalidError]},
		{"another version", func(w *world) driver.Request { return driver.Request{Version: "580.105.07"} }, is[*driver.InvalidError]},
		{"no runfile", func(w *world) driver.Request {
			w.server.Put(runfile.Name(version), []byte("#!/bin/sh\necho it does not work; exit 3\n"))
			return driver.Request{}
		}, func(err error) bool {
			return is[*driver.InvalidError](err) && strings.Contains(err.Error(), "it does not work")
		}},
		{"redirected elsewhere", func(w *world) driver.Request {
			w.server.Set(runfile.Faults{Redirect: "https://example.org/x.run"})
			return driver.Request{}
		}, is[*driver.SourceError]},
		{"redirected from https to http", func(w *world) driver.Request {
			w.Sources = append(w.Sources, "http://example.org/")
			w.server.Set(runfile.Faults{Redirect: "http://example.org/x.run"})
			return driver.Request{}
		}, is[*driver.SourceError]},
		{"not found", func(w *world) driver.Request {
			w.server.Set(runfile.Faults{Status: 404})
			return driver.Request{}
		}, is[*driver.FetchError]},
		{"no version", func(w *world) driver.Request { return driver.Request{Version: "../../etc"} },
			func(err error) bool { return err != nil && !is[*driver.FetchError](err) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			r := tc.prepare(w)
			r.URL = w.url
			if r.Version == "" {
				r.Version = version
			}
			if _, err := w.Fetch(t.Context(), r, nil); !tc.wrong(err) {
				t.Errorf("got %v", err)
			}
			if left := names(t, w.Dir); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func TestSources(t *testing.T) {
	dir := t.TempDir()
	file := runfile.New(runfile.Options{Version: version})
	write := func(path string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, path), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "allowed"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("allowed/a.run", file)
	write("allowed/a.run.sha256sum", fmt.Appendf(nil, "%x  a.run\n", sha256.Sum256(file)))
	write("outside.run", file)
	for name, target := range map[string]string{"link.run": "a.run", "out.run": "../outside.run"} {
		if err := os.Symlink(target, filepath.Join(dir, "allowed", name)); err != nil {
			t.Fatal(err)
		}
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(file))
	allowed := dir + "/allowed/"
	for _, tc := range []struct {
		name, url, sum string
		ok             bool
		source         bool // refused for where it is
	}{
		{name: "path, with the checksum beside it", url: allowed + "a.run", ok: true},
		{name: "file URL", url: "file://" + allowed + "a.run", ok: true},
		{name: "link in the directory", url: allowed + "link.run", sum: sum, ok: true},
		{name: "link out of it", url: allowed + "out.run", sum: sum},
		{name: "directory", url: dir + "/allowed", sum: sum, source: true},
		{name: "path out of it", url: allowed + "../outside.run", sum: sum, source: true},
		{name: "another path", url: dir + "/outside.run", sum: sum, source: true},
		{name: "relative path", url: "a.run", sum: sum, source: true},
		{name: "host that begins alike", url: "https://good.example.evil.example/a.run", sum: sum, source: true},
		{name: "user before the host", url: "https://good.example@evil.example/a.run", sum: sum, source: true},
		{name: "escaped dots", url: "https://good.example/pub/%2e%2e/a.run", sum: sum, source: true},
		{name: "dots", url: "https://good.example/pub/../a.run", sum: sum, source: true},
		{name: "query", url: "https://good.example/pub/a.run?x", sum: sum, source: true},
		{name: "another scheme", url: "gopher://good.example/pub/a.run", sum: sum, source: true},
		{name: "backslash", url: `https://good.example\@evil.example/pub/a.run`, sum: sum, source: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &driver.Cache{Dir: filepath.Join(t.TempDir(), "driver"), Sources: []string{"https://good.example/pub/", allowed}}
			_, err := c.Fetch(t.Context(), driver.Request{Version: version, URL: tc.url, SHA256: tc.sum}, nil)
			if tc.ok != (err == nil) || tc.source != is[*driver.SourceError](err) {
				t.Errorf("%s: %v", tc.url, err)
			}
			if left := names(t, c.Dir); !tc.ok && len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// What is kept or being installed stays.
func TestPrune(t *testing.T) {
	w := newWorld(t)
	if _, err := w.fetch(t); err != nil {
		t.Fatal(err)
	}
	if removed, err := w.Prune(version); err != nil || len(removed) != 0 {
		t.Errorf("kept: removed %q, %v", removed, err)
	}
	release := driver.Use(t, w.Cache, version)
	if removed, err := w.Prune("580.95.05"); err != nil || len(removed) != 0 {
		t.Errorf("in use: removed %q, %v", removed, err)
	}
	if entries, err := w.List(); err != nil || len(entries) != 1 || !entries[0].InUse {
		t.Errorf("in use: %+v, %v", entries, err)
	}
	release()
	if removed, err := w.Prune(); err != nil || !slices.Equal(removed, []string{version}) {
		t.Errorf("removed %q, %v; want %s", removed, err, version)
	}
	if left := names(t, w.Dir); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

// Somebody's wrong checksum is not the others' failure.
func TestJoinedAWrongRequest(t *testing.T) {
	w := newWorld(t)
	w.Idle = 200 * time.Millisecond
	w.server.Set(runfile.Faults{StallAt: 1000})
	joined := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		var second sync.Once
		_, err := w.Fetch(t.Context(), driver.Request{Version: version, URL: w.url, SHA256: strings.Repeat("0", 64)}, func(driver.Progress) error {
			second.Do(func() {
				all.Go(func() {
					var once sync.Once
					_, err := w.Fetch(t.Context(), driver.Request{Version: version, URL: w.url, SHA256: w.sum}, func(driver.Progress) error {
						once.Do(func() { close(joined) })
						return nil
					})
					if err != nil {
						t.Errorf("the right checksum: %v", err)
					}
				})
			})
			return nil
		})
		if !is[*driver.ChecksumError](err) {
			t.Errorf("the wrong checksum: %v", err)
		}
	})
	<-joined
	w.server.Set(runfile.Faults{})
	all.Wait()
	w.complete(t)
}

// What a machine that lost power left damaged is fetched again.
func TestDamagedEntry(t *testing.T) {
	for _, tc := range []struct {
		name   string
		break_ func(dir string) error
	}{
		{"no JSON", func(dir string) error { return os.WriteFile(filepath.Join(dir, "entry.json"), nil, 0o600) }},
		{"no tree", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "tree")) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			if _, err := w.fetch(t); err != nil {
				t.Fatal(err)
			}
			if err := tc.break_(filepath.Join(w.Dir, version)); err != nil {
				t.Fatal(err)
			}
			if entries, err := w.List(); err != nil || len(entries) != 0 {
				t.Errorf("the cache has %+v, %v; want nothing", entries, err)
			}
			if _, err := w.fetch(t); err != nil {
				t.Fatal(err)
			}
			w.complete(t)
		})
	}
}

// A transport answers requests itself.
type transport func(*http.Request) (*http.Response, error)

// RoundTrip implements [http.RoundTripper].
func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Who comes when all others have just left gets a fetch, not their end.
func TestJoinedWhatWasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, end := 0, make(chan struct{})
		c := &driver.Cache{Dir: t.TempDir(), Sources: []string{"https://example.org/"}, Client: transport(func(r *http.Request) (*http.Response, error) {
			if asked++; asked > 1 {
				return &http.Response{StatusCode: 404, Body: http.NoBody}, nil
			}
			<-end // it takes its time to end
			return nil, r.Context().Err()
		})}
		r := driver.Request{Version: version, URL: "https://example.org/x.run", SHA256: strings.Repeat("0", 64)}
		first, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := c.Fetch(first, r, nil); !errors.Is(err, context.Canceled) {
				t.Errorf("who left: %v", err)
			}
		})
		synctest.Wait()
		leave()
		synctest.Wait()
		all.Go(func() {
			if _, err := c.Fetch(t.Context(), r, nil); !is[*driver.FetchError](err) {
				t.Errorf("who came then: %v, want what the server answers", err)
			}
		})
		synctest.Wait()
		close(end)
		all.Wait()
	})
}

// A server without ranges, whose connections end anywhere, is given up.
func TestNeverComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := &driver.Cache{Dir: t.TempDir(), Sources: []string{"https://example.org/"}, Client: transport(func(*http.Request) (*http.Response, error) {
			if asked++; asked == 100 {
				t.Error("asked 100 times")
				return &http.Response{StatusCode: 404, Body: http.NoBody}, nil
			}
			body := strings.NewReader(strings.Repeat("x", 10+10*(asked%2)))
			return &http.Response{StatusCode: 200, ContentLength: 1000, Body: io.NopCloser(body)}, nil
		})}
		_, err := c.Fetch(t.Context(), driver.Request{Version: version, URL: "https://example.org/x.run", SHA256: strings.Repeat("0", 64)}, nil)
		if !is[*driver.FetchError](err) {
			t.Errorf("got %v", err)
		}
	})
}

// A runfile works as root, and can still do nothing to the node.
func TestRunfileIsConfined(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	w, outside := newWorld(t), filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(outside, []byte("whole"), 0o666); err != nil {
		t.Fatal(err)
	}
	script := `try() { if ("$@") >/dev/null 2>&1; then echo "$1 $2 worked"; fi; }
write() { echo x >"$1"; }
try write ` + outside + `
try rm ` + outside + `
try mv ` + outside + ` .
try ln ` + outside + ` here
try mkdir ` + outside + `.d
try touch ` + outside + `.new
try mknod disk b 8 0
try mount -t tmpfs none .
try write inside
try mkdir inside.d
try mv inside inside.d/moved
sed -n 's/^Cap\(Prm\|Eff\|Bnd\):\t0*/\1 /p' /proc/self/status
exit 3
`
	w.server.Put(runfile.Name(version), []byte(script))
	_, err := w.fetch(t)
	const want = "write inside worked\nmkdir inside.d worked\nmv inside worked\nPrm 1b\nEff 1b\nBnd 1b"
	if !is[*driver.InvalidError](err) || !strings.Contains(err.Error(), "exit status 3: "+want) {
		t.Errorf("got %v, want %q", err, want)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "whole" {
		t.Errorf("the file of the node is %q, %v", b, err)
	}
	if got := names(t, filepath.Dir(outside)); !slices.Equal(got, []string{"file"}) {
		t.Errorf("beside it: %q", got)
	}
}
