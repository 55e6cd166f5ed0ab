package sandbox

import (
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"phoenix.internal/deploy/sandbox/nvidia"
)

// hardware makes up what node n, from 1, has of GPUs: the shape of its name, or plain cards.
func hardware(n int, o Options) (nvidia.Host, error) {
	if n <= len(o.Shapes) && o.Shapes[n-1] != "" {
		return nvidia.Shape(o.Shapes[n-1], n)
	}
	return nvidia.Plain(n, o.GPUs, o.ReverseMinors && n%2 == 0), nil
}

// chooseMajors picks majors that no driver of this machine has, so that opening a made-up node gives
// ENXIO, and that before does not have, but for the fixed ones. The uvm major differs from node to node, as it does
// between real hosts.
func chooseMajors(n int, before nvidia.Majors) (nvidia.Majors, error) {
	taken, err := takenMajors("/proc/devices")
	if err != nil {
		return nvidia.Majors{}, err
	}
	taken = append(taken, before.UVM, before.Caps, before.IMEX, before.NVLink)
	var candidates []int
	for major := 511; major > 480; major-- { // where the kernel looks when 234 to 254 are taken
		candidates = append(candidates, major)
	}
	uvm := candidates
	if n%2 == 0 {
		uvm = candidates[3:]
	}
	var m nvidia.Majors
	for _, choice := range []struct {
		major      *int
		candidates []int
	}{
		{&m.NVIDIA, []int{195, 196, 197, 60, 61, 62, 63}}, // 60 to 63: experimental use
		{&m.DRM, []int{226, 61, 62, 63, 120, 121}},
		{&m.UVM, uvm}, {&m.Caps, candidates[10:]}, {&m.IMEX, candidates}, {&m.NVLink, candidates},
	} {
		i := slices.IndexFunc(choice.candidates, func(major int) bool { return !slices.Contains(taken, major) })
		if i < 0 {
			return m, fmt.Errorf("no free device major among %v", choice.candidates)
		}
		*choice.major = choice.candidates[i]
		taken = append(taken, *choice.major)
	}
	return m, nil
}

func takenMajors(path string) ([]int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var majors []int
	character, _, _ := strings.Cut(string(b), "Block devices:")
	for line := range strings.Lines(character) {
		if fields := strings.Fields(line); len(fields) == 2 {
			if m, err := strconv.Atoi(fields[0]); err == nil {
				majors = append(majors, m)
			}
		}
	}
	return majors, nil
}

// Tree is where the GPUs of a node that is up can be looked at and changed.
func (s *Sandbox) Tree(node string) (nvidia.Tree, error) {
	pid, err := s.holder(node)
	if err != nil {
		return nvidia.Tree{}, err
	}
	return nvidia.Tree{Root: fmt.Sprintf("/proc/%d/root", pid), State: s.hardwareFile(node)}, nil
}

// NodeTree is the same from within the node, for its stand-ins.
func NodeTree() nvidia.Tree { return nvidia.Tree{Root: "/", State: inside + "/node/" + hardwareName} }

// CoveredPrograms is where a node sees the machine's own /usr/sbin.
const CoveredPrograms = inside + "/covered/usr/sbin"

const hardwareName = "nvidia.json"

func (s *Sandbox) hardwareFile(node string) string { return s.NodeDir(node) + "/" + hardwareName }

// bootID is what the kernel makes up at each boot.
func bootID() string {
	b := make([]byte, 16)
	rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x\n", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
