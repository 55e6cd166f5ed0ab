package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/viper"

	"phoenix.internal/agent/driver"

	"phoenix.internal/agent/xid"
)

// Config is everything that can be set. Its keys, in a YAML file, are the names in the tags; PHOENIX_AGENT_ and a key in
// capitals, with _ for the dot, set it from the environment.
type Config struct {
	Node              string    `mapstructure:"node"`                // name of this node; default: the host name up to the first dot
	Listen            string    `mapstructure:"listen"`              // host:port
	TLS               TLSConfig `mapstructure:"tls"`                 // all required
	StateDir          string    `mapstructure:"state_dir"`           // revisions, unfinished restarts
	AllowedLXCOptions []string  `mapstructure:"allowed_lxc_options"` // key=value
	DriverSources     []string  `mapstructure:"driver_sources"`      // prefixes of URLs and paths of driver installers, ending in /
	Log               LogConfig `mapstructure:"log"`
	KernelLog         string    `mapstructure:"kernel_log"`   // where errors of GPUs are read
	NVMLProgram       string    `mapstructure:"nvml_program"` // path of phoenix-nvml; empty: beside this program
	// XIDClasses overrides the class of errors of GPUs: the XID, and a name as xid.ParseClass takes it.
	XIDClasses map[string]string `mapstructure:"xid_classes"`
}

// TLSConfig names PEM files.
type TLSConfig struct {
	CertFile string `mapstructure:"cert_file"`
	KeyFile  string `mapstructure:"key_file"`
	CAFile   string `mapstructure:"ca_file"`
}

// LogConfig is how to log to stderr.
type LogConfig struct {
	Level  string `mapstructure:"level"`  // debug, info, warn or error
	Format string `mapstructure:"format"` // text or json
}

// LoadConfig reads the file at path over the defaults, and the environment over both. Unknown keys are errors.
func LoadConfig(path string) (Config, error) {
	host, err := os.Hostname()
	if err != nil {
		return Config{}, fmt.Errorf("name of this node: %w", err)
	}
	node, _, _ := strings.Cut(host, ".")
	v := viper.New()
	for key, value := range map[string]any{
		"node":                node,
		"listen":              ":7461",
		"tls.cert_file":       "",
		"tls.key_file":        "",
		"tls.ca_file":         "",
		"state_dir":           "/var/lib/phoenix",
		"allowed_lxc_options": []string{},
		"kernel_log":          "/dev/kmsg",
		"nvml_program":        "",
		"xid_classes":         map[string]string{},
		"driver_sources":      driver.DefaultSources,
		"log.level":           "info",
		"log.format":          "text",
	} {
		v.SetDefault(key, value)
	}
	v.SetEnvPrefix("PHOENIX_AGENT")
	v.SetEnvKeyReplacer(strings.NewReplacer(".", "_"))
	v.AutomaticEnv()
	v.SetConfigFile(path)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		return Config{}, fmt.Errorf("config %s: %w", path, err)
	}
	var cfg Config
	if err := v.UnmarshalExact(&cfg); err != nil {
		return Config{}, fmt.Errorf("config %s: %w", path, err)
	}
	if err := cfg.Validate(); err != nil {
		return Config{}, fmt.Errorf("config %s:\n%w", path, err)
	}
	return cfg, nil
}

var (
	nodePattern   = regexp.MustCompile(`\A[A-Za-z0-9]([A-Za-z0-9-]{0,62})\z`)
	optionPattern = regexp.MustCompile(`\Alxc\.[a-z0-9_.-]+=[^\s=]+\z`)
)

// Validate reports every problem, each with its key.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if !nodePattern.MatchString(c.Node) {
		bad("node", "%q is no host name without dots", c.Node)
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		bad("listen", "%q is not host:port", c.Listen)
	}
	for _, file := range []struct{ key, path string }{
		{"tls.cert_file", c.TLS.CertFile},
		{"tls.key_file", c.TLS.KeyFile},
		{"tls.ca_file", c.TLS.CAFile},
	} {
		if file.path == "" {
			bad(file.key, "is required: the agent speaks mutual TLS only")
		} else if _, err := os.Stat(file.path); errors.Is(err, fs.ErrNotExist) {
			bad(file.key, "%s: no such file", file.path)
		} else if err != nil {
			bad(file.key, "%v", err)
		}
	}
	if !strings.HasPrefix(c.StateDir, "/") {
		bad("state_dir", "%q is not an absolute path", c.StateDir)
	}
	for i, option := range c.AllowedLXCOptions {
		if !optionPattern.MatchString(option) {
			bad(fmt.Sprintf("allowed_lxc_options[%d]", i), "%q is not lxc.KEY=VALUE", option)
		}
	}
	if !strings.HasPrefix(c.KernelLog, "/") {
		bad("kernel_log", "%q is not an absolute path", c.KernelLog)
	}
	if c.NVMLProgram != "" && !strings.HasPrefix(c.NVMLProgram, "/") {
		bad("nvml_program", "%q is not an absolute path", c.NVMLProgram)
	}
	for _, code := range slices.Sorted(maps.Keys(c.XIDClasses)) {
		if n, err := strconv.Atoi(code); err != nil || n < 1 {
			bad("xid_classes", "%q is no XID", code)
		}
		if _, err := xid.ParseClass(c.XIDClasses[code]); err != nil {
			bad("xid_classes."+code, "%v", err)
		}
	}
	for i, prefix := range c.DriverSources {
		if err := driver.CheckSource(prefix); err != nil {
			bad(fmt.Sprintf("driver_sources[%d]", i), "%q %v", prefix, err)
		}
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		bad("log.level", "%q is none of debug, info, warn, error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		bad("log.format", "%q is neither text nor json", c.Log.Format)
	}
	return errors.Join(errs...)
}

// xidClasses returns XIDClasses by number. The configuration must be valid.
func (c Config) xidClasses() map[int]xid.Class {
	classes := map[int]xid.Class{}
	for code, name := range c.XIDClasses {
		n, _ := strconv.Atoi(code)           // checked by Validate
		classes[n], _ = xid.ParseClass(name) // checked by Validate
	}
	return classes
}

// Logger makes the logger that the configuration asks for. The configuration must be valid.
func (c Config) Logger(w *os.File) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Log.Level)) // checked by Validate
	opts := &slog.HandlerOptions{Level: level}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts)).With("node", c.Node)
	}
	return slog.New(slog.NewTextHandler(w, opts)).With("node", c.Node)
}
