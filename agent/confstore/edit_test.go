package confstore_test

import (
	"testing"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/pveconf"
)

var alice = confstore.Author{Who: "alice", Why: "test"}

func setMemory(mib string) func(*pveconf.File) error {
	return func(f *pveconf.File) error { return f.Set("memory", mib) }
}

func TestEdit(t *testing.T) {
	s := newStore(t)
	r, err := s.Edit(t.Context(), 101, "", alice, setMemory("4096"))
	if err != nil {
		t.Fatal(err)
	}
	want := "arch: amd64\nhostname: trainer\nmemory: 4096\nlxc.cgroup2.devices.allow: c 195:0 rwm\n"
	if got := read(t, s); got != want {
		t.Errorf("conf:\n%s\nwant:\n%s", got, want)
	}
	if string(r.Before) != conf || string(r.After) != want || !r.Changed || r.Revision != 1 {
		t.Errorf("result %+v", r)
	}
}
