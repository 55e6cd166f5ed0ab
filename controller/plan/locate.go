package plan

import (
	"fmt"
	"slices"
	"strings"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/observed"
)

// locate returns the container as observed and its node. The error says why it cannot be told where it is.
func locate(c fleet.Container, o *observed.Fleet) (*observed.Container, *observed.Node, error) {
	if c.Node != "" {
		return locatePinned(c, o)
	}
	at := nodesOf(o, c.CTID)
	switch {
	case len(at) > 1:
		return nil, nil, fmt.Errorf("it is on several nodes: %s; say which one is meant with \"node\" in the fleet file", names(at))
	case len(at) == 1:
		return on(at[0], c.CTID), at[0], nil
	}
	if node := vmNode(o, c.CTID); node != "" {
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
	case len(o.Nodes) == 0:
		return nil, nil, fmt.Errorf("no node is configured that could have it")
	case len(asked) == 0:
		return nil, nil, fmt.Errorf("no node could be asked for it: %s", strings.Join(silent, ", "))
	case len(silent) > 0:
		return nil, nil, fmt.Errorf("no node that answers has it (%s); could not be asked: %s", strings.Join(asked, ", "), strings.Join(silent, ", "))
	}
	return nil, nil, fmt.Errorf("no node has it; asked: %s; create it, or take it out of the fleet file", strings.Join(asked, ", "))
}

func locatePinned(c fleet.Container, o *observed.Fleet) (*observed.Container, *observed.Node, error) {
	i := slices.IndexFunc(o.Nodes, func(n observed.Node) bool { return n.Name == c.Node })
	if i < 0 {
		var all []*observed.Node
		for i := range o.Nodes {
			all = append(all, &o.Nodes[i])
		}
		return nil, nil, fmt.Errorf("the fleet file puts it on node %s, which is not configured; configured: %s", c.Node, names(all))
	}
	n := &o.Nodes[i]
	if n.Err != nil {
		return nil, nil, fmt.Errorf("its node %s could not be asked: %w", n.Name, n.Err)
	}
	if found := on(n, c.CTID); found != nil {
		return found, n, nil
	}
	if slices.Contains(n.VMs, c.CTID) {
		return nil, nil, fmt.Errorf("it is a VM on node %s; Phoenix manages LXC containers, take it out of the fleet file", n.Name)
	}
	if at := nodesOf(o, c.CTID); len(at) > 0 {
		return nil, nil, fmt.Errorf("the fleet file puts it on node %s, but it is on %s; move it, or change \"node\"", n.Name, names(at))
	}
	return nil, nil, fmt.Errorf("node %s does not have it, where the fleet file puts it; create it, or change \"node\"", n.Name)
}

func nodesOf(o *observed.Fleet, ctid int32) (at []*observed.Node) {
	for i := range o.Nodes {
		if on(&o.Nodes[i], ctid) != nil {
			at = append(at, &o.Nodes[i])
		}
	}
	return at
}

func on(n *observed.Node, ctid int32) *observed.Container {
	i := slices.IndexFunc(n.Containers, func(c observed.Container) bool { return c.CTID == ctid })
	if i < 0 {
		return nil
	}
	return &n.Containers[i]
}

func vmNode(o *observed.Fleet, ctid int32) string {
	for _, n := range o.Nodes {
		if slices.Contains(n.VMs, ctid) {
			return n.Name
		}
	}
	return ""
}

func names(nodes []*observed.Node) string {
	if len(nodes) == 0 {
		return "none"
	}
	var all []string
	for _, n := range nodes {
		all = append(all, n.Name)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
