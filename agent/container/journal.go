package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/statefile"
)

// An intent says that a running container is about to be stopped in order to start it again.
type intent struct {
	CTID       int32         `json:"ctid"`
	Instance   string        `json:"instance"` // that ran before; empty if it was just being started, or stopped
	Begin      int64         `json:"begin"`    // nanoseconds since 1970; tells two restarts apart
	Timeout    time.Duration `json:"timeout"`  // for the graceful shutdown, nanoseconds
	Who        string        `json:"who,omitempty"`
	OnBehalfOf string        `json:"on_behalf_of,omitempty"`
	Why        string        `json:"why,omitempty"`
}

// A StateError says that the agent's own state directory refuses: the disk is full, for example.
type StateError struct {
	Path string // of the directory
	Err  error
}

func (e *StateError) Error() string { return "state directory " + e.Path + ": " + e.Err.Error() }
func (e *StateError) Unwrap() error { return e.Err }

// An unprovenEdit is an edit of ours with which the container has not yet been started. It is recorded before the conf is
// written, so the conf may be as before all the same.
type unprovenEdit struct {
	Revision int64    `json:"revision"` // holds what was before the first such edit
	Instance string   `json:"instance"` // that ran at the first such edit; empty if none did
	After    [][]byte `json:"after"`    // what the last such edit writes, and before it what the one before wrote
	Applied  *Applied `json:"applied"`  // the record that went with Revision; nil: there was none
}

// unknownInstance is recorded of a container that could not be observed.
const unknownInstance = "unknown"

// provenBy says whether a container that runs as the instance was started after the edits, and so with them.
func (e unprovenEdit) provenBy(instance string) bool {
	return instance != "" && e.Instance != unknownInstance && instance != e.Instance
}

// wrote says whether a conf still means what one of the edits wrote; a stop may have rewritten its bytes.
func (e unprovenEdit) wrote(now []byte) bool {
	return slices.ContainsFunc(e.After, func(after []byte) bool { return confstore.Survives(after, now) })
}

func (m *Manager) recordIntent(in intent) error { return m.save("restart", in.CTID, in) }
func (m *Manager) dropIntent(ctid int32) error  { return m.drop("restart", ctid) }

// intents returns the restarts that were not finished. The errors are about single ones.
func (m *Manager) intents() ([]intent, []error) {
	names, err := filepath.Glob(filepath.Join(m.StateDir, "restart", "*.json"))
	if err != nil {
		return nil, []error{err}
	}
	var all []intent
	var errs []error
	for _, name := range names {
		in, err := readIntent(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("unfinished restart: %w; look at the container, then remove the file", err))
			continue
		}
		all = append(all, in)
	}
	return all, errs
}

func readIntent(name string) (intent, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return intent{}, err
	}
	var in intent
	if err := json.Unmarshal(b, &in); err != nil {
		return intent{}, fmt.Errorf("%s: %w", name, err)
	}
	return in, nil
}

// isCurrent says whether no later restart has replaced or finished this one.
func (m *Manager) isCurrent(in intent) bool {
	now, err := readIntent(m.record("restart", in.CTID))
	return err == nil && now == in
}

// recordUnproven keeps the way back over several edits in a row: to what was before the first.
func (m *Manager) recordUnproven(ctid int32, instance string, res confstore.Result) error {
	edit, ok, err := m.unproven(ctid)
	if err != nil {
		return err
	}
	if !ok || edit.provenBy(instance) {
		edit = unprovenEdit{Revision: res.Revision, Instance: instance, Applied: m.applied(ctid)}
	} else if n := len(edit.After); n > 0 {
		edit.After = edit.After[n-1:]
	}
	edit.After = append(edit.After, res.After)
	return m.save("unproven", ctid, edit)
}

func (m *Manager) unproven(ctid int32) (unprovenEdit, bool, error) {
	var edit unprovenEdit
	b, err := os.ReadFile(m.record("unproven", ctid))
	if errors.Is(err, fs.ErrNotExist) {
		return edit, false, nil
	} else if err != nil {
		return edit, false, &StateError{Path: m.StateDir, Err: err}
	}
	if err := json.Unmarshal(b, &edit); err != nil {
		// Nobody but us writes it. What is lost is the way back; refusing every later edit would be worse.
		m.Log.Error("record of an edit is damaged", "ctid", ctid, "path", m.record("unproven", ctid), "err", err)
		return unprovenEdit{}, false, nil
	}
	return edit, true, nil
}

func (m *Manager) dropUnproven(ctid int32) error { return m.drop("unproven", ctid) }

func (m *Manager) record(kind string, ctid int32) string {
	return filepath.Join(m.StateDir, kind, strconv.Itoa(int(ctid))+".json")
}

// save writes a record so that it survives a crash right after.
func (m *Manager) save(kind string, ctid int32, v any) error {
	if err := statefile.Save(m.record(kind, ctid), v); err != nil {
		return &StateError{Path: m.StateDir, Err: err}
	}
	return nil
}

func (m *Manager) drop(kind string, ctid int32) error {
	err := os.Remove(m.record(kind, ctid))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &StateError{Path: m.StateDir, Err: err}
	}
	return nil
}
