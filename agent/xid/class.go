package xid

import (
	"fmt"
	"regexp"
	"slices"
	"time"
)

// RepeatWindow is how soon after an error of class [Watch] another one of the same GPU makes it a fault.
const RepeatWindow = 10 * time.Minute

// A Class says whom an error concerns and what to do.
type Class int

// The classes, from harmless to grave.
const (
	// Informational: it tells of another error, or of something that the driver has dealt with.
	Informational Class = iota + 1
	// Application: one process failed, mostly by its own doing; the GPU goes on.
	Application
	// Watch: the GPU goes on; if it happens again within [RepeatWindow], it needs a reset.
	Watch
	// Unknown: no class has been published. A person should look; the GPU is used on.
	Unknown
	// Reset: the GPU must be reset, which ends everything that uses it.
	Reset
	// Reboot: the machine must be rebooted, mostly switched off and on.
	Reboot
	// Support: hardware or firmware needs a person: power, memory, links, NVIDIA.
	Support
)

var classes = []string{
	Informational: "informational", Application: "application", Watch: "watch", Unknown: "unknown",
	Reset: "reset", Reboot: "reboot", Support: "support",
}

func (c Class) String() string {
	if c < Informational || c > Support {
		return fmt.Sprintf("Class(%d)", int(c))
	}
	return classes[c]
}

// ParseClass is the inverse of [Class.String].
func ParseClass(s string) (Class, error) {
	if i := slices.Index(classes, s); i > 0 {
		return Class(i), nil
	}
	return 0, fmt.Errorf("%q is none of %v", s, classes[1:])
}

// Fault says whether a GPU with such an error is unfit for new work until it was mended.
func (c Class) Fault() bool { return c >= Reset }

// Advice says what to do, in a sentence for the one who looks after the node.
func (c Class) Advice() string {
	switch c {
	case Application:
		return "Tell the owner of the process; the GPU can be used on."
	case Watch:
		return "If it comes back within minutes, stop what uses the GPU and reset it: nvidia-smi --gpu-reset -i GPU."
	case Unknown:
		return "NVIDIA has published no class of this error; look at the kernel's log around it."
	case Reset:
		return "Stop the containers that use the GPU and reset it: nvidia-smi --gpu-reset -i GPU."
	case Reboot:
		return "Reboot the node, and if that does not help, switch it off and on; look at the card's seat and its power."
	case Support:
		return "Look at power, cooling, memory and links of the card (nvidia-smi -q), and ask NVIDIA's support."
	}
	return "Nothing is to be done."
}

// catalogue lists the classes. Where NVIDIA's sources disagree the choice is that of chapter 12.3.
var catalogue = func() map[int]Class {
	byClass := map[Class][]int{
		Application: {
			8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89, 94, 96, 97, 98,
			99, 100, 101, 102, 103, 104, 105, 126, 127, 128, 129, 130, 131, 132, 133, 134, 135, 139,
		},
		// 45 is the driver's cleaning up after another error.
		Informational: {14, 37, 38, 43, 44, 45, 63, 66, 67, 93, 106, 107, 108, 121, 137, 141, 152, 153, 157, 160, 161},
		// 92: many corrected memory errors. 109: NVIDIA's device plugin ignores it, its catalogue wants a reset.
		Watch:  {92, 109},
		Reset:  {46, 48, 62, 64, 95, 110, 119, 120, 136, 140, 143, 154, 155, 156, 158, 171, 172},
		Reboot: {fallenOffBus},
		Support: {
			54, 74, 78, 142, 144, 145, 146, 147, 148, 149, 150, 151, 159, 167, 168, 173, 175,
		},
	}
	all := map[int]Class{}
	for class, codes := range byClass {
		for _, code := range codes {
			all[code] = class
		}
	}
	return all
}()

// recoveryAction is the XID by which the driver tells what a GPU needs from then on.
const recoveryAction = 154

// wanted finds that in its text: "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)". The numbers
// are those of NVML_FI_DEV_GET_GPU_RECOVERY_ACTION.
var wanted = regexp.MustCompile(`\bto 0x([0-9a-f]{1,2})\b`)

// Class returns the class; [Unknown] for an error that is not in the catalogue.
func (e Event) Class() Class {
	c, ok := catalogue[e.Code]
	m := wanted.FindStringSubmatch(e.Text)
	switch {
	case !ok:
		return Unknown
	case e.Code != recoveryAction || m == nil:
		return c
	case m[1] == "0":
		return Informational
	case m[1] == "2":
		return Reboot
	}
	return c
}

// Recovered says whether the driver tells that the GPU needs neither reset nor reboot any more.
func (e Event) Recovered() bool { return e.Code == recoveryAction && e.Class() == Informational }
