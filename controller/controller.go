// Package controller makes the fleet's containers what the fleet file says. [Run] is the daemon; [Local] is the same
// inside phoenix-cli.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/server"
	"phoenix.internal/controller/store"
)

// stopGrace is the time that steps and calls under way have when the daemon stops. It is below the 90 s after which
// systemd kills. A variable for tests only.
var stopGrace = 20 * time.Second

// storeFile is the name of the store in the state directory.
const storeFile = "controller.db"

// Run is the daemon: it answers callers and carries out runs until ctx is done, then lets the steps under way end,
// and returns nil. A run that has not ended then is taken up again by the next Run with the same state directory.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return Serve(ctx, cfg, l, cfg.Log.Logger())
}

// Serve is [Run] on a listener that is there already; it closes l.
func Serve(ctx context.Context, cfg Config, l net.Listener, log *slog.Logger) (err error) {
	defer func() {
		if closeErr := l.Close(); !errors.Is(closeErr, net.ErrClosed) {
			err = errors.Join(err, closeErr)
		}
	}()
	credentials, err := cfg.TLS.Load(pki.Serve, pki.Call)
	if err != nil {
		return err
	}
	agents, err := node.Dial(nodeConfigs(cfg.Nodes), credentials.Client(""), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agents.Close()) }()
	state, err := store.Open(filepath.Join(cfg.StateDir, storeFile))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, state.Close()) }()

	eng := engine.New(engine.Config{
		FleetFile: cfg.FleetFile, FeaturesDir: cfg.FeaturesDir, Agents: engine.Nodes(agents), Store: state, Log: log,
	})
	defer eng.Close() // before the store and the agents
	srv := server.New(server.API{Nodes: agents, Engine: eng, Log: log}, credentials.Server())
	if err := eng.Resume(ctx); err != nil {
		return fmt.Errorf("take up earlier runs: %w", err)
	}

	log.InfoContext(ctx, "controller is up", "address", l.Addr().String(), "nodes", agents.Names(), "version", Version())
	if err := notify("READY=1"); err != nil {
		log.WarnContext(ctx, "systemd was not told", "err", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return srv.Serve(ctx, server.Limit(l), stopGrace) })
	g.Go(func() error {
		<-ctx.Done()
		log.InfoContext(ctx, "controller stops")
		if err := notify("STOPPING=1"); err != nil {
			log.WarnContext(ctx, "systemd was not told", "err", err)
		}
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		eng.Drain(drain)
		eng.Close()
		return nil
	})
	return g.Wait()
}

func nodeConfigs(nodes []Node) []node.Config {
	var configs []node.Config
	for _, n := range nodes {
		configs = append(configs, node.Config{Name: n.Name, Address: n.Address})
	}
	return configs
}
