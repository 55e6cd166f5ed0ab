package server

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/stats"
)

// The limits of one controller.
const (
	handshakeTimeout         = 5 * time.Second
	maxConnections           = 10_000
	maxConnectionsPerAddress = 16
	maxConnectionIdle        = 15 * time.Minute
	maxConnectionAge         = time.Hour // and up to a tenth more or less; streams that are open then go on
	keepaliveTime            = 30 * time.Second
	keepaliveTimeout         = 10 * time.Second
	keepaliveMinTime         = 20 * time.Second
	maxStreams               = 256 // per connection
	maxHeaderBytes           = 16 << 10
	maxSendBytes             = 4 << 20
	maxReceiveBytes          = 4 << 20
	maxFleetBytes            = 8 << 20 // of ValidateFleet's content
	maxNameBytes             = 4096    // of its name, which stands in every finding
	streamWindow             = 128 << 10
	connectionWindow         = 4 << 20
	unaryTimeout             = 2 * time.Minute // of a call that comes without a deadline
	maxUnaryTimeout          = time.Hour       // of any other
	lastWord                 = 200 * time.Millisecond
	restartStreamTimeout     = 25 * time.Minute
)

// startWait is how long the caller of an exec may take for its first message, and with it holds a stream.
var startWait = 10 * time.Second

// Limit closes connections beyond the limits on their number, in all and for each address, as soon as they are
// accepted: the accept loop never waits.
func Limit(l net.Listener) net.Listener {
	return &limitedListener{
		Listener: l, inAll: maxConnections, perAddress: maxConnectionsPerAddress, open: map[string]int{},
	}
}

type limitedListener struct {
	net.Listener
	inAll, perAddress int

	mu    sync.Mutex
	total int
	open  map[string]int // connections by address
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := c.RemoteAddr().String()
		if host, _, err := net.SplitHostPort(address); err == nil {
			address = host
		}
		if l.take(address) {
			return &limitedConn{Conn: c, release: sync.OnceFunc(func() { l.release(address) })}, nil
		}
		c.Close() //nolint:errcheck // refused: nothing was written
	}
}

func (l *limitedListener) take(address string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.inAll || l.open[address] >= l.perAddress {
		return false
	}
	l.total++
	l.open[address]++
	return true
}

func (l *limitedListener) release(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.open[address]--; l.open[address] == 0 {
		delete(l.open, address)
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// streamCounter counts the open streams of each connection. The transport's own limit lets a stream too many wait
// silently for its deadline, so ours is one below it and refuses.
type streamCounter struct{}

type streamsKey struct{}

func (streamCounter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, streamsKey{}, new(atomic.Int32))
}

func (streamCounter) HandleConn(context.Context, stats.ConnStats) {}

func (streamCounter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (streamCounter) HandleRPC(context.Context, stats.RPCStats) {}

// enter counts one stream in, or reports that there are maxStreams already.
func enter(ctx context.Context) (leave func(), ok bool) {
	streams, found := ctx.Value(streamsKey{}).(*atomic.Int32)
	if !found {
		return func() {}, true
	}
	if streams.Add(1) > maxStreams {
		streams.Add(-1)
		return nil, false
	}
	return func() { streams.Add(-1) }, true
}
