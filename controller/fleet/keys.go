package fleet

import (
	"maps"
	"slices"
	"strings"
)

// A Key is one key that a fleet file may have. Keys that Phoenix acts on are checked; those it only knows belong to
// the programs that make the containers, and are left alone whatever their values.
type Key struct {
	Path string // "*" stands for any CTID, "[]" for any element of a list
	Acts bool   // whether Phoenix acts on it
	Open bool   // whether whatever is below it is left alone
	Doc  string
}

// Keys returns every known key, in the order in which docs/fleet-file.md has them.
func Keys() []Key { return slices.Clone(keys) }

const aContainer = "lxc_configs.*"

var keys = []Key{
	{Path: "$schema", Doc: "Where the legacy schema is"},
	{Path: "nvidia_driver_version", Acts: true, Doc: "Driver version that the nodes are to run: a difference is a warning"},
	{Path: "nvidia_repo_url", Doc: "Package repository of the driver"},
	{Path: "nvidia_runfile_url", Acts: true, Doc: "Installer of the driver: a URL, or a path on the nodes"},
	{Path: "nvidia_runfile_sha256", Acts: true, Doc: "SHA-256 of that installer; default: what is published beside it"},
	{Path: "passthrough_mode", Acts: true, Doc: "Default of the containers: `raw` (default) or `native`"},
	{Path: "gpu_policy", Acts: true, Doc: "Default of the containers: `shared` (default) or `exclusive`"},
	{Path: "driver_mode", Acts: true, Doc: "Default of the containers: `install` (default), `host` or `none`"},
	{Path: "lxc_configs", Acts: true, Doc: "The containers, by CTID. Required"},

	{Path: aContainer + ".name", Acts: true, Doc: "Name in messages and tables"},
	{Path: aContainer + ".node", Acts: true, Doc: "Node that must have the container; default: whichever has it"},
	{Path: aContainer + ".gpu_assignment", Acts: true, Doc: "GPUs and MIG devices it is to have"},
	{Path: aContainer + ".gpu_policy", Acts: true, Doc: "`shared`, or `exclusive`: nobody else may have its GPUs; default: the file's"},
	{Path: aContainer + ".gpu_capabilities", Acts: true, Doc: "Devices that come with its GPUs: `compute` (default), `graphics`, `fabric`"},
	{Path: aContainer + ".driver_mode", Acts: true, Doc: "How it gets its user-space driver: `install`, `host` or `none`; default: the file's"},
	{Path: aContainer + ".passthrough_mode", Acts: true, Doc: "`raw` or `native`; default: the file's"},
	{Path: aContainer + ".clone_from_ctid", Acts: true, Doc: "Container it is cloned from: that one comes first"},
	{Path: aContainer + ".dependencies", Acts: true, Doc: "CTIDs that come first"},
	{Path: aContainer + ".features", Acts: true, Doc: "Features, in their order"},
	{Path: aContainer + ".health_check", Acts: true, Doc: "Command that shows that the container does its work"},
	{Path: aContainer + ".health_check.command", Acts: true, Doc: "Run in the container by `sh -c`. Required"},
	{Path: aContainer + ".health_check.retries", Acts: true, Doc: "How often it is tried in all, 1 to 100; default 3"},
	{Path: aContainer + ".health_check.interval", Acts: true, Doc: "Seconds between two tries, 1 to 3600; default 5"},
	{Path: aContainer + ".health_check.timeout", Acts: true, Doc: "Seconds that one try may take, 1 to 3600; default 30"},

	{Path: aContainer + ".apparmor_manages_nesting", Doc: "AppArmor"},
	{Path: aContainer + ".apparmor_profile", Doc: "AppArmor"},
	{Path: aContainer + ".application_script", Doc: "Legacy installer of the application"},
	{Path: aContainer + ".boot_delay", Doc: "Start at boot"},
	{Path: aContainer + ".boot_order", Doc: "Start at boot"},
	{Path: aContainer + ".bootstrap_ca_url", Doc: "Certificate authority of the site"},
	{Path: aContainer + ".cores", Doc: "CPU cores"},
	{Path: aContainer + ".enable_lifecycle_snapshots", Doc: "Snapshots that the legacy scripts make"},
	{Path: aContainer + ".firewall", Doc: "Proxmox firewall"},
	{Path: aContainer + ".firewall.enabled", Doc: "Proxmox firewall"},
	{Path: aContainer + ".firewall.rules", Doc: "Proxmox firewall"},
	{Path: aContainer + ".firewall.rules[].action", Doc: "Proxmox firewall"},
	{Path: aContainer + ".firewall.rules[].comment", Doc: "Proxmox firewall"},
	{Path: aContainer + ".firewall.rules[].dest", Doc: "Proxmox firewall"},
	{Path: aContainer + ".firewall.rules[].port", Doc: "Proxmox firewall"},
	{Path: aContainer + ".firewall.rules[].proto", Doc: "Proxmox firewall"},
	{Path: aContainer + ".firewall.rules[].source", Doc: "Proxmox firewall"},
	{Path: aContainer + ".firewall.rules[].type", Doc: "Proxmox firewall"},
	{Path: aContainer + ".id_maps", Doc: "User and group maps"},
	{Path: aContainer + ".id_maps[].container_id", Doc: "User and group maps"},
	{Path: aContainer + ".id_maps[].host_id", Doc: "User and group maps"},
	{Path: aContainer + ".id_maps[].size", Doc: "User and group maps"},
	{Path: aContainer + ".id_maps[].type", Doc: "User and group maps"},
	{Path: aContainer + ".integration_tests", Doc: "Tests of the legacy scripts"},
	{Path: aContainer + ".integration_tests.script", Doc: "Tests of the legacy scripts"},
	{Path: aContainer + ".lxc_options", Doc: "Options of LXC; the agent has its own list of what is allowed"},
	{Path: aContainer + ".mac_address", Doc: "Network"},
	{Path: aContainer + ".memory_mb", Doc: "Memory"},
	{Path: aContainer + ".mount_points", Doc: "Mount points"},
	{Path: aContainer + ".mount_points[].container_path", Doc: "Mount points"},
	{Path: aContainer + ".mount_points[].host_path", Doc: "Mount points"},
	{Path: aContainer + ".mount_points[].owner_gid", Doc: "Mount points"},
	{Path: aContainer + ".mount_points[].owner_uid", Doc: "Mount points"},
	{Path: aContainer + ".network_config", Doc: "Network"},
	{Path: aContainer + ".network_config.bridge", Doc: "Network"},
	{Path: aContainer + ".network_config.gw", Doc: "Network"},
	{Path: aContainer + ".network_config.ip", Doc: "Network"},
	{Path: aContainer + ".network_config.name", Doc: "Network"},
	{Path: aContainer + ".network_config.nameservers", Doc: "Network"},
	{Path: aContainer + ".pct_options", Doc: "Options of the creation"},
	{Path: aContainer + ".portainer_role", Doc: "Portainer"},
	{Path: aContainer + ".ports", Doc: "Published ports"},
	{Path: aContainer + ".run_integration_tests", Doc: "Tests of the legacy scripts"},
	{Path: aContainer + ".start_at_boot", Doc: "Start at boot"},
	{Path: aContainer + ".storage_pool", Doc: "Storage"},
	{Path: aContainer + ".storage_size_gb", Doc: "Storage"},
	{Path: aContainer + ".swap_mb", Doc: "Memory"},
	{Path: aContainer + ".template", Doc: "Archive that the container is made from"},
	{Path: aContainer + ".template_snapshot_name", Doc: "Snapshot that clones are made from"},
	{Path: aContainer + ".tests", Doc: "Tests of the legacy scripts"},
	{Path: aContainer + ".tests.integration_tests", Doc: "Tests of the legacy scripts"},
	{Path: aContainer + ".tests.integration_tests[].name", Doc: "Tests of the legacy scripts"},
	{Path: aContainer + ".tests.integration_tests[].path", Doc: "Tests of the legacy scripts"},
	{Path: aContainer + ".tests.integration_tests[].type", Doc: "Tests of the legacy scripts"},
	{Path: aContainer + ".traefik_service", Doc: "Traefik"},
	{Path: aContainer + ".traefik_service.name", Doc: "Traefik"},
	{Path: aContainer + ".traefik_service.port", Doc: "Traefik"},
	{Path: aContainer + ".trigger_sync_on_completion", Doc: "Legacy scripts"},
	{Path: aContainer + ".unprivileged", Doc: "How the container is made; Phoenix goes by the conf"},
	{Path: aContainer + ".vllm_args", Doc: "vLLM"},
	{Path: aContainer + ".vllm_engine_config", Open: true, Doc: "vLLM, with whatever its engine takes"},
	{Path: aContainer + ".vllm_gpu_memory_utilization", Doc: "vLLM"},
	{Path: aContainer + ".vllm_max_model_len", Doc: "vLLM"},
	{Path: aContainer + ".vllm_model", Doc: "vLLM"},
	{Path: aContainer + ".vllm_model_type", Doc: "vLLM"},
	{Path: aContainer + ".vllm_parameters", Open: true, Doc: "vLLM, with whatever its engine takes"},
	{Path: aContainer + ".vllm_port", Doc: "vLLM"},
	{Path: aContainer + ".vllm_quantization", Doc: "vLLM"},
	{Path: aContainer + ".vllm_served_model_name", Doc: "vLLM"},
	{Path: aContainer + ".vllm_tensor_parallel_size", Doc: "vLLM"},
	{Path: aContainer + ".vllm_trust_remote_code", Doc: "vLLM"},
	{Path: aContainer + ".volumes", Doc: "Volumes"},
	{Path: aContainer + ".volumes[].mount_point", Doc: "Volumes"},
	{Path: aContainer + ".volumes[].name", Doc: "Volumes"},
	{Path: aContainer + ".volumes[].pool", Doc: "Volumes"},
	{Path: aContainer + ".volumes[].size_gb", Doc: "Volumes"},
	{Path: aContainer + ".zfs_volumes", Doc: "Volumes"},
	{Path: aContainer + ".zfs_volumes[].mount_point", Doc: "Volumes"},
	{Path: aContainer + ".zfs_volumes[].name", Doc: "Volumes"},
	{Path: aContainer + ".zfs_volumes[].pool", Doc: "Volumes"},
	{Path: aContainer + ".zfs_volumes[].size_gb", Doc: "Volumes"},
}

// known has the keys by the path of the object they stand in, without its last dot.
var known = func() map[string]map[string]Key {
	m := map[string]map[string]Key{}
	for _, k := range keys {
		i := strings.LastIndexByte(k.Path, '.')
		in := k.Path[:max(i, 0)]
		if m[in] == nil {
			m[in] = map[string]Key{}
		}
		m[in][k.Path[i+1:]] = k
	}
	return m
}()

// similar returns the key of an object that was probably meant by one that is not known, or "": the only one that it
// begins, or that begins with it, or the nearest that differs in few letters.
func similar(in, key string) string {
	const shortest, longest = 3, 64
	if len(key) < shortest || len(key) > longest {
		return ""
	}
	nearest, least := "", len(key)/3+1
	var beginning []string
	for _, candidate := range slices.Sorted(maps.Keys(known[in])) {
		if d := distance(normal(key), normal(candidate)); d < least {
			nearest, least = candidate, d
		}
		if strings.HasPrefix(candidate, key) || strings.HasPrefix(key, candidate) {
			beginning = append(beginning, candidate)
		}
	}
	if nearest == "" && len(beginning) == 1 {
		return beginning[0]
	}
	return nearest
}

func normal(key string) string {
	return strings.NewReplacer("-", "", "_", "", " ", "", ".", "").Replace(strings.ToLower(key))
}

// distance is the number of bytes to insert, delete or replace to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
