package doctor

import "fmt"

// ExamineNode says what is wrong with a node that answers, whoever has its GPUs. Cards that are bound to another driver are
// somebody's will; that an assigned one is so is told of its container.
func ExamineNode(n *Node) []Finding {
	e := &examination{Facts: Facts{Node: n, Container: &Container{Node: n.Name}}}
	e.link = Agent
	if !n.Quorate {
		e.broken(NoQuorum, "/etc/pve of "+n.Name+" is read-only", e.on("pvecm status, and bring the other nodes of the cluster back"),
			"node %s has no quorum: no conf can be changed, no container started", n.Name)
	}
	e.link = Driver
	e.versions()
	e.link = Health
	for _, g := range n.GPUs {
		if g.Driver == "nvidia" {
			e.fit(g)
		}
	}
	return e.found
}

// ExamineAway is the finding about a node that does not answer.
func ExamineAway(a Away) Finding {
	return Finding{
		Fault: AgentAway, Severity: Fatal, Link: Agent, Message: fmt.Sprintf("the agent of node %s does not answer", a.Node),
		Proof: a.Message, Remedy: "on " + a.Node + ": systemctl status phoenix-agent",
	}
}
