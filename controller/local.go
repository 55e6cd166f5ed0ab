package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"phoenix.internal/controller/engine"
	"phoenix.internal/controller/node"
	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/server"
)

// LocalConfig is what a controller inside phoenix-cli works with. The zero value can validate fleet files.
type LocalConfig struct {
	Agents      []Node
	TLS         pki.Files // only read if there are agents
	FleetFile   string
	FeaturesDir string
	StateDir    string       // default: phoenix in $XDG_STATE_HOME, or in ~/.local/state
	Who         string       // who is named in runs; default: the user's name
	Log         *slog.Logger // default: none
}

// localGrace is the time that calls under way have when a local controller is closed.
const localGrace = 2 * time.Second

// Local starts a controller in this process and returns a connection to its API, and what ends both. Nothing listens
// on the network: the connection is a pipe in memory. The store is opened when a call first needs it, so what needs
// none works while another phoenix-cli applies; runs that an earlier process left unfinished are then marked as
// interrupted. A run ends with its process: closeAll breaks off what is under way, but for a restart, which the agent
// finishes, and marks it as interrupted too. ctx is only for the start.
//
// Errors name the key of the setting, as in cli.yaml.
func Local(ctx context.Context, cfg LocalConfig) (conn *grpc.ClientConn, closeAll func() error, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.StateDir == "" {
		if cfg.StateDir, err = userStateDir(); err != nil {
			return nil, nil, err
		}
	}
	if cfg.Who == "" {
		cfg.Who = userName()
	}
	settings, err := cfg.validate()
	if err != nil {
		return nil, nil, err
	}
	agents, err := node.Dial(nodeConfigs(cfg.Agents), settings, cfg.Log)
	if err != nil {
		return nil, nil, err
	}
	state := &lazyStore{path: filepath.Join(cfg.StateDir, storeFile)}
	eng := engine.New(engine.Config{
		FleetFile: cfg.FleetFile, FeaturesDir: cfg.FeaturesDir, Agents: engine.Nodes(agents), Store: state, Log: cfg.Log,
	})
	state.opened = eng.MarkInterrupted
	srv := server.NewLocal(server.API{Nodes: agents, Engine: eng, Log: cfg.Log}, cfg.Who)

	pipe := bufconn.Listen(1 << 20)
	// No TLS: both ends are this process.
	conn, err = grpc.NewClient("passthrough:///local",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableServiceConfig(),
		grpc.WithStaticStreamWindowSize(128<<10), // as over the network
		grpc.WithStaticConnWindowSize(4<<20))
	if err != nil {
		return nil, nil, errors.Join(err, agents.Close())
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(serving, pipe, localGrace) }()
	closeAll = func() error {
		eng.Close() // the runs first, so that their watchers see them stop
		stop()
		return errors.Join(conn.Close(), <-served, state.ifOpen(eng.MarkInterrupted), agents.Close(), state.Close())
	}
	return conn, closeAll, nil
}

// validate returns the TLS settings for the agents; nil if there are none.
func (c LocalConfig) validate() (*tls.Config, error) {
	errs := validateNodes("agents", c.Agents)
	if c.FeaturesDir != "" {
		if _, err := os.ReadDir(c.FeaturesDir); err != nil {
			errs = append(errs, fmt.Errorf("features_dir: %w", err))
		}
	}
	if len(c.Agents) == 0 {
		return nil, errors.Join(errs...)
	}
	credentials, err := c.TLS.Load(pki.Call)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	return credentials.Client(""), nil
}

func userStateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) { // the specification says to ignore others
		return filepath.Join(dir, "phoenix"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("state_dir: not set, and no default: %w", err)
	}
	return filepath.Join(home, ".local", "state", "phoenix"), nil
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}
