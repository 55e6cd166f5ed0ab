package container

// ForgetApplied is [Manager.List]'s farewell to containers that are not among ctids.
func (m *Manager) ForgetApplied(ctids []int32) { m.forgetApplied(ctids) }
