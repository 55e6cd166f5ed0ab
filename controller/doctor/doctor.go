// Package doctor says why a container cannot use its GPUs. It walks the chain from the node's agent over the card, the
// driver, the conf and the running container to CUDA, and finds the first link that is broken, what proves it, and what
// mends it. It decides from plain values: who asks for them is the controller's server.
package doctor

import "fmt"

// A Kind is one link of the chain.
type Kind string

// The links, each of which needs those before it.
const (
	Agent      Kind = "agent"        // the node's agent answers, and the node has the container
	Card       Kind = "card"         // the assigned cards are on the PCI bus
	Driver     Kind = "driver"       // they are bound to the nvidia kernel driver, which is loaded
	Health     Kind = "health"       // the driver lists them, and they are fit for work
	Nodes      Kind = "device nodes" // the node's /dev has what they need, with the right numbers
	MIG        Kind = "mig"          // they are divided as assigned
	Assignment Kind = "assignment"   // the fleet file assigns them, and means the same cards as when it was applied
	Conf       Kind = "conf"         // the container's conf gives exactly them
	Running    Kind = "container"    // it runs, and was started with that conf
	Devices    Kind = "devices"      // each device opens inside, and no other GPU's does
	UserSpace  Kind = "user space"   // the driver's libraries inside have the version of the loaded module
	SMI        Kind = "nvidia-smi"   // nvidia-smi inside lists exactly the assigned GPUs
	CUDA       Kind = "cuda"         // cuInit succeeds
)

// chain is the order of the links, and how each is looked at. A look returns what proves that the link is whole, if it
// reports nothing.
var chain = []struct {
	kind Kind
	look func(*examination) (proof string)
}{
	{Agent, (*examination).agent},
	{Card, (*examination).card},
	{Driver, (*examination).driver},
	{Health, (*examination).health},
	{Nodes, (*examination).nodes},
	{MIG, (*examination).mig},
	{Assignment, (*examination).assignment},
	{Conf, (*examination).conf},
	{Running, (*examination).running},
	{Devices, (*examination).devices},
	{UserSpace, (*examination).userSpace},
	{SMI, (*examination).smi},
	{CUDA, (*examination).cuda},
}

// A State is what became of a link.
type State string

// The states of a link.
const (
	OK            State = "ok"
	Broken        State = "broken"
	NotReached    State = "not reached"    // a link before it is broken
	NotApplicable State = "not applicable" // the container needs no such link
	NotExamined   State = "not examined"   // nobody could look
)

// A Link is one link as it was found.
type Link struct {
	Kind  Kind
	State State
	Proof string // what was read and where; why, for one that was not looked at
}

// A Severity is how bad a finding is.
type Severity string

// The severities.
const (
	Fatal   Severity = "broken"  // the container cannot use its GPUs as it is to, or can use others
	Warning Severity = "warning" // it can, but something should be known or done
)

// A Finding is one fault.
type Finding struct {
	Fault    Fault
	Severity Severity
	Link     Kind
	Message  string // what is wrong, without capital and full stop
	Proof    string // what was read, and where
	Remedy   string // the command that mends it, or who must do what
}

// A Diagnosis is what is to be said about one container.
type Diagnosis struct {
	CTID     int32
	Name     string // from the fleet file; else its hostname
	Node     string // empty if no node has it
	Links    []Link // all of them, in order
	Findings []Finding
	Stopped  bool // the only thing that keeps it from its GPUs is that it does not run
}

// Cause returns the finding of the first broken link that explains it best; false if none is broken.
func (d *Diagnosis) Cause() (Finding, bool) {
	for _, f := range d.Findings {
		if f.Severity == Fatal {
			return f, true
		}
	}
	return Finding{}, false
}

// Examine walks the chain for one container. The findings of the first broken link come first; of the links after it only
// warnings are told, since what is broken there mostly follows from it.
func Examine(f Facts) Diagnosis {
	d := Diagnosis{CTID: f.CTID}
	if f.Wish != nil {
		d.Name = f.Wish.Name
	}
	if f.Container != nil {
		d.Node = f.Container.Node
		if d.Name == "" {
			d.Name = f.Container.Hostname
		}
	}
	e := &examination{Facts: f}
	if f.Node != nil {
		e.targets = targets(f)
	}
	broken := Kind("")
	var warnings []Finding
	for _, l := range chain {
		e.link, e.found, e.state = l.kind, nil, OK
		if broken != "" && (f.Node == nil || f.Container == nil) {
			d.Links = append(d.Links, Link{l.kind, NotReached, ""})
			continue
		}
		proof := l.look(e)
		var fatal []Finding
		for _, finding := range e.found {
			if finding.Severity == Fatal {
				fatal = append(fatal, finding)
			} else {
				warnings = append(warnings, finding)
			}
		}
		link := Link{l.kind, e.state, proof}
		switch {
		case broken != "":
			link = Link{l.kind, NotReached, ""}
		case len(fatal) > 0:
			broken = l.kind
			link = Link{l.kind, Broken, fatal[0].Proof}
			d.Findings = fatal
			d.Stopped = fatal[0].Fault == Stopped
		}
		d.Links = append(d.Links, link)
	}
	d.Findings = append(d.Findings, warnings...)
	return d
}

// An examination is one walk.
type examination struct {
	Facts
	targets []target

	link  Kind // that is looked at
	found []Finding
	state State // of the link, if nothing is found
}

func (e *examination) report(f Fault, s Severity, proof, remedy, format string, args ...any) {
	e.found = append(e.found, Finding{
		Fault: f, Severity: s, Link: e.link, Message: fmt.Sprintf(format, args...), Proof: proof, Remedy: remedy,
	})
}

// broken reports that the link is broken: what proves it, what mends it, what it is.
func (e *examination) broken(f Fault, proof, remedy, format string, args ...any) {
	e.report(f, Fatal, proof, remedy, format, args...)
}

func (e *examination) warn(f Fault, proof, remedy, format string, args ...any) {
	e.report(f, Warning, proof, remedy, format, args...)
}

// notApplicable says that there is no such link for this container.
func (e *examination) notApplicable(why string) string {
	e.state = NotApplicable
	return why
}

// notExamined says that nobody could look at the link.
func (e *examination) notExamined(why string) string {
	e.state = NotExamined
	return why
}

// apply is the command that brings the container to what the fleet file says.
func (e *examination) apply() string { return fmt.Sprintf("phoenix-cli apply %d", e.CTID) }

// on is a command on the container's node.
func (e *examination) on(format string, args ...any) string {
	return fmt.Sprintf("on %s: ", e.Node.Name) + fmt.Sprintf(format, args...)
}
