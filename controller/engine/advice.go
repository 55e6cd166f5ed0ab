package engine

import (
	"errors"
	"fmt"

	"phoenix.internal/controller/node"
	"phoenix.internal/controller/plan"
)

// title names a step for people.
func title(kind plan.Kind, feature string) string {
	switch kind {
	case plan.CheckDevices:
		return "check devices"
	case plan.PatchConf:
		return "patch conf"
	case plan.Restart:
		return "restart"
	case plan.VerifyDevices:
		return "verify devices"
	case plan.InstallDriver:
		return "install driver"
	case plan.VerifyDriver:
		return "verify driver"
	case plan.Feature:
		return "feature " + feature
	case plan.HealthCheck:
		return "health check"
	}
	return fmt.Sprintf("step of kind %d", kind)
}

// advice says what to do about a failure, where the agent's words alone do not.
func advice(err error, ctid int32, name string) string {
	e, ok := errors.AsType[*node.Error](err)
	if !ok {
		return ""
	}
	switch e.Reason {
	case node.ContainerLocked:
		return fmt.Sprintf("an operation of Proxmox is under way: apply again when it has ended; if it crashed, run pct unlock %d on %s first", ctid, name)
	case node.ConfLockTimeout:
		return "apply again when the process that holds the lock has ended"
	case node.ContainerStopping:
		return fmt.Sprintf("apply again when its stop has ended (systemctl status pve-container@%d on %s)", ctid, name)
	case node.NoQuorum:
		return "bring the cluster's other nodes back (pvecm status), then apply again"
	case node.ConfFSUnavailable:
		return "look at the cluster file system (systemctl status pve-cluster), then apply again"
	case node.DigestMismatch:
		return "something else keeps changing the conf: find it, then apply again"
	case node.InstanceChanged:
		return "something else keeps restarting the container: find it, then apply again"
	case node.GPUNotFound:
		return "correct gpu_assignment, or the hardware"
	case node.GPUBoundElsewhere:
		return "bind the GPU to the nvidia driver, or assign another"
	case node.DriverNotLoaded:
		return fmt.Sprintf("load the driver on %s (modprobe nvidia), then apply again", name)
	case node.StopTimeout:
		return "apply again with a longer restart timeout"
	case node.StartFailed:
		return fmt.Sprintf("the container is stopped: look at why with pct start %d --debug on %s", ctid, name)
	case node.StartRolledBack:
		return "the container runs with its old conf"
	}
	return ""
}
