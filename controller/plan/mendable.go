package plan

import "phoenix.internal/controller/observed"

// Mendable reports whether setting the passthrough anew mends a problem, so that it is a difference from the fleet file
// and a reason to patch. The others are for a person.
func Mendable(p observed.Problem) bool { return mendable(p) }
