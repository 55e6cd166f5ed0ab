// Package xid reads the errors that NVIDIA's driver reports about a GPU in the kernel's log, and says what each
// means for those who use the GPU. The package is pure.
//
// The form of the lines is that of open-gpu-kernel-modules (kernel_rc.c); the classes are those of NVIDIA's XID
// catalogue of 2025-10-29, with the differences that reference/nvidia-passthrough.md, chapter 12, argues for.
package xid

import (
	"regexp"
	"strconv"
	"strings"
)

// fallenOffBus is the XID of a GPU that does not answer on the bus any more.
const fallenOffBus = 79

// An Event is one error that the driver reported.
type Event struct {
	PCIAddress      string // of the GPU, dddd:bb:ss.0 in lower case
	Code            int    // the XID
	GPUInstance     int    // MIG's GPU instance; -1: it is about the whole GPU
	ComputeInstance int    // MIG's compute instance; -1: none
	PID             int    // on the host; 0: unknown
	Process         string // name of the process; empty: unknown
	Text            string // what the driver says after that
	CausedBy        int    // the XID that this one follows; 0: none is named
}

var (
	// The parentheses hold domain, bus and device without function, and with MIG the instances.
	line = regexp.MustCompile(`^NVRM: Xid \((?:PCI:)?([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2})(?:\.[0-7])?` +
		`(?: GPU-I:([0-9]{1,3}))?(?: GPU-CI:([0-9]{1,3}))?\): ([0-9]{1,5})(?:, (.*))?$`)
	// A lost card may come without an XID.
	lost     = regexp.MustCompile(`^NVRM: .*\b([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2})\b.* has fallen off the bus\b`)
	process  = regexp.MustCompile(`^pid='?([0-9]{1,10})'?(?:, name=([^,]*))?(?:, )?`)
	causedBy = regexp.MustCompile(`caused by previous Xid ([0-9]{1,5})\b`)
)

// Parse reads one message of the kernel's log, without its prefix. It says whether the message reports an error of
// a GPU.
func Parse(message string) (Event, bool) {
	message = strings.TrimSpace(message)
	m := line.FindStringSubmatch(message)
	if m == nil {
		if m := lost.FindStringSubmatch(message); m != nil {
			return Event{PCIAddress: address(m[1]), Code: fallenOffBus, GPUInstance: -1, ComputeInstance: -1, Text: message}, true
		}
		return Event{}, false
	}
	e := Event{
		PCIAddress:      address(m[1]),
		Code:            number(m[4]),
		GPUInstance:     instance(m[2]),
		ComputeInstance: instance(m[3]),
		Text:            m[5],
	}
	if p := process.FindStringSubmatch(e.Text); p != nil {
		e.PID, e.Process = number(p[1]), p[2]
		e.Text = e.Text[len(p[0]):]
	}
	if c := causedBy.FindStringSubmatch(e.Text); c != nil {
		e.CausedBy = number(c[1])
	}
	return e, true
}

// address normalises domain, bus and device: the domain has eight digits in some versions.
func address(s string) string {
	s = strings.ToLower(s)
	domain, rest, _ := strings.Cut(s, ":")
	if len(domain) > 4 && strings.Trim(domain[:len(domain)-4], "0") == "" {
		domain = domain[len(domain)-4:]
	}
	return domain + ":" + rest + ".0"
}

func instance(s string) int {
	if s == "" {
		return -1
	}
	return number(s)
}

// number reads digits of which an expression has seen to that they fit.
func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}
