package controller

import (
	"sync"

	"phoenix.internal/controller/store"
)

// lazyStore opens the store at its first use. If that fails, the next use tries again.
type lazyStore struct {
	path   string
	opened func() error // called once, when it is open

	mu   sync.Mutex
	bolt *store.Bolt
}

func (l *lazyStore) open() (*store.Bolt, error) {
	b, first, err := l.openOnce()
	if err == nil && first {
		err = l.opened() // which uses the store, so without the lock
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (l *lazyStore) openOnce() (b *store.Bolt, first bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bolt == nil {
		if l.bolt, err = store.Open(l.path); err != nil {
			l.bolt = nil
			return nil, false, err
		}
		first = true
	}
	return l.bolt, first, nil
}

// ifOpen calls fn if the store was opened.
func (l *lazyStore) ifOpen(fn func() error) error {
	l.mu.Lock()
	open := l.bolt != nil
	l.mu.Unlock()
	if !open {
		return nil
	}
	return fn()
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
