package engine

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"phoenix.internal/controller/node"
	"phoenix.internal/controller/observed"
	"phoenix.internal/controller/plan"
)

// verifyFor is how long the assigned devices may take to be there after a start.
const verifyFor = 30 * time.Second

// shared are the devices that every use of a GPU needs besides its own.
var shared = []string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}

// verifyDevices proves that the container can open every device that was assigned to it, and no other GPU. It waits for
// the assigned devices, and for no other: a container with GPU 1 alone never has /dev/nvidia0.
func (w *worker) verifyDevices(ctx context.Context) (did, error) {
	verified, err := w.run.engine.cfg.Store.Verified()
	if err != nil {
		return did{}, err
	}
	p := newPause(verifyFor)
	for conflicts := 0; ; {
		instance, err := w.instance(ctx)
		if err != nil {
			return did{}, err
		}
		key := plan.Verification(instance, w.plan.Mode, w.plan.Desired)
		if instance != "" && plan.DevicesVerified(verified[w.ctid()], key) && !w.run.record.Options.Verify {
			return unchanged("verified since its start")
		}
		err = w.probe(ctx, instance)
		if err == nil {
			if err := w.run.engine.cfg.Store.SetVerified(w.ctid(), key); err != nil {
				return did{}, err
			}
			if len(w.plan.Desired) == 0 {
				return succeeded("no GPU can be opened inside")
			}
			return succeeded("%s can be opened inside, and no other", observed.Names(w.plan.Desired))
		}
		_, leaked := errors.AsType[*leakError](err)
		switch reason := node.ReasonOf(err); {
		case leaked:
			return did{}, err
		case reason == node.InstanceChanged:
			if conflicts++; conflicts > maxConflicts {
				return did{}, err
			}
		case reason != 0 && !transient(err) && reason != node.AttachFailed && reason != node.ContainerNotRunning:
			return did{}, err
		}
		w.progress("waiting: " + err.Error())
		if !p.wait(ctx, w.stop) {
			return did{}, fmt.Errorf("not within %v: %w", verifyFor, err)
		}
	}
}

// instance returns the start of the container to verify. What a restart of ours has just told is as good as another look:
// the agent probes that start or none.
func (w *worker) instance(ctx context.Context) (string, error) {
	if started := w.started; started != "" {
		w.started = ""
		return started, nil
	}
	c, err := w.look(ctx)
	return c.Instance, err
}

// A leakError tells that a container can open a GPU that it was not given. No waiting mends that.
type leakError struct{ found []string }

func (e *leakError) Error() string {
	return "a GPU that is not assigned is not closed to the container: " + strings.Join(e.found, "; ") +
		"; look for a rule that allows too much (phoenix-cli conf show), or another one who patched the conf"
}

// probe looks once at every device. The error says what is not as it is to be.
func (w *worker) probe(ctx context.Context, instance string) error {
	results, probed, err := w.agent.Probe(ctx, w.ctid(), instance)
	if err != nil {
		return err
	}
	if probed != instance {
		return errors.New("it was started anew in the meantime")
	}
	sandbox := false
	if slices.ContainsFunc(results, func(r node.Probed) bool { return r.Outcome == node.NoDriver }) {
		if sandbox, err = w.sandbox(ctx); err != nil {
			return err
		}
	}
	if leaks := unassigned(results, w.plan.Desired); len(leaks) > 0 {
		return &leakError{leaks}
	}
	if missing := assigned(results, w.plan.Desired, sandbox); len(missing) > 0 {
		return errors.New(strings.Join(missing, "; "))
	}
	return nil
}

// own is the device of a whole GPU.
var own = regexp.MustCompile(`^/dev/nvidia[0-9]+$`)

// assigned returns what keeps the container from using its GPUs.
func assigned(results []node.Probed, desired []observed.Ref, sandbox bool) (missing []string) {
	if len(desired) == 0 {
		return nil
	}
	seen := map[string]bool{}
	probed := make([]bool, len(desired))
	for _, r := range results {
		seen[r.Path] = true
		needed := r.GPU < 0 && (r.Expected || slices.Contains(shared, r.Path))
		for i, ref := range desired {
			// A GPU may have more devices than it is given with: DRM nodes, for example.
			if !of(r, ref) {
				continue
			}
			itself := own.MatchString(r.Path) || r.IsMIG
			needed = needed || itself || r.Expected
			probed[i] = probed[i] || itself && r.IsMIG == ref.IsMIG
		}
		if needed && !opens(r, sandbox) {
			missing = append(missing, sentence(r))
		}
	}
	for _, path := range shared {
		if !seen[path] {
			missing = append(missing, path+" was not probed: the node does not know it; look at phoenix-cli devices")
		}
	}
	for i, ref := range desired {
		if !probed[i] {
			missing = append(missing, fmt.Sprintf("%s was not probed: the node has no device for it; look at phoenix-cli devices", ref))
		}
	}
	return missing
}

// of tells whether a device belongs to what a ref names: the GPU's own devices do to each MIG device of it too, the
// capability node of a GPU instance to each compute instance of that.
func of(r node.Probed, ref observed.Ref) bool {
	switch {
	case r.GPU < 0 || r.GPU != ref.Index:
		return false
	case !r.IsMIG:
		return true
	}
	return ref.IsMIG && r.GPUInstance == ref.MIG.GPUInstance && (r.ComputeInstance < 0 || r.ComputeInstance == ref.MIG.ComputeInstance)
}

// opens reports whether the outcome proves that the container can use the device. With NO_DRIVER cgroup and file let
// it through, but nothing answers behind it: on a real node the GPU or its driver is gone, which is a failure. In a
// sandbox no driver ever stands behind the device nodes, and that the way is open is all that can be proven.
func opens(r node.Probed, sandbox bool) bool {
	return r.Outcome == node.Opened || r.Outcome == node.NoDriver && sandbox
}

// sandbox reports whether the node is one of deploy/sandbox's: those say so in the version of Proxmox.
func (w *worker) sandbox(ctx context.Context) (is bool, err error) {
	err = w.retry(ctx, func() error {
		version, err := w.agent.PVEVersion(ctx)
		is = Sandbox(version)
		return err
	})
	return is, err
}

// unassigned returns the GPUs' devices that are not desired and not proven to be closed. Only a refusal is a proof: that
// an open timed out, say, is none.
func unassigned(results []node.Probed, desired []observed.Ref) (leaks []string) {
	for _, r := range results {
		if r.GPU < 0 || slices.ContainsFunc(desired, func(ref observed.Ref) bool { return of(r, ref) }) {
			continue
		}
		switch r.Outcome {
		case node.Absent, node.Denied, node.NotADevice, node.NoPermission:
		default:
			leaks = append(leaks, sentence(r))
		}
	}
	return leaks
}

func sentence(r node.Probed) string {
	text := fmt.Sprintf("%s: %s", r.Path, strings.ReplaceAll(string(r.Outcome), "_", " "))
	if r.Errno != "" {
		text += " (" + r.Errno + ")"
	}
	if r.Message != "" {
		text += ": " + r.Message
	}
	return text
}
