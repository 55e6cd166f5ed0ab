package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"phoenix.internal/agent/bootguard"
	"phoenix.internal/agent/confstore"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/gpu"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/nvml"
)

// guardTimeout bounds the boot guard: containers start after it, done or not. Its unit gives it a little more.
const guardTimeout = 4 * time.Minute

// GuardBoot does the work of a boot once, before containers start; see [bootguard.Guard]. It serves nobody. If an agent
// runs it does nothing: that has done it, or is doing it.
func GuardBoot(ctx context.Context, cfg Config, log *slog.Logger) error {
	unix.Umask(0o022)
	state, err := lockState(ctx, cfg.StateDir)
	if held, ok := errors.AsType[*StateHeldError](err); ok {
		log.Info("nothing done: an agent runs, which guards the boot itself", "pid", held.Holder)
		return nil
	} else if err != nil {
		return err
	}
	defer state.Close()
	library := &nvml.Client{Program: cfg.NVMLProgram, Log: log}
	defer library.Close()
	ctx, cancel := context.WithTimeout(ctx, guardTimeout)
	defer cancel()
	return (&bootguard.Guard{Containers: newManager(cfg, library, log), Log: log}).Run(ctx)
}

// guardLate does in an agent what its boot guard has not done in this boot: its unit is not installed, or the cluster had
// no quorum for too long. It returns a function that waits for the end.
func guardLate(ctx context.Context, containers *container.Manager, log *slog.Logger) (wait func()) {
	guard := &bootguard.Guard{Containers: containers, PVEWait: guardTimeout, Log: log}
	if guard.Done() {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, guardTimeout)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := guard.Run(ctx); err != nil {
			log.Error("boot not guarded", "err", err)
		}
	}()
	return func() { cancel(); <-done }
}

func newManager(cfg Config, library *nvml.Client, log *slog.Logger) *container.Manager {
	return &container.Manager{
		Confs: &confstore.Store{
			RevisionDir: filepath.Join(cfg.StateDir, "revisions"),
			Settled:     lxcmon.Client{}.Settled,
		},
		GPUs:           &gpu.Scanner{NVML: library},
		Runtime:        &container.Proxmox{},
		StateDir:       cfg.StateDir,
		AllowedOptions: cfg.AllowedLXCOptions,
		Log:            log,
	}
}
