package server

import (
	"cmp"
	"context"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

type nodeServer struct {
	agentv1.UnimplementedNodeServiceServer
	node   *Node
	events *events
}

func (s *nodeServer) GetNode(ctx context.Context, _ *agentv1.GetNodeRequest) (*agentv1.GetNodeResponse, error) {
	inv, err := s.node.Containers.GPUs.Scan(ctx)
	if err != nil {
		return nil, err
	}
	return &agentv1.GetNodeResponse{Node: &typev1.Node{
		Name:           s.node.Name,
		AgentVersion:   s.node.Version,
		PveVersion:     s.node.Facts.pveVersion(),
		KernelVersion:  kernelVersion(),
		LxcVersion:     s.node.Facts.LXCVersion,
		BootId:         s.node.Facts.bootID(),
		DriverVersion:  inv.DriverVersion,
		Quorate:        s.node.Containers.Confs.Check() == nil,
		AgentStartTime: timestamppb.New(s.node.Started),
	}}, nil
}

// Facts are where the node's versions are read. The zero value is the real host.
type Facts struct {
	ReleaseFile string // of a host that is no Proxmox; default /etc/pve-release
	DpkgStatus  string // default /var/lib/dpkg/status
	LXCVersion  string // found out once, at start
}

// pveVersion is the version of the package pve-manager, which is what pveversion prints after loading 0.6 s of Perl. The
// sandbox, which has no such package, writes a file instead.
func (f Facts) pveVersion() string {
	if b, err := os.ReadFile(cmp.Or(f.ReleaseFile, "/etc/pve-release")); err == nil {
		return strings.TrimSpace(string(b))
	}
	b, err := os.ReadFile(cmp.Or(f.DpkgStatus, "/var/lib/dpkg/status"))
	if err != nil {
		return ""
	}
	_, stanza, found := strings.Cut("\n"+string(b), "\nPackage: pve-manager\n")
	if !found {
		return ""
	}
	stanza, _, _ = strings.Cut(stanza, "\n\n")
	for line := range strings.Lines(stanza) {
		if version, ok := strings.CutPrefix(line, "Version: "); ok {
			return strings.TrimSpace(version)
		}
	}
	return ""
}

func (f Facts) bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func kernelVersion() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

func (s *nodeServer) WatchEvents(_ *agentv1.WatchEventsRequest, stream agentv1.NodeService_WatchEventsServer) error {
	return s.events.watch(stream.Context(), stream.Send)
}
