package controller

import (
	"fmt"
	"sync"

	"phoenix.internal/controller/server"
	"phoenix.internal/controller/store"
)

// lazyStore opens the store at its first use. If that fails, the next use tries again.
type lazyStore struct {
	path string

	mu   sync.Mutex
	bolt *store.Bolt
}

func (l *lazyStore) open() (*store.Bolt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bolt != nil {
		return l.bolt, nil
	}
	b, err := store.Open(l.path)
	if err != nil {
		return nil, &server.StateError{Err: err}
	}
	if err := markInterrupted(b); err != nil {
		b.Close() //nolint:errcheck // the first error says more
		return nil, &server.StateError{Err: err}
	}
	l.bolt = b
	return b, nil
}

// markInterrupted ends the runs that an earlier process left unfinished.
func markInterrupted(s store.Store) error {
	runs, err := s.Running()
	if err != nil {
		return err
	}
	for _, r := range runs {
		r.State = store.RunInterrupted
		if err := s.SaveRun(r); err != nil {
			return fmt.Errorf("mark run %s as interrupted: %w", r.ID, err)
		}
	}
	return nil
}

func (l *lazyStore) SaveRun(r store.Run) error {
	s, err := l.open()
	if err != nil {
		return err
	}
	return s.SaveRun(r)
}

func (l *lazyStore) SaveContainer(id string, c store.Container) error {
	s, err := l.open()
	if err != nil {
		return err
	}
	return s.SaveContainer(id, c)
}

func (l *lazyStore) Run(id string) (store.Run, error) {
	s, err := l.open()
	if err != nil {
		return store.Run{}, err
	}
	return s.Run(id)
}

func (l *lazyStore) Runs(limit int) ([]store.Run, error) {
	s, err := l.open()
	if err != nil {
		return nil, err
	}
	return s.Runs(limit)
}

func (l *lazyStore) Running() ([]store.Run, error) {
	s, err := l.open()
	if err != nil {
		return nil, err
	}
	return s.Running()
}

func (l *lazyStore) SetVerified(ctid int32, key string) error {
	s, err := l.open()
	if err != nil {
		return err
	}
	return s.SetVerified(ctid, key)
}

func (l *lazyStore) Verified() (map[int32]string, error) {
	s, err := l.open()
	if err != nil {
		return nil, err
	}
	return s.Verified()
}

// Close closes the store if it was opened.
func (l *lazyStore) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bolt == nil {
		return nil
	}
	return l.bolt.Close()
}
