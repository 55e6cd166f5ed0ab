// Package agent is phoenix-agent: the daemon that is the only thing to touch a Proxmox VE host.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"phoenix.internal/agent/attach"
	"phoenix.internal/agent/container"
	"phoenix.internal/agent/driver"
	"phoenix.internal/agent/health"
	"phoenix.internal/agent/nvml"
	"phoenix.internal/agent/probe"
	"phoenix.internal/agent/server"
	"phoenix.internal/agent/transfer"
)

// Run serves until ctx ends. It returns when everything it started has ended.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := closeOnExec(); err != nil {
		return err
	}
	// pct and the commands in containers inherit it. Files of ours are made with modes of their own.
	unix.Umask(0o022)

	state, err := lockState(ctx, cfg.StateDir)
	if err != nil {
		return err
	}
	defer state.Close()
	tlsConfig, err := server.TLS(server.TLSFiles(cfg.TLS))
	if err != nil {
		return err
	}
	library := &nvml.Client{Program: cfg.NVMLProgram, Log: log}
	defer library.Close()
	manager := newManager(cfg, library, log)
	if removed, err := manager.Confs.Sweep(); err != nil {
		log.Warn("leftovers of an earlier agent not removed", "err", err)
	} else if len(removed) > 0 {
		log.Info("leftovers of an earlier agent removed", "files", removed)
	}
	attacher := attach.Attacher{}
	installers := &driver.Cache{Dir: filepath.Join(cfg.StateDir, "driver"), Sources: cfg.DriverSources}
	if err := installers.Sweep(); err != nil {
		log.Warn("leftovers of an earlier agent not removed", "err", err)
	}
	srv := server.New(&server.Node{
		Name:       cfg.Node,
		Version:    Version(),
		Started:    time.Now(),
		Containers: manager,
		Prober:     &probe.Prober{Attacher: attacher},
		Attacher:   attacher,
		Files:      &transfer.Mover{Attacher: attacher},
		Drivers:    &driver.Installer{Cache: installers, Attacher: attacher},
		Health: &health.Monitor{
			KernelLog: cfg.KernelLog,
			File:      filepath.Join(cfg.StateDir, "health.json"),
			Classes:   cfg.xidClasses(),
			Present:   manager.GPUs.Served,
			Log:       log,
		},
		Facts: server.Facts{LXCVersion: lxcVersion(ctx)},
		Log:   log,
	}, tlsConfig)
	defer guardLate(ctx, manager, log)()
	return Serve(ctx, cfg.Listen, srv, manager, log)
}

// Serve finishes the restarts that an earlier agent left, and serves at address, until ctx ends.
func Serve(ctx context.Context, address string, srv *server.Server, manager *container.Manager, log *slog.Logger) error {
	// The locks of interrupted restarts are taken before anybody can ask for those containers.
	finish, err := manager.Recover(ctx)
	if err != nil {
		return err
	}
	lis, err := listen(ctx, address, log)
	if errors.Is(err, unix.EADDRINUSE) {
		// Most likely another agent serves: then those restarts are under way in it and not interrupted at all.
		return fmt.Errorf("listen: %w; is another phoenix-agent running?", err)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("listen: %w", err), finish(ctx))
	}
	log.Info("agent serves", "address", lis.Addr().String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := finish(ctx); err != nil {
			log.Error("interrupted restart not finished", "err", err)
		}
		return nil
	})
	group.Go(func() error { return srv.Serve(ctx, lis) })
	if err := notify("READY=1"); err != nil {
		log.Warn("systemd not notified", "err", err)
	}
	return group.Wait()
}

// listen listens at address. One that is in use may be free in a moment: a child that an agent was starting when it was
// killed holds the agent's socket until it has become another program.
func listen(ctx context.Context, address string, log *slog.Logger) (net.Listener, error) {
	const patience = 5 * time.Second
	for begin := time.Now(); ; {
		lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if !errors.Is(err, unix.EADDRINUSE) || time.Since(begin) > patience {
			return lis, err
		}
		log.Warn("address in use; trying again", "address", address)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// notify tells systemd about the state of the service (sd_notify(3)); without systemd it does nothing.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return errors.Join(err, conn.Close())
}

// closeOnExec makes sure that nothing this process was started with leaks into a container (threat model, D4).
func closeOnExec() error {
	const first, last = 3, 1<<31 - 1
	if err := unix.CloseRange(first, last, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	return nil
}

// lxcVersion asks LXC's tools for their version; empty if they do not say.
func lxcVersion(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/usr/bin/lxc-start", "--version").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
