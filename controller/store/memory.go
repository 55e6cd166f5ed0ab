package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Memory is a store that forgets everything with its process, for tests. The zero value is ready.
type Memory struct {
	mu       sync.Mutex
	runs     map[string]Run
	verified map[int32]string
}

// SaveRun implements [Store].
func (m *Memory) SaveRun(r Run) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runs == nil {
		m.runs = map[string]Run{}
	}
	m.runs[r.ID] = r.Clone()
	for _, id := range slices.Sorted(maps.Keys(m.runs)) {
		if len(m.runs) > Keep && m.runs[id].State != RunRunning {
			delete(m.runs, id)
		}
	}
	return nil
}

// SaveContainer implements [Store].
func (m *Memory) SaveContainer(id string, c Container) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	containers := m.runs[id].Containers
	i := slices.IndexFunc(containers, func(o Container) bool { return o.CTID == c.CTID })
	if i < 0 {
		return fmt.Errorf("save CTID %d of run %s: %w", c.CTID, id, ErrNotFound)
	}
	containers[i] = c.Clone()
	return nil
}

// Run implements [Store].
func (m *Memory) Run(id string) (Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.runs[id]; ok {
		return r.Clone(), nil
	}
	var ids []string
	for _, full := range slices.Sorted(maps.Keys(m.runs)) {
		if strings.HasPrefix(full, id) {
			ids = append(ids, full)
		}
	}
	full, err := only(id, ids)
	return m.runs[full].Clone(), err
}

// only returns the one ID that begins with prefix.
func only(prefix string, ids []string) (string, error) {
	switch {
	case prefix == "" || len(ids) == 0:
		return "", fmt.Errorf("run %q: %w", prefix, ErrNotFound)
	case len(ids) > 1:
		return "", &AmbiguousError{Prefix: prefix, IDs: ids}
	}
	return ids[0], nil
}

// Runs implements [Store].
func (m *Memory) Runs(limit int) ([]Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var runs []Run
	for _, id := range slices.Backward(slices.Sorted(maps.Keys(m.runs))) {
		if limit > 0 && len(runs) == limit {
			break
		}
		runs = append(runs, m.runs[id].Clone())
	}
	return runs, nil
}

// Running implements [Store].
func (m *Memory) Running() ([]Run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var runs []Run
	for _, id := range slices.Sorted(maps.Keys(m.runs)) {
		if m.runs[id].State == RunRunning {
			runs = append(runs, m.runs[id].Clone())
		}
	}
	return runs, nil
}

// SetVerified implements [Store].
func (m *Memory) SetVerified(ctid int32, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.verified == nil {
		m.verified = map[int32]string{}
	}
	m.verified[ctid] = key
	return nil
}

// Verified implements [Store].
func (m *Memory) Verified() (map[int32]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.verified == nil {
		return map[int32]string{}, nil
	}
	return maps.Clone(m.verified), nil
}

// Close implements [Store].
func (m *Memory) Close() error { return nil }
