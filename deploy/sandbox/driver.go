package sandbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"phoenix.internal/deploy/sandbox/nvidia"
	"phoenix.internal/deploy/sandbox/runfile"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
)

// installersDir is where a node has its runfiles; on this machine it is the folder "installers" of the node.
const installersDir = "/var/lib/phoenix-installers"

// FetchDriver makes the stand-in for NVIDIA's installer of the version that the node has loaded, and has the node's agent,
// which must serve, fetch it into its cache. From then on nobody asks NVIDIA's host for it, which a node cannot reach. A node
// that has loaded no driver is left as it is.
func (s *Sandbox) FetchDriver(ctx context.Context, node string) error {
	n, err := s.Node(node)
	if err != nil {
		return err
	}
	host, err := nvidia.Tree{State: s.hardwareFile(node)}.Host() // as it is now
	if err != nil {
		return err
	}
	if !host.Loaded("nvidia") {
		return nil
	}
	version := host.Driver
	o := runfile.Options{Version: version}
	for _, g := range host.GPUs {
		card := runfile.GPU{Minor: g.Minor, Model: g.Model, UUID: g.UUID}
		for _, d := range g.MIG.Devices {
			card.MIGDevices = append(card.MIGDevices, runfile.MIGDevice{Minor: g.CapabilityMinor(d), Profile: d.Profile, UUID: d.UUID})
		}
		o.GPUs = append(o.GPUs, card)
	}
	content, name := runfile.New(o), runfile.Name(version)
	if err := writeFile(filepath.Join(s.NodeDir(node), "installers", name), string(content), 0o644); err != nil {
		return err
	}
	if err := s.fetch(ctx, n, &agentv1.FetchInstallerRequest{
		Version: version, Url: filepath.Join(installersDir, name), Sha256: fmt.Sprintf("%x", sha256.Sum256(content)),
	}); err != nil {
		return fmt.Errorf("node %s: fetch the installer of driver %s: %w", node, version, err)
	}
	return nil
}

func (s *Sandbox) fetch(ctx context.Context, n *Node, req *agentv1.FetchInstallerRequest) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	conn, err := s.connect(n.AgentAddress(), n.Name)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := agentv1.NewDriverServiceClient(conn).FetchInstaller(ctx, req)
	for err == nil {
		_, err = stream.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// glibc is the sandbox's copy of this machine's C library; the containers' are hard links to it.
func (s *Sandbox) glibc() string { return filepath.Join(s.Dir, "glibc") }

// addGlibc gives a container the look of one with glibc, without which NVIDIA's driver is refused.
func (s *Sandbox) addGlibc(node string, ctid int32, unprivileged bool) error {
	owner := 0
	if unprivileged {
		owner = firstID
	}
	root := s.Rootfs(node, ctid)
	return filepath.WalkDir(s.glibc(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == s.glibc() {
			return err
		}
		name, err := filepath.Rel(s.glibc(), path)
		if err != nil {
			return err
		}
		to := filepath.Join(root, name)
		if !d.IsDir() {
			return os.Link(path, to)
		}
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		return os.Lchown(to, owner, owner)
	})
}
