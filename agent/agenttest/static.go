package agenttest

import (
	"fmt"
	"os"
	"os/exec"
	"sync"

	"phoenix.internal/agent/attach"
)

// static is an attacher whose program is linked statically, which a test binary under the race detector cannot be. It
// is built when it is needed first.
type static struct{ attach.Attacher }

// Program implements [transfer.Attacher].
func (s static) Program() (*os.File, error) {
	helper, err := helper()
	if err != nil {
		return nil, err
	}
	s.Attacher.Helper = helper
	return s.Attacher.Program()
}

var helper = sync.OnceValues(func() (*attach.Helper, error) {
	dir, err := os.MkdirTemp("", "phoenix-helper-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := dir + "/helper"
	build := exec.Command("go", "build", "-o", path, "phoenix.internal/agent/transfer/testdata/helper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%v: %w: %s", build, err, out)
	}
	h := &attach.Helper{Path: path}
	// Its copy in memory is what is used from now on.
	_, err = attach.Attacher{Helper: h}.Program()
	return h, err
})
