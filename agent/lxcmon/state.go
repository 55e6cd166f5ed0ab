package lxcmon

import "strconv"

// State is LXC's state of a container.
type State int

// The states, with LXC's numbers (lxc_state_t in lxc/state.h).
const (
	Stopped State = iota
	Starting
	Running
	Stopping
	Aborting
	Freezing
	Frozen
	Thawed
)

var stateNames = [...]string{"stopped", "starting", "running", "stopping", "aborting", "freezing", "frozen", "thawed"}

// String returns LXC's name of s in lower case.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return "state(" + strconv.Itoa(int(s)) + ")"
	}
	return stateNames[s]
}
