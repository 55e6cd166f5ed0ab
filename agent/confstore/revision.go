package confstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Revision is a conf as it was before an edit. After a crash in the middle of an edit there can be one whose
// conf was not replaced after all.
type Revision struct {
	Number     int64     // ascending from 1 per CTID
	Time       time.Time // when it was replaced
	Author               // who replaced it
	Digest     string    // of its bytes
	ReplacedBy string    // digest of what replaced it
}

// On disk a revision is two files in a directory of the CTID: N.conf has the bytes as they were, so that a person
// can copy it back, and N.json, written last, says that it is complete.
const (
	confExt = ".conf"
	metaExt = ".json"
	tempExt = ".tmp"
)

type metadata struct {
	Time       time.Time `json:"time"`
	Who        string    `json:"who"`
	OnBehalfOf string    `json:"on_behalf_of,omitempty"`
	Why        string    `json:"why"`
	Digest     string    `json:"digest"`
	ReplacedBy string    `json:"replaced_by"`
}

func (s *Store) revisionTop() string { return orDefault(s.RevisionDir, "/var/lib/phoenix/revisions") }

func (s *Store) revisionDir(ctid int32) string {
	return filepath.Join(s.revisionTop(), strconv.Itoa(int(ctid)))
}

// Revisions returns the revisions that are kept of a conf, newest first. They outlive their container.
func (s *Store) Revisions(ctid int32) ([]Revision, error) {
	numbers, err := s.numbers(ctid, metaExt)
	if err != nil {
		return nil, fmt.Errorf("revisions of CTID %d: %w", ctid, err)
	}
	slices.Reverse(numbers)
	var revisions []Revision
	for _, n := range numbers {
		r, err := s.metadata(ctid, n)
		if _, gone := errors.AsType[*RevisionError](err); gone {
			continue // an edit has just dropped it
		}
		if err != nil {
			return nil, err
		}
		revisions = append(revisions, r)
	}
	return revisions, nil
}

// Revision returns a revision and its bytes, or a [*RevisionError].
func (s *Store) Revision(ctid int32, number int64) (Revision, []byte, error) {
	r, err := s.metadata(ctid, number)
	if err != nil {
		return Revision{}, nil, err
	}
	path := s.revisionFile(ctid, number, confExt)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Revision{}, nil, &RevisionError{CTID: ctid, Number: number}
	}
	if err != nil {
		return Revision{}, nil, err
	}
	if got := digest(b); got != r.Digest {
		return Revision{}, nil, fmt.Errorf("%s: damaged: its digest is %s, not %s", path, got, r.Digest)
	}
	return r, b, nil
}

func (s *Store) metadata(ctid int32, number int64) (Revision, error) {
	path := s.revisionFile(ctid, number, metaExt)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Revision{}, &RevisionError{CTID: ctid, Number: number}
	}
	if err != nil {
		return Revision{}, err
	}
	var m metadata
	if err := json.Unmarshal(b, &m); err != nil {
		return Revision{}, fmt.Errorf("%s: damaged: %w", path, err)
	}
	return Revision{
		Number: number, Time: m.Time, Author: Author{Who: m.Who, OnBehalfOf: m.OnBehalfOf, Why: m.Why},
		Digest: m.Digest, ReplacedBy: m.ReplacedBy,
	}, nil
}

func (s *Store) revisionFile(ctid int32, number int64, ext string) string {
	return filepath.Join(s.revisionDir(ctid), strconv.FormatInt(number, 10)+ext)
}

// numbers returns the numbers of a CTID's files that end in ext, ascending.
func (s *Store) numbers(ctid int32, ext string) ([]int64, error) {
	entries, err := os.ReadDir(s.revisionDir(ctid))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var numbers []int64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ext)
		if n, err := strconv.ParseInt(name, 10, 64); ok && err == nil && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// save keeps a conf as a revision, durably, and drops those that are too many. The caller holds the CTID's lock.
func (s *Store) save(ctid int32, conf []byte, by Author, replacedBy string) (int64, error) {
	dir := s.revisionDir(ctid)
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := makeDir(d, 0o700); err != nil {
			return 0, err
		}
	}
	numbers, err := s.numbers(ctid, confExt)
	if err != nil {
		return 0, err
	}
	number := int64(1)
	if len(numbers) > 0 {
		number = numbers[len(numbers)-1] + 1
	}
	meta, err := json.Marshal(metadata{
		Time: time.Now().UTC(), Who: by.Who, OnBehalfOf: by.OnBehalfOf, Why: by.Why, Digest: digest(conf), ReplacedBy: replacedBy,
	})
	if err != nil {
		return 0, err
	}
	if err := s.writeRevision(ctid, number, conf, append(meta, '\n')); err != nil {
		return 0, errors.Join(err, s.drop(ctid, number))
	}
	keep := orDefault(s.Keep, 50)
	for i := 0; i < len(numbers)+1-keep; i++ {
		if err := s.drop(ctid, numbers[i]); err != nil {
			return 0, err
		}
	}
	return number, nil
}

func (s *Store) writeRevision(ctid int32, number int64, conf, meta []byte) error {
	for _, f := range []struct {
		ext string
		b   []byte
	}{{confExt, conf}, {metaExt, meta}} {
		path := s.revisionFile(ctid, number, f.ext)
		if err := writeTemp(path+tempExt, f.b, 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+tempExt, path); err != nil {
			return errors.Join(err, removeIfThere(path+tempExt))
		}
	}
	return syncDir(s.revisionDir(ctid))
}

// drop removes a revision, the sign of its completeness first.
func (s *Store) drop(ctid int32, number int64) error {
	for _, ext := range []string{metaExt, confExt} {
		if err := removeIfThere(s.revisionFile(ctid, number, ext)); err != nil {
			return err
		}
	}
	return nil
}

// sweepRevisions removes temporary files, and confs of revisions that were never completed.
func (s *Store) sweepRevisions() (removed []string, err error) {
	dirs, err := os.ReadDir(s.revisionTop())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, d := range dirs {
		ctid, perr := strconv.ParseInt(d.Name(), 10, 32)
		if perr != nil || !d.IsDir() {
			continue
		}
		files, derr := s.sweepRevisionsOf(int32(ctid))
		removed = append(removed, files...)
		err = errors.Join(err, derr)
	}
	return removed, err
}

// sweepRevisionsOf leaves a conf alone that is being edited, as it seems by another process: what that writes now is not
// abandoned.
func (s *Store) sweepRevisionsOf(ctid int32) (removed []string, err error) {
	l, err := s.tryLock(ctid)
	if l == nil || err != nil {
		return nil, err
	}
	defer l.close()
	dir := s.revisionDir(ctid)
	return removeFiles(dir, func(e fs.DirEntry) bool {
		if strings.HasSuffix(e.Name(), tempExt) {
			return true
		}
		number, ok := strings.CutSuffix(e.Name(), confExt)
		if !ok {
			return false
		}
		_, err := os.Lstat(filepath.Join(dir, number+metaExt))
		return errors.Is(err, fs.ErrNotExist)
	})
}
