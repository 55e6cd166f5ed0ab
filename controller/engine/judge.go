package engine

import (
	"strings"

	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
)

// Judge says in what a probe differs from the assignment desired, one sentence each: assigned devices that do not open,
// and unassigned GPUs that are not proven to be closed. It is the rule by which verify-devices steps succeed. sandbox
// says whether the node is one: see [Sandbox].
func Judge(results []node.Probed, desired []observed.Ref, sandbox bool) []string {
	sentences := assigned(results, desired, sandbox)
	for _, leak := range unassigned(results, desired) {
		sentences = append(sentences, "not assigned, but not closed inside: "+leak)
	}
	return sentences
}

// Sandbox reports whether a node with this version of Proxmox VE is one of deploy/sandbox's, where no driver stands
// behind the device nodes.
func Sandbox(pveVersion string) bool { return strings.Contains(pveVersion, "sandbox") }
