// Package sandbox lays out pretend Proxmox hosts ("nodes") on one Debian machine: each has its own
// mount, network, host name and cgroup namespaces, its own /etc/pve, /dev, /proc/driver and address, and
// real LXC containers that the package pct runs. README.md beside this file says what is real and what
// is not.
//
// A sandbox is a folder and a cgroup. Every process of it lives in that cgroup, so that taking it down
// is one write to cgroup.kill, whoever died before.
package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"phoenix.internal/deploy/sandbox/nvidia"
)

// The demo's sandbox, and where it puts a configuration for phoenix-cli.
const (
	DefaultDir       = "/var/lib/phoenix-sandbox"
	DefaultCLIConfig = "/etc/phoenix/cli.yaml"
)

// Options say what Up makes.
type Options struct {
	Dir           string   // of the sandbox; it must not exist, or be empty
	Nodes         int      // pve1, pve2, ...; default 2
	GPUs          int      // per node; default 2
	Shapes        []string // of pve1, pve2, ...: names of nvidia.Shape; "" or none: GPUs plain cards
	ReverseMinors bool     // on nodes with an even number, the minors of the GPUs run against their PCI order
	Fleet         string   // path of a fleet file; a container is made and started for each entry; "": none
	Pct           string   // path of the program that becomes /usr/sbin/pct; default: pct beside this program
	FeaturesDir   string   // features_dir of the controller; default: the sandbox's own samples
	Controller    string   // listen address of the controller; default 127.0.0.1:7460
	While         int      // a process: when it ends, the processes of the nodes are ended; 0: none
	CLIConfig     string   // path of a CLI configuration to write, and to remove at Down; "": none
}

// A Sandbox is what lies in sandbox.json: what Up made.
type Sandbox struct {
	Dir        string `json:"dir"`
	Name       string `json:"name"`       // of the cgroup, and prefix of the network interfaces
	Controller string `json:"controller"` // address
	CLIConfig  string `json:"cli_config,omitempty"`
	Fleet      string `json:"fleet,omitempty"`
	While      int    `json:"while,omitempty"` // Options.While
	Nodes      []Node `json:"nodes"`
}

// A Node is one pretend Proxmox host.
type Node struct {
	Name    string  `json:"name"`
	Address string  `json:"address"` // of the node; only this machine can reach it
	Gateway string  `json:"gateway"` // this machine's end
	Link    string  `json:"link"`    // the interface at this machine's end
	CTIDs   []int32 `json:"ctids"`   // made by Up, ascending

	nvidia.Host // as it was when the sandbox was loaded
}

const (
	stateFile  = "sandbox.json"
	markerFile = ".phoenix-sandbox" // says that Down may remove the folder
)

// ErrNotUp says that there is no sandbox in the folder.
var ErrNotUp = errors.New("no sandbox is up")

// Load reads the sandbox in dir. It returns ErrNotUp if there is none, or only a half-made one.
func Load(dir string) (*Sandbox, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNotUp, dir)
	}
	if err != nil {
		return nil, err
	}
	s := &Sandbox{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, stateFile), err)
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		now, err := nvidia.Tree{State: s.hardwareFile(n.Name)}.Host()
		if errors.Is(err, fs.ErrNotExist) {
			continue // half-made
		} else if err != nil {
			return nil, err
		}
		n.Host = now
	}
	return s, nil
}

func (s *Sandbox) save() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.Dir, stateFile), append(b, '\n'), 0o644)
}

// Node finds a node by name.
func (s *Sandbox) Node(name string) (*Node, error) {
	var names []string
	for i := range s.Nodes {
		if s.Nodes[i].Name == name {
			return &s.Nodes[i], nil
		}
		names = append(names, s.Nodes[i].Name)
	}
	return nil, fmt.Errorf("no node %q; there are %s", name, strings.Join(names, ", "))
}

// NodeDir is where the files of a node lie on this machine; see README.md.
func (s *Sandbox) NodeDir(node string) string { return filepath.Join(s.Dir, "nodes", node) }

// ConfPath is the conf of a container as this machine sees it.
func (s *Sandbox) ConfPath(node string, ctid int32) string {
	return filepath.Join(s.NodeDir(node), "pve", "nodes", node, "lxc", fmt.Sprintf("%d.conf", ctid))
}

// nameFor derives a short name that differs between sandboxes from their folder.
func nameFor(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "phx" + hex.EncodeToString(sum[:3])
}
