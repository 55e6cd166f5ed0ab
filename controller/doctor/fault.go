package doctor

// A Fault is a kind of thing that keeps a container from its GPUs, or that a person should know. docs/doctor.md has the
// list; a test holds that it is complete.
type Fault string

// The faults, in the order of the chain.
const (
	AgentAway    Fault = "agent_away"
	NoContainer  Fault = "no_container"
	SeveralNodes Fault = "several_nodes"
	WrongNode    Fault = "wrong_node"
	NoQuorum     Fault = "no_quorum"

	NoCard   Fault = "no_card"
	CardGone Fault = "card_gone"

	BoundVFIO       Fault = "bound_vfio"
	BoundNouveau    Fault = "bound_nouveau"
	BoundOther      Fault = "bound_other"
	Unbound         Fault = "unbound"
	ModuleNotLoaded Fault = "module_not_loaded"
	UpgradePending  Fault = "upgrade_pending"
	HostLibraries   Fault = "host_libraries"

	OffBus      Fault = "off_bus"
	NeedsReset  Fault = "needs_reset"
	NeedsReboot Fault = "needs_reboot"
	Defective   Fault = "defective"
	NotListed   Fault = "not_listed"
	GPUWarning  Fault = "gpu_warning"

	UVMNotLoaded Fault = "uvm_not_loaded"
	NodeGone     Fault = "node_missing"
	StaleNode    Fault = "node_stale"
	NoDevice     Fault = "node_no_device"
	NodeMode     Fault = "node_mode"

	MIGWhole Fault = "mig_whole"
	MIGOff   Fault = "mig_off"
	MIGGone  Fault = "mig_gone"

	NotInFleet    Fault = "not_in_fleet"
	Unmanaged     Fault = "unmanaged"
	GPUMoved      Fault = "gpu_moved"
	NoSuchGPU     Fault = "no_such_gpu"
	NotAssignable Fault = "not_assignable"

	Unreadable      Fault = "unreadable"
	ModeConflict    Fault = "mode_conflict"
	OnlyInSnapshot  Fault = "only_in_snapshot"
	OnlyInPending   Fault = "only_in_pending"
	WithoutEffect   Fault = "line_without_effect"
	NotGiven        Fault = "not_given"
	GivesMore       Fault = "gives_more"
	ClonedEntries   Fault = "cloned_entries"
	GivesGone       Fault = "gives_gone"
	GivesShared     Fault = "gives_shared"
	OtherMode       Fault = "other_mode"
	LacksUse        Fault = "lacks_use"
	MoreUses        Fault = "more_uses"
	WrongMajor      Fault = "wrong_major"
	Wildcard        Fault = "wildcard_rule"
	RuleAlone       Fault = "rule_alone"
	RuleMissing     Fault = "rule_missing"
	ControlMissing  Fault = "control_missing"
	DeviceGone      Fault = "device_gone"
	InvalidLine     Fault = "invalid_line"
	Duplicate       Fault = "duplicate_entry"
	NoEffect        Fault = "no_effect"
	HiddenLine      Fault = "hidden_line"
	SnapshotEntries Fault = "snapshot_entries"
	PendingEntries  Fault = "pending_entries"
	Privileged      Fault = "privileged"

	Template       Fault = "template"
	Locked         Fault = "locked"
	Stopped        Fault = "stopped"
	Frozen         Fault = "frozen"
	InTransition   Fault = "in_transition"
	LockedRunning  Fault = "locked_running"
	RestartPending Fault = "restart_pending"

	ProbeFailed   Fault = "probe_failed"
	Leak          Fault = "leak"
	NoDriver      Fault = "no_driver_answers"
	Denied        Fault = "denied"
	NoPermission  Fault = "no_permission"
	Absent        Fault = "absent"
	Ghost         Fault = "ghost_file"
	OldNumbers    Fault = "old_numbers"
	Hangs         Fault = "hangs"
	OpenFailed    Fault = "open_failed"
	DockerCgroups Fault = "docker_cgroups"
	StaleCDI      Fault = "cdi_stale"

	Musl            Fault = "musl"
	NoLibc          Fault = "no_libc"
	Packaged        Fault = "packaged"
	NoUserSpace     Fault = "no_user_space"
	VersionMismatch Fault = "version_mismatch"
	Incomplete      Fault = "incomplete"

	SMIFails   Fault = "smi_fails"
	SMIMissing Fault = "smi_missing"
	SMIMore    Fault = "smi_more"

	CUDAFails Fault = "cuda_fails"
)
