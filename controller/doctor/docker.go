package doctor

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Files of NVIDIA's container toolkit in a container that runs Docker.
const (
	DockerConfig = "/etc/nvidia-container-runtime/config.toml"
	CDISpec      = "/etc/cdi/nvidia.yaml" // as nvidia-ctk cdi generate is told to write it
)

// libraryVersion is that of a library file of the driver in a CDI spec.
var libraryVersion = regexp.MustCompile(`/lib(?:cuda|nvidia-ml)\.so\.([0-9]{3,}(?:\.[0-9]+)+)`)

// docker looks at Docker in a container that has GPUs. In an unprivileged one nvidia-container-cli may not load its program
// for the device cgroup, and no container of Docker's starts with a GPU, unless it is told not to try
// (libnvidia-container#154, nvidia-container-toolkit#290); with CDI it does not try.
func (e *examination) docker() {
	if len(e.targets) == 0 {
		return
	}
	settings := tomlSettings(e.Docker.Config)
	if e.Docker.Config != "" && e.Container.Unprivileged &&
		settings["nvidia-container-cli.no-cgroups"] != "true" && settings["nvidia-container-runtime.mode"] != "cdi" {
		e.warn(DockerCgroups, DockerConfig+" inside has no no-cgroups = true under [nvidia-container-cli]",
			fmt.Sprintf("phoenix-cli exec %d -- nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true; then restart Docker in it", e.CTID),
			"Docker in this container starts none with a GPU: nvidia-container-cli may not change the device cgroup of an unprivileged container")
	}
	var versions []string
	for _, m := range libraryVersion.FindAllStringSubmatch(e.Docker.CDI, -1) {
		versions = append(versions, m[1])
	}
	slices.Sort(versions)
	versions = slices.Compact(versions)
	if len(versions) > 0 && e.Node.Loaded != "" && !slices.Contains(versions, e.Node.Loaded) {
		e.warn(StaleCDI, fmt.Sprintf("%s inside names libraries of %s", CDISpec, strings.Join(versions, ", ")),
			fmt.Sprintf("phoenix-cli exec %d -- nvidia-ctk cdi generate --output=%s", e.CTID, CDISpec),
			"the CDI spec in the container is for another driver than %s", e.Node.Loaded)
	}
}

// tomlSettings reads the plain settings of a TOML file, by "section.key"; strings without their quotes.
func tomlSettings(text string) map[string]string {
	settings := map[string]string{}
	section := ""
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]") + "."
		} else if key, value, ok := strings.Cut(line, "="); ok {
			settings[section+strings.TrimSpace(key)] = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return settings
}
