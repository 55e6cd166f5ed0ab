package agenttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pct"
	"phoenix.internal/agent/probe"
	"phoenix.internal/agent/pveconf"
)

// A Runtime pretends to run containers: a start takes what the conf gives at that moment, as LXC would, and a stop
// rewrites the conf, as Proxmox does.
type Runtime struct {
	confs *confstore.Store
	gpus  *gpu.Scanner

	mu      sync.Mutex
	running map[int32]*running
	calls   []string
	starts  int
	refuse  func(ctid int32, conf string) error
	hang    bool
}

type running struct {
	pid     int
	started time.Time
	serial  int
	rules   []passthrough.RuleLine
	userNS  bool
	files   map[string]container.File
	items   []container.Item
}

// Calls returns what was asked for so far: "start 901", "shutdown 901", "stop 901".
func (r *Runtime) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// RefuseStart makes starts fail for which fn returns an error.
func (r *Runtime) RefuseStart(fn func(ctid int32, conf string) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = fn
}

// IgnoreShutdown makes containers ignore a graceful shutdown.
func (r *Runtime) IgnoreShutdown(ignore bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hang = ignore
}

// Observe implements [container.Runtime].
func (r *Runtime) Observe(_ context.Context, ctid int32, paths []string) (container.Running, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.running[ctid]
	if !ok {
		return container.Running{State: lxcmon.Stopped}, nil
	}
	out := container.Running{
		State: lxcmon.Running, InitPID: c.pid, Instance: fmt.Sprintf("fake:%d", c.serial), StartTime: c.started,
		Rules: c.rules, UserNS: c.userNS, Found: make(map[string]container.File),
	}
	for _, path := range paths {
		out.Found[path] = c.files[path]
	}
	return out, nil
}

// Start implements [container.Runtime].
func (r *Runtime) Start(ctx context.Context, ctid int32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf("start %d", ctid))
	if r.running[ctid] != nil {
		return fmt.Errorf("start of CTID %d: %w", ctid, pct.ErrRunning)
	}
	b, err := r.confs.Read(ctid)
	if err != nil {
		return err
	}
	if r.refuse != nil {
		if err := r.refuse(ctid, string(b)); err != nil {
			return &pct.Error{Command: "start", CTID: ctid, Code: 255, Output: err.Error()}
		}
	}
	gpus, err := r.gpus.Scan(ctx)
	if err != nil {
		return err
	}
	inv := container.InventoryOf(gpus)
	conf := pveconf.Parse(b)
	given, _ := passthrough.Of(conf, inv)
	r.starts++
	c := &running{
		pid: 100000 + r.starts, started: time.Now(), serial: r.starts,
		rules: passthrough.RuleLines(conf, inv), files: make(map[string]container.File),
	}
	unprivileged, _ := conf.Property("unprivileged")
	c.userNS = unprivileged == "1"
	if name, ok := conf.Property("hostname"); ok {
		c.items = append(c.items, container.Item{Key: "lxc.uts.name", Value: name})
	}
	for _, e := range conf.Raw() {
		c.items = append(c.items, container.Item{Key: e.Key, Value: e.Value})
	}
	for _, d := range given.Devices {
		// The source of an optional mount that is missing leaves an empty file.
		c.files[d.Path] = container.File{Kind: container.Other}
		for _, n := range inv.Nodes {
			if n.Path == d.Path && n.Present {
				c.files[d.Path] = container.File{Kind: container.CharDevice, Major: n.Major, Minor: n.Minor}
			}
		}
	}
	r.running[ctid] = c
	return nil
}

// Started implements [container.Runtime]: the hostname and the raw lines.
func (r *Runtime) Started(_ context.Context, ctid int32) ([]container.Item, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.running[ctid]
	if c == nil {
		return nil, lxcmon.ErrNotRunning
	}
	return slices.Clone(c.items), nil
}

// Shutdown implements [container.Runtime].
func (r *Runtime) Shutdown(ctx context.Context, ctid int32, timeout time.Duration) error {
	r.mu.Lock()
	r.calls = append(r.calls, fmt.Sprintf("shutdown %d", ctid))
	hang := r.hang
	r.mu.Unlock()
	if hang {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(timeout):
		}
		return fmt.Errorf("shutdown of CTID %d: %w", ctid, pct.ErrStopTimeout)
	}
	return r.end(ctx, ctid)
}

// Stop implements [container.Runtime].
func (r *Runtime) Stop(ctx context.Context, ctid int32) error {
	r.mu.Lock()
	r.calls = append(r.calls, fmt.Sprintf("stop %d", ctid))
	r.mu.Unlock()
	return r.end(ctx, ctid)
}

func (r *Runtime) end(ctx context.Context, ctid int32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[ctid] == nil {
		return fmt.Errorf("stop of CTID %d: %w", ctid, pct.ErrNotRunning)
	}
	delete(r.running, ctid)
	_, err := r.confs.Edit(ctx, ctid, "", confstore.Author{Who: "Proxmox", Why: "stop"}, func(f *pveconf.File) error {
		canonical, err := f.Canonical()
		if err == nil {
			*f = *pveconf.Parse(canonical)
		}
		return err
	})
	return err
}

// Probe opens nothing: it answers from what the container was started with.
func (r *Runtime) Probe(ctx context.Context, ctid int32, devices []probe.Device) ([]probe.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.running[ctid]
	if c == nil {
		return nil, errors.New("probe of a container that does not run")
	}
	results := make([]probe.Result, len(devices))
	for i, d := range devices {
		file := c.files[d.Path]
		results[i] = probe.Result{Path: d.Path, Major: -1, Minor: -1}
		switch {
		case file.Kind == container.Absent:
			results[i].Outcome, results[i].Errno = probe.Absent, "ENOENT"
		case file.Kind == container.Other:
			results[i].Outcome = probe.NotADevice
		case !passthrough.Allowed(c.rules, c.userNS, file.Major, file.Minor):
			results[i].Outcome, results[i].Errno = probe.Denied, "EPERM"
		default:
			results[i].Outcome, results[i].Major, results[i].Minor = probe.Opened, file.Major, file.Minor
		}
	}
	return results, nil
}
