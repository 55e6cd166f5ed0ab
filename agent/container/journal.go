package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"phoenix.internal/agent/confstore"
)

// An intent says that a running container is about to be stopped in order to start it again.
type intent struct {
	CTID     int32  `json:"ctid"`
	Instance string `json:"instance"` // that ran before
	Who      string `json:"who,omitempty"`
	Why      string `json:"why,omitempty"`
}

// An unprovenEdit is an edit of ours with which the container has not yet been started.
type unprovenEdit struct {
	Revision int64  `json:"revision"` // holds what was before the first such edit
	After    []byte `json:"after"`    // what the last such edit wrote
}

func (m *Manager) recordIntent(in intent) error { return m.save("restart", in.CTID, in) }
func (m *Manager) dropIntent(ctid int32) error  { return m.drop("restart", ctid) }

// intents returns the restarts that were not finished.
func (m *Manager) intents() ([]intent, error) {
	names, err := filepath.Glob(filepath.Join(m.StateDir, "restart", "*.json"))
	if err != nil {
		return nil, err
	}
	var all []intent
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("unfinished restarts: %w", err)
		}
		var in intent
		if err := json.Unmarshal(b, &in); err != nil {
			return nil, fmt.Errorf("unfinished restarts: %s: %w; look at the container, then remove the file", name, err)
		}
		all = append(all, in)
	}
	return all, nil
}

// recordUnproven keeps the way back over several edits in a row: to what was before the first.
func (m *Manager) recordUnproven(ctid int32, res confstore.Result) error {
	edit, ok, err := m.unproven(ctid)
	if err != nil {
		return err
	}
	if !ok {
		edit.Revision = res.Revision
	}
	edit.After = res.After
	return m.save("unproven", ctid, edit)
}

func (m *Manager) unproven(ctid int32) (unprovenEdit, bool, error) {
	var edit unprovenEdit
	b, err := os.ReadFile(m.record("unproven", ctid))
	if errors.Is(err, fs.ErrNotExist) {
		return edit, false, nil
	} else if err != nil {
		return edit, false, fmt.Errorf("edit to roll back: %w", err)
	}
	if err := json.Unmarshal(b, &edit); err != nil {
		return edit, false, fmt.Errorf("edit to roll back: %s: %w", m.record("unproven", ctid), err)
	}
	return edit, true, nil
}

func (m *Manager) dropUnproven(ctid int32) error { return m.drop("unproven", ctid) }

func (m *Manager) record(kind string, ctid int32) string {
	return filepath.Join(m.StateDir, kind, strconv.Itoa(int(ctid))+".json")
}

// save writes a record so that it survives a crash right after.
func (m *Manager) save(kind string, ctid int32, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	path := m.record(kind, ctid)
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("record of CTID %d: %w", ctid, err)
	}
	tmp, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("record of CTID %d: %w", ctid, err)
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("record of CTID %d: %w", ctid, err)
	}
	return nil
}

func (m *Manager) drop(kind string, ctid int32) error {
	err := os.Remove(m.record(kind, ctid))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record of CTID %d: %w", ctid, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
