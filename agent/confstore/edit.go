package confstore

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"unicode/utf8"

	"phoenix.internal/agent/pveconf"
)

// An Author is who changes a conf, and why; all of it is kept with the revision.
type Author struct {
	Who        string // identity of the caller
	OnBehalfOf string // who the caller says that it acts for; empty if it does not say
	Why        string // operation, and the caller's name for it
}

// A Result is what an edit did, or would do.
type Result struct {
	Before, After []byte
	Digest        string // of After: SHA-1 in lower-case hex
	Changed       bool
	Revision      int64 // number of the revision that holds Before; 0 if nothing was written
}

// Edit replaces the conf of ctid with what fn makes of it. The old bytes are kept as a revision, on disk before the
// conf is touched. If fn changes nothing, nothing is written.
//
// Proxmox's lock on the CTID is held while fn runs, so fn must not call pct. The lock does not exclude Proxmox's post-stop
// hook. With Settled, Edit waits for the end of one that may be at work, and looks again if one began meanwhile: if it undid
// the edit, fn is called again on what it wrote. After is then the conf as it stands. The error may be a [*StoppingError].
//
// Before fn is called the conf is read under the lock; the errors are then [ErrNotFound], [*LockedError] if it holds
// a `lock:`, and [*DigestError] if ifDigest is not empty and stale. Others are [ErrNotMounted], [ErrNoQuorum],
// [*LockTimeoutError], [ErrTooLarge], and a [*DigestError] if somebody writes without the lock meanwhile, whose write
// then stands. After an error of which [MayHaveWritten] says so the conf is the old or the new one; after any other it was
// not touched.
//
// The functions in before are told the outcome when the old bytes are kept and the conf is not yet touched, to record what
// is about to be done. An error of one of them ends the edit.
func (s *Store) Edit(ctx context.Context, ctid int32, ifDigest string, by Author, fn func(*pveconf.File) error, before ...func(Result) error) (Result, error) {
	r, err := s.replace(ctx, ctid, ifDigest, by, edited(fn), before)
	if err != nil {
		return Result{}, fmt.Errorf("edit conf of CTID %d: %w", ctid, err)
	}
	return r, nil
}

// Preview returns what Edit would do at this moment, with the same errors. It takes no lock, writes nothing and
// does not need a quorum.
func (s *Store) Preview(ctid int32, ifDigest string, fn func(*pveconf.File) error) (Result, error) {
	r, err := s.preview(ctid, ifDigest, edited(fn))
	if err != nil {
		return Result{}, fmt.Errorf("preview edit of the conf of CTID %d: %w", ctid, err)
	}
	return r, nil
}

// Restore puts a revision back, otherwise like Edit. Snapshots and pending changes are not part of a revision's
// configuration: those of the present conf stay as they are.
func (s *Store) Restore(ctx context.Context, ctid int32, number int64, ifDigest string, by Author, before ...func(Result) error) (Result, error) {
	_, old, err := s.Revision(ctid, number)
	if err != nil {
		return Result{}, err
	}
	r, err := s.replace(ctx, ctid, ifDigest, by, restored(old), before)
	if err != nil {
		return Result{}, fmt.Errorf("restore revision %d of the conf of CTID %d: %w", number, ctid, err)
	}
	return r, nil
}

// PreviewRestore is to Restore what Preview is to Edit.
func (s *Store) PreviewRestore(ctid int32, number int64, ifDigest string) (Result, error) {
	_, old, err := s.Revision(ctid, number)
	if err != nil {
		return Result{}, err
	}
	r, err := s.preview(ctid, ifDigest, restored(old))
	if err != nil {
		return Result{}, fmt.Errorf("preview restore of revision %d of the conf of CTID %d: %w", number, ctid, err)
	}
	return r, nil
}

// A change makes new bytes of a conf's bytes.
type change func(before []byte) (after []byte, err error)

func edited(fn func(*pveconf.File) error) change {
	return func(before []byte) ([]byte, error) {
		f := pveconf.Parse(before)
		if err := fn(f); err != nil {
			return nil, err
		}
		after := f.Bytes()
		return after, checkLines(before, after)
	}
}

// restored does not look at lines: every one of them was in the conf already.
func restored(old []byte) change {
	return func(before []byte) ([]byte, error) {
		oldMain, oldSections := pveconf.Split(old)
		main, sections := pveconf.Split(before)
		switch {
		case bytes.Equal(main, oldMain):
			return before, nil
		case bytes.Equal(sections, oldSections):
			return old, nil
		}
		return join(oldMain, sections), nil
	}
}

func (s *Store) preview(ctid int32, ifDigest string, fn change) (Result, error) {
	before, err := s.Read(ctid)
	if err != nil {
		return Result{}, err
	}
	return s.apply(ctid, before, ifDigest, fn)
}

// apply checks that a conf may be changed, as Proxmox does and in its order, and calls fn.
func (s *Store) apply(ctid int32, before []byte, ifDigest string, fn change) (Result, error) {
	// Any text is a lock but one that is false for Perl (AbstractConfig.pm, check_lock).
	if v, ok := pveconf.Parse(before).Property("lock"); ok && v != "" && v != "0" {
		return Result{}, &LockedError{CTID: ctid, Lock: v}
	}
	if got := digest(before); ifDigest != "" && ifDigest != got {
		return Result{}, &DigestError{CTID: ctid, Want: ifDigest, Got: got}
	}
	after, err := fn(before)
	if err != nil {
		return Result{}, err
	}
	if len(after) > MaxSize {
		return Result{}, fmt.Errorf("%d bytes: %w", len(after), ErrTooLarge)
	}
	return Result{Before: before, After: after, Digest: digest(after), Changed: !bytes.Equal(before, after)}, nil
}

// replaceOnce says too whether what it wrote is known to last, and returns the outcome that it tried to reach even if
// somebody overwrote it.
func (s *Store) replaceOnce(ctx context.Context, ctid int32, ifDigest string, by Author, fn change, tell []func(Result) error) (r Result, lasts bool, err error) {
	if err := s.Check(); err != nil {
		return Result{}, false, err
	}
	l, err := s.lock(ctx, ctid)
	if err != nil {
		return Result{}, false, err
	}
	defer l.release()

	before, err := answer(s, l, func(*job) ([]byte, error) { return s.read(ctid) })
	if err != nil {
		return Result{}, false, err
	}
	r, err = s.apply(ctid, before, ifDigest, fn)
	if err != nil || !r.Changed {
		return r, false, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, false, err
	}
	r.Revision, err = s.save(ctid, before, by, r.Digest)
	if err != nil {
		return Result{}, false, &RevisionDirError{Path: s.revisionTop(), Err: err}
	}
	for _, f := range tell {
		if err := f(r); err != nil {
			return Result{}, false, errors.Join(err, s.drop(ctid, r.Revision))
		}
	}
	replaced, err := answer(s, l, func(j *job) (bool, error) { return s.swap(j, ctid, before, r.After) })
	if err == nil {
		return r, s.lasts(ctid, r.After), nil
	}
	if !replaced && !errors.Is(err, ErrNoAnswer) {
		err = errors.Join(err, s.drop(ctid, r.Revision))
	}
	return r, false, err
}

func digest(b []byte) string {
	sum := sha1.Sum(b)
	return hex.EncodeToString(sum[:])
}

// checkLines refuses an edit that adds a line which LXC reads as several, or not to its end: LXC ends a line at CR
// as well as at LF and ignores everything after a NUL, Proxmox knows only LF. So the number of lines grows by those
// that were added and by no other, counted either way. Lines that stood there before are not ours.
func checkLines(before, after []byte) error {
	had := make(map[string]int)
	for line := range bytes.Lines(before) {
		had[string(bytes.TrimSuffix(line, []byte{'\n'}))]++
	}
	number := 0
	for line := range bytes.Lines(after) {
		number++
		line = bytes.TrimSuffix(line, []byte{'\n'})
		if had[string(line)] > 0 {
			had[string(line)]--
			continue
		}
		if !utf8.Valid(line) {
			return fmt.Errorf("line %d to be written is not UTF-8: %q", number, line)
		}
		if i := bytes.IndexFunc(line, func(c rune) bool { return c < 0x20 || c == 0x7f }); i >= 0 {
			return fmt.Errorf("line %d to be written has a control character at byte %d: %q", number, i, line)
		}
	}
	return nil
}

// join puts sections after a main section, with the blank line between that Proxmox writes there.
func join(main, sections []byte) []byte {
	if len(sections) == 0 {
		if cut, ok := bytes.CutSuffix(main, []byte("\n\n")); ok {
			main = append(bytes.Clone(cut), '\n')
		}
		return main
	}
	joined := bytes.Clone(main)
	if len(joined) > 0 {
		for !bytes.HasSuffix(joined, []byte("\n\n")) {
			joined = append(joined, '\n')
		}
	}
	return append(joined, sections...)
}
