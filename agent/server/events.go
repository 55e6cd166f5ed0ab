package server

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// pollInterval is how often the node is looked at while somebody watches. It is polled because nothing would announce
// every change: inotify does not see what other cluster nodes write, and LXC announces no states.
const pollInterval = time.Second

// events tells watchers what changes on the node. Watchers compare what they sent last with what is: one that is slow
// misses states in between, but never the last one, and holds nothing up.
type events struct {
	node *Node
	gone chan struct{} // closed when the server drains
	once sync.Once

	mu       sync.Mutex
	watchers int
	now      snapshot
	changed  chan struct{} // closed and replaced at every change
}

// A snapshot is the node at one moment. Its messages are never changed once they are in it.
type snapshot struct {
	containers map[int32]*typev1.Container
	devices    *typev1.NodeDevices
}

func newEvents(node *Node) *events {
	return &events{node: node, gone: make(chan struct{}), changed: make(chan struct{})}
}

// close ends every watch.
func (e *events) close() { e.once.Do(func() { close(e.gone) }) }

// run looks at the node until ctx ends, while there are watchers.
func (e *events) run(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.mu.Lock()
		watched := e.watchers > 0
		e.mu.Unlock()
		if watched {
			err := e.look(ctx)
			if err != nil && !failing {
				e.node.Log.Warn("node not observed for its watchers", "err", err)
			}
			failing = err != nil
		}
	}
}

// look takes a snapshot and wakes the watchers if it differs from the last one.
func (e *events) look(ctx context.Context) error {
	containers, inv, err := e.node.Containers.List(ctx)
	if err != nil {
		return err
	}
	devices, err := e.node.devices(ctx, inv, containers)
	if err != nil {
		return err
	}
	next := snapshot{
		containers: make(map[int32]*typev1.Container, len(containers)),
		devices:    withoutProcesses(devices),
	}
	for i := range containers {
		next.containers[containers[i].CTID] = containerOf(e.node.Name, &containers[i])
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now.same(next) {
		return nil
	}
	e.now = next
	close(e.changed)
	e.changed = make(chan struct{})
	return nil
}

func (s snapshot) same(other snapshot) bool {
	if len(s.containers) != len(other.containers) || !proto.Equal(s.devices, other.devices) {
		return false
	}
	for ctid, c := range s.containers {
		if !proto.Equal(c, other.containers[ctid]) {
			return false
		}
	}
	return true
}

// watch sends everything once, then what changes, until ctx or the server ends.
func (e *events) watch(ctx context.Context, send func(*agentv1.WatchEventsResponse) error) error {
	e.mu.Lock()
	e.watchers++
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.watchers--
		e.mu.Unlock()
	}()
	// What was taken while nobody watched is old.
	if err := e.look(ctx); err != nil {
		return err
	}
	var sent snapshot
	synced := false
	for {
		e.mu.Lock()
		now, changed := e.now, e.changed
		e.mu.Unlock()
		if err := sendDifference(sent, now, send); err != nil {
			return err
		}
		sent = now
		if !synced {
			synced = true
			msg := event()
			msg.Event = &agentv1.WatchEventsResponse_Synced{Synced: &agentv1.Synced{}}
			if err := send(msg); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-e.gone:
			return shuttingDown()
		case <-changed:
		}
	}
}

func sendDifference(sent, now snapshot, send func(*agentv1.WatchEventsResponse) error) error {
	for _, ctid := range slices.Sorted(maps.Keys(sent.containers)) {
		if _, ok := now.containers[ctid]; !ok {
			msg := event()
			msg.Event = &agentv1.WatchEventsResponse_RemovedCtid{RemovedCtid: ctid}
			if err := send(msg); err != nil {
				return err
			}
		}
	}
	for _, ctid := range slices.Sorted(maps.Keys(now.containers)) {
		c := now.containers[ctid]
		if proto.Equal(c, sent.containers[ctid]) {
			continue
		}
		msg := event()
		msg.Event = &agentv1.WatchEventsResponse_Container{Container: c}
		if err := send(msg); err != nil {
			return err
		}
	}
	if !proto.Equal(now.devices, sent.devices) {
		if sent.devices != nil {
			for _, c := range deviceChanges(sent.devices, now.devices) {
				msg := event()
				msg.Event = &agentv1.WatchEventsResponse_DeviceChange{DeviceChange: c}
				if err := send(msg); err != nil {
					return err
				}
			}
		}
		msg := event()
		msg.Event = &agentv1.WatchEventsResponse_Devices{Devices: now.devices}
		return send(msg)
	}
	return nil
}

func event() *agentv1.WatchEventsResponse {
	return &agentv1.WatchEventsResponse{Time: timestamppb.Now()}
}
