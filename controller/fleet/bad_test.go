package fleet_test

import (
	"slices"
	"testing"

	"phoenix.internal/controller/fleet"
)

// in901 is a fleet file whose container 901 has the given members, which stand in line 3 from column 9 on.
func in901(members string) string {
	return "{\n\"lxc_configs\": {\n\"901\": {" + members + "}\n}}"
}

// TestBadFiles has what a person sees, word by word.
func TestBadFiles(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   string
		want []string
	}{
		{"empty file", ` `, []string{`f.json: the file is empty; a fleet file is at least {"lxc_configs": {}}`}},
		{"not an object", `[]`, []string{`f.json:1:1: want an object, got a list; a fleet file is at least {"lxc_configs": {}}`}},
		{"a string", `"x"`, []string{`f.json:1:1: want an object, got a string; a fleet file is at least {"lxc_configs": {}}`}},
		{"syntax: trailing comma in an object", `{"lxc_configs": {"901": {"cores": 2,}}}`, []string{`f.json:1:37: not JSON: invalid character '}' looking for beginning of object key string; remove the comma before it`}},
		{"syntax: trailing comma in a list", `{"lxc_configs": {"901": {"features": ["a",]}}}`, []string{`f.json:1:43: not JSON: invalid character ']' looking for beginning of value; remove the comma before it`}},
		{"syntax: missing comma", `{
"lxc_configs": {}
"x": 1}`, []string{`f.json:3:1: not JSON: invalid character '"' after object key:value pair; is a comma missing before it?`}},
		{"syntax: ends too early", `{"lxc_configs": {"901": {`, []string{`f.json:1:26: not JSON: the file ends too early; a closing bracket or quote is missing`}},
		{"syntax: comment", `{ // the fleet
"lxc_configs": {}}`, []string{`f.json:1:3: not JSON: invalid character '/' looking for beginning of object key string; JSON has no comments`}},
		{"syntax: single quotes", `{'lxc_configs': {}}`, []string{`f.json:1:2: not JSON: invalid character '\'' looking for beginning of object key string; strings take double quotes`}},
		{"syntax: NaN", `{"lxc_configs": {"901": {"cores": NaN}}}`, []string{`f.json:1:35: not JSON: invalid character 'N' looking for beginning of value; JSON has no NaN and no Infinity`}},
		{"syntax: Python's None", `{"lxc_configs": {"901": {"gpu_assignment": None}}}`, []string{`f.json:1:44: not JSON: invalid character 'N' looking for beginning of value; write null`}},
		{"syntax: Python's True", `{"lxc_configs": {"901": {"unprivileged": True}}}`, []string{`f.json:1:42: not JSON: invalid character 'T' looking for beginning of value; write true or false in lower case`}},
		{"syntax: two objects", `{"lxc_configs": {}}
{"lxc_configs": {}}`, []string{`f.json:2:1: not JSON: invalid character '{' after top-level value; a fleet file is a single object`}},
		{"syntax: something after the end", `{"lxc_configs": {}} x`, []string{`f.json:1:21: not JSON: invalid character 'x' after top-level value`}},
		{"syntax: leading zero", `{"lxc_configs": {"901": {"cores": 02}}}`, []string{`f.json:1:36: not JSON: invalid character '2' after object key:value pair; numbers do not begin with 0`}},
		{"syntax: unquoted key", `{lxc_configs: {}}`, []string{`f.json:1:2: not JSON: invalid character 'l' looking for beginning of object key string; keys take double quotes`}},
		{"syntax: tab in a string", `{"lxc_configs": {"901": {"name": "a	b"}}}`, []string{`f.json:1:36: not JSON: invalid character '\t' in string literal; a string ends on its line, and has escapes such as \n and \t for such characters`}},
		{"no containers key", `{"nvidia_driver_version": "580.76.05"}`, []string{`f.json:1:1: lxc_configs: missing; the containers stand in it by CTID`}},
		{"containers of VMs", `{
  "vms": []
}`, []string{`f.json:2:3: vms: this is a file of virtual machines; Phoenix takes the one of the LXC containers, phoenix_lxc_configs.json`}},
		{"containers as a list", `{"lxc_configs": []}`, []string{`f.json:1:17: lxc_configs: want an object of containers by CTID, got a list`}},
		{"no containers", `{"lxc_configs": {}}`, []string{`f.json:1:17: warning: lxc_configs: no containers, so there is nothing to do`}},
		{"container as a string", `{"lxc_configs": {"901": "x"}}`, []string{`f.json:1:25: containers 901: want an object, got a string`}},
		{"container null", `{"lxc_configs": {"901": null}}`, []string{`f.json:1:25: containers 901: want an object, got null`}},
		{"duplicate CTID", `{"lxc_configs": {
"901": {"name": "a"},
"901": {"name": "b"}}}`, []string{`f.json:3:1: duplicate key "901"; it stands in line 2 already`}},
		{"duplicate key", `{"lxc_configs": {"901": {
"gpu_assignment": "0",
"gpu_assignment": "1"}}}`, []string{`f.json:3:1: containers 901: duplicate key "gpu_assignment"; it stands in line 2 already`}},
		{"duplicate key by an escape", `{"lxc_configs": {"901": {
"name": "a",
"n\u0061me": "b"}}}`, []string{`f.json:3:1: containers 901: duplicate key "name"; it stands in line 2 already`}},
		{"CTID too small", `{"lxc_configs": {"99": {}}}`, []string{`f.json:1:18: lxc_configs: "99" is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"CTID too big", `{"lxc_configs": {"1000000000": {}}}`, []string{`f.json:1:18: lxc_configs: "1000000000" is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"CTID with a leading zero", `{"lxc_configs": {"0901": {}}}`, []string{`f.json:1:18: lxc_configs: "0901" is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"CTID as a path", `{"lxc_configs": {"../../x": {}}}`, []string{`f.json:1:18: lxc_configs: "../../x" is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"CTID in Arabic digits", `{"lxc_configs": {"٩٠١": {}}}`, []string{`f.json:1:18: lxc_configs: "٩٠١" is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"CTID with a space", `{"lxc_configs": {"901 ": {}}}`, []string{`f.json:1:18: lxc_configs: "901 " is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"CTID with an exponent", `{"lxc_configs": {"9e2": {}}}`, []string{`f.json:1:18: lxc_configs: "9e2" is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"CTID empty", `{"lxc_configs": {"": {}}}`, []string{`f.json:1:18: lxc_configs: "" is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"driver version", `{"nvidia_driver_version": "latest", "lxc_configs": {"901": {}}}`, []string{`f.json:1:27: nvidia_driver_version: "latest" is not a driver version; write it as nvidia-smi shows it, for example "580.76.05"`}},
		{"driver version as a number", `{"nvidia_driver_version": 580, "lxc_configs": {"901": {}}}`, []string{`f.json:1:27: nvidia_driver_version: want a string such as "580.76.05", got the number 580`}},
		{"default mode", `{"passthrough_mode": "hook", "lxc_configs": {"901": {}}}`, []string{`f.json:1:22: passthrough_mode: "hook" is no mode; write "raw" or "native"`}},
		{"unknown key at the top, misspelt", `{"lxc_config": {}, "lxc_configs": {"901": {}}}`, []string{`f.json:1:2: warning: unknown key "lxc_config"; did you mean "lxc_configs"?`}},
		{"unknown key at the top that belongs into a container", `{"gpu_assignment": "0", "lxc_configs": {"901": {}}}`, []string{`f.json:1:2: warning: unknown key "gpu_assignment"; it belongs into a container`}},
		{"unknown key, misspelt", in901(`"gpu_assignement": "0"`), []string{`f.json:3:9: warning: containers 901: unknown key "gpu_assignement"; did you mean "gpu_assignment"?`}},
		{"unknown key with a dash", in901(`"gpu-assignment": "0"`), []string{`f.json:3:9: warning: containers 901: unknown key "gpu-assignment"; did you mean "gpu_assignment"?`}},
		{"unknown key, nothing like it", in901(`"colour": "red"`), []string{`f.json:3:9: warning: containers 901: unknown key "colour"`}},
		{"unknown key in a list", in901(`"firewall": {"rules": [{"type": "in"}, {"destination": "x", "Action": "y"}]}`), []string{
			`f.json:3:49: warning: containers 901: firewall.rules[1]: unknown key "destination"; did you mean "dest"?`,
			`f.json:3:69: warning: containers 901: firewall.rules[1]: unknown key "Action"; did you mean "action"?`,
		}},
		{"unknown key that begins a known one", in901(`"memory": 1, "storage": "x"`), []string{
			`f.json:3:9: warning: containers 901: unknown key "memory"; did you mean "memory_mb"?`,
			`f.json:3:22: warning: containers 901: unknown key "storage"`,
		}},
		{"unknown key of a health check", in901(`"health_check": {"command": "true", "retry": 3}`), []string{`f.json:3:45: warning: containers 901: health_check: unknown key "retry"`}},
		{"assignment: trailing comma", in901(`"gpu_assignment": "0,1,"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0,1," has a comma at the end; write "0,1"`}},
		{"assignment: leading comma", in901(`"gpu_assignment": ",0"`), []string{`f.json:3:27: containers 901: gpu_assignment: ",0" begins with a comma; write "0"`}},
		{"assignment: two commas", in901(`"gpu_assignment": "0,,1"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0,,1" has two commas with nothing between them; write "0,1"`}},
		{"assignment: only a comma", in901(`"gpu_assignment": ","`), []string{`f.json:3:27: containers 901: gpu_assignment: "," begins with a comma; write "none", or indexes such as "0,1"`}},
		{"assignment: duplicate", in901(`"gpu_assignment": "0, 1,0"`), []string{`f.json:3:27: containers 901: gpu_assignment: GPU 0 appears twice in "0, 1,0"; write "0,1"`}},
		{"assignment: negative", in901(`"gpu_assignment": "-1"`), []string{`f.json:3:27: containers 901: gpu_assignment: "-1" is negative; indexes go from 0 to 255`}},
		{"assignment: range", in901(`"gpu_assignment": "0-2"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0-2" is a range: list each index, "0,1,2"`}},
		{"assignment: range backwards", in901(`"gpu_assignment": "2-0"`), []string{`f.json:3:27: containers 901: gpu_assignment: "2-0" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
		{"assignment: ALL", in901(`"gpu_assignment": "ALL"`), []string{`f.json:3:27: containers 901: gpu_assignment: "ALL" is not a GPU; for every GPU of the node write "all"`}},
		{"assignment: None", in901(`"gpu_assignment": "None"`), []string{`f.json:3:27: containers 901: gpu_assignment: "None" is not a GPU; to give no GPU write "none"`}},
		{"assignment: none among others", in901(`"gpu_assignment": "0,none"`), []string{`f.json:3:27: containers 901: gpu_assignment: "none" stands among GPUs; write "none" alone, or only GPUs`}},
		{"assignment: Arabic digits", in901(`"gpu_assignment": "٠"`), []string{`f.json:3:27: containers 901: gpu_assignment: "٠" has digits that are not ASCII; write 0 to 9`}},
		{"assignment: full-width digit", in901(`"gpu_assignment": "0,１"`), []string{`f.json:3:27: containers 901: gpu_assignment: "１" has digits that are not ASCII; write 0 to 9`}},
		{"assignment: no-break space", in901(`"gpu_assignment": "0,\u00a01"`), []string{`f.json:3:27: containers 901: gpu_assignment: "\u00a01" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
		{"assignment: out of range", in901(`"gpu_assignment": "0,256"`), []string{`f.json:3:27: containers 901: gpu_assignment: GPU 256 is out of range; indexes go from 0 to 255`}},
		{"assignment: huge", in901(`"gpu_assignment": "99999999999999999999999999"`), []string{`f.json:3:27: containers 901: gpu_assignment: GPU 99999999999999999999... is out of range; indexes go from 0 to 255`}},
		{"assignment: leading zero", in901(`"gpu_assignment": "01"`), []string{`f.json:3:27: containers 901: gpu_assignment: "01" has a leading zero; write "1"`}},
		{"assignment: spaces for commas", in901(`"gpu_assignment": "0 1"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0 1" is not a GPU; put commas between GPUs, for example "0,1"`}},
		{"assignment: semicolon", in901(`"gpu_assignment": "0;1"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0;1" is not a GPU; put commas between GPUs, for example "0,1"`}},
		{"assignment: fraction", in901(`"gpu_assignment": "0.5"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0.5" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
		{"assignment: hexadecimal", in901(`"gpu_assignment": "0x1"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0x1" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
		{"assignment: word", in901(`"gpu_assignment": "first"`), []string{`f.json:3:27: containers 901: gpu_assignment: "first" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
		{"assignment: plus", in901(`"gpu_assignment": "+1"`), []string{`f.json:3:27: containers 901: gpu_assignment: "+1" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
		{"assignment: brackets in the string", in901(`"gpu_assignment": "[0,1]"`), []string{`f.json:3:27: containers 901: gpu_assignment: "[0,1]" has brackets; write the GPUs alone, for example "0,1"`}},
		{"assignment: UUID", in901(`"gpu_assignment": "GPU-5b1f4c8e-00000-000-0000-000000000000"`), []string{`f.json:3:27: containers 901: gpu_assignment: "GPU-5b1f4c8e-00000-000-0000-000000000000" is no UUID; write GPU- and the digits as nvidia-smi -L shows them, or enough of them from the left to be unique on the node`}},
		{"assignment: UUID of a MIG device", in901(`"gpu_assignment": "0,MIG-"`), []string{`f.json:3:27: containers 901: gpu_assignment: "MIG-" is no UUID; write MIG- and the digits as nvidia-smi -L shows them, or enough of them from the left to be unique on the node`}},
		{"assignment: PCI address", in901(`"gpu_assignment": "0000:01:00"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0000:01:00" is no whole PCI address; write "0000:01:00.0"`}},
		{"assignment: device", in901(`"gpu_assignment": "/dev/nvidia0"`), []string{`f.json:3:27: containers 901: gpu_assignment: "/dev/nvidia0" is a device; use the index that nvidia-smi shows`}},
		{"assignment: line end", in901(`"gpu_assignment": "0\n"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0\n" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
		{"assignment: NUL", in901(`"gpu_assignment": "0\u0000"`), []string{`f.json:3:27: containers 901: gpu_assignment: "0\x00" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
		{"assignment: number", in901(`"gpu_assignment": 0`), []string{`f.json:3:27: warning: containers 901: gpu_assignment: a number is taken for one index; write "0"`}},
		{"assignment: number out of range", in901(`"gpu_assignment": 300`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string of indexes from 0 to 255 such as "0,1", got the number 300`}},
		{"assignment: negative number", in901(`"gpu_assignment": -1`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string of indexes from 0 to 255 such as "0,1", got the number -1`}},
		{"assignment: minus zero", in901(`"gpu_assignment": -0`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string of indexes from 0 to 255 such as "0,1", got the number -0`}},
		{"assignment: fractional number", in901(`"gpu_assignment": 0.5`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string of indexes from 0 to 255 such as "0,1", got the number 0.5`}},
		{"assignment: exponent", in901(`"gpu_assignment": 1e1`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string of indexes from 0 to 255 such as "0,1", got the number 1e1`}},
		{"assignment: huge number", in901(`"gpu_assignment": 123456789012345678901234567890`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string of indexes from 0 to 255 such as "0,1", got the number 12345678901234567890...`}},
		{"assignment: boolean", in901(`"gpu_assignment": false`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string such as "0,1", got false; to give no GPU write "none"`}},
		{"assignment: list", in901(`"gpu_assignment": [0, 1]`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string such as "0,1", got a list; write "0,1"`}},
		{"assignment: empty list", in901(`"gpu_assignment": []`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string such as "0,1", got a list; write "none", or indexes such as "0,1"`}},
		{"assignment: object", in901(`"gpu_assignment": {"0": true}`), []string{`f.json:3:27: containers 901: gpu_assignment: want a string such as "0,1", got an object`}},
		{"policy", in901(`"gpu_policy": "Shared"`), []string{`f.json:3:23: containers 901: gpu_policy: "Shared" is no policy; write "shared" or "exclusive"`}},
		{"policy as a boolean", in901(`"gpu_policy": true`), []string{`f.json:3:23: containers 901: gpu_policy: want a string such as "shared", got true`}},
		{"default policy", `{"gpu_policy": "none", "lxc_configs": {"901": {}}}`, []string{`f.json:1:16: gpu_policy: "none" is no policy; write "shared" or "exclusive"`}},
		{"driver mode", in901(`"driver_mode": "auto"`), []string{`f.json:3:24: containers 901: driver_mode: "auto" is no way to get a driver; write "install", "host" or "none"`}},
		{"default driver mode", `{"driver_mode": 1, "lxc_configs": {"901": {}}}`, []string{`f.json:1:17: driver_mode: want a string such as "install", got the number 1`}},
		{"capabilities: unknown", in901(`"gpu_capabilities": "compute,grafics"`), []string{`f.json:3:29: containers 901: gpu_capabilities: "grafics" is no capability; write "compute", "graphics" or "fabric"`}},
		{"capabilities: NVIDIA's words", in901(`"gpu_capabilities": ["utility", "display", "all"]`), []string{
			`f.json:3:30: containers 901: gpu_capabilities: "utility" is no capability; write "compute", "graphics" or "fabric"; what it names needs no device but those of "compute"`,
			`f.json:3:41: containers 901: gpu_capabilities: "display" is no capability; write "compute", "graphics" or "fabric"; what it names comes with "graphics"`,
			`f.json:3:52: containers 901: gpu_capabilities: "all" is no capability; write "compute", "graphics" or "fabric"; list those that are needed`,
		}},
		{"capabilities: object", in901(`"gpu_capabilities": {}`), []string{`f.json:3:29: containers 901: gpu_capabilities: want a list such as ["compute", "graphics"], got an object`}},
		{"capabilities: number in it", in901(`"gpu_capabilities": [1]`), []string{`f.json:3:30: containers 901: gpu_capabilities: want a capability, "compute", "graphics" or "fabric", got the number 1`}},
		{"capabilities: twice", in901(`"gpu_capabilities": ["compute", "compute"]`), []string{`f.json:3:41: warning: containers 901: gpu_capabilities: "compute" appears twice`}},
		{"runfile: no URL", `{"nvidia_runfile_url": "us.download.nvidia.com/x.run", "lxc_configs": {"901": {}}}`, []string{`f.json:1:24: nvidia_runfile_url: "us.download.nvidia.com/x.run" is no source of an installer; write a URL with https:// or http://, or the absolute path of the file on the nodes`}},
		{"runfile: another scheme", `{"nvidia_runfile_url": "file:///x.run", "lxc_configs": {"901": {}}}`, []string{`f.json:1:24: nvidia_runfile_url: "file:///x.run" is no source of an installer; write a URL with https:// or http://, or the absolute path of the file on the nodes`}},
		{"runfile: path with dots", `{"nvidia_runfile_url": "/var/../x.run", "lxc_configs": {"901": {}}}`, []string{`f.json:1:24: nvidia_runfile_url: "/var/../x.run" is no source of an installer; write a URL with https:// or http://, or the absolute path of the file on the nodes`}},
		{"runfile: a user in it", `{"nvidia_runfile_url": "https://me:secret@mirror/x.run", "lxc_configs": {"901": {}}}`, []string{`f.json:1:24: nvidia_runfile_url: a URL with a user in it would be seen by everybody who may read the fleet file; leave the user out`}},
		{"runfile: checksum", `{"nvidia_runfile_sha256": "sha256:b2ae", "lxc_configs": {"901": {}}}`, []string{`f.json:1:27: nvidia_runfile_sha256: "sha256:b2ae" is no SHA-256; write 64 digits as sha256sum prints them`}},
		{"name: number", in901(`"name": 901`), []string{`f.json:3:17: containers 901: name: want a string such as "web", got the number 901`}},
		{"name: control character", in901(`"name": "a\u001b[31mb"`), []string{`f.json:3:17: containers 901: name: "a\x1b[31mb" has a character that cannot be printed`}},
		{"node: not a name", in901(`"node": "pve1:7461"`), []string{`f.json:3:17: containers 901: node: "pve1:7461" is not the name of a node; write it as the agents are named, for example "pve1", or leave the key out`}},
		{"node: list", in901(`"node": ["pve1"]`), []string{`f.json:3:17: containers 901: node: want a string such as "pve1", got a list`}},
		{"mode", in901(`"passthrough_mode": "Native"`), []string{`f.json:3:29: containers 901: passthrough_mode: "Native" is no mode; write "raw" or "native"`}},
		{"clone: itself", in901(`"clone_from_ctid": "901"`), []string{`f.json:3:28: containers 901: clone_from_ctid: 901 cannot be cloned from itself`}},
		{"clone: not a CTID", in901(`"clone_from_ctid": "base"`), []string{`f.json:3:28: containers 901: clone_from_ctid: "base" is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"clone: number that is none", in901(`"clone_from_ctid": 90`), []string{`f.json:3:28: containers 901: clone_from_ctid: 90 is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"clone: empty", in901(`"clone_from_ctid": ""`), []string{`f.json:3:28: containers 901: clone_from_ctid: "" is not a CTID; leave it out if there is none`}},
		{"clone: boolean", in901(`"clone_from_ctid": true`), []string{`f.json:3:28: containers 901: clone_from_ctid: want a CTID such as "900", got true`}},
		{"clone: unknown", in901(`"clone_from_ctid": "900"`), []string{`f.json:3:28: warning: containers 901: clone_from_ctid: 900 is not in this file, so nothing is known about what the clone brings along`}},
		{"dependencies: string", in901(`"dependencies": "900"`), []string{`f.json:3:25: containers 901: dependencies: want a list such as ["900"], got the string "900"`}},
		{"dependencies: itself", in901(`"dependencies": ["901"]`), []string{`f.json:3:26: containers 901: dependencies: 901 cannot depend on itself`}},
		{"dependencies: name", in901(`"dependencies": ["Step-CA"]`), []string{`f.json:3:26: containers 901: dependencies: "Step-CA" is not a CTID; a CTID is 100 to 999999999 in ASCII digits, without leading zero`}},
		{"dependencies: null in it", in901(`"dependencies": [null]`), []string{`f.json:3:26: containers 901: dependencies: want a CTID such as "900", got null`}},
		{"dependencies: unknown, and twice", in901(`"dependencies": ["1002", 1002]`), []string{
			`f.json:3:26: warning: containers 901: dependencies: 1002 is not in this file: a VM, or a container that is not managed; nothing waits for it`,
			`f.json:3:34: warning: containers 901: dependencies: 1002 appears twice`,
		}},
		{"features: string", in901(`"features": "nvidia"`), []string{`f.json:3:21: containers 901: features: want a list such as ["nvidia"], got the string "nvidia"`}},
		{"features: number in it", in901(`"features": ["nvidia", 1]`), []string{`f.json:3:32: containers 901: features: want the name of a feature such as "nvidia", got the number 1`}},
		{"features: path", in901(`"features": ["../../root/x"]`), []string{`f.json:3:22: containers 901: features: "../../root/x" is not the name of a feature; use a to z, 0 to 9, ".", "_" and "-", beginning with a letter or digit`}},
		{"features: dots", in901(`"features": ["a..b"]`), []string{`f.json:3:22: containers 901: features: "a..b" is not the name of a feature; it has two dots in a row`}},
		{"features: upper case", in901(`"features": ["NVIDIA"]`), []string{`f.json:3:22: containers 901: features: "NVIDIA" is not the name of a feature; use a to z, 0 to 9, ".", "_" and "-", beginning with a letter or digit`}},
		{"features: empty", in901(`"features": [""]`), []string{`f.json:3:22: containers 901: features: "" is not the name of a feature; use a to z, 0 to 9, ".", "_" and "-", beginning with a letter or digit`}},
		{"features: twice", in901(`"features": ["vllm", "vllm"]`), []string{`f.json:3:30: warning: containers 901: features: "vllm" appears twice`}},
		{"health check: string", in901(`"health_check": "curl localhost"`), []string{`f.json:3:25: containers 901: health_check: want an object such as {"command": "pidof init"}, got the string "curl localhost"`}},
		{"health check: no command", in901(`"health_check": {"retries": 3}`), []string{`f.json:3:25: containers 901: health_check.command: missing; it is what is run in the container`}},
		{"health check: empty command", in901(`"health_check": {"command": " "}`), []string{`f.json:3:37: containers 901: health_check.command: empty; leave health_check out if there is none`}},
		{"health check: command is a list", in901(`"health_check": {"command": ["true"]}`), []string{`f.json:3:37: containers 901: health_check.command: want a string such as "pidof init", got a list`}},
		{"health check: NUL", in901(`"health_check": {"command": "a\u0000b"}`), []string{`f.json:3:37: containers 901: health_check.command: holds a NUL, which no command can have`}},
		{"health check: no tries", in901(`"health_check": {"command": "true", "retries": 0}`), []string{`f.json:3:56: containers 901: health_check.retries: 0 is out of range; want an integer from 1 to 100`}},
		{"health check: tries as a string", in901(`"health_check": {"command": "true", "retries": "5"}`), []string{`f.json:3:56: containers 901: health_check.retries: want an integer from 1 to 100, got the string "5"`}},
		{"health check: fractional interval", in901(`"health_check": {"command": "true", "interval": 0.5}`), []string{`f.json:3:57: containers 901: health_check.interval: 0.5 is out of range; want an integer from 1 to 3600`}},
		{"health check: interval with unit", in901(`"health_check": {"command": "true", "interval": "5s"}`), []string{`f.json:3:57: containers 901: health_check.interval: want an integer from 1 to 3600, got the string "5s"`}},
		{"health check: timeout too long", in901(`"health_check": {"command": "true", "timeout": 1e9}`), []string{`f.json:3:56: containers 901: health_check.timeout: 1e9 is out of range; want an integer from 1 to 3600`}},
		{"cycle of two", `{"lxc_configs": {
"901": {"clone_from_ctid": "910"},
"910": {"dependencies": ["901"]}}}`, []string{`f.json:2:28: containers 901: clone_from_ctid: cycle: 901 is cloned from 910, 910 depends on 901; remove one of these`}},
		{"cycle of three, and one that waits for it", `{"lxc_configs": {
"100": {"dependencies": [903]},
"901": {"dependencies": [902]},
"902": {"dependencies": ["903"]},
"903": {"clone_from_ctid": 901}}}`, []string{`f.json:3:26: containers 901: dependencies: cycle: 901 depends on 902, 902 depends on 903, 903 is cloned from 901; remove one of these`}},
		{"two cycles", `{"lxc_configs": {
"901": {"dependencies": [902]},
"902": {"dependencies": [901]},
"903": {"dependencies": [904]},
"904": {"dependencies": [903]}}}`, []string{
			`f.json:2:26: containers 901: dependencies: cycle: 901 depends on 902, 902 depends on 901; remove one of these`,
			`f.json:4:26: containers 903: dependencies: cycle: 903 depends on 904, 904 depends on 903; remove one of these`,
		}},
		{"errors in two containers, in the order of the file", `{"lxc_configs": {
"902": {"gpu_assignment": "x"},
"901": {"gpu_assignment": "y", "colour": 1}}}`, []string{
			`f.json:2:27: containers 902: gpu_assignment: "x" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`,
			`f.json:3:27: containers 901: gpu_assignment: "y" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`,
			`f.json:3:32: warning: containers 901: unknown key "colour"`,
		}},
		{"byte order mark", "\xef\xbb\xbf{\"lxc_configs\": {}}", []string{
			`f.json:1:1: the file begins with a byte order mark; save it as UTF-8 without one`}},
		{"UTF-16", "\xff\xfe{\x00}\x00", []string{
			`f.json:1:1: the file begins with the byte order mark of UTF-16; save it as UTF-8 without one`}},
		{"not UTF-8", "{\n\"lxc_configs\": {\"901\": {\"name\": \"K\xfcche\"}}}", []string{
			`f.json:2:35: byte 0xfc is not UTF-8; save the file as UTF-8`}},
		{"NUL", "{\"lxc_configs\": \x00}", []string{
			`f.json:1:17: not JSON: invalid character '\x00' looking for beginning of value`}},
		{"columns count bytes", in901(`"name": "Küche", "gpu_assignment": "x"`), []string{
			`f.json:3:45: containers 901: gpu_assignment: "x" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
		{"lines end with CR LF too", "{\r\n\"lxc_configs\": {\r\n\"901\": {\"gpu_assignment\": \"x\"}}}", []string{
			`f.json:3:27: containers 901: gpu_assignment: "x" is not a GPU; write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, findings := fleet.Parse("f.json", []byte(tt.in))
			var got []string
			for _, f := range findings {
				got = append(got, f.String())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("Parse(%s)\n got %q\nwant %q", tt.in, got, tt.want)
			}
		})
	}
}
