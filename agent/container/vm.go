package container

import (
	"context"
	"errors"

	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/vmconf"
)

// A VM is a virtual machine of the node, as far as containers care: it may take devices that they have.
type VM struct {
	VMID int32
	PCI  vmconf.HostPCI
	Err  error // why its conf could not be read; PCI is then empty
}

// VMs returns the virtual machines of this node, ascending. It reads their confs and starts no process, so it does not
// tell which of them run.
func (m *Manager) VMs(ctx context.Context) ([]VM, error) {
	vmids, err := m.Confs.VMs()
	if err != nil {
		return nil, err
	}
	var vms []VM
	for _, vmid := range vmids {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		b, err := m.Confs.ReadVM(vmid)
		switch {
		case errors.Is(err, confstore.ErrNotFound):
			continue // destroyed or migrated since VMs listed it
		case errors.Is(err, confstore.ErrNoAnswer):
			return nil, err // nor would the next one be
		}
		vms = append(vms, VM{VMID: vmid, PCI: vmconf.Parse(b), Err: err})
	}
	return vms, nil
}
