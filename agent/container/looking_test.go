package container_test

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"

	"phoenix.internal/agent/agenttest"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/nvml"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
)

// newLookedAt is a node with 8 GPUs, count running containers, nvidia-smi and no NVML, and a connection to its agent, whose
// first look is over. LXC's monitors are made up, but spoken to as the real ones are.
func newLookedAt(tb testing.TB, count int, log *slog.Logger) *grpc.ClientConn {
	tb.Helper()
	n := agenttest.New(tb, agenttest.Options{GPUs: 8})
	h := newHost(tb)
	for i := range count {
		n.PutConf(int32(1000+i), withGPU0)
		h.run(int32(1000+i), lxcmon.Running)
	}
	smi := filepath.Join(n.Dir, "nvidia-smi")
	if err := os.WriteFile(smi, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		tb.Fatal(err)
	}
	n.Manager.Runtime = h.runtime()
	n.Manager.GPUs.SMI = smi
	n.Manager.GPUs.NVML = &nvml.Client{Program: filepath.Join(n.Dir, "no-phoenix-nvml"), Log: log}
	conn := n.Dial(tb)
	look(tb, conn, count)
	return conn
}

// look asks for all that there is to see of a node's GPUs and containers.
func look(tb testing.TB, conn *grpc.ClientConn, count int) {
	tb.Helper()
	devices, err := agentv1.NewDeviceServiceClient(conn).ListDevices(tb.Context(), &agentv1.ListDevicesRequest{})
	if err != nil {
		tb.Fatal(err)
	}
	containers, err := agentv1.NewContainerServiceClient(conn).ListContainers(tb.Context(), &agentv1.ListContainersRequest{})
	if err != nil {
		tb.Fatal(err)
	}
	if g, c := len(devices.GetDevices().GetGpus()), len(containers.GetContainers()); g != 8 || c != count {
		tb.Fatalf("%d GPUs and %d containers; want 8 and %d", g, c, count)
	}
	for _, c := range containers.GetContainers() {
		if c.GetEffective() == nil {
			tb.Fatalf("CTID %d: no devices in effect, %v", c.GetCtid(), c.GetProblems())
		}
	}
}

// childFaults counts the page faults of the children of this process that have ended: no process starts without one.
func childFaults(tb testing.TB) int64 {
	tb.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &usage); err != nil {
		tb.Fatal(err)
	}
	return usage.Minflt + usage.Majflt
}

// A look starts no process, and that NVML is absent is logged once.
func TestLooking(t *testing.T) {
	var log bytes.Buffer
	conn := newLookedAt(t, 5, slog.New(slog.NewTextHandler(&log, nil)))
	before := childFaults(t)
	for range 20 {
		look(t, conn, 5)
	}
	if after := childFaults(t); after != before {
		t.Errorf("a process was started: its page faults are %d", after-before)
	}
	if got := strings.Count(log.String(), "\n"); got != 1 {
		t.Errorf("%d lines about NVML, want 1:\n%s", got, &log)
	}
	if err := exec.Command("true").Run(); err != nil || childFaults(t) == before {
		t.Errorf("a process cannot be seen by its page faults: %v", err)
	}
}

// BenchmarkLooking is what it costs to see 8 GPUs and 100 running containers through the agent's API. The goal is 50 ms.
func BenchmarkLooking(b *testing.B) {
	conn := newLookedAt(b, 100, slog.New(slog.DiscardHandler))
	before := childFaults(b)
	for b.Loop() {
		look(b, conn, 100)
	}
	b.ReportMetric(float64(childFaults(b)-before), "child-faults")
}
