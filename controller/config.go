package controller

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"

	"phoenix.internal/controller/pki"
)

// Config is what the daemon is told at its start. deploy/config/controller.sample.yaml describes every key.
type Config struct {
	Listen      string    `mapstructure:"listen"` // host:port; an empty host means every address
	TLS         pki.Files `mapstructure:"tls"`
	Nodes       []Node    `mapstructure:"nodes"`
	FleetFile   string    `mapstructure:"fleet_file"`   // empty: none yet
	FeaturesDir string    `mapstructure:"features_dir"` // empty: no feature has a script
	StateDir    string    `mapstructure:"state_dir"`
	Log         LogConfig `mapstructure:"log"`
}

// A Node is where the agent of one node listens.
type Node struct {
	Name    string `mapstructure:"name"`    // must be a DNS name in the agent's certificate
	Address string `mapstructure:"address"` // host:port
}

// LogConfig says what is logged to stderr.
type LogConfig struct {
	Level  string `mapstructure:"level"`  // debug, info, warn or error
	Format string `mapstructure:"format"` // text or json
}

// defaults holds every key that a file or the environment may set, with the value it has if neither does.
var defaults = map[string]any{
	"listen":        ":7460",
	"tls.cert_file": "",
	"tls.key_file":  "",
	"tls.ca_file":   "",
	"nodes":         nil,
	"fleet_file":    "",
	"features_dir":  "",
	"state_dir":     "/var/lib/phoenix-controller",
	"log.level":     "info",
	"log.format":    "text",
}

const envPrefix = "PHOENIX_CONTROLLER"

// ReadConfig reads a YAML file. A variable of the environment wins over it: PHOENIX_CONTROLLER_TLS_CERT_FILE over
// tls.cert_file; PHOENIX_CONTROLLER_NODES is NAME=HOST:PORT,NAME=HOST:PORT. Unknown keys and variables are errors. The
// result still needs [Config.Validate].
func ReadConfig(path string) (Config, error) {
	c, err := readConfig(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration %s: %w", path, err)
	}
	return c, nil
}

func readConfig(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, errors.Unwrap(err) // without the path
	}
	v := viper.New()
	v.SetConfigType("yaml")
	v.SetEnvPrefix(envPrefix)
	v.SetEnvKeyReplacer(strings.NewReplacer(".", "_"))
	for key, value := range defaults {
		v.SetDefault(key, value)
		if err := v.BindEnv(key); err != nil {
			return Config{}, err // only without a key
		}
	}
	if err := v.ReadConfig(bytes.NewReader(text)); err != nil {
		if parse, ok := errors.AsType[viper.ConfigParseError](err); ok {
			err = parse.Unwrap()
		}
		return Config{}, err
	}

	var c Config
	var found mapstructure.Metadata
	err = v.Unmarshal(&c, func(d *mapstructure.DecoderConfig) { d.Metadata, d.DecodeHook = &found, convert })
	errs := decodeErrors(err)
	slices.Sort(found.Unused)
	for _, key := range found.Unused {
		errs = append(errs, fmt.Errorf("%s: unknown key", key))
	}
	return c, errors.Join(append(errs, unknownVariables()...)...)
}

// convert makes the nodes of text, and refuses what has the wrong shape in words that need no Go.
func convert(from, to reflect.Type, value any) (any, error) {
	if from.Kind() == reflect.String && to == reflect.TypeFor[[]Node]() {
		return nodesFromText(value.(string))
	}
	shapes := map[reflect.Kind]string{reflect.Map: "a section", reflect.Struct: "a section", reflect.Slice: "a list"}
	shape := func(t reflect.Type) string { return cmp.Or(shapes[t.Kind()], "text") }
	if value != nil && shape(from) != shape(to) {
		return nil, fmt.Errorf("want %s, got %s", shape(to), shape(from))
	}
	return value, nil
}

func nodesFromText(text string) ([]Node, error) {
	var nodes []Node
	for element := range strings.SplitSeq(text, ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(element), "=")
		if !ok {
			return nil, fmt.Errorf("%q: want NAME=HOST:PORT", element)
		}
		nodes = append(nodes, Node{Name: name, Address: address})
	}
	return nodes, nil
}

// decodeErrors takes mapstructure's error apart: one error for each key.
func decodeErrors(err error) []error {
	var errs []error
	switch e := err.(type) { // the tree is walked by hand, so errors.As is of no use
	case nil:
	case *mapstructure.DecodeError:
		errs = append(errs, fmt.Errorf("%s: %w", e.Name(), e.Unwrap()))
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			errs = append(errs, decodeErrors(one)...)
		}
	case interface{ Unwrap() error }:
		errs = decodeErrors(e.Unwrap())
	default:
		errs = append(errs, err)
	}
	return errs
}

func unknownVariables() (errs []error) {
	known := map[string]bool{}
	for key := range defaults {
		known[envPrefix+"_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))] = true
	}
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, envPrefix+"_") && !known[name] {
			errs = append(errs, fmt.Errorf("%s: unknown variable of the environment", name))
		}
	}
	return errs
}

// Validate reports every problem, joined, each with its key. It reads the certificate files.
func (c Config) Validate() error {
	var errs []error
	add := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	if _, err := hostPort(c.Listen); err != nil {
		add("listen", "%w", err)
	}
	if _, err := c.TLS.Load(pki.Serve, pki.Call); err != nil {
		errs = append(errs, err)
	}
	if len(c.Nodes) == 0 {
		add("nodes", "none; want a list of {name, address}")
	}
	errs = append(errs, validateNodes("nodes", c.Nodes)...)
	for _, p := range []struct{ key, path string }{{"fleet_file", c.FleetFile}, {"features_dir", c.FeaturesDir}} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			add(p.key, "%q is not an absolute path", p.path)
		}
	}
	if filepath.IsAbs(c.FeaturesDir) {
		if info, err := os.Stat(c.FeaturesDir); err != nil {
			add("features_dir", "%w", err)
		} else if !info.IsDir() {
			add("features_dir", "%s is not a directory", c.FeaturesDir)
		}
	}
	if !filepath.IsAbs(c.StateDir) {
		add("state_dir", "%q is not an absolute path", c.StateDir)
	}
	if _, err := logLevel(c.Log.Level); err != nil {
		add("log.level", "%w", err)
	}
	if f := c.Log.Format; f != "text" && f != "json" {
		add("log.format", "%q is none of text, json", f)
	}
	return errors.Join(errs...)
}

// nodeName is a DNS label, as host names of Proxmox nodes are.
var nodeName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)

func validateNodes(key string, nodes []Node) (errs []error) {
	names, addresses := map[string]int{}, map[string]int{}
	for i, n := range nodes {
		add := func(field, format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s[%d].%s: "+format, append([]any{key, i, field}, args...)...))
		}
		if !nodeName.MatchString(n.Name) {
			add("name", "%q is not the host name of a node", n.Name)
		} else if first, ok := names[n.Name]; ok {
			add("name", "%q is also the name of %s[%d]", n.Name, key, first)
		} else {
			names[n.Name] = i
		}
		if host, err := hostPort(n.Address); err != nil {
			add("address", "%w", err)
		} else if host == "" {
			add("address", "%q has no host", n.Address)
		} else if first, ok := addresses[n.Address]; ok {
			add("address", "%q is also the address of %s[%d]", n.Address, key, first)
		} else {
			addresses[n.Address] = i
		}
	}
	return errs
}

func hostPort(address string) (host string, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("%q is not HOST:PORT", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q: %q is not a port number", address, port)
	}
	return host, nil
}

func logLevel(name string) (slog.Level, error) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	}
	level, ok := levels[name]
	if !ok {
		return 0, fmt.Errorf("%q is none of debug, info, warn, error", name)
	}
	return level, nil
}

// Logger returns the logger that a valid configuration asks for; it writes to stderr.
func (c LogConfig) Logger() *slog.Logger {
	level, _ := logLevel(c.Level)
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}
