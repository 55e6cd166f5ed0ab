package server

import (
	"log/slog"
	"net"
	"sync"
)

// Limits of the threat model, section 8.
const (
	maxConns           = 128
	maxConnsPerAddress = 8
)

// A connLimit closes connections beyond the limits before a byte of theirs is read.
type connLimit struct {
	net.Listener
	log *slog.Logger

	mu    sync.Mutex
	total int
	n     map[string]int // by the peer's address without its port
}

func limitConns(lis net.Listener, log *slog.Logger) *connLimit {
	return &connLimit{Listener: lis, log: log, n: make(map[string]int)}
}

// Accept implements [net.Listener].
func (l *connLimit) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
		if err != nil {
			host = conn.RemoteAddr().String()
		}
		if l.enter(host) {
			return &countedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(host) })}, nil
		}
		l.log.Warn("connection refused: too many", "peer", host, "per_address", maxConnsPerAddress, "in_all", maxConns)
		_ = conn.Close() // nothing was sent on it
	}
}

func (l *connLimit) enter(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= maxConns || l.n[host] >= maxConnsPerAddress {
		return false
	}
	l.total++
	l.n[host]++
	return true
}

func (l *connLimit) leave(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.n[host]--; l.n[host] == 0 {
		delete(l.n, host)
	}
}

type countedConn struct {
	net.Conn
	leave func()
}

func (c *countedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
