package container_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/passthrough"
)

const (
	migA = "MIG-00000000-0000-0000-0000-00000000000a" // GPU instance 1
	migB = "MIG-00000000-0000-0000-0000-00000000000b" // GPU instance 2
)

// newMIGNode is a node with two GPUs, of which MIG divides the second into two devices.
func newMIGNode(t *testing.T) *agenttest.Node {
	t.Helper()
	n := newNode(t)
	write := func(path, content string) {
		t.Helper()
		path = filepath.Join(n.Dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/devices", "Character devices:\n  1 mem\n195 nvidia\n236 nvidia-caps\n511 nvidia-uvm\n")
	for path, minor := range map[string]int{"gi1/access": 147, "gi1/ci0/access": 148, "gi2/access": 156, "gi2/ci0/access": 157} {
		write("proc/driver/nvidia/capabilities/gpu1/mig/"+path, fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: 292\nDeviceFileModify: 1\n", minor))
	}
	inv, err := n.Manager.GPUs.Scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	uuid := inv.GPUs[1].UUID
	write("no-nvidia-smi", fmt.Sprintf(`#!/bin/sh
case "$*" in
-L) printf 'GPU 1: NVIDIA H100 (UUID: %s)\n  MIG 1g.10gb     Device  0: (UUID: %s)\n  MIG 1g.10gb     Device  1: (UUID: %s)\n' ;;
"-q -x") echo '<x><gpu><uuid>%s</uuid><mig_devices>`+
		`<mig_device><index>0</index><gpu_instance_id>1</gpu_instance_id><compute_instance_id>0</compute_instance_id></mig_device>`+
		`<mig_device><index>1</index><gpu_instance_id>2</gpu_instance_id><compute_instance_id>0</compute_instance_id></mig_device></mig_devices></gpu></x>' ;;
esac
`, uuid, migA, migB, uuid))
	return n
}

func giveUUID(mode passthrough.Mode, uuids ...string) container.SetPassthrough {
	op := container.SetPassthrough{Mode: mode, Assignment: "the words"}
	for _, u := range uuids {
		op.GPUs = append(op.GPUs, container.Selector{UUID: u})
	}
	return op
}

// migs are the MIG devices of a passthrough.
func migs(p *passthrough.Passthrough) []string {
	var out []string
	if p != nil {
		for _, g := range p.GPUs {
			if g.MIG == nil {
				out = append(out, fmt.Sprint(g.Index))
			} else {
				out = append(out, g.MIG.UUID)
			}
		}
	}
	return out
}

func TestMIG(t *testing.T) {
	n := newMIGNode(t)
	n.PutConf(901, plain)
	if _, err := n.Manager.GPUs.Prepare(t.Context(), gpu.Want{GPUs: []gpu.Ref{{Minor: 1, MIG: &gpu.Instance{GPU: 1}}, {Minor: 1, MIG: &gpu.Instance{GPU: 2}}}}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		op                    container.SetPassthrough
		configured, effective []string // after the edit, before the restart
		pending               bool
	}{
		{giveUUID(passthrough.ModeRaw, migA), []string{migA}, nil, true},
		{giveUUID(passthrough.ModeRaw, migB), []string{migB}, []string{migA}, true},
		{giveUUID(passthrough.ModeNative, migB), []string{migB}, []string{migB}, false}, // the same devices in another way
		{giveUUID(passthrough.ModeNative, migA, migB), []string{migA, migB}, []string{migB}, true},
		{give(0), []string{"0"}, []string{migA, migB}, true},
		{give(1), []string{"1"}, []string{"0"}, true},
		{giveUUID(passthrough.ModeRaw, migB), []string{migB}, []string{"1"}, true},
		{give(), nil, []string{migB}, true},
	} {
		if c := get(t, n); c.Running.Instance == "" {
			start(t, n)
		}
		patch(t, n, step.op)
		c := get(t, n)
		if !slices.Equal(migs(&c.Configured), step.configured) || !slices.Equal(migs(c.Effective), step.effective) || c.RestartPending != step.pending {
			t.Errorf("after %+v: configured %v, effective %v, restart pending %v; want %v, %v, %v",
				step.op, migs(&c.Configured), migs(c.Effective), c.RestartPending, step.configured, step.effective, step.pending)
		}
		if _, err := n.Manager.Restart(t.Context(), 901, container.RestartOptions{Timeout: time.Second}, silent); err != nil {
			t.Fatal(err)
		}
		if c = get(t, n); !slices.Equal(migs(c.Effective), step.configured) || c.RestartPending {
			t.Errorf("after the restart with %+v: effective %v, restart pending %v", step.op, migs(c.Effective), c.RestartPending)
		}
	}
	if got := n.Conf(901); got != plain {
		t.Errorf("in the end the conf is %q, want %q", got, plain)
	}
}

func TestProbedDevicesOfMIG(t *testing.T) {
	n := newMIGNode(t)
	n.PutConf(901, plain)
	if _, err := n.Manager.GPUs.Prepare(t.Context(), gpu.Want{GPUs: []gpu.Ref{{Minor: 1, MIG: &gpu.Instance{GPU: 1}}}}); err != nil {
		t.Fatal(err)
	}
	patch(t, n, giveUUID(passthrough.ModeRaw, migA))
	_, devices, err := n.Manager.Devices(t.Context(), 901)
	if err != nil {
		t.Fatal(err)
	}
	type capability struct {
		Path     string
		Index    int
		Expected bool
		Instance gpu.Instance
	}
	var got []capability
	for _, d := range devices {
		if d.Capability() != (d.Instance != nil) {
			t.Errorf("%s: a capability: %v, of %v", d.Path, d.Capability(), d.Instance)
		}
		if d.Instance != nil {
			got = append(got, capability{d.Path, d.GPUIndex, d.Expected, *d.Instance})
		}
	}
	want := []capability{
		{"/dev/nvidia-caps/nvidia-cap147", 1, true, gpu.Instance{GPU: 1, Compute: -1}},
		{"/dev/nvidia-caps/nvidia-cap148", 1, true, gpu.Instance{GPU: 1, Compute: 0}},
		{"/dev/nvidia-caps/nvidia-cap156", 1, false, gpu.Instance{GPU: 2, Compute: -1}},
		{"/dev/nvidia-caps/nvidia-cap157", 1, false, gpu.Instance{GPU: 2, Compute: 0}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("capability nodes to probe (-want +got):\n%s", diff)
	}
}

func TestMIGRefuses(t *testing.T) {
	n := newMIGNode(t)
	n.PutConf(901, plain)
	for _, tc := range []struct {
		name string
		op   container.SetPassthrough
		want string
	}{
		{"a MIG device that is gone", giveUUID(passthrough.ModeRaw, "MIG-0"), "no GPU MIG-0; the node has " + migA + ", " + migB},
		{"a GPU whole and in part", container.SetPassthrough{GPUs: []container.Selector{{UUID: migA}, index(1)}, Mode: passthrough.ModeRaw},
			"GPU 1 is asked for whole and as a MIG device; a container can have only one of the two"},
		{"a capability node that was not made", giveUUID(passthrough.ModeRaw, migA), "/dev/nvidia-caps/nvidia-cap147 is missing on the node or does not have the driver's numbers"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := n.Manager.Patch(t.Context(), 901, "", false, tester, tc.op)
			if err == nil || err.Error() != tc.want && !errorEnds(err, tc.want) || n.Conf(901) != plain {
				t.Errorf("got %v, want ... %s; the conf is\n%s", err, tc.want, n.Conf(901))
			}
			if c := get(t, n); c.Applied != nil {
				t.Errorf("a refused edit is recorded: %+v", c.Applied)
			}
		})
	}
}

func errorEnds(err error, want string) bool {
	s := err.Error()
	return len(s) >= len(want) && s[len(s)-len(want):] == want
}

func TestApplied(t *testing.T) {
	n := newMIGNode(t)
	n.PutConf(901, plain)
	if c := get(t, n); c.Applied != nil {
		t.Fatalf("recorded before anything was applied: %+v", c.Applied)
	}
	if _, err := n.Manager.GPUs.Prepare(t.Context(), gpu.Want{GPUs: []gpu.Ref{{Minor: 1, MIG: &gpu.Instance{GPU: 1}}}}); err != nil {
		t.Fatal(err)
	}
	inv, err := n.Manager.GPUs.Scan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// A preview is no application.
	if _, err := n.Manager.Patch(t.Context(), 901, "", true, tester, give(0)); err != nil || get(t, n).Applied != nil {
		t.Errorf("a preview: %v, recorded %+v", err, get(t, n).Applied)
	}
	op := giveUUID(passthrough.ModeNative, migA)
	op.GPUs = append(op.GPUs, index(0))
	by := confstore.Author{Who: "controller", OnBehalfOf: "alice", Why: "test"}
	if _, err := n.Manager.Patch(t.Context(), 901, "", false, by, op); err != nil {
		t.Fatal(err)
	}
	want := &container.Applied{
		Assignment: "the words", Mode: "native", Who: "controller", OnBehalfOf: "alice",
		GPUs: []container.AppliedGPU{
			{Index: 1, UUID: inv.GPUs[1].UUID, PCIAddress: "0000:02:00.0", MIG: &container.AppliedMIG{UUID: migA, GPUInstance: 1, Profile: "1g.10gb"}},
			{Index: 0, UUID: inv.GPUs[0].UUID, PCIAddress: "0000:01:00.0"},
		},
		Devices: []container.AppliedDevice{
			{Path: "/dev/nvidia-caps/nvidia-cap147", Major: 236, Minor: 147},
			{Path: "/dev/nvidia-caps/nvidia-cap148", Major: 236, Minor: 148},
			{Path: "/dev/nvidia-uvm", Major: 511},
			{Path: "/dev/nvidia-uvm-tools", Major: 511, Minor: 1},
			{Path: "/dev/nvidia0", Major: 195},
			{Path: "/dev/nvidia1", Major: 195, Minor: 1},
			{Path: "/dev/nvidiactl", Major: 195, Minor: 255},
		},
	}
	first := get(t, n).Applied
	if diff := cmp.Diff(want, first, cmpopts.IgnoreFields(container.Applied{}, "Time")); diff != "" {
		t.Fatalf("recorded (-want +got):\n%s", diff)
	}
	// Also where nothing has to change.
	op.Assignment = "other words"
	if res := patch(t, n, op); res.Changed {
		t.Error("the same again changed the conf")
	}
	second := get(t, n).Applied
	if second.Assignment != "other words" || second.Who != "tester" || second.Time.Before(first.Time) {
		t.Errorf("after the same again: %+v", second)
	}
	// What is on disk is what is told; an edit of something else does not touch it.
	patch(t, n, container.SetProperty{Key: "memory", Value: "1024"})
	onDisk, err := container.LoadApplied(n.Manager.StateDir)
	if diff := cmp.Diff(map[int32]container.Applied{901: *second}, onDisk); diff != "" || err != nil {
		t.Errorf("on disk (-want +got): %v\n%s", err, diff)
	}
	// With the container goes its record: another one may get the number.
	conf := filepath.Join(n.Dir, "etc/pve/lxc/901.conf")
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.Manager.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.PutConf(901, plain)
	if c := get(t, n); c.Applied != nil {
		t.Errorf("another container has the record of the first: %+v", c.Applied)
	}
}

// A conf that could not be written has the record that it had before.
func TestAppliedAfterARefusedEdit(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	patch(t, n, give(0))
	before := get(t, n).Applied
	if _, err := n.Manager.Patch(t.Context(), 901, "0000000000000000000000000000000000000000", false, tester, give(1)); err == nil {
		t.Fatal("an edit with a stale digest was made")
	}
	if diff := cmp.Diff(before, get(t, n).Applied); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}
}

// After a roll-back the record tells again what the conf gives: the boot guard goes by it.
func TestAppliedAfterARollBack(t *testing.T) {
	for _, test := range []struct {
		name   string
		before func(t *testing.T, n *agenttest.Node)
	}{
		{"applied before", func(t *testing.T, n *agenttest.Node) { patch(t, n, give(1)) }},
		{"never applied", func(*testing.T, *agenttest.Node) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t)
			n.PutConf(901, plain)
			test.before(t, n)
			start(t, n)
			before := get(t, n).Applied
			patch(t, n, container.SetProperty{Key: "memory", Value: "1024"})
			patch(t, n, give(0))
			n.Runtime.RefuseStart(refuseGPU)
			if _, err := n.Manager.Restart(t.Context(), 901, quickly, silent); err == nil {
				t.Fatal("the start was not refused")
			}
			if diff := cmp.Diff(before, get(t, n).Applied); diff != "" {
				t.Errorf("recorded (-want +got):\n%s", diff)
			}
		})
	}
}

// A container that was made after the others were listed keeps its record.
func TestAppliedOfANewContainer(t *testing.T) {
	n := newNode(t)
	n.PutConf(901, plain)
	patch(t, n, give(0))
	n.Manager.ForgetApplied(nil)
	if get(t, n).Applied == nil {
		t.Error("the record is gone")
	}
}
