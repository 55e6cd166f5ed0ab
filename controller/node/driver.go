package node

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// Deadlines of the calls about drivers.
const (
	lookTimeout    = 60 * time.Second
	fetchTimeout   = time.Hour // some 400 MB, over whatever line there is
	installTimeout = 30 * time.Minute
	verifyTimeout  = 2 * time.Minute // without a persistence daemon nvidia-smi takes seconds for each GPU
)

// A UserDriver is NVIDIA's user space in a running container.
type UserDriver struct {
	Version  string // empty if there is none
	Complete bool   // every library of that version is there
	Graphics bool   // those for graphics too
}

// Driver looks at the user-space driver of a running container.
func (n *Node) Driver(ctx context.Context, ctid int32) (UserDriver, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	resp, err := n.Drivers().GetDriver(ctx, &agentv1.GetDriverRequest{Ctid: ctid})
	d := resp.GetContainer()
	return UserDriver{
		Version: d.GetVersion(), Complete: d.GetState() == typev1.DriverState_DRIVER_STATE_INSTALLED, Graphics: d.GetGraphics(),
	}, err
}

// An Installer is a version of the driver and where it comes from.
type Installer struct {
	Version string
	Source  string // URL or absolute path; empty: where NVIDIA publishes it
	SHA256  string // empty: what is published beside it
}

// FetchInstaller brings an installer into the node's cache. progress is called with a line for a person.
func (n *Node) FetchInstaller(ctx context.Context, i Installer, progress func(message string)) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	stream, err := n.Drivers().FetchInstaller(ctx, &agentv1.FetchInstallerRequest{Version: i.Version, Url: i.Source, Sha256: i.SHA256})
	for err == nil {
		var resp *agentv1.FetchInstallerResponse
		resp, err = stream.Recv()
		if p := resp.GetProgress(); p != nil {
			progress(driverProgress(p))
		}
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// An Install puts a version of the driver into a running container.
type Install struct {
	CTID     int32
	Instance string // the start that is meant; empty: whatever runs
	Version  string
	Graphics bool // the libraries for graphics too
}

// InstallDriver installs a driver from the node's cache. It reports whether it had to. progress is as for FetchInstaller.
func (n *Node) InstallDriver(ctx context.Context, i Install, progress func(message string)) (installed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	stream, err := n.Drivers().InstallDriver(ctx, &agentv1.InstallDriverRequest{
		Ctid: i.CTID, Instance: i.Instance, Version: i.Version, Graphics: i.Graphics,
	})
	var result *agentv1.InstallDriverResult
	for err == nil {
		var resp *agentv1.InstallDriverResponse
		resp, err = stream.Recv()
		if p := resp.GetProgress(); p != nil {
			progress(driverProgress(p))
		}
		if r := resp.GetResult(); r != nil {
			result = r
		}
	}
	switch {
	case err != io.EOF:
		return false, err
	case result == nil:
		return false, fmt.Errorf("node %s: the installation in CTID %d ended without an answer", n.name, i.CTID)
	}
	return result.GetInstalled(), nil
}

// A DriverCheck is what using a container's driver gave.
type DriverCheck struct {
	Version  string   // that nvidia-smi reports; empty if it reports none
	Problems []string // one sentence each
	CUDA     bool     // whether CUDA was found to work; false also if there is no library to try
}

// VerifyDriver uses the driver of a running container, which is to show exactly the GPUs and MIG devices with these UUIDs.
func (n *Node) VerifyDriver(ctx context.Context, ctid int32, instance string, uuids []string) (DriverCheck, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	resp, err := n.Drivers().VerifyDriver(ctx, &agentv1.VerifyDriverRequest{Ctid: ctid, Instance: instance, Uuids: uuids})
	c := resp.GetCheck()
	check := DriverCheck{
		Version: c.GetSmiVersion(), Problems: c.GetProblems(),
		CUDA: c.GetCuda() == typev1.CudaCheck_CUDA_CHECK_RAN && c.GetCudaResult() == 0,
	}
	if err == nil && !c.GetOk() && len(check.Problems) == 0 {
		check.Problems = []string{"its agent does not say what is wrong"}
	}
	return check, err
}

// driverProgress is a line such as "download: 12 of 380 MiB".
func driverProgress(p *typev1.DriverProgress) string {
	const mib = 1 << 20
	text := lower(p.GetPhase().String(), "DRIVER_PHASE_")
	switch {
	case p.GetTotalBytes() > 0:
		text += fmt.Sprintf(": %d of %d MiB", p.GetDoneBytes()/mib, p.GetTotalBytes()/mib)
	case p.GetDoneBytes() > 0:
		text += fmt.Sprintf(": %d MiB", p.GetDoneBytes()/mib)
	}
	return strings.ReplaceAll(text, "_", " ")
}
