package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/driver"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pct"
	"phoenix.internal/agent/probe"
	"phoenix.internal/agent/transfer"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
)

// controllerOnly are the reasons that the agent has no use for.
var controllerOnly = []errorv1.Reason{
	errorv1.Reason_REASON_NODE_UNREACHABLE, errorv1.Reason_REASON_NODE_NOT_FOUND, errorv1.Reason_REASON_CTID_ON_SEVERAL_NODES,
	errorv1.Reason_REASON_FLEET_INVALID, errorv1.Reason_REASON_RUN_NOT_FOUND, errorv1.Reason_REASON_RUN_IN_PROGRESS,
	errorv1.Reason_REASON_NOT_IN_FLEET, errorv1.Reason_REASON_FLEET_UNREADABLE, errorv1.Reason_REASON_FEATURES_UNREADABLE,
}

// pctFailure is the error of a pct that printed output and failed.
func pctFailure(t *testing.T, output string) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pct")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncat <<'END' >&2\n"+output+"\nEND\nexit 255\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return pct.Runner{Path: path}.Shutdown(t.Context(), 901, time.Second)
}

// Every error that a caller can act on has a reason with the facts that the proto promises, and every reason an error.
func TestStatusOf(t *testing.T) {
	of901 := func(err error) error { return &ctidError{901, fmt.Errorf("do something: %w", err)} }
	ctid := func(more ...string) map[string]string {
		md := map[string]string{"ctid": "901"}
		for i := 0; i < len(more); i += 2 {
			md[more[i]] = more[i+1]
		}
		return md
	}
	seen := make(map[string]bool)
	for _, tc := range []struct {
		name     string
		err      error
		code     codes.Code
		reason   string
		metadata map[string]string
	}{
		{"invalid", invalid("f", "bad"), codes.InvalidArgument, "INVALID_FIELD", map[string]string{"field": "f"}},
		{"property", of901(&container.PropertyError{Key: "k", Value: "v", Why: "no"}), codes.InvalidArgument, "PROPERTY_NOT_ALLOWED", map[string]string{"key": "k", "value": "v"}},
		{"option", of901(&container.OptionError{Key: "k", Value: "v"}), codes.FailedPrecondition, "LXC_OPTION_NOT_ALLOWED", map[string]string{"key": "k", "value": "v"}},
		{"no conf", of901(confstore.ErrNotFound), codes.NotFound, "CONTAINER_NOT_FOUND", ctid()},
		{"no conf for pct", of901(pctFailure(t, "Configuration file 'nodes/pve1/lxc/901.conf' does not exist")), codes.NotFound, "CONTAINER_NOT_FOUND", ctid()},
		{"not running", of901(&container.NotRunningError{CTID: 901, State: lxcmon.Frozen}), codes.FailedPrecondition, "CONTAINER_NOT_RUNNING", ctid("state", "frozen")},
		{"template", of901(container.ErrTemplate), codes.FailedPrecondition, "CONTAINER_IS_TEMPLATE", ctid()},
		{"template for pct", of901(pct.ErrTemplate), codes.FailedPrecondition, "CONTAINER_IS_TEMPLATE", ctid()},
		{"locked", of901(&confstore.LockedError{CTID: 901, Lock: "backup"}), codes.FailedPrecondition, "CONTAINER_LOCKED", ctid("lock", "backup")},
		{"locked by what is not UTF-8", of901(&confstore.LockedError{CTID: 901, Lock: "b\xffd"}), codes.FailedPrecondition, "CONTAINER_LOCKED", ctid("lock", "b\uFFFDd")},
		{"locked for pct", of901(pctFailure(t, "CT is locked (snapshot)")), codes.FailedPrecondition, "CONTAINER_LOCKED", ctid("lock", "snapshot")},
		{"another instance", of901(&container.InstanceError{CTID: 901, Got: "b:1:2"}), codes.Aborted, "INSTANCE_CHANGED", ctid("instance", "b:1:2")},
		{"digest", of901(&confstore.DigestError{CTID: 901, Want: "a", Got: "b"}), codes.Aborted, "DIGEST_MISMATCH", ctid("digest", "b")},
		{"lock timeout", of901(&confstore.LockTimeoutError{CTID: 901, Path: "/l", HolderPID: 7}), codes.Unavailable, "CONF_LOCK_TIMEOUT", ctid("path", "/l", "holder_pid", "7")},
		{"lock timeout of pct", of901(pctFailure(t, "can't lock file '/run/lock/lxc/pve-config-901.lock' - got timeout")), codes.Unavailable, "CONF_LOCK_TIMEOUT",
			ctid("path", "/run/lock/lxc/pve-config-901.lock")},
		{"stopping", of901(&confstore.StoppingError{CTID: 901, Err: context.DeadlineExceeded}), codes.Unavailable, "CONTAINER_STOPPING", ctid("written", "false")},
		{"stopping since", of901(&confstore.StoppingError{CTID: 901, Written: true, Err: context.DeadlineExceeded}), codes.Unavailable, "CONTAINER_STOPPING", ctid("written", "true")},
		{"moved", of901(&confstore.MovedError{CTID: 901, Node: "pve2"}), codes.NotFound, "CONTAINER_NOT_FOUND", ctid("node", "pve2")},
		{"no quorum", of901(confstore.ErrNoQuorum), codes.Unavailable, "NO_QUORUM", nil},
		{"no quorum for pct", of901(pctFailure(t, "cluster not ready - no quorum?")), codes.Unavailable, "NO_QUORUM", nil},
		{"not mounted", confstore.ErrNotMounted, codes.Unavailable, "CONF_FS_UNAVAILABLE", nil},
		{"busy", confstore.ErrBusy, codes.Unavailable, "CONF_FS_UNAVAILABLE", nil},
		{"died", confstore.ErrDisconnected, codes.Unavailable, "CONF_FS_UNAVAILABLE", nil},
		{"cannot store", confstore.ErrDatabase, codes.Unavailable, "CONF_FS_UNAVAILABLE", nil},
		{"not read back", confstore.ErrUnconfirmed, codes.Unavailable, "CONF_FS_UNAVAILABLE", nil},
		{"no answer", confstore.ErrNoAnswer, codes.Unavailable, "CONF_FS_UNAVAILABLE", nil},
		{"too large", of901(confstore.ErrTooLarge), codes.FailedPrecondition, "CONF_TOO_LARGE", ctid()},
		{"no revision", of901(&confstore.RevisionError{CTID: 901, Number: 7}), codes.NotFound, "REVISION_NOT_FOUND", ctid("revision", "7")},
		{"no GPU", of901(&container.GPUNotFoundError{GPU: "3", Available: []string{"0", "1"}}), codes.FailedPrecondition, "GPU_NOT_FOUND", map[string]string{"gpu": "3", "available": "0,1"}},
		{"no GPU any more", of901(&passthrough.GPUError{Minor: 3, Have: []int{0}}), codes.FailedPrecondition, "GPU_NOT_FOUND", map[string]string{"gpu": "minor 3", "available": "minor 0"}},
		{"GPU bound elsewhere", of901(&container.GPUBoundError{GPU: "1", Driver: "vfio-pci"}), codes.FailedPrecondition, "GPU_BOUND_ELSEWHERE", map[string]string{"gpu": "1", "driver": "vfio-pci"}},
		{"no driver", gpu.ErrDriverNotLoaded, codes.FailedPrecondition, "DRIVER_NOT_LOADED", nil},
		{"no node to prepare", &gpu.NodeError{Path: "/dev/nvidia0", Err: errors.New("x")}, codes.FailedPrecondition, "DEVICE_NODE_MISSING", map[string]string{"path": "/dev/nvidia0"}},
		{"no node to give", of901(&passthrough.NodeError{Path: "/dev/nvidia0"}), codes.FailedPrecondition, "DEVICE_NODE_MISSING", map[string]string{"path": "/dev/nvidia0"}},
		{"limit", withReason(codes.ResourceExhausted, errorv1.Reason_REASON_LIMIT_EXCEEDED, "too many", map[string]string{"limit": "8 commands"}),
			codes.ResourceExhausted, "LIMIT_EXCEEDED", map[string]string{"limit": "8 commands"}},
		{"no slot", of901(passthrough.ErrNoSlot), codes.FailedPrecondition, "PASSTHROUGH_IMPOSSIBLE", ctid()},
		{"raw lines cut off by a NUL", of901(&passthrough.CutOffError{Key: "lxc.mount.entry"}), codes.FailedPrecondition, "PASSTHROUGH_IMPOSSIBLE", ctid()},
		{"did not stop", of901(pctFailure(t, "container did not stop")), codes.FailedPrecondition, "STOP_TIMEOUT", ctid()},
		{"did not start", of901(&container.StartError{CTID: 901, Err: confstore.ErrNoQuorum}), codes.FailedPrecondition, "START_FAILED", ctid()},
		{"rolled back", of901(&container.RolledBackError{CTID: 901, Revision: 4, Err: errors.New("x")}), codes.FailedPrecondition, "START_ROLLED_BACK", ctid("revision", "4")},
		{"rolled back for a known cause", of901(&container.RolledBackError{CTID: 901, Revision: 4, Err: &container.DiedError{CTID: 901}}),
			codes.FailedPrecondition, "START_ROLLED_BACK", ctid("revision", "4", "cause", "INIT_DIED")},
		{"died at once", of901(&container.StartError{CTID: 901, Err: &container.DiedError{CTID: 901}}), codes.FailedPrecondition, "INIT_DIED", ctid()},
		{"hookscript", of901(&container.StartError{CTID: 901, Err: pctFailure(t, "hookscript error for 901 on pre-start: command 'x' failed: exit code 2")}),
			codes.FailedPrecondition, "HOOK_FAILED", ctid("phase", "pre-start")},
		{"a device went before the start", of901(&container.StartError{CTID: 901, Err: pctFailure(t, "Device /dev/nvidia7 does not exist")}),
			codes.FailedPrecondition, "DEVICE_NODE_MISSING", ctid("path", "/dev/nvidia7")},
		{"HA has not stopped it", of901(&container.HAError{CTID: 901, Want: lxcmon.Stopped}), codes.Unavailable, "HA_PENDING", ctid("want", "stopped")},
		{"HA has not started it", of901(&container.StartError{CTID: 901, Err: &container.HAError{CTID: 901, Want: lxcmon.Running}}),
			codes.Unavailable, "HA_PENDING", ctid("want", "running")},
		{"HA refuses", of901(pctFailure(t, "command 'ha-manager crm-command stop ct:901 1' failed: exit code 255")), codes.FailedPrecondition, "HA_REFUSED",
			ctid("command", "shutdown")},
		{"pct", of901(pctFailure(t, "no idea")), codes.Unavailable, "PCT_FAILED", ctid("command", "shutdown")},
		{"attach", of901(attach.ErrAttach), codes.FailedPrecondition, "ATTACH_FAILED", ctid()},
		{"no user", of901(attach.ErrNoUser), codes.FailedPrecondition, "USER_NOT_FOUND", ctid()},
		{"no directory", of901(attach.ErrNoDirectory), codes.FailedPrecondition, "DIRECTORY_NOT_USABLE", ctid()},
		{"probe", of901(probe.ErrProbe), codes.FailedPrecondition, "ATTACH_FAILED", ctid()},
		{"no file", of901(&transfer.FileError{Kind: transfer.NotFound, Path: "/x"}), codes.NotFound, "FILE_NOT_FOUND", ctid("path", "/x")},
		{"no regular file", of901(&transfer.FileError{Kind: transfer.Refused, Path: "/x"}), codes.FailedPrecondition, "FILE_REFUSED", ctid("path", "/x")},
		{"no space for a file", of901(&transfer.FileError{Kind: transfer.NoSpace, Path: "/x"}), codes.FailedPrecondition, "FILE_NO_SPACE", ctid("path", "/x")},
		{"a file that changes", of901(&transfer.FileError{Kind: transfer.Changed, Path: "/x"}), codes.Aborted, "FILE_CHANGED", ctid("path", "/x")},
		{"transfer broken off", of901(transfer.ErrBrokenOff), codes.Unavailable, "TRANSFER_BROKEN_OFF", ctid()},
		{"state directory", of901(&container.StateError{Path: "/s", Err: os.ErrPermission}), codes.Unavailable, "STATE_UNAVAILABLE", map[string]string{"path": "/s"}},
		{"revisions", of901(&confstore.RevisionDirError{Path: "/r", Err: os.ErrPermission}), codes.Unavailable, "STATE_UNAVAILABLE", map[string]string{"path": "/r"}},
		{"installer from elsewhere", &driver.SourceError{URL: "http://x/"}, codes.FailedPrecondition, "INSTALLER_SOURCE_NOT_ALLOWED", map[string]string{"url": "http://x/"}},
		{"installer redirected elsewhere", &driver.FetchError{URL: "http://y/", Err: &driver.SourceError{URL: "http://x/"}}, codes.FailedPrecondition,
			"INSTALLER_SOURCE_NOT_ALLOWED", map[string]string{"url": "http://x/"}},
		{"installer not fetched", &driver.FetchError{URL: "http://x/", Err: os.ErrDeadlineExceeded}, codes.Unavailable, "INSTALLER_UNAVAILABLE", map[string]string{"url": "http://x/"}},
		{"another installer", &driver.ChecksumError{Version: "1", Want: "a", Got: "b"}, codes.FailedPrecondition, "INSTALLER_CHECKSUM_MISMATCH",
			map[string]string{"version": "1", "want": "a", "got": "b"}},
		{"no installer", &driver.InvalidError{Version: "1", Err: errors.New("x")}, codes.FailedPrecondition, "INSTALLER_INVALID", map[string]string{"version": "1"}},
		{"not fetched yet", of901(&driver.NotCachedError{Version: "1"}), codes.FailedPrecondition, "INSTALLER_NOT_CACHED", map[string]string{"version": "1"}},
		{"node is full", &driver.SpaceError{Path: "/c", Needed: 2, Free: 1}, codes.FailedPrecondition, "NODE_NO_SPACE",
			map[string]string{"path": "/c", "needed_bytes": "2", "free_bytes": "1"}},
		{"musl", of901(&driver.LibcError{Libc: driver.Musl}), codes.FailedPrecondition, "LIBC_NOT_SUPPORTED", ctid("libc", "musl")},
		{"driver of the distribution", of901(&driver.PackagedError{Packages: []string{"a", "b"}}), codes.FailedPrecondition, "DRIVER_PACKAGED", ctid("packages", "a,b")},
		{"small container", of901(&driver.SmallError{Resource: "disk", NeededMiB: 2, FreeMiB: 1}), codes.FailedPrecondition, "CONTAINER_TOO_SMALL",
			ctid("resource", "disk", "needed_mib", "2", "free_mib", "1")},
		{"driver not installed", of901(&driver.InstallError{Message: "x"}), codes.FailedPrecondition, "DRIVER_INSTALL_FAILED", ctid()},
		{"driver not removable", of901(driver.ErrNotRemovable), codes.FailedPrecondition, "DRIVER_NOT_REMOVABLE", ctid()},
		{"driver helper", of901(driver.ErrHelper), codes.FailedPrecondition, "ATTACH_FAILED", ctid()},
		{"the agent stops", shuttingDown(), codes.Unavailable, "SHUTTING_DOWN", nil},
		{"anything else", of901(errors.New("secret")), codes.Internal, "INTERNAL", map[string]string{"request_id": "R1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			st := status.Convert(statusOf("R1", tc.err))
			if st.Code() != tc.code || len(st.Details()) != 1 {
				t.Fatalf("got %v with %v, want %v with one detail", st, st.Details(), tc.code)
			}
			info, ok := st.Details()[0].(*errdetails.ErrorInfo)
			if !ok || info.GetReason() != tc.reason {
				t.Fatalf("got %v, want reason %s", st.Details()[0], tc.reason)
			}
			if diff := cmp.Diff(tc.metadata, info.GetMetadata()); diff != "" {
				t.Errorf("metadata (-want +got):\n%s", diff)
			}
			if tc.code == codes.Internal && strings.Contains(st.Message(), "secret") {
				t.Errorf("the message of a defect shows its cause: %s", st.Message())
			}
			seen[info.GetReason()] = true
		})
	}
	for _, number := range slices.Sorted(maps.Keys(errorv1.Reason_name)) {
		reason := errorv1.Reason(number)
		name := strings.TrimPrefix(reason.String(), "REASON_")
		if number != 0 && seen[name] == slices.Contains(controllerOnly, reason) {
			t.Errorf("%s: the agent sends it: %v, it is the controller's alone: %v", name, seen[name], !seen[name])
		}
	}
}
