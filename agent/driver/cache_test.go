package driver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
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
	if e, ok := errors.AsType[*driver.ChecksumError](err); !ok || e.Got != w.sum {
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
