package server

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/probe"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

type containerServer struct {
	agentv1.UnimplementedContainerServiceServer
	node *Node
}

func newContainerServer(node *Node) *containerServer { return &containerServer{node: node} }

func (s *containerServer) ListContainers(ctx context.Context, _ *agentv1.ListContainersRequest) (*agentv1.ListContainersResponse, error) {
	containers, _, err := s.node.Containers.List(ctx)
	if err != nil {
		return nil, err
	}
	vms, err := s.node.Containers.Confs.VMs()
	if err != nil {
		return nil, err
	}
	resp := &agentv1.ListContainersResponse{VmIds: vms}
	for i := range containers {
		resp.Containers = append(resp.Containers, containerOf(s.node.Name, &containers[i]))
	}
	return resp, nil
}

func (s *containerServer) GetContainer(ctx context.Context, req *agentv1.GetContainerRequest) (*agentv1.GetContainerResponse, error) {
	if err := checkCTID(req.GetCtid()); err != nil {
		return nil, err
	}
	c, conf, err := s.node.Containers.Get(ctx, req.GetCtid())
	if err != nil {
		return nil, &ctidError{req.GetCtid(), err}
	}
	resp := &agentv1.GetContainerResponse{
		Container: containerOf(s.node.Name, &c),
		Conf:      conf.Bytes(),
		Entries:   append(entriesOf(conf.Properties()), entriesOf(conf.Raw())...),
	}
	for _, snapshot := range conf.Snapshots() {
		resp.Snapshots = append(resp.Snapshots, snapshot.Name)
	}
	pending := conf.Pending()
	resp.Pending = append(entriesOf(pending.Properties), entriesOf(pending.Raw)...)
	if req.GetIncludeEffectiveEntries() {
		items, err := s.node.Containers.EffectiveEntries(ctx, c, conf)
		if err != nil {
			return nil, &ctidError{req.GetCtid(), err}
		}
		for _, item := range items {
			resp.EffectiveEntries = append(resp.EffectiveEntries, &typev1.ConfEntry{
				Key: text(item.Key), Value: text(item.Value), Line: int32(item.Line),
			})
		}
	}
	return resp, nil
}

// maxOperations bounds the operations of one PatchConf.
const maxOperations = 64

func (s *containerServer) PatchConf(ctx context.Context, req *agentv1.PatchConfRequest) (*agentv1.PatchConfResponse, error) {
	if err := checkCTID(req.GetCtid()); err != nil {
		return nil, err
	}
	if err := checkDigest(req.GetDigest()); err != nil {
		return nil, err
	}
	by, err := authorOf(ctx, "patch", req)
	if err != nil {
		return nil, err
	}
	if n := len(req.GetOperations()); n == 0 || n > maxOperations {
		return nil, invalid("operations", "%d given; 1 to %d are allowed", n, maxOperations)
	}
	ops := make([]container.Operation, len(req.GetOperations()))
	for i, op := range req.GetOperations() {
		var err error
		if ops[i], err = operationOf(fmt.Sprintf("operations[%d]", i), op); err != nil {
			return nil, err
		}
	}
	res, err := s.node.Containers.Patch(ctx, req.GetCtid(), req.GetDigest(), req.GetDryRun(), by, ops...)
	if err != nil {
		return nil, &ctidError{req.GetCtid(), err}
	}
	if res.Changed && !req.GetDryRun() {
		s.node.Log.Info("conf changed", "ctid", req.GetCtid(), "revision", res.Revision, "peer", by.Who, "on_behalf_of", by.OnBehalfOf, "request_id", requestID(ctx))
	}
	return &agentv1.PatchConfResponse{
		Changed: res.Changed, Before: res.Before, After: res.After, Digest: res.Digest, Revision: res.Revision,
	}, nil
}

// An authored request says for what, and for whom, it is made.
type authored interface {
	GetRequestId() string
	GetOnBehalfOf() string
}

// authorOf says who changes a conf, and why. Who is what the certificate proves; what the request says stands beside it.
func authorOf(ctx context.Context, operation string, req authored) (confstore.Author, error) {
	if !requestIDPattern.MatchString(req.GetRequestId()) {
		return confstore.Author{}, invalid("request_id", "at most 128 printable ASCII characters are allowed")
	}
	if s := req.GetOnBehalfOf(); len(s) > maxOnBehalfOf || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return confstore.Author{}, invalid("on_behalf_of", "at most %d bytes of printable characters are allowed", maxOnBehalfOf)
	}
	by := confstore.Author{Who: caller(ctx), OnBehalfOf: req.GetOnBehalfOf(), Why: operation}
	if req.GetRequestId() != "" {
		by.Why += " for " + req.GetRequestId()
	}
	return by, nil
}

const maxOnBehalfOf = 256 // bytes

func (s *containerServer) ListRevisions(_ context.Context, req *agentv1.ListRevisionsRequest) (*agentv1.ListRevisionsResponse, error) {
	if err := checkCTID(req.GetCtid()); err != nil {
		return nil, err
	}
	revisions, err := s.node.Containers.Confs.Revisions(req.GetCtid())
	if err != nil {
		return nil, &ctidError{req.GetCtid(), err}
	}
	resp := &agentv1.ListRevisionsResponse{}
	for _, r := range revisions {
		resp.Revisions = append(resp.Revisions, revisionOf(r))
	}
	return resp, nil
}

func (s *containerServer) GetRevision(_ context.Context, req *agentv1.GetRevisionRequest) (*agentv1.GetRevisionResponse, error) {
	if err := checkCTID(req.GetCtid()); err != nil {
		return nil, err
	}
	r, conf, err := s.node.Containers.Confs.Revision(req.GetCtid(), req.GetRevision())
	if err != nil {
		return nil, &ctidError{req.GetCtid(), err}
	}
	return &agentv1.GetRevisionResponse{Revision: revisionOf(r), Conf: conf}, nil
}

func (s *containerServer) RestoreRevision(ctx context.Context, req *agentv1.RestoreRevisionRequest) (*agentv1.RestoreRevisionResponse, error) {
	if err := checkCTID(req.GetCtid()); err != nil {
		return nil, err
	}
	if err := checkDigest(req.GetDigest()); err != nil {
		return nil, err
	}
	by, err := authorOf(ctx, fmt.Sprintf("restore revision %d", req.GetRevision()), req)
	if err != nil {
		return nil, err
	}
	if req.GetDryRun() {
		return s.previewRestore(req)
	}
	res, err := s.node.Containers.Restore(ctx, req.GetCtid(), req.GetRevision(), req.GetDigest(), by)
	if err != nil {
		return nil, &ctidError{req.GetCtid(), err}
	}
	if res.Changed {
		s.node.Log.Info("conf changed", "ctid", req.GetCtid(), "revision", res.Revision, "peer", by.Who, "on_behalf_of", by.OnBehalfOf, "request_id", requestID(ctx))
	}
	return &agentv1.RestoreRevisionResponse{Before: res.Before, After: res.After, Digest: res.Digest}, nil
}

func (s *containerServer) previewRestore(req *agentv1.RestoreRevisionRequest) (*agentv1.RestoreRevisionResponse, error) {
	res, err := s.node.Containers.Confs.PreviewRestore(req.GetCtid(), req.GetRevision(), req.GetDigest())
	if err != nil {
		return nil, &ctidError{req.GetCtid(), err}
	}
	return &agentv1.RestoreRevisionResponse{Before: res.Before, After: res.After, Digest: res.Digest}, nil
}

const (
	defaultStopTimeout = time.Minute
	maxStopTimeout     = 10 * time.Minute
)

func (s *containerServer) Restart(req *agentv1.RestartRequest, stream agentv1.ContainerService_RestartServer) error {
	if err := checkCTID(req.GetCtid()); err != nil {
		return err
	}
	ctx := stream.Context()
	by, err := authorOf(ctx, "restart", req)
	if err != nil {
		return err
	}
	timeout, err := stopTimeout(req.GetTimeout())
	if err != nil {
		return err
	}
	// A caller that went away does not stop the restart, so what Send says is of no use here.
	progress := func(phase container.Phase, message string) {
		_ = stream.Send(&agentv1.RestartResponse{Progress: &typev1.RestartProgress{Phase: phaseOf(phase), Message: message}})
	}
	c, err := s.node.Containers.Restart(ctx, req.GetCtid(), container.RestartOptions{
		Timeout: timeout, NoForce: req.GetNoForce(), Instance: req.GetInstance(), By: by,
	}, progress)
	if err != nil {
		return &ctidError{req.GetCtid(), err}
	}
	s.node.Log.Info("container restarted", "ctid", req.GetCtid(), "peer", by.Who, "on_behalf_of", by.OnBehalfOf, "request_id", requestID(ctx))
	return stream.Send(&agentv1.RestartResponse{Progress: &typev1.RestartProgress{
		Phase: typev1.RestartPhase_RESTART_PHASE_RUNNING, Container: containerOf(s.node.Name, &c),
	}})
}

func stopTimeout(d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return defaultStopTimeout, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, invalid("timeout", "%v", err)
	}
	if t := d.AsDuration(); t >= 0 && t <= maxStopTimeout {
		return t, nil
	}
	return 0, invalid("timeout", "%v is not between 0 s and %v", d.AsDuration(), maxStopTimeout)
}

// probeTimeout bounds one probe of all devices.
const probeTimeout = 30 * time.Second

func (s *containerServer) Probe(ctx context.Context, req *agentv1.ProbeRequest) (*agentv1.ProbeResponse, error) {
	if err := checkCTID(req.GetCtid()); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c, devices, err := s.node.Containers.Devices(ctx, req.GetCtid())
	if err != nil {
		return nil, &ctidError{req.GetCtid(), err}
	}
	if c.Running.State != lxcmon.Running {
		return nil, &container.NotRunningError{CTID: req.GetCtid(), State: c.Running.State}
	}
	if req.GetInstance() != "" && req.GetInstance() != c.Running.Instance {
		return nil, &container.InstanceError{CTID: req.GetCtid(), Got: c.Running.Instance}
	}
	wanted := make([]probe.Device, len(devices))
	for i, d := range devices {
		wanted[i] = probe.Device{Path: d.Path, Major: d.Major, Minor: d.Minor, ReadOnly: d.Capability()}
	}
	results, err := s.node.Prober.Probe(ctx, req.GetCtid(), wanted)
	if err != nil {
		return nil, &ctidError{req.GetCtid(), err}
	}
	// What was probed is only known if the container is still the same.
	after, err := s.node.Containers.Runtime.Observe(ctx, req.GetCtid(), nil)
	if err != nil {
		return nil, &ctidError{req.GetCtid(), err}
	}
	if after.Instance != c.Running.Instance {
		return nil, &container.InstanceError{CTID: req.GetCtid(), Got: after.Instance}
	}
	resp := &agentv1.ProbeResponse{Instance: c.Running.Instance}
	for i, r := range results {
		resp.Results = append(resp.Results, probeResultOf(r, devices[i]))
	}
	return resp, nil
}

// checkCTID checks the range of Proxmox's pve-vmid.
func checkCTID(ctid int32) error {
	if ctid < 100 || ctid > 999999999 {
		return invalid("ctid", "%d is not between 100 and 999999999", ctid)
	}
	return nil
}

var (
	digestPattern    = regexp.MustCompile(`\A(?:[0-9a-f]{40})?\z`)
	requestIDPattern = regexp.MustCompile(`\A[\x20-\x7e]{0,128}\z`)
)

func checkDigest(digest string) error {
	if !digestPattern.MatchString(digest) {
		return invalid("digest", "%.80q is no SHA-1 in lower-case hex", digest)
	}
	return nil
}
