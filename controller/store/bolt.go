package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Bolt is a store in one file. One process can have it open.
//
// Values are JSON: a run is some KiB, written a few times a second at most, and what a person finds in the file after
// a crash should be readable without our code. A field that an older version does not know is ignored by it.
//
// Buckets: "runs", run ID to [Run] without its containers; "containers", run ID to a bucket that holds position
// (big-endian uint32) to [Container]; "verified", CTID in decimal to key.
type Bolt struct {
	db   *bolt.DB
	path string
}

var (
	runsBucket       = []byte("runs")
	containersBucket = []byte("containers")
	verifiedBucket   = []byte("verified")
)

// lockTimeout is how long Open waits for another process to leave the file.
const lockTimeout = 2 * time.Second

// An InUseError tells that another process has the store open.
type InUseError struct {
	Path string
	PID  int // 0 if unknown
}

func (e *InUseError) Error() string {
	who := "another process"
	if e.PID != 0 {
		who = fmt.Sprintf("process %d", e.PID)
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", e.PID)); err == nil {
			who += " (" + strings.TrimSpace(string(name)) + ")"
		}
	}
	return fmt.Sprintf("%s is in use by %s; wait until it has ended, or choose another state_dir", e.Path, who)
}

// An UnusableError tells that the file cannot be opened or written: no permission, a full disk.
type UnusableError struct {
	Path string
	Err  error
}

func (e *UnusableError) Error() string {
	err := e.Err
	if p, ok := errors.AsType[*fs.PathError](err); ok && p.Path == e.Path {
		err = p.Err
	}
	return fmt.Sprintf("%s cannot be used: %v", e.Path, err)
}

// Unwrap returns the cause.
func (e *UnusableError) Unwrap() error { return e.Err }

// Open opens the store in the file at path, which is made if it is missing, with its directory, for our user alone.
// The caller closes it. Returns an [*InUseError] if another process has it, else an [*UnusableError].
func Open(path string) (*Bolt, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, &UnusableError{Path: path, Err: err}
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, &InUseError{Path: path, PID: holder(path)}
	}
	if err != nil {
		return nil, &UnusableError{Path: path, Err: err}
	}
	b := &Bolt{db: db, path: path}
	err = b.update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{runsBucket, containersBucket, verifiedBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return b, nil
}

// update calls fn in a transaction. An error that is not fn's is the disk's: an [*UnusableError].
func (b *Bolt) update(fn func(*bolt.Tx) error) error {
	var own error
	err := b.db.Update(func(tx *bolt.Tx) error {
		own = fn(tx)
		return own
	})
	if err != nil && own == nil {
		return &UnusableError{Path: b.path, Err: err}
	}
	return err
}

// holder returns the PID of the process that has the flock on the file, from /proc/locks; 0 if unknown. A line there is
// "1: FLOCK  ADVISORY  WRITE 4711 08:01:393229 0 EOF", with the device's numbers in hex and the inode in decimal.
func holder(path string) int {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	locks, err := fs.ReadFile(os.DirFS("/proc"), "locks")
	if err != nil {
		return 0
	}
	inode := ":" + strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10)
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line)
		if len(f) > 5 && f[1] == "FLOCK" && strings.HasSuffix(f[5], inode) {
			pid, _ := strconv.Atoi(f[4]) // 0, unknown, for a process of another PID namespace
			return max(pid, 0)
		}
	}
	return 0
}

// SaveRun implements [Store].
func (b *Bolt) SaveRun(r Run) error {
	err := b.update(func(tx *bolt.Tx) error {
		if err := put(tx.Bucket(runsBucket), []byte(r.ID), r); err != nil {
			return err
		}
		all := tx.Bucket(containersBucket)
		if err := all.DeleteBucket([]byte(r.ID)); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
			return err
		}
		containers, err := all.CreateBucket([]byte(r.ID))
		if err != nil {
			return err
		}
		for i, c := range r.Containers {
			if err := put(containers, position(i), c); err != nil {
				return err
			}
		}
		return prune(tx)
	})
	if err != nil {
		return fmt.Errorf("save run %s: %w", r.ID, err)
	}
	return nil
}

// prune drops the oldest ended runs beyond Keep.
func prune(tx *bolt.Tx) error {
	runs := tx.Bucket(runsBucket)
	n := 0
	c := runs.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		n++
	}
	var drop [][]byte
	for k, v := c.First(); k != nil && n-len(drop) > Keep; k, v = c.Next() {
		now, err := state(k, v)
		if err != nil {
			return err
		}
		if now != RunRunning {
			drop = append(drop, bytes.Clone(k))
		}
	}
	for _, id := range drop {
		if err := errors.Join(runs.Delete(id), tx.Bucket(containersBucket).DeleteBucket(id)); err != nil {
			return err
		}
	}
	return nil
}

// state reads the state of a stored run alone.
func state(id, value []byte) (RunState, error) {
	var r struct{ State RunState }
	if err := json.Unmarshal(value, &r); err != nil {
		return "", fmt.Errorf("read run %s: %w", id, err)
	}
	return r.State, nil
}

// SaveContainer implements [Store].
func (b *Bolt) SaveContainer(id string, c Container) error {
	err := b.update(func(tx *bolt.Tx) error {
		containers := tx.Bucket(containersBucket).Bucket([]byte(id))
		if containers == nil {
			return ErrNotFound
		}
		key, err := find(containers, c.CTID)
		if err != nil {
			return err
		}
		return put(containers, key, c)
	})
	if err != nil {
		return fmt.Errorf("save CTID %d of run %s: %w", c.CTID, id, err)
	}
	return nil
}

// find returns the key of a container. It decodes none: a run of many containers saves each several times.
func find(containers *bolt.Bucket, ctid int32) ([]byte, error) {
	begin := fmt.Appendf(nil, `{"CTID":%d,`, ctid) // the first field of [Container]
	c := containers.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if bytes.HasPrefix(v, begin) {
			return bytes.Clone(k), nil
		}
	}
	return nil, ErrNotFound
}

// Run implements [Store].
func (b *Bolt) Run(id string) (r Run, err error) {
	err = b.db.View(func(tx *bolt.Tx) error {
		full := id
		if tx.Bucket(runsBucket).Get([]byte(id)) == nil {
			var ids []string
			c := tx.Bucket(runsBucket).Cursor()
			for k, _ := c.Seek([]byte(id)); bytes.HasPrefix(k, []byte(id)) && k != nil; k, _ = c.Next() {
				ids = append(ids, string(k))
			}
			if full, err = only(id, ids); err != nil {
				return err
			}
		}
		r, err = load(tx, full)
		return err
	})
	return r, err
}

// Runs implements [Store].
func (b *Bolt) Runs(limit int) (runs []Run, err error) {
	err = b.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(runsBucket).Cursor()
		for k, _ := c.Last(); k != nil && (limit <= 0 || len(runs) < limit); k, _ = c.Prev() {
			r, err := load(tx, string(k))
			if err != nil {
				return err
			}
			runs = append(runs, r)
		}
		return nil
	})
	return runs, err
}

// Running implements [Store].
func (b *Bolt) Running() (runs []Run, err error) {
	err = b.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(runsBucket).ForEach(func(k, v []byte) error {
			now, err := state(k, v)
			if err != nil || now != RunRunning {
				return err
			}
			r, err := load(tx, string(k))
			runs = append(runs, r)
			return err
		})
	})
	return runs, err
}

// load reads a run with its containers.
func load(tx *bolt.Tx, id string) (Run, error) {
	var r Run
	if err := json.Unmarshal(tx.Bucket(runsBucket).Get([]byte(id)), &r); err != nil {
		return Run{}, fmt.Errorf("read run %s: %w", id, err)
	}
	containers := tx.Bucket(containersBucket).Bucket([]byte(id))
	if containers == nil {
		return r, nil
	}
	err := containers.ForEach(func(_, v []byte) error {
		var c Container
		if err := json.Unmarshal(v, &c); err != nil {
			return fmt.Errorf("read run %s: %w", id, err)
		}
		r.Containers = append(r.Containers, c)
		return nil
	})
	return r, err
}

// SetVerified implements [Store].
func (b *Bolt) SetVerified(ctid int32, key string) error {
	err := b.update(func(tx *bolt.Tx) error {
		return tx.Bucket(verifiedBucket).Put(strconv.AppendInt(nil, int64(ctid), 10), []byte(key))
	})
	if err != nil {
		return fmt.Errorf("save the verification of CTID %d: %w", ctid, err)
	}
	return nil
}

// Verified implements [Store].
func (b *Bolt) Verified() (map[int32]string, error) {
	keys := map[int32]string{}
	err := b.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(verifiedBucket).ForEach(func(k, v []byte) error {
			ctid, err := strconv.ParseInt(string(k), 10, 32)
			if err != nil {
				return fmt.Errorf("read verifications: %w", err)
			}
			keys[int32(ctid)] = string(v)
			return nil
		})
	})
	return keys, err
}

// Close implements [Store].
func (b *Bolt) Close() error { return b.db.Close() }

func put(bucket *bolt.Bucket, key []byte, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return bucket.Put(key, text)
}

func position(i int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(i)) }
