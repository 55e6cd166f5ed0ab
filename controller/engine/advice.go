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
	case node.InstallerUnavailable:
		return "apply again when the source answers, and it goes on where it was broken off; or name a mirror or a file with nvidia_runfile_url"
	case node.InstallerSourceNotAllowed:
		return fmt.Sprintf("correct nvidia_runfile_url, or add its source to driver_sources of the agent on %s", name)
	case node.InstallerChecksumMismatch:
		return "correct nvidia_runfile_sha256, or find out who changed the installer"
	case node.LibcNotSupported:
		return "take the feature nvidia away, or set driver_mode to none"
	case node.StopTimeout:
		return "apply again with a longer restart timeout"
	case node.DeviceNodeMissing:
		if e.Metadata["ctid"] == "" {
			return "" // nothing was stopped, and the message says what is missing
		}
		return fmt.Sprintf("the container is stopped: bring %s back on %s, or take its line out of the conf, then apply with start", e.Metadata["path"], name)
	case node.HAPending:
		return fmt.Sprintf("look at what the HA manager does (ha-manager status on %s), then apply again", name)
	case node.HARefused:
		return fmt.Sprintf("look at ha-manager status on %[2]s; from the state error it comes by ha-manager set ct:%[1]d --state disabled", ctid, name)
	case node.HookFailed:
		return fmt.Sprintf("the container is stopped: correct its hookscript (pct config %d on %s names it), then apply with start", ctid, name)
	case node.InitDied:
		return fmt.Sprintf("the container is stopped: look into its file system (pct mount %d on %s) for why its init ends, then apply with start", ctid, name)
	case node.StartFailed:
		return fmt.Sprintf("the container is stopped: look at why with pct start %d --debug on %s", ctid, name)
	case node.StartRolledBack:
		return "the container runs with its old conf" + rolledBack(e.Metadata["cause"])
	}
	return ""
}

// rolledBack says what to look at before the new conf is tried again.
func rolledBack(cause string) string {
	switch cause {
	case node.ReasonName(node.InitDied):
		return "; see what the new one puts in the way of its init (conf diff of its revision), then apply again"
	case node.ReasonName(node.DeviceNodeMissing):
		return "; bring the device back, then apply again"
	case node.ReasonName(node.HookFailed):
		return "; correct its hookscript, then apply again"
	}
	return ""
}
