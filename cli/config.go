package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"phoenix.internal/controller/pki"
)

// Ports that are meant if an address names none.
const (
	controllerPort = "7460"
	agentPort      = "7461"
)

// A Config is the settings of one call of phoenix-cli: from flags, else from PHOENIX_* variables, else from a file.
type Config struct {
	// File is the file that was read; empty if there is none.
	File string `mapstructure:"-"`
	// set tells where each key was set: a flag, a variable or the file; absent if nowhere.
	set map[string]string

	Controller  string        `mapstructure:"controller"`   // host and port
	Agents      []string      `mapstructure:"agents"`       // [NAME=]host and port; makes the CLI its own controller
	TLS         pki.Files     `mapstructure:"tls"`          // this person's identity, PEM
	FleetFile   string        `mapstructure:"fleet_file"`   // only with Agents
	FeaturesDir string        `mapstructure:"features_dir"` // only with Agents
	StateDir    string        `mapstructure:"state_dir"`    // only with Agents: where runs are recorded
	Color       string        `mapstructure:"color"`        // "auto", "always" or "never"
	Timeout     time.Duration `mapstructure:"timeout"`      // of each call that is answered at once
	JSON        bool          `mapstructure:"-"`
}

// An Agent is one agent to work with when there is no controller.
type Agent struct {
	Name    string // of its node
	Address string // host and port
}

// settings are the keys of the file, each with its flag. The variable of a key is PHOENIX_ and the key in capitals,
// with _ for the dot.
var settings = []struct{ key, flag string }{
	{"controller", "controller"},
	{"agents", "agent"},
	{"tls.cert_file", "tls-cert"},
	{"tls.key_file", "tls-key"},
	{"tls.ca_file", "tls-ca"},
	{"fleet_file", "fleet"},
	{"features_dir", "features-dir"},
	{"state_dir", "state-dir"},
	{"color", "color"},
	{"timeout", "timeout"},
}

func globalFlags(f *pflag.FlagSet) {
	f.String("config", "", "`FILE` with settings; default ~/.config/phoenix/cli.yaml, then /etc/phoenix/cli.yaml")
	f.String("controller", "", "`ADDRESS` of the controller: HOST[:7460]")
	f.StringArray("agent", nil, "work without a controller, with the agent at `[NAME=]ADDRESS`, HOST[:7461]; repeatable")
	f.String("tls-cert", "", "`FILE` with this client's certificate, PEM")
	f.String("tls-key", "", "`FILE` with its private key, PEM")
	f.String("tls-ca", "", "`FILE` with the certificate authority, PEM")
	f.String("fleet", "", "fleet `FILE`; only with --agent")
	f.String("features-dir", "", "`DIR` with the scripts of features; only with --agent")
	f.String("state-dir", "", "`DIR` where runs are recorded; only with --agent (default ~/.local/state/phoenix)")
	f.String("color", "auto", "write in colour `WHEN`: auto, always or never")
	f.Duration("timeout", 2*time.Minute, "how long to wait for an answer")
	f.Bool("json", false, "write the API's messages as JSON")
}

// loadConfig reads the settings. Relative paths in the file are relative to the file's own directory; nothing is
// ever read from the working directory unasked.
func loadConfig(flags *pflag.FlagSet) (Config, error) {
	v := viper.New()
	for _, s := range settings {
		if err := v.BindEnv(s.key, envOf(s.key)); err != nil {
			return Config{}, err
		}
		if err := v.BindPFlag(s.key, flags.Lookup(s.flag)); err != nil {
			return Config{}, err
		}
	}
	file, err := configFile(flags)
	if err != nil {
		return Config{}, err
	}
	fromFile := viper.New()
	if file != "" {
		if err := readFile(fromFile, file); err != nil {
			return Config{}, err
		}
		if err := v.MergeConfigMap(fromFile.AllSettings()); err != nil {
			return Config{}, fmt.Errorf("settings file %s: %w", file, err)
		}
	}
	c := Config{File: file, set: map[string]string{}}
	for _, s := range settings {
		switch {
		case flags.Changed(s.flag):
			c.set[s.key] = "--" + s.flag
		case os.Getenv(envOf(s.key)) != "":
			c.set[s.key] = envOf(s.key)
		case fromFile.IsSet(s.key):
			c.set[s.key] = file
		}
	}
	if _, err := time.ParseDuration(v.GetString("timeout")); err != nil {
		err := fmt.Errorf("timeout: %q is not a time with its unit, as 30s is", v.GetString("timeout"))
		return Config{}, &usageError{err: fmt.Errorf("settings: %w", err), hint: c.where(err)}
	}
	if err := v.Unmarshal(&c); err != nil {
		return Config{}, fmt.Errorf("settings: %w", err)
	}
	c.JSON, _ = flags.GetBool("json")
	c.oneWay()
	return c, nil
}

// oneWay leaves only the way to work, controller or agents, that was said most closely: a flag beats a variable, a
// variable the file. Both at the same place are left for Validate to refuse.
func (c *Config) oneWay() {
	closeness := func(key string) int {
		switch set := c.set[key]; {
		case set == "":
			return 0
		case strings.HasPrefix(set, "--"):
			return 3
		case set == envOf(key):
			return 2
		default:
			return 1
		}
	}
	switch controller, agents := closeness("controller"), closeness("agents"); {
	case controller > agents:
		c.Agents = nil
	case agents > controller:
		c.Controller = ""
	}
}

func envOf(key string) string {
	return "PHOENIX_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// configFile returns the path of the file to read; empty if there is none.
func configFile(flags *pflag.FlagSet) (string, error) {
	path, _ := flags.GetString("config")
	if path == "" {
		path = os.Getenv("PHOENIX_CONFIG")
	}
	if path != "" {
		return path, nil
	}
	for _, path := range defaultFiles() {
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("look for settings: %w", err)
		}
	}
	return "", nil
}

func defaultFiles() []string {
	files := []string{"/etc/phoenix/cli.yaml"}
	if dir, err := os.UserConfigDir(); err == nil {
		files = slices.Insert(files, 0, filepath.Join(dir, "phoenix", "cli.yaml"))
	}
	return files
}

func readFile(v *viper.Viper, path string) error {
	v.SetConfigFile(path)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		if e, ok := errors.AsType[*os.PathError](err); ok {
			err = e.Err
		}
		return &usageError{
			err:  fmt.Errorf("settings file %s: %w", path, err),
			hint: "Correct it, or name another with --config or PHOENIX_CONFIG.",
		}
	}
	if err := checkKeys(v); err != nil {
		return &usageError{
			err:  fmt.Errorf("settings file %s: %w", path, err),
			hint: "The keys are " + strings.Join(keyNames(), ", ") + ".",
		}
	}
	dir := filepath.Dir(path)
	for _, key := range []string{"tls.cert_file", "tls.key_file", "tls.ca_file", "fleet_file", "features_dir", "state_dir"} {
		if p := v.GetString(key); p != "" && !filepath.IsAbs(p) {
			v.Set(key, filepath.Join(dir, p))
		}
	}
	return nil
}

// checkKeys returns every key that is not known or has a value of the wrong type: viper would take a number for
// nanoseconds, and a word for a list.
func checkKeys(v *viper.Viper) error {
	var problems []error
	keys := v.AllKeys()
	slices.Sort(keys)
	for _, key := range keys {
		value := v.Get(key)
		_, isText := value.(string)
		switch {
		case value == nil: // "tls:" with nothing in it
		case !slices.Contains(keyNames(), key):
			problems = append(problems, fmt.Errorf("%s: unknown key", key))
		case key == "agents":
			list, ok := value.([]any)
			for _, item := range list {
				_, isText := item.(string)
				ok = ok && isText
			}
			if !ok {
				problems = append(problems, fmt.Errorf("%s: not a list of [NAME=]HOST", key))
			}
		case !isText:
			problems = append(problems, fmt.Errorf("%s: %v is not a text", key, value))
		}
	}
	return oneToALine(problems)
}

func keyNames() []string {
	keys := make([]string, len(settings))
	for i, s := range settings {
		keys[i] = s.key
	}
	return keys
}

// oneToALine joins errors below each other; a single one stays in the line.
func oneToALine(problems []error) error {
	err := errors.Join(problems...)
	if err == nil || !strings.Contains(err.Error(), "\n") {
		return err
	}
	return fmt.Errorf("%d problems\n%w", strings.Count(err.Error(), "\n")+1, err)
}

// where says for problems, each with its key before a colon, where those were set or can be.
func (c *Config) where(problems error) string {
	var hints []string
	if controller, agents := c.set["controller"], c.set["agents"]; errors.Is(problems, errTwoWays) {
		hint := fmt.Sprintf("Leave out %s or %s.", controller, agents)
		if controller == agents {
			hint = "Leave one of them out of " + controller + "."
		}
		hints = append(hints, hint)
	}
	for line := range strings.Lines(problems.Error()) {
		keys, _, _ := strings.Cut(line, ":")
		for _, s := range settings {
			if keys != s.key {
				continue
			}
			hint := "Correct " + c.set[s.key] + "."
			switch isFile := strings.HasPrefix(s.key, "tls."); {
			case c.set[s.key] == "":
				hint = fmt.Sprintf("Give --%s or %s.", s.flag, envOf(s.key))
			case isFile && strings.Contains(line, "chmod"):
				hint = "Run: chmod 600 " + c.TLS.KeyFile
			case isFile:
				hint = "Put the right file there, or name another with " + c.set[s.key] + "."
				if c.set[s.key] == c.File {
					hint = "Put the right file there, or name another in " + c.File + "."
				}
			}
			if !slices.Contains(hints, hint) {
				hints = append(hints, hint)
			}
		}
	}
	return strings.Join(hints, "\n")
}

// errTwoWays says that both ways to work are set at the same place.
var errTwoWays = errors.New("controller, agents: both are set")

// Local tells whether the engine runs in this process: with agents, or with nobody at all for what needs nobody.
func (c *Config) Local() bool { return c.Controller == "" }

// Validate reports everything that is wrong for a command that asks somebody, each problem with its key.
func (c *Config) Validate() error {
	problems := c.common()
	switch {
	case c.Controller == "" && len(c.Agents) == 0:
		if len(problems) == 0 {
			return notConfigured()
		}
	case c.Controller != "" && len(c.Agents) > 0:
		problems = append(problems, errTwoWays)
	}
	if c.Controller != "" {
		if _, err := withPort(c.Controller, controllerPort); err != nil {
			problems = append(problems, fmt.Errorf("controller: %w", err))
		}
	}
	if _, err := c.agents(); err != nil {
		problems = append(problems, err)
	}
	if _, err := c.TLS.Load(pki.Call); err != nil {
		problems = append(problems, err)
	}
	return c.invalid(problems)
}

// ValidateOffline is Validate for a command that asks nobody.
func (c *Config) ValidateOffline() error { return c.invalid(c.common()) }

func (c *Config) common() []error {
	var problems []error
	if !slices.Contains([]string{"auto", "always", "never"}, c.Color) {
		problems = append(problems, fmt.Errorf("color: %q is not auto, always or never", c.Color))
	}
	if c.Timeout <= 0 {
		problems = append(problems, fmt.Errorf("timeout: %v is not more than 0", c.Timeout))
	}
	return problems
}

func (c *Config) invalid(problems []error) error {
	if len(problems) == 0 {
		return nil
	}
	return &usageError{
		err:  fmt.Errorf("settings: %w", oneToALine(problems)),
		hint: c.where(errors.Join(problems...)),
	}
}

func notConfigured() error {
	return &usageError{
		err: errors.New("no controller and no agent is configured"),
		hint: "Give one of three: a flag (--controller HOST, or --agent [NAME=]HOST to work without a controller), " +
			"a variable (PHOENIX_CONTROLLER or PHOENIX_AGENTS), or a line \"controller: HOST\" in " +
			strings.Join(defaultFiles(), " or ") + ".",
	}
}

// agents returns the agents to work with. The name of a node is that before the "=", or the host's up to the first
// dot.
func (c *Config) agents() ([]Agent, error) {
	var agents []Agent
	for _, s := range c.Agents {
		name, address, named := strings.Cut(s, "=")
		if !named {
			name, address = "", s
		}
		address, err := withPort(address, agentPort)
		if err != nil {
			return nil, fmt.Errorf("agents: %w", err)
		}
		if named && name == "" {
			return nil, fmt.Errorf("agents: %q has no name before the \"=\"", s)
		}
		if name == "" {
			host, _, _ := net.SplitHostPort(address)
			if net.ParseIP(host) != nil {
				return nil, fmt.Errorf("agents: %q is a number, so say the node's name: NAME=%s", s, s)
			}
			name, _, _ = strings.Cut(host, ".")
		}
		if slices.ContainsFunc(agents, func(a Agent) bool { return a.Name == name }) {
			return nil, fmt.Errorf("agents: two are named %q", name)
		}
		agents = append(agents, Agent{Name: name, Address: address})
	}
	return agents, nil
}

// withPort returns address with the port, if it has none.
func withPort(address, port string) (string, error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		host, p = strings.Trim(address, "[]"), port
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", fmt.Errorf("%q is not HOST or HOST:PORT", address)
		}
	}
	if host == "" || strings.ContainsAny(address, "/ =") {
		return "", fmt.Errorf("%q is not HOST or HOST:PORT", address)
	}
	if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%q: port %q is not a number from 1 to 65535", address, p)
	}
	return net.JoinHostPort(host, p), nil
}

// colored tells whether a stream is written in colour. NO_COLOR (no-color.org) counts only where nobody said more.
func (c *Config) colored(isTerminal bool) bool {
	switch c.Color {
	case "always":
		return true
	case "never":
		return false
	default:
		return isTerminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
}
