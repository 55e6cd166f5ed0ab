package plan

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
)

// A census finds containers in an observation.
type census struct {
	*observed.Fleet
	found map[int32][]sighting
}

// A sighting is one container on one node.
type sighting struct {
	node      *observed.Node
	container *observed.Container
}

func count(o *observed.Fleet) census {
	c := census{o, map[int32][]sighting{}}
	for n := range o.Nodes {
		node := &o.Nodes[n]
		for i := range node.Containers {
			found := &node.Containers[i]
			c.found[found.CTID] = append(c.found[found.CTID], sighting{node, found})
		}
	}
	return c
}

// locate returns the container as observed and its node. The error says why it cannot be told where it is.
func (o census) locate(c fleet.Container) (*observed.Container, *observed.Node, error) {
	switch {
	case len(o.Nodes) == 0:
		return nil, nil, errors.New("no node is configured that could have it")
	case c.Node != "":
		return o.locatePinned(c)
	}
	at := o.found[c.CTID]
	switch {
	case len(at) > 1:
		return nil, nil, fmt.Errorf("it is on several nodes: %s; say which one is meant with \"node\" in the fleet file", names(at))
	case len(at) == 1:
		return at[0].container, at[0].node, nil
	}
	if node := o.vmNode(c.CTID); node != "" {
		return nil, nil, fmt.Errorf("it is a VM on node %s; Phoenix manages LXC containers, take it out of the fleet file", node)
	}
	var asked, silent []string
	for _, n := range o.Nodes {
		if n.Err != nil {
			silent = append(silent, fmt.Sprintf("%s (%v)", n.Name, n.Err))
		} else {
			asked = append(asked, n.Name)
		}
	}
	switch {
	case len(asked) == 0:
		return nil, nil, fmt.Errorf("no node could be asked for it: %s", strings.Join(silent, ", "))
	case len(silent) > 0:
		return nil, nil, fmt.Errorf("no node that answers has it (%s); could not be asked: %s", strings.Join(asked, ", "), strings.Join(silent, ", "))
	}
	return nil, nil, fmt.Errorf("no node has it; asked: %s; create it, or take it out of the fleet file", strings.Join(asked, ", "))
}

func (o census) locatePinned(c fleet.Container) (*observed.Container, *observed.Node, error) {
	i := slices.IndexFunc(o.Nodes, func(n observed.Node) bool { return n.Name == c.Node })
	if i < 0 {
		var all []string
		for _, n := range o.Nodes {
			all = append(all, n.Name)
		}
		return nil, nil, fmt.Errorf("the fleet file puts it on node %s, which is not configured; configured: %s", c.Node, strings.Join(all, ", "))
	}
	n := &o.Nodes[i]
	if n.Err != nil {
		return nil, nil, fmt.Errorf("its node %s could not be asked: %w", n.Name, n.Err)
	}
	at := o.found[c.CTID]
	if i := slices.IndexFunc(at, func(s sighting) bool { return s.node == n }); i >= 0 {
		return at[i].container, n, nil
	}
	if slices.Contains(n.VMs, c.CTID) {
		return nil, nil, fmt.Errorf("it is a VM on node %s; Phoenix manages LXC containers, take it out of the fleet file", n.Name)
	}
	if len(at) > 0 {
		return nil, nil, fmt.Errorf("the fleet file puts it on node %s, but it is on %s; move it, or change \"node\"", n.Name, names(at))
	}
	return nil, nil, fmt.Errorf("node %s does not have it, where the fleet file puts it; create it, or change \"node\"", n.Name)
}

// vmNode returns the node that has a VM with this number, or "".
func (o census) vmNode(ctid int32) string {
	for _, n := range o.Nodes {
		if slices.Contains(n.VMs, ctid) {
			return n.Name
		}
	}
	return ""
}

func names(at []sighting) string {
	var all []string
	for _, s := range at {
		all = append(all, s.node.Name)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
