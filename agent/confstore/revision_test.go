package confstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/pveconf"
)

// edit sets the memory and ends the test if that fails.
func edit(t testing.TB, s *confstore.Store, by confstore.Author, mib string) confstore.Result {
	t.Helper()
	r, err := s.Edit(t.Context(), 101, "", by, setMemory(mib))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRevisions(t *testing.T) {
	s := newStore(t)
	// Bytes that are neither canonical nor UTF-8 are kept as they are.
	odd := "memory:   1\r\n#caf\xe9\nlxc.environment = A=\x00\r\n\n\n[snap]\nmemory: 1"
	write(t, s, odd)
	start := time.Now()
	first := edit(t, s, alice, "2")
	second := edit(t, s, confstore.Author{Who: "bob \"x\"\n", Why: ""}, "3")

	revisions, err := s.Revisions(101)
	if err != nil || len(revisions) != 2 {
		t.Fatalf("revisions %+v, error %v", revisions, err)
	}
	for i := range revisions {
		if at := revisions[i].Time; at.Before(start.Add(-time.Second)) || at.After(time.Now()) {
			t.Errorf("revision %d was made at %v", revisions[i].Number, at)
		}
		revisions[i].Time = time.Time{}
	}
	want := []confstore.Revision{
		{Number: 2, Author: confstore.Author{Who: "bob \"x\"\n"}, Digest: first.Digest, ReplacedBy: second.Digest},
		{Number: 1, Author: alice, Digest: pveconf.Parse([]byte(odd)).Digest(), ReplacedBy: first.Digest},
	}
	if !slices.Equal(revisions, want) {
		t.Errorf("revisions %+v\nwant      %+v", revisions, want)
	}
	if first.Revision != 1 || second.Revision != 2 {
		t.Errorf("edits made revisions %d and %d", first.Revision, second.Revision)
	}
	r, b, err := s.Revision(101, 1)
	if err != nil || string(b) != odd || r.Number != 1 || r.Who != "alice" {
		t.Errorf("revision %+v, %q, error %v", r, b, err)
	}
	// A person can copy it back without Phoenix.
	if file, err := os.ReadFile(filepath.Join(s.RevisionDir, "101/1.conf")); err != nil || string(file) != odd {
		t.Errorf("file %q, error %v", file, err)
	}
	for _, dir := range []string{s.RevisionDir, filepath.Join(s.RevisionDir, "101")} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, error %v", dir, info.Mode(), err)
		}
	}
}

func TestNoSuchRevision(t *testing.T) {
	s := newStore(t)
	if revisions, err := s.Revisions(101); err != nil || len(revisions) != 0 {
		t.Errorf("revisions %v, error %v", revisions, err)
	}
	_, _, err := s.Revision(101, 7)
	_, restoreErr := s.Restore(t.Context(), 101, 7, "", alice)
	_, previewErr := s.PreviewRestore(101, 7, "")
	for call, err := range map[string]error{"Revision": err, "Restore": restoreErr, "PreviewRestore": previewErr} {
		if e, ok := errors.AsType[*confstore.RevisionError](err); !ok || *e != (confstore.RevisionError{CTID: 101, Number: 7}) {
			t.Errorf("%s: error %v", call, err)
		}
	}
}

func TestKeep(t *testing.T) {
	s := newStore(t)
	s.Keep = 3
	for i := range 6 {
		edit(t, s, alice, strconv.Itoa(16+i))
	}
	revisions, err := s.Revisions(101)
	if err != nil {
		t.Fatal(err)
	}
	var numbers []int64
	for _, r := range revisions {
		numbers = append(numbers, r.Number)
	}
	if want := []int64{6, 5, 4}; !slices.Equal(numbers, want) {
		t.Errorf("revisions %v, want %v", numbers, want)
	}
	entries, err := os.ReadDir(filepath.Join(s.RevisionDir, "101"))
	if err != nil || len(entries) != 6 {
		t.Errorf("%d files, error %v, want two for each", len(entries), err)
	}
}

func TestDamagedRevision(t *testing.T) {
	s := newStore(t)
	edit(t, s, alice, "16")
	file := filepath.Join(s.RevisionDir, "101/1.conf")
	if err := os.WriteFile(file, []byte("memory: 8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := read(t, s)
	if _, err := s.Restore(t.Context(), 101, 1, "", alice); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("error %v", err)
	}
	if read(t, s) != before {
		t.Error("a damaged revision was restored")
	}
}

// Nothing is replaced that cannot be kept.
func TestRevisionCannotBeKept(t *testing.T) {
	s := newStore(t)
	if err := os.WriteFile(s.RevisionDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("16")); err == nil {
		t.Error("edited all the same")
	}
	if got := read(t, s); got != conf {
		t.Errorf("conf is now %q", got)
	}
	wantFiles(t, s, "101.conf")
}

func TestRestore(t *testing.T) {
	s := newStore(t)
	first := edit(t, s, alice, "4096")
	changed := read(t, s)
	bob := confstore.Author{Who: "bob", Why: "restore"}
	if _, err := s.Restore(t.Context(), 101, first.Revision, "stale", bob); err == nil {
		t.Error("a stale digest was taken")
	}
	r, err := s.Restore(t.Context(), 101, first.Revision, first.Digest, bob)
	if err != nil || !r.Changed || string(r.Before) != changed || string(r.After) != conf || r.Revision != 2 {
		t.Errorf("result %+v, error %v", r, err)
	}
	if got := read(t, s); got != conf {
		t.Errorf("conf is now %q", got)
	}
	// The restore can itself be undone.
	if r, err = s.Restore(t.Context(), 101, r.Revision, "", bob); err != nil || read(t, s) != changed {
		t.Errorf("conf is now %q, error %v", read(t, s), err)
	}
	if r, err = s.Restore(t.Context(), 101, 2, "", bob); err != nil || r.Changed {
		t.Errorf("second time: result %+v, error %v", r, err)
	}
}

// A restore puts the configuration back, not the list of snapshots: a lost snapshot section is a lost snapshot.
func TestRestoreKeepsSections(t *testing.T) {
	const (
		old  = "memory: 1\nlxc.environment: A=\rb\n"
		main = "memory: 2\n"
		snap = "[before]\nmemory: 1\nsnaptime: 1\n"
		wait = "[pve:pending]\nmemory: 9\n\n"
	)
	for _, test := range []struct{ name, revision, now, want string }{
		{"no sections", old, main, old},
		{"equal sections", old + "\n" + snap, main + "\n" + snap, old + "\n" + snap},
		{"snapshot made since", old, main + "\n" + snap, old + "\n" + snap},
		{"snapshot removed since", old + "\n" + snap, main, old},
		{"pending since", old, main + "\n" + wait + snap, old + "\n" + wait + snap},
		{"other snapshot", old + "\n[other]\nmemory: 7\n", main + "\n" + snap, old + "\n" + snap},
		{"no final line feed", "memory: 1", main + "\n" + snap, "memory: 1\n\n" + snap},
		{"revision is empty", "", main + "\n" + snap, snap},
		{"no header: one letter, text behind, blank before", old + "[a]\n[x] y\n [z]\n", main, old + "[a]\n[x] y\n [z]\n"},
		{"header in capitals with blanks behind", old, main + "[PVE:Pending] \t\nmemory: 9\n", old + "\n[PVE:Pending] \t\nmemory: 9\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t)
			write(t, s, test.revision)
			if _, err := s.Edit(t.Context(), 101, "", alice, func(f *pveconf.File) error {
				return f.Set("hostname", "x")
			}); err != nil {
				t.Fatal(err)
			}
			write(t, s, test.now)
			preview, err := s.PreviewRestore(101, 1, "")
			if err != nil || string(preview.After) != test.want {
				t.Errorf("preview %q, error %v, want %q", preview.After, err, test.want)
			}
			if _, err := s.Restore(t.Context(), 101, 1, "", alice); err != nil {
				t.Fatal(err)
			}
			if got := read(t, s); got != test.want {
				t.Errorf("conf %q, want %q", got, test.want)
			}
		})
	}
}
