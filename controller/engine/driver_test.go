package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/store"
)

// drivers returns the acts on drivers since the last look.
func (f *fakeFleet) drivers() (acts []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, call := range f.calls {
		if slices.ContainsFunc([]string{"fetch", "install", "verify driver"}, func(word string) bool { return strings.Contains(call, word) }) {
			acts = append(acts, call)
		}
	}
	f.calls = nil
	return acts
}

// driverBench is containers 901 and 902 of pve1, each with a GPU and without a driver; 902 has the feature by its clone.
func driverBench(t *testing.T) (*bench, *fakeFleet) {
	f := newFake("pve1")
	f.nodes["pve1"].uuids = true
	for i := range 2 {
		c := f.add("pve1", int32(901+i), true)
		c.configure([]observed.Ref{{Index: i, UUID: fmt.Sprintf("GPU-%d", i)}}, observed.ModeRaw)
		c.startNow()
	}
	b := newBench(t, f, `{}`)
	b.write("fleet.json", `{
		"nvidia_driver_version": "570.86.10", "nvidia_runfile_url": "https://m/570.86.10/a.run",
		"lxc_configs": {
			"901": {"gpu_assignment": "0", "features": ["nvidia"]},
			"902": {"gpu_assignment": "1", "clone_from_ctid": 901}
		}}`)
	return b, f
}

// The driver is fetched once, installed where it is missing and verified, and looked at again only after a start.
func TestDriver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, f := driverBench(t)
		f.nodes["pve1"].containers[902].driver = "570.86.10"
		if r := b.apply(engine.Request{}); r.State != store.RunSucceeded {
			t.Fatalf("run %+v", r)
		}
		want := []string{
			"pve1 install 901 580.76.05", "pve1 fetch 580.76.05 https://m/580.76.05/a.run", "pve1 install 901 580.76.05",
			"pve1 verify driver 901 [GPU-0]", "pve1 install 902 580.76.05", "pve1 verify driver 902 [GPU-1]",
		}
		if got := f.drivers(); !slices.Equal(got, want) {
			t.Errorf("acts %q; want %q", got, want)
		}
		b.apply(engine.Request{})
		if got := f.drivers(); len(got) > 0 {
			t.Errorf("a second apply: acts %q; want none", got)
		}
		f.nodes["pve1"].containers[901].startNow()
		b.apply(engine.Request{})
		if got, want := f.drivers(), []string{"pve1 verify driver 901 [GPU-0]"}; !slices.Equal(got, want) {
			t.Errorf("after a start: acts %q; want %q", got, want)
		}
	})
}

// What cannot be installed is told, and neither verified nor fetched in vain; what comes after it is not begun.
func TestDriverIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, f := driverBench(t)
		f.before = func(call string) error {
			if strings.Contains(call, "install 901") {
				return f.nodes["pve1"].fail(node.LibcNotSupported, "musl")
			}
			return nil
		}
		r := b.apply(engine.Request{})
		want := "install driver: node pve1: musl; take the feature nvidia away, or set driver_mode to none"
		if r.State != store.RunFailed || r.Containers[0].Error != want || r.Containers[1].State != store.StepSkipped {
			t.Errorf("run %s: %q, then %s; want failed, %q, then skipped", r.State, r.Containers[0].Error, r.Containers[1].State, want)
		}
		if got, want := f.drivers(), []string{"pve1 install 901 580.76.05"}; !slices.Equal(got, want) {
			t.Errorf("acts %q; want %q", got, want)
		}
	})
}

// upgradeBench is six containers of pve1 with an older driver, which do not depend on each other.
func upgradeBench(t *testing.T) (*bench, *fakeFleet) {
	f := newFake("pve1")
	f.nodes["pve1"].uuids = true
	f.nodes["pve1"].cached = "580.76.05"
	var containers []string
	for ctid := int32(901); ctid <= 906; ctid++ {
		c := f.add("pve1", ctid, true)
		c.configure([]observed.Ref{{Index: 0, UUID: "GPU-0"}}, observed.ModeRaw)
		c.driver = "570.86.10"
		c.startNow()
		containers = append(containers, fmt.Sprintf(`"%d": {"gpu_assignment": "0", "features": ["nvidia"]}`, ctid))
	}
	b := newBench(t, f, `{}`)
	b.write("fleet.json", `{"nvidia_runfile_url": "https://m/580.76.05/a.run", "lxc_configs": {`+strings.Join(containers, ", ")+"}}")
	return b, f
}

// A new driver goes into a few containers at a time, and each is verified before the next begins.
func TestUpgrade(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, f := upgradeBench(t)
		var mu sync.Mutex
		atWork, most := 0, 0
		f.before = func(call string) error {
			mu.Lock()
			defer mu.Unlock()
			if strings.Contains(call, "install 9") {
				atWork++
				most = max(most, atWork)
			}
			if strings.Contains(call, "verify driver") {
				atWork--
			}
			return nil
		}
		if r := b.apply(engine.Request{ParallelPerNode: 6}); r.State != store.RunSucceeded {
			t.Fatalf("run %+v", r)
		}
		if atWork != 0 || most > 3 || most == 0 {
			t.Errorf("%d containers at the same time, %d in the end; want at most 3, and none", most, atWork)
		}
	})
}

// What fails in one container is not done to the others: they keep the driver that they have.
func TestUpgradeStopsAtTheFirstFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, f := upgradeBench(t)
		f.before = func(call string) error {
			if strings.Contains(call, "verify driver") {
				return f.nodes["pve1"].fail(node.AttachFailed, "nvidia-smi hangs")
			}
			return nil
		}
		r := b.apply(engine.Request{ParallelPerNode: 6})
		kept := 0
		for _, c := range f.nodes["pve1"].containers {
			if c.driver == "570.86.10" {
				kept++
			}
		}
		if r.State != store.RunFailed || kept < 3 || kept == 6 {
			t.Errorf("run %s, %d containers keep their driver; want failed, 3 to 5: three may be at work", r.State, kept)
		}
		want := "keeps its own: "
		told := 0
		for _, c := range r.Containers {
			if strings.Contains(c.Error, want) {
				told++
			}
		}
		if told != kept {
			t.Errorf("%d containers are told why; want %d with %q in %+v", told, kept, want, r.Containers)
		}
	})
}

// A refusal for what one container is stops no other.
func TestUpgradeGoesOnAfterARefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, f := upgradeBench(t)
		f.before = func(call string) error {
			if strings.Contains(call, "install 901") {
				return f.nodes["pve1"].fail(node.DriverPackaged, "libnvidia-compute-570")
			}
			return nil
		}
		b.apply(engine.Request{ParallelPerNode: 6})
		for ctid, c := range f.nodes["pve1"].containers {
			if want := ctid != 901; (c.driver == "580.76.05") != want {
				t.Errorf("CTID %d has driver %s; upgraded should be %t", ctid, c.driver, want)
			}
		}
	})
}
