package server_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	errorv1 "phoenix.internal/gen/phoenix/error/v1"

	"phoenix.internal/controller/client"
	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/feature"
	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/server"
	"phoenix.internal/controller/store"
)

var statusTests = []struct {
	name     string
	err      error
	code     codes.Code
	reason   errorv1.Reason
	metadata map[string]string
	message  string
}{
	{
		"container on no node", &node.NotFoundError{CTID: 901},
		codes.NotFound, errorv1.Reason_REASON_CONTAINER_NOT_FOUND, map[string]string{"ctid": "901"}, "no node has CTID 901",
	},
	{
		"container on several nodes", &node.SeveralError{CTID: 901, Nodes: []string{"pve1", "pve2"}},
		codes.FailedPrecondition, errorv1.Reason_REASON_CTID_ON_SEVERAL_NODES, map[string]string{"ctid": "901", "nodes": "pve1,pve2"},
		"CTID 901 is on several nodes: pve1, pve2; a CTID must be unique, remove one of them",
	},
	{
		"unknown node", &node.UnknownError{Name: "pve9", Known: []string{"pve1", "pve2"}},
		codes.NotFound, errorv1.Reason_REASON_NODE_NOT_FOUND, map[string]string{"node": "pve9"},
		`no node "pve9"; configured are pve1, pve2`,
	},
	{
		"node down", &node.Error{
			Node: "pve1", Address: "192.0.2.1:7461", Code: codes.Unavailable, Reason: node.Unreachable,
			Message: "it is down", Metadata: map[string]string{"node": "pve1", "address": "192.0.2.1:7461"},
		},
		codes.Unavailable, errorv1.Reason_REASON_NODE_UNREACHABLE, map[string]string{"node": "pve1", "address": "192.0.2.1:7461"},
		"node pve1: it is down",
	},
	{
		"agent's failure, with what stands around it", fmt.Errorf("probe: %w", &node.Error{
			Node: "pve1", Code: codes.Aborted, Reason: node.DigestMismatch,
			Message: "the conf of CTID 901 was changed", Metadata: map[string]string{"ctid": "901", "digest": "abc"},
		}),
		codes.Aborted, errorv1.Reason_REASON_DIGEST_MISMATCH, map[string]string{"ctid": "901", "digest": "abc", "node": "pve1"},
		"node pve1: the conf of CTID 901 was changed",
	},
	{
		"agent's failure without a reason", &node.Error{Node: "pve1", Code: codes.Unimplemented, Message: "unknown method Probe"},
		codes.Unimplemented, errorv1.Reason_REASON_UNSPECIFIED, nil, "node pve1: unknown method Probe",
	},
	{
		"bad fleet file", &engine.FleetError{Path: "/f.json", Findings: []fleet.Finding{
			{File: "/f.json", Severity: fleet.Error, Line: 3, Column: 5, CTID: 901, Key: "name", Message: "is empty"},
		}},
		codes.FailedPrecondition, errorv1.Reason_REASON_FLEET_INVALID, map[string]string{"path": "/f.json"},
		"the fleet file has errors; nothing was planned\n/f.json:3:5: containers 901: name: is empty",
	},
	{
		"very bad fleet file", &engine.FleetError{Path: "/f.json", Findings: make([]fleet.Finding, 1000)},
		codes.FailedPrecondition, errorv1.Reason_REASON_FLEET_INVALID, map[string]string{"path": "/f.json"},
		"the fleet file has errors; nothing was planned\n" + strings.Repeat(": \n", 20) +
			"and 980 more; `phoenix-cli validate` lists them all",
	},
	{
		"no fleet file", &engine.UnreadableError{},
		codes.FailedPrecondition, errorv1.Reason_REASON_FLEET_UNREADABLE, map[string]string{"path": ""},
		"no fleet file is configured; set fleet_file",
	},
	{
		"no features_dir any more", &feature.DirError{Dir: "/f", Err: fs.ErrNotExist},
		codes.FailedPrecondition, errorv1.Reason_REASON_FEATURES_UNREADABLE, map[string]string{"path": "/f"},
		"features_dir: /f: file does not exist",
	},
	{
		"not in the fleet file", &engine.NotInFleetError{CTID: 999, Path: "/f.json"},
		codes.NotFound, errorv1.Reason_REASON_NOT_IN_FLEET, map[string]string{"ctid": "999", "path": "/f.json"},
		"CTID 999 is not in /f.json; add it there, or leave it out",
	},
	{
		"another run", &engine.InProgressError{Run: "r1", CTID: 901},
		codes.FailedPrecondition, errorv1.Reason_REASON_RUN_IN_PROGRESS, map[string]string{"run": "r1", "ctid": "901"},
		"run r1 works on CTID 901; wait for it, or cancel it",
	},
	{
		"no such run", &server.RunNotFoundError{Run: "r1"},
		codes.NotFound, errorv1.Reason_REASON_RUN_NOT_FOUND, map[string]string{"run": "r1"}, "no run \"r1\"; `phoenix-cli runs` lists them",
	},
	{
		"several runs", &store.AmbiguousError{Prefix: "r", IDs: []string{"r1", "r2"}},
		codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "run", "prefix": "r", "runs": "r1,r2"},
		`"r" is the beginning of several run IDs: r1, r2; give more of it`,
	},
	{
		"very many runs", &store.AmbiguousError{Prefix: "r", IDs: []string{"r1", "r2", "r3", "r4", "r5", "r6", "r7"}},
		codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD,
		map[string]string{"field": "run", "prefix": "r", "runs": "r1,r2,r3,r4,r5,r6,r7"},
		`"r" is the beginning of several run IDs: r3, r4, r5, r6, r7 and 2 older ones; give more of it`,
	},
	{
		"engine's field", &engine.RequestError{Field: "parallel_per_node", Message: "too many"},
		codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "parallel_per_node"},
		"parallel_per_node: too many",
	},
	{
		"field", &server.FieldError{Field: "ctid", Message: "too small"},
		codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "ctid"}, "ctid: too small",
	},
	{
		"limit", &server.LimitError{Limit: "streams per connection", Max: 256},
		codes.ResourceExhausted, errorv1.Reason_REASON_LIMIT_EXCEEDED, map[string]string{"limit": "streams per connection", "max": "256"},
		"more streams per connection than 256",
	},
	{
		"store in use", &store.InUseError{Path: "/s/controller.db"},
		codes.Unavailable, errorv1.Reason_REASON_STATE_UNAVAILABLE, map[string]string{"path": "/s/controller.db"},
		"/s/controller.db is in use by another process; wait until it has ended, or choose another state_dir",
	},
	{
		"store in use by a known process", &store.InUseError{Path: "/s/controller.db", PID: 1 << 30},
		codes.Unavailable, errorv1.Reason_REASON_STATE_UNAVAILABLE, map[string]string{"path": "/s/controller.db", "holder_pid": "1073741824"},
		"/s/controller.db is in use by process 1073741824; wait until it has ended, or choose another state_dir",
	},
	{
		"full disk", fmt.Errorf("save run r1: %w", &store.UnusableError{Path: "/s/controller.db", Err: syscall.ENOSPC}),
		codes.Unavailable, errorv1.Reason_REASON_STATE_UNAVAILABLE, map[string]string{"path": "/s/controller.db"},
		"save run r1: /s/controller.db cannot be used: no space left on device",
	},
	{
		"engine stops", fmt.Errorf("watch: %w", engine.ErrClosed),
		codes.Unavailable, errorv1.Reason_REASON_SHUTTING_DOWN, nil, "watch: " + engine.ErrClosed.Error(),
	},
	{
		"canceled", fmt.Errorf("find: %w", context.Canceled),
		codes.Canceled, errorv1.Reason_REASON_UNSPECIFIED, nil, "the call was canceled",
	},
	{
		"deadline", fmt.Errorf("find: %w", context.DeadlineExceeded),
		codes.DeadlineExceeded, errorv1.Reason_REASON_UNSPECIFIED, nil, "the call's deadline is over; ask again with a longer one",
	},
	{
		"gRPC's own", status.Error(codes.NotFound, "unknown service"),
		codes.NotFound, errorv1.Reason_REASON_UNSPECIFIED, nil, "unknown service",
	},
	{
		"anything else", errors.New("secret /etc/shadow"),
		codes.Internal, errorv1.Reason_REASON_INTERNAL, map[string]string{"request_id": "id1"},
		"a defect of Phoenix; the controller's log has the details under request_id id1",
	},
	{
		"text that no header takes", &server.FieldError{Field: "run", Message: strings.Repeat("x", 1<<20)},
		codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "run"},
		"run: " + strings.Repeat("x", 8<<10-len("run: ")) + " ...",
	},
	{
		"value that no header takes", &engine.NotInFleetError{CTID: 999, Path: strings.Repeat("p", 2000)},
		codes.NotFound, errorv1.Reason_REASON_NOT_IN_FLEET, map[string]string{"ctid": "999", "path": strings.Repeat("p", 1<<10) + " ..."},
		"CTID 999 is not in " + strings.Repeat("p", 2000) + "; add it there, or leave it out",
	},
	{
		"text that is not UTF-8", &server.FieldError{Field: "run", Message: "\xff"},
		codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "run"}, "run: \uFFFD",
	},
}

func TestStatus(t *testing.T) {
	for _, tt := range statusTests {
		t.Run(tt.name, func(t *testing.T) {
			err := server.StatusOf(tt.err, "id1")
			s := status.Convert(err)
			reason, metadata := client.Reason(err)
			if s.Code() != tt.code || reason != tt.reason || !maps.Equal(metadata, tt.metadata) || s.Message() != tt.message {
				t.Errorf("%T\n got %v %v %v %q\nwant %v %v %v %q",
					tt.err, s.Code(), reason, metadata, s.Message(), tt.code, tt.reason, tt.metadata, tt.message)
			}
		})
	}
	if err := server.StatusOf(nil, "id1"); err != nil {
		t.Errorf("no error: got %v", err)
	}
}

// fromAgents are the reasons that only agents give; the controller passes them on.
var fromAgents = map[errorv1.Reason]bool{
	errorv1.Reason_REASON_PROPERTY_NOT_ALLOWED:         true,
	errorv1.Reason_REASON_LXC_OPTION_NOT_ALLOWED:       true,
	errorv1.Reason_REASON_CONTAINER_NOT_RUNNING:        true,
	errorv1.Reason_REASON_CONTAINER_IS_TEMPLATE:        true,
	errorv1.Reason_REASON_CONTAINER_LOCKED:             true,
	errorv1.Reason_REASON_CONTAINER_STOPPING:           true,
	errorv1.Reason_REASON_INSTANCE_CHANGED:             true,
	errorv1.Reason_REASON_DIGEST_MISMATCH:              true,
	errorv1.Reason_REASON_CONF_LOCK_TIMEOUT:            true,
	errorv1.Reason_REASON_NO_QUORUM:                    true,
	errorv1.Reason_REASON_CONF_FS_UNAVAILABLE:          true,
	errorv1.Reason_REASON_CONF_TOO_LARGE:               true,
	errorv1.Reason_REASON_REVISION_NOT_FOUND:           true,
	errorv1.Reason_REASON_PASSTHROUGH_IMPOSSIBLE:       true,
	errorv1.Reason_REASON_GPU_NOT_FOUND:                true,
	errorv1.Reason_REASON_GPU_BOUND_ELSEWHERE:          true,
	errorv1.Reason_REASON_DRIVER_NOT_LOADED:            true,
	errorv1.Reason_REASON_DEVICE_NODE_MISSING:          true,
	errorv1.Reason_REASON_INSTALLER_SOURCE_NOT_ALLOWED: true,
	errorv1.Reason_REASON_INSTALLER_UNAVAILABLE:        true,
	errorv1.Reason_REASON_INSTALLER_CHECKSUM_MISMATCH:  true,
	errorv1.Reason_REASON_INSTALLER_INVALID:            true,
	errorv1.Reason_REASON_INSTALLER_NOT_CACHED:         true,
	errorv1.Reason_REASON_NODE_NO_SPACE:                true,
	errorv1.Reason_REASON_LIBC_NOT_SUPPORTED:           true,
	errorv1.Reason_REASON_DRIVER_PACKAGED:              true,
	errorv1.Reason_REASON_CONTAINER_TOO_SMALL:          true,
	errorv1.Reason_REASON_DRIVER_INSTALL_FAILED:        true,
	errorv1.Reason_REASON_DRIVER_NOT_REMOVABLE:         true,
	errorv1.Reason_REASON_STOP_TIMEOUT:                 true,
	errorv1.Reason_REASON_START_FAILED:                 true,
	errorv1.Reason_REASON_START_ROLLED_BACK:            true,
	errorv1.Reason_REASON_PCT_FAILED:                   true,
	errorv1.Reason_REASON_HA_PENDING:                   true,
	errorv1.Reason_REASON_HA_REFUSED:                   true,
	errorv1.Reason_REASON_HOOK_FAILED:                  true,
	errorv1.Reason_REASON_INIT_DIED:                    true,
	errorv1.Reason_REASON_ATTACH_FAILED:                true,
	errorv1.Reason_REASON_USER_NOT_FOUND:               true,
	errorv1.Reason_REASON_DIRECTORY_NOT_USABLE:         true,
	errorv1.Reason_REASON_FILE_NOT_FOUND:               true,
	errorv1.Reason_REASON_FILE_REFUSED:                 true,
	errorv1.Reason_REASON_FILE_NO_SPACE:                true,
	errorv1.Reason_REASON_FILE_CHANGED:                 true,
	errorv1.Reason_REASON_TRANSFER_BROKEN_OFF:          true,
}

// TestEveryReason shows that each reason has a case here or comes from agents, and none both.
func TestEveryReason(t *testing.T) {
	made := map[errorv1.Reason]bool{errorv1.Reason_REASON_UNSPECIFIED: true}
	for _, tt := range statusTests {
		if _, ok := errors.AsType[*node.Error](tt.err); !ok || tt.reason == node.Unreachable {
			made[tt.reason] = true
		}
	}
	for number, name := range errorv1.Reason_name {
		if r := errorv1.Reason(number); made[r] == fromAgents[r] {
			t.Errorf("%s: made here %t, from agents %t; want one of them", name, made[r], fromAgents[r])
		}
	}
	// What agents give passes unchanged, whatever it is.
	for r := range fromAgents {
		err := server.StatusOf(&node.Error{Node: "pve1", Code: codes.FailedPrecondition, Reason: r, Message: "m"}, "id1")
		if got, metadata := client.Reason(err); got != r || metadata["node"] != "pve1" {
			t.Errorf("%v from an agent: got %v with %v", r, got, metadata)
		}
	}
}
