package container_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"phoenix.internal/agent/container"
	"phoenix.internal/agent/lxcmon"
)

func effective(t *testing.T, m *container.Manager) ([]container.Item, error) {
	t.Helper()
	c, conf, err := m.Get(t.Context(), 901)
	if err != nil {
		t.Fatal(err)
	}
	return m.EffectiveEntries(t.Context(), c, conf)
}

// The conf of a running container is changed: what it was started with stays, and each item that the conf still says has
// the line there.
func TestEffectiveEntries(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain+`lxc.mount.entry: /dev/nvidia0   dev/nvidia0 none bind,optional,create=file
lxc.environment: A=1
lxc.environment: A=1
`)
	if items, err := effective(t, n.Manager); err != nil || items != nil {
		t.Errorf("of a stopped container: %v, %v", items, err)
	}
	start(t, n)
	n.PutConf(901, plain+`lxc.environment = A=1
lxc.environment: B=2
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
[before]
lxc.environment: A=1
`)
	got, err := effective(t, n.Manager)
	if err != nil {
		t.Fatal(err)
	}
	want := []container.Item{
		{Key: "lxc.uts.name", Value: "trainer"},
		{Key: "lxc.mount.entry", Value: "/dev/nvidia0   dev/nvidia0 none bind,optional,create=file", Line: 9},
		{Key: "lxc.environment", Value: "A=1", Line: 7},
		{Key: "lxc.environment", Value: "A=1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("effective (-want +got):\n%s", diff)
	}
}

// A restless runtime does something to the container while it is asked.
type restless struct {
	container.Runtime
	meanwhile func() error
}

func (r restless) Started(ctx context.Context, ctid int32) ([]container.Item, error) {
	items, err := r.Runtime.Started(ctx, ctid)
	return items, errors.Join(err, r.meanwhile())
}

func TestEffectiveEntriesAreOfOneStart(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	stop := func() error { return n.Runtime.Stop(context.Background(), 901) }
	broken := errors.New("the monitor hangs")
	for _, test := range []struct {
		name      string
		meanwhile func() error
		check     func(error) bool
	}{
		{"stopped", func() error { return errors.Join(stop(), lxcmon.ErrNotRunning) }, func(err error) bool {
			e, ok := errors.AsType[*container.InstanceError](err)
			return ok && e.CTID == 901 && e.Got == ""
		}},
		{"restarted", func() error { return errors.Join(stop(), n.Runtime.Start(context.Background(), 901)) }, func(err error) bool {
			e, ok := errors.AsType[*container.InstanceError](err)
			return ok && e.CTID == 901 && e.Got != ""
		}},
		{"no answer", func() error { return broken }, func(err error) bool { return errors.Is(err, broken) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			_ = stop() // what the case before left
			start(t, n)
			items, err := effective(t, manager(n, restless{n.Runtime, test.meanwhile}))
			if !test.check(err) || items != nil {
				t.Errorf("got %v, error %v", items, err)
			}
		})
	}
}
