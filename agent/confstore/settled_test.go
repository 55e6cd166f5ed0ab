package confstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/pveconf"
)

const (
	withPending = "# notes\nmemory: 2048\nhostname: trainer\narch: amd64\n\n[pve:pending]\nnameserver: 192.0.2.1\n"
	// What a stop makes of it, and of it after an edit.
	applied       = "# notes\narch: amd64\nhostname: trainer\nmemory: 2048\nnameserver: 192.0.2.1\n"
	appliedEdited = "# notes\narch: amd64\nhostname: trainer\nmemory: 4096\nnameserver: 192.0.2.1\n"
)

// stops is what happens to a container at each edit of its conf: during it, when the edit's function runs, and after
// it, before it is known to have stopped.
type stops struct {
	during, after []func()
	edits, ended  int
}

func next(acts []func(), edit int) {
	if edit < len(acts) && acts[edit] != nil {
		acts[edit]()
	}
}

// settled is asked before each edit, after it, and then until the stop has ended.
func (st *stops) settled(int32) (bool, error) {
	edit := st.edits - 1
	if edit < 0 || edit <= st.ended || edit >= max(len(st.during), len(st.after)) {
		return true, nil
	}
	next(st.after, edit)
	st.ended = edit
	return false, nil
}

func (st *stops) edit(fn func(*pveconf.File) error) func(*pveconf.File) error {
	return func(f *pveconf.File) error {
		edit := st.edits
		st.edits++
		err := fn(f)
		next(st.during, edit)
		return err
	}
}

// Proxmox's post-stop hook reads, applies pending changes and writes, and holds no lock. Whatever it overtakes, no
// edit is lost that was said to be made, and none that somebody else made later is undone.
func TestEditWhileTheContainerStops(t *testing.T) {
	for _, test := range []struct {
		name   string
		stops  func(put func(string) func()) stops
		want   string // the conf
		edits  int
		stands bool // the edit succeeds
	}{
		{
			name:  "no stop",
			stops: func(func(string) func()) stops { return stops{} },
			want:  strings.Replace(withPending, "2048", "4096", 1), edits: 1, stands: true,
		},
		{
			name: "the hook read before the edit and writes after it",
			stops: func(put func(string) func()) stops {
				return stops{after: []func(){put(applied)}}
			},
			want: appliedEdited, edits: 2, stands: true,
		},
		{
			name: "the hook writes in the middle of the edit",
			stops: func(put func(string) func()) stops {
				return stops{during: []func(){put(applied)}}
			},
			want: appliedEdited, edits: 2, stands: true,
		},
		{
			name: "the hook reads and writes after the edit",
			stops: func(put func(string) func()) stops {
				return stops{after: []func(){put(appliedEdited)}}
			},
			want: appliedEdited, edits: 1, stands: true,
		},
		{
			name: "it stops again and again",
			stops: func(put func(string) func()) stops {
				return stops{after: []func(){put(applied), put(applied), put(applied), nil}}
			},
			want: appliedEdited, edits: 4, stands: true,
		},
		{
			name: "it never stops stopping",
			stops: func(put func(string) func()) stops {
				return stops{after: []func(){
					put(applied), put(applied), put(applied), put(applied), put(applied), put(applied), put(applied),
				}}
			},
			want: applied, edits: 6,
		},
		{
			name: "somebody wants something else after the stop",
			stops: func(put func(string) func()) stops {
				return stops{after: []func(){put(strings.Replace(applied, "2048", "1024", 1))}}
			},
			want: strings.Replace(applied, "2048", "1024", 1), edits: 2, // the second only to see whether it holds already
		},
		{
			name: "somebody changes something else after the stop",
			stops: func(put func(string) func()) stops {
				return stops{after: []func(){put(appliedEdited + "onboot: 1\n")}}
			},
			want: appliedEdited + "onboot: 1\n", edits: 2, stands: true,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t)
			write(t, s, withPending)
			st := test.stops(func(content string) func() { return func() { write(t, s, content) } })
			st.ended = -1
			s.Settled = st.settled
			r, err := s.Edit(t.Context(), 101, pveconf.Parse([]byte(withPending)).Digest(), alice, st.edit(setMemory("4096")))
			if got := read(t, s); got != test.want {
				t.Errorf("conf:\n%s\nwant:\n%s", got, test.want)
			}
			if st.edits != test.edits {
				t.Errorf("fn was called %d times, want %d", st.edits, test.edits)
			}
			wantFiles(t, s, "101.conf")
			digest := pveconf.Parse([]byte(test.want)).Digest()
			if !test.stands {
				if e, ok := errors.AsType[*confstore.DigestError](err); !ok || e.Got != digest {
					t.Errorf("error %v, want a DigestError that has %s", err, digest)
				}
				return
			}
			if err != nil || string(r.After) != test.want || r.Digest != digest || !r.Changed {
				t.Errorf("result %+v, error %v", r, err)
			}
			if _, b, err := s.Revision(101, r.Revision); err != nil || string(b) != string(r.Before) {
				t.Errorf("revision %d: %q, error %v, want %q", r.Revision, b, err, r.Before)
			}
		})
	}
}

func TestStopThatDoesNotEnd(t *testing.T) {
	t.Run("before the edit", func(t *testing.T) {
		s := newStore(t)
		s.StopWait = time.Millisecond
		s.Settled = func(int32) (bool, error) { return false, nil }
		called := false
		_, err := s.Edit(t.Context(), 101, "", alice, noted(&called))
		if e, ok := errors.AsType[*confstore.StoppingError](err); !ok || e.CTID != 101 || e.Written || called {
			t.Errorf("error %v, fn called: %t", err, called)
		}
		if confstore.MayHaveWritten(err) {
			t.Error("the conf may have been written")
		}
		wantText(t, err, "edit conf of CTID 101: CTID 101 is stopping, and its post-stop hook, which rewrites the conf, "+
			"has not ended in 1ms: the conf was not edited")
		s.StopWait = time.Minute
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Edit(ctx, 101, "", alice, noted(&called)); !errors.Is(err, context.Canceled) || called {
			t.Errorf("caller that has left: error %v, fn called: %t", err, called)
		}
	})
	t.Run("after the edit", func(t *testing.T) {
		s := newStore(t)
		s.StopWait = time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		looks := 0
		s.Settled = func(int32) (bool, error) {
			if looks++; looks == 1 {
				return true, nil
			}
			cancel() // what becomes of the edit is looked at all the same
			return false, errors.New("no answer")
		}
		_, err := s.Edit(ctx, 101, "", alice, setMemory("4096"))
		if e, ok := errors.AsType[*confstore.StoppingError](err); !ok || !e.Written || !confstore.MayHaveWritten(err) {
			t.Errorf("error %v", err)
		}
		wantText(t, err, "edit conf of CTID 101: CTID 101 is stopping, and its post-stop hook, which rewrites the conf, "+
			"has not ended in 1ms: the edit of the conf may get lost: no answer")
		if got := read(t, s); got != edited {
			t.Errorf("conf is now %q", got)
		}
	})
}

// A hook can begin and end between our write and the look at the container: then the conf shows it.
func TestStopThatHasEndedAlready(t *testing.T) {
	s := newStore(t)
	write(t, s, withPending)
	looks := 0
	s.Settled = func(int32) (bool, error) {
		if looks++; looks == 2 {
			write(t, s, applied)
		}
		return true, nil
	}
	if _, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096")); err != nil {
		t.Error(err)
	}
	if got := read(t, s); got != appliedEdited {
		t.Errorf("conf:\n%s\nwant:\n%s", got, appliedEdited)
	}
}

func wantText(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
}

// A restored revision survives a stop like an edit.
func TestRestoreWhileTheContainerStops(t *testing.T) {
	s := newStore(t)
	write(t, s, withPending)
	edit(t, s, alice, "4096")
	now := strings.Replace(withPending, "2048", "4096", 1)
	looks := 0
	s.Settled = func(int32) (bool, error) {
		looks++
		if looks == 2 {
			write(t, s, appliedEdited) // read before the restore
		}
		return looks != 2, nil
	}
	if read(t, s) != now {
		t.Fatalf("conf is %q", read(t, s))
	}
	if _, err := s.Restore(t.Context(), 101, 1, "", alice); err != nil {
		t.Fatal(err)
	}
	// The pending change has been applied meanwhile; a revision's configuration does not have it.
	if got, want := read(t, s), "# notes\nmemory: 2048\nhostname: trainer\narch: amd64\n"; got != want {
		t.Errorf("conf:\n%s\nwant:\n%s", got, want)
	}
}

func TestSurvives(t *testing.T) {
	for _, test := range []struct {
		name, written, now string
		want               bool
	}{
		{"same bytes", "a b c", "a b c", true},
		{"canonical form", "memory: 1\narch: amd64\n", "arch: amd64\nmemory: 1\n", true},
		{"pending applied", withPending, applied, true},
		{"canonical form with pending", withPending,
			"# notes\narch: amd64\nhostname: trainer\nmemory: 2048\n\n[pve:pending]\nnameserver: 192.0.2.1\n", true},
		{"pending gone", withPending, "# notes\narch: amd64\nhostname: trainer\nmemory: 2048\n", false},
		{"another value", withPending, appliedEdited, false},
		{"empty now", withPending, "", false},
	} {
		if got := confstore.Survives([]byte(test.written), []byte(test.now)); got != test.want {
			t.Errorf("%s: %t, want %t", test.name, got, test.want)
		}
	}
}
