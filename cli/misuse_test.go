package cli_test

import (
	"strings"
	"testing"
)

// TestMisuse holds what a person sees who calls phoenix-cli wrongly: everything on stderr, and the exit status.
func TestMisuse(t *testing.T) {
	for _, test := range []struct {
		args   string
		code   int
		stderr string // without the newline at its end
	}{
		{`statsu`, 2, `phoenix-cli: unknown command "statsu" for "phoenix-cli"; did you mean status
  See "phoenix-cli --help".`},
		{`frobnicate`, 2, `phoenix-cli: unknown command "frobnicate" for "phoenix-cli"
  See "phoenix-cli --help".`},
		{`--frobnicate`, 2, `phoenix-cli: unknown flag: --frobnicate
  See "phoenix-cli --help".`},
		{`status --frobnicate`, 2, `phoenix-cli: unknown flag: --frobnicate
  See "phoenix-cli status --help".`},
		{`-x`, 2, `phoenix-cli: unknown shorthand flag: 'x' in -x
  See "phoenix-cli --help".`},
		{`status abc`, 2, `phoenix-cli: "abc" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli status --help".`},
		{`status 99`, 2, `phoenix-cli: "99" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli status --help".`},
		{`status 1000000000`, 2, `phoenix-cli: "1000000000" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli status --help".`},
		{`status 901 902 x`, 2, `phoenix-cli: "x" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli status --help".`},
		{`status --ctid 5`, 2, `phoenix-cli: invalid argument "5" for "--ctid" flag: "5" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli status --help".`},
		{`status --ctid=`, 2, `phoenix-cli: invalid argument "" for "--ctid" flag: "" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli status --help".`},
		{`plan -1`, 2, `phoenix-cli: unknown shorthand flag: '1' in -1
  See "phoenix-cli plan --help".`},
		{`plan -- -1`, 2, `phoenix-cli: "-1" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli plan --help".`},
		{`status --probe --no-probe`, 2, `phoenix-cli: --probe and --no-probe exclude each other
  See "phoenix-cli status --help".`},
		{`apply 0x385`, 2, `phoenix-cli: "0x385" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli apply --help".`},
		{`apply --parallel 0`, 2, `phoenix-cli: --parallel 0: must be from 1 to 64
  See "phoenix-cli apply --help".`},
		{`apply --parallel 65`, 2, `phoenix-cli: --parallel 65: must be from 1 to 64
  See "phoenix-cli apply --help".`},
		{`apply --parallel many`, 2, `phoenix-cli: invalid argument "many" for "--parallel" flag: must be an integer
  See "phoenix-cli apply --help".`},
		{`apply --restart-timeout 11m`, 2, `phoenix-cli: --restart-timeout 11m0s: must be from 1s to 10m0s
  See "phoenix-cli apply --help".`},
		{`apply --restart-timeout 5`, 2, `phoenix-cli: invalid argument "5" for "--restart-timeout" flag: must be a duration like "30s" or "5m"
  See "phoenix-cli apply --help".`},
		{`apply --restart-timeout 0s`, 2, `phoenix-cli: --restart-timeout 0s: must be from 1s to 10m0s
  See "phoenix-cli apply --help".`},
		{`conf`, 2, `phoenix-cli: conf needs a command: show, diff, audit, revisions, restore, inspect, canonical
  See "phoenix-cli conf --help".`},
		{`conf edit 901`, 2, `phoenix-cli: unknown command "edit" for "conf"; it has show, diff, audit, revisions, restore, inspect, canonical
  See "phoenix-cli conf --help".`},
		{`conf show`, 2, `phoenix-cli: conf show: CTID is missing
  See "phoenix-cli conf show --help".`},
		{`conf show 901 902`, 2, `phoenix-cli: conf show takes only CTID, not also "902"
  See "phoenix-cli conf show --help".`},
		{`conf show x`, 2, `phoenix-cli: "x" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli conf show --help".`},
		{`conf show 901 --revision 0`, 2, `phoenix-cli: --revision 0: revisions are numbered from 1
  See "phoenix-cli conf show --help".`},
		{`conf show 901 --revision x`, 2, `phoenix-cli: invalid argument "x" for "--revision" flag: must be an integer
  See "phoenix-cli conf show --help".`},
		{`conf show 901 --effective --revision 1`, 2, `phoenix-cli: --effective and --revision exclude each other
  See "phoenix-cli conf show --help".`},
		{`conf show 901 --effective --canonical`, 2, `phoenix-cli: --effective and --canonical exclude each other
  See "phoenix-cli conf show --help".`},
		{`conf show 901 --canonical --json`, 2, `phoenix-cli: --canonical and --json exclude each other
  See "phoenix-cli conf show --help".`},
		{`conf show 901 --canonical --revision 0`, 2, `phoenix-cli: --revision 0: revisions are numbered from 1
  See "phoenix-cli conf show --help".`},
		{`conf audit x`, 2, `phoenix-cli: "x" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli conf audit --help".`},
		{`conf audit 901 --node pve1`, 2, `phoenix-cli: conf audit: CTIDs and --node exclude each other
  See "phoenix-cli conf audit --help".`},
		{`conf audit --files`, 2, `phoenix-cli: conf audit --files: FILE is missing
  See "phoenix-cli conf audit --help".`},
		{`conf audit --files --node pve1 901.conf`, 2, `phoenix-cli: --files and --node exclude each other
  See "phoenix-cli conf audit --help".`},
		{`conf audit --files /nonexistent/901.conf`, 1, `phoenix-cli: read the conf: open /nonexistent/901.conf: no such file or directory`},
		{`conf inspect`, 2, `phoenix-cli: conf inspect: FILE is missing
  See "phoenix-cli conf inspect --help".`},
		{`conf inspect a b`, 2, `phoenix-cli: conf inspect takes only FILE, not also "b"
  See "phoenix-cli conf inspect --help".`},
		{`conf inspect --proxmox --diff a`, 2, `phoenix-cli: --proxmox and --diff exclude each other
  See "phoenix-cli conf inspect --help".`},
		{`conf inspect --diff --json a`, 2, `phoenix-cli: --diff and --json exclude each other
  See "phoenix-cli conf inspect --help".`},
		{`conf inspect /nonexistent/901.conf`, 1, `phoenix-cli: read the conf: open /nonexistent/901.conf: no such file or directory`},
		{`conf inspect /`, 1, `phoenix-cli: read the conf: read /: is a directory`},
		{`conf inspect /dev/zero`, 1, `phoenix-cli: read the conf: /dev/zero is larger than 1 MiB`},
		{`conf canonical`, 2, `phoenix-cli: conf canonical: FILE is missing
  See "phoenix-cli conf canonical --help".`},
		{`conf canonical a b`, 2, `phoenix-cli: conf canonical takes only FILE, not also "b"
  See "phoenix-cli conf canonical --help".`},
		{`conf canonical /`, 1, `phoenix-cli: read the conf: read /: is a directory`},
		{`conf diff`, 2, `phoenix-cli: conf diff: CTID is missing
  See "phoenix-cli conf diff --help".`},
		{`conf diff 901`, 2, `phoenix-cli: conf diff: a second CTID or --revision is missing
  See "phoenix-cli conf diff --help".`},
		{`conf diff 901 902 903`, 2, `phoenix-cli: conf diff takes only CTID and CTID, not also "903"
  See "phoenix-cli conf diff --help".`},
		{`conf diff 901 902 --revision 1`, 2, `phoenix-cli: conf diff: a second CTID and --revision exclude each other
  See "phoenix-cli conf diff --help".`},
		{`conf restore`, 2, `phoenix-cli: conf restore: CTID and REVISION are missing
  See "phoenix-cli conf restore --help".`},
		{`conf restore 901`, 2, `phoenix-cli: conf restore: REVISION is missing
  See "phoenix-cli conf restore --help".`},
		{`conf restore 901 0`, 2, `phoenix-cli: "0" is not a revision: that is a number from 1; see "phoenix-cli conf revisions CTID"
  See "phoenix-cli conf restore --help".`},
		{`conf restore 901 latest`, 2, `phoenix-cli: "latest" is not a revision: that is a number from 1; see "phoenix-cli conf revisions CTID"
  See "phoenix-cli conf restore --help".`},
		{`conf restore x 1`, 2, `phoenix-cli: "x" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli conf restore --help".`},
		{`conf revisions`, 2, `phoenix-cli: conf revisions: CTID is missing
  See "phoenix-cli conf revisions --help".`},
		{`restart`, 2, `phoenix-cli: restart: CTID is missing
  See "phoenix-cli restart --help".`},
		{`restart 901 902`, 2, `phoenix-cli: restart takes only CTID, not also "902"
  See "phoenix-cli restart --help".`},
		{`restart 901 --timeout -1s`, 2, `phoenix-cli: --timeout -1s: must be from 0s to 10m0s
  See "phoenix-cli restart --help".`},
		{`restart 901 --timeout 1h`, 2, `phoenix-cli: --timeout 1h0m0s: must be from 0s to 10m0s
  See "phoenix-cli restart --help".`},
		{`restart 901 --timeout soon`, 2, `phoenix-cli: invalid argument "soon" for "--timeout" flag: must be a duration like "30s" or "5m"
  See "phoenix-cli restart --help".`},
		{`exec`, 2, `phoenix-cli: exec: CTID and COMMAND are missing
  See "phoenix-cli exec --help".`},
		{`exec 901`, 2, `phoenix-cli: exec: COMMAND is missing
  See "phoenix-cli exec --help".`},
		{`exec 901 --`, 2, `phoenix-cli: exec: COMMAND is missing
  See "phoenix-cli exec --help".`},
		{`exec x -- ls`, 2, `phoenix-cli: "x" is not a CTID: that is a number from 100 to 999999999
  See "phoenix-cli exec --help".`},
		{`exec 901 -it bash`, 2, `phoenix-cli: "-it" stands after the CTID: flags of exec stand before it
  See "phoenix-cli exec --help".`},
		{`exec -e 1A=b 901 ls`, 2, `phoenix-cli: --env "1A=b" is not NAME=VALUE
  See "phoenix-cli exec --help".`},
		{`exec -e A 901 ls`, 2, `phoenix-cli: --env "A" is not NAME=VALUE
  See "phoenix-cli exec --help".`},
		{`exec --timeout 25h 901 ls`, 2, `phoenix-cli: --timeout 25h0m0s: must be from 1s to 24h0m0s
  See "phoenix-cli exec --help".`},
		{`exec -t --json 901 sh`, 2, `phoenix-cli: --json and --tty exclude each other
  See "phoenix-cli exec --help".`},
		{`exec -t 901 sh`, 1, `phoenix-cli: --tty: stdin is not a terminal
  Leave out -t.`},
		{`probe`, 2, `phoenix-cli: probe: CTID is missing
  See "phoenix-cli probe --help".`},
		{`probe 901 902`, 2, `phoenix-cli: probe takes only CTID, not also "902"
  See "phoenix-cli probe --help".`},
		{`nodes pve1`, 2, `phoenix-cli: nodes takes no arguments, not "pve1"
  See "phoenix-cli nodes --help".`},
		{`devices pve1`, 2, `phoenix-cli: devices takes no arguments, not "pve1"
  See "phoenix-cli devices --help".`},
		{`devices --node`, 2, `phoenix-cli: flag needs an argument: --node
  See "phoenix-cli devices --help".`},
		{`containers 901`, 2, `phoenix-cli: containers takes no arguments, not "901"
  See "phoenix-cli containers --help".`},
		{`health me`, 2, `phoenix-cli: health takes no arguments, not "me"
  See "phoenix-cli health --help".`},
		{`version 2`, 2, `phoenix-cli: version takes no arguments, not "2"
  See "phoenix-cli version --help".`},
		{`validate a b`, 2, `phoenix-cli: validate takes only FILE, not also "b"
  See "phoenix-cli validate --help".`},
		{`runs 901`, 2, `phoenix-cli: unknown command "901" for "runs"; it has cancel, show, watch
  See "phoenix-cli runs --help".`},
		{`runs --limit 0`, 2, `phoenix-cli: --limit 0: must be from 1 to 1000
  See "phoenix-cli runs --help".`},
		{`runs --limit 1001`, 2, `phoenix-cli: --limit 1001: must be from 1 to 1000
  See "phoenix-cli runs --help".`},
		{`runs show`, 2, `phoenix-cli: runs show: RUN is missing
  See "phoenix-cli runs show --help".`},
		{`runs watch a b`, 2, `phoenix-cli: runs watch takes only RUN, not also "b"
  See "phoenix-cli runs watch --help".`},
		{`runs cancel`, 2, `phoenix-cli: runs cancel: RUN is missing
  See "phoenix-cli runs cancel --help".`},
		{`help frobnicate`, 2, `phoenix-cli: help: there is no command "frobnicate"
  See "phoenix-cli --help".`},
		{`completion`, 2, `phoenix-cli: completion needs a command: bash, zsh, fish, powershell
  See "phoenix-cli completion --help".`},
		{`completion tcsh`, 2, `phoenix-cli: unknown command "tcsh" for "completion"; it has bash, zsh, fish, powershell
  See "phoenix-cli completion --help".`},
		{`status --color sometimes`, 2, `phoenix-cli: settings: color: "sometimes" is not auto, always or never
  Correct --color.`},
		{`status --timeout 0s`, 2, `phoenix-cli: settings: timeout: 0s is not more than 0
  Correct --timeout.`},
		{`status --timeout x`, 2, `phoenix-cli: invalid argument "x" for "--timeout" flag: must be a duration like "30s" or "5m"
  See "phoenix-cli status --help".`},
		{`status --json=maybe`, 2, `phoenix-cli: invalid argument "maybe" for "--json" flag: must be true or false
  See "phoenix-cli status --help".`},
		{`status --config /nonexistent/cli.yaml`, 2, `phoenix-cli: settings file /nonexistent/cli.yaml: no such file or directory
  Correct it, or name another with --config or PHOENIX_CONFIG.`},
		{`status --controller a --agent b`, 2, `phoenix-cli: settings: controller, agents: both are set
  Leave out --controller or --agent.`},
		{`status --agent 10.0.0.1`, 2, `phoenix-cli: settings: agents: "10.0.0.1" is a number, so say the node's name: NAME=10.0.0.1
  Correct --agent.`},
		{`status --agent =pve1`, 2, `phoenix-cli: settings: agents: "=pve1" has no name before the "="
  Correct --agent.`},
		{`status --agent pve1=x --agent pve1=y`, 2, `phoenix-cli: settings: agents: two are named "pve1"
  Correct --agent.`},
		{`status --agent pve1:99999`, 2, `phoenix-cli: settings: agents: "pve1:99999": port "99999" is not a number from 1 to 65535
  Correct --agent.`},
		{`status --controller http://x`, 2, `phoenix-cli: settings: controller: "http://x" is not HOST or HOST:PORT
  Correct --controller.`},
		{`status --agent a:b:c`, 2, `phoenix-cli: settings: agents: "a:b:c" is not HOST or HOST:PORT
  Correct --agent.`},
		{`status --tls-cert /nonexistent/cert.pem`, 2, `phoenix-cli: settings: tls.cert_file: /nonexistent/cert.pem: no such file or directory
  Put the right file there, or name another with --tls-cert.`},
		{`validate /nonexistent/fleet.json`, 1, `phoenix-cli: read the fleet file: open /nonexistent/fleet.json: no such file or directory`},
		{`validate /`, 1, `phoenix-cli: read the fleet file: read /: is a directory`},
	} {
		t.Run(test.args, func(t *testing.T) {
			f := &fake{}
			got := run(t, f, nil, strings.Fields(test.args)...)
			if want := (result{"", test.stderr + "\n", test.code}); got != want {
				t.Errorf("phoenix-cli %s:\ngot  exit %d, stdout %q\n%s\nwant exit %d\n%s", test.args, got.code, got.stdout, got.stderr, want.code, want.stderr)
			}
			if len(f.requests) > 0 {
				t.Errorf("phoenix-cli %s: asked the controller: %v", test.args, f.requests)
			}
		})
	}
}
