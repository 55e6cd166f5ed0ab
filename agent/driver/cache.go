package driver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Cache holds extracted installers of one node, a directory per version. Its methods may be called at the same time,
// but only one process may use the directory.
//
// A version's directory holds tree, the extracted files, and entry.json, both only when they are whole; while it is being
// fetched, runfile.partial and partial.json, which tells what the former is the beginning of.
type Cache struct {
	Dir      string            // made when it is needed, for root only
	Sources  []string          // prefixes of URLs and paths, ending in "/", that may be fetched from, [DefaultSources] for example
	Client   http.RoundTripper // nil: one of its own
	MaxBytes int64             // of a runfile; 0: 2 GiB
	Idle     time.Duration     // without a byte, after which a connection is given up; 0: 1 min

	mu      sync.Mutex
	flights map[string]*flight // fetches under way, by version
	users   map[string]int     // of trees, by version
}

// A Request asks for an installer.
type Request struct {
	Version string
	URL     string // or an absolute path; empty: NVIDIA's own
	SHA256  string // in lower-case hex; empty: as published beside the file
}

// An Entry is an installer in the cache.
type Entry struct {
	Version   string    `json:"version"`
	URL       string    `json:"url"`
	SHA256    string    `json:"sha256"`     // of the runfile
	Bytes     int64     `json:"bytes"`      // of the runfile
	TreeBytes int64     `json:"tree_bytes"` // of the extracted files
	Fetched   time.Time `json:"fetched"`
	InUse     bool      `json:"-"`
}

const (
	treeName    = "tree"
	entryName   = "entry.json"
	partialName = "runfile.partial"
	metaName    = "partial.json"
	workPrefix  = "extract-"
	newPrefix   = ".new-"
)

// A flight is a fetch that any number of callers wait for.
type flight struct {
	request Request // of the first
	cancel  context.CancelFunc
	done    chan struct{} // closed when entry, err and broken are set
	entry   Entry
	err     error
	broken  bool // off, because everybody had left
	waiting int  // guarded by Cache.mu

	mu       sync.Mutex
	progress Progress
	moved    chan struct{} // closed when progress changes
}

// Fetch returns the entry of a version, after fetching it if it is not there. Calls for one version at the same time share
// one fetch, which goes on while one of them waits. progress may be nil; it is called from the goroutine of the call.
//
// The error is a [*SourceError], [*FetchError], [*ChecksumError], [*InvalidError], [*SpaceError] or the context's.
func (c *Cache) Fetch(ctx context.Context, r Request, progress func(Progress) error) (Entry, error) {
	if err := CheckVersion(r.Version); err != nil {
		return Entry{}, err
	}
	src, prefix, err := c.resolve(cmp.Or(r.URL, DefaultURL(r.Version)))
	if err != nil {
		return Entry{}, err
	}
	if src.url != nil && src.url.Scheme == "http" && r.SHA256 == "" {
		return Entry{}, &SourceError{URL: src.text, Why: "over plain http anybody on the way could replace it together with its checksum; give its SHA-256"}
	}
	for {
		e, failed, err := c.await(ctx, r, src, prefix, progress)
		if !failed {
			return e, err
		}
		// It was somebody else's URL or checksum that was wrong, or all others had left just before.
	}
}

// await waits for a fetch. failed says that it failed for a reason that is not the request's.
func (c *Cache) await(ctx context.Context, r Request, src source, prefix string, progress func(Progress) error) (e Entry, failed bool, err error) {
	f := c.join(ctx, r, src, prefix)
	defer c.leave(f)
	for {
		now, moved := f.now()
		if progress != nil && now.Phase != "" {
			if err := progress(now); err != nil {
				return Entry{}, false, err
			}
		}
		select {
		case <-ctx.Done():
			return Entry{}, false, context.Cause(ctx)
		case <-f.done:
			if f.err == nil && r.SHA256 != "" && f.entry.SHA256 != r.SHA256 {
				return Entry{}, false, &ChecksumError{Version: r.Version, Want: r.SHA256, Got: f.entry.SHA256, Cached: c.path(r.Version)}
			}
			return f.entry, f.err != nil && (f.broken || f.request != r), f.err
		case <-moved:
		}
		select { // a few times a second are enough for everybody
		case <-ctx.Done():
		case <-f.done:
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// join finds the fetch of a version that is under way, or begins one.
func (c *Cache) join(ctx context.Context, r Request, src source, prefix string) *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[r.Version]; f != nil {
		f.waiting++
		return f
	}
	// The first to ask may leave while others wait.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{request: r, cancel: cancel, done: make(chan struct{}), waiting: 1, moved: make(chan struct{})}
	if c.flights == nil {
		c.flights = make(map[string]*flight)
	}
	c.flights[r.Version] = f
	go func() {
		defer cancel()
		f.entry, f.err = c.fetch(ctx, r, src, prefix, f)
		f.broken = ctx.Err() != nil
		c.mu.Lock()
		delete(c.flights, r.Version)
		c.mu.Unlock()
		close(f.done)
	}()
	return f
}

// leave ends a fetch that nobody waits for, and waits for its end.
func (c *Cache) leave(f *flight) {
	c.mu.Lock()
	f.waiting--
	last := f.waiting == 0
	c.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
}

func (f *flight) now() (Progress, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.progress, f.moved
}

func (f *flight) set(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.progress = p
	close(f.moved)
	f.moved = make(chan struct{})
}

func (c *Cache) path(version string, more ...string) string {
	return filepath.Join(append([]string{c.Dir, version}, more...)...)
}

// entry reads what there is of a version; ok says whether it is whole. One that is damaged counts as not there, so that it is
// fetched again.
func (c *Cache) entry(version string) (e Entry, ok bool, err error) {
	b, err := os.ReadFile(c.path(version, entryName))
	if errors.Is(err, fs.ErrNotExist) {
		return e, false, nil
	}
	if err != nil {
		return e, false, err
	}
	info, err := os.Lstat(c.path(version, treeName))
	if err != nil || !info.IsDir() || json.Unmarshal(b, &e) != nil || e.Version != version {
		return Entry{}, false, nil
	}
	return e, true, nil
}

// List returns the entries by version. kept are versions that count as in use.
func (c *Cache) List(kept ...string) ([]Entry, error) {
	versions, err := c.versions()
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, version := range versions {
		e, ok, err := c.entry(version)
		if err != nil {
			return nil, err
		}
		if ok {
			e.InUse = slices.Contains(kept, version) || c.busy(version)
			all = append(all, e)
		}
	}
	return all, nil
}

// Prune removes what is neither kept nor in use, and returns those versions.
func (c *Cache) Prune(kept ...string) ([]string, error) {
	versions, err := c.versions()
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, version := range versions {
		if slices.Contains(kept, version) {
			continue
		}
		done, err := c.remove(version)
		if errs = append(errs, err); done && err == nil {
			removed = append(removed, version)
		}
	}
	return removed, errors.Join(errs...)
}

// remove holds the lock while it makes the version's directory disappear from sight, so that nobody begins to use it.
func (c *Cache) remove(version string) (done bool, err error) {
	c.mu.Lock()
	if c.flights[version] != nil || c.users[version] > 0 {
		c.mu.Unlock()
		return false, nil
	}
	gone, err := os.MkdirTemp(c.Dir, ".gone-")
	if err == nil {
		err = os.Rename(c.path(version), filepath.Join(gone, version))
	}
	c.mu.Unlock()
	return true, errors.Join(err, os.RemoveAll(gone))
}

func (c *Cache) versions() ([]string, error) {
	entries, err := os.ReadDir(c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var versions []string
	for _, e := range entries {
		if e.IsDir() && CheckVersion(e.Name()) == nil {
			versions = append(versions, e.Name())
		}
	}
	return versions, err
}

func (c *Cache) busy(version string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flights[version] != nil || c.users[version] > 0
}

// Sweep removes what an agent that was killed left of extractions, removals and small files. The beginning of a runfile stays.
func (c *Cache) Sweep() error {
	var errs []error
	for _, pattern := range []string{".gone-*", "*/" + workPrefix + "*", "*/" + newPrefix + "*"} {
		left, err := filepath.Glob(filepath.Join(c.Dir, pattern))
		errs = append(errs, err)
		for _, path := range left {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}

// use returns the extracted files of a version, which stay until they are released.
func (c *Cache) use(version string) (e Entry, tree *os.Root, release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok, err := c.entry(version)
	if err != nil {
		return e, nil, nil, err
	}
	if !ok {
		return e, nil, nil, &NotCachedError{Version: version}
	}
	if tree, err = os.OpenRoot(c.path(version, treeName)); err != nil {
		return e, nil, nil, err
	}
	if c.users == nil {
		c.users = make(map[string]int)
	}
	c.users[version]++
	return e, tree, sync.OnceFunc(func() {
		tree.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.users[version]--; c.users[version] == 0 {
			delete(c.users, version)
		}
	}), nil
}

// spare is what is left free on the node's file system, which Proxmox itself needs too.
const spare = 256 << 20

func (c *Cache) checkSpace(more int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(c.Dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", c.Dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; more+spare > free {
		return &SpaceError{Path: c.Dir, Needed: more + spare, Free: free}
	}
	return nil
}

// replaceFile writes a small file so that it is there whole or as it was.
func replaceFile(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), newPrefix)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
