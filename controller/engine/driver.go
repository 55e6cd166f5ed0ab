package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"phoenix.internal/controller/fleet"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/plan"
)

// installDriver brings the user-space driver of the node's version into the container, unless it is there. The node fetches
// an installer once, however many of its containers need it.
func (w *worker) installDriver(ctx context.Context) (did, error) {
	want := w.plan.Driver
	if want.Version == "" { // the record of an older plan
		return unchanged("none is to be installed any more")
	}
	var has node.UserDriver
	err := w.retry(ctx, func() (err error) {
		has, err = w.agent.Driver(ctx, w.ctid())
		return err
	})
	switch {
	case err != nil:
		return did{}, err
	case has.Complete && has.Version == want.Version && (has.Graphics || !want.Graphics):
		return unchanged("driver %s is there", has.Version)
	}
	c, err := w.look(ctx)
	if err != nil {
		return did{}, err
	}
	install := func() (installed bool, err error) {
		err = w.retry(ctx, func() (err error) {
			installed, err = w.agent.InstallDriver(ctx, node.Install{
				CTID: w.ctid(), Instance: c.Instance, Version: want.Version, Graphics: want.Graphics,
			}, w.progress)
			return err
		})
		return installed, err
	}
	if has.Version != "" && has.Version != want.Version {
		w.leaveRollout, err = w.run.rollout.enter(ctx, w.stop, driverOn{w.plan.Node, want.Version})
		if err != nil {
			return did{}, err
		}
	}
	// Asked first without the installer: a container that cannot have the driver is refused before anything is fetched.
	installed, err := install()
	if node.ReasonOf(err) == node.InstallerNotCached {
		err = w.retry(ctx, func() error {
			return w.agent.FetchInstaller(ctx, node.Installer{Version: want.Version, Source: want.Source, SHA256: want.SHA256}, w.progress)
		})
		if err == nil {
			installed, err = install()
		}
	}
	switch {
	case err != nil:
		return did{}, err
	case !installed:
		return unchanged("driver %s is there", want.Version)
	case want.Graphics && has.Version == want.Version:
		return succeeded("driver %s is installed, with what graphics needs", want.Version)
	case has.Version == "":
		return succeeded("driver %s is installed", want.Version)
	}
	return succeeded("driver %s is installed, in the place of %s", want.Version, has.Version)
}

// verifyDriver proves that the driver in the container works, in the version of its node, and shows exactly what is
// assigned.
func (w *worker) verifyDriver(ctx context.Context) (did, error) {
	var uuids []string
	for _, r := range w.plan.Desired {
		id := r.UUID
		if r.IsMIG {
			id = r.MIG.UUID
		}
		if id == "" {
			return did{}, fmt.Errorf("the node did not know the UUID of %s when this was planned, so what nvidia-smi shows cannot be compared; apply again", r)
		}
		uuids = append(uuids, id)
	}
	c, err := w.look(ctx)
	if err != nil {
		return did{}, err
	}
	var check node.DriverCheck
	err = w.retry(ctx, func() (err error) {
		check, err = w.agent.VerifyDriver(ctx, w.ctid(), c.Instance, uuids)
		return err
	})
	want := w.plan.Driver.Version
	switch {
	case err != nil:
		return did{}, err
	case len(check.Problems) > 0:
		return did{}, errors.New(strings.Join(check.Problems, "; "))
	case check.Version != want && want != "":
		return did{}, fmt.Errorf("nvidia-smi in it reports driver %q; its node has loaded %s", check.Version, want)
	}
	w.leave(nil)
	if err := w.rememberDriver(c.Instance); err != nil {
		return did{}, err
	}
	cuda := ""
	if check.CUDA {
		cuda = ", and CUDA starts"
	}
	return succeeded("driver %s shows exactly what is assigned%s", check.Version, cuda)
}

// rememberDriver records what was verified of the driver behind what was verified of the devices.
func (w *worker) rememberDriver(instance string) error {
	verified, err := w.run.engine.cfg.Store.Verified()
	if err != nil {
		return err
	}
	devices := plan.Verification(instance, w.plan.Mode, w.plan.Desired)
	if !plan.DevicesVerified(verified[w.ctid()], devices) {
		return errors.New("it was started anew after its devices were verified; apply again")
	}
	return w.run.engine.cfg.Store.SetVerified(w.ctid(), plan.DriverVerification(devices, w.plan.Driver.Version, fleet.DriverInstall))
}
